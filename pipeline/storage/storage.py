"""Lists, reads and writes files under one root, local or in an object store.

A file is written whole or not at all: local files are written under another name, synced and
renamed; objects appear when their upload ends. Calls that fail temporarily (a lost connection,
throttling) are repeated with growing, random pauses.
"""

from __future__ import annotations

import io
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import fs

from pipeline import faults
from pipeline.storage import retry, uris
from pipeline.storage.uri_secrets import refuse_secret

RUN = ".run"
"""Folder of a run's own files under its output; a folder that holds it is not read as input."""
PARTIAL = ".part"
"""Suffix of local files that are not whole yet; never read."""
PART_BYTES = 1 << 25
"""Most that is read of an object in one request."""

LONGEST_NAME = "x" * 160
"""Longer than any path that is written below an output, a partial file's name included."""

T = TypeVar("T")


@contextmanager
def refused_as_settings() -> Iterator[None]:
    """Turns a refusal of storage into ValueError, bad settings: for use before the first write."""
    try:
        yield
    except (retry.RefusedError, PermissionError) as error:
        raise ValueError(str(error)) from error


class Storage:
    """A folder: a local path, or a URI that pyarrow.fs or fsspec opens (s3://, gs://, …).

    Raises ValueError where the place is not one (`uris.canonical`).

    Methods raise OSError for errors that waiting does not fix, and for others after `patience`
    seconds: of an object store `retry.StorageError`, or `retry.RefusedError` where access is denied
    or the bucket missing. `on_retry` is called with the error of every failed try.
    """

    def __init__(self, uri: str) -> None:
        refuse_secret("storage", uri)
        uri = uris.canonical(uri)
        self.uri = uri.rstrip("/") or "/"
        self.is_local = not uris.is_uri(uri)
        self.patience = retry.PATIENCE_SECONDS
        self.on_retry: Callable[[str], None] = lambda error: None
        if self.is_local:
            self.filesystem: fs.FileSystem = fs.LocalFileSystem()
            self.root = os.path.abspath(uri)
        else:
            self.filesystem, self.root = uris.open_uri(uri)

    def path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    def kind(self, name: str = "") -> str:
        """file, folder or missing."""
        found = self._again(lambda: self.filesystem.get_file_info(self.path(name)).type)
        return {fs.FileType.File: "file", fs.FileType.Directory: "folder"}.get(found, "missing")

    def names(self, folder: str = "") -> list[str]:
        """Whole files directly in a folder, sorted; empty where there is none."""
        names = [info.base_name for info in self.files(folder)]
        return sorted(name for name in names if not name.endswith(PARTIAL))

    def folders(self, folder: str = "") -> list[str]:
        """Names of the folders directly in a folder, sorted; empty where there is none."""
        selector = fs.FileSelector(self.path(folder), allow_not_found=True)
        found = self._again(lambda: self.filesystem.get_file_info(selector))
        return sorted(info.base_name for info in found if info.type == fs.FileType.Directory)

    def files(self, folder: str = "", *, recursive: bool = False) -> list[fs.FileInfo]:
        """Files in a folder, those that are not whole yet too; empty where there is none."""
        selector = fs.FileSelector(self.path(folder), allow_not_found=True, recursive=recursive)
        found = self._again(lambda: self.filesystem.get_file_info(selector))
        return [info for info in found if info.type == fs.FileType.File]

    def read(self, name: str) -> bytes:
        """A whole file. Raises FileNotFoundError where there is none."""

        if not self.is_local:
            with _Repeated(self, name) as source:
                return b"".join(iter(partial(source.read, PART_BYTES), b""))

        def once() -> bytes:
            faults.at("storage.read", name)
            return Path(self.path(name)).read_bytes()

        return self._again(once)

    def open(self, name: str) -> Any:
        """A file for random access, which the caller closes; each read is repeated as in `read`.
        Raises FileNotFoundError where there is none."""
        if self.is_local:
            return self.filesystem.open_input_file(self.path(name))
        return pa.PythonFile(_Repeated(self, name), mode="r")

    def write(self, name: str, content: bytes | pa.Buffer) -> None:
        """Write a whole file; a reader sees the old one or the new one, never a part."""

        def once() -> None:
            faults.at("storage.write", name)
            if self.is_local:
                self._write_locally(name, content)
            else:
                with self.filesystem.open_output_stream(self.path(name), compression=None) as sink:
                    sink.write(content)
            faults.at("storage.written", name)

        self._again(once)

    def _write_locally(self, name: str, content: bytes | pa.Buffer) -> None:
        path = self.path(name)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        # Process ids repeat, on the nodes of a shared file system and among threads.
        partial = f"{path}.{uuid.uuid4().hex}{PARTIAL}"
        try:
            with open(partial, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            faults.at("storage.partial", name)
            os.replace(partial, path)
        except OSError:
            Path(partial).unlink(missing_ok=True)
            raise

    def check_writable(self) -> None:
        """Try, before anything is written, whether files can be made in the folder, or in the
        nearest folder above that exists; nothing stays behind.

        Raises ValueError where that can never be. Of object stores nothing is tried.
        """
        if not self.is_local:
            return
        nearest = self.root
        while not os.path.lexists(nearest):
            nearest = os.path.dirname(nearest)
        if not os.path.isdir(nearest):
            what = "a link to nothing" if os.path.islink(nearest) else "not a folder"
            raise ValueError(f"{self.uri}: {nearest} is {what}; name another place")
        try:
            with suppress(FileNotFoundError, NotADirectoryError):
                os.lstat(f"{self.root}/{LONGEST_NAME}")
            tempfile.TemporaryFile(dir=nearest).close()
        except OSError as error:
            raise ValueError(
                f"{uris.short(self.uri)}: no file can be made in {uris.short(nearest)} "
                f"({error.strerror}); name another place, or make that one writable"
            ) from error

    def check_empty(self) -> None:
        """Raises ValueError where the root is a file or holds one."""
        if self.kind() == "file" or self.files(recursive=True):
            raise ValueError(f"{self.uri}: exists already; name another place or remove it")

    def take_folder(self, folder: Path, *, last: str | None = None) -> None:
        """Write a local folder's files, where nothing may be yet; `last` is written after all
        others.

        An object store shows files as they come; where one cannot be written, those before it go
        again. Raises ValueError where something is there already.
        """
        self.check_empty()
        names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        try:
            for name in sorted(names, key=lambda name: (name == last, name)):
                self.write(name, (folder / name).read_bytes())
        except OSError:
            with suppress(OSError):
                for name in names:
                    self.delete_file(name)
            raise

    def fetch_folder(self, folder: Path, wanted: Callable[[str], bool]) -> None:
        """Read the whole files directly under the root whose names are wanted into a local
        folder that is there."""
        for name in filter(wanted, self.names()):
            (folder / name).write_bytes(self.read(name))

    def move(self, name: str, new: str) -> None:
        """Give a file another name in place of any file that has it. In an object store it is
        copied first, so that both may be seen for a moment."""
        path, new_path = self.path(name), self.path(new)
        if self.is_local:
            Path(new_path).parent.mkdir(parents=True, exist_ok=True)
            self._again(lambda: os.replace(path, new_path))
            return
        self._again(lambda: self.filesystem.copy_file(path, new_path))
        self.delete_file(name)

    def delete_file(self, name: str) -> None:
        """Remove a file; nothing happens where there is none."""
        if self.kind(name) == "file":
            self._delete(self.filesystem.delete_file, name)

    def delete_folder(self, folder: str) -> None:
        """Remove a folder and all in it; nothing happens where there is none."""
        if self.kind(folder) == "folder":
            self._delete(self.filesystem.delete_dir, folder)

    def _delete(self, delete: Callable[[str], None], name: str) -> None:
        # Gone already: the answer to a first try was lost.
        with suppress(FileNotFoundError):
            self._again(lambda: delete(self.path(name)))

    def _again(self, once: Callable[[], T]) -> T:
        uri = None if self.is_local else self.uri
        return retry.again(once, uri, patience=self.patience, on_retry=self.on_retry)


class _Repeated(io.RawIOBase):
    """An object whose reads are repeated one by one."""

    def __init__(self, storage: Storage, name: str) -> None:
        super().__init__()
        self._storage, self._name, self._at = storage, name, 0
        path = storage.path(name)
        self._file: Any = storage._again(lambda: storage.filesystem.open_input_file(path))
        self._size: int = storage._again(self._file.size)

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self._at)
        wanted = left if size is None or size < 0 else min(size, left)

        def once() -> bytes:
            faults.at("storage.read", self._name)
            content: bytes = self._file.read_at(wanted, self._at)
            if len(content) < wanted:
                raise OSError(f"{self._name}: {len(content)} bytes came, not {wanted}")
            return content

        content = self._storage._again(once)
        self._at += len(content)
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
