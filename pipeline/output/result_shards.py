"""Writes and reads result shards and segments: Parquet.

A result shard holds the input's columns unchanged, then the fields of `pipeline.rows.Result`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.output.schema_metadata import with_results
from pipeline.rows import RESULT_SCHEMA
from pipeline.storage.retry import StorageError
from pipeline.storage.storage import Storage

ROW_GROUP_ROWS = 1000
ROW_GROUP_BYTES = 1 << 28
"""Most bytes of a row group: Arrow cannot read one with over 2 GiB of nested cells."""
AGAIN = "delete it and continue the run, which decodes it again"
BATCH_ROWS = 16384
"""Rows that `batches` reads at a time by default."""


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
    """Read these columns of a result shard, at most `num_rows` rows at a time.

    Raises ValueError naming the file where it is damaged or lacks a column.
    """
    with opened(output, name) as parquet:
        absent = [column for column in columns if column not in parquet.schema_arrow.names]
        if absent:
            raise ValueError(
                f"{output.path(name)}: has no column {', '.join(absent)}, so it is not a result "
                "shard of this version; name another run's output"
            )
        yield from parquet.iter_batches(batch_size=num_rows, columns=list(columns))


def results_in(content: bytes) -> pa.Table:
    """The results in a segment's or shard's bytes.

    Raises pa.ArrowException where they are not a whole Parquet file with these columns.
    """
    source = pa.BufferReader(content)
    try:
        file = pq.ParquetFile(source, page_checksum_verification=True)
        table = file.read(columns=RESULT_SCHEMA.names)
        return table.select(RESULT_SCHEMA.names).replace_schema_metadata(None).cast(RESULT_SCHEMA)
    except (OSError, KeyError) as error:  # What pyarrow raises for a page whose checksum is wrong.
        raise pa.ArrowInvalid(str(error)) from error


def shard_bytes(prompts: pa.Table, results: pa.Table, provenance: dict[str, str]) -> pa.Buffer:
    """A result shard as a Parquet file: the input's columns, then the results', row by row."""
    assert prompts.num_rows == results.num_rows
    table = prompts
    for field, column in zip(RESULT_SCHEMA, results.columns, strict=True):
        table = table.append_column(field, column)
    table = table.replace_schema_metadata(with_results(table.schema.metadata))
    return parquet_bytes(table, provenance)


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


def parquet_bytes(table: pa.Table, provenance: dict[str, str] | None = None) -> pa.Buffer:
    """A table as a whole Parquet file."""
    fitting = ROW_GROUP_BYTES * table.num_rows // max(1, table.nbytes)
    sink = pa.BufferOutputStream()
    with parquet_writer(sink, table.schema) as writer:
        writer.write_table(table, row_group_size=max(1, min(fitting, ROW_GROUP_ROWS)))
        if provenance:
            writer.add_key_value_metadata(provenance)
    return sink.getvalue()
