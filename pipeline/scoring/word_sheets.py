"""The embedded models' worksheets: several word problems in one prompt → their final numbers.

A row is right where the whole sheet is; `counted` tells how many problems are. A problem's answer
is the word after the last `####` of its part, and a part begins at a line with its letter,
`B) 3*4=12`. A sheet of one problem has no letters. Answers and references are written as the
final numbers in order, a space between, `-` for an answer that is not there: `40 12 -`.
"""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa

from pipeline.scoring.task import NO_ANSWER, Example, Score, Task
from pipeline.scoring.word_problems import exemplar_answer, final_answer, prompt

_LETTER = re.compile(r"^([A-Z])\) ", re.MULTILINE)
_NOT_THERE = "-"


def final_answers(text: str, num_problems: int) -> list[str | None]:
    """Each problem's answer in order; None where it has none.

    Of a letter that comes twice the later part counts, as of two `####` the later does.
    """
    if num_problems == 1:
        return [final_answer(text)]
    _, *rest = _LETTER.split(text)
    parts = dict(zip(rest[::2], rest[1::2], strict=True))
    letters = (chr(ord("A") + number) for number in range(num_problems))
    return [final_answer(parts.get(letter, "")) for letter in letters]


def right_answers(text: str, reference: str) -> list[bool]:
    """Whether each problem's answer is the reference's final number."""
    expected = reference.split()
    return [a == b for a, b in zip(final_answers(text, len(expected)), expected, strict=True)]


def score(text: str, reference: Any, example: Example) -> Score:
    """reference: the final numbers, a space between."""
    expected = str(reference).split()
    found = final_answers(text, len(expected))
    if not any(found):
        return Score(False, None, NO_ANSWER)
    extracted = " ".join(answer or _NOT_THERE for answer in found)
    num_wrong = len(expected) - _num_equal(found, expected)
    reason = f"{num_wrong} of {len(expected)} problems wrong" if num_wrong else None
    return Score(not num_wrong, extracted, reason)


def counted(scores: pa.Table) -> tuple[int, int]:
    """Problems that are right, and all problems, of the scores that `lrd evaluate` writes.

    The problems of a row without an answer, or that was not decoded, are wrong.
    """
    num_right = num_problems = 0
    answers, references = scores["extracted"].to_pylist(), scores["reference"].to_pylist()
    for extracted, reference in zip(answers, references, strict=True):
        expected = (reference or "").split()
        num_right += _num_equal((extracted or "").split(), expected)
        num_problems += len(expected)
    return num_right, num_problems


def _num_equal(found: list[Any], expected: list[str]) -> int:
    return sum(a == b for a, b in zip(found, expected, strict=False))


TASK = Task(
    name="word-sheets",
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
