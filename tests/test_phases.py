"""What a replica does while no pass ends, what the driver allows it, and memory for its slots."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.engine import PROMPTS, UNEVEN, cramped
from helpers.random_model import LIVELY, random_model

import lrd
from pipeline.driver import Driver
from pipeline.replicas import fleet as fleet_module
from pipeline.replicas import replica
from pipeline.replicas.deaths import RunStoppedError, Suspects
from pipeline.replicas.fleet import Actors, Fleet, NotPreparedError, room_error
from pipeline.replicas.handle import ReplicaHandle
from pipeline.replicas.pass_loop import NoRoomError, PassLoop
from pipeline.replicas.placement import Placement
from pipeline.replicas.replica import Replica, ReplicaSettings
from pipeline.rows import Bucket, Phase, Prompt, Report

HANG, START = 0.7, 12.0
"""Seconds; a report comes every hundredth. A busy machine may take half a second for any pass."""
ENDED = threading.Event()
"""Set at the end of a test: nothing waits any longer."""
SETTINGS = ReplicaSettings(
    model="random", revision=None, device="cpu", dtype="float32", decoding=UNEVEN, slots=5,
    threads=1,
)  # fmt: skip
NINE, FOUR = (Bucket(length, UNEVEN.gen_length) for length in (9, 4))
LONG = [Prompt(0, index, ids, bucket=NINE) for index, ids in enumerate(PROMPTS)]
SHORT = [Prompt(1, index, ids[:4], bucket=FOUR) for index, ids in enumerate(PROMPTS)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, no_pass_goes_on: None) -> Iterator[None]:
    monkeypatch.setattr(replica, "load_model", lambda *_: random_model(**LIVELY))
    monkeypatch.setattr(replica, "HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(fleet_module.nodes, "alive", dict)
    monkeypatch.setattr(fleet_module.nodes, "draining", set)
    ENDED.clear()
    yield
    ENDED.set()


class Kept(Actors):
    def kill(self, actor: Any) -> None: ...


class Watched:
    """A replica in this process, and the fleet that watches it by its reports."""

    def __init__(self, actor: Replica) -> None:
        placement = Placement("cpu", "float32", {"num_cpus": 1.0}, 1)
        self.events: list[str] = []
        self.fleet = Fleet(
            SETTINGS, placement, lambda what, **facts: self.events.append(what), HANG, START,
            Kept(),
        )  # fmt: skip
        self.actor = actor
        (self.handle,) = self.fleet.replicas
        self.handle.actor = SimpleNamespace(
            submit=SimpleNamespace(remote=actor.submit),
            collect=SimpleNamespace(remote=lambda: None),
        )
        self.phases: set[Phase] = set()

    def feed(self, batch: list[Prompt]) -> None:
        self.fleet.feed(self.handle, batch)

    def run(self) -> Exception | None:
        """Until no row is left, or the fleet finds the replica stuck: why."""
        while self.handle.in_flight:
            report = self.actor.collect()
            self.phases.add(report.phase)
            self.fleet.received(self.handle, report)
            for _, error in self.fleet.poll():
                return error
        return None


def started(**settings: Any) -> Replica:
    actor = Replica("it", replace(SETTINGS, **settings))
    actor.load()
    return actor


def sleeping(seconds: float, only: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finding out a bucket's slots takes so long."""

    def fitting(self: Replica, bucket: Bucket) -> int:
        ENDED.wait(seconds if bucket == only else 0)
        return SETTINGS.slots

    monkeypatch.setattr(Replica, "_fitting_slots", fitting)


def test_a_bucket_that_is_prepared_slowly_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    sleeping(3 * HANG, SHORT[0].bucket, monkeypatch)
    watched = Watched(started())
    watched.feed(LONG)
    watched.feed(SHORT)
    assert watched.run() is None
    assert Phase.PREPARING in watched.phases
    assert watched.handle.phase is Phase.DECODING, "it says when it is prepared"


def test_a_bucket_that_is_never_prepared_is_a_hang_of_no_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sleeping(60, SHORT[0].bucket, monkeypatch)
    watched = Watched(started())
    watched.fleet._start_seconds = 3 * HANG
    watched.feed(LONG)
    watched.feed(SHORT)
    began = time.monotonic()
    error = watched.run()
    assert isinstance(error, NotPreparedError)
    assert f"were not prepared within {3 * HANG:g} s" in str(error)
    assert time.monotonic() - began > 3 * HANG
    death = watched.fleet.remove_dead(watched.handle, error)
    assert not death.begun
    assert len(death.untouched) >= len(SHORT)
    suspects = Suspects(1)
    suspects.died(death)
    assert not suspects.decide(time.monotonic(), lambda node: False).given_up
    assert len(suspects) == 0


class SlowEngine:
    """Slots whose first pass with a number of rows takes long, as where kernels are compiled."""

    def __init__(self, num_slots: int, seconds: float, seen: set[int]) -> None:
        self.num_slots = self.max_busy = num_slots
        self.num_slot_passes, self.oom_events = 0, list[str]()
        self._seconds, self._seen = seconds, seen
        self._inner = lrd.Engine(random_model(**LIVELY), UNEVEN, num_slots, 9)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def step(self) -> list[lrd.Sample]:
        rows = min(self.num_slots, self._inner.num_busy + self._inner.num_waiting)
        if rows not in self._seen:
            self._seen.add(rows)
            time.sleep(self._seconds)
        return self._inner.step()


@pytest.mark.parametrize("compiles", [True, False])
def test_a_pass_of_a_new_shape_may_compile(compiles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default on a GPU, and with --compile; elsewhere such a pass hangs."""
    seen = {5}  # The first pass of all is compiled while nothing is known.
    monkeypatch.setattr(
        Replica, "new_engine", lambda self, bucket, slots: SlowEngine(slots, 3 * HANG, seen)
    )
    watched = Watched(started(compile="compile" if compiles else "none"))
    watched.feed(LONG)
    error = watched.run()
    if compiles:
        assert error is None
        assert len(seen) > 1
        assert Phase.COMPILING in watched.phases
        assert watched.fleet.longest_pass < HANG, "a pass that compiled is not a measure"
    else:
        assert "no pass ended" in str(error)


def test_the_first_pass_has_more_time_than_others(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[int] = set()
    monkeypatch.setattr(
        Replica, "new_engine", lambda self, bucket, slots: SlowEngine(slots, 3 * HANG, seen)
    )
    watched = Watched(started(slots=len(LONG)))
    watched.feed(LONG[:1])
    assert watched.run() is None


# Memory for slots.


class Loop:
    """A pass loop whose thread does nothing: the test makes its calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fitting: Any, model: Any = None) -> None:
        monkeypatch.setattr(threading.Thread, "start", lambda self: None)
        self.said: list[Any] = []
        self.engines: list[weakref.ref[lrd.Engine]] = []
        model = model or random_model(**LIVELY)

        def new(bucket: Bucket, num_slots: int) -> lrd.Engine:
            engine = lrd.Engine(model, UNEVEN, num_slots, bucket.prompt)
            self.engines.append(weakref.ref(engine))
            return engine

        self.loop = PassLoop("it", 5, 1, fitting, new, self.said.append)
        self._given = 0

    def give(self, bucket: int, count: int = 2) -> None:
        requests = [lrd.Request((self._given, n), [1, 2, 3], n) for n in range(count)]
        self.loop._arrive(self._given, Bucket(bucket, UNEVEN.gen_length), requests)
        self._given += 1

    def finish(self) -> None:
        while any(engine.busy for _, engine in self.loop._engines):
            self.loop._run_pass()

    @property
    def texts(self) -> list[str]:
        return [item for item in self.said if isinstance(item, str)]


def test_a_limited_bucket_is_probed_again_when_an_engine_has_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Memory has room for five slots, and each engine that is there takes three of them."""
    asked: list[tuple[int, int]] = []

    def fitting(bucket: Bucket) -> int:
        gc.collect()
        there = sum(engine() is not None for engine in it.engines)
        asked.append((bucket.prompt, there))
        return 5 - 3 * min(1, there)

    it = Loop(monkeypatch, fitting)
    it.give(9)
    it.give(4)
    assert asked == [(9, 0), (4, 1)]
    assert it.loop._engines[-1][1].num_slots == 2
    it.give(4)
    assert len(asked) == 2, "while the other is there nothing has changed"
    it.finish()
    it.give(9)
    assert asked[2:] == [], "the bucket that was not limited is not probed again"
    it.finish()
    it.give(4)
    assert asked[2:] == [(4, 0)], "with the memory of idle engines"
    assert it.loop._engines[-1][1].num_slots == 5
    it.finish()
    it.give(9)
    it.give(4)
    assert len(asked) == 3, "found alone, so nothing can be gained"
    assert it.texts == [
        f"memory for 2 of 5 slots in bucket {FOUR}",
        f"memory for 5 of 5 slots in bucket {FOUR}",
    ]


def test_slots_that_were_halved_beside_another_engine_are_found_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    it = Loop(monkeypatch, lambda bucket: 5, cramped(torch.OutOfMemoryError("no")))
    it.give(9, 1)
    it.give(4, 4)
    it.finish()
    assert it.loop._rooms[FOUR].slots == 2
    assert it.loop._rooms[FOUR].beside
    it.give(9, 1)
    it.finish()
    it.give(4, 1)
    assert it.loop._rooms[FOUR].slots == 5
    # Alone, what was learnt stays.
    it.finish()
    it.give(4, 5)
    it.finish()
    assert not it.loop._rooms[FOUR].beside
    it.give(9, 1)
    it.give(4, 1)
    assert it.loop._rooms[FOUR].slots == 2


def test_a_bucket_without_room_beside_others_waits_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fitting(bucket: Bucket) -> int:
        gc.collect()
        if bucket == FOUR and any(engine() is not None for engine in it.engines):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return 5

    it = Loop(monkeypatch, fitting)
    it.give(9, 3)
    it.give(4, 2)
    done = [item.key for item in it.said if isinstance(item, lrd.Sample)]
    assert sorted(done) == [(0, 0), (0, 1), (0, 2)], "those given first are decoded first"
    it.finish()
    done = [item.key for item in it.said if isinstance(item, lrd.Sample)]
    assert len(done) == 5


OUT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore words")


def no_slot(bucket: Bucket) -> int:
    raise OUT


def in_probe(monkeypatch: pytest.MonkeyPatch) -> Loop:
    it = Loop(monkeypatch, no_slot)
    it.give(9)
    return it


def in_pass(monkeypatch: pytest.MonkeyPatch) -> Loop:
    model = cramped(OUT)
    monkeypatch.setattr(type(model), "hidden", lambda self, *rest: no_slot(NINE))
    it = Loop(monkeypatch, lambda bucket: 1, model)
    it.give(9)
    it.finish()
    return it


@pytest.mark.parametrize("where", [in_probe, in_pass])
def test_no_memory_for_one_slot_is_said_in_one_line(
    where: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NoRoomError) as caught:
        where(monkeypatch)
    said = str(caught.value)
    assert "\n" not in said
    assert (
        "no memory for one slot of 9 prompt tokens and a canvas of 12 (CUDA out of memory. Tried"
        in said
    )
    assert "--gen-length" in said


@pytest.mark.parametrize(
    ("deaths", "lacked_room", "ends"),
    [(0, False, True), (2, False, False), (1, True, True)],
)
def test_no_memory_for_one_slot_ends_the_run_in_one_line(
    deaths: int, lacked_room: bool, ends: bool
) -> None:
    """But for a replica whose predecessor's memory may not be free yet."""
    import ray

    lost = ray.exceptions.RayTaskError(
        "collect", "traceback", NoRoomError(Bucket(512, 64), "CUDA out of memory")
    )
    handle = ReplicaHandle("replica-3", deaths=deaths, lacked_room=lacked_room)
    assert room_error(lost) is not None
    assert room_error(lost.as_instanceof_cause()) is not None
    stop = Driver._stop_without_room
    if not ends:
        stop(SimpleNamespace(), handle, lost)
        return
    with pytest.raises(RunStoppedError, match=r"^replica-3: no memory for one slot of 512 "):
        stop(SimpleNamespace(), handle, lost)


def test_rows_are_not_blamed_for_want_of_memory() -> None:
    watched = Watched(started())
    watched.handle.in_flight = {(0, n): prompt for n, prompt in enumerate(LONG)}
    death = watched.fleet.remove_dead(watched.handle, NoRoomError(NINE, "CUDA out of memory"))
    assert (death.begun, len(death.untouched)) == ([], len(LONG))
    assert watched.handle.lacked_room
    again = Report.of([], finished=[(0, 0)], returned=[], events=[], num_passes=1, longest_pass=0.1)
    watched.handle.in_flight = {(0, 0): LONG[0]}
    watched.fleet.received(watched.handle, again)
    assert not watched.handle.lacked_room
