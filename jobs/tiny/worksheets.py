"""Worksheets: several word problems in one prompt, answered in order on one canvas.

A sheet of one problem is that problem as `jobs.tiny.problems` asks it. Of two to six, each has
a letter that its solution repeats:

    A) Olga has 21 pens. ...          A) 21+19=40
    B) Ben buys 3 cups for $4 ...     #### 40
                                      B) 3*4=12
                                      #### 12

Sheets of the test split are of test problems alone, and train of train's, so no test sheet holds
a problem whose structure and numbers were trained on.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jobs.tiny.problems import Problem, Split, problems

LETTERS = "ABCDEF"
MAX_PROBLEMS = len(LETTERS)
MAX_CHARACTERS = 840
"""Longest question: the longest prompts then hold 256 tokens of `tiny`'s tokenizer at most."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """One to six problems that are asked at once."""

    problems: tuple[Problem, ...]

    @property
    def question(self) -> str:
        return self._lettered([problem.question for problem in self.problems])

    @property
    def solution(self) -> str:
        """What a model is to write: the problems' solutions in order."""
        return self._lettered([problem.solution for problem in self.problems])

    @property
    def answers(self) -> tuple[int, ...]:
        return tuple(problem.answer for problem in self.problems)

    def _lettered(self, parts: Sequence[str]) -> str:
        if len(parts) == 1:
            return parts[0]
        return "\n".join(f"{letter}) {part}" for letter, part in zip(LETTERS, parts, strict=False))


def sheets(split: Split, seed: int, sizes: Sequence[int]) -> Iterator[Sheet]:
    """An endless stream of sheets of one split; equal seeds and sizes give equal streams.

    sizes: numbers of problems, 1 to 6, of which each sheet draws one with equal chances. No two
    problems of a sheet ask the same question; a sheet of over MAX_CHARACTERS is left out.
    Raises ValueError for a size that has no letter.
    """
    if not sizes or not all(1 <= size <= MAX_PROBLEMS for size in sizes):
        raise ValueError(f"sizes are {list(sizes)}; each must be 1 to {MAX_PROBLEMS}")
    rng = random.Random(f"sheets/{split}/{seed}")
    stream = problems(split, seed)
    while True:
        chosen: dict[str, Problem] = {}
        size = rng.choice(sizes)
        while len(chosen) < size:
            problem = next(stream)
            chosen.setdefault(problem.question, problem)
        sheet = Sheet(tuple(chosen.values()))
        if len(sheet.question) <= MAX_CHARACTERS:
            yield sheet
