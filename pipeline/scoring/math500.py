"""MATH500: a competition problem → its answer in LaTeX, compared by `math-verify`.

An answer that reads as the reference, spaces and typography aside, is right; any other is
parsed and compared as mathematics. math-verify's own time limits are signals, which work in a
main thread alone, so they are off here: `workers.py` ends a row that takes too long.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from pipeline.scoring.final_number import boxed
from pipeline.scoring.task import Example, Score, Task, before, compared

_PHRASE = re.compile(r"\banswer\s*(?:is|:)\s*:?\s*(?P<answer>[^\n]+)", re.IGNORECASE)
_CLOSING = re.compile(r"\.?\s*I hope it is correct\.?\s*$|[.\s]+$")
_MATH = re.compile(r"\$((?:\\.|[^$\\])+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]")
_BRACED = re.compile(r"\A\{([^{}]*)\}\Z")
_TYPOGRAPHY = (
    (re.compile(r"\\(?:d|t)frac"), r"\\frac"),
    (re.compile(r"\\(?:text|mathrm|mbox|textbf)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\(?:left|right|,|;|!|:| |quad)|\s|\$|\^\{?\\circ\}?|\\?%|\\\$"), ""),
    (re.compile(r"\\frac(\w)(\w)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\.$"), ""),
)


def chat_prompt(example: Example) -> str:
    """The problem and the form of the answer."""
    return (
        f"{example['problem']}\n\nReason step by step, and put the final answer within \\boxed{{}}."
    )


def open_prompt(example: Example) -> str:
    """The form of the dataset's usual few-shot prompt."""
    return f"Problem:\n{example['problem']}\n\nSolution:"


def exemplar_answer(example: Example) -> str:
    """The worked solution, which ends in its boxed answer."""
    return f" {example['solution']}"


def final_answer(text: str) -> str | None:
    """What the last box with a content holds, else what follows the last "the answer is"."""
    if found := boxed(text):
        answer = found[-1].strip()
        return _BRACED.sub(r"\1", answer)
    phrases = _PHRASE.findall(text)
    if not phrases:
        return None
    phrase = _CLOSING.sub("", phrases[-1])
    marked = _MATH.search(phrase)
    return next(filter(None, marked.groups())).strip() if marked else phrase.strip()


def same_mathematics(reference: str, answer: str) -> bool:
    """Whether math-verify finds the two equal.

    Raises ValueError with the fix where the package is not installed.
    """
    require()
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    parsed = [parse(f"\\boxed{{{side}}}", parsing_timeout=None) for side in (reference, answer)]
    return bool(verify(*parsed, timeout_seconds=None))


def require() -> None:
    """Raises ValueError with the fix where math-verify is not installed."""
    try:
        import math_verify  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"task math500 needs math-verify ({error}): pip install 'lrd-pipeline[eval]'"
        ) from error


def check() -> None:
    """Raises ValueError with the fix where math-verify does not work."""
    if not same_mathematics("\\frac{1}{2}", "0.5"):
        raise ValueError("math-verify finds 1/2 and 0.5 different; install it anew")


def score(text: str, reference: Any, example: Example) -> Score:
    """reference: the answer in LaTeX, without a box."""
    found = final_answer(before(text, "\nProblem:"))
    if found is None:
        return compared(False, None)
    same = _squeezed(found) == _squeezed(str(reference))
    return compared(same or same_mathematics(str(reference), found), found)


def _squeezed(latex: str) -> str:
    for pattern, replacement in _TYPOGRAPHY:
        latex = pattern.sub(replacement, latex)
    return latex


TASK = Task(
    name="math500",
    prompt_columns=("problem",),
    chat_prompt=chat_prompt,
    open_prompt=open_prompt,
    exemplar_columns=("problem", "solution"),
    exemplar_answer=exemplar_answer,
    paper_shots=4,
    reference_columns=("answer",),
    score_columns=(),
    optional_columns=(),
    score=score,
    comparable=_squeezed,
    check=check,
)
