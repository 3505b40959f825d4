"""Digests of large files: computed once, kept by path, size and times, never trusted wrongly."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from lrd.models import digests
from lrd.models.digests import blob_sha256, sha256_of

LONG_AGO = 1_700_000_000


@pytest.fixture
def reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read for their digests; a file of 8 bytes is large here."""
    found: list[Path] = []
    read = digests._read

    def spied(file: Path, on_bytes: Any) -> str:
        found.append(file)
        return read(file, on_bytes)

    monkeypatch.setattr(digests, "_read", spied)
    monkeypatch.setattr(digests, "KEPT_BYTES", 8)
    # A file's ctime cannot be set, so the clock is.
    monkeypatch.setattr(digests.time, "time", lambda: os.stat(tmp_path).st_ctime + 1000)
    monkeypatch.setenv("LRD_CACHE", str(tmp_path / "cache"))
    return found


def written(file: Path, content: bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_file_is_read_once(reads: list[Path], tmp_path: Path) -> None:
    contents = [b"eight bytes", b"other bytes!", b"small"]
    files = [written(tmp_path / f"{n}.safetensors", c) for n, c in enumerate(contents)]
    for _ in range(3):
        assert sha256_of(files) == list(map(sha256, contents))
    assert sorted(reads) == sorted([*files, files[2], files[2]]), "small ones are read faster"


def change_content(file: Path) -> Path:
    return written(file, b"9876543210")


def keep_times(file: Path) -> Path:
    """As `cp -p` or rsync over it does: size and time of change stay."""
    about = file.stat()
    written(file, b"9876543210")
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
    return file


def replace_file(file: Path) -> Path:
    about = file.stat()
    other = written(file.with_name("other"), b"9876543210")
    os.utime(other, ns=(about.st_atime_ns, about.st_mtime_ns))
    return other.replace(file)


def point_elsewhere(file: Path) -> Path:
    other = written(file.with_name("other"), b"9876543210")
    file.unlink()
    file.symlink_to(other)
    return file


@pytest.mark.parametrize("change", [change_content, keep_times, replace_file, point_elsewhere])
def test_a_file_that_changed_is_read_again(change: Any, reads: list[Path], tmp_path: Path) -> None:
    file = written(tmp_path / "model.safetensors", b"0123456789")
    assert sha256_of([file]) == [sha256(b"0123456789")]
    change(file)
    assert sha256_of([file]) == [sha256(b"9876543210")]
    assert len(reads) == 2


def test_the_digest_of_a_file_that_has_just_changed_is_not_kept(
    reads: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its next change may come within the clock's tick and leave its times as they are."""
    file = written(tmp_path / "model.safetensors", b"0123456789")
    monkeypatch.setattr(digests.time, "time", lambda: file.stat().st_ctime + 1)
    assert sha256_of([file]) == sha256_of([file])
    assert len(reads) == 2
    assert not (tmp_path / "cache").exists()


def read_only(cache: Path) -> None:
    cache.write_text("a file where a folder is wanted")


def garbage(cache: Path) -> None:
    for kept in (cache / "digests").iterdir():
        kept.write_bytes(b"\xff\x00 not a digest")


def half(cache: Path) -> None:
    for kept in (cache / "digests").iterdir():
        kept.write_text(kept.read_text()[:40])


def folders(cache: Path) -> None:
    for kept in (cache / "digests").iterdir():
        kept.unlink()
        kept.mkdir()


@pytest.mark.parametrize("damage", [read_only, garbage, half, folders])
def test_a_cache_that_cannot_be_used_costs_a_read(
    damage: Any, reads: list[Path], tmp_path: Path
) -> None:
    file = written(tmp_path / "model.safetensors", b"0123456789")
    if damage is not read_only:
        sha256_of([file])
    damage(tmp_path / "cache")
    assert sha256_of([file]) == [sha256(b"0123456789")]
    assert reads.count(file) == (1 if damage is read_only else 2)


def test_nothing_half_written_stays(reads: list[Path], tmp_path: Path) -> None:
    files = [written(tmp_path / f"{n}.safetensors", b"0123456789%d" % n) for n in range(20)]
    sha256_of(files)
    kept = list((tmp_path / "cache" / "digests").iterdir())
    assert len(kept) == 20
    assert all(len(file.read_text()) == 64 for file in kept)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sha256_of([tmp_path / "none"])


def test_a_blob_of_a_hub_cache_is_named_by_its_digest(reads: list[Path], tmp_path: Path) -> None:
    content = b"weights of a model"
    large = written(tmp_path / "models--a--b/blobs" / sha256(content), content)
    small = written(tmp_path / "models--a--b/blobs" / ("a" * 40), b"{} and more")
    snapshot = tmp_path / "models--a--b/snapshots/main"
    snapshot.mkdir(parents=True)
    for name, blob in (("model.safetensors", large), ("config.json", small)):
        (snapshot / name).symlink_to(blob)
    assert blob_sha256(snapshot / "model.safetensors") == sha256(content)
    assert blob_sha256(snapshot / "config.json") is None
    assert blob_sha256(large) is None, "not by way of a snapshot: any file may be called so"
    files = [snapshot / "model.safetensors", snapshot / "config.json"]
    assert sha256_of(files) == [sha256(content), sha256(b"{} and more")]
    assert reads == [snapshot / "config.json"]
