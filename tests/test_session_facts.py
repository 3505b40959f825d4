"""What a run records of the machines that computed it, and what it says where they differ."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.random_model import LIVELY, random_model
from helpers.synthetic_run import write_run

from lrd import DecodingConfig, rounding
from lrd.rounding import computed_by
from lrd.sample import on_host
from pipeline.config import RunConfig
from pipeline.driver import Driver
from pipeline.output.run_records import Event
from pipeline.output.session_facts import canvases_computed, differences, environments, per_forward
from pipeline.output.statistics import summarize
from pipeline.replicas import replica
from pipeline.replicas.replica import Replica, ReplicaSettings
from pipeline.report.report import make_report
from pipeline.storage.storage import Storage

A100 = {"device": "NVIDIA A100", "torch": "2.13.0", "cuda": "13.0", "cudnn": 91300, "slots": 16}
H100 = {**A100, "device": "NVIDIA H100"}
START, END, STOP, UP = "driver started", "driver finished", "driver stopped", "replica up"


def event(what: str, **facts: Any) -> Event:
    return Event(datetime(2026, 11, 1, tzinfo=UTC), what, facts)


def up(environment: Any) -> Event:
    return event(UP, replica="replica-0", environment=environment)


# Environments.


def test_each_environment_is_named_once() -> None:
    found = [up(A100), event(UP, replica="old"), up(H100), up(A100), up("no object"), event(END)]
    assert environments(found) == [A100, H100]
    assert environments([event(UP)]) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("device", "NVIDIA H100"), ("torch", "2.14.0"), ("cuda", "13.2"), ("cudnn", None),
     ("slots", 8), ("pass_rows", "all")],
)  # fmt: skip
def test_a_replica_that_computes_on_something_else_is_warned_of_once(
    name: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    driver: Any = SimpleNamespace(_environments=[A100])
    handle: Any = SimpleNamespace(name="replica-7")
    with caplog.at_level(logging.WARNING, "lrd"):
        for environment in (A100, None, {**A100, name: value}, {**A100, name: value}, A100):
            Driver._note_environment(driver, handle, environment)
    (line,) = caplog.messages
    assert "\n" not in line
    assert line.startswith("replica-7 does not compute as replicas of this run did before")
    before, now = (str(v) if v is not None else "not recorded" for v in (A100.get(name), value))
    assert f"({name} was {before}, is {now})" in line


def test_the_first_replicas_of_a_run_are_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    driver: Any = SimpleNamespace(_environments=[])
    for _ in range(3):
        Driver._note_environment(driver, SimpleNamespace(name="it"), A100)
    assert driver._environments == [A100]
    assert not caplog.messages


def test_every_difference_is_named() -> None:
    other = {"device": "cpu (AVX2)", "torch": "2.13.0", "threads": 2}
    assert list(differences(A100, other)) == [
        "device was NVIDIA A100, is cpu (AVX2)",
        "cuda was 13.0, is not recorded",
        "cudnn was 91300, is not recorded",
        "slots was 16, is not recorded",
        "threads was not recorded, is 2",
    ]


def test_a_replica_says_what_it_computes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "load_model", lambda *_: random_model(**LIVELY))
    settings = ReplicaSettings("m", None, "cpu", "float32", DecodingConfig(), 4, 1)
    found = Replica("it", settings).load()
    assert found is not None
    assert found == json.loads(json.dumps(found))
    assert found.pop("device").startswith("cpu (")
    assert found == {
        "torch": torch.__version__,
        "dtype": "float32",
        "compile": "none",
        "threads": 1,
    }
    # On a CPU neither slots nor free rows decide about a bit.
    assert Replica("it", replace(settings, slots=9, pass_rows="all")).load() == {
        **found,
        "device": computed_by(torch.device("cpu"))["device"],
    }


def test_on_a_gpu_its_type_versions_and_shapes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    monkeypatch.setattr(rounding.torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91300)
    actor = Replica("it", ReplicaSettings("m", None, "cpu", "bfloat16", DecodingConfig(), 16, 1))
    table = SimpleNamespace(device=torch.device("cuda"))
    actor._model = SimpleNamespace(embedding_table=table)
    assert actor._environment() == {
        "device": "NVIDIA A100", "torch": torch.__version__, "cuda": "13.0", "cudnn": 91300,
        "dtype": "bfloat16", "compile": "none", "slots": 16, "pass_rows": "busy",
    }  # fmt: skip


# Canvases.


SESSION = [event(START), event(END, canvases_computed=30)]
COURSES: dict[str, tuple[list[Event], int | None]] = {
    "one driver": (SESSION, 30),
    "stopped, then finished": ([event(START), event(STOP, canvases_computed=12), *SESSION], 42),
    "killed, then finished": ([event(START), *SESSION], None),
    "running": ([*SESSION, event(START)], None),
    "of an older version": ([event(START), event(END)], None),
    "not a number": ([event(START), event(END, canvases_computed="many")], None),
    "nothing": ([], None),
    "nothing was left to decode": ([event(START), event(END, canvases_computed=0)], 0),
}


@pytest.mark.parametrize("course", COURSES)
def test_canvases_are_known_where_every_driver_recorded_them(course: str) -> None:
    events, expected = COURSES[course]
    assert canvases_computed(events) == expected


def test_a_ratio_needs_both() -> None:
    assert per_forward(30, 20) == 1.5
    assert per_forward(None, 20) is None
    assert per_forward(0, 0) is None


def test_summary_and_report_show_both(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    rows = write_run(folder)
    needed = sum(n or 0 for n, s in zip(rows["num_forwards"].to_pylist(),
                 rows["status"].to_pylist(), strict=True) if s == "ok")  # fmt: skip
    path = folder / ".run" / "events.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert summarize(Storage(str(folder))).canvases_computed is None
    assert "is not known: a driver did not record it" in make_report(Storage(str(folder)), 5).html
    lines[-1]["canvases_computed"] = 2 * needed
    lines.insert(1, {"time": lines[0]["time"], "event": UP, "environment": H100})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = summarize(Storage(str(folder)))
    assert (summary.canvases_computed, summary.canvases_per_forward) == (2 * needed, 2.0)
    assert summary.environments == [H100]
    page = make_report(Storage(str(folder)), 5).html
    assert f"{2 * needed:,} canvases went through the model, 2.00 for each forward" in page
    for words in ("Computed on", "NVIDIA H100", '"canvases_per_forward":2.0'):
        assert words in page.replace('": 2.0', '":2.0')


# Settings, and waiting.


def test_the_rows_of_a_pass_are_a_setting() -> None:
    assert RunConfig(input="i", output="o").pass_rows == "busy"
    assert RunConfig(input="i", output="o", pass_rows="all").pass_rows == "all"


def test_a_host_that_waits_for_a_pass_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event that is not made for it keeps a core busy."""
    made: list[Any] = []

    class FakeEvent:
        def __init__(self, **options: Any) -> None:
            made.append(options)

        def record(self, stream: Any) -> None: ...

        def synchronize(self) -> None: ...

    class OnGpu:
        is_cuda, device = True, "cuda"

        def to(self, device: str, non_blocking: bool) -> str:
            assert non_blocking
            return device

    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    found: Any = on_host(OnGpu(), OnGpu())
    assert found == ["cpu", "cpu"]
    assert made == [{"blocking": True}], "one wait for all"
