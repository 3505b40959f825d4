"""A checkpoint's folder → one that all replicas of a node read once between them.

On disks, NFS and Lustre there is nothing to do: the kernel keeps the pages of a file for every
process that maps it. File systems in user space (buckets mounted as folders) may lose them at
every open, and a checkpoint is opened for each tensor: from there the first replica of a node
copies it to the node's disk, the others wait, and all read the copy. Hub ids are not looked at,
huggingface_hub locks its cache itself.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from lrd.models.hub import FILES

CACHE = "LRD_CACHE"
"""Environment variable that names the folder of copies."""


def cache_folder() -> Path:
    """The folder of copies on this machine."""
    return Path(os.environ.get(CACHE) or Path.home() / ".cache" / "lrd").expanduser()


def kept_once(name: str, fill: Callable[[Path], None]) -> Path:
    """The folder of this name among the copies, filled where this machine lacks it.

    fill: writes into the empty folder that it is given, which gets its name when it is whole.
    Processes that want one folder wait for the one that fills it. Raises OSError where it cannot
    be made, and what `fill` raises.
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

    A copy belongs to its files' place, sizes and times; old ones may be deleted at will. Raises
    OSError where it cannot be made.
    """
    if not Path(model).is_dir() or not in_user_space(Path(model)):
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
