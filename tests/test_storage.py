"""Storage that fails: what is tried again, what is not, and what is left behind."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import faults
from pipeline.storage import retry, uris
from pipeline.storage.storage import Storage


@pytest.fixture(autouse=True)
def no_faults_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(retry, "LONGEST_PAUSE", 0.02)
    yield
    faults.load(None)


def ask_for(**rule: object) -> None:
    faults.load(json.dumps([rule]))


def test_what_may_pass_is_tried_again(tmp_path: Path) -> None:
    place = Storage(str(tmp_path))
    retries: list[str] = []
    place.on_retry = retries.append
    ask_for(at="storage.write", do="raise", times=3)
    place.write("a/b", b"content")
    assert place.read("a/b") == b"content"
    assert len(retries) == 3
    assert "Input/output error" in retries[0]
    ask_for(at="storage.read", do="raise", times=2)
    assert place.read("a/b") == b"content"
    assert len(retries) == 5


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
    retries: list[str] = []
    place.on_retry = retries.append
    ask_for(at="storage.partial", do="raise", error=name)
    with pytest.raises(OSError, match=os.strerror(getattr(errno, name))):
        place.write("a", b"new")
    assert not retries
    assert place.read("a") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"], "no partial file may stay"


def test_a_missing_file_is_missing_at_once(tmp_path: Path) -> None:
    place = Storage(str(tmp_path))
    retries: list[str] = []
    place.on_retry = retries.append
    with pytest.raises(FileNotFoundError):
        place.read("nothing")
    assert not retries


@pytest.mark.parametrize(
    ("words", "passes"),
    [
        ("AWS Error SLOW_DOWN during PutObject operation: reduce your rate", True),
        ("key 'ACCESS_DENIED/ExpiredToken': AWS Error SLOW_DOWN during PutObject operation", True),
        ("AWS Error ACCESS_DENIED during PutObject operation: no", False),
        ("AWS Error NO_SUCH_BUCKET during CreateMultipartUpload operation: none", False),
        ("AWS Error NO_SUCH_UPLOAD during UploadPart operation: none", True),
        ("AWS Error UNKNOWN (HTTP status 400): Unable to parse ExceptionName: ExpiredToken", False),
    ],
)
def test_object_stores_words_are_understood(words: str, passes: bool) -> None:
    assert retry.may_pass(OSError(words)) == passes


def test_only_a_failing_storage_is_asked_again() -> None:
    assert not retry.may_pass(ValueError("other"))
    assert not retry.may_pass(retry.RefusedError("for good"))


@pytest.mark.parametrize(
    ("folder", "name", "place"),
    [
        ("out", "a.html", "out/a.html"),
        ("/out", "a.html", "/out/a.html"),
        ("s3://bucket/out", "a.html", "s3://bucket/out/a.html"),
        ("s3://bucket/out?region=eu", "a.html", "s3://bucket/out/a.html?region=eu"),
        ("is it?", "a.html", "is it?/a.html"),
    ],
)
def test_names_are_put_behind_folders_and_taken_off(folder: str, name: str, place: str) -> None:
    assert uris.child(folder, name) == place
    assert uris.parent(place) == (folder, name)


def test_a_place_with_a_secret_is_not_opened() -> None:
    with pytest.raises(ValueError, match="carries a secret") as refused:
        Storage("s3://AKIA1234:abcdef@bucket/out")
    assert "abcdef" not in str(refused.value)
