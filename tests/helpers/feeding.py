"""A replica's pass loop, fed as the driver feeds it: for tests of what passes compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lrd
from pipeline.input.buckets import Buckets
from pipeline.replicas.replica import SLOTS_AHEAD, Replica, ReplicaSettings
from pipeline.rows import Bucket, Key, Prompt


class FixedShapes(Replica):
    """A replica whose engine has fixed shapes, as on a GPU."""

    def new_engine(self, bucket: Bucket, num_slots: int) -> Any:
        return lrd.Engine(
            self._model, self._settings.decoding, num_slots, bucket.prompt, fixed_shapes=True
        )


def decode_all(
    settings: ReplicaSettings, prompts: Sequence[Prompt], rows_a_shard: int
) -> tuple[int, int]:
    """Decode prompts by one replica's real thread: the canvases it computed, and the forwards that
    rows needed.

    Prompts are read shard by shard while too few wait, batches are of one bucket and chosen by
    `Buckets`, and the replica gets the next one while it holds fewer than `SLOTS_AHEAD` × slots
    rows: the rules of `pipeline/driver.py`.
    """
    actor = FixedShapes("it", settings)
    actor.load()
    buckets, in_flight = Buckets(settings.slots), dict[Key, Prompt]()
    unread = [list(prompts[n : n + rows_a_shard]) for n in range(0, len(prompts), rows_a_shard)]
    number, last, num_forwards, num_done = 0, None, 0, 0
    while num_done < len(prompts):
        while unread and len(buckets) < settings.slots * (SLOTS_AHEAD + 1):
            buckets.add(unread.pop(0))
        for enough in (1, SLOTS_AHEAD * settings.slots):
            if len(in_flight) < enough and (batch := buckets.take(last, partial=not unread)):
                actor.submit(number, batch)
                in_flight.update(((number, index), p) for index, p in enumerate(batch))
                number, last = number + 1, batch[0].bucket
        report = actor.collect()
        for key in report.finished:
            del in_flight[key]
        if report.finished:
            num_forwards += sum(report.rows()["num_forwards"].to_pylist())
            num_done += len(report.finished)
    return report.num_canvases, num_forwards
