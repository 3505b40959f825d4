"""The actor: one model on one device. Batches of prompts in, reports of finished rows out."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

import torch

from lrd import DecodingConfig, Engine, Request, Sample, load_model
from lrd.config import Compile
from lrd.engine import row_seed
from lrd.memory import probe_slots
from pipeline import faults
from pipeline.replicas.pass_loop import PassLoop
from pipeline.rows import Key, Prompt, Report, Result
from pipeline.storage import uris
from pipeline.storage.model_files import local_model, node_folder

SLOTS_AHEAD = 1.5
"""A replica that holds fewer times its slots of prompts is given more: they fill the slots that
get free before the driver has heard of it."""
HEARTBEAT_SECONDS = 1.0
"""Longest time between two reports."""


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

    The driver wraps the class into a Ray actor whose calls run in a few threads: `submit` hands a
    batch to the thread of the passes and returns, `collect` waits for something to report. What
    comes in between two calls of `collect` goes into one report, so that a busy driver gets fewer
    and larger ones.
    """

    def __init__(self, name: str, settings: ReplicaSettings) -> None:
        """Cheap: the model comes with `load`, so that the driver knows where the actor is before
        anything can go wrong."""
        self._name = name
        self._settings = settings
        self._node = "no node"
        self._model: Any = None
        self._prompts: dict[Key, Prompt] = {}
        """Those whose rows have not been reported."""
        self._outbox: SimpleQueue[Any] = SimpleQueue()
        self._loop = PassLoop(
            name,
            settings.slots,
            settings.threads,
            self._fitting_slots,
            self._new_engine,
            self._put,
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

    def submit(self, number: int, prompts: list[Prompt]) -> None:
        """Begin a batch: prompts of one bucket. number: how many batches were given before; the
        calls may come in another order, their prompts get slots in this one."""
        seed = self._settings.decoding.seed
        requests = []
        for index, prompt in enumerate(prompts):
            key = number, index
            self._prompts[key] = prompt
            requests.append(Request(key, prompt.token_ids, row_seed(seed, prompt.row_id)))
        self._loop.give(number, prompts[0].bucket, requests)

    def collect(self) -> Report:
        """All there is to report since the last call, as soon as there is anything; after
        `HEARTBEAT_SECONDS` how far the passes are.

        Raises what a pass raises.
        """
        return self._report(self._taken(self._outbox))

    def _put(self, item: Any) -> None:
        self._outbox.put(item)

    def _taken(self, outbox: SimpleQueue[Any]) -> list[Any]:
        try:
            items = [outbox.get(timeout=HEARTBEAT_SECONDS)]
        except Empty:
            return []
        while not outbox.empty():
            items.append(outbox.get())
        return items

    def _report(self, items: list[Any]) -> Report:
        for item in items:
            if isinstance(item, Exception):
                raise item
        samples = [item for item in items if isinstance(item, Sample)]
        return Report.of(
            [Result.of_sample(s, self._prompts.pop(s.key), replica=self._name) for s in samples],
            finished=[sample.key for sample in samples],
            returned=[item.key for item in items if isinstance(item, Request)],
            events=[item for item in items if isinstance(item, str)],
            num_passes=self._loop.num_passes,
            longest_pass=self._loop.longest_pass,
        )

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
