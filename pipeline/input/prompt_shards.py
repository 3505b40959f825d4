"""Lists, checks, digests and reads the prompt shards of a run's input."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.rows import RESULT_SCHEMA, InputFile
from pipeline.storage import retry, uris
from pipeline.storage.storage import Storage


def input_storage(uri: str) -> tuple[Storage, list[str]]:
    """The folder of an input and the names of its Parquet files, sorted.

    Raises ValueError where there is no such file or folder, or no Parquet file in it.
    """
    storage = Storage(uri)
    kind = storage.kind()
    if kind == "missing":
        raise ValueError(f"{uri}: no such file or folder; check --input")
    if kind == "file":
        folder, name = uris.parent(storage.uri)
        return Storage(folder), [name]
    names = [name for name in storage.names() if name.endswith(".parquet")]
    if not names:
        raise ValueError(f"{uri}: no .parquet files in it; make some with `lrd prepare`")
    return storage, names


def inspect_inputs(
    storage: Storage, names: Sequence[str], prompt_column: str
) -> tuple[list[InputFile], pa.Schema]:
    """Read every shard once, a row group at a time: rows, digests, the common schema.

    Raises ValueError naming the file for one that is corrupt, has no such column, one of the
    wrong type, other columns than the first, or a column that results would overwrite.
    """
    files: list[InputFile] = []
    schema: pa.Schema | None = None
    for name in names:
        where = storage.path(name)
        digest = hashlib.sha256()
        try:
            with storage.open(name) as source:
                while chunk := source.read(1 << 22):
                    digest.update(chunk)
                source.seek(0)
                parquet = pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=True)
                for group in range(parquet.num_row_groups):
                    parquet.read_row_group(group)
                found, num_rows = parquet.schema_arrow, parquet.metadata.num_rows
        except retry.StorageError:
            raise
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"{where}: not a whole Parquet file ({reason}); write it again"
            ) from error
        found = found.remove_metadata()
        _check_columns(where, found, prompt_column)
        if schema is None:
            schema = found
        elif not found.equals(schema):
            raise ValueError(
                f"{where}: its columns differ from those of {storage.path(names[0])} "
                f"({_difference(schema, found)}); all shards need one schema"
            )
        files.append(InputFile(name, num_rows, digest.hexdigest()))
    assert schema is not None
    return files, schema


def _check_columns(where: str, schema: pa.Schema, prompt_column: str) -> None:
    if prompt_column not in schema.names:
        raise ValueError(
            f"{where}: no column {prompt_column!r}; it has {', '.join(schema.names)}. "
            "Name the prompt's with --prompt-column"
        )
    kind = schema.field(prompt_column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ValueError(
            f"{where}: column {prompt_column!r} holds {kind}; a prompt column holds strings"
        )
    clashes = sorted(set(schema.names) & set(RESULT_SCHEMA.names))
    if clashes:
        raise ValueError(
            f"{where}: has columns that results add: {', '.join(clashes)}; rename or drop them"
        )
    if len(set(schema.names)) < len(schema.names):
        raise ValueError(f"{where}: has two columns of one name; rename one")


def _difference(first: pa.Schema, other: pa.Schema) -> str:
    ours = {(field.name, str(field.type)) for field in first}
    theirs = {(field.name, str(field.type)) for field in other}
    changed = sorted(f"{name}: {kind}" for name, kind in ours ^ theirs)
    return "; ".join(changed) or "in order or nullability"


def read_shard(storage: Storage, name: str) -> pa.Table:
    """A whole prompt shard."""
    with storage.open(name) as source:
        return pq.ParquetFile(source, pre_buffer=True).read().replace_schema_metadata(None)


def read_column(storage: Storage, name: str, column: str, limit: int | None = None) -> pa.Table:
    """One column of a prompt shard, its first `limit` rows at most; None: all."""
    with storage.open(name) as source:
        parquet = pq.ParquetFile(source, pre_buffer=limit is None)
        if limit is None:
            return parquet.read(columns=[column]).replace_schema_metadata(None)
        first = next(parquet.iter_batches(batch_size=limit, columns=[column]), None)
        schema = pa.schema([parquet.schema_arrow.field(column)])
        rows = pa.Table.from_batches([] if first is None else [first], schema)
        return rows.slice(0, limit).replace_schema_metadata(None)
