"""The rules of a selection as settings, and what each of them dropped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Form = Literal["rows", "messages", "preference"]
Dedupe = Literal["exact", "minhash"]


@dataclass(frozen=True, slots=True)
class Rules:
    """Which rows to keep, and in which form. Rules apply in the order of the fields."""

    correct: bool = False
    """Rows that `lrd evaluate` scored as right."""
    where: str | None = None
    """Rows for which this SQL expression is true."""
    dedupe: Dedupe | None = None
    """Of rows with equal, or similar, prompt and answer the first."""
    threshold: float = 0.8
    """Similarity from which `minhash` takes two rows for duplicates, of their word 5-grams: above 0
    up to 1."""
    best_of: str | None = None
    """Of each prompt the row with the largest value in this column."""
    majority: bool = False
    """Of each prompt the rows with its most frequent answer."""
    max_per_prompt: int | None = None
    """Of each prompt at most so many rows, the first ones."""
    form: Form = "rows"
    """rows: with all columns; messages: a chat a row; preference: two answers a prompt. For
    `preference` `correct` and `best_of` drop no rows but say which answer is better."""

    def __post_init__(self) -> None:
        """Raises ValueError for values and combinations that mean nothing."""
        if not 0 < self.threshold <= 1:
            raise ValueError(f"--dedupe-threshold is {self.threshold:g}; expected above 0, up to 1")
        if self.max_per_prompt is not None and self.max_per_prompt < 1:
            raise ValueError(f"--max-per-prompt is {self.max_per_prompt}; at least 1 is needed")
        if self.best_of is not None and self.majority:
            raise ValueError("--best-of and --majority both choose among a prompt's rows; drop one")
        if self.form == "preference":
            self._check_preference()

    def _check_preference(self) -> None:
        if not self.correct and self.best_of is None:
            raise ValueError(
                "--as preference needs --correct or --best-of COLUMN: which of a prompt's answers "
                "is better"
            )
        if self.majority or self.max_per_prompt is not None:
            flag = "--majority" if self.majority else "--max-per-prompt"
            raise ValueError(f"--as preference keeps two rows a prompt; drop {flag}")


@dataclass(frozen=True, slots=True)
class Dropped:
    """What one rule did."""

    rule: str
    """As the command line has it: `where mean_confidence > 0.9`."""
    num_rows: int
    """Rows that came to it."""
    num_dropped: int

    @property
    def num_kept(self) -> int:
        return self.num_rows - self.num_dropped


def table(dropped: list[Dropped]) -> Iterator[tuple[str, str, str, str]]:
    """The counts as cells, a header first."""
    yield "rule", "rows", "dropped", "kept"
    for step in dropped:
        yield step.rule, f"{step.num_rows}", f"{step.num_dropped}", f"{step.num_kept}"
