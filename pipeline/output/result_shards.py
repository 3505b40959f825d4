"""Writes and reads result shards and segments as Parquet bytes.

A result shard holds the input's columns unchanged, then the fields of `pipeline.rows.Result`.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.output.schema_metadata import with_results
from pipeline.rows import RESULT_SCHEMA

ROW_GROUP_ROWS = 1000
ROW_GROUP_BYTES = 1 << 28
"""Fewer rows are a group where they are large: nested cells of over 2 GiB in one cannot be read."""


def results_in(content: bytes) -> pa.Table:
    """The results in a segment's or shard's bytes.

    Raises pa.ArrowException where they are no whole Parquet file with these columns.
    """
    source = pa.BufferReader(content)
    try:
        file = pq.ParquetFile(source, page_checksum_verification=True)
        table = file.read(columns=RESULT_SCHEMA.names)
        return table.select(RESULT_SCHEMA.names).replace_schema_metadata(None).cast(RESULT_SCHEMA)
    except (OSError, KeyError) as error:  # What pyarrow raises for a page whose checksum is wrong.
        raise pa.ArrowInvalid(str(error)) from error


def shard_bytes(prompts: pa.Table, results: pa.Table, provenance: dict[str, str]) -> pa.Buffer:
    """A result shard: the prompts' columns, then the results' in the same row order."""
    assert prompts.num_rows == results.num_rows
    table = prompts
    for field, column in zip(RESULT_SCHEMA, results.columns, strict=True):
        table = table.append_column(field, column)
    table = table.replace_schema_metadata(with_results(table.schema.metadata))
    return parquet_bytes(table, provenance)


def parquet_bytes(table: pa.Table, provenance: dict[str, str] | None = None) -> pa.Buffer:
    """A table as a whole Parquet file: zstd, content-defined pages, a page index."""
    fitting = ROW_GROUP_BYTES * table.num_rows // max(1, table.nbytes)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="zstd",
        use_content_defined_chunking=True,
        write_page_index=True,
        write_page_checksum=True,
    ) as writer:
        writer.write_table(table, row_group_size=max(1, min(fitting, ROW_GROUP_ROWS)))
        if provenance:
            writer.add_key_value_metadata(provenance)
    return sink.getvalue()
