"""A checkpoint is read once for all replicas of a node: kept by the kernel, or copied."""

from __future__ import annotations

import errno
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.checkpoints import SMALL_LLADA, random_tensors, write
from helpers.loads import bytes_read

from lrd.models.checkpoint import fingerprint
from pipeline.storage import model_files
from pipeline.storage.model_files import in_user_space, node_folder

WIDE = {
    **SMALL_LLADA,
    "d_model": 256,
    "mlp_hidden_size": 1024,
    "vocab_size": 4000,
    "embedding_size": 4096,
}
"""Weights of 17 MB, so that they stand out from the rest that a start reads."""


def test_replicas_of_a_node_read_weights_once(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", WIDE, random_tensors(WIDE))
    size = (folder / "model.safetensors").stat().st_size
    (alone,), three = bytes_read(str(folder), 1, 3)
    if alone < size:
        pytest.skip("reads are not counted on this file system")
    assert size <= sum(three) < 1.2 * size


@dataclass
class Mounted:
    """As psutil tells of it."""

    mountpoint: str
    fstype: str


@pytest.mark.parametrize(
    ("mounts", "expected"),
    [
        ({"/": "ext4", "/models": "fuse.gcsfuse"}, True),
        ({"/": "ext4", "/models": "fuse"}, True),
        ({"/": "ext4", "/models/llada": "nfs4", "/models": "fuse.s3fs"}, False),
        ({"/": "ext4", "/models": "fuseblk"}, False),
        ({"/": "overlay", "/mod": "fuse.s3fs"}, False),
        ({}, False),
    ],
)
def test_file_systems_in_user_space_are_known(mounts: dict[str, str], expected: bool) -> None:
    found = [Mounted(*mount) for mount in mounts.items()]
    assert in_user_space(Path("/models/llada"), found) == expected


def test_the_last_of_two_mounts_on_one_folder_counts() -> None:
    both = [Mounted("/models", "ext4"), Mounted("/models", "fuse.s3fs")]
    assert in_user_space(Path("/models/llada"), both)
    assert not in_user_space(Path("/models/llada"), both[::-1])


def test_a_folder_in_user_space_is_copied_once_a_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "bucket", SMALL_LLADA, random_tensors(SMALL_LLADA))
    (source / "modeling_llada.py").write_text("raise SystemExit")
    assert node_folder(str(source)) == str(source), "a disk's folder stays where it is"
    assert node_folder("some/model") == "some/model"
    copied: list[str] = []

    def copyfile(file: Path, to: Path) -> None:
        copied.append(file.name)
        to.write_bytes(file.read_bytes())

    monkeypatch.setattr(model_files, "in_user_space", lambda path: True)
    monkeypatch.setattr("shutil.copyfile", copyfile)
    monkeypatch.setenv(model_files.CACHE, str(tmp_path / "cache"))
    with ThreadPoolExecutor(4) as pool:
        (folder,) = set(pool.map(node_folder, [str(source)] * 4))
    assert sorted(copied) == ["config.json", "model.safetensors"]
    assert Path(folder).parent == tmp_path / "cache"
    assert fingerprint(folder) == fingerprint(source)

    write(source, SMALL_LLADA, {k: 2 * v for k, v in random_tensors(SMALL_LLADA).items()})
    again = node_folder(str(source))
    assert again != folder
    assert fingerprint(again) == fingerprint(source) != fingerprint(folder)


def test_a_copy_that_was_broken_off_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "bucket", SMALL_LLADA, random_tensors(SMALL_LLADA))
    monkeypatch.setattr(model_files, "in_user_space", lambda path: True)
    monkeypatch.setenv(model_files.CACHE, str(tmp_path / "cache"))
    real = shutil.copyfile

    def full(file: Path, to: Path) -> None:
        if file.suffix == ".safetensors":
            to.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(to))
        real(file, to)

    with monkeypatch.context() as patched:
        patched.setattr("shutil.copyfile", full)
        with pytest.raises(OSError, match="No space left"):
            node_folder(str(source))
    assert fingerprint(node_folder(str(source))) == fingerprint(source)
