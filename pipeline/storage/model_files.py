"""Copies a checkpoint's files to the local disk, once on each machine.

A checkpoint under a URI (s3://bucket/folder, gs://…) is read into a folder under `LRD_CACHE`
[~/.cache/lrd], whose name depends on the URI and on the files' sizes and times, so that a changed
checkpoint is read again. Replicas of one machine that start together wait for the one that reads.

A folder on a disk, NFS or Lustre is used in place: the kernel caches the pages of a file for every
process that maps it. File systems in user space (FUSE: buckets mounted as folders) may drop the
pages at every open, and a checkpoint is opened once for each tensor, so the first replica of a
node copies such a folder to the node's disk. Hub ids are left to huggingface_hub and its cache.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock
from pyarrow import fs

from lrd.models.hub import FILES
from lrd.models.registry import EMBEDDED
from pipeline.storage import retry, uris

FILES_AT_A_TIME = 4
CHUNK_BYTES = 1 << 23
CACHE = "LRD_CACHE"
"""Environment variable that names the folder of copies."""


def local_model(model: str) -> str:
    """What `lrd.load_model` takes: the local folder of a URI, the path of a folder, any other name
    as it is. Raises ValueError as `uris.canonical` and `fetch`."""
    model = uris.canonical(model)
    return str(fetch(model)) if uris.is_uri(model) else model


def model_for_workers(model: str) -> str:
    """A checkpoint's name as it holds in processes that run in other folders: a path is absolute
    then, and an embedded model's name stays as it is. Raises ValueError as `uris.canonical`."""
    model = uris.canonical(model)
    is_name = model in EMBEDDED or uris.is_uri(model)
    return model if is_name or not Path(model).is_dir() else os.path.abspath(model)


def fetch(uri: str, files: Sequence[str] = FILES) -> Path:
    """The local folder of a checkpoint under a URI; copied if this machine has no copy.

    files: patterns of the names to have. Raises ValueError where there is no such folder or it
    may not be read, OSError where the store does not answer or the disk does not hold it.
    """
    try:
        filesystem, root = uris.open_uri(uri)
        selector = fs.FileSelector(root, allow_not_found=True)
        found = [
            info
            for info in retry.again(lambda: filesystem.get_file_info(selector), uri)
            if info.type == fs.FileType.File
            and any(fnmatch(info.base_name, pattern) for pattern in files)
        ]
    except retry.RefusedError as error:
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
    source = retry.again(lambda: filesystem.open_input_file(info.path), uri)
    with source, target.open("wb") as copy:
        for at in range(0, info.size, CHUNK_BYTES):
            copy.write(_read_part(source, at, min(CHUNK_BYTES, info.size - at), uri))


def _read_part(source: Any, at: int, size: int, uri: str) -> bytes:
    def once() -> bytes:
        content: bytes = source.read_at(size, at)
        if len(content) < size:
            raise OSError(f"{uri}: {len(content)} bytes came, not {size}")
        return content

    return retry.again(once, uri)


def cache_folder() -> Path:
    """The folder of copies on this machine."""
    return Path(os.environ.get(CACHE) or Path.home() / ".cache" / "lrd").expanduser()


def kept_once(name: str, fill: Callable[[Path], None]) -> Path:
    """The folder of this name in the cache; filled if this machine has none.

    fill: writes into the empty folder that it gets, which is renamed once it is whole. Processes
    that need the same folder wait for the one that fills it. Raises OSError where it cannot be
    made, and what `fill` raises.
    """
    folder = cache_folder() / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            partial = folder.with_name(f"{folder.name}.part")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            fill(partial)
            partial.rename(folder)
    return folder


def node_folder(model: str) -> str:
    """The model itself, or the node's copy of its folder.

    A copy is identified by its files' path, sizes and times; old ones may be deleted at any time.
    Raises OSError where it cannot be made.
    """
    if model in EMBEDDED or not Path(model).is_dir() or not in_user_space(Path(model)):
        return model
    files = sorted({file for pattern in FILES for file in Path(model).glob(pattern)})
    digest = hashlib.sha256()
    for file in files:
        about = file.stat()
        digest.update(f"{file.resolve()} {about.st_size} {about.st_mtime_ns}\n".encode())

    def copy(folder: Path) -> None:
        for file in files:
            shutil.copyfile(file, folder / file.name)

    return str(kept_once(digest.hexdigest()[:32], copy))


def in_user_space(path: Path, partitions: list[Any] | None = None) -> bool:
    """Whether a folder is on a FUSE file system. partitions: psutil's, those of this machine
    where they are not given."""
    if partitions is None:
        partitions = psutil.disk_partitions(all=True)
    real = path.resolve()
    holding = [part for part in partitions if real.is_relative_to(part.mountpoint)]
    # What was mounted later covers what was there.
    innermost = max(reversed(holding), key=lambda part: len(part.mountpoint), default=None)
    # fuseblk: a disk of this machine.
    return innermost is not None and innermost.fstype.partition(".")[0] == "fuse"
