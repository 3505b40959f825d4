"""Replicas without a model, for measurements of the driver: slots that end after a sampled time.

A simulated replica is the pipeline's own with other engines. A row's time is the number of
forwards of a row that was really decoded, sampled by its seed, scaled to the wanted mean.
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

from lrd import Request, Sample
from pipeline.replicas.fleet import Actors
from pipeline.replicas.pass_loop import SlotEngine
from pipeline.replicas.replica import Replica, ReplicaSettings
from pipeline.rows import Bucket, Prompt, Report

PASS_SECONDS = 0.02
"""Longest pass, in seconds: the precision of the rows' end times."""


@dataclass(frozen=True, slots=True)
class Latencies:
    """How long rows occupy their slots."""

    forwards: tuple[int, ...]
    """Of rows that were decoded; each is equally likely."""
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
    """Slots of a process that are occupied, summed over the time in which there was work: from its
    first prompt to its last."""

    def __init__(self, report: Path) -> None:
        self._report = report
        self._num_occupied, self._slot_seconds = 0, 0.0
        self._began = self._at = 0.0

    def change(self, by: int) -> None:
        """`by` more slots are occupied from now on."""
        now = time.monotonic()
        self._slot_seconds += self._num_occupied * (now - self._at)
        self._num_occupied, self._at = self._num_occupied + by, now

    def submitted(self) -> None:
        """A prompt was submitted."""
        self.change(0)
        self._began = self._began or self._at
        facts = {"seconds": self._at - self._began, "slot_seconds": self._slot_seconds}
        self._report.write_text(json.dumps(facts))


class PassTimer:
    """One sleep a pass, however many engines a replica has."""

    def __init__(self) -> None:
        self._slept_at = 0.0

    def sleep(self, seconds: float) -> None:
        """Sleep for so long at most, unless another engine just did."""
        if time.monotonic() - self._slept_at > PASS_SECONDS / 2:
            time.sleep(max(0.0, min(seconds, PASS_SECONDS)))
            self._slept_at = time.monotonic()


class TimedEngine:
    """Slots that each prompt occupies for a sampled time; a replica uses it like `lrd.Engine`."""

    def __init__(
        self,
        num_slots: int,
        gen_length: int,
        latencies: Latencies,
        timer: PassTimer,
        occupancy: Occupancy | None,
    ) -> None:
        self.num_slots = self.max_busy = num_slots
        self._gen_length = gen_length
        self.num_slot_passes = 0
        self.oom_events: list[str] = []
        self._latencies, self._timer, self._occupancy = latencies, timer, occupancy
        self._waiting: deque[Request] = deque()
        self._ends: dict[Any, tuple[float, int, float]] = {}
        """Key → when its slot ends, its forwards, and its seconds in the slot."""

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
            self._timer.sleep(min(end for end, *_ in self._ends.values()) - now)
        self.num_slot_passes += len(self._ends)
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
            kept=[False] * self._gen_length,
            commit_step=[1] * self._gen_length,
            token_confidence=[0.9, *[None] * (self._gen_length - 1)],
            num_forwards=num_forwards,
            refine_steps=0,
            decode_steps=num_forwards,
            full_passes=num_forwards,
            positions_computed=num_forwards * self._gen_length,
            blocks=1,
            num_uncommits=0,
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
    """Several replicas in one process with the slots of all; each has its own queue of results."""

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
        self._latencies, self._reports, self._timer = latencies, reports, PassTimer()
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
        report = self.report(self.take(self._outboxes[index]))
        own = [(self._own[number][1], row) for number, row in report.finished]
        # The thread's canvases are those of all replicas, which one of them reports.
        num_canvases = report.num_canvases if index == 0 else 0
        return replace(report, finished=own, num_canvases=num_canvases)

    def put(self, item: Any) -> None:
        if isinstance(item, Sample):
            self._outboxes[self._own[item.key[0]][0]].put(item)
        else:
            for outbox in self._outboxes:
                outbox.put(item)

    def new_engine(self, bucket: Bucket, num_slots: int) -> SlotEngine:
        return TimedEngine(
            num_slots,
            bucket.canvas,
            self._latencies,
            self._timer,
            self.occupancy,
        )


class SharedActor:
    """One of the replicas of a process; the driver uses it like an actor's handle."""

    def __init__(self, process: Any, index: int) -> None:
        self.process = process
        self.location, self.load, self.drain = process.location, process.load, process.drain
        self.submit = SimpleNamespace(remote=partial(process.submit_to.remote, index))
        self.collect = SimpleNamespace(remote=partial(process.collect_from.remote, index))


class SimulatedActors(Actors):
    """Starts replicas without a model, several in one process, with the same interface."""

    def __init__(self, latencies: Latencies, reports: Path | None, share: int) -> None:
        """reports: folder for how long their slots were occupied. share: replicas in a process."""
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
