"""Replicas without a model, for measurements of the driver: slots that end after a sampled time.

A simulated replica is the pipeline's own with other engines. A row's time is the forwards of a
row that was really decoded, drawn by its seed, times the seconds that makes the wanted mean.
"""

from __future__ import annotations

import csv
import json
import random
import time
from collections import deque
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import ray

from lrd import Engine, Request, Sample
from pipeline.replicas.fleet import Actors
from pipeline.replicas.replica import Replica, ReplicaSettings
from pipeline.rows import Prompt, Report

PASS_SECONDS = 0.02
"""Longest pass: how exactly rows end at their time."""


@dataclass(frozen=True, slots=True)
class Latencies:
    """How long rows hold their slots."""

    forwards: tuple[int, ...]
    """Of rows that were decoded; every one as likely."""
    mean: float
    """Seconds; 0: none."""

    @classmethod
    def measured(cls, path: Path, mean: float) -> Latencies:
        """From a CSV file with the columns num_forwards and rows."""
        with path.open(newline="") as file:
            found = [(int(row["num_forwards"]), int(row["rows"])) for row in csv.DictReader(file)]
        return cls(tuple(number for number, rows in found for _ in range(rows)), mean)

    def of(self, seed: int) -> tuple[int, float]:
        """A row's forwards and seconds."""
        number = random.Random(seed).choice(self.forwards)
        return number, self.mean * number * len(self.forwards) / sum(self.forwards)


class Occupancy:
    """How many slots of a process hold a row, over the time in which there was work to be had:
    from its first prompt to its last."""

    def __init__(self, report: Path) -> None:
        self._report = report
        self._num_held, self._slot_seconds = 0, 0.0
        self._began = self._at = 0.0

    def change(self, by: int) -> None:
        """So many slots more hold a row from now on."""
        now = time.monotonic()
        self._slot_seconds += self._num_held * (now - self._at)
        self._num_held, self._at = self._num_held + by, now

    def submitted(self) -> None:
        """More work has come."""
        self.change(0)
        self._began = self._began or self._at
        facts = {"seconds": self._at - self._began, "held": self._slot_seconds}
        self._report.write_text(json.dumps(facts))


class Pace:
    """One rest a pass, however many engines a replica has in it."""

    def __init__(self) -> None:
        self._rested_at = 0.0

    def rest(self, seconds: float) -> None:
        """Sleep for so long at most, unless another engine just did."""
        if time.monotonic() - self._rested_at > PASS_SECONDS / 2:
            time.sleep(max(0.0, min(seconds, PASS_SECONDS)))
            self._rested_at = time.monotonic()


class TimedEngine:
    """Slots that hold each prompt for a sampled time; looks like `lrd.Engine` to a replica."""

    def __init__(
        self,
        num_slots: int,
        gen_length: int,
        latencies: Latencies,
        pace: Pace,
        occupancy: Occupancy | None,
    ) -> None:
        self.num_slots = self.max_busy = num_slots
        self._gen_length = gen_length
        self.oom_events: list[str] = []
        self._latencies, self._pace, self._occupancy = latencies, pace, occupancy
        self._waiting: deque[Request] = deque()
        self._ends: dict[Any, tuple[float, int, float]] = {}
        """Key → when its slot ends, its forwards, and for how long it is held."""

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._ends)

    @property
    def num_busy(self) -> int:
        return len(self._ends)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def return_waiting(self) -> list[Request]:
        waiting = list(self._waiting)
        self._waiting.clear()
        return waiting

    def submit(self, request: Request) -> None:
        self._waiting.append(request)
        if self._occupancy is not None:
            self._occupancy.submitted()

    def step(self) -> list[Sample]:
        now, before = time.monotonic(), len(self._ends)
        while self._waiting and len(self._ends) < min(self.num_slots, self.max_busy):
            request = self._waiting.popleft()
            number, seconds = self._latencies.of(request.seed)
            self._ends[request.key] = now + seconds, number, seconds
        self._changed(before)
        if not self._ends:
            return []
        if self._latencies.mean:
            self._pace.rest(min(end for end, *_ in self._ends.values()) - now)
        now, before = time.monotonic(), len(self._ends)
        done = [key for key, (end, *_) in self._ends.items() if end <= now]
        samples = [self._sample(key) for key in done]
        self._changed(before)
        return samples

    def _changed(self, before: int) -> None:
        if self._occupancy is not None and len(self._ends) != before:
            self._occupancy.change(len(self._ends) - before)

    def _sample(self, key: Any) -> Sample:
        _, num_forwards, seconds = self._ends.pop(key)
        return Sample(
            key=key,
            canvas=[1] * self._gen_length,
            text="4+3=7",
            num_output_tokens=0,
            commit_step=[1] * self._gen_length,
            num_forwards=num_forwards,
            refine_steps=0,
            decode_steps=num_forwards,
            blocks=1,
            stop_reason="complete",
            open_at_stop=0,
            max_entropy_at_stop=0.0,
            refine_converged=True,
            kl_trace=[float("nan"), *[0.2] * (num_forwards - 1)],
            entropy_trace=[0.4] * num_forwards,
            mean_mix_weight=0.1,
            error=None,
            seconds=seconds,
        )


class SimulatedReplica(Replica):
    """Several replicas in one process, which has the slots of all; each has its own outbox."""

    occupancy: Occupancy | None = None

    def __init__(
        self,
        name: str,
        settings: ReplicaSettings,
        latencies: Latencies,
        reports: Path | None,
        share: int,
    ) -> None:
        super().__init__(name, settings)
        self._latencies, self._reports, self._pace = latencies, reports, Pace()
        self._outboxes: list[SimpleQueue[Any]] = [SimpleQueue() for _ in range(share)]
        self._given = count()
        self._own: dict[int, tuple[int, int]] = {}
        """A batch's number in the process → its replica, and its number there."""

    def load(self) -> None:
        if self._reports and self.occupancy is None:
            self.occupancy = Occupancy(self._reports / f"{self._name}.json")

    def submit_to(self, index: int, number: int, prompts: list[Prompt]) -> None:
        """`submit` of one of the replicas."""
        given = next(self._given)
        self._own[given] = index, number
        self.submit(given, prompts)

    def collect_from(self, index: int) -> Report:
        """`collect` of one of the replicas."""
        report = self._report(self._taken(self._outboxes[index]))
        own = [(self._own[number][1], row) for number, row in report.finished]
        return replace(report, finished=own)

    def _put(self, item: Any) -> None:
        if isinstance(item, Sample):
            self._outboxes[self._own[item.key[0]][0]].put(item)
        else:
            for outbox in self._outboxes:
                outbox.put(item)

    def _new_engine(self, bucket: int, num_slots: int) -> Engine:
        engine: Any = TimedEngine(
            num_slots,
            self._settings.decoding.gen_length,
            self._latencies,
            self._pace,
            self.occupancy,
        )
        return engine


class SharedActor:
    """One of the replicas of a process; looks like an actor's handle to the driver."""

    def __init__(self, process: Any, index: int) -> None:
        self.process = process
        self.location, self.load, self.drain = process.location, process.load, process.drain
        self.submit = SimpleNamespace(remote=partial(process.submit_to.remote, index))
        self.collect = SimpleNamespace(remote=partial(process.collect_from.remote, index))


class SimulatedActors(Actors):
    """Starts replicas without a model, several in one process; the driver cannot tell."""

    def __init__(self, latencies: Latencies, reports: Path | None, share: int) -> None:
        """reports: folder for what their slots were held. share: replicas in a process."""
        super().__init__(SimulatedReplica)
        self._latencies, self._reports, self._share = latencies, reports, share
        self._num_started = count()
        self._process: Any = None

    def start(self, name: str, settings: ReplicaSettings, options: dict[str, Any]) -> SharedActor:
        share, index = self._share, next(self._num_started) % self._share
        if index == 0:
            settings = replace(settings, slots=settings.slots * share)
            options = options | {"max_concurrency": options["max_concurrency"] * share}
            actor_class: Any = ray.remote(self._replica_class)
            self._process = actor_class.options(**options).remote(
                name, settings, self._latencies, self._reports, share
            )
        return SharedActor(self._process, index)

    def kill(self, actor: SharedActor) -> None:
        super().kill(actor.process)
