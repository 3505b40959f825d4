"""Tracks a run's progress and estimates the time left.

A row takes longer in some buckets than in others, so the time left is estimated bucket by bucket.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.rows import Prompt


@dataclass(slots=True)
class BucketProgress:
    """The rows, of one number of prompt tokens a slot, that this driver has read."""

    read: int = 0
    """Prompts that were read and are to be decoded."""
    done: int = 0
    num_forwards: int = 0
    seconds: float = 0.0
    """Sum over the rows done, each from getting its slot to its end."""


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
    """Of the rows decoded now."""
    seconds: float
    seconds_left: float | None
    """None before anything was finished."""
    buckets: dict[int, BucketProgress] = field(default_factory=dict)
    replicas: dict[str, str] = field(default_factory=dict)
    """State by name."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class ProgressTracker:
    """Counts the rows that finish and estimates the time left."""

    def __init__(self, num_rows: int, num_committed: int) -> None:
        """num_committed: rows of shards that are written already."""
        self._num_rows = num_rows
        self._num_before = self._num_seen = num_committed
        self._num_done = self._num_failed = self._num_forwards = 0
        self._began = time.monotonic()
        self._decoding_since: float | None = None
        self._buckets: dict[int, BucketProgress] = {}
        self._new: list[pa.RecordBatch] = []

    def shard_read(self, num_rows: int, num_stored: int, prompts: Sequence[Prompt]) -> None:
        """Note a shard that was opened; num_stored: its rows that are on storage already."""
        self._num_seen += num_rows
        self._num_before += num_stored
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
        self._num_done += results.num_rows
        self._num_failed += pc.sum(pc.equal(results["status"], "failed")).as_py()
        self._num_forwards += pc.sum(results["num_forwards"]).as_py() or 0
        sums = [("seconds", "sum"), ("num_forwards", "sum"), ("bucket", "count")]
        groups = results.select(["bucket", "seconds", "num_forwards"]).group_by("bucket")
        for group in groups.aggregate(sums).to_pylist():
            if group["bucket"] is not None:
                found = self._buckets.setdefault(group["bucket"], BucketProgress())
                found.done += group["bucket_count"]
                found.num_forwards += group["num_forwards_sum"] or 0
                found.seconds += group["seconds_sum"] or 0.0

    def progress(self, replicas: dict[str, str]) -> Progress:
        """The progress now. replicas: state by name."""
        self._count()
        return Progress(
            num_rows=self._num_rows,
            num_done=self._num_before + self._num_done,
            num_done_before=self._num_before,
            num_failed=self._num_failed,
            num_forwards=self._num_forwards,
            seconds=time.monotonic() - self._began,
            seconds_left=self._seconds_left(),
            buckets=dict(self._buckets),  # Another thread may write it down.
            replicas=replicas,
        )

    def _seconds_left(self) -> float | None:
        """The rows left × mean seconds a row of their bucket ÷ mean number of busy slots so far.

        Rows of shards that are not read yet are spread over the buckets as those read are.
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
        left = sum(
            (max(0, b.read - b.done) + unseen * b.read) * (b.seconds / b.done if b.done else mean)
            for b in self._buckets.values()
        )
        return left * wall / spent
