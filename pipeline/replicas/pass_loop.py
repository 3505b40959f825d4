"""The thread of a replica that runs the passes: batches in, finished samples into their inboxes.

It alone knows the engines, one for each bucket whose prompts are under way; together they hold as
many canvases as the replica has slots. Knows nothing of prompts' texts, Ray or the driver.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue

import torch

from lrd import Engine, Request, Sample
from pipeline import faults
from pipeline.observe.metrics import PassMetrics
from pipeline.rows import ReplicaEvent


class Batch:
    """Requests of one bucket that came together, and what of them waits to be streamed back."""

    __slots__ = ("bucket", "inbox", "num_left", "number", "requests")

    def __init__(self, number: int, bucket: int, requests: list[Request]) -> None:
        """number: how many batches were given before. Requests have the keys (number, place)."""
        self.number, self.bucket, self.requests = number, bucket, requests
        self.num_left = len(requests)
        """Requests whose samples are not in the inbox yet; the thread's own count."""
        self.inbox: SimpleQueue[list[Sample] | list[Request] | ReplicaEvent | Exception | None] = (
            SimpleQueue()
        )
        """Samples, requests given back, notices; at the end None, or what a pass raised."""


class PassLoop:
    """The thread and its engines; all its methods may be called from others."""

    def __init__(
        self,
        name: str,
        num_slots: int,
        num_threads: int,
        fitting_slots: Callable[[int], int],
        new_engine: Callable[[int, int], Engine],
    ) -> None:
        """name: the replica's. num_slots, num_threads: it has. fitting_slots: bucket → as many of
        its slots as there is memory for. new_engine: of a bucket, with so many slots."""
        self._name, self._num_slots, self._num_threads = name, num_slots, num_threads
        self._fitting_slots, self._new_engine = fitting_slots, new_engine
        self._orders: SimpleQueue[Callable[[], None]] = SimpleQueue()
        """What is to be done before the next pass."""
        self._engines: list[tuple[int, Engine]] = []
        """With their buckets, in the order in which their prompts were given."""
        self._slots: dict[int, int] = {}
        """Bucket → slots that there was memory for."""
        self._batches: dict[int, Batch] = {}
        """Those that have begun, by number."""
        self._early: dict[int, Batch] = {}
        self._num_begun = 0
        self.num_passes = 0
        self.longest = 0.0
        """Seconds of the longest pass."""
        self._metrics = PassMetrics(name, num_slots)
        threading.Thread(target=self._work, name="passes", daemon=True).start()

    def give(self, batch: Batch) -> None:
        """Decode a batch. Batches may come in another order than they are numbered in; their
        requests get slots in the order of the numbers."""
        self._orders.put(partial(self._arrive, batch))

    def return_waiting(self) -> None:
        """Begin nothing more: requests without a slot go back to their batches' inboxes."""
        self._orders.put(self._return_waiting)

    def _work(self) -> None:
        # A thread has its own number of threads to compute with.
        torch.set_num_threads(self._num_threads)
        while True:
            try:
                self._run_orders()
                self._run_pass()
            except Exception as error:
                for batch in self._batches.values():
                    batch.inbox.put(error)
                self._batches.clear()
                self._engines.clear()

    def _run_orders(self) -> None:
        """Do what is asked; wait for it while there is nothing to decode."""
        while not self._orders.empty() or not any(e.busy for _, e in self._engines):
            self._orders.get()()

    def _arrive(self, batch: Batch) -> None:
        self._early[batch.number] = batch
        while self._num_begun in self._early:
            self._begin(self._early.pop(self._num_begun))

    def _begin(self, batch: Batch) -> None:
        self._num_begun += 1
        self._batches[batch.number] = batch
        engine = self._engine(batch.bucket)
        for request in batch.requests:
            engine.submit(request)

    def _return_waiting(self) -> None:
        for _, engine in self._engines:
            of_batch: dict[int, list[Request]] = {}
            for request in engine.return_waiting():
                of_batch.setdefault(request.key[0], []).append(request)
            for number, requests in of_batch.items():
                self._put(number, requests)

    def _put(self, number: int, items: list[Sample] | list[Request]) -> None:
        batch = self._batches[number]
        batch.inbox.put(items)
        batch.num_left -= len(items)
        if not batch.num_left:
            batch.inbox.put(None)
            del self._batches[number]

    def _run_pass(self) -> None:
        """One pass of every engine. All share the slots of one; who came first is served first,
        so that what is in slots is what was given first."""
        faults.at("replica.pass", self._name)
        began = time.monotonic()
        num_free = self._num_slots
        finished: dict[int, list[Sample]] = {}
        for bucket, engine in self._engines:
            engine.max_busy = max(0, num_free)
            num_free -= engine.num_busy + engine.num_waiting
            for sample in engine.step():
                finished.setdefault(sample.key[0], []).append(sample)
            self._slots[bucket] = min(self._slots[bucket], engine.num_slots)
            self._notify(engine.oom_events)
            engine.oom_events = []
        seconds = time.monotonic() - began
        self.longest = max(self.longest, seconds)
        self.num_passes += 1
        for number, samples in finished.items():
            self._put(number, samples)
        busy: Counter[int] = Counter()
        for bucket, engine in self._engines:
            busy[bucket] += engine.num_busy
        self._metrics.passed(seconds, busy)

    def _notify(self, texts: list[str]) -> None:
        """Tell the driver, by whichever batch."""
        for text in texts:
            next(iter(self._batches.values())).inbox.put(ReplicaEvent(text))

    def _engine(self, bucket: int) -> Engine:
        """The last engine where it is of this bucket, else one behind all that are busy: in an
        engine further ahead prompts would get slots before those that were given earlier."""
        if self._engines and self._engines[-1][0] == bucket:
            return self._engines[-1][1]
        idle = [engine for b, engine in self._engines if b == bucket and not engine.busy]
        self._engines = [(b, engine) for b, engine in self._engines if engine.busy]
        if bucket not in self._slots:
            found = self._slots[bucket] = self._fitting_slots(bucket)
            if found < self._num_slots:
                self._notify([f"memory for {found} of {self._num_slots} slots in bucket {bucket}"])
        own = idle[0] if idle else self._new_engine(bucket, self._slots[bucket])
        self._engines.append((bucket, own))
        return own
