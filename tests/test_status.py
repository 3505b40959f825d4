"""`lrd status` and what it reads: a run's state from its files, whoever wrote them and however."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from helpers.runs import MadeRun, good

from jobs import status
from jobs.output import duration
from jobs.status import describe
from pipeline.inspection import run_state
from pipeline.inspection.status import Inspector
from pipeline.observe.eta import ProgressTracker
from pipeline.output.run_folder import DRIVER, EVENTS, listing
from pipeline.rows import Bucket, Prompt, results_batch
from pipeline.storage.storage import Storage


def args(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    status.add_arguments(parser)
    return parser.parse_args(words)


@pytest.fixture
def run(tmp_path: Path) -> MadeRun:
    """Of three shards of four rows one is whole, one open, one waits; the driver is at work."""
    run = MadeRun(tmp_path).begin()
    run.add(0, range(4), failed=[1])
    run.add(2, [0], failed=[])
    run.add(2, [3], failed=[3])
    return run


def rewrite_lease(run: MadeRun, **changes: Any) -> None:
    path = run.output / DRIVER
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def look(run: MadeRun) -> run_state.RunState:
    return Inspector(run.storage).snapshot()


def test_shards_are_whole_open_or_waiting(run: MadeRun) -> None:
    found = look(run)
    assert [shard.state for shard in found.shards] == ["whole", "waiting", "open"]
    assert [shard.num_done for shard in found.shards] == [4, 0, 2]
    assert [shard.num_failed for shard in found.shards] == [1, 0, 1]
    assert (found.num_rows, found.num_done, found.num_failed, found.num_whole) == (12, 6, 2, 1)
    assert not found.whole
    assert found.num_forwards == 9
    run.end()


def test_a_shard_without_its_file_is_not_whole(run: MadeRun) -> None:
    run.shard(0).unlink()
    assert look(run).shards[0].state == "waiting"
    run.end()


def test_a_row_in_two_segments_counts_once_and_as_a_success(run: MadeRun) -> None:
    segments = run.output / ".run" / "segments" / "00002"
    first, second = sorted(segments.iterdir())
    (segments / "000003-later.parquet").write_bytes(first.read_bytes())
    assert look(run).shards[2].num_done == 2
    run.end()
    run.begin()
    run.ledger.retry_failed = True
    run.add(2, [3])
    assert (look(run).shards[2].num_done, look(run).shards[2].num_failed) == (2, 0)
    run.end()
    second.write_bytes(b"PAR1 broken")
    found = look(run)
    assert found.unreadable == [f".run/segments/00002/{second.name}"]
    assert "cannot be read: .run/segments/00002" in describe(found)


def test_a_retry_takes_failures_away(tmp_path: Path) -> None:
    run = MadeRun(tmp_path, num_shards=1).begin().whole(failed=[1, 2]).end()
    run.begin()
    run.ledger.retry_failed = True
    assert run.ledger.owed() == [0]
    run.add(0, [2])
    (shard,) = look(run).shards
    assert (shard.state, shard.num_done, shard.num_failed) == ("retried", 4, 1)
    run.add(0, [1])
    (shard,) = look(run).shards
    assert (shard.state, shard.num_failed) == ("whole", 0)
    run.end()


def test_what_was_read_is_not_read_again(run: MadeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    inspector = Inspector(run.storage)
    inspector.snapshot()
    opened: list[str] = []
    monkeypatch.setattr(
        "pipeline.inspection.status._read_statuses", lambda output, name: opened.append(name)
    )
    monkeypatch.setattr(
        "pipeline.inspection.status.read_commit", lambda output, name: opened.append(name)
    )
    before = inspector.snapshot()
    assert opened == []
    assert before.num_done == 6
    monkeypatch.undo()
    run.add(1, [0])
    assert inspector.snapshot().num_done == 7
    run.add(2, [1, 2])
    after = inspector.snapshot()
    assert (after.num_done, after.num_whole) == (9, 2)
    run.end()


def test_the_driver_as_its_lease_tells(run: MadeRun) -> None:
    inspector = Inspector(run.storage)
    first = inspector.snapshot().driver
    assert first is not None
    assert first.state == "unknown", "one read proves nothing"
    rewrite_lease(run, beat=99)
    again = inspector.snapshot().driver
    assert again is not None
    assert again.state == "beating"
    run.end()
    over = inspector.snapshot().driver
    assert over is not None
    assert (over.state, over.over) == ("ended", True)


def test_a_lease_that_stands_still_is_silent(run: MadeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite_lease(run, machine="another")
    inspector = Inspector(run.storage)
    assert "--watch shows" in describe(inspector.snapshot())
    monkeypatch.setattr("pipeline.inspection.status.SILENT_SECONDS", 0.0)
    found = inspector.snapshot()
    assert found.driver is not None
    assert found.driver.state == "silent"
    assert "it may be gone" in describe(found)
    assert not status.is_over(found), "it may come back, and rows are left"
    run.end()


def test_a_dead_process_of_this_machine(run: MadeRun) -> None:
    rewrite_lease(run, process_began=1.0)
    found = look(run)
    assert found.driver is not None
    assert found.driver.state == "dead"
    assert status.is_over(found)
    assert "the same command continues" in describe(found)
    run.end()


def test_a_broken_lease_hides_nothing_else(run: MadeRun) -> None:
    run.end()
    (run.output / DRIVER).write_text("{")
    assert look(run).driver is None
    assert look(run).unreadable == [DRIVER]
    (run.output / DRIVER).unlink()
    assert look(run).driver is None
    assert look(run).unreadable == []
    assert look(run).num_done == 6


def progress() -> dict[str, Any]:
    """Four rows of which two are done, as a driver tells of them in its lease."""
    meter = ProgressTracker(12, 4)
    meter.shard_read(4, 0, [Prompt(2, n, [1], Bucket(8, 32)) for n in range(4)])
    meter.rows_done(results_batch([good(2, 0), good(2, 1)]))
    told = meter.progress({"replica-0": "decoding", "replica-1": "loading"}).to_json()
    left = {"seconds_left": 5400.0, "seconds_left_range": (4800.0, 6000.0)}
    return {**told, "seconds": 4.5, "decoding_seconds": 4.0, **left}


def test_the_text(run: MadeRun) -> None:
    run.ledger.event("replica died", replica="replica-0", error="x" * 300, rows=["a", "b"])
    run.ledger.flush()
    rewrite_lease(run, progress=progress(), beat=99)
    text = describe(look(run))
    assert "6 of 12 done (50.0%), 2 failed, 6 left; 1 of 3 shards written" in text
    figures = "0.50 rows/s, 3.0 forwards/row, 2 effective tokens/s, 2 rows in 4 s"
    assert f"speed     {figures}, 90 min left (80 to 100 min)" in text
    bucket = next(line for line in text.splitlines() if line.startswith("      8"))
    assert bucket.split() == ["8", "2", "4", "3.0", "0.50"]
    assert "replica-0 decoding, replica-1 loading" in text
    assert "replica died  replica=replica-0" in text
    assert "rows=2" in text
    assert max(map(len, text.splitlines())) <= 160
    shards = [line.split()[:2] for line in text.splitlines() if line.startswith("  0000")]
    assert shards == [["00000", "whole"], ["00002", "open"]]
    every = describe(look(run), every_shard=True)
    assert sum(line.startswith("  0000") for line in every.splitlines()) == 3
    rewrite_lease(run, released=True)
    over = describe(look(run))
    assert "90 min left" not in over, "nobody is at work"
    assert "replica-1 loading" not in over
    run.end()


def test_the_command(run: MadeRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert status.run(args(str(run.output), "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["num_done"], told["num_failed"], told["num_rows"]) == (6, 2, 12)
    assert told["shards"][2]["state"] == "open"
    assert told["driver"]["pid"] == json.loads((run.output / DRIVER).read_text())["pid"]
    run.end()
    assert status.run(args(str(run.output))) == 0
    assert "6 of 12 done" in capsys.readouterr().out


def test_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status.run(args(str(tmp_path))) == 2
    assert "holds no run" in capsys.readouterr().err
    (tmp_path / ".run").mkdir()
    (tmp_path / ".run" / "manifest.json").write_text("{}")
    assert status.run(args(str(tmp_path))) == 2
    assert "restore it" in capsys.readouterr().err


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """What happens instead of a pause between two looks."""

    def set_to(action: Callable[[], None]) -> None:
        monkeypatch.setattr("jobs.status.time.sleep", lambda seconds: action())

    return set_to


def test_watch_ends_with_the_run(
    run: MadeRun, capsys: pytest.CaptureFixture[str], pauses: Any
) -> None:
    looks: list[int] = []

    def pause() -> None:
        looks.append(1)
        if len(looks) == 1:
            run.add(2, [1, 2])
        else:
            run.add(1, range(4))
            rewrite_lease(run, released=True)

    pauses(pause)
    assert status.run(args(str(run.output), "--watch", "--json")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["num_done"] for line in lines] == [6, 8, 12]
    run.end()


def test_watch_is_left_quietly(
    run: MadeRun, capsys: pytest.CaptureFixture[str], pauses: Any
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    pauses(interrupt)
    assert status.run(args(str(run.output), "--watch")) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.count("rows      6 of 12 done") == 1
    run.end()


def test_events_that_are_no_json_are_left_out(run: MadeRun) -> None:
    run.end()
    path = run.output / EVENTS
    path.write_text('{"time": "2026-01-02T03:04:05.678+00:00", "event": "one"}\n{half')
    assert [event["event"] for event in look(run).events] == ["one"]
    assert "  2026-01-02 03:04:05 UTC  one" in describe(look(run)).splitlines()


def test_an_object_store(run: MadeRun) -> None:
    run.end()
    memory = fsspec.filesystem("memory")
    memory.put(str(run.output), "/bucket/status", recursive=True)
    output = Storage("memory://bucket/status")
    found = Inspector(output).snapshot()
    assert [shard.num_done for shard in found.shards] == [4, 0, 2]
    assert found.driver is not None
    assert found.driver.state == "ended"
    names = listing(output, ".run/segments", recursive=True)
    assert all(name.startswith(".run/segments/00002/00000") for name in names)
    assert len(names) == 2
    assert listing(output, "nowhere") == {}


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.4, "0 s"),
        (89, "89 s"),
        (90, "2 min"),
        (7100, "118 min"),
        (7300, "2 h 2 min"),
        (200_000, "2 d 8 h"),
    ],
)
def test_durations(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_a_reader_that_leaves_is_no_failure(run: MadeRun) -> None:
    """As in `lrd status OUT | head -1`."""
    command = [sys.executable, "-m", "jobs.cli", "status", str(run.output)]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert job.stdout is not None
    assert job.stderr is not None
    job.stdout.close()
    assert (job.stderr.read(), job.wait(60)) == ("", 0)
    job.stderr.close()
