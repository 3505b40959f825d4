"""Compares decodings of the same problems: accuracy, cost, paired tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from pipeline.scoring.summary import wilson

Z = 1.959964
"""Of two-sided 95 %."""
Cost = Literal["forwards", "positions", "milliseconds"]
"""What decodings are compared by beside accuracy, as a mean a problem."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """One decoding of N problems; the same index is the same problem in all that are compared."""

    name: str
    correct: tuple[bool, ...]
    forwards: tuple[int, ...]
    """Passes a problem; 0 where the row failed."""
    positions: tuple[int, ...] = ()
    """Positions that went through the model a problem; 0 where the row failed, empty where they
    were not counted."""
    mean_milliseconds: float = math.nan
    """A problem, on the machine that timed all of them; NaN where none did."""
    num_unsure: int = 0
    """Early stops with an open position above 0.5 nats."""
    num_failed: int = 0
    """Rows that were not decoded; they count as wrong."""

    @property
    def is_decoded(self) -> bool:
        """Whether any row was."""
        return self.num_failed < len(self.correct)

    @property
    def num_correct(self) -> int:
        return sum(self.correct)

    @property
    def accuracy(self) -> float:
        return self.num_correct / len(self.correct)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy."""
        return wilson(self.num_correct, len(self.correct))

    @property
    def mean_forwards(self) -> float:
        """Over decoded rows; infinite where none was, so that it is never chosen."""
        return self._mean(self.forwards)

    @property
    def mean_positions(self) -> float:
        """As `mean_forwards`."""
        return self._mean(self.positions)

    def mean(self, cost: Cost) -> float:
        mean: float = getattr(self, f"mean_{cost}")
        return mean

    def _mean(self, counts: Sequence[int]) -> float:
        decoded = len(self.correct) - self.num_failed
        return sum(counts) / decoded if decoded else math.inf


@dataclass(frozen=True, slots=True)
class Comparison:
    """Accuracy of decoding A against that of decoding B, problem by problem."""

    gained: int
    """Problems that A alone has right."""
    lost: int
    """Problems that B alone has right."""
    difference: float
    """Accuracy of A less that of B."""
    low: float
    """Lower end of the difference's 95 % interval."""
    high: float
    p: float
    """McNemar's exact two-sided test: that gains and losses are equally likely."""


def compare(a: Outcomes, b: Outcomes) -> Comparison:
    """A against B. Raises ValueError where they are not of equally many problems."""
    if len(a.correct) != len(b.correct):
        raise ValueError(
            f"{a.name} has {len(a.correct)} problems, {b.name} has {len(b.correct)}; "
            "decode the same ones"
        )
    pairs = list(zip(a.correct, b.correct, strict=True))
    gained, lost = pairs.count((True, False)), pairs.count((False, True))
    low, high = difference_interval(gained, lost, len(pairs))
    difference = (gained - lost) / len(pairs)
    return Comparison(gained, lost, difference, low, high, exact_p(gained, lost))


def exact_p(gained: int, lost: int) -> float:
    """McNemar's exact test, two-sided: the probability of at least so uneven a split of
    n = gained + lost fair coins."""
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / (1 << n))


def difference_interval(gained: int, lost: int, num_rows: int) -> tuple[float, float]:
    """95 % interval of a paired difference of shares (Bonett and Price, 2012).

    Wald's with a problem added to either side, so that it has a width without any difference.
    """
    a, b = (gained + 1) / (num_rows + 2), (lost + 1) / (num_rows + 2)
    half = Z * math.sqrt((a + b - (a - b) ** 2) / (num_rows + 2))
    return max(-1.0, a - b - half), min(1.0, a - b + half)


AnyOutcomes = TypeVar("AnyOutcomes", bound=Outcomes)


def front(measured: Sequence[AnyOutcomes], cost: Cost = "forwards") -> list[AnyOutcomes]:
    """The Pareto front, the cheapest first: each is more accurate than all before it."""
    kept: list[AnyOutcomes] = []
    for one in sorted(measured, key=lambda o: (o.mean(cost), -o.accuracy)):
        if one.is_decoded and (not kept or one.num_correct > kept[-1].num_correct):
            kept.append(one)
    return kept
