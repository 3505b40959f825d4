"""How far a run is and how long the rest will take.

Knows nothing of Ray or storage. Buckets differ in what a row of theirs takes, so what is left is
reckoned bucket by bucket.
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
    """One bucket's rows that this driver knows of."""

    read: int = 0
    """Prompts that were read and are to be decoded."""
    done: int = 0
    num_forwards: int = 0
    seconds: float = 0.0
    """Of all rows done, each from getting its slot to its end."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands, for whoever shows it."""

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
    """Counts what comes in."""

    def __init__(self, num_rows: int, num_committed: int) -> None:
        """num_committed: rows of shards that are owed no more."""
        self._num_rows = num_rows
        self._num_before = self._num_seen = num_committed
        self._num_done = self._num_failed = self._num_forwards = 0
        self._began = time.monotonic()
        self._decoding_since: float | None = None
        self._buckets: dict[int, BucketProgress] = {}
        self._new: list[pa.RecordBatch] = []

    def shard_read(self, num_rows: int, num_stored: int, prompts: Sequence[Prompt]) -> None:
        """A shard was opened, of whose rows some are on storage already."""
        self._num_seen += num_rows
        self._num_before += num_stored
        for bucket, count in Counter(prompt.bucket for prompt in prompts).items():
            self._buckets.setdefault(bucket, BucketProgress()).read += count

    def rows_done(self, results: pa.RecordBatch) -> None:
        """Rows have come in; counted when progress is asked for, as many small batches cost the
        driver more than one large one."""
        if results.num_rows:
            self._new.append(results)
            if self._decoding_since is None:
                # The first rows were in slots before they came; their seconds count as spent.
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
        """Where the run stands now."""
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
        """Seconds in slots that the rows left will take, over the slots that were busy so far.

        Rows of shards that nobody has read yet fall into the buckets as those read do.
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
