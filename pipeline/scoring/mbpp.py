"""MBPP: a sentence and three asserts → a program that passes them.

Knows nothing of files or of how programs are confined.
"""

from __future__ import annotations

from typing import Any

from pipeline.scoring import extract_code
from pipeline.scoring.sandbox import run_program, walls
from pipeline.scoring.task import Example, Score, Task, before


def chat_prompt(example: Example) -> str:
    """The task, its tests and the form of the answer."""
    return (
        f"{example['text']}\n\nYour code should pass these tests:\n\n{_tests(example)}\n\n"
        "Answer with one Python code block."
    )


def open_prompt(example: Example) -> str:
    """The form of the dataset's usual few-shot prompt."""
    return (
        f"You are an expert Python programmer, and here is your task: {example['text']} "
        f"Your code should pass these tests:\n\n{_tests(example)}\n[BEGIN]\n"
    )


def exemplar_answer(example: Example) -> str:
    """The reference program up to its closing mark."""
    code = "\n".join(example["code"].splitlines())
    return f"{code}\n[DONE]"


def score(text: str, reference: Any, example: Example) -> Score:
    """reference: the asserts; the row's `test_setup_code`, where it has one, runs before them."""
    answer = before(text.partition("[BEGIN]")[2] or text, "[DONE]")
    code = extract_code.module(answer)
    setup = example.get("test_setup_code") or ""
    outcome = run_program([code, "\n".join([setup, *reference])])
    return Score(outcome.passed, code, outcome.error)


def _tests(example: Example) -> str:
    return "\n".join(example["test_list"])


TASK = Task(
    name="mbpp",
    prompt_columns=("text", "test_list"),
    chat_prompt=chat_prompt,
    open_prompt=open_prompt,
    exemplar_columns=("text", "test_list", "code"),
    exemplar_answer=exemplar_answer,
    paper_shots=3,
    reference_columns=("test_list",),
    score_columns=(),
    optional_columns=("test_setup_code",),
    score=score,
    check=walls,
)
