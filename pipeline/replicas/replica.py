"""The Ray actor: one model on one device. Takes batches of prompts, returns reports with finished
rows."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

import torch

from lrd import DecodingConfig, Engine, Request, Sample, load_model
from lrd.config import Compile, PassRows
from lrd.engine import row_seed
from lrd.json_schema import JsonChecker, json_form
from lrd.memory import drawing, probe_slots
from lrd.models.c_compiler import refuse_without_compiler
from lrd.rounding import computed_by
from pipeline import faults
from pipeline.config import Columns
from pipeline.replicas.pass_loop import PassLoop, SlotEngine
from pipeline.rows import Bucket, Key, Prompt, Report, Result
from pipeline.storage import uris
from pipeline.storage.model_files import local_model, node_folder

SLOTS_AHEAD = 1.5
"""The driver gives a replica more prompts while it holds fewer than this many times its slots, so
that a slot that gets free is filled before the driver knows of it."""
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
    columns: Columns = "full"
    compile: Compile = "none"
    pass_rows: PassRows = "busy"
    stops: tuple[str, ...] = ()
    """Texts that answers end before."""
    schema: Any = None
    """JSON Schema of the answers, where they have one."""
    row_temperatures: bool = False
    """Whether rows may have temperatures of their own."""
    memory_share: float = 1.0
    """This replica's share of the device's free memory."""
    faults: str | None = None
    """The text of LRD_FAULTS (`pipeline.faults`)."""
    servers: dict[str, str] = field(default_factory=dict)
    """The driver's environment variables for object-store servers; a node's own come first."""


class Replica:
    """One model and its slots.

    The driver makes a Ray actor of the class, whose calls run in a few threads: `submit` passes a
    batch to the thread of the pass loop and returns, `collect` waits for something to report.
    Whatever happens between two calls of `collect` goes into one report, so that a busy driver gets
    fewer and larger ones.
    """

    def __init__(self, name: str, settings: ReplicaSettings, threaded: bool = True) -> None:
        """Loads nothing: the model comes with `load`, so that the driver knows the actor's node
        before anything can go wrong. threaded: False: passes run in calls of `step` alone."""
        self._name = name
        self._settings = settings
        self._node = "no node"
        self._model: Any = None
        self._allowed: torch.Tensor | None = None
        """Tokens that positions of a scaffold may take."""
        self._json = None if settings.schema is None else JsonChecker(settings.schema)
        self._prompts: dict[Key, Prompt] = {}
        """Prompts whose rows have not been reported."""
        self._outbox: SimpleQueue[Any] = SimpleQueue()
        self._failure: Exception | None = None
        """What a pass raised; the replica decodes nothing more."""
        self._loop = PassLoop(
            name,
            settings.slots,
            settings.threads,
            self._fitting_slots,
            self.new_engine,
            self.put,
            compiles=settings.device != "cpu" or settings.compile != "none",
            threaded=threaded,
        )

    def location(self) -> tuple[str, int]:
        """Ray's id of its node, and its process id."""
        import ray

        self._node = ray.get_runtime_context().get_node_id()
        return self._node, os.getpid()

    def load(self) -> dict[str, Any] | None:
        """Load the model; raises what that raises.

        Returns what its results depend on beside the run's fingerprint, and at most by rounding.
        """
        settings = self._settings
        if settings.faults:
            faults.load(settings.faults)
        uris.take_over(settings.servers)
        faults.at("replica.start", f"{self._name} on {self._node}")
        torch.set_num_threads(settings.threads)
        if settings.device == "cuda" and settings.compile in ("compile", "graphs"):
            refuse_without_compiler(", or decode with --compile none")
        model = node_folder(local_model(settings.model))
        self._model = load_model(
            model, settings.device, settings.dtype, settings.revision, settings.compile
        )
        if settings.schema is not None:
            gen_length = settings.decoding.gen_length
            self._allowed = json_form(settings.schema, self._model, gen_length).allowed()
        return self._environment()

    def _environment(self) -> dict[str, Any]:
        settings, device = self._settings, self._model.embedding_table.device
        facts = computed_by(device) | {"dtype": settings.dtype, "compile": settings.compile}
        if device.type == "cpu":
            return facts | {"threads": settings.threads}
        return facts | {"slots": settings.slots, "pass_rows": settings.pass_rows}

    def drain(self) -> None:
        """Return prompts that have no slot yet to the driver; those in slots are finished."""
        self._loop.return_waiting()

    def submit(self, number: int, prompts: list[Prompt]) -> None:
        """Decode a batch, whose prompts are of one bucket. number: how many batches were given
        before; calls may arrive out of order, slots are filled in the order of the numbers."""
        keyed: dict[Key, Prompt] = {(number, index): p for index, p in enumerate(prompts)}
        self._prompts |= keyed
        requests = [self._request(key, prompt) for key, prompt in keyed.items()]
        self._loop.give(number, prompts[0].bucket, requests)

    def _request(self, key: Key, prompt: Prompt) -> Request:
        own, run = prompt.settings, self._settings.decoding
        seed = run.seed if own.seed is None else own.seed
        seed = row_seed(seed, prompt.row_id)
        return Request(key, prompt.token_ids, seed, prompt.scaffold, own.temperature)

    def step(self) -> None:
        """Run one pass, where no thread does; raises what that raises."""
        self._loop.step()

    def collect(self) -> Report:
        """Everything since the last call, as soon as there is anything; after `HEARTBEAT_SECONDS` a
        report with the number of passes alone.

        Raises what a pass raises.
        """
        if self._failure is not None:
            raise self._failure
        return self.report(self.take(self._outbox))

    def put(self, item: Any) -> None:
        """Called by the pass loop with what is to be reported."""
        self._outbox.put(item)

    def take(self, outbox: SimpleQueue[Any]) -> list[Any]:
        """All that is in a queue, or nothing where it stays empty for `HEARTBEAT_SECONDS`."""
        try:
            items = [outbox.get(timeout=HEARTBEAT_SECONDS)]
        except Empty:
            return []
        while not outbox.empty():
            items.append(outbox.get())
        return items

    def report(self, items: list[Any]) -> Report:
        """What `put` was called with, as one report; raises what a pass raised."""
        failure = next((item for item in items if isinstance(item, Exception)), None)
        if failure is not None:
            self._failure = failure
            items = items[: items.index(failure)]
            # Rows that were finished before are reported first, so that they are neither decoded
            # again nor suspected.
            if not items:
                raise failure
        returned = [item.key for item in items if isinstance(item, Request)]
        for key in returned:
            del self._prompts[key]
        samples = [self._whole(item) for item in items if isinstance(item, Sample)]
        finished = [sample for sample in samples if sample.stop_reason != "grow"]
        moved = [(one.key, one.spent) for one in samples if one.stop_reason == "grow"]
        results = [self._result(sample) for sample in finished]
        for key, _ in moved:
            del self._prompts[key]
        return Report.of(
            results,
            self._settings.columns,
            finished=[sample.key for sample in finished],
            returned=returned,
            moved=moved,
            events=[item for item in items if isinstance(item, str)],
            num_passes=self._loop.num_passes,
            longest_pass=self._loop.longest_pass,
            num_canvases=self._loop.num_canvases,
            pass_seconds=self._loop.pass_seconds,
            phase=self._loop.phase,
        )

    def _whole(self, sample: Sample) -> Sample:
        """A sample with what its row took in shorter canvases."""
        return sample.after(self._prompts[sample.key].spent)

    def _result(self, sample: Sample) -> Result:
        prompt = self._prompts.pop(sample.key)
        return Result.of_sample(
            sample,
            prompt,
            replica=self._name,
            stops=self._settings.stops,
            read_json=None if self._json is None else self._json.read,
        )

    def _fitting_slots(self, bucket: Bucket) -> int:
        """How many of the slots fit into the device's memory."""
        settings, decoding = self._settings, self._decoding(bucket)
        if settings.device == "cpu":
            return settings.slots
        if settings.row_temperatures:
            decoding = drawing(decoding)
        return probe_slots(
            self._model, decoding, bucket.prompt, settings.slots, settings.memory_share
        )

    def new_engine(self, bucket: Bucket, num_slots: int) -> SlotEngine:
        """An engine for one bucket; benchmarks of the driver make cheaper ones."""
        return Engine(
            self._watched(bucket),
            self._decoding(bucket),
            num_slots,
            prompt_length=bucket.prompt,
            pass_rows=self._settings.pass_rows,
            row_temperatures=self._settings.row_temperatures,
            allowed=self._allowed,
        )

    def _decoding(self, bucket: Bucket) -> DecodingConfig:
        """The run's decoding with the canvas of a bucket."""
        return self._settings.decoding.at(bucket.canvas)

    def _watched(self, bucket: Bucket) -> Any:
        """The model, with the points of faults where some are asked for."""
        return faults.watched(self._model, bucket.canvas) if faults.wanted() else self._model
