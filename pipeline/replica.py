"""The actor: one model on one device. Prompts in, finished samples streamed back.

Knows nothing of files, shards' state or other replicas. The driver wraps the class into a Ray
actor whose calls run in a few threads; they share the engine's slots, so that the next unit's
prompts fill the slots that the last unit's tail leaves free.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import torch

from lrd import DecodingConfig, Engine, Request, Sample, load_model
from lrd.engine import row_seed
from pipeline.rows import Notice, Prompt, Result

UNITS_IN_FLIGHT = 2
"""Units a replica holds at a time: the one it decodes and the one that fills free slots."""


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


class Replica:
    """One model and its slots."""

    def __init__(self, name: str, settings: ReplicaSettings) -> None:
        torch.set_num_threads(settings.threads)
        self._name = name
        self._settings = settings
        self._model = load_model(settings.model, settings.device, settings.dtype, settings.revision)
        self._lock = threading.Lock()
        self._engines: dict[int, Engine] = {}
        self._slots: dict[int, int] = {}
        """Bucket → slots that there was memory for."""
        self._units = count()
        self._finished: dict[int, list[Sample]] = {}

    def ready(self) -> str:
        """The replica's name, once its model is loaded."""
        return self._name

    def decode(self, unit: list[Prompt]) -> Iterator[list[Result] | Notice]:
        """Decode prompts of one bucket; the rows that each pass finished, as they do, and a
        notice where the engine had to give up slots for want of memory.

        Whichever unit's thread finds none of its own rows finished runs the next pass, for
        all units of its bucket.
        """
        settings = self._settings
        with self._lock:
            number = next(self._units)
            self._finished[number] = []
            engine = self._engine(unit[0].bucket)
            for place, prompt in enumerate(unit):
                seed = row_seed(settings.decoding.seed, prompt.row_id)
                engine.submit(Request((number, place), prompt.token_ids, seed))
        num_left = len(unit)
        while num_left:
            with self._lock:
                if not self._finished[number]:
                    for sample in engine.step():
                        self._finished[sample.key[0]].append(sample)
                setbacks, engine.setbacks = engine.setbacks, []
                self._slots[unit[0].bucket] = engine.num_slots
                samples, self._finished[number] = self._finished[number], []
            yield from map(Notice, setbacks)
            if samples:
                num_left -= len(samples)
                yield [
                    Result.of_sample(sample, unit[sample.key[1]], replica=self._name)
                    for sample in samples
                ]
        with self._lock:
            del self._finished[number]

    def _engine(self, bucket: int) -> Engine:
        """The bucket's engine; those of other buckets go once they are idle."""
        for other in [b for b, engine in self._engines.items() if not engine.busy]:
            if other != bucket:
                del self._engines[other]
        if bucket not in self._engines:
            settings = self._settings
            slots = self._slots.get(bucket, settings.slots)
            self._engines[bucket] = Engine(
                self._model, settings.decoding, slots, prompt_length=bucket
            )
        return self._engines[bucket]
