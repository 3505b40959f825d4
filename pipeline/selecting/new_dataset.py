"""Writes a dataset that is there whole or not at all: Parquet shards, then the record beside them.

Shards are written under `.selecting/` and get their names when all are there. A local dataset grows
beside its place, in a folder PLACE.….part that is renamed at the end; one that a kill left may be
deleted. Objects of a store cannot be renamed together: there `.selecting/unfinished` is the first
object and the last to go, and where it is the next selection removes what a kill left. Only one
selection at a time may write to a place.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path

import pyarrow as pa

from pipeline.output.result_shards import ROW_GROUP_ROWS, parquet_writer
from pipeline.output.run_folder import DATA, shard_name
from pipeline.storage.storage import PARTIAL, Storage

STAGED = ".selecting"
UNFINISHED = f"{STAGED}/unfinished"
SHARD_BYTES = 1 << 26
"""A shard ends with the row group that makes it larger: so much of it is in memory."""
GROUP_BYTES = 1 << 25
"""Unpacked bytes after which a row group ends, whatever its rows."""


@contextmanager
def new_dataset(to: str) -> Iterator[Storage]:
    """A folder whose files are the dataset's at the end of the context; after an error nothing is
    left. Raises ValueError where the place holds something, or nothing can be written there."""
    place = Storage(to)
    if not place.is_local:
        with _store(place):
            yield place
        return
    place.check_empty()
    place.check_writable()
    folder = Path(place.root)
    partial = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        yield Storage(str(partial))
        with suppress(FileNotFoundError):
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _store(place: Storage) -> Iterator[None]:
    if place.kind(UNFINISHED) == "file":
        _clear(place)
    place.check_empty()
    try:
        place.write(UNFINISHED, b"written by lrd select, which has not ended\n")
        yield
        place.delete_folder(STAGED)
    except BaseException:
        with suppress(OSError):
            _clear(place)
        raise


def _clear(place: Storage) -> None:
    """Remove what a selection has written; the mark that it is unfinished last."""
    names = [info.path.removeprefix(f"{place.root}/") for info in place.files(recursive=True)]
    for name in sorted(names, key=lambda name: name == UNFINISHED):
        place.delete_file(name)
    for folder in (STAGED, DATA):
        place.delete_folder(folder)


def write_shards(
    place: Storage, schema: pa.Schema, tables: Iterable[pa.Table], footer: dict[str, str]
) -> list[tuple[str, int]]:
    """Write the rows of tables as shards of bounded size; name and rows of each. No rows give no
    shard: `datasets` cannot open an empty one."""
    counts: list[int] = []
    for content, num_rows in _shards(schema, tables, footer):
        place.write(f"{STAGED}/{len(counts)}.parquet", content)
        counts.append(num_rows)
    named = [(shard_name(n, len(counts)), num_rows) for n, num_rows in enumerate(counts)]
    for n, (name, _) in enumerate(named):
        place.move(f"{STAGED}/{n}.parquet", name)
    if place.is_local:
        place.delete_folder(STAGED)
    return named


def _shards(
    schema: pa.Schema, tables: Iterable[pa.Table], footer: dict[str, str]
) -> Iterator[tuple[pa.Buffer, int]]:
    groups = _row_groups(tables)
    for first in groups:
        sink, num_rows = pa.BufferOutputStream(), 0
        with parquet_writer(sink, schema) as writer:
            for group in chain([first], groups):
                writer.write_table(group.replace_schema_metadata(schema.metadata), group.num_rows)
                num_rows += group.num_rows
                if sink.tell() >= SHARD_BYTES:
                    break
            writer.add_key_value_metadata(footer)
        yield sink.getvalue(), num_rows


def _row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The rows in tables of about the size of a row group."""
    waiting: list[pa.Table] = []
    num_rows = num_bytes = 0
    for table in tables:
        for at in range(0, table.num_rows, ROW_GROUP_ROWS):
            part = table.slice(at, ROW_GROUP_ROWS)
            waiting.append(part)
            num_rows += part.num_rows
            num_bytes += part.nbytes
            if num_rows >= ROW_GROUP_ROWS or num_bytes >= GROUP_BYTES:
                yield pa.concat_tables(waiting)
                waiting, num_rows, num_bytes = [], 0, 0
    if waiting:
        yield pa.concat_tables(waiting)
