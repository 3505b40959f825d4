"""MBPP: a sentence and three asserts → a program that passes them."""

from __future__ import annotations

import re
from typing import Any

from pipeline.scoring import extract_code
from pipeline.scoring.sandbox import run_program, walls
from pipeline.scoring.task import Example, Score, Task

_BEGIN = re.compile(
    r"\[BEGIN\]|^[ \t]*BEGIN[ \t]*:?[ \t]*(?=$|[\"'`@]|(?:def|class|import|from) )", re.MULTILINE
)
_DONE = re.compile(r"\[DONE\]|^[ \t]*DONE\b|(?<=[\"'`])[ \t]+DONE\b", re.MULTILINE)
_QUOTED = re.compile(r"\s*(?P<quote>\"{3}|'{3}|[\"'`])(?P<code>.*?)(?:(?P=quote)\s*)?\Z", re.DOTALL)


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


def program(text: str) -> str:
    """The code of an answer: between the marks of the few-shot prompt, without quotes around it."""
    # Markdown escapes underscores; a base model goes on with the next example.
    answer = _DONE.split(text.replace("\\_", "_"), maxsplit=1)[0]
    if begin := _BEGIN.search(answer):
        answer = answer[begin.end() :]
    answer = answer.lstrip("\r\n")
    # A fence is not a quotation.
    quoted = None if answer.lstrip().startswith("```") else _QUOTED.match(answer)
    unquoted = extract_code.module(quoted["code"]) if quoted else ""
    return unquoted if extract_code.defines(unquoted, None) else extract_code.module(answer)


def score(text: str, reference: Any, example: Example) -> Score:
    """reference: the asserts; the row's `test_setup_code`, where it has one, runs before them."""
    code = program(text)
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
