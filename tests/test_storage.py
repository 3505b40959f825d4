"""Storage that fails: what is tried again, what is not, and what is left behind."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lrd import remote
from pipeline import faults
from pipeline.storage import Storage


@pytest.fixture(autouse=True)
def no_faults_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(remote, "LONGEST_PAUSE", 0.02)
    yield
    faults.load(None)


def ask_for(**rule: object) -> None:
    faults.load(json.dumps([rule]))


def test_what_may_pass_is_tried_again(tmp_path: Path) -> None:
    place = Storage(str(tmp_path))
    told: list[str] = []
    place.on_retry = told.append
    ask_for(at="storage.write", do="raise", times=3)
    place.write("a/b", b"content")
    assert place.read("a/b") == b"content"
    assert len(told) == 3
    assert "Input/output error" in told[0]
    ask_for(at="storage.read", do="raise", times=2)
    assert place.read("a/b") == b"content"
    assert len(told) == 5


def test_what_lasts_is_raised_when_patience_ends(tmp_path: Path) -> None:
    place = Storage(str(tmp_path))
    place.patience = 0.2
    ask_for(at="storage.write", do="raise")
    with pytest.raises(OSError, match="asked for"):
        place.write("a", b"")


@pytest.mark.parametrize("name", ["ENOSPC", "EACCES", "EROFS"])
def test_what_waiting_does_not_mend_is_raised_at_once(tmp_path: Path, name: str) -> None:
    place = Storage(str(tmp_path))
    place.write("a", b"old")
    told: list[str] = []
    place.on_retry = told.append
    ask_for(at="storage.partial", do="raise", error=name)
    with pytest.raises(OSError, match=os.strerror(getattr(errno, name))):
        place.write("a", b"new")
    assert not told
    assert place.read("a") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"], "no partial file may stay"


def test_a_missing_file_is_missing_at_once(tmp_path: Path) -> None:
    place = Storage(str(tmp_path))
    told: list[str] = []
    place.on_retry = told.append
    with pytest.raises(FileNotFoundError):
        place.read("nothing")
    assert not told


def test_object_stores_words_are_understood() -> None:
    assert remote.may_pass(OSError("AWS Error SLOW_DOWN during PutObject: reduce your rate"))
    assert not remote.may_pass(OSError("AWS Error ACCESS_DENIED during PutObject: no"))
    assert not remote.may_pass(ValueError("other"))
