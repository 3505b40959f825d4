"""Counts result rows: how many failed and why, how the others stopped, their forwards, positions,
tokens and seconds.

The summary, the report, the dataset card, the scores and the paper's tables all take these figures
from here. Rows are counted a batch at a time.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.result_shards import batches
from pipeline.output.run_folder import read_events, written_shards
from pipeline.output.session_facts import canvases_computed, environments, per_forward
from pipeline.storage.storage import Storage

Number = TypeVar("Number", int, float)
UNSURE_ENTROPY = 0.5
"""An early stop that committed a position above this entropy (nats) is called unsure."""
OTHER = "other reasons"
COUNTED = (
    *("status", "error", "stop_reason", "num_forwards", "full_passes", "positions_computed"),
    *("num_output_tokens", "max_entropy_at_stop", "seconds"),
)
"""Columns that `Counts.add` counts; where the run does not keep one, its figure is None."""
SLOT_COLUMNS = ("bucket", "num_forwards", "num_prompt_tokens", "seconds", "replica")
"""Columns that `SlotCounts.add` counts; nothing where the run does not keep them."""


@dataclass(slots=True)
class Counts:
    """Totals over result rows. Forwards, positions, tokens and seconds are those of rows that are
    ok; None where the run does not keep their column."""

    num_rows: int = 0
    num_failed: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    """Reasons of failed rows with their numbers as N."""
    all_stops: Counter[str] = field(default_factory=Counter)
    """How rows stopped; a row that failed stopped as `failed`."""
    num_forwards: int = 0
    most_forwards: int = 0
    num_full_passes: int | None = 0
    """Forwards that went through prompt and canvas."""
    num_positions: int | None = 0
    """Positions that went through the model."""
    num_output_tokens: int = 0
    num_unsure_stops: int | None = 0
    """Early stops with an open position above `UNSURE_ENTROPY`."""
    seconds: float | None = 0.0
    """Sum of the rows' time in slots."""
    most_reasons: int | None = None
    """Most distinct `errors` that are kept; further ones count as `OTHER`. None: no limit."""

    @property
    def num_ok(self) -> int:
        return self.num_rows - self.num_failed

    @property
    def stops(self) -> Counter[str]:
        """How rows that are ok stopped."""
        found = {stop: n for stop, n in self.all_stops.items() if stop != "failed"}
        return Counter(found)

    def add(self, rows: pa.RecordBatch | pa.Table) -> None:
        """Count rows that have the columns `COUNTED` which the run keeps."""
        is_ok = pc.equal(rows["status"], "ok")
        ok, failed = rows.filter(is_ok), rows.filter(pc.invert(is_ok))
        self.num_rows += rows.num_rows
        self.num_failed += failed.num_rows
        for error, number in occurrences(failed["error"]).items():
            self.errors[self._reason(error)] += number
        self.all_stops.update(occurrences(rows["stop_reason"]))
        self.num_forwards += total(ok["num_forwards"])
        self.most_forwards = max(self.most_forwards, pc.max(ok["num_forwards"]).as_py() or 0)
        self.num_output_tokens += total(ok["num_output_tokens"])
        self.num_full_passes = _plus(self.num_full_passes, ok, "full_passes")
        self.num_positions = _plus(self.num_positions, ok, "positions_computed")
        self.seconds = _plus(self.seconds, ok, "seconds")
        self.num_unsure_stops = _plus(
            self.num_unsure_stops,
            ok,
            "max_entropy_at_stop",
            lambda column: pc.greater(column, UNSURE_ENTROPY),
        )

    def _reason(self, error: str) -> str:
        reason = reason_of(error)
        is_full = self.most_reasons is not None and len(self.errors) >= self.most_reasons
        return OTHER if is_full and reason not in self.errors else reason


@dataclass(slots=True)
class Bucket:
    """Rows that were decoded in slots of one length."""

    num_rows: int = 0
    num_prompt_tokens: int = 0
    seconds: float = 0.0
    """Sum of their time in slots."""


@dataclass(slots=True)
class SlotCounts:
    """Counts rows by bucket and by replica, failed ones too if they reached a slot."""

    buckets: dict[int, Bucket] = field(default_factory=dict)
    """By the number of prompt tokens that a slot holds."""
    replicas: Counter[str] = field(default_factory=Counter)

    def add(self, rows: pa.RecordBatch | pa.Table) -> None:
        """Count rows that have the columns `SLOT_COLUMNS`; others are not counted."""
        if not set(SLOT_COLUMNS) <= set(rows.schema.names):
            return
        self.replicas.update(occurrences(rows["replica"]))
        decoded = pc.and_(pc.is_valid(rows["bucket"]), pc.is_valid(rows["num_forwards"]))
        columns = ["bucket", "num_prompt_tokens", "seconds"]
        table = pa.table({name: rows[name] for name in columns}).filter(decoded)
        sums = [("num_prompt_tokens", "sum"), ("num_prompt_tokens", "count"), ("seconds", "sum")]
        for group in table.group_by("bucket").aggregate(sums).to_pylist():
            bucket = self.buckets.setdefault(group["bucket"], Bucket())
            bucket.num_rows += group["num_prompt_tokens_count"]
            bucket.num_prompt_tokens += group["num_prompt_tokens_sum"] or 0
            bucket.seconds += group["seconds_sum"] or 0.0


def reason_of(error: str) -> str:
    """An error with its numbers as N, so that rows that differ in them alone count as one."""
    return re.sub(r"\d+", "N", error)


def count_rows(output: Storage) -> Counts:
    """The counts of a run's written shards. Raises ValueError where one is damaged."""
    counts = Counts()
    for shard in written_shards(output)[0]:
        for rows in batches(output, shard.name, COUNTED):
            counts.add(rows)
    return counts


def occurrences(column: pa.Array | pa.ChunkedArray) -> dict[Any, int]:
    """Value → how often, by first appearance; nulls left out."""
    found = pc.drop_null(column).value_counts()
    return {entry["values"]: entry["counts"] for entry in found.to_pylist()}


def three_digits(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Numbers rounded to three significant digits, so that few different ones are left; quantiles
    are those of the numbers themselves, rounded."""
    values = pc.drop_null(column).to_numpy(zero_copy_only=False).astype(np.float64)
    powers = np.floor(np.log10(np.where(values > 0, values, 1.0))).astype(np.int64)
    digits = np.rint(values / 10.0 ** (powers - 2)).astype(np.int64)
    pairs, places = np.unique(np.stack([digits, powers - 2]), axis=1, return_inverse=True)
    rounded = np.array([float(f"{digit}e{power}") for digit, power in pairs.T.tolist()])
    return pa.array(rounded[places.reshape(-1)] if len(rounded) else rounded, pa.float64())


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles of a figure over rows: each the smallest value that at least so many do not
    exceed."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, counted: Mapping[Any, int]) -> Spread | None:
        """Of value → rows; None where nothing was counted."""
        if not sum(counted.values()):
            return None
        return cls(*(quantile(counted, share) for share in (0.5, 0.9, 0.99)))

    def __str__(self) -> str:
        return f"p50 {self.p50:,g}, p90 {self.p90:,g}, p99 {self.p99:,g}"


def quantile(counted: Mapping[Number, int], share: float) -> Number:
    """The smallest value that at least this share of the counted does not exceed."""
    wanted, seen = share * sum(counted.values()), 0
    for value in sorted(counted):
        seen += counted[value]
        if seen >= wanted - 1e-9:
            return value
    raise ValueError("nothing was counted")


def _plus(
    before: Any,
    rows: pa.RecordBatch | pa.Table,
    name: str,
    change: Callable[[Any], Any] = lambda column: column,
) -> Any:
    """`before` and the sum of a column, changed if wanted; None where rows have no such column."""
    if before is None or name not in rows.schema.names:
        return None
    return before + total(change(rows[name]))


def total(column: pa.Array | pa.ChunkedArray) -> Any:
    """The sum of a column, 0 where it has no value."""
    return pc.sum(column).as_py() or 0


@dataclass(frozen=True, slots=True)
class Summary:
    """The closing figures of a run."""

    num_rows: int
    num_failed: int
    errors: dict[str, int]
    """Reasons of failed rows with their numbers as N, most frequent first."""
    num_forwards: int
    num_positions: int | None
    """Positions that went through the model; None where the run does not keep them."""
    num_output_tokens: int
    stop_reasons: dict[str, int]
    num_unsure_stops: int | None
    canvases_computed: int | None
    """Canvases that went through the model, those of free slots and of lost passes too; None where
    a driver did not record it."""
    canvases_per_forward: float | None
    """Of these for each of `num_forwards`."""
    environments: list[dict[str, Any]]
    """What replicas computed on, each once."""


def summarize(output: Storage) -> Summary:
    """The closing figures of a run, from its files alone."""
    counts = count_rows(output)
    events, _ = read_events(output)
    num_canvases = canvases_computed(events)
    return Summary(
        num_rows=counts.num_rows,
        num_failed=counts.num_failed,
        errors=dict(counts.errors.most_common()),
        num_forwards=counts.num_forwards,
        num_positions=counts.num_positions,
        num_output_tokens=counts.num_output_tokens,
        stop_reasons=dict(counts.stops.most_common()),
        num_unsure_stops=counts.num_unsure_stops,
        canvases_computed=num_canvases,
        canvases_per_forward=per_forward(num_canvases, counts.num_forwards),
        environments=environments(events),
    )
