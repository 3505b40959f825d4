"""Holds a shard while it is decoded: its prompts, and the results that have arrived.

Rows stay in Arrow from the replica to the shard's file, so that a row costs the driver
microseconds and a few hundred bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.rows import Layout, split_id


@dataclass(slots=True)
class OpenShard:
    """One prompt shard and its results so far.

    Its prompts are here once, however many samples they have.
    """

    number: int
    prompts: pa.Table
    layout: Layout = field(default_factory=Layout)
    num_segments: int = 0
    _done: bytearray = field(init=False)
    _num_done: int = 0
    _stored: list[pa.RecordBatch] = field(default_factory=list)
    _unflushed: list[pa.RecordBatch] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._done = bytearray(self.prompts.num_rows * self.layout.num_samples)

    @property
    def num_rows(self) -> int:
        """Results that it will have."""
        return len(self._done)

    @property
    def num_done(self) -> int:
        return self._num_done

    @property
    def num_failed(self) -> int:
        """Of those done."""
        batches = [*self._stored, *self._unflushed]
        return sum(pc.sum(pc.equal(rows["status"], "failed")).as_py() or 0 for rows in batches)

    @property
    def complete(self) -> bool:
        return self._num_done == self.num_rows

    def missing(self, index: int) -> list[int | None]:
        """The samples of a prompt row whose results have not arrived, as `Prompt.sample`."""
        first = self.layout.position(index, None)
        return [s for n, s in enumerate(self.layout.samples, first) if not self._done[n]]

    def add(
        self,
        results: pa.RecordBatch,
        positions: Sequence[int] | None = None,
        *,
        stored: bool = False,
    ) -> pa.RecordBatch:
        """Take results with at least the layout's columns; returns those that are new, with all
        their columns. A row's first result stays.

        positions: their row numbers in the result shard; None: as their ids say. stored: they come
        from storage and need no flush.
        """
        if positions is None:
            positions = [
                self.layout.position(*split_id(row_id)[1:])
                for row_id in results["row_id"].to_pylist()
            ]
        new = []
        for n, position in enumerate(positions):
            if not self._done[position]:
                self._done[position] = 1
                new.append(n)
        if len(new) < results.num_rows:
            results = results.take(pa.array(new, pa.int64()))
        if new:
            self._num_done += len(new)
            kept = results
            if results.num_columns > len(self.layout.schema):
                kept = results.select(self.layout.schema.names)
            (self._stored if stored else self._unflushed).append(kept)
        return results

    def unflushed(self) -> pa.Table | None:
        """Results that no segment holds yet; None where there are none."""
        return pa.Table.from_batches(self._unflushed) if self._unflushed else None

    def flushed(self) -> None:
        """Note that the `unflushed` results are on storage."""
        # A batch of one row takes thirty times the memory of the row, so batches are combined.
        self._stored += pa.Table.from_batches(self._unflushed).combine_chunks().to_batches()
        self._unflushed.clear()

    def results(self) -> pa.Table:
        """All results, in the order of their arrival; no copy."""
        assert self.complete
        return pa.Table.from_batches([*self._stored, *self._unflushed], self.layout.schema)
