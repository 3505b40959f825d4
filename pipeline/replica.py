"""The actor: one model on one device. Prompts in, finished samples streamed back.

Knows nothing of files, shards' state or other replicas. The driver wraps the class into a Ray
actor whose calls run in a few threads; their units share the slots, so that the next unit's
prompts fill those that the last unit's tail leaves free.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import pyarrow as pa
import torch

from lrd import DecodingConfig, Engine, Request, Sample, load_model
from lrd.engine import row_seed
from lrd.memory import probe_slots
from lrd.models.compiled import Compile
from pipeline import faults, remote
from pipeline.checkpoints import local_model
from pipeline.metrics import PassMetrics
from pipeline.parquet import results_table
from pipeline.rows import HandedBack, Notice, Prompt, Pulse, Result
from pipeline.weights import node_folder

SLOTS_AHEAD = 1.5
"""A replica that holds fewer times its slots of prompts is given more: they fill the slots that
get free before the driver has heard of it."""
UNITS_IN_FLIGHT = 8
"""Units a replica holds at most, most of them down to a last slow row."""
PULSE_SECONDS = 1.0
"""Longest time between two signs of life, passes permitting."""


@dataclass(frozen=True, slots=True)
class ReplicaSettings:
    """What a replica needs to start."""

    model: str
    revision: str | None
    device: str
    dtype: str
    decoding: DecodingConfig
    slots: int
    threads: int
    compile: Compile = "none"
    memory_share: float = 1.0
    """Of the device's free memory that is this replica's."""
    faults: str | None = None
    """Rules of `pipeline.faults`."""
    servers: dict[str, str] = field(default_factory=dict)
    """Which servers of object stores the driver means, for nodes that do not say."""


class _Unit:
    """Prompts that came together, and what of them waits to be streamed back."""

    __slots__ = ("inbox", "num_left", "prompts")

    def __init__(self, prompts: list[Prompt]) -> None:
        self.prompts = prompts
        self.num_left = len(prompts)
        """Prompts whose results are not in the inbox yet."""
        self.inbox: SimpleQueue[list[Sample] | HandedBack | Notice | Exception] = SimpleQueue()


class Replica:
    """One model and its slots.

    One thread runs the passes and alone knows the engines; the calls that stream rows back hand
    it their prompts and wait, so that no row waits for another unit's.
    """

    def __init__(self, name: str, settings: ReplicaSettings) -> None:
        """Cheap: the model comes with `load`, so that the driver knows where the actor is before
        anything can go wrong."""
        self._name = name
        self._settings = settings
        self._node = "no node"
        self._model: Any = None
        self._orders: SimpleQueue[Callable[[], None]] = SimpleQueue()
        """What the thread of the passes is asked to do before the next one."""
        self._engines: list[tuple[int, Engine]] = []
        """With their buckets, in the order in which their prompts were given."""
        self._slots: dict[int, int] = {}
        """Bucket → slots that there was memory for."""
        self._units: dict[int, _Unit] = {}
        """Those that have begun, by number."""
        self._early: dict[int, _Unit] = {}
        self._num_begun = 0
        self._num_passes = 0
        self._longest_pass = 0.0
        self._metrics = PassMetrics(name, settings.slots)
        threading.Thread(target=self._work, name="passes", daemon=True).start()

    def whereabouts(self) -> tuple[str, int]:
        """Ray's id of its node, and its process."""
        import ray

        self._node = ray.get_runtime_context().get_node_id()
        return self._node, os.getpid()

    def load(self) -> None:
        """Load the model; raises what that raises."""
        settings = self._settings
        if settings.faults:
            faults.load(settings.faults)
        remote.take_over(settings.servers)
        faults.at("replica.start", f"{self._name} on {self._node}")
        torch.set_num_threads(settings.threads)
        model = node_folder(local_model(settings.model))
        self._model = load_model(
            model, settings.device, settings.dtype, settings.revision, settings.compile
        )
        if faults.wanted():
            self._model = faults.WatchedModel(self._model, settings.decoding.gen_length)

    def drain(self) -> None:
        """Begin nothing more: prompts that have no slot yet go back to the driver."""
        self._orders.put(self._give_back)

    def decode(
        self, number: int, prompts: list[Prompt]
    ) -> Iterator[pa.Table | Pulse | HandedBack | Notice]:
        """Decode a unit: prompts of one bucket. number: how many units were given before; the
        calls may come in another order, their prompts get slots in this one.

        Yields the rows that each pass finished, as they do, and beside them a pulse every second
        in which a pass ended, what is handed back, and a notice where an engine had to give up
        slots for want of memory.

        Raises what a pass raises.
        """
        unit = _Unit(prompts)
        self._orders.put(partial(self._arrive, number, unit))
        num_left, num_passes = len(prompts), self._num_passes
        while num_left:
            try:
                item = unit.inbox.get(timeout=PULSE_SECONDS)
            except Empty:
                if self._num_passes > num_passes:
                    num_passes = self._num_passes
                    yield Pulse(self._longest_pass)
                continue
            if isinstance(item, Exception):
                raise item
            if isinstance(item, list):
                num_left -= len(item)
                rows = [Result.of_sample(s, prompts[s.key[1]], replica=self._name) for s in item]
                yield results_table(rows)
                continue
            if isinstance(item, HandedBack):
                num_left -= len(item.row_ids)
            yield item

    # The thread of the passes.

    def _work(self) -> None:
        # A thread has its own number of threads to compute with.
        torch.set_num_threads(self._settings.threads)
        while True:
            try:
                self._obey()
                self._run_pass()
            except Exception as error:
                for unit in self._units.values():
                    unit.inbox.put(error)
                self._units.clear()
                self._engines.clear()

    def _obey(self) -> None:
        """Do what is asked; wait for it while there is nothing to decode."""
        while not self._orders.empty() or not any(e.busy for _, e in self._engines):
            self._orders.get()()

    def _arrive(self, number: int, unit: _Unit) -> None:
        self._early[number] = unit
        while (begun := self._num_begun) in self._early:
            self._num_begun += 1
            self._begin(begun, self._early.pop(begun))

    def _begin(self, number: int, unit: _Unit) -> None:
        self._units[number] = unit
        engine = self._engine(unit.prompts[0].bucket)
        for place, prompt in enumerate(unit.prompts):
            seed = row_seed(self._settings.decoding.seed, prompt.row_id)
            engine.submit(Request((number, place), prompt.token_ids, seed))

    def _give_back(self) -> None:
        for _, engine in self._engines:
            keys = [request.key for request in engine.give_back()]
            for number in {number for number, _ in keys}:
                places = [place for of, place in keys if of == number]
                prompts = self._units[number].prompts
                self._put(number, HandedBack([prompts[p].row_id for p in places]), len(places))

    def _put(self, number: int, item: list[Sample] | HandedBack, num_rows: int) -> None:
        unit = self._units[number]
        unit.inbox.put(item)
        unit.num_left -= num_rows
        if not unit.num_left:
            del self._units[number]

    def _run_pass(self) -> None:
        """One pass of every engine. All share the slots of one; who came first is served first,
        so that what is in slots is what was given first."""
        faults.at("replica.pass", self._name)
        began = time.monotonic()
        num_free = self._settings.slots
        finished: dict[int, list[Sample]] = {}
        for bucket, engine in self._engines:
            engine.max_busy = max(0, num_free)
            num_free -= engine.num_busy + engine.num_waiting
            for sample in engine.step():
                finished.setdefault(sample.key[0], []).append(sample)
            self._slots[bucket] = min(self._slots[bucket], engine.num_slots)
            self._notify(engine.setbacks)
            engine.setbacks = []
        seconds = time.monotonic() - began
        self._longest_pass = max(self._longest_pass, seconds)
        self._num_passes += 1
        for number, samples in finished.items():
            self._put(number, samples, len(samples))
        busy: Counter[int] = Counter()
        for bucket, engine in self._engines:
            busy[bucket] += engine.num_busy
        self._metrics.passed(seconds, busy)

    def _notify(self, texts: list[str]) -> None:
        """Tell the driver, by whichever unit."""
        for text in texts:
            next(iter(self._units.values())).inbox.put(Notice(text))

    def _engine(self, bucket: int) -> Engine:
        """The last engine where it is of this bucket, else one behind all that are busy: in an
        engine further ahead prompts would get slots before those that were given earlier."""
        if self._engines and self._engines[-1][0] == bucket:
            return self._engines[-1][1]
        idle = [engine for b, engine in self._engines if b == bucket and not engine.busy]
        self._engines = [(b, engine) for b, engine in self._engines if engine.busy]
        if bucket not in self._slots:
            self._slots[bucket] = self._fitting_slots(bucket)
        own = idle[0] if idle else self._new_engine(bucket, self._slots[bucket])
        self._engines.append((bucket, own))
        return own

    def _fitting_slots(self, bucket: int) -> int:
        """As many of the slots as the device has memory for."""
        settings = self._settings
        if settings.device == "cpu":
            return settings.slots
        found = probe_slots(
            self._model, settings.decoding, bucket, settings.slots, settings.memory_share
        )
        if found < settings.slots:
            self._notify([f"memory for {found} of {settings.slots} slots in bucket {bucket}"])
        return found

    def _new_engine(self, bucket: int, num_slots: int) -> Engine:
        return Engine(self._model, self._settings.decoding, num_slots, prompt_length=bucket)
