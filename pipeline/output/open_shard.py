"""Holds a shard while it is decoded: its prompts, and the results that have arrived.

Rows stay in Arrow from the replica to the shard's file, so that a row costs the driver
microseconds and a few hundred bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.rows import RESULT_SCHEMA, row_index


@dataclass(slots=True)
class OpenShard:
    """One prompt shard and its results so far."""

    number: int
    prompts: pa.Table
    num_segments: int = 0
    _done: bytearray = field(init=False)
    _num_done: int = 0
    _stored: list[pa.RecordBatch] = field(default_factory=list)
    _unflushed: list[pa.RecordBatch] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._done = bytearray(self.prompts.num_rows)

    @property
    def num_done(self) -> int:
        return self._num_done

    @property
    def complete(self) -> bool:
        return self._num_done == len(self._done)

    def has(self, index: int) -> bool:
        """Whether the row's result has arrived."""
        return bool(self._done[index])

    def add(
        self, results: pa.RecordBatch, indices: Sequence[int] | None = None, *, stored: bool = False
    ) -> pa.RecordBatch:
        """Take results of `RESULT_SCHEMA`; returns those that are new. A row's first result stays.

        indices: their row numbers in the shard; None: as their ids say. stored: they come from
        storage and need no flush.
        """
        if indices is None:
            indices = [row_index(row_id) for row_id in results["row_id"].to_pylist()]
        new = []
        for position, index in enumerate(indices):
            if not self._done[index]:
                self._done[index] = 1
                new.append(position)
        if len(new) < results.num_rows:
            results = results.take(pa.array(new, pa.int64()))
        if new:
            self._num_done += len(new)
            (self._stored if stored else self._unflushed).append(results)
        return results

    def unflushed(self) -> pa.Table | None:
        """Results that no segment holds yet; None where there are none."""
        return pa.Table.from_batches(self._unflushed) if self._unflushed else None

    def flushed(self) -> None:
        """Note that the `unflushed` results are on storage."""
        # A batch of one row takes thirty times the memory of the row, so batches are combined.
        self._stored += pa.Table.from_batches(self._unflushed).combine_chunks().to_batches()
        self._unflushed.clear()

    def whole(self) -> pa.Table:
        """All results in row order."""
        assert self.complete
        results = pa.Table.from_batches([*self._stored, *self._unflushed], RESULT_SCHEMA)
        # Row ids of a shard sort as their numbers do.
        return results.take(pc.sort_indices(results["row_id"])).combine_chunks()
