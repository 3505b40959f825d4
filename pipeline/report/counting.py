"""Counts all rows of a run in one pass, and chooses the rows that are read in full.

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

from pipeline.observe.stages import counted
from pipeline.output.result_shards import batches, with_nulls
from pipeline.output.run_records import Run
from pipeline.output.statistics import (
    COUNTED,
    SLOT_COLUMNS,
    Counts,
    SlotCounts,
    occurrences,
    three_digits,
    total,
)

CURVE_ROWS = 2000
"""Rows that curves are drawn from; all rows of a smaller run."""
MAX_REASONS = 500
"""Distinct reasons of failures that are counted separately."""
OWN = (
    "row_id",
    "refine_steps",
    "blocks",
    "refine_converged",
    "mean_mix_weight",
    "attempts",
    "stop_text",
    "num_uncommits",
)
SCALARS = tuple(dict.fromkeys([*OWN, *COUNTED, *SLOT_COLUMNS]))


@dataclass(frozen=True, slots=True, order=True)
class RowIndex:
    """Which row of which shard."""

    shard: int
    """Index among the run's committed shards."""
    row: int


@dataclass(slots=True)
class Pick:
    """The `size` rows of smallest key, in whatever order they are offered."""

    size: int
    key: Callable[[Candidate], tuple[object, ...]]
    rows: list[Candidate] = field(default_factory=list)

    def offer(self, rows: Iterable[Candidate]) -> None:
        self.rows = heapq.nsmallest(self.size, chain(self.rows, rows), key=self.key)


@dataclass(frozen=True, slots=True)
class Candidate:
    """What the choice of rows needs of a row."""

    index: RowIndex
    row_id: str
    digest: bytes
    """Hash of row_id: its order makes the random sample."""
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
    num_uncommits: int = 0
    """Times that committed positions were opened again."""
    row_seconds: Counter[float] = field(default_factory=Counter)
    """Seconds in slots to three digits → ok rows."""
    slot_seconds: float = 0.0
    """Sum of the time that rows spent in slots, failed ones too."""
    num_retried: int = 0
    """Rows that were given to a replica more than once."""
    stop_texts: Counter[str] = field(default_factory=Counter)
    """Texts of `--stop` that answers end before → rows."""
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
    """The rows that are read in full."""

    curves: list[RowIndex]
    """A random sample of the ok rows, for curves over passes."""
    viewer: dict[RowIndex, str]
    """Rows of the sample viewer, and why each is among them."""


def count(run: Run, num_viewer_rows: int) -> tuple[ReportCounts, Chosen]:
    """All counts, and the chosen rows; ValueError where a shard is damaged."""
    counts = ReportCounts(most_reasons=MAX_REASONS)
    sampled = Pick(max(CURVE_ROWS, num_viewer_rows), lambda row: (row.digest,))
    longest = Pick(max(1, num_viewer_rows // 10), lambda row: (-row.num_forwards, row.digest))
    failed = Pick(max(1, num_viewer_rows // 5), lambda row: (row.digest,))
    for index, shard in enumerate(counted(run.shards, "reading rows", "shards")):
        num_rows = 0
        for rows in batches(run.output, shard.name, SCALARS):
            counts.add(rows)
            counts.slots.add(rows)
            _add(counts, with_nulls(rows, SCALARS))
            good, bad = _candidates(rows, index, num_rows)
            sampled.offer(good)
            longest.offer(good)
            failed.offer(bad)
            num_rows += rows.num_rows
        counts.shard_rows.append(num_rows)
    viewer = {row.index: "failed" for row in failed.rows}
    viewer |= {row.index: "most passes" for row in longest.rows}
    for row in sampled.rows:
        if len(viewer) >= num_viewer_rows:
            break
        viewer.setdefault(row.index, "random sample")
    chosen = sorted(viewer.items())[:num_viewer_rows]
    return counts, Chosen([row.index for row in sampled.rows[:CURVE_ROWS]], dict(chosen))


def _candidates(
    rows: pa.RecordBatch, shard: int, first: int
) -> tuple[list[Candidate], list[Candidate]]:
    """The batch's ok rows and its failed ones."""
    good: list[Candidate] = []
    bad: list[Candidate] = []
    columns = (rows[name].to_pylist() for name in ("row_id", "status", "num_forwards"))
    for row, (row_id, status, forwards) in enumerate(zip(*columns, strict=True), first):
        digest = blake2b(row_id.encode(), digest_size=8).digest()
        candidate = Candidate(RowIndex(shard, row), row_id, digest, forwards or 0)
        (good if status == "ok" else bad).append(candidate)
    return good, bad


def _add(counts: ReportCounts, rows: pa.RecordBatch) -> None:
    """Count what only the report shows, in rows with the columns `SCALARS`."""
    ok = rows.filter(pc.equal(rows["status"], "ok"))
    for stop in pc.unique(ok["stop_reason"]).to_pylist():
        stopped = ok.filter(pc.equal(ok["stop_reason"], stop))
        counts.forwards.setdefault(stop, Counter()).update(occurrences(stopped["num_forwards"]))
    counts.refine_steps.update(occurrences(ok["refine_steps"]))
    counts.output_tokens.update(occurrences(ok["num_output_tokens"]))
    counts.blocks.update(occurrences(ok["blocks"]))
    counts.num_refined += total(ok["refine_converged"])
    counts.mix_weight += total(ok["mean_mix_weight"])
    counts.num_uncommits += total(ok["num_uncommits"])
    counts.slot_seconds += total(rows["seconds"])
    counts.row_seconds.update(occurrences(three_digits(ok["seconds"])))
    counts.stop_texts.update(occurrences(ok["stop_text"]))
    counts.num_retried += total(pc.greater(rows["attempts"], 1))
