"""The actor: one model on one device. Prompts in, finished samples streamed back.

Knows nothing of files, shards' state or other replicas. The driver wraps the class into a Ray
actor whose calls run in a few threads; they share the engines' slots, so that the next unit's
prompts fill the slots that the last unit's tail leaves free.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pyarrow as pa
import torch

from lrd import DecodingConfig, Engine, Request, Sample, load_model
from lrd.engine import row_seed
from lrd.memory import probe_slots
from lrd.models.compiled import Compile
from pipeline import faults
from pipeline.checkpoints import local_model
from pipeline.metrics import PassMetrics
from pipeline.parquet import results_table
from pipeline.rows import HandedBack, Notice, Prompt, Pulse, Result

UNITS_IN_FLIGHT = 2
"""Units a replica holds at a time: the one it decodes and the one that fills free slots."""
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


class Replica:
    """One model and its slots."""

    def __init__(self, name: str, settings: ReplicaSettings) -> None:
        """Cheap: the model comes with `load`, so that the driver knows where the actor is before
        anything can go wrong."""
        self._name = name
        self._settings = settings
        self._node = "no node"
        self._model: Any = None
        self._lock = threading.Lock()
        self._engines: dict[int, Engine] = {}
        """By bucket, in the order in which their prompts came."""
        self._slots: dict[int, int] = {}
        """Bucket → slots that there was memory for."""
        self._units = count()
        self._finished: dict[int, list[Sample]] = {}
        self._handed_back: dict[int, list[int]] = {}
        self._notices: list[str] = []
        self._longest_pass = 0.0
        self._metrics = PassMetrics(name, settings.slots)

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
        for name, value in settings.servers.items():
            os.environ.setdefault(name, value)
        faults.at("replica.start", f"{self._name} on {self._node}")
        torch.set_num_threads(settings.threads)
        model = local_model(settings.model)
        self._model = load_model(
            model, settings.device, settings.dtype, settings.revision, settings.compile
        )
        if faults.wanted():
            self._model = faults.WatchedModel(self._model, settings.decoding.gen_length)

    def drain(self) -> None:
        """Begin nothing more: prompts that have no slot yet go back to the driver."""
        with self._lock:
            for engine in self._engines.values():
                for request in engine.give_back():
                    number, place = request.key
                    self._handed_back[number].append(place)

    def decode(self, unit: list[Prompt]) -> Iterator[pa.Table | Pulse | HandedBack | Notice]:
        """Decode prompts of one bucket; the rows that each pass finished, as they do, and beside
        them a pulse every second, what is handed back, and a notice where an engine had to give
        up slots for want of memory.

        Whichever unit's thread finds none of its own rows finished runs the next pass for all.
        """
        number = self._submit(unit)
        num_left, heard_at = len(unit), time.monotonic()
        while num_left:
            with self._lock:
                if not self._finished[number] and not self._handed_back[number]:
                    self._run_pass()
                notices, self._notices = self._notices, []
                samples, self._finished[number] = self._finished[number], []
                places, self._handed_back[number] = self._handed_back[number], []
            yield from map(Notice, notices)
            num_left -= len(samples) + len(places)
            if places:
                yield HandedBack([unit[place].row_id for place in places])
            if samples:
                rows = [Result.of_sample(s, unit[s.key[1]], replica=self._name) for s in samples]
                yield results_table(rows)
            elif time.monotonic() - heard_at < PULSE_SECONDS:
                continue
            else:
                yield Pulse(self._longest_pass)
            heard_at = time.monotonic()
        with self._lock:
            del self._finished[number], self._handed_back[number]

    def _submit(self, unit: list[Prompt]) -> int:
        with self._lock:
            number = next(self._units)
            self._finished[number], self._handed_back[number] = [], []
            engine = self._engine(unit[0].bucket)
            for place, prompt in enumerate(unit):
                seed = row_seed(self._settings.decoding.seed, prompt.row_id)
                engine.submit(Request((number, place), prompt.token_ids, seed))
        return number

    def _run_pass(self) -> None:
        """One pass of every engine that has prompts. All share the slots of one; who came first
        is served first, so that what is in slots is what was given first."""
        faults.at("replica.pass", self._name)
        began = time.monotonic()
        num_free = self._settings.slots
        for bucket, engine in self._engines.items():
            engine.max_busy = max(0, num_free)
            num_free -= engine.num_busy + engine.num_waiting
            for sample in engine.step():
                self._finished[sample.key[0]].append(sample)
            self._slots[bucket] = engine.num_slots
            self._notices += engine.setbacks
            engine.setbacks = []
        seconds = time.monotonic() - began
        self._longest_pass = max(self._longest_pass, seconds)
        self._metrics.passed(seconds, {b: engine.num_busy for b, engine in self._engines.items()})

    def _engine(self, bucket: int) -> Engine:
        """The bucket's engine, behind those that are busy; idle ones of other buckets go."""
        own = self._engines.get(bucket)
        if own is not None and own.busy:
            return own
        self._engines = {b: engine for b, engine in self._engines.items() if engine.busy}
        if own is None:
            if bucket not in self._slots:
                self._slots[bucket] = self._fitting_slots(bucket)
            own = self._new_engine(bucket, self._slots[bucket])
        self._engines[bucket] = own
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
            self._notices.append(f"memory for {found} of {settings.slots} slots in bucket {bucket}")
        return found

    def _new_engine(self, bucket: int, num_slots: int) -> Engine:
        return Engine(self._model, self._settings.decoding, num_slots, prompt_length=bucket)
