"""The actor: one model on one device. Prompts in, finished samples streamed back.

Knows nothing of files, shards' state or other replicas. The driver wraps the class into a Ray
actor whose calls run in a few threads; their batches share the slots, so that the next batch's
prompts fill those that the last batch's tail leaves free.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from queue import Empty
from typing import Any

import torch

from lrd import DecodingConfig, Engine, Request, load_model
from lrd.config import Compile
from lrd.engine import row_seed
from lrd.memory import probe_slots
from pipeline import faults
from pipeline.replicas.pass_loop import Batch, PassLoop
from pipeline.rows import Finished, Heartbeat, Prompt, ReplicaEvent, Result, Returned
from pipeline.storage import uris
from pipeline.storage.model_files import local_model, node_folder

SLOTS_AHEAD = 1.5
"""A replica that holds fewer times its slots of prompts is given more: they fill the slots that
get free before the driver has heard of it."""
BATCHES_IN_FLIGHT = 8
"""Batches a replica holds at most, most of them down to a last slow row."""
HEARTBEAT_SECONDS = 1.0
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
    """One model and its slots.

    The calls that stream rows back hand their prompts to the thread of the passes and wait, so
    that no row waits for another batch's.
    """

    def __init__(self, name: str, settings: ReplicaSettings) -> None:
        """Cheap: the model comes with `load`, so that the driver knows where the actor is before
        anything can go wrong."""
        self._name = name
        self._settings = settings
        self._node = "no node"
        self._model: Any = None
        self._last_heartbeat = 0.0
        self._loop = PassLoop(
            name, settings.slots, settings.threads, self._fitting_slots, self._new_engine
        )

    def location(self) -> tuple[str, int]:
        """Ray's id of its node, and its process."""
        import ray

        self._node = ray.get_runtime_context().get_node_id()
        return self._node, os.getpid()

    def load(self) -> None:
        """Load the model; raises what that raises."""
        settings = self._settings
        if settings.faults:
            faults.load(settings.faults)
        uris.take_over(settings.servers)
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
        self._loop.return_waiting()

    def decode(
        self, number: int, prompts: list[Prompt]
    ) -> Iterator[Finished | Heartbeat | Returned | ReplicaEvent]:
        """Decode a batch: prompts of one bucket. number: how many batches were given before; the
        calls may come in another order, their prompts get slots in this one.

        Yields the rows that each pass finished, as they do, and beside them what is handed back,
        a notice where an engine had to give up slots for want of memory, and a pulse where passes
        end and this batch had nothing to tell for a second, one a second from all calls.

        Raises what a pass raises.
        """
        batch = self._batch(number, prompts)
        self._loop.give(batch)
        num_passes = self._loop.num_passes
        while True:
            try:
                item = batch.inbox.get(timeout=HEARTBEAT_SECONDS)
            except Empty:
                if self._loop.num_passes > num_passes and self._heartbeat_wanted():
                    num_passes = self._loop.num_passes
                    yield Heartbeat(self._loop.longest)
                continue
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            yield item if isinstance(item, ReplicaEvent) else self._message(prompts, item)

    def _batch(self, number: int, prompts: list[Prompt]) -> Batch:
        requests = []
        for index, prompt in enumerate(prompts):
            seed = row_seed(self._settings.decoding.seed, prompt.row_id)
            requests.append(Request((number, index), prompt.token_ids, seed))
        return Batch(number, prompts[0].bucket, requests)

    def _message(self, prompts: list[Prompt], items: list[Any]) -> Finished | Returned:
        """Samples as finished rows, requests as rows that are returned."""
        indices = [item.key[1] for item in items]
        if isinstance(items[0], Request):
            return Returned(indices)
        pairs = zip(items, indices, strict=True)
        return Finished.of(
            indices,
            [Result.of_sample(sample, prompts[n], replica=self._name) for sample, n in pairs],
        )

    def _heartbeat_wanted(self) -> bool:
        """One a second is enough for the driver, however many calls are open."""
        now = time.monotonic()
        if now - self._last_heartbeat < HEARTBEAT_SECONDS:
            return False
        self._last_heartbeat = now
        return True

    def _fitting_slots(self, bucket: int) -> int:
        """As many of the slots as the device has memory for."""
        settings = self._settings
        if settings.device == "cpu":
            return settings.slots
        return probe_slots(
            self._model, settings.decoding, bucket, settings.slots, settings.memory_share
        )

    def _new_engine(self, bucket: int, num_slots: int) -> Engine:
        return Engine(self._model, self._settings.decoding, num_slots, prompt_length=bucket)
