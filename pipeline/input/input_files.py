"""Finds the Parquet files of an input by pyarrow.dataset's rule: all sub-folders, `.parquet` in any
case, no name that begins with `.` or `_`; `key=value` folders become columns.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow import fs

from pipeline.storage import uris
from pipeline.storage.storage import RUN, Storage

NULL = "__HIVE_DEFAULT_PARTITION__"
"""The value of a `key=value` folder that means null."""
TABLE_FORMATS = {
    "a Delta Lake table": re.compile(r"(^|/)_delta_log/"),
    "an Apache Hudi table": re.compile(r"(^|/)\.hoodie/"),
    "an Apache Iceberg table": re.compile(r"(^|/)metadata/[^/]*\.metadata\.json(\.gz)?$"),
    "a Lance dataset": re.compile(r"\.lance(/|$)"),
}
"""Table formats, by a file or folder that marks one: some of their Parquet files hold rows that
the table has since deleted or replaced."""
NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class FoundFiles:
    """The files of an input."""

    storage: Storage
    """Its folder."""
    names: list[str]
    """Paths of the Parquet files, relative to the folder, sorted."""
    left_out: list[str]
    """Paths of all other files there, and of folders that are not entered, ending in `/`."""


def find(uri: str) -> FoundFiles:
    """The Parquet files of a folder and its sub-folders, or the one file that is named.

    Raises ValueError where there is no such file or folder, no Parquet file in it, or a table
    format's folder, whose files must not be read one by one.
    """
    storage = Storage(uri)
    kind = storage.kind()
    if kind == "missing":
        raise ValueError(f"{uri}: no such file or folder; check --input")
    if kind == "file":
        folder, name = uris.parent(storage.uri)
        return FoundFiles(Storage(folder), [name], [])
    listed = sorted(set(_local(storage.root) if storage.is_local else _remote(storage)))
    _refuse_tables(uri, listed)
    runs = tuple(name.removesuffix(f"{RUN}/") for name in listed if name.endswith(f"/{RUN}/"))
    names: list[str] = []
    left_out = list(runs)
    for name in listed:
        if runs and name.startswith(runs):
            continue
        (names if _is_input(name) else left_out).append(name)
    if not names:
        others = f" ({shown(left_out)})" if left_out else ""
        raise ValueError(f"{uri}: no .parquet files in it{others}; make some with `lrd prepare`")
    for name in names:
        if not _is_utf8(name):
            raise ValueError(f"{uri}: the name of {_printable(name)} is not UTF-8; rename the file")
    return FoundFiles(storage, names, sorted(left_out))


def shown(names: Sequence[str]) -> str:
    """A few names and how many more there are."""
    some = ", ".join(_printable(name) for name in names[:NAMES_SHOWN])
    more = len(names) - NAMES_SHOWN
    return f"{some}, and {more} more" if more > 0 else some


def _is_input(name: str) -> bool:
    return name.lower().endswith(".parquet") and not _is_hidden(name.rpartition("/")[2])


def _is_hidden(part: str) -> bool:
    return part.startswith((".", "_"))


def _local(root: str) -> Iterator[str]:
    """Paths of all files; hidden folders, and links to a folder above themselves, are not entered.

    pyarrow's own listing follows such a link forty times, and fails at names that are not UTF-8.
    """

    def walk(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                path = f"{folder}{entry.name}"
                if _is_folder(entry):
                    status = os.stat(entry.path)
                    own = (status.st_dev, status.st_ino)
                    if _is_hidden(entry.name) or own in above:
                        yield f"{path}/"
                    else:
                        yield from walk(f"{path}/", above | {own})
                # A broken link is listed, so that reading it fails with its name; reading a pipe
                # would block for ever.
                elif entry.is_symlink() or entry.is_file():
                    yield path

    status = os.stat(root)
    return walk("", frozenset({(status.st_dev, status.st_ino)}))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link to itself.
        return False


def _remote(storage: Storage) -> Iterator[str]:
    """Paths of all files, and of hidden folders in place of what they hold."""
    root = storage.root.rstrip("/") + "/"
    for info in storage.files(recursive=True):
        parts = info.path.removeprefix(root).split("/")
        hidden = next((n for n, part in enumerate(parts[:-1]) if _is_hidden(part)), None)
        yield "/".join(parts) if hidden is None else "/".join(parts[: hidden + 1]) + "/"


def _refuse_tables(uri: str, listed: Sequence[str]) -> None:
    for what, pattern in TABLE_FORMATS.items():
        sign = next(filter(pattern.search, listed), None)
        if sign is not None:
            raise ValueError(
                f"{uri}: is {what} ({_printable(sign)}), whose files hold rows that it has "
                "deleted or replaced; write its rows of today as plain Parquet, with the table's "
                "own reader, and name that folder as --input"
            )


def folder_values(name: str) -> dict[str, str | None]:
    """The columns that the `key=value` folders in a file's path give it; None: null.

    Raises ValueError where two of them have one key.
    """
    found: dict[str, str | None] = {}
    for part in PurePosixPath(name).parts[:-1]:
        key, is_pair, value = part.partition("=")
        if is_pair:
            key = unquote(key)
            if key in found:
                raise ValueError(f"{name}: has two folders {key}=…; rename one")
            found[key] = None if value == NULL else unquote(value)
    return found


def folder_columns(names: Sequence[str]) -> pa.Schema:
    """The columns of all `key=value` folders, of the types that pyarrow.dataset infers: int32
    where every value is one, string otherwise.

    Raises ValueError where a folder's name decodes to no UTF-8.
    """
    keyed = [f"/{name}" for name in names if folder_values(name)]
    if not keyed:
        return pa.schema([])
    options = ds.FileSystemFactoryOptions("/", partitioning=ds.HivePartitioning.discover())
    try:
        # From the names alone: no file is opened.
        factory = ds.FileSystemDatasetFactory(
            fs.LocalFileSystem(), keyed, ds.ParquetFileFormat(), options
        )
        return factory.inspect(fragments=0)
    except pa.ArrowInvalid as error:
        raise ValueError(f"folders of the input: {error}; rename them") from error


def _is_utf8(name: str) -> bool:
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def _printable(name: str) -> str:
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")
