"""Files under one root, local or in an object store: list, read, write whole or not at all.

Knows nothing of what the files hold. A file with its final name is whole: local files are
written beside their place, synced and renamed; object stores take one PUT.
"""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pyarrow as pa
from pyarrow import fs

PARTIAL = ".part"
"""Suffix of local files that are not whole yet; never read."""


class Storage:
    """A folder: a local path, or a URI that pyarrow.fs or fsspec opens (s3://, gs://, …)."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/") if uri != "/" else uri
        self.is_local = "://" not in uri or uri.startswith("file://")
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
        found = self.filesystem.get_file_info(self.path(name)).type
        return {fs.FileType.File: "file", fs.FileType.Directory: "folder"}.get(found, "missing")

    def names(self, folder: str = "") -> list[str]:
        """Whole files directly in a folder, sorted; empty where there is none."""
        selector = fs.FileSelector(self.path(folder), allow_not_found=True)
        found = self.filesystem.get_file_info(selector)
        return sorted(
            info.base_name
            for info in found
            if info.type == fs.FileType.File and not info.base_name.endswith(PARTIAL)
        )

    def read(self, name: str) -> bytes:
        with self.filesystem.open_input_stream(self.path(name), compression=None) as stream:
            content: bytes = stream.read()
        return content

    def write(self, name: str, content: bytes | pa.Buffer) -> None:
        """Write a whole file; a reader sees the old one or the new one, never a part."""
        path = self.path(name)
        if not self.is_local:
            with self.filesystem.open_output_stream(path, compression=None) as stream:
                stream.write(content)
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        partial = f"{path}.{os.getpid()}{PARTIAL}"
        with open(partial, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)

    def delete_folder(self, folder: str) -> None:
        """Remove a folder and all in it; nothing happens where there is none."""
        if self.kind(folder) == "folder":
            self.filesystem.delete_dir(self.path(folder))
