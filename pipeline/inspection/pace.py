"""How fast a run decoded, and what that says of rows still to come.

Reads a run's files alone; knows nothing of Ray.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import pyarrow.parquet as pq

from pipeline.inspection.status import Inspector
from pipeline.storage.storage import Storage


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a run decoded."""

    seconds: dict[int, float]
    """Mean of a row in its slot, by bucket."""
    busy_slots: float
    """Mean number of slots in use, over all replicas."""
    num_replicas: int
    source: str
    """Where it was read from."""


def seconds_for(left: dict[int, float], pace: Pace, num_replicas: int | None) -> float:
    """Seconds that rows by bucket take at that pace; a bucket that was not seen there takes what
    its nearest neighbour did. num_replicas: of the run to come, where it is known."""
    work = 0.0
    for bucket, rows in left.items():
        nearest = min(pace.seconds, key=lambda seen: (abs(seen - bucket), seen))
        work += rows * pace.seconds[nearest]
    return work / (pace.busy_slots * (num_replicas or pace.num_replicas) / pace.num_replicas)


def pace_of(output: Storage) -> Pace | None:
    """How fast a run was: by its driver's last word, else by its result shards; None where it has
    decoded nothing yet. Raises ValueError where there is no run."""
    state = Inspector(output).look()
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
    """From the result columns alone; all slots are taken to have been busy."""
    rows: Counter[int] = Counter()
    seconds: defaultdict[int, float] = defaultdict(float)
    replicas: set[str] = set()
    columns = ["bucket", "seconds", "replica"]
    for name in output.names("data"):
        with output.open(f"data/{name}") as source:
            table = pq.ParquetFile(source).read(columns=columns).drop_null()
        replicas |= set(table["replica"].unique().to_pylist())
        groups = table.group_by("bucket").aggregate([("seconds", "sum"), ("seconds", "count")])
        for group in groups.to_pylist():
            rows[group["bucket"]] += group["seconds_count"]
            seconds[group["bucket"]] += group["seconds_sum"]
    if not rows:
        return None
    return Pace(
        seconds={bucket: seconds[bucket] / rows[bucket] for bucket in rows},
        busy_slots=float(slots * len(replicas)),
        num_replicas=len(replicas),
        source=f"{output.uri}: its result shards",
    )
