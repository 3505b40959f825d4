"""Checks the prompt shards of a run's input (rows, SHA-256, schema), and reads them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.input import input_files, int96
from pipeline.input.features import Features
from pipeline.input.input_files import FoundFiles
from pipeline.input.one_schema import OneSchema, conform
from pipeline.input.prompt_text import PROMPT_KINDS, is_chat, is_text, unread_fields
from pipeline.observe.stages import stage
from pipeline.parquet_batches import batches, read_table
from pipeline.rows import RESULT_SCHEMA, InputFile
from pipeline.storage import retry
from pipeline.storage.storage import Storage

KEPT_METADATA = (b"pandas", b"geo")
"""Footer keys that are copied to the results: pandas' index and types, GeoParquet. They stay true
when columns are added; Spark's, a list of all columns, would not."""
BUFFER_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class PromptShards:
    """An input that was inspected: its shards and their one schema."""

    storage: Storage
    """The input folder; the files' names are relative to it."""
    files: list[InputFile]
    schema: pa.Schema
    """The columns of every shard as `read` gives it; the `datasets` features in its metadata."""
    folders: list[str]
    """Columns made from `key=value` folders."""
    left_out: list[str]
    """Paths of files and folders in the input folder that are not read."""
    prompt_column: str

    @property
    def holds_chats(self) -> bool:
        """Whether the prompts are chats."""
        return is_chat(self.schema.field(self.prompt_column).type)

    def read(
        self, name: str, columns: Sequence[str] | None = None, limit: int | None = None
    ) -> pa.Table:
        """Read a shard. columns: only these. limit: at most this many rows, from the first on.

        Raises ValueError where the file has changed and no longer fits.
        """
        schema = self.schema
        if columns is not None:
            schema = pa.schema([schema.field(column) for column in columns], schema.metadata)
        try:
            with self.storage.open(name) as source:
                return read_shard(source, name, schema, self.folders, limit)
        except (pa.ArrowException, KeyError) as error:
            missing = "no column " if isinstance(error, KeyError) else ""
            reason = f"{missing}{error}".splitlines()[0]
            raise ValueError(
                f"{self.storage.path(name)}: is not what it was when the run began ({reason}); "
                "restore the file"
            ) from error

    def notes(self) -> list[str]:
        """A line each about files and about fields of turns that are not read, where there are
        any."""
        lines = []
        if self.left_out:
            num, some = len(self.left_out), input_files.shown(self.left_out)
            lines.append(f"input: {num} other files or folders are left out: {some}")
        if unread := unread_fields(self.schema.field(self.prompt_column).type):
            some = input_files.shown(unread)
            lines.append(f"input: fields of turns that are not read: {some}")
        return lines


def inspect(found: FoundFiles, prompt_column: str) -> PromptShards:
    """Read each shard of an input once, a batch at a time: its rows, digest and schema.

    Raises ValueError, naming the file, for one that is corrupt, lacks the prompt column or has it
    without text or chats, has two columns of one name, one that results would overwrite, or one
    whose values are of another kind than in other shards.
    """
    try:
        return _inspect(found, prompt_column, "ns")
    except int96.OutOfRangeError:
        return _inspect(found, prompt_column, "us")


def _inspect(found: FoundFiles, prompt_column: str, int96_unit: str) -> PromptShards:
    folders = input_files.folder_columns(found.names)
    one_schema, features = OneSchema(), Features()
    files: list[InputFile] = []
    with stage("checking input", len(found.names), "files") as step:
        for name in found.names:
            where = found.storage.path(name)
            seen = _inspect_file(found.storage, name, prompt_column, folders, int96_unit)
            one_schema.add(where, seen.schema, seen.only_nulls)
            features.add(where, seen.schema.metadata or {})
            files.append(InputFile(name, seen.num_rows, seen.sha256))
            step.add()
            step.detail = f"{sum(file.num_rows for file in files):,} rows"
    schema = one_schema.schema
    if any(file.num_rows for file in files):
        _check_prompts(found.storage.uri, schema, prompt_column)
    schema = schema.with_metadata(features.metadata)
    return PromptShards(found.storage, files, schema, folders.names, found.left_out, prompt_column)


@dataclass(frozen=True, slots=True)
class _Seen:
    """One file that was read."""

    num_rows: int
    sha256: str
    schema: pa.Schema
    """Its columns and those of its folders."""
    only_nulls: set[str]
    """Columns without a value."""


def _inspect_file(
    storage: Storage, name: str, prompt_column: str, folders: pa.Schema, int96_unit: str
) -> _Seen:
    where, digest = storage.path(name), hashlib.sha256()
    try:
        with storage.open(name) as source:
            while chunk := source.read(BUFFER_BYTES):
                digest.update(chunk)
            source.seek(0)
            # Buffered, not whole column chunks at once: row groups may be as large as the file.
            parquet = pq.ParquetFile(
                source,
                page_checksum_verification=True,
                pre_buffer=False,
                buffer_size=BUFFER_BYTES,
                coerce_int96_timestamp_unit=int96_unit,
            )
            schema = with_folders(parquet.schema_arrow, folders)
            _check_names(where, schema, prompt_column)
            only_nulls = _read_all(where, parquet, input_files.folder_values(name))
            old_timestamps = int96.columns(parquet)
        if old_timestamps:
            int96.check(where, partial(storage.open, name), old_timestamps, int96_unit)
    except retry.StorageError:
        raise
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if re.search("no decryption|Cannot decrypt", reason):
            raise ValueError(f"{where}: is encrypted; write it without encryption") from error
        fix = "write it again"
        if not name.lower().endswith(".parquet"):
            fix = "`lrd prepare` makes Parquet of JSONL, CSV and other files"
        raise ValueError(f"{where}: not a whole Parquet file ({reason}); {fix}") from error
    if prompt_column not in only_nulls:
        _check_prompts(where, schema, prompt_column)
    return _Seen(parquet.metadata.num_rows, digest.hexdigest(), schema, only_nulls)


def _check_prompts(where: str, schema: pa.Schema, column: str) -> None:
    kind = schema.field(column).type
    if not is_text(kind) and not is_chat(kind):
        raise ValueError(
            f"{where}: column {column!r} holds {kind}; a prompt column holds {PROMPT_KINDS}"
        )


def with_folders(schema: pa.Schema, folders: pa.Schema) -> pa.Schema:
    """A file's columns and those of the `key=value` folders, as `folder_columns` gives them."""
    fields = [*schema, *(field for field in folders if field.name not in schema.names)]
    return pa.schema(fields, schema.metadata)


def _check_names(where: str, schema: pa.Schema, prompt_column: str) -> None:
    if len(set(schema.names)) < len(schema.names):
        twice = next(name for name in schema.names if schema.names.count(name) > 1)
        raise ValueError(f"{where}: has two columns of one name, {twice!r}; rename one")
    if prompt_column not in schema.names:
        raise ValueError(
            f"{where}: no column {prompt_column!r}; it has {', '.join(schema.names)}. "
            "Name the prompt's with --prompt-column"
        )
    clashes = sorted(set(schema.names) & set(RESULT_SCHEMA.names))
    if clashes:
        raise ValueError(
            f"{where}: has columns that results add: {', '.join(clashes)}; rename or drop them"
        )


def _read_all(where: str, parquet: pq.ParquetFile, folders: dict[str, str | None]) -> set[str]:
    """Columns of the file and of its folders that hold only nulls.

    Raises ValueError where a column is there twice, with other values than the folder's.
    """
    twice = folders.keys() & set(parquet.schema_arrow.names)
    only_nulls = set(parquet.schema_arrow.names)
    for batch in batches(parquet):
        only_nulls = {name for name in only_nulls if batch[name].null_count == batch.num_rows}
        for key in twice:
            if not _all_are(batch[key], folders[key]):
                raise ValueError(
                    f"{where}: its column {key!r} holds other values than its folder "
                    f"{key}={folders[key]} says; drop or rename one"
                )
    return only_nulls | {key for key, value in folders.items() if value is None}


def _all_are(column: pa.Array, value: str | None) -> bool:
    if value is None:
        return bool(column.null_count == len(column))
    try:
        return bool(pc.all(pc.equal(column.cast(pa.string()), value).fill_null(False)).as_py())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return False


def read_shard(
    source: Any,
    name: str,
    schema: pa.Schema | None = None,
    folders: Collection[str] = (),
    limit: int | None = None,
) -> pa.Table:
    """Read a shard from an open file, in the columns, order and types of `schema`.

    name: its path in the input, whose `key=value` folders are columns. schema: None: as in the
    file. folders: columns made from the input's folders; one that this path lacks is null, as in
    pyarrow.dataset. limit: at most this many rows, from the first on.
    Raises pa.ArrowException where values are of another kind, KeyError where a column is missing.
    """
    parquet = pq.ParquetFile(source, pre_buffer=limit is None)
    if schema is None:
        return read_table(parquet)
    if int96.unit_of(parquet, schema) == "us":
        parquet = pq.ParquetFile(source, coerce_int96_timestamp_unit="us")
    inside = [column for column in schema.names if column in parquet.schema_arrow.names]
    table = read_table(parquet, inside, limit)
    num_rows = parquet.metadata.num_rows if limit is None else min(limit, parquet.metadata.num_rows)
    columns = {column: table[column] for column in inside}
    values = {**dict.fromkeys(folders), **input_files.folder_values(name)}
    for field in schema:
        if field.name not in columns:
            value = pa.scalar(values[field.name], pa.string()).cast(field.type)
            columns[field.name] = pa.chunked_array([pa.repeat(value, num_rows)])
    footer = parquet.schema_arrow.metadata or {}
    own = {key: footer[key] for key in KEPT_METADATA if key in footer}
    return conform(columns, schema).replace_schema_metadata({**own, **(schema.metadata or {})})
