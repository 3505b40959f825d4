"""Reads the input's rows as a result shard must hold them: the shard's own values, in the common
order and types of the columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.input import input_files, int96
from pipeline.input.one_schema import conform, merged
from pipeline.input.prompt_shards import read_shard, with_folders
from pipeline.storage.storage import Storage


class PlannedPrompts:
    """The prompt shards of a manifest, where they are now."""

    def __init__(self, inputs: Storage, names: Sequence[str]) -> None:
        self._folders = input_files.folder_columns(names)
        self._order: list[str] = []
        """Columns of the first shard; empty where it cannot be read."""
        try:
            with inputs.open(names[0]) as source:
                self._order = with_folders(pq.read_schema(source), self._folders).names
        except (IndexError, OSError, pa.ArrowException):
            pass

    def read(self, content: bytes, name: str, found: pa.Schema) -> pa.Table:
        """A shard's rows. found: the schema of its result shard, whose types are used where they
        hold the shard's values unchanged. Raises pa.ArrowException for bytes that are not
        Parquet."""
        source = pa.BufferReader(content)
        parquet = pq.ParquetFile(source)
        unit = int96.unit_of(parquet, found)
        parquet = pq.ParquetFile(source, coerce_int96_timestamp_unit=unit)
        own = with_folders(parquet.schema_arrow, self._folders).remove_metadata()
        names = self._order if sorted(self._order) == sorted(own.names) else own.names
        own = pa.schema([own.field(column) for column in names])
        rows = read_shard(source, name, own, self._folders.names).replace_schema_metadata(None)
        fields = [_as_found(rows, field, found) for field in own]
        return conform(dict(zip(names, rows.columns, strict=True)), pa.schema(fields))


def _as_found(rows: pa.Table, field: pa.Field, found: pa.Schema) -> pa.Field:
    where = found.get_field_index(field.name)
    if where < 0:
        return field
    kind: Any = found.field(where).type
    holds = merged(kind, field.type) == kind or rows[field.name].null_count == rows.num_rows
    return field.with_type(kind) if holds else field
