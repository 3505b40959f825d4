"""Writes and reads result shards and segments: Parquet.

A result shard holds the input's columns, unchanged and repeated for every sample of a row, then
the fields of `pipeline.rows.Result` that the run keeps. A shard is written a row group at a time:
beside its results, its prompts and the file there is one row group in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.output.schema_metadata import with_results
from pipeline.parquet_batches import rows_at
from pipeline.rows import OF_REOPENING, RESULT_SCHEMA, Layout
from pipeline.storage.retry import StorageError
from pipeline.storage.storage import Storage

Rows = TypeVar("Rows", pa.Table, pa.RecordBatch)
ROW_GROUP_ROWS = 1000
ROW_GROUP_BYTES = 1 << 28
"""Most bytes of a row group: Arrow cannot read one with over 2 GiB of nested cells."""
AGAIN = "delete it and continue the run, which decodes it again"
BATCH_ROWS = 16384
"""Rows that `batches` reads at a time by default."""
COLUMNS = "lrd.columns"
"""Footer key of a shard whose run does not keep all columns: its level."""


@contextmanager
def opened(output: Storage, name: str, fix: str = AGAIN) -> Iterator[pq.ParquetFile]:
    """Open a result shard for reading. Raises ValueError, with the file and the fix, where it is
    not a whole Parquet file."""
    try:
        with output.open(name) as source:
            yield pq.ParquetFile(source)
    except StorageError:
        raise
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{output.path(name)}: not a whole Parquet file ({reason}); {fix}"
        ) from error


def batches(
    output: Storage, name: str, columns: Sequence[str], num_rows: int = BATCH_ROWS
) -> Iterator[pa.RecordBatch]:
    """Read these columns of a result shard, at most `num_rows` rows at a time; those that its run
    does not keep are left out.

    Raises ValueError naming the file where it is damaged or lacks a column.
    """
    with opened(output, name) as parquet:
        kept = kept_columns(parquet, columns, output.path(name))
        yield from parquet.iter_batches(batch_size=num_rows, columns=kept)


def kept_columns(parquet: pq.ParquetFile, columns: Sequence[str], path: str) -> list[str]:
    """Those of the columns that the shard's run keeps. Raises ValueError naming the file where it
    lacks one of them."""
    footer = parquet.metadata.metadata or {}
    kept = Layout.of({"columns": footer.get(COLUMNS.encode(), b"full").decode()}).schema.names
    there = parquet.schema_arrow.names
    kept += [name for name in OF_REOPENING if name in there]
    wanted = [name for name in columns if name in kept or name not in RESULT_SCHEMA.names]
    absent = [name for name in wanted if name not in there]
    if absent:
        raise ValueError(
            f"{path}: has no column {', '.join(absent)}, so it is not a result shard of this "
            "version; name another run's output"
        )
    return wanted


def with_nulls(rows: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
    """The rows with each of these columns: nulls where the run does not keep it."""
    for name in columns:
        if name not in rows.schema.names:
            field = RESULT_SCHEMA.field(name)
            rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
    return rows


def results_in(content: bytes, schema: pa.Schema) -> pa.Table:
    """The results in a segment's or shard's bytes. schema: the columns that the run keeps.

    Raises pa.ArrowException where they are not a whole Parquet file with these columns.
    """
    source = pa.BufferReader(content)
    try:
        file = pq.ParquetFile(source, page_checksum_verification=True)
        table = file.read(columns=schema.names)
        return table.select(schema.names).replace_schema_metadata(None).cast(schema)
    except (OSError, KeyError) as error:  # What pyarrow raises for a page whose checksum is wrong.
        raise pa.ArrowInvalid(str(error)) from error


def shard_bytes(
    prompts: pa.Table,
    results: pa.Table,
    provenance: dict[str, str],
    layout: Layout = Layout(),  # noqa: B008 (it cannot be changed)
) -> pa.Buffer:
    """A result shard as a Parquet file: the input's columns, then the results', in the order of the
    row ids. results: all of the shard, in any order."""
    num_rows = prompts.num_rows * layout.num_samples
    assert num_rows == results.num_rows
    group_rows = _group_rows(num_rows, prompts.nbytes * layout.num_samples + results.nbytes)
    schema = pa.schema([*prompts.schema, *layout.schema], prompts.schema.metadata)
    schema = schema.with_metadata(with_results(schema.metadata, layout.schema))
    if layout.columns != "full":
        provenance = {**provenance, COLUMNS: layout.columns}
    sink = pa.BufferOutputStream()
    with parquet_writer(sink, schema) as writer:
        for first, group in _in_order(results, group_rows):
            inputs = repeated(prompts, first, group.num_rows, layout.num_samples)
            columns = [*inputs.columns, *group.columns]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=group_rows)
        writer.add_key_value_metadata(provenance)
    return sink.getvalue()


def _in_order(results: pa.Table, num_rows: int) -> Iterator[tuple[int, pa.Table]]:
    """The results in the order of their ids, so many rows at a time, with the number of the first;
    one table without rows where there are none."""
    # Batch by batch: Arrow's `take` of a table copies all of it for every few rows.
    batches = results.to_batches()
    starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
    order = pc.sort_indices(results["row_id"]).to_numpy().astype(np.int64)
    for first in range(0, max(1, len(order)), num_rows):
        rows = order[first : first + num_rows]
        numbers = np.searchsorted(starts, rows, side="right") - 1
        parts = [
            batches[number].take(pa.array(rows[numbers == number] - starts[number]))
            for number in np.unique(numbers)
        ]
        places = np.argsort(np.argsort(numbers, kind="stable"))
        table = pa.Table.from_batches(parts, results.schema).combine_chunks()
        yield first, table.take(pa.array(places))


def repeated(prompts: pa.Table, first: int, num_rows: int, num_samples: int) -> pa.Table:
    """The input's columns of result rows, each prompt for all its samples. first: number of the
    first row."""
    if num_samples == 1:
        return prompts.slice(first, num_rows)
    rows = np.arange(first, first + num_rows) // num_samples
    start = first // num_samples
    here = prompts.slice(start, -(-(first + num_rows) // num_samples) - start)
    try:
        return here.take(pa.array(rows - start))
    except pa.ArrowException:  # Types that `take` does not support, and cells over 2 GiB together.
        return rows_at(here, (rows - start).tolist())


def parquet_bytes(table: pa.Table, provenance: dict[str, str] | None = None) -> pa.Buffer:
    """A table as a whole Parquet file: zstd, content-defined pages, a page index."""
    sink = pa.BufferOutputStream()
    with parquet_writer(sink, table.schema) as writer:
        writer.write_table(table, row_group_size=_group_rows(table.num_rows, table.nbytes))
        if provenance:
            writer.add_key_value_metadata(provenance)
    return sink.getvalue()


def _group_rows(num_rows: int, num_bytes: int) -> int:
    """Rows of a row group, in a table of so many rows and bytes."""
    return max(1, min(ROW_GROUP_BYTES * num_rows // max(1, num_bytes), ROW_GROUP_ROWS))


def parquet_writer(sink: pa.NativeFile, schema: pa.Schema) -> pq.ParquetWriter:
    """Writes Parquet as all files of a run are: zstd, content-defined pages, a page index."""
    return pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        use_content_defined_chunking=True,
        write_page_index=True,
        write_page_checksum=True,
    )
