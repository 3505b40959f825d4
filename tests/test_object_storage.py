"""Against a real S3 server: what storage promises, leases, a run, every command, every refusal."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import s3
from helpers.runs import MadeRun

from jobs import cli
from lrd.models.checkpoint import fingerprint
from lrd.models.registry import TINY
from pipeline.output import lease as leases
from pipeline.output.lease import Lease, LeaseLostError
from pipeline.output.run_folder import read_lease
from pipeline.storage import model_files, retry, uris
from pipeline.storage.storage import Storage

pytestmark = s3.needs_server
BEAT = 0.2


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    """A server with the bucket `bucket`."""
    with s3.server() as address:
        s3.make_bucket(address, "bucket")
        yield address


@pytest.fixture(scope="module")
def faults(upstream: str) -> Iterator[s3.Faults]:
    """What the proxy does that this process takes for S3."""
    faults = s3.Faults()
    with s3.proxy(upstream, faults) as address, s3.as_environment(s3.environment(address)):
        yield faults


@pytest.fixture(autouse=True)
def calm(faults: s3.Faults, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(retry, "LONGEST_PAUSE", 0.05)
    monkeypatch.setattr(retry, "PATIENCE_SECONDS", 60.0)
    yield
    faults.reset()


@pytest.fixture
def place(tmp_path: Path) -> str:
    """A folder of the bucket that is this test's own."""
    return f"s3://bucket/{tmp_path.name}"


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, place: str, tmp_path: Path) -> Storage:
    return Storage(place if request.param == "s3" else str(tmp_path / "out"))


def lrd(words: list[str]) -> int:
    """A command's exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["lrd", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return int(ended.value.code or 0)


def upload(folder: Path, uri: str) -> None:
    storage = Storage(uri)
    for file in folder.rglob("*"):
        if file.is_file():
            storage.write(str(file.relative_to(folder)), file.read_bytes())


def test_the_same_holds_on_any_storage(storage: Storage) -> None:
    assert (storage.kind(), storage.names(), storage.names("data")) == ("missing", [], [])
    with pytest.raises(FileNotFoundError):
        storage.read("data/a")
    storage.write("data/a", b"first")
    storage.write("data/a", pa.py_buffer(b"second"))
    storage.write("data/deep/b", b"")
    assert storage.read("data/a") == b"second"
    assert storage.read("data/deep/b") == b""
    kinds = [storage.kind(name) for name in ("", "data", "data/a", "data/deep", "data/none")]
    assert kinds == ["folder", "folder", "file", "folder", "missing"]
    assert storage.names("data") == ["a"]
    assert len(storage.files(recursive=True)) == 2
    with storage.open("data/a") as file:
        assert (file.seek(3), file.read(), file.seek(0), file.read(3)) == (3, b"ond", 0, b"sec")
    storage.delete_folder("data/deep")
    storage.delete_file("data/none")
    storage.delete_folder("none")
    assert storage.names("data/deep") == []
    assert storage.names("data") == ["a"]


def test_every_failure_of_a_request_is_repeated(faults: s3.Faults, place: str) -> None:
    storage = Storage(place)
    content = os.urandom(11 << 20)  # Two parts.
    faults.share = 0.3
    storage.write("large", content)
    assert storage.read("large") == content
    for number in range(5):
        storage.write(f"small-{number}", b"%d" % number)
        with storage.open(f"small-{number}") as file:
            assert file.read() == b"%d" % number
    assert storage.names() == ["large", *(f"small-{number}" for number in range(5))]
    storage.delete_folder("")
    assert storage.names() == []
    assert set(faults.failed) == set(s3.FAILURES)


def test_an_upload_that_dies_leaves_nothing_to_see(faults: s3.Faults, place: str) -> None:
    storage = Storage(place)
    storage.write("whole", b"old")
    storage.patience = 0.1
    faults.share, faults.only = 1.0, "broken"
    faults.match = "PUT *partNumber=2*"  # The first part is there by then.
    for name in ("whole", "new"):
        with pytest.raises(retry.StorageError, match="AWS Error"):
            storage.write(name, bytes(11 << 20))
    assert (storage.read("whole"), storage.names()) == (b"old", ["whole"])


def test_a_slow_part_is_waited_for_and_a_silent_one_repeated(
    faults: s3.Faults, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uris, "S3_SILENCE_SECONDS", 1.0)
    storage = Storage(place)
    faults.slow_share, faults.slow_seconds = 0.3, 0.3
    for number in range(4):
        storage.write("a", b"%d" % number)
    assert storage.read("a") == b"3"
    faults.slow_share, faults.slow_seconds, faults.slow_times = 1.0, 3.0, faults.slow + 1
    storage.write("a", b"silent")
    assert storage.read("a") == b"silent"


def test_a_lease_keeps_a_second_driver_out(
    faults: s3.Faults, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = iter(range(1000))  # Nobody's process can be looked at.
    monkeypatch.setattr(leases, "_machine", lambda: f"machine {next(names)}")
    faults.share = 0.05
    rivals = [Lease(Storage(place), BEAT) for _ in range(3)]
    refused: list[Lease] = []

    def try_it(lease: Lease) -> None:
        try:
            lease.acquire()
        except ValueError:
            refused.append(lease)

    threads = [threading.Thread(target=try_it, args=(lease,)) for lease in rivals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rivals = [lease for lease in rivals if lease not in refused]
    assert rivals

    def holds(lease: Lease) -> bool:
        try:
            lease.check()
        except LeaseLostError:
            return False
        return True

    # One whose first beat was late finds out at the next.
    while len(holders := [lease for lease in rivals if holds(lease)]) > 1:
        time.sleep(BEAT)
    with pytest.raises(ValueError, match="another driver writes it"):
        Lease(Storage(place), BEAT).acquire()
    for lease in rivals:
        lease.release()
    content = read_lease(Storage(place))
    assert content is not None
    assert content.released
    assert content.id == holders[0]._id
    late = Lease(Storage(place), BEAT)
    late.acquire()
    late.release()


def test_a_checkpoint_is_read_once_a_machine(
    faults: s3.Faults, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(model_files.CACHE, str(tmp_path / "cache"))
    files = [file for file in TINY.iterdir() if file.suffix != ".py" and file.is_file()]
    for file in files:
        Storage(place).write(file.name, file.read_bytes())
    Storage(place).write("pytorch_model.bin", b"a pickle")
    faults.share = 0.1
    folders: list[Path] = []
    threads = [
        threading.Thread(target=lambda: folders.append(model_files.fetch(place))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    faults.share, before = 0.0, faults.requests
    assert fingerprint(model_files.local_model(place)) == fingerprint("tiny")
    assert faults.requests - before <= 2, "a listing, and nothing that is there"
    assert len(set(folders)) == 1
    assert not (folders[0] / "pytorch_model.bin").exists()
    config = json.loads((TINY / "config.json").read_text())
    Storage(place).write("config.json", json.dumps({**config, "changed": 1}).encode())
    changed = fingerprint(model_files.local_model(place))
    assert changed != fingerprint("tiny"), "a checkpoint that changed is read again"
    with pytest.raises(ValueError, match="no checkpoint there"):
        model_files.local_model(f"{place}/none")


def test_every_command_reads_a_run_there(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = MadeRun(tmp_path / "made").begin().whole(failed=[1]).end()
    manifest = made.output / ".run" / "manifest.json"
    text = json.loads(manifest.read_text())
    text["settings"]["input"] = f"{place}/in"
    manifest.write_text(json.dumps(text))
    upload(tmp_path / "made", place)
    assert lrd(["verify", f"{place}/out"]) == 0
    assert lrd(["status", f"{place}/out"]) == 0
    assert lrd(["report", f"{place}/out"]) == 0
    assert lrd(["publish", f"{place}/out", "--to", str(tmp_path / "published")]) == 0
    assert lrd(["publish", f"{place}/out", "--to", f"{place}/published"]) == 0
    upper, store = tmp_path / "published", Storage(f"{place}/published")
    names = [str(path.relative_to(upper)) for path in upper.rglob("*") if path.is_file()]
    assert len(names) == 1 + len(store.names("data")) + len(store.names("failed"))
    assert all(store.read(name) == (upper / name).read_bytes() for name in names)
    assert lrd(["publish", f"{place}/out", "--to", f"{place}/published"]) == 2, "stays"
    printed = capsys.readouterr()
    assert "whole: 3 of 3 shards, 12 rows, 3 failed" in printed.out
    assert "note: the prompts are not compared" not in printed.out
    assert s3.CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in printed.out + printed.err
    assert Storage(f"{place}/out").kind("report.html") == "file"
    evaluate = ["evaluate", f"{place}/out", "--task", "word-problems"]
    assert lrd([*evaluate, "--reference-column", "prompt", "--workers", "1"]) == 0
    assert Storage(f"{place}/out").names(".scores") == ["word-problems.parquet"]
    table = pd.read_parquet(f"{place}/out/data")
    assert table.equals(pd.read_parquet(made.output / "data"))
    endpoint = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    query = f"?endpoint_override={endpoint}&scheme=http"
    assert lrd(["report", f"{place}/out{query}", "--output", f"{place}/r.html{query}"]) == 0
    assert Storage(place).kind("r.html") == "file"


def test_prompts_are_prepared_there(place: str, tmp_path: Path) -> None:
    source = tmp_path / "questions.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"question {n}"}) + "\n" for n in range(5)))
    words = ["prepare", str(source), "--output", f"{place}/in", "--rows-per-shard", "2"]
    assert lrd(words) == 0
    assert len(Storage(f"{place}/in").names()) == 3
    assert pd.read_parquet(f"{place}/in")["prompt"].tolist()[4] == "question 4"
    assert lrd(words) == 2, "what is there stays"


@pytest.mark.parametrize("form", ["file", "folder"])
def test_prompts_are_prepared_from_there(
    form: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, first in (("b.csv", 2), ("a.csv", 0)):
        content = f"prompt\nquestion {first}\nquestion {first + 1}\n"
        Storage(f"{place}/made").write(name, content.encode())
    Storage(f"{place}/made").write("notes.txt", b"no rows")
    source = f"{place}/made" if form == "folder" else f"{place}/made/b.csv"
    assert lrd(["prepare", source, "--output", str(tmp_path / "in")]) == 0
    questions = pd.read_parquet(tmp_path / "in")["prompt"].tolist()
    assert questions == [f"question {n}" for n in (range(4) if form == "folder" else (2, 3))]
    missing = f"{place}/none"
    line = refusal(capsys, "prepare", missing, "--output", str(tmp_path / "other"))
    assert line == f"lrd prepare: {missing}: no such file or folder"


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a command that refuses."""
    assert lrd([*words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_a_store_that_refuses_is_one_line(
    faults: s3.Faults, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"prompt": ["How many?"]}), tmp_path / "in" / "0.parquet")
    source = str(tmp_path / "in")
    plan = ["plan", "--gen-length", "32"]
    line = refusal(capsys, *plan, "--input", "s3://no-such-bucket/in", "--output", place)
    assert "s3://no-such-bucket/in: no such file or folder" in line
    line = refusal(capsys, *plan, "--input", source, "--output", "s3://")
    assert "names no bucket" in line
    line = refusal(capsys, "status", "s3://bucket/none")
    assert "holds no run" in line
    with pytest.raises(retry.RefusedError, match="there is no bucket 'no-such-bucket'"):
        Storage("s3://no-such-bucket/out").write("a", b"")
    faults.denied = True
    for words in (
        [*plan, "--input", place, "--output", source],
        [*plan, "--input", source, "--output", place],
        [*plan, "--input", source, "--output", str(tmp_path / "out"), "--model", place],
        ["generate", "--input", source, "--output", place],
        ["status", place],
        ["verify", place],
        ["retry-failed", place],
    ):
        line = refusal(capsys, *words)
        assert line.startswith(f"lrd {words[0]}: {place}: access denied"), line
        assert "AWS_ACCESS_KEY_ID" in line
    shutil.rmtree(source)
