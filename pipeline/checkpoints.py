"""A checkpoint under a URI (s3://bucket/folder, gs://…) → a local folder with the files that
loading reads.

Each machine reads a checkpoint once: into a folder under `LRD_CACHE` [~/.cache/lrd], which is
named by the URI and by the files' sizes and times, so that a changed checkpoint is read again.
Replicas of one machine that start together wait for the one that reads. Knows nothing of what
the files hold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pyarrow import fs

from lrd.models.hub import FILES
from pipeline import remote
from pipeline.weights import kept_once

FILES_AT_A_TIME = 4
CHUNK_BYTES = 1 << 23


def local_model(model: str) -> str:
    """What `lrd.load_model` takes: the local folder of a URI, any other name as it is."""
    return str(fetch(model)) if remote.is_uri(model) else model


def fetch(uri: str, files: Sequence[str] = FILES) -> Path:
    """The local folder of a checkpoint under a URI, read where this machine lacks it.

    files: patterns of the names to have. Raises ValueError where there is no such folder or it
    may not be read, OSError where the store does not answer or the disk does not hold it.
    """
    try:
        filesystem, root = remote.open_uri(uri)
        selector = fs.FileSelector(root, allow_not_found=True)
        found = [
            info
            for info in remote.again(lambda: filesystem.get_file_info(selector), uri)
            if info.type == fs.FileType.File
            and any(fnmatch(info.base_name, pattern) for pattern in files)
        ]
    except remote.RefusedError as error:
        raise ValueError(str(error)) from error
    if not found:
        raise ValueError(f"{uri}: no checkpoint there (no config.json, no safetensors); check it")
    versions = sorted((info.base_name, info.size, info.mtime_ns) for info in found)
    name = hashlib.sha256(repr((uri, versions)).encode()).hexdigest()[:24]
    return kept_once(
        f"checkpoints/{name}", lambda folder: _read_all(filesystem, found, folder, uri)
    )


def _read_all(filesystem: Any, found: list[fs.FileInfo], folder: Path, uri: str) -> None:
    with ThreadPoolExecutor(FILES_AT_A_TIME) as pool:
        copies = [
            pool.submit(_read_one, filesystem, info, folder / info.base_name, uri) for info in found
        ]
        for copy in copies:
            copy.result()


def _read_one(filesystem: Any, info: fs.FileInfo, target: Path, uri: str) -> None:
    source = remote.again(lambda: filesystem.open_input_file(info.path), uri)
    with source, target.open("wb") as copy:
        for at in range(0, info.size, CHUNK_BYTES):
            copy.write(_read_part(source, at, min(CHUNK_BYTES, info.size - at), uri))


def _read_part(source: Any, at: int, size: int, uri: str) -> bytes:
    def once() -> bytes:
        content: bytes = source.read_at(size, at)
        if len(content) < size:
            raise OSError(f"{uri}: {len(content)} bytes came, not {size}")
        return content

    return remote.again(once, uri)
