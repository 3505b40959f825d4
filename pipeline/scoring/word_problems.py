"""The embedded model's word problems: a question → the number after the last `####`.

Strict, as the model is trained to that form: right is what reads exactly as the reference.
"""

from __future__ import annotations

from typing import Any

from pipeline.scoring.task import Example, Score, Task, compared


def prompt(example: Example) -> str:
    """The bare question: the model was shown nothing else."""
    return str(example["question"])


def exemplar_answer(example: Example) -> str:
    """Equations, a line each, then `#### answer`."""
    return f"\n{example['reference']}"


def final_answer(text: str) -> str | None:
    """The word after the last `####`, as written; None where there is none."""
    _, mark, tail = text.rpartition("####")
    words = tail.split()
    return words[0] if mark and words else None


def score(text: str, reference: Any, example: Example) -> Score:
    """reference: the final number."""
    found = final_answer(text)
    return compared(found == str(reference).strip(), found)


TASK = Task(
    name="word-problems",
    prompt_columns=("question",),
    chat_prompt=prompt,
    open_prompt=prompt,
    exemplar_columns=("question", "reference"),
    exemplar_answer=exemplar_answer,
    paper_shots=0,
    reference_columns=("answer",),
    score_columns=(),
    optional_columns=(),
    score=score,
    comparable=str,
)
