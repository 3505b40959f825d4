"""What a run cost: percentiles, tokens a second, time not in passes and money, by hand."""

from __future__ import annotations

import json
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event as Event_
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers.synthetic_run import write_run
from test_report import call, data_of, refused, text_of

from lrd import Request, Sample
from pipeline import rows
from pipeline.output.money import Cost, money
from pipeline.output.run_folder import EVENTS
from pipeline.output.run_records import Event
from pipeline.output.session_facts import GpuTime, gpu_time, pass_seconds, replica_seconds
from pipeline.output.statistics import Spread, three_digits
from pipeline.replicas.fleet import Fleet
from pipeline.replicas.handle import ReplicaHandle
from pipeline.replicas.pass_loop import PassLoop
from pipeline.report.report import make_report
from pipeline.rows import Report
from pipeline.storage.storage import Storage

pytestmark = pytest.mark.usefixtures("no_pass_goes_on")

BEGAN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
START, END, STOP = "driver started", "driver finished", "driver stopped"
UP, DIED, RETIRED = "replica up", "replica died", "replica retired"
GPUS = {"device": "cuda", "replicas": 2, "num_cpus": 1.0, "num_gpus": 0.5}
CPUS = {"device": "cpu", "replicas": 2, "num_cpus": 1.0}
Course = list[tuple[float, str, dict[str, Any]]]


def events_of(course: Course) -> list[Event]:
    return [Event(BEGAN + timedelta(seconds=s), what, facts) for s, what, facts in course]


class SleepyEngine:
    """One slot whose passes only take their time; the last one ends the sample."""

    num_slots, max_busy, num_slot_passes, num_waiting = 1, 1, 0, 0

    def __init__(self, num_passes: int, seconds: float) -> None:
        self._left, self._seconds, self.oom_events = num_passes, seconds, list[str]()
        self.busy = False

    @property
    def num_busy(self) -> int:
        return int(self.busy)

    def submit(self, request: Request) -> None:
        self.busy = True

    def step(self) -> list[Sample]:
        time.sleep(self._seconds)
        self._left -= 1
        self.busy = self._left > 0
        return [] if self.busy else [object.__new__(Sample)]

    def return_waiting(self) -> list[Request]:
        return []


def _bucket() -> Any:
    """What a bucket is called: its prompt tokens, or those and its canvas."""
    bucket = getattr(rows, "Bucket", None)
    return 8 if bucket is None else bucket(8, 8)


def up(seconds: float, name: str) -> tuple[float, str, dict[str, Any]]:
    return seconds, UP, {"replica": name}


ONE: Course = [(0, START, GPUS), up(10, "a"), up(20, "b"), (100, END, {"pass_seconds": 119.0})]
"""Replicas were up for 90 + 80 s; 2 × 0.5 GPUs for 100 s."""
COURSES: dict[str, tuple[Course, float | None, float | None, GpuTime | None]] = {
    # Course, seconds that replicas were up, seconds in passes, GPU time.
    "one driver": (ONE, 170, 119, GpuTime(100, True)),
    "a replica died and came again": (
        [*ONE[:3], (50, DIED, {"replica": "a"}), up(60, "a"), (100, END, {"pass_seconds": 7})],
        *(40 + 40 + 80, 7, GpuTime(100, True)),
    ),
    "retired": (
        [*ONE[:3], (50, RETIRED, {"replica": "b"}), (100, END, {"pass_seconds": 7})],
        *(90 + 30, 7, GpuTime(100, True)),
    ),
    "a replica that never came up": (
        [(0, START, GPUS), up(10, "a"), (12, DIED, {"replica": "b"}), (40, STOP, {})],
        *(30, None, GpuTime(40, True)),
    ),
    "stopped, and finished a day later": (
        [*ONE[:3], (30, STOP, {"pass_seconds": 11}), (86400, START, GPUS), up(86410, "a"),
         (86420, END, {"pass_seconds": 5})],
        *(20 + 10 + 10, 16, GpuTime(30 + 20, True)),
    ),
    "killed after 20 s, then finished": (
        [*ONE[:3], *[(200 + s, what, facts) for s, what, facts in ONE]],
        *(None, None, GpuTime(20 + 100, False)),
    ),
    "running": (ONE[:3], None, None, GpuTime(20, False)),
    "more replicas from 60 s on": (
        [*ONE[:3], (60, "replicas", {"wanted": 4, "before": 2}), (100, END, {"pass_seconds": 1})],
        *(170, 1, GpuTime(60 + 2 * 40, True)),
    ),
    "on CPUs": ([(0, START, CPUS), up(10, "a"), (30, END, {"pass_seconds": 4})], 20, 4, None),
    "of an older version": ([(0, START, {}), up(10, "a"), (30, END, {})], 20, None, None),
    "nothing": ([], None, None, None),
}  # fmt: skip


@pytest.mark.parametrize("course", COURSES)
def test_times_of_replicas_by_hand(course: str) -> None:
    told, alive, in_passes, gpus = COURSES[course]
    events = events_of(told)
    assert replica_seconds(events) == alive
    assert pass_seconds(events) == in_passes
    found = gpu_time(events)
    assert found == gpus if gpus is not None else isinstance(found, str)


def test_a_replica_sums_the_seconds_of_its_passes() -> None:
    """Four passes of 0.05 s, by a real thread of passes."""
    ended, engine = Event_(), SleepyEngine(4, 0.05)
    loop = PassLoop("it", 1, 1, lambda bucket: 1, lambda bucket, slots: engine,
                    lambda item: ended.set() if isinstance(item, Sample) else None)  # fmt: skip
    began = time.monotonic()
    loop.give(0, _bucket(), [Request((0, 0), [1], 0)])
    assert ended.wait(30)
    assert 4 * 0.05 <= loop.pass_seconds <= time.monotonic() - began
    assert loop.num_passes == 4


def test_the_fleet_keeps_the_seconds_of_replicas_that_died() -> None:
    fleet: Any = SimpleNamespace(
        longest_pass=0.0, num_canvases=0, pass_seconds=0.0, _any_passed=False
    )
    replica = ReplicaHandle("it")

    def report(passes: int, seconds: float) -> None:
        found = Report.of(
            [], finished=[], returned=[], events=[], num_passes=passes, longest_pass=1.0,
            pass_seconds=seconds,
        )  # fmt: skip
        Fleet.received(fleet, replica, found)

    report(1, 2.0)
    report(3, 5.5)
    report(3, 5.5)
    assert fleet.pass_seconds == 5.5
    # As `Fleet._start` does for a new actor.
    replica.num_passes = replica.num_canvases = 0
    replica.pass_seconds = 0.0
    report(1, 0.5)
    assert fleet.pass_seconds == 6.0


# Percentiles.


def test_percentiles_are_values_that_rows_have() -> None:
    """Of 1 to 100, a row each: the smallest value that at least so many do not exceed."""
    assert Spread.of(Counter(range(1, 101))) == Spread(50, 90, 99)
    assert Spread.of({3: 99, 1000: 1}) == Spread(3, 3, 3)
    assert Spread.of({3: 98, 1000: 2}) == Spread(3, 3, 1000)
    assert Spread.of({}) is None
    assert str(Spread(3, 1234, 0.0125)) == "p50 3, p90 1,234, p99 0.0125"


def test_seconds_are_rounded_to_three_digits() -> None:
    values = [0.0123449, 0.99951, 1234.9, 0.0, None, 5.0, 99.96]
    found = three_digits(pa.array(values, pa.float32())).to_pylist()
    assert found == [0.0123, 1.0, 1230.0, 0.0, 5.0, 100.0]
    assert three_digits(pa.array([], pa.float32())).to_pylist() == []
    rng = np.random.default_rng(0)
    many = rng.lognormal(0, 4, 5000).astype(np.float32)
    found = three_digits(pa.array(many)).to_pylist()
    assert found == [float(f"{value:.2e}") for value in many.tolist()]
    # Rounding keeps the order, so a percentile is that of the numbers, rounded.
    spread = Spread.of(Counter(found))
    assert spread is not None
    exact = np.quantile(many, [0.5, 0.9, 0.99], method="inverted_cdf")
    assert [spread.p50, spread.p90, spread.p99] == [float(f"{x:.2e}") for x in exact.tolist()]


# Money.


def test_money_by_hand() -> None:
    """Three GPU-hours at 2.50 for 500 rows of 60,000 tokens."""
    cost = Cost(3.0, 2.5, 500, 60_000)
    assert (cost.total, cost.thousand_rows, cost.million_tokens) == (7.5, 15.0, 125.0)
    assert Cost(3.0, 2.5, 500, 0).million_tokens is None


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0.0, "0.00"), (0.004, "below 0.01"), (0.006, "0.01"), (1234.5, "1,234.50")],
)
def test_money_has_two_decimals(amount: float, text: str) -> None:
    assert money(amount) == text


@pytest.mark.parametrize("price", ["0", "-1", "nan", "inf"])
def test_a_price_is_a_number_above_0(
    price: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "run", (4,))
    line = refused(capsys, str(tmp_path / "run"), f"--price-per-gpu-hour={price}")
    assert "--price-per-gpu-hour is" in line
    assert not (tmp_path / "run/report.html").exists()


# The page.


def write_course(folder: Path, course: Course) -> None:
    lines = [json.dumps(event.to_json()) for event in events_of(course)]
    (folder / EVENTS).write_text("\n".join(lines) + "\n")


def test_the_report_has_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    table = write_run(folder).to_pandas()
    write_course(folder, ONE)
    ok = table[table.status == "ok"]
    tokens = int(ok.num_output_tokens.sum())
    assert call(str(folder), "--price-per-gpu-hour", "36") == 0
    printed = capsys.readouterr().out
    page = (folder / "report.html").read_text()
    found = data_of(page)["numbers"]["speed"]
    ordered = sorted(ok.num_forwards.astype(int))
    nth = [ordered[int(np.ceil(share * len(ok))) - 1] for share in (0.5, 0.9, 0.99)]
    assert list(found["passes"].values()) == nth
    seconds = sorted(float(f"{s:.3g}") for s in ok.seconds)
    of = [seconds[int(np.ceil(share * len(ok))) - 1] for share in (0.5, 0.9, 0.99)]
    assert list(found["seconds"].values()) == of
    assert found["effective_tokens_per_replica_second"] == pytest.approx(tokens / 170)
    assert found["share_outside_passes"] == pytest.approx(1 - 119 / 170)
    # 100 GPU-seconds at 36 an hour are 1.00.
    assert found["cost"]["total"] == pytest.approx(1.0)
    assert found["cost"]["thousand_rows"] == pytest.approx(1000 / len(ok))
    assert found["cost"]["million_effective_tokens"] == pytest.approx(1e6 / tokens)
    seen = text_of(page)
    for words in (
        f"passes a row {nth[0]} {nth[1]} {nth[2]}",
        f"effective tokens/s a replica {tokens / 170:,.1f}",
        "time not in passes 30.0%",
        "GPU-hours 0.03",
        "cost at 36.00 a GPU-hour 1.00",
        f"cost of a thousand rows {1000 / len(ok):.2f}",
        f"cost of a million effective tokens {1e6 / tokens:,.2f}",
    ):
        assert words in seen
    assert f"passes a row: p50 {nth[0]}, p90 {nth[1]}, p99 {nth[2]}" in printed
    assert f"cost of a thousand rows: {1000 / len(ok):.2f}" in printed
    # Without a price nothing is said of money.
    assert call(str(folder)) == 0
    assert "cost" not in text_of((folder / "report.html").read_text())
    assert data_of((folder / "report.html").read_text())["numbers"]["speed"]["cost"] is None


UNKNOWN: dict[str, tuple[Course, str]] = {
    "on CPUs": (COURSES["on CPUs"][0], "Not known: cost, since its replicas held no GPU."),
    "killed": (
        COURSES["killed after 20 s, then finished"][0],
        "effective tokens/s a replica and time not in passes, since a driver did not record its "
        "end",
    ),
    "of an older version": (
        COURSES["of an older version"][0],
        "time not in passes, since a driver did not record the seconds in passes",
    ),
    "no replica": ([(0, START, GPUS), (9, END, {})], "since the start of no replica is recorded"),
}


@pytest.mark.parametrize("why", UNKNOWN)
def test_what_is_not_known_is_left_out_with_the_reason(why: str, tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    course, reason = UNKNOWN[why]
    write_course(tmp_path / "run", course)
    page = make_report(Storage(str(tmp_path / "run")), 5, price=1.0).html
    assert reason in text_of(page)


def test_a_killed_driver_makes_the_cost_a_lower_bound(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write_run(folder)
    write_course(folder, COURSES["killed after 20 s, then finished"][0])
    page = make_report(Storage(str(folder)), 5, price=30.0).html
    assert "cost at 30.00 a GPU-hour at least 1.00" in text_of(page)
    assert data_of(page)["numbers"]["speed"]["cost"]["bound"] == "at least"
    # With an autoscaler replicas may have waited: neither bound holds.
    manifest = folder / ".run/manifest.json"
    content = json.loads(manifest.read_text())
    content["settings"]["autoscale"] = True
    manifest.write_text(json.dumps(content))
    page = make_report(Storage(str(folder)), 5, price=30.0).html
    assert data_of(page)["numbers"]["speed"]["cost"] is None
    write_course(folder, ONE)
    page = make_report(Storage(str(folder)), 5, price=36.0).html
    assert "cost at 36.00 a GPU-hour at most 1.00" in text_of(page)


def test_an_unfinished_run_has_percentiles_alone(tmp_path: Path) -> None:
    write_run(tmp_path / "run", num_committed=2)
    write_course(tmp_path / "run", ONE)
    page = make_report(Storage(str(tmp_path / "run")), 5, price=1.0).html
    found = data_of(page)["numbers"]["speed"]
    assert found["passes"] is not None
    assert found["effective_tokens_per_replica_second"] is None
    assert found["cost"] is None
    assert "since the run is not finished" in text_of(page)
