"""HumanEval: a signature with its docstring → the function, run against the hidden tests.

`lrd prepare` keeps the signature as `source_prompt`, where `prompt` is what the model is given.
"""

from __future__ import annotations

from typing import Any

from pipeline.scoring import extract_code
from pipeline.scoring.sandbox import run_program, walls
from pipeline.scoring.task import Example, Score, Task


def chat_prompt(example: Example) -> str:
    """The signature in a fence, and what is asked for."""
    return (
        "Complete the following Python function. Answer with the whole function in one "
        f"Python code block.\n\n```python\n{signature(example).strip()}\n```"
    )


def signature(example: Example) -> str:
    """The benchmark's own prompt: imports, signature, docstring."""
    return str(example.get("source_prompt") or example["prompt"])


def exemplar_answer(example: Example) -> str:
    """The function's body."""
    return str(example["canonical_solution"])


def score(text: str, reference: Any, example: Example) -> Score:
    """reference: source that defines `check(candidate)`."""
    name = example["entry_point"]
    code = extract_code.function(signature(example), text, name)
    outcome = run_program([code, f"{reference}\n\ncheck({name})\n"])
    return Score(outcome.passed, code, outcome.error)


TASK = Task(
    name="humaneval",
    prompt_columns=("prompt",),
    chat_prompt=chat_prompt,
    open_prompt=signature,
    exemplar_columns=("prompt", "canonical_solution"),
    exemplar_answer=exemplar_answer,
    paper_shots=0,
    reference_columns=("test",),
    score_columns=("prompt", "entry_point"),
    optional_columns=("source_prompt",),
    score=score,
    check=walls,
)
