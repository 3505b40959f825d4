"""Counts all rows of a run in one pass, and chooses the rows to look at closely.

Reads the scalar columns alone, a batch at a time; what is kept does not grow with the number of
rows (`MAX_REASONS` bounds the one thing that could).
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.result_shards import batches
from pipeline.output.run_records import Run
from pipeline.output.statistics import (
    COUNTED,
    SLOT_COLUMNS,
    Counts,
    SlotCounts,
    occurrences,
    total,
)

CURVE_ROWS = 2000
"""Rows that curves are drawn from; all of a run that has no more."""
MAX_REASONS = 500
"""Distinct reasons of failures that are counted apart."""
OWN = ("row_id", "refine_steps", "blocks", "refine_converged", "mean_mix_weight", "attempts")
SCALARS = tuple(dict.fromkeys([*OWN, *COUNTED, *SLOT_COLUMNS]))


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a row lies."""

    shard: int
    """Index among the run's committed shards."""
    row: int


@dataclass(slots=True)
class Pick:
    """The `size` rows of smallest key, whatever order they come in."""

    size: int
    key: Callable[[Candidate], tuple[object, ...]]
    rows: list[Candidate] = field(default_factory=list)

    def offer(self, rows: Iterable[Candidate]) -> None:
        self.rows = heapq.nsmallest(self.size, chain(self.rows, rows), key=self.key)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row as far as choosing goes."""

    place: Place
    row_id: str
    lot: bytes
    """A digest of row_id: the order in which rows are drawn."""
    num_forwards: int


@dataclass(slots=True)
class ReportCounts(Counts):
    """The counts that all commands share, and those that only the report shows. Steps, tokens and
    blocks are of rows that are ok."""

    slots: SlotCounts = field(default_factory=SlotCounts)
    forwards: dict[str, Counter[int]] = field(default_factory=dict)
    """Stop reason → number of passes → rows."""
    refine_steps: Counter[int] = field(default_factory=Counter)
    output_tokens: Counter[int] = field(default_factory=Counter)
    blocks: Counter[int] = field(default_factory=Counter)
    num_refined: int = 0
    """Rows every refinement phase of which ended by tau_refine."""
    mix_weight: float = 0.0
    """Sum of the rows' mean α."""
    slot_seconds: float = 0.0
    """Sum of the time that rows spent in slots, failed ones too."""
    num_retried: int = 0
    """Rows that were given to a replica more than once."""
    shard_rows: list[int] = field(default_factory=list)
    """Rows of each committed shard."""

    @property
    def all_forwards(self) -> Counter[int]:
        found: Counter[int] = Counter()
        for counter in self.forwards.values():
            found.update(counter)
        return found


@dataclass(frozen=True, slots=True)
class Chosen:
    """The rows that are read whole."""

    curves: list[Place]
    """ok rows by lot, for curves over passes."""
    viewer: dict[Place, str]
    """Rows of the sample viewer, and why each is among them."""


def count(run: Run, num_viewer_rows: int) -> tuple[ReportCounts, Chosen]:
    """All counts, and the chosen rows; ValueError where a shard is damaged."""
    counts = ReportCounts(most_reasons=MAX_REASONS)
    by_lot = Pick(max(CURVE_ROWS, num_viewer_rows), lambda row: (row.lot,))
    longest = Pick(max(1, num_viewer_rows // 10), lambda row: (-row.num_forwards, row.lot))
    failed = Pick(max(1, num_viewer_rows // 5), lambda row: (row.lot,))
    for index, shard in enumerate(run.shards):
        num_rows = 0
        for rows in batches(run.output, shard.name, SCALARS):
            _add(counts, rows)
            good, bad = _candidates(rows, index, num_rows)
            by_lot.offer(good)
            longest.offer(good)
            failed.offer(bad)
            num_rows += rows.num_rows
        counts.shard_rows.append(num_rows)
    viewer = {row.place: "failed" for row in failed.rows}
    viewer |= {row.place: "most passes" for row in longest.rows}
    for row in by_lot.rows:
        if len(viewer) >= num_viewer_rows:
            break
        viewer.setdefault(row.place, "by lot")
    chosen = sorted(viewer.items())[:num_viewer_rows]
    return counts, Chosen([row.place for row in by_lot.rows[:CURVE_ROWS]], dict(chosen))


def _candidates(
    rows: pa.RecordBatch, shard: int, first: int
) -> tuple[list[Candidate], list[Candidate]]:
    """The batch's ok rows and its failed ones."""
    good: list[Candidate] = []
    bad: list[Candidate] = []
    columns = (rows[name].to_pylist() for name in ("row_id", "status", "num_forwards"))
    for row, (row_id, status, forwards) in enumerate(zip(*columns, strict=True), first):
        lot = blake2b(row_id.encode(), digest_size=8).digest()
        candidate = Candidate(Place(shard, row), row_id, lot, forwards or 0)
        (good if status == "ok" else bad).append(candidate)
    return good, bad


def _add(counts: ReportCounts, rows: pa.RecordBatch) -> None:
    counts.add(rows)
    counts.slots.add(rows)
    ok = rows.filter(pc.equal(rows["status"], "ok"))
    for stop in pc.unique(ok["stop_reason"]).to_pylist():
        stopped = ok.filter(pc.equal(ok["stop_reason"], stop))
        counts.forwards.setdefault(stop, Counter()).update(occurrences(stopped["num_forwards"]))
    counts.refine_steps.update(occurrences(ok["refine_steps"]))
    counts.output_tokens.update(occurrences(ok["num_output_tokens"]))
    counts.blocks.update(occurrences(ok["blocks"]))
    counts.num_refined += total(ok["refine_converged"])
    counts.mix_weight += total(ok["mean_mix_weight"])
    counts.slot_seconds += total(rows["seconds"])
    counts.num_retried += total(pc.greater(rows["attempts"], 1))
