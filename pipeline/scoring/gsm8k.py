"""GSM8K: a word problem → its final number.

Right is what equals the reference's final number as a value: 1,000 and 1000.00 are one.
"""

from __future__ import annotations

from typing import Any

from pipeline.scoring.final_number import final_number, number_value
from pipeline.scoring.task import Example, Score, Task, before, compared


def chat_prompt(example: Example) -> str:
    """The question and the form of the answer."""
    return (
        f"{example['question']}\n\nReason step by step. "
        "Write the final number on the last line, after ####."
    )


def open_prompt(example: Example) -> str:
    """The form of the dataset's usual few-shot prompt."""
    return f"Question: {example['question']}\nAnswer:"


def exemplar_answer(example: Example) -> str:
    """The worked solution, which ends in `#### x`."""
    return f" {example['answer']}"


def score(text: str, reference: Any, example: Example) -> Score:
    """reference: a number, a string that ends in one, or a worked solution."""
    written = final_number(str(reference))
    if written is None:
        return Score(False, None, f"no number in the reference: {reference}")
    found = final_number(before(text, "\nQuestion:"))
    return compared(found is not None and number_value(found) == number_value(written), found)


TASK = Task(
    name="gsm8k",
    prompt_columns=("question",),
    chat_prompt=chat_prompt,
    open_prompt=open_prompt,
    exemplar_columns=("question", "answer"),
    exemplar_answer=exemplar_answer,
    paper_shots=8,
    reference_columns=("final_answer", "answer"),
    score_columns=(),
    optional_columns=(),
    score=score,
    comparable=number_value,
)
