"""Rows → curves over passes, and counts → bins and quantiles.

Passes are 1-based, entropies and KL divergences in nats.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pipeline.report.samples import Floats, Row

LOW, HIGH = 0.1, 0.9
"""The quantiles that a band spans."""
MIN_ROWS = 5
"""A curve ends where fewer rows than this are left, so that it never shows single rows."""
PASSES_AT_A_TIME = 512
"""Bounds the matrix that quantiles are taken of, however long rows are."""
REFINEMENT, DECODING, UNKNOWN = "refinement", "decoding", "phase not known"


@dataclass(frozen=True, slots=True)
class Curve:
    """Median and band of a quantity by pass; NaN where fewer than `MIN_ROWS` rows have one."""

    passes: list[int]
    num_rows: list[int]
    low: list[float]
    median: list[float]
    high: list[float]


def phase_curves(rows: Sequence[Row], values_of: Callable[[Row], Floats]) -> dict[str, Curve]:
    """A trace's curve for each phase that the rows have passes of.

    A pass of one row counts in the phase that this row was in.
    """
    series: dict[str, list[Floats]] = {REFINEMENT: [], DECODING: [], UNKNOWN: []}
    for row in rows:
        values, decoding = values_of(row), row.decoding_passes
        if decoding is None:
            series[UNKNOWN].append(values)
        else:
            series[REFINEMENT].append(np.where(decoding, np.nan, values))
            series[DECODING].append(np.where(decoding, values, np.nan))
    curves = {name: curve(entries) for name, entries in series.items()}
    return {name: found for name, found in curves.items() if not np.isnan(found.median).all()}


def curve(series: Sequence[Floats], after: float = np.nan) -> Curve:
    """Quantiles over rows at each pass. after: what a row has once it has stopped."""
    num_passes = max(map(len, series), default=0)
    least = min(MIN_ROWS, len(series))
    numbers: list[int] = []
    quantiles = []
    for first in range(0, num_passes, PASSES_AT_A_TIME):
        last = min(first + PASSES_AT_A_TIME, num_passes)
        matrix = np.full((len(series), last - first), after, np.float32)
        for row, values in zip(matrix, series, strict=True):
            part = values[first:last]
            row[: len(part)] = part
        present = (~np.isnan(matrix)).sum(axis=0)
        numbers += present.tolist()
        for column, number in zip(matrix.T, present, strict=True):
            if number < max(1, least):
                quantiles.append([np.nan] * 3)
            else:
                quantiles.append(np.nanquantile(column, [LOW, 0.5, HIGH]).tolist())
    low, median, high = np.array(quantiles).reshape(-1, 3).T.tolist()
    return Curve(list(range(1, num_passes + 1)), numbers, low, median, high)


def committed_curve(rows: Sequence[Row]) -> Curve:
    """Share of the canvas that is committed after each pass; all of it once a row has stopped."""
    return curve([_committed(row) for row in rows], after=1.0)


def _committed(row: Row) -> Floats:
    counts = np.bincount(row.commit_step, minlength=len(row.kl) + 1)[1:]
    num_done = counts.cumsum() + len(row.fixed)
    share: Floats = (num_done / len(row.commit_step)).astype(np.float32)
    # Positions that EOS filled undecoded are there once the row has stopped.
    share[-1:] = 1.0
    return share


def refined_by(rows: Sequence[Row], tau_refine: float, monitor: str = "kl") -> dict[int, float]:
    """Pass → share of rows whose first refinement phase had ended by tau_refine (Figure 3).

    monitor: the run's setting, what tau_refine was compared with. From pass 2 on, the first that
    has a D_t. Rows whose phase ended otherwise, by max_refine_steps, never count; those of unknown
    phases are left out. Empty where no row is left.
    """
    known = [(row, row.decoding_passes) for row in rows]
    firsts = [(row, int(decoding.argmax()) + 1) for row, decoding in known if decoding is not None]
    ends = Counter(
        first for row, first in firsts if _monitored(row.kl, monitor)[first - 1] < tau_refine
    )
    if not firsts:
        return {}
    last = max(2, *(first for _, first in firsts))
    shares = np.cumsum([ends[step] for step in range(2, last + 1)]) / len(firsts)
    return dict(enumerate(shares.tolist(), 2))


def _monitored(kl: Floats, monitor: str) -> Floats:
    """`DecodingConfig.monitor` at each pass."""
    return kl if monitor == "kl" else np.abs(np.diff(kl, prepend=np.float32(np.nan)))


def stopped_by(forwards: Mapping[str, Counter[int]]) -> dict[str, list[float]]:
    """Stop reason → share of all rows that have stopped so by pass 0, 1, 2, …"""
    num_rows = sum(counter.total() for counter in forwards.values())
    last = max((max(counter, default=0) for counter in forwards.values()), default=0)
    return {
        stop: (np.cumsum([counter[step] for step in range(last + 1)]) / num_rows).tolist()
        for stop, counter in forwards.items()
    }


def mean(counter: Counter[int]) -> float:
    """The counted values' mean."""
    return sum(value * number for value, number in counter.items()) / counter.total()


def bin_edges(counter: Counter[int], most: int = 40) -> list[int]:
    """Edges of at most `most` + 1 equal bins of whole numbers, [a, b) each."""
    low, high = min(counter), max(counter)
    widths = (m * 10**n for n in range(12) for m in (1, 2, 5))
    width = next(w for w in widths if (high - low) // w < most)
    return list(range(low // width * width, high + width + 1, width))


def binned(counter: Counter[int], edges: Sequence[int]) -> list[int]:
    """How many lie in each bin."""
    return list(_binned(counter, edges))


def _binned(counter: Counter[int], edges: Sequence[int]) -> Iterator[int]:
    for low, high in pairwise(edges):
        yield sum(counter[value] for value in range(low, high))
