"""Logs as JSON lines: every line an object, events and row ids in them, text untouched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from helpers.runs import FAILURE, MadeRun, bad, good

from jobs import cli, output
from pipeline.observe.events import LOG, record, record_rows
from pipeline.rows import results_batch


@pytest.fixture(autouse=True)
def quiet_again() -> Iterator[None]:
    yield
    output.set_log_format("text")


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_events_and_row_ids_are_json_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output.set_log_format("json")
    made = MadeRun(tmp_path).begin()
    made.ledger.event("row quarantined", row="00000-00000001", error="line one\nline two \u2028 ü")
    record_rows(2, results_batch([good(2, 0), bad(2, 1), good(2, 3)]))
    record_rows(2, results_batch([]))
    made.end()
    event, rows = lines(capsys.readouterr().err)
    assert event["event"] == "row quarantined"
    assert (event["row"], event["level"]) == ("00000-00000001", "info")
    assert event["error"] == "line one\nline two \u2028 ü"
    assert datetime.fromisoformat(event["time"]).utcoffset() == timedelta(0)
    stored = json.loads((made.output / ".run/events.jsonl").read_text())
    assert {k: event[k] for k in ("event", "row", "error")} == {
        k: stored[k] for k in ("event", "row", "error")
    }
    assert rows["event"] == "rows finished"
    assert rows["shard"] == 2
    assert rows["rows"] == ["00002-00000000", "00002-00000003"]
    assert rows["failed"] == {"00002-00000001": FAILURE}


def test_text_says_nothing_of_records(capsys: pytest.CaptureFixture[str]) -> None:
    output.set_log_format("text")
    record("replica died", replica="replica-0")
    output.tell("lrd generate: a line")
    assert capsys.readouterr().err == "lrd generate: a line\n"


def test_setting_up_again_replaces(capsys: pytest.CaptureFixture[str]) -> None:
    for log_format in ("json", "text", "json", "json"):
        output.set_log_format(log_format)
    record("once")
    assert len(lines(capsys.readouterr().err)) == 1
    assert len(LOG.handlers) == 1


def test_the_environment_chooses_and_the_flag_beats_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(output.VARIABLE, "json")
    assert job("--input", "nowhere") == 2
    (line,) = lines(capsys.readouterr().err)
    assert line["event"] == "message"
    assert line["text"].startswith("lrd generate: output: is needed")
    assert job("--input", "nowhere", "--log-format", "text") == 2
    assert capsys.readouterr().err.startswith("lrd generate: output: is needed")
    assert cli.run(["retry-failed", "nowhere"]) == 2
    assert "nowhere: no such folder" in lines(capsys.readouterr().err)[0]["text"]


def test_a_format_that_there_is_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(output.VARIABLE, "xml")
    assert job("--input", "nowhere", "--output", "out") == 2
    assert (
        capsys.readouterr().err == "lrd generate: LRD_LOG_FORMAT is 'xml'; expected text or json\n"
    )


def job(*words: str) -> int:
    return cli.run(["generate", *words])


@pytest.mark.usefixtures("no_ray")
def test_a_run_says_everything_as_json(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else reaches the streams, and the rows are those of the dataset."""
    monkeypatch.setattr(output, "LINE_SECONDS", 0.5)
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR")
    capfd.readouterr()
    (tmp_path / "in").mkdir()
    prompts = ["", *(f"Tom has {n} apples and buys 2. How many?" for n in range(8))]
    pq.write_table(pa.table({"prompt": prompts}), tmp_path / "in" / "a.parquet")
    words = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert job(*words, "--gen-length", "32", "--slots", "4", "--log-format", "json") == 3
    ray.shutdown()
    printed = capfd.readouterr()
    assert printed.out == ""
    found = lines(printed.err)
    stages = [line["stage"] for line in found if line["event"] == "stage"]
    begun = ["starting", "looking for input and output", "checking input", "hashing weights"]
    assert [stage for stage in stages if stage in begun] == begun
    assert {"taking the lease of the output", "counting results"} <= set(stages)
    assert [line["time"] for line in found if line["event"] == "stage"] == sorted(
        line["time"] for line in found if line["event"] == "stage"
    ), "each with the time at which it began"
    events = [line["event"] for line in found if line["event"] != "stage"]
    assert events[0] == "driver started"
    assert {"replica up", "progress", "driver finished"} <= set(events)
    ids = [f"00000-{number:08d}" for number in range(9)]
    finished = [line for line in found if line["event"] == "rows finished"]
    assert sorted(name for line in finished for name in line["rows"]) == ids[1:]
    assert [name for line in finished for name in line["failed"]] == ids[:1]
    assert events[-1] == "run finished"
    assert (found[-1]["num_rows"], found[-1]["num_failed"]) == (9, 1)
