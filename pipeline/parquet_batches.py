"""Reads Parquet in batches of a bounded size, whatever the size of the file's row groups: large
ones would need much memory, and Arrow cannot hold over 2 GiB of nested cells in one array.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

BATCH_BYTES = 1 << 25
"""Unpacked bytes of a batch, by the mean size of the row group's rows."""
BATCH_ROWS = 1 << 16


def batches(
    parquet: pq.ParquetFile, columns: Sequence[str] | None = None, most_rows: int | None = None
) -> Iterator[pa.RecordBatch]:
    """All rows in order, about `BATCH_BYTES` and at most `most_rows` at a time.

    columns: only these.
    Raises pa.ArrowException or OSError where the file is damaged.
    """
    for group in range(parquet.num_row_groups):
        facts = parquet.metadata.row_group(group)
        fitting = facts.num_rows * BATCH_BYTES // max(1, facts.total_byte_size)
        size, done = max(1, min(fitting, most_rows or BATCH_ROWS)), 0
        while done < facts.num_rows:
            try:
                for batch in _rest(parquet, group, columns, size, done):
                    yield batch
                    done += batch.num_rows
            except pa.ArrowNotImplementedError:
                # Cells far larger than the mean: nested ones over 2 GiB in one array.
                if size == 1:
                    raise
                size = max(1, size // 16)


def _rest(
    parquet: pq.ParquetFile, group: int, columns: Sequence[str] | None, size: int, skipped: int
) -> Iterator[pa.RecordBatch]:
    """A row group's rows without the first `skipped` ones."""
    first = 0
    for batch in parquet.iter_batches(size, row_groups=[group], columns=columns):
        if first + batch.num_rows > skipped:
            yield batch.slice(max(0, skipped - first))
        first += batch.num_rows


def read_table(
    parquet: pq.ParquetFile, columns: Sequence[str] | None = None, limit: int | None = None
) -> pa.Table:
    """The file as `ParquetFile.read` gives it, but of any size; limit: its first rows at most."""
    schema = parquet.schema_arrow
    if columns is not None:
        schema = pa.schema([schema.field(name) for name in columns], schema.metadata)
    found, num_rows = [], 0
    for batch in batches(parquet, columns, limit):
        found.append(batch.select(schema.names))
        num_rows += batch.num_rows
        if limit is not None and num_rows >= limit:
            break
    return pa.Table.from_batches(found, schema).slice(0, limit)


def rows_at(table: pa.Table, rows: Sequence[int]) -> pa.Table:
    """These rows of a table, in this order; a row may come again. By slices, as Arrow's `take` and
    `filter` do not support string views."""
    parts, first = [], 0
    for n, row in enumerate(rows, start=1):
        if n == len(rows) or rows[n] != row + 1:
            parts.append(table.slice(rows[first], n - first))
            first = n
    return pa.concat_tables(parts) if parts else table.slice(0, 0)
