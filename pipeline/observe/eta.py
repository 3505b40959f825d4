"""Tracks a run's progress and estimates the time left.

A row takes longer in some buckets than in others, so the time left is estimated bucket by bucket.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter

from pipeline.rows import Prompt

NORMAL_95 = 1.96
"""Standard deviations to either side that hold 95 % of a normal distribution."""
ANSWER_CHARACTERS = 300
"""Of the last answer, which the lease holds too."""


@dataclass(slots=True)
class BucketProgress:
    """The rows, of one number of prompt tokens a slot, that this driver has read."""

    read: int = 0
    """Prompts that were read and are to be decoded."""
    done: int = 0
    num_forwards: int = 0
    seconds: float = 0.0
    """Sum over the rows done, each from getting its slot to its end."""
    squares: float = 0.0
    """Sum of the squares of these seconds."""


@dataclass(frozen=True, slots=True)
class LastAnswer:
    """An answer that has just finished."""

    row_id: str
    text: str
    """Its first `ANSWER_CHARACTERS`, as the model wrote them: not fit for a terminal."""


@dataclass(frozen=True, slots=True)
class Progress:
    """A run's progress at one moment."""

    num_rows: int
    num_done: int
    num_done_before: int
    """Rows that were finished when this driver began."""
    num_failed: int
    """Of those that are done now."""
    num_forwards: int
    """Of the rows decoded now that are ok."""
    seconds: float
    """Since the driver began."""
    seconds_left: float | None
    """None before anything was finished."""
    buckets: dict[int, BucketProgress] = field(default_factory=dict)
    replicas: dict[str, str] = field(default_factory=dict)
    """State by name, as `ReplicaHandle.state`."""
    num_failed_before: int = 0
    """Of `num_done_before`, as far as their shards are open or written."""
    num_output_tokens: int = 0
    """Effective tokens of the rows decoded now that are ok."""
    decoding_seconds: float | None = None
    """Since the first row of this driver got its slot; None before a row was finished, and in
    leases of versions that did not write it."""
    seconds_left_range: tuple[float, float] | None = None
    """Lowest and highest `seconds_left` at 95 %; None before there is a spread to estimate."""
    last_answer: LastAnswer | None = None
    """Of the rows decoded now."""

    @property
    def num_done_now(self) -> int:
        """Rows that this driver has decoded."""
        return self.num_done - self.num_done_before

    @property
    def num_ok_now(self) -> int:
        return self.num_done_now - self.num_failed

    @property
    def rate_seconds(self) -> float:
        """The time in which the rows of this driver were decoded."""
        return self.seconds if self.decoding_seconds is None else self.decoding_seconds

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Progress:
        """What `to_json` gave, in this version or an earlier one. Raises pydantic.ValidationError
        for anything else."""
        return TypeAdapter(cls).validate_python(found)


class ProgressTracker:
    """Counts the rows that finish and estimates the time left."""

    def __init__(self, num_rows: int, num_committed: int, num_failed: int = 0) -> None:
        """num_committed: rows of shards that are written already. num_failed: of these."""
        self._num_rows = num_rows
        self._num_before = self._num_seen = num_committed
        self._num_failed_before = num_failed
        self._num_done = self._num_failed = self._num_forwards = self._num_tokens = 0
        self._last: LastAnswer | None = None
        self._began = time.monotonic()
        self._decoding_since: float | None = None
        self._buckets: dict[int, BucketProgress] = {}
        self._new: list[pa.RecordBatch] = []

    def shard_read(
        self, num_rows: int, num_stored: int, prompts: Sequence[Prompt], num_failed: int = 0
    ) -> None:
        """Note a shard that was opened; num_stored: its rows that are on storage already, of which
        num_failed have failed."""
        self._num_seen += num_rows
        self._num_before += num_stored
        self._num_failed_before += num_failed
        for bucket, count in Counter(prompt.bucket.prompt for prompt in prompts).items():
            self._buckets.setdefault(bucket, BucketProgress()).read += count

    def rows_done(self, results: pa.RecordBatch) -> None:
        """Note rows that have finished. They are counted in `progress`, since many small batches
        cost the driver more than one large one."""
        if results.num_rows:
            self._new.append(results)
            if self._decoding_since is None:
                # The first rows spent this time in slots before they arrived here.
                first = pc.max(results["seconds"]).as_py() or 0.0
                self._decoding_since = time.monotonic() - first

    def _count(self) -> None:
        if not self._new:
            return
        results = pa.Table.from_batches(self._new)
        self._new.clear()
        is_ok = pc.equal(results["status"], "ok")
        # Of the scalar columns alone: texts and traces are a hundred times as large.
        ok = results.select(["num_forwards", "num_output_tokens"]).filter(is_ok)
        self._num_done += results.num_rows
        self._num_failed += results.num_rows - ok.num_rows
        self._num_forwards += pc.sum(ok["num_forwards"]).as_py() or 0
        self._num_tokens += pc.sum(ok["num_output_tokens"]).as_py() or 0
        if ok.num_rows:
            last = pc.indices_nonzero(is_ok)[-1].as_py()
            self._last = _answer_of(results.slice(last, 1))
        sums = [("seconds", "sum"), ("num_forwards", "sum"), ("squares", "sum")]
        rows = results.select(["bucket", "seconds", "num_forwards"])
        rows = rows.append_column("squares", pc.multiply(rows["seconds"], rows["seconds"]))
        groups = rows.group_by("bucket").aggregate([*sums, ("bucket", "count")])
        for group in groups.to_pylist():
            if group["bucket"] is not None:
                found = self._buckets.setdefault(group["bucket"], BucketProgress())
                found.done += group["bucket_count"]
                found.num_forwards += group["num_forwards_sum"] or 0
                found.seconds += group["seconds_sum"] or 0.0
                found.squares += group["squares_sum"] or 0.0

    def progress(self, replicas: dict[str, str]) -> Progress:
        """The progress now. replicas: state by name."""
        self._count()
        left, spread = self._time_left() or (None, None)
        since = self._decoding_since
        return Progress(
            num_rows=self._num_rows,
            num_done=self._num_before + self._num_done,
            num_done_before=self._num_before,
            num_failed=self._num_failed,
            num_forwards=self._num_forwards,
            seconds=time.monotonic() - self._began,
            seconds_left=left,
            buckets=dict(self._buckets),  # Another thread may write it down.
            replicas=replicas,
            num_failed_before=self._num_failed_before,
            num_output_tokens=self._num_tokens,
            decoding_seconds=None if since is None else time.monotonic() - since,
            seconds_left_range=spread,
            last_answer=self._last,
        )

    def _time_left(self) -> tuple[float, tuple[float, float] | None] | None:
        """The rows left × mean seconds a row of their bucket ÷ mean number of busy slots so far,
        and its range at 95 %.

        Rows of shards that are not read yet are spread over the buckets as those read are. The
        range takes the rows left for a random sample of their bucket: n of them, after k with the
        variance v, are off by a variance of n·v for what they draw and n²·v/k for what the k have
        drawn.
        """
        known = [b for b in self._buckets.values() if b.done and b.seconds]
        since = self._decoding_since
        wall = time.monotonic() - since if since is not None else 0.0
        spent = sum(b.seconds for b in known)
        if not known or wall <= 0:
            return None
        mean = spent / sum(b.done for b in known)
        read = sum(b.read for b in self._buckets.values())
        unseen = (self._num_rows - self._num_seen) / read if read else 0.0
        left = variance = 0.0
        overall = _variance(known)
        for bucket in self._buckets.values():
            rows = max(0, bucket.read - bucket.done) + unseen * bucket.read
            left += rows * (bucket.seconds / bucket.done if bucket.done else mean)
            own = _variance([bucket]) if bucket.done > 1 else overall
            variance += (own or 0.0) * (rows + rows**2 / max(1, bucket.done))
        if overall is None:
            return left * wall / spent, None
        off = NORMAL_95 * math.sqrt(variance)
        low, high = ((left + sign * off) * wall / spent for sign in (-1, 1))
        return left * wall / spent, (max(0.0, low), high)


def _variance(buckets: Sequence[BucketProgress]) -> float | None:
    """The variance of the seconds of all their rows; None for fewer than two rows."""
    num_rows = sum(bucket.done for bucket in buckets)
    if num_rows < 2:
        return None
    total = sum(bucket.seconds for bucket in buckets)
    squares = sum(bucket.squares for bucket in buckets)
    return max(0.0, squares - total**2 / num_rows) / (num_rows - 1)


def _answer_of(row: pa.Table) -> LastAnswer:
    """The answer of a table's one row."""
    text = pc.utf8_slice_codeunits(row["output_text"], 0, ANSWER_CHARACTERS)[0].as_py()
    return LastAnswer(row["row_id"][0].as_py(), text or "")
