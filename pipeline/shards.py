"""A shard of the run while it is open: prompts, and the results that are in, as tables.

Knows nothing of storage. Rows stay in Arrow from the replica to the shard's file, so that a row
costs the driver microseconds and a few hundred bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.parquet import RESULT_SCHEMA
from pipeline.rows import row_index


@dataclass(slots=True)
class OpenShard:
    """One prompt shard and its results so far."""

    number: int
    prompts: pa.Table
    num_segments: int = 0
    _done: bytearray = field(init=False)
    _num_done: int = 0
    _stored: list[pa.Table] = field(default_factory=list)
    _unflushed: list[pa.Table] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._done = bytearray(self.prompts.num_rows)

    @property
    def num_done(self) -> int:
        return self._num_done

    @property
    def complete(self) -> bool:
        return self._num_done == len(self._done)

    def has(self, index: int) -> bool:
        """Whether the row's result is in."""
        return bool(self._done[index])

    def add(self, results: pa.Table, *, stored: bool = False) -> pa.Table:
        """Take results of `RESULT_SCHEMA`; those that were new. A row's first result stays.

        stored: they come from a segment and need no flush.
        """
        new = []
        for row, row_id in enumerate(results["row_id"].to_pylist()):
            index = row_index(row_id)
            if not self._done[index]:
                self._done[index] = 1
                new.append(row)
        if len(new) < results.num_rows:
            results = results.take(pa.array(new, pa.int64()))
        if new:
            self._num_done += len(new)
            (self._stored if stored else self._unflushed).append(results)
        return results

    def unflushed(self) -> pa.Table | None:
        """Results that no segment holds yet; None where there are none."""
        return pa.concat_tables(self._unflushed) if self._unflushed else None

    def flushed(self) -> None:
        """`unflushed` has reached storage."""
        # A row that came alone is a table of its own, thirty times the size of what it holds.
        self._stored.append(pa.concat_tables(self._unflushed).combine_chunks())
        self._unflushed.clear()

    def whole(self) -> pa.Table:
        """All results in row order."""
        assert self.complete
        results = pa.concat_tables([RESULT_SCHEMA.empty_table(), *self._stored, *self._unflushed])
        # Row ids of a shard sort as their numbers do.
        return results.take(pc.sort_indices(results["row_id"])).combine_chunks()
