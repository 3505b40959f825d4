"""Runs a replica's forward passes in a thread: takes requests, reports finished samples.

Each bucket with prompts in flight has an engine of its own. Together the engines decode at most as
many canvases as the replica has slots.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Protocol

import torch

from lrd import Request, Sample
from pipeline import faults
from pipeline.observe.metrics import PassMetrics

Report = Callable[[Sample | Request | str | Exception], None]
"""Called in the thread with a finished sample, a request that is returned, an event's text, or the
exception of a pass."""


class SlotEngine(Protocol):
    """What a replica asks of an engine: `lrd.Engine`, or slots that only take their time."""

    num_slots: int
    max_busy: int
    """Slots that may hold a prompt in the next pass."""
    oom_events: list[str]
    """How often memory ran out since they were last cleared, a line each."""

    @property
    def busy(self) -> bool:
        """Whether any prompt waits or is being decoded."""

    @property
    def num_busy(self) -> int:
        """Slots that hold a prompt."""

    @property
    def num_waiting(self) -> int:
        """Prompts that no slot has taken yet."""

    def submit(self, request: Request) -> None:
        """Queue a prompt."""

    def step(self) -> list[Sample]:
        """One pass; the samples that have ended."""

    def return_waiting(self) -> list[Request]:
        """Take back the prompts that no slot has taken yet."""


class PassLoop:
    """The thread and its engines; `give` and `return_waiting` may be called from other threads."""

    def __init__(
        self,
        name: str,
        num_slots: int,
        num_threads: int,
        fitting_slots: Callable[[int], int],
        new_engine: Callable[[int, int], SlotEngine],
        report: Report,
    ) -> None:
        """name: the replica's. num_threads: torch's, for computing. fitting_slots: bucket → slots
        that memory has room for. new_engine: (bucket, slots) → an engine."""
        self._name, self._num_slots, self._num_threads = name, num_slots, num_threads
        self._fitting_slots, self._new_engine, self._report = fitting_slots, new_engine, report
        self._orders: SimpleQueue[Callable[[], None]] = SimpleQueue()
        """Calls to make before the next pass."""
        self._engines: list[tuple[int, SlotEngine]] = []
        """Bucket and engine, in the order in which their prompts were given."""
        self._slots: dict[int, int] = {}
        """Bucket → slots that memory had room for."""
        self._early: dict[int, tuple[int, list[Request]]] = {}
        """Batches that arrived before one with a smaller number."""
        self._num_begun = 0
        self.num_passes = 0
        self.longest_pass = 0.0
        """Seconds."""
        self._metrics = PassMetrics(name, num_slots)
        threading.Thread(target=self._work, name="passes", daemon=True).start()

    def give(self, number: int, bucket: int, requests: list[Request]) -> None:
        """Decode a batch of one bucket. Batches may arrive out of order; slots are filled in the
        order of the numbers."""
        self._orders.put(partial(self._arrive, number, bucket, requests))

    def return_waiting(self) -> None:
        """Return the requests that have no slot yet."""
        self._orders.put(self._return_waiting)

    def _work(self) -> None:
        # torch keeps this number for each thread.
        torch.set_num_threads(self._num_threads)
        while True:
            try:
                self._run_orders()
                self._run_pass()
            except Exception as error:
                self._engines.clear()
                self._report(error)

    def _run_orders(self) -> None:
        """Make the calls that were ordered; wait for one while there is nothing to decode."""
        while not self._orders.empty() or not any(engine.busy for _, engine in self._engines):
            self._orders.get()()

    def _arrive(self, number: int, bucket: int, requests: list[Request]) -> None:
        self._early[number] = bucket, requests
        while self._num_begun in self._early:
            self._begin(*self._early.pop(self._num_begun))

    def _begin(self, bucket: int, requests: list[Request]) -> None:
        self._num_begun += 1
        engine = self._engine(bucket)
        for request in requests:
            engine.submit(request)

    def _return_waiting(self) -> None:
        for _, engine in self._engines:
            for request in engine.return_waiting():
                self._report(request)

    def _run_pass(self) -> None:
        """One pass of every engine. They share the replica's slots, and the first engine takes its
        slots first: so the rows in slots are always the ones that were given first, which is how
        the driver knows them after a death."""
        faults.at("replica.pass", self._name)
        began = time.monotonic()
        num_free = self._num_slots
        finished: list[Sample] = []
        for bucket, engine in self._engines:
            engine.max_busy = max(0, num_free)
            num_free -= engine.num_busy + engine.num_waiting
            finished += engine.step()
            self._slots[bucket] = min(self._slots[bucket], engine.num_slots)
            for text in engine.oom_events:
                self._report(text)
            engine.oom_events = []
        seconds = time.monotonic() - began
        self.longest_pass = max(self.longest_pass, seconds)
        self.num_passes += 1
        for sample in finished:
            self._report(sample)
        busy: Counter[int] = Counter()
        for bucket, engine in self._engines:
            busy[bucket] += engine.num_busy
        self._metrics.passed(seconds, busy)

    def _engine(self, bucket: int) -> SlotEngine:
        """The last engine if it has this bucket, else a new or idle one behind all busy ones: in an
        engine further ahead these prompts would get slots before others that were given earlier."""
        if self._engines and self._engines[-1][0] == bucket:
            return self._engines[-1][1]
        idle = [engine for b, engine in self._engines if b == bucket and not engine.busy]
        self._engines = [(b, engine) for b, engine in self._engines if engine.busy]
        if bucket not in self._slots:
            found = self._slots[bucket] = self._fitting_slots(bucket)
            if found < self._num_slots:
                self._report(f"memory for {found} of {self._num_slots} slots in bucket {bucket}")
        own = idle[0] if idle else self._new_engine(bucket, self._slots[bucket])
        self._engines.append((bucket, own))
        return own
