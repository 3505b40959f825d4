"""One pass over all rows of a run: exact counts, and which rows to look at closely.

Knows nothing of charts. Reads the scalar columns alone, a batch at a time; what is kept does
not grow with the number of rows (`MAX_REASONS` bounds the one thing that could).
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.report.reading import Run, batches

BATCH_ROWS = 16384
CURVE_ROWS = 2000
"""Rows that curves are drawn from; all of a run that has no more."""
MAX_REASONS = 500
"""Distinct reasons of failures that are counted apart."""
OTHER = "other reasons"
UNSURE_ENTROPY = 0.5
"""Nats; an early stop that committed a position above it is called unsure, as in the summary."""
SCALARS = (
    *("row_id", "status", "error", "num_output_tokens", "num_prompt_tokens", "num_forwards"),
    *("refine_steps", "decode_steps", "blocks", "stop_reason", "max_entropy_at_stop"),
    *("refine_converged", "mean_mix_weight", "bucket", "seconds", "replica", "attempts"),
)


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
class Bucket:
    """Rows that were decoded in slots of one length."""

    num_rows: int = 0
    num_prompt_tokens: int = 0


@dataclass(slots=True)
class Counts:
    """What all rows of the committed shards say together. Steps and tokens are of ok rows."""

    num_rows: int = 0
    num_failed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Of failures, with their numbers as N."""
    stops: Counter[str] = field(default_factory=Counter)
    forwards: dict[str, Counter[int]] = field(default_factory=dict)
    """Stop reason → number of passes → rows."""
    refine_steps: Counter[int] = field(default_factory=Counter)
    output_tokens: Counter[int] = field(default_factory=Counter)
    blocks: Counter[int] = field(default_factory=Counter)
    num_refined: int = 0
    """Rows every refinement phase of which ended by tau_refine."""
    num_unsure: int = 0
    mix_weight: float = 0.0
    """Sum of the rows' mean α."""
    buckets: dict[int, Bucket] = field(default_factory=dict)
    replicas: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    """Sum of the time that rows spent in slots."""
    num_retried: int = 0
    """Rows that were given to a replica more than once."""
    shard_rows: list[int] = field(default_factory=list)
    """Rows of each committed shard."""

    @property
    def num_ok(self) -> int:
        return self.num_rows - self.num_failed

    @property
    def all_forwards(self) -> Counter[int]:
        total: Counter[int] = Counter()
        for counter in self.forwards.values():
            total.update(counter)
        return total


@dataclass(frozen=True, slots=True)
class Chosen:
    """The rows that are read whole."""

    curves: list[Place]
    """ok rows by lot, for curves over passes."""
    viewer: dict[Place, str]
    """Rows of the sample viewer, and why each is among them."""


def count(run: Run, num_viewer_rows: int) -> tuple[Counts, Chosen]:
    """All counts, and the chosen rows; ValueError where a shard is damaged."""
    counts = Counts()
    by_lot = Pick(max(CURVE_ROWS, num_viewer_rows), lambda row: (row.lot,))
    longest = Pick(max(1, num_viewer_rows // 10), lambda row: (-row.num_forwards, row.lot))
    failed = Pick(max(1, num_viewer_rows // 5), lambda row: (row.lot,))
    for index, shard in enumerate(run.shards):
        num_rows = 0
        for batch in batches(run, shard, SCALARS, BATCH_ROWS):
            table = pa.Table.from_batches([batch])
            _add(counts, table)
            good, bad = _candidates(table, index, num_rows)
            by_lot.offer(good)
            longest.offer(good)
            failed.offer(bad)
            num_rows += table.num_rows
        counts.shard_rows.append(num_rows)
    viewer = {row.place: "failed" for row in failed.rows}
    viewer |= {row.place: "most passes" for row in longest.rows}
    for row in by_lot.rows:
        if len(viewer) >= num_viewer_rows:
            break
        viewer.setdefault(row.place, "by lot")
    chosen = sorted(viewer.items())[:num_viewer_rows]
    return counts, Chosen([row.place for row in by_lot.rows[:CURVE_ROWS]], dict(chosen))


def _candidates(table: pa.Table, shard: int, first: int) -> tuple[list[Candidate], list[Candidate]]:
    """The batch's ok rows and its failed ones."""
    good: list[Candidate] = []
    bad: list[Candidate] = []
    columns = (table[name].to_pylist() for name in ("row_id", "status", "num_forwards"))
    for row, (row_id, status, forwards) in enumerate(zip(*columns, strict=True), first):
        lot = blake2b(row_id.encode(), digest_size=8).digest()
        candidate = Candidate(Place(shard, row), row_id, lot, forwards or 0)
        (good if status == "ok" else bad).append(candidate)
    return good, bad


def _add(counts: Counts, table: pa.Table) -> None:
    is_ok = pc.equal(table["status"], "ok")
    ok, failed = table.filter(is_ok), table.filter(pc.invert(is_ok))
    counts.num_rows += table.num_rows
    counts.num_failed += failed.num_rows
    for reason, number in _values(failed["error"]).items():
        short = re.sub(r"\d+", "N", str(reason))
        known = short in counts.reasons or len(counts.reasons) < MAX_REASONS
        counts.reasons[short if known else OTHER] += number
    counts.stops.update(_values(ok["stop_reason"]))
    for stop in pc.unique(ok["stop_reason"]).to_pylist():
        rows = ok.filter(pc.equal(ok["stop_reason"], stop))
        counts.forwards.setdefault(stop, Counter()).update(_values(rows["num_forwards"]))
    counts.refine_steps.update(_values(ok["refine_steps"]))
    counts.output_tokens.update(_values(ok["num_output_tokens"]))
    counts.blocks.update(_values(ok["blocks"]))
    counts.num_refined += _sum(ok["refine_converged"])
    counts.num_unsure += _sum(pc.greater(ok["max_entropy_at_stop"], UNSURE_ENTROPY))
    counts.mix_weight += _sum(ok["mean_mix_weight"])
    counts.replicas.update(_values(table["replica"]))
    counts.seconds += _sum(table["seconds"])
    counts.num_retried += _sum(pc.greater(table["attempts"], 1))
    _add_buckets(counts, table)


def _add_buckets(counts: Counts, table: pa.Table) -> None:
    """Rows that reached a slot: those that have a bucket and passes."""
    decoded = table.filter(
        pc.and_(pc.is_valid(table["bucket"]), pc.is_valid(table["num_forwards"]))
    )
    grouped = decoded.group_by("bucket").aggregate(
        [("num_prompt_tokens", "sum"), ("num_prompt_tokens", "count")]
    )
    for row in grouped.to_pylist():
        bucket = counts.buckets.setdefault(row["bucket"], Bucket())
        bucket.num_rows += row["num_prompt_tokens_count"]
        bucket.num_prompt_tokens += row["num_prompt_tokens_sum"]


def _values(column: pa.ChunkedArray) -> dict[Any, int]:
    """Value → how often; nulls left out."""
    found = pc.drop_null(column).value_counts()
    return {entry["values"]: entry["counts"] for entry in found.to_pylist()}


def _sum(column: pa.ChunkedArray) -> Any:
    return pc.sum(column).as_py() or 0
