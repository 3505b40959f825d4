"""Every reader of a run's folder: others' files beside the run's own, and its own garbled."""

from __future__ import annotations

import argparse
import io
import json
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from helpers.few import few
from helpers.runs import MadeRun
from helpers.synthetic_run import write_run

from jobs import evaluate, plan, publish, report, retry_failed, status, verify
from pipeline.experiments.paper.measure import measure
from pipeline.experiments.paper.pages import is_whole
from pipeline.experiments.tuning.trials import read_trial
from pipeline.inspection.pace import pace_of
from pipeline.inspection.verify import Verification
from pipeline.output.lease import Lease
from pipeline.output.ledger import Ledger, Plan
from pipeline.output.result_shards import batches
from pipeline.output.run_folder import (
    COMMITS,
    DRIVER,
    EVENTS,
    MANIFEST,
    SEGMENTS,
    UNREADABLE,
    UnreadableError,
    finished_shards,
    read_commit,
    read_commits,
    read_events,
    read_lease,
    read_manifest,
    read_run,
    segment_files,
    written_shards,
)
from pipeline.output.run_records import Event, Manifest
from pipeline.output.statistics import COUNTED, OTHER, Counts, count_rows, summarize
from pipeline.storage.storage import Storage

TASK = "word-problems"


def call(job: Any, *words: str | Path) -> int:
    parser = argparse.ArgumentParser()
    job.add_arguments(parser)
    code: int = job.run(parser.parse_args(list(map(str, words))))
    return code


@pytest.fixture(autouse=True)
def no_rivals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who takes a lease waits shortly for others who want it."""
    monkeypatch.setattr("pipeline.output.lease.LOCAL_SETTLE_SECONDS", 0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with scores."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    write_run(folder, (12, 12, 12), answer=lambda row: str(row % 3))
    assert call(evaluate, folder, "--task", TASK, "--workers", "1") == 0
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def test_a_synthetic_run_is_one_that_a_driver_could_have_written(tmp_path: Path) -> None:
    write_run(tmp_path / "run", (40, 0, 20), failed_every=7)
    output, inputs = Storage(str(tmp_path / "run")), Storage(str(tmp_path / "run-prompts"))
    verification = Verification(output, inputs)
    assert list(verification.findings()) == []
    assert (verification.num_rows, verification.num_failed) == (60, 7)
    config = retry_failed.run_config(_retry_args(tmp_path / "run"))
    assert config.input == str(tmp_path / "run-prompts")
    manifest = read_manifest(output)
    ledger = Ledger(output, plan_of(manifest))
    assert not ledger.is_new
    assert ledger.owed() == []


def _retry_args(output: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    retry_failed.add_arguments(parser)
    return parser.parse_args([str(output)])


def plan_of(manifest: Manifest) -> Plan:
    return Plan(manifest.files, manifest.fingerprint, manifest.settings)


# Files of others.

STRAYS = (
    *("data/notes.txt", "data/.DS_Store", "data/.nfs000000000012ab", "data/README.md"),
    *("data/more.parquet", "data/._train-00000-of-00003.parquet", "data/Thumbs.db"),
    *("data/train-00000-of-00002.parquet", "data/train-00003-of-00003.parquet"),
    *("data/train-0-of-3.parquet", "data/train-00000-of-00003.parquet.crc"),
    *("data/train-00001-of-00003.parquet.77.part", "data/old/train-00000-of-00003.parquet"),
    *("data/train-00000-of-00003.PARQUET", "data/_SUCCESS", "data/lock.json"),
)
RUN_STRAYS = (
    *(f"{COMMITS}/.DS_Store", f"{COMMITS}/notes.json", f"{COMMITS}/00001.json.bak"),
    *(f"{SEGMENTS}/.DS_Store", f"{SEGMENTS}/00001/.nfs0001", f"{SEGMENTS}/00001/notes.parquet"),
    *(f"{SEGMENTS}/x/000001-a.parquet", f"{COMMITS}/x/00000.json", ".run/.DS_Store"),
)


def seen_by_readers(run: Path) -> dict[str, Any]:
    """What every reader of a finished run says of it; each must succeed."""
    output, to = Storage(str(run)), run.parent / "to"
    commands = {
        "status": (status, run, "--json"),
        "report": (report, run, "--output", to / "page.html"),
        "evaluate": (evaluate, run, "--task", TASK, "--workers", "1"),
        "publish": (publish, run, "--to", to / "published"),
    }
    said: dict[str, Any] = {}
    for name, words in commands.items():
        printed = io.StringIO()
        with redirect_stdout(printed), redirect_stderr(printed):
            assert call(*words) == 0, (name, printed.getvalue())
        said[name] = printed.getvalue()
    said["page"] = (to / "page.html").read_text()
    said["card"] = (to / "published/README.md").read_text()
    said["files"] = sorted(path.name for path in (to / "published").rglob("*"))
    said["generate"] = summarize(output)
    said["plan --like"] = pace_of(output)
    said["tune"] = read_trial(output, TASK)
    said["reproduce"] = (is_whole(output), measure(output, TASK))
    said["a rerun"] = Ledger(output, plan_of(read_manifest(output))).owed()
    shutil.rmtree(to)
    return said


def how_named(stray: str) -> tuple[bool, bool, bool]:
    """What a reader may take a file for: a shard by its beginning or end, or a hidden file."""
    name = stray.rpartition("/")[2]
    return name.startswith("train-"), name.endswith(".parquet"), name.startswith(".")


@pytest.fixture(scope="module")
def seen(whole: Path) -> dict[str, Any]:
    """What its readers say while no file of others is there."""
    return seen_by_readers(whole)


@pytest.mark.parametrize(
    "stray", [*few(STRAYS, how_named), *few(RUN_STRAYS, lambda name: Path(name).parent)]
)
def test_a_file_of_others_changes_nothing_that_is_read(
    whole: Path, seen: dict[str, Any], capsys: pytest.CaptureFixture[str], stray: str
) -> None:
    path = whole / stray
    is_new_folder = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"mine")
    try:
        assert seen_by_readers(whole) == seen
        code, printed = call(verify, whole), capsys.readouterr().out
    finally:
        shutil.rmtree(path.parent) if is_new_folder else path.unlink()
    # What lies among the results may be taken for such by other programs.
    assert code == (1 if stray in STRAYS else 0), printed
    if not stray.startswith((COMMITS, ".run/.")):
        assert f"{stray}: is " in printed


@pytest.mark.parametrize("stray", RUN_STRAYS)
def test_a_file_of_others_among_segments_keeps_no_row_from_going_on(
    tmp_path: Path, stray: str
) -> None:
    made = MadeRun(tmp_path).begin()
    made.add(1, [0, 2])
    made.end()
    (made.output / stray).parent.mkdir(parents=True, exist_ok=True)
    (made.output / stray).write_bytes(b"mine")
    made.begin()
    assert made.ledger.owed() == [0, 1, 2]
    shard = made.open_shard(1)
    assert [not shard.missing(index) for index in range(4)] == [True, False, True, False]
    made.whole().end()
    assert all(not found.wrong for found in Verification(made.storage).findings())
    assert made.begin().ledger.owed() == []
    made.end()


def test_shards_are_read_in_the_plans_order_and_by_its_names(run: Path) -> None:
    output = Storage(str(run))
    shards, planned = written_shards(output)
    assert [shard.number for shard in shards] == [0, 1, 2]
    assert planned == 3
    assert all(shard.written is not None for shard in shards)
    (run / shards[1].name).unlink()
    assert [shard.number for shard in written_shards(output)[0]] == [0, 2]
    with pytest.raises(ValueError, match=r"2 of 3 shards are finished; continue the run$"):
        finished_shards(output)
    with pytest.raises(ValueError, match="or score what is there with --partial"):
        finished_shards(output, "score")
    assert len(finished_shards(output, "score", partial=True)[0]) == 2
    # A dataset that was copied without its run.
    shutil.rmtree(run / ".run")
    (run / "data/train-00001-of-999999999999.parquet").write_text("mine")
    (run / "data/notes.txt").write_text("mine")
    assert [shard.number for shard in written_shards(output)[0]] == [0, 2]
    assert count_rows(output).num_rows == 24
    shutil.rmtree(run / "data")
    with pytest.raises(ValueError, match="holds no run; name the --output folder"):
        written_shards(output)


# Its own files, garbled.

GARBLED: dict[str, bytes] = {
    "empty": b"",
    "blank": b"\n \n",
    "zeros": bytes(64),
    "cut short": b'{"id": "a", "host": ',
    "null": b"null",
    "a list": b"[]",
    "a number": b"5",
    "a text": b'"text"',
    "no UTF-8": b'{"id": "\xff\xfe"}',
    "of UTF-16": '{"id"'.encode("utf-16"),
    "binary": bytes(range(256)),
    "too deep": b"[" * 100_000,
    "without parts": b"{}",
    "HTML": b"<html>404</html>",
}


def garble(run: Path, name: str, content: bytes) -> None:
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).write_bytes(content)


def changed(run: Path, name: str, **parts: Any) -> bytes:
    """The file with other parts; None: without one."""
    found = {**json.loads((run / name).read_text()), **parts}
    return json.dumps({k: v for k, v in found.items() if v is not None}).encode()


WHOLE = {"model": "m", "input": "i", "dtype": "x", "decoding": {}}
WRONG_PARTS: dict[str, dict[str, Any]] = {
    "created: Field required": {"created": None},
    "created: Input should be a valid string": {"created": 5},
    "files: Field required": {"files": None},
    "files: Input should be a valid list": {"files": {}},
    "files.0: Input should be": {"files": ["a"]},
    "files.0.num_rows: Field required": {"files": [{"name": "a", "sha256": "b"}]},
    "files.0.num_rows: Input should be": {"files": [{"name": "a", "sha256": "b", "num_rows": "x"}]},
    "settings: Field required": {"settings": None},
    "settings: Input should be": {"settings": []},
    "settings: lacks decoding": {"settings": {**WHOLE, "decoding": None}},
    "settings: lacks model": {"settings": {**WHOLE, "model": 1}},
    "fingerprint: Input should be": {"fingerprint": "abc"},
    "fingerprint: lacks dtype": {"fingerprint": {**WHOLE, "dtype": None}},
    "fingerprint: lacks model, decoding": {"fingerprint": {"dtype": "x"}},
    "created: Field required; settings: Field required": {"created": None, "settings": None},
}
"""What the line says → parts of the manifest; None: it is not there."""


def commands(run: Path, to: Path) -> dict[str, tuple[Callable[[], int], int]]:
    """What reads a manifest, and its exit code where that is garbled."""
    prompts = f"{run}-prompts"
    return {
        "status": (lambda: call(status, run), 2),
        "verify": (lambda: call(verify, run), 1),
        "report": (lambda: call(report, run, "--output", to / "page.html"), 2),
        "evaluate": (lambda: call(evaluate, run, "--task", TASK), 2),
        "publish": (lambda: call(publish, run, "--to", to / "published"), 2),
        "retry-failed": (lambda: call(retry_failed, run), 2),
        "plan": (lambda: call(plan, "--input", prompts, "--output", run, *PLANNED), 2),
        "plan --like": (
            lambda: call(plan, "--input", prompts, "--output", to / "o", "--like", run, *PLANNED),
            2,
        ),
    }


PLANNED = ("--prompt-column", "question", "--gen-length", "64")


@pytest.fixture(scope="module")
def with_prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts") / "run"
    write_run(folder, (4,))
    return folder


@pytest.mark.parametrize("garbled", GARBLED)
@pytest.mark.parametrize("command", ["status", "verify", "report", "evaluate", "publish"])
def test_a_garbled_manifest_is_named_in_one_line(
    with_prompts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    garbled: str,
) -> None:
    refused(with_prompts, tmp_path, capsys, command, GARBLED[garbled])


@pytest.mark.parametrize("words", WRONG_PARTS)
def test_a_manifest_without_a_part_names_it(
    with_prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    content = changed(with_prompts, MANIFEST, **WRONG_PARTS[words])
    line = refused(with_prompts, tmp_path, capsys, "status", content)
    assert f"manifest.json: {words}" in line


@pytest.mark.parametrize("command", ["retry-failed", "plan", "plan --like"])
def test_other_commands_name_it_too(
    with_prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    refused(with_prompts, tmp_path, capsys, command, b"[]")


def refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, content: bytes
) -> str:
    """The one line of a command that finds this manifest; nothing is written."""
    run, to = tmp_path / "run", tmp_path / "to"
    shutil.copytree(source, run)
    shutil.copytree(f"{source}-prompts", f"{run}-prompts")
    garble(run, MANIFEST, content)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    work, code = commands(run, to)[command]
    capsys.readouterr()
    assert work() == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert f"{run / MANIFEST}: " in lines[0]
    assert lines[0].endswith("; restore it, or decode into a new --output")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    with pytest.raises(UnreadableError):
        read_run(Storage(str(run)))
    return lines[0]


BEAT = 0.05
LEASE_PARTS: dict[str, dict[str, Any]] = {
    name: {name: None} for name in ("id", "host", "machine", "pid", "beat", "time", "released")
} | {
    "pid, a text": {"pid": "many"},
    "progress, a list": {"progress": []},
}


@pytest.mark.parametrize("garbled", [*few(GARBLED, of_each=3), *few(LEASE_PARTS, of_each=3)])
def test_a_garbled_lease_is_kept_and_begun_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], garbled: str
) -> None:
    made = MadeRun(tmp_path).begin()
    made.add(0, range(4))
    made.add(1, [0])
    made.end()
    content = GARBLED.get(garbled) or b""
    if garbled in LEASE_PARTS:
        content = changed(made.output, DRIVER, **LEASE_PARTS[garbled])
    garble(made.output, DRIVER, content)
    with pytest.raises(UnreadableError, match=r"driver\.json: .*; the next lrd generate copies"):
        read_lease(made.storage)
    assert read_run(made.storage).driver is None
    # Who only looks goes on looking.
    assert call(status, made.output) == 0
    assert f"cannot be read: {DRIVER}" in capsys.readouterr().out
    assert call(verify, made.output, "--partial") == 0
    assert f"note: {DRIVER}: " in capsys.readouterr().out
    assert call(report, made.output, "--output", tmp_path / "page.html") == 0
    # And the next driver begins.
    again = Ledger(made.storage, made.ledger.plan)
    again.lease = Lease(made.storage, BEAT)
    again.begin()
    assert again.owed() == [1, 2]
    again.end()
    lease = read_lease(made.storage)
    assert lease is not None
    assert lease.released
    assert (made.output / f"{DRIVER}{UNREADABLE}").read_bytes() == content
    (event,) = read_events(made.storage)[0]
    assert event.what == "unreadable file replaced"
    assert str(made.output / DRIVER) in event.facts["error"]
    assert event.facts["kept"] == f"{DRIVER}{UNREADABLE}"


def test_a_lease_that_is_garbled_before_the_manifest_is_written(tmp_path: Path) -> None:
    made = MadeRun(tmp_path).begin()
    made.end()
    for path in (made.output / ".run").iterdir():
        path.unlink()
    garble(made.output, DRIVER, b"")
    again = Ledger(made.storage, made.ledger.plan)
    again.lease = Lease(made.storage, BEAT)
    again.begin()
    again.end()
    assert Ledger(made.storage, made.ledger.plan).is_new is False


def test_the_owner_of_a_garbled_lease_goes_on(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    told: list[tuple[str, str]] = []
    lease = Lease(storage, BEAT)
    lease.on_unreadable = lambda error, kept: told.append((error, kept))
    lease.acquire()
    garble(tmp_path, DRIVER, b"[]")
    lease._renew()
    lease.check()
    found = read_lease(storage)
    assert found is not None
    assert found.id == lease._id
    assert [kept for _, kept in told] == [f"{DRIVER}{UNREADABLE}"]
    lease.release()


def test_a_garbled_lease_of_a_driver_at_work_is_not_taken(tmp_path: Path) -> None:
    """Its owner writes it whole at the next beat, which is waited for."""
    storage = Storage(str(tmp_path))
    owner = Lease(storage, BEAT)
    owner.acquire()
    garble(tmp_path, DRIVER, b"")
    with pytest.raises(ValueError, match="another driver writes it"):
        Lease(storage, 4 * BEAT).acquire()
    owner.check()
    owner.release()


PROGRESS: dict[str, Any] = {
    "lacks parts": {"num_done": 3},
    "of another type": {"num_rows": "many"},
    "buckets of nothing": {"buckets": {"8": None}},
}


@pytest.mark.parametrize("progress", PROGRESS.values(), ids=PROGRESS)
def test_progress_that_cannot_be_read_counts_as_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], progress: dict[str, Any]
) -> None:
    made = MadeRun(tmp_path).begin().whole().end()
    garble(made.output, DRIVER, changed(made.output, DRIVER, progress=progress))
    lease = read_lease(made.storage)
    assert lease is not None
    assert lease.progress == {}
    assert call(status, made.output) == 0
    assert "speed" not in capsys.readouterr().out
    pace = pace_of(made.storage)
    assert pace is not None
    assert "result shards" in pace.source


BAD_LINES: dict[str, bytes] = {
    **{name: content for name, content in GARBLED.items() if content.strip()},
    "without a time": b'{"event": "one"}',
    "a time that is none": b'{"time": "soon", "event": "one"}',
    "a time that is a number": b'{"time": 5, "event": "one"}',
    "a time before all others": b'{"time": "0001-01-01T00:00:00+14:00", "event": "one"}',
    "an event that is a list": b'{"time": "2026-01-02T03:04:05+00:00", "event": []}',
    "half a line": b'{"time": "2026-01-02T03',
}


@pytest.mark.parametrize("bad", BAD_LINES)
def test_a_line_that_is_no_event_is_skipped_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: str
) -> None:
    made = MadeRun(tmp_path).begin()
    made.ledger.event("one", row="00000-00000000")
    made.whole().end()
    good = (made.output / EVENTS).read_bytes()
    content = good + BAD_LINES[bad] + b"\n"
    garble(made.output, EVENTS, content)
    events, num_bad = read_events(made.storage)
    assert [event.what for event in events] == ["one"]
    assert num_bad == BAD_LINES[bad].count(b"\n") + 1
    assert call(status, made.output, "--json") == 0
    (shown,) = json.loads(capsys.readouterr().out)["events"]
    assert shown == json.loads(good)
    assert call(report, made.output, "--output", tmp_path / "page.html") == 0
    assert "unreadable and left out" in (tmp_path / "page.html").read_text()
    assert call(verify, made.output) == 0
    assert f"note: {EVENTS}: {num_bad} line" in capsys.readouterr().out
    # The next driver keeps the file beside and goes on with the events that can be read.
    made.begin().end()
    lines = (made.output / EVENTS).read_bytes().splitlines()
    assert lines[0] + b"\n" == good
    assert [json.loads(line)["event"] for line in lines] == ["one", "unreadable file replaced"]
    assert (made.output / f"{EVENTS}{UNREADABLE}").read_bytes() == content
    made.begin().end()
    assert (made.output / EVENTS).read_bytes().splitlines() == lines, "kept once"


def test_an_events_time_without_a_zone_is_utc(tmp_path: Path) -> None:
    lines = [
        b'{"time": "2026-01-02T03:04:05", "event": "one", "n": 1}',
        b'{"time": "2026-01-02T04:04:05+01:00", "event": "two"}',
    ]
    garble(tmp_path, EVENTS, b"\n".join(lines))
    events, num_bad = read_events(Storage(str(tmp_path)))
    assert num_bad == 0
    assert {event.time.isoformat() for event in events} == {"2026-01-02T03:04:05+00:00"}
    assert events[0] == Event(events[0].time, "one", {"n": 1})
    assert read_events(Storage(str(tmp_path / "nowhere"))) == ([], 0)


@pytest.mark.parametrize("garbled", GARBLED)
def test_a_garbled_record_counts_as_missing(tmp_path: Path, garbled: str) -> None:
    made = MadeRun(tmp_path).begin().whole().end()
    name = f"{COMMITS}/00001.json"
    good = read_commit(made.storage, name)
    assert good is not None
    garble(made.output, name, GARBLED[garbled])
    assert read_commit(made.storage, name) is None
    assert sorted(read_commits(made.storage)) == [0, 2]
    assert made.begin().ledger.owed() == [1]
    made.end()
    garble(made.output, name, json.dumps({**asdict(good), "rows": "many"}).encode())
    assert read_commit(made.storage, name) is None


def test_records_of_more_than_a_hundred_thousand_shards(tmp_path: Path) -> None:
    made = MadeRun(tmp_path).begin().whole().end()
    content = (made.output / COMMITS / "00001.json").read_bytes()
    garble(made.output, f"{COMMITS}/100001.json", content)
    garble(made.output, f"{SEGMENTS}/100001/1000001-a.parquet", b"")
    assert sorted(read_commits(made.storage)) == [0, 1, 2, 100_001]
    assert list(segment_files(made.storage)) == [f"{SEGMENTS}/100001/1000001-a.parquet"]


# Counting.


def test_reasons_beyond_the_most_are_counted_together(tmp_path: Path) -> None:
    write_run(tmp_path / "run", (12,), failed_every=1, error=lambda row: "abcab"[row % 5] + " 7")
    output = Storage(str(tmp_path / "run"))
    (rows,) = batches(output, "data/train-00000-of-00001.parquet", COUNTED, 100)
    few = Counts(most_reasons=2)
    few.add(rows)
    assert few.errors == {"a N": 5, "b N": 5, OTHER: 2}
    assert summarize(output).errors == {"a N": 5, "b N": 5, "c N": 2}


def test_scores_of_a_run_with_an_empty_shard(tmp_path: Path) -> None:
    write_run(tmp_path / "run", (5, 0), answer="1")
    assert call(evaluate, tmp_path / "run", "--task", TASK, "--workers", "1") == 0
    write_run(tmp_path / "none", (0,), answer="1")
    assert call(evaluate, tmp_path / "none", "--task", TASK, "--workers", "1") == 2
