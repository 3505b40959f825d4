"""Files under one root, local or in an object store: list, read, write whole or not at all.

Knows nothing of what the files hold. A file with its final name is whole: local files are
written beside their place, synced and renamed; object stores take one PUT. What may pass by
itself (a lost connection, throttling) is tried again with growing, random pauses.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
from pyarrow import fs
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay
from tenacity.wait import wait_random_exponential

from pipeline import faults

PARTIAL = ".part"
"""Suffix of local files that are not whole yet; never read."""
PATIENCE_SECONDS = 300.0
"""How long one call goes on trying."""
LONGEST_PAUSE = 15.0
FOR_GOOD = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    FileExistsError,
)
"""What waiting does not mend. fsspec raises these without a number."""
FOR_GOOD_NUMBERS = (errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG)
FOR_GOOD_WORDS = ("ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY", "SIGNATURE", "expired")
"""The same in object stores' words, which come without a number."""

T = TypeVar("T")


class Storage:
    """A folder: a local path, or a URI that pyarrow.fs or fsspec opens (s3://, gs://, …).

    Methods raise OSError for what waiting does not mend and for what lasted longer than
    `patience` seconds; on_retry is told of every failed try.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/") if uri != "/" else uri
        self.is_local = "://" not in uri or uri.startswith("file://")
        self.patience = PATIENCE_SECONDS
        self.on_retry: Callable[[str], None] = lambda error: None
        if self.is_local:
            self.filesystem: fs.FileSystem = fs.LocalFileSystem()
            self.root = os.path.abspath(uri.removeprefix("file://"))
            return
        try:
            self.filesystem, self.root = fs.FileSystem.from_uri(uri)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            try:
                opened, self.root = fsspec.core.url_to_fs(uri)
            except (ValueError, ImportError) as error:
                raise ValueError(f"{uri}: no filesystem opens it ({error})") from error
            self.filesystem = fs.PyFileSystem(fs.FSSpecHandler(opened))

    def path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    def kind(self, name: str = "") -> str:
        """file, folder or missing."""
        found = self._again(lambda: self.filesystem.get_file_info(self.path(name)).type)
        return {fs.FileType.File: "file", fs.FileType.Directory: "folder"}.get(found, "missing")

    def names(self, folder: str = "") -> list[str]:
        """Whole files directly in a folder, sorted; empty where there is none."""
        selector = fs.FileSelector(self.path(folder), allow_not_found=True)
        found = self._again(lambda: self.filesystem.get_file_info(selector))
        return sorted(
            info.base_name
            for info in found
            if info.type == fs.FileType.File and not info.base_name.endswith(PARTIAL)
        )

    def read(self, name: str) -> bytes:
        """A whole file. Raises FileNotFoundError where there is none."""

        def once() -> bytes:
            faults.at("storage.read", name)
            with self.filesystem.open_input_stream(self.path(name), compression=None) as stream:
                content: bytes = stream.read()
            return content

        return self._again(once)

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

    def delete_file(self, name: str) -> None:
        """Remove a file; nothing happens where there is none."""
        if self.kind(name) == "file":
            self._again(lambda: self.filesystem.delete_file(self.path(name)))

    def delete_folder(self, folder: str) -> None:
        """Remove a folder and all in it; nothing happens where there is none."""
        if self.kind(folder) == "folder":
            self._again(lambda: self.filesystem.delete_dir(self.path(folder)))

    def _again(self, once: Callable[[], T]) -> T:
        def told(state: RetryCallState) -> None:
            assert state.outcome is not None
            self.on_retry(str(state.outcome.exception()))

        retrying: Any = Retrying(
            retry=retry_if_exception(_may_pass),
            wait=wait_random_exponential(multiplier=0.5, max=LONGEST_PAUSE),
            stop=stop_after_delay(self.patience),
            before_sleep=told,
            reraise=True,
        )
        result: T = retrying(once)
        return result


def _may_pass(error: BaseException) -> bool:
    """Whether trying again may help."""
    if not isinstance(error, OSError) or isinstance(error, FOR_GOOD):
        return False
    if error.errno in FOR_GOOD_NUMBERS:
        return False
    return not any(word.lower() in str(error).lower() for word in FOR_GOOD_WORDS)
