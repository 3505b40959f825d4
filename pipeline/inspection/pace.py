"""Measures how fast a run decoded, from its files, and estimates the time of further rows."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.inspection.status import Inspector
from pipeline.output.result_shards import batches
from pipeline.output.run_folder import written_shards
from pipeline.output.statistics import SLOT_COLUMNS, SlotCounts
from pipeline.storage.storage import Storage


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a run decoded."""

    seconds: dict[int, float]
    """Mean seconds of a row in its slot, by bucket."""
    busy_slots: float
    """Mean number of slots in use, over all replicas."""
    num_replicas: int
    source: str
    """The run, and which of its files, it was read from."""


def seconds_for(left: dict[int, float], pace: Pace, num_replicas: int | None) -> float:
    """Seconds for so many rows of each bucket at that pace; a bucket that the pace lacks counts as
    the nearest one. num_replicas: of the run to come; None: as many as the pace had."""
    work = 0.0
    for bucket, rows in left.items():
        nearest = min(pace.seconds, key=lambda seen: (abs(seen - bucket), seen))
        work += rows * pace.seconds[nearest]
    return work / (pace.busy_slots * (num_replicas or pace.num_replicas) / pace.num_replicas)


def pace_of(output: Storage) -> Pace | None:
    """A run's pace by its driver's last report, else by its result shards; None where it has
    decoded nothing yet. Raises ValueError where there is no run."""
    state = Inspector(output).snapshot()
    progress = state.driver.progress if state.driver is not None else {}
    buckets = {int(name): b for name, b in progress.get("buckets", {}).items()}
    seen = {length: b for length, b in buckets.items() if b["done"] and b["seconds"]}
    if seen:
        spent = sum(b["seconds"] for b in seen.values())
        return Pace(
            seconds={length: b["seconds"] / b["done"] for length, b in seen.items()},
            busy_slots=spent / progress["seconds"],
            num_replicas=max(1, len(progress["replicas"])),
            source=f"{output.uri}: its driver's last report",
        )
    return _pace_of_shards(output, state.settings.get("slots", 1))


def _pace_of_shards(output: Storage, slots: int) -> Pace | None:
    """The pace by the result columns, as if all slots had been busy."""
    counts = SlotCounts()
    for shard in written_shards(output)[0]:
        for rows in batches(output, shard.name, SLOT_COLUMNS):
            counts.add(rows)
    if not counts.buckets:
        return None
    return Pace(
        seconds={length: b.seconds / b.num_rows for length, b in counts.buckets.items()},
        busy_slots=float(slots * len(counts.replicas)),
        num_replicas=len(counts.replicas),
        source=f"{output.uri}: its result shards",
    )
