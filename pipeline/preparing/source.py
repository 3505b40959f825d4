"""Opens a source of rows: a file, a folder, a URI, a folder of `save_to_disk`, or a hub id."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from lrd.models.hub import is_hub_id
from pipeline.preparing import csv_rows, datasets_rows, json_rows, parquet_rows
from pipeline.preparing.reading import Reading, Rows
from pipeline.preparing.source_file import SourceFile
from pipeline.preparing.source_files import Choice, choose, choose_file, kind_of
from pipeline.storage.storage import Storage
from pipeline.storage.uris import canonical, child, is_uri, parent

DATASET = "a dataset"
OPTIONS = {
    "--types": ("types", ("CSV", "JSON")),
    "--delimiter": ("delimiter", ("CSV",)),
    "--field": ("rows_field", ("JSON",)),
}
"""Flag → field of Reading, and the kinds of files for which it is valid."""


@contextmanager
def open_source(source: str, reading: Reading) -> Iterator[Rows]:
    """Open the source's rows, which can be read inside the context: files of a store are fetched
    into a temporary folder.

    Nothing is cached: rows are read from the files as they are now. Raises ValueError naming the
    source, or its file and line, where it cannot be read with these settings, OSError where its
    store does not answer.
    """
    if not source.strip():
        raise ValueError("the source is empty; name a file, a folder, a URI or a hub id")
    source = canonical(source)
    with tempfile.TemporaryDirectory() as scratch:
        opened = _store if is_uri(source) else _local
        rows = opened(source, reading, Path(scratch))
        reading.check_columns(source, rows.schema.names)
        yield replace(rows, tables=_first(rows.tables, reading.limit))


def _first(tables: Iterator[pa.Table], limit: int | None) -> Iterator[pa.Table]:
    if limit is None:
        yield from tables
        return
    for table in tables:
        yield table.slice(0, limit)
        limit -= table.num_rows
        if limit <= 0:
            return


def _local(source: str, reading: Reading, scratch: Path) -> Rows:
    path = Path(source)
    if path.is_dir():
        names = sorted(_below(path))
        if _is_saved(names):
            _refuse_options(source, DATASET, reading)
            return datasets_rows.read_saved(path, source, reading.split)
        return _files(source, choose(source, names, reading.split), path, reading)
    if path.exists():
        choice = choose_file(source, path.name, reading.split)
        return _files(parent(source)[0], choice, path.parent, reading)
    if not is_hub_id(source) or kind_of(source):
        raise ValueError(f"{source}: no such file or folder")
    _refuse_options(source, DATASET, reading)
    return datasets_rows.read_hub(source, reading.split)


def _below(folder: Path) -> Iterator[str]:
    """All files in a folder and its sub-folders, as relative paths. Raises OSError where one cannot
    be listed."""

    def fail(error: OSError) -> None:
        raise error

    for place, _, names in os.walk(folder, onerror=fail, followlinks=True):
        yield from (str(Path(place, name).relative_to(folder)) for name in names)


def _store(uri: str, reading: Reading, scratch: Path) -> Rows:
    storage = Storage(uri)
    kind = storage.kind()
    if kind == "missing":
        raise ValueError(f"{uri}: no such file or folder")
    if kind == "file":
        folder, name = parent(uri)
        choice = choose_file(uri, name, reading.split)
        _fetch(Storage(folder), choice.names, scratch)
        return _files(folder, choice, scratch, reading)
    found = storage.files(recursive=True)
    names = sorted(info.path.removeprefix(storage.root).lstrip("/") for info in found)
    if _is_saved(names):
        _refuse_options(uri, DATASET, reading)
        _fetch(storage, names, scratch)
        return datasets_rows.read_saved(scratch, uri, reading.split)
    choice = choose(uri, names, reading.split)
    _fetch(storage, choice.names, scratch)
    return _files(uri, choice, scratch, reading)


def _fetch(storage: Storage, names: list[str], folder: Path) -> None:
    """Copy a store's files into a local folder."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(storage.read(name))


def _is_saved(names: list[str]) -> bool:
    """Whether `save_to_disk` wrote these files."""
    return any(name in names for name in datasets_rows.SAVED) and any(
        name.endswith(".arrow") for name in names
    )


def _files(source: str, choice: Choice, folder: Path, reading: Reading) -> Rows:
    """The rows of files in a local folder. source: the folder as the user names it."""
    files = [SourceFile(folder / name, _shown(source, name)) for name in choice.names]
    _refuse_options(files[0].shown, choice.kind, reading)
    match choice.kind:
        case "CSV":
            rows = csv_rows.read(files, reading)
        case "JSON":
            rows = json_rows.read(files, reading)
        case _:
            rows = parquet_rows.read(files)
    return replace(rows, left_out=choice.left_out)


def _shown(folder: str, name: str) -> str:
    """A file's path in messages."""
    path = child(folder, name)
    return path.partition("?")[0] if is_uri(path) else path.removeprefix("./")


def _refuse_options(shown: str, kind: str, reading: Reading) -> None:
    """Raises ValueError for flags that are not valid for this kind of source."""
    for flag, (name, kinds) in OPTIONS.items():
        if getattr(reading, name) and kind not in kinds:
            raise ValueError(f"{shown}: {flag} is for {' and '.join(kinds)}; this is {kind}")
