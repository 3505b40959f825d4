"""SHA-256 digests of large files, each computed once.

The digest of a file is kept under its path, size and times of change in `LRD_CACHE`
[~/.cache/lrd], so that a second run does not read 16 GB of weights again. Files of a Hugging Face
cache are named by their SHA-256 and are not read at all.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

CACHE = "LRD_CACHE"
"""Environment variable that names the cache's folder."""
FILES_AT_A_TIME = 4
KEPT_BYTES = 1 << 24
"""A smaller file is read faster than its digest is found."""
SETTLED_SECONDS = 2.0
"""Digests of files that changed later than this long ago are not kept: the clock of file times is
coarse, and a second change could leave them as they are."""
READ_BYTES = 1 << 20
_SHA256 = re.compile("[0-9a-f]{64}")

OnBytes = Callable[[int, int], None]
"""Called with the bytes of which the digest has become known, and those of all files; from several
threads."""


def sha256_of(files: Sequence[Path], on_bytes: OnBytes = lambda new, total: None) -> list[str]:
    """The SHA-256 of each file, as hex; several files are read at a time. Raises OSError."""
    total = sum(file.stat().st_size for file in files)
    with ThreadPoolExecutor(FILES_AT_A_TIME) as pool:
        return list(pool.map(lambda file: _sha256(file, lambda new: on_bytes(new, total)), files))


def blob_sha256(file: Path) -> str | None:
    """The SHA-256 that a Hugging Face cache names a file by; None for any other file.

    The cache keeps a file of Git LFS as `blobs/SHA256` with a link in `snapshots/`; the blobs of
    small files have shorter names.
    """
    blob = file.resolve()
    in_cache = file.is_symlink() and blob.parent.name == "blobs"
    return blob.name if in_cache and _SHA256.fullmatch(blob.name) else None


def _sha256(file: Path, on_bytes: Callable[[int], None]) -> str:
    about = file.stat()
    if named := blob_sha256(file):
        on_bytes(about.st_size)
        return named
    if about.st_size < KEPT_BYTES:
        return _read(file, on_bytes)
    key = f"{file.resolve()} {about.st_size} {about.st_mtime_ns} {about.st_ctime_ns}"
    kept = _folder() / hashlib.sha256(os.fsencode(key)).hexdigest()[:32]
    with suppress(OSError, UnicodeDecodeError):
        if _SHA256.fullmatch(found := kept.read_text(encoding="ascii")):
            on_bytes(about.st_size)
            return found
    digest = _read(file, on_bytes)
    if time.time() - max(about.st_mtime, about.st_ctime) > SETTLED_SECONDS:
        _keep(kept, digest)
    return digest


def _read(file: Path, on_bytes: Callable[[int], None]) -> str:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(READ_BYTES))
    with file.open("rb", buffering=0) as stream:
        while size := stream.readinto(buffer):
            digest.update(buffer[:size])
            on_bytes(size)
    return digest.hexdigest()


def _folder() -> Path:
    return Path(os.path.expanduser(os.environ.get(CACHE) or "~/.cache/lrd")) / "digests"


def _keep(kept: Path, digest: str) -> None:
    partial = kept.with_name(f"{kept.name}.{uuid4().hex}")
    with suppress(OSError):  # Where nothing can be kept, it is computed again.
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(digest, encoding="ascii")
        partial.replace(kept)
