"""Estimates what a run will cost, from the rows and the time of an earlier one."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow.compute as pc

from pipeline.config import RunConfig
from pipeline.inspection.plan import Duration
from pipeline.observe.events import DRIVER_STARTED
from pipeline.output.money import Cost
from pipeline.output.result_shards import batches
from pipeline.output.run_folder import read_events, written_shards
from pipeline.output.statistics import SLOT_COLUMNS, SlotCounts, Spread, occurrences, three_digits
from pipeline.storage.storage import Storage

COLUMNS = ("status", "num_output_tokens", *SLOT_COLUMNS)


@dataclass(slots=True)
class PastRows:
    """The rows of a run's written shards."""

    passes: Counter[int] = field(default_factory=Counter)
    seconds: Counter[float] = field(default_factory=Counter)
    """In slots, to three digits."""
    num_ok: int = 0
    num_tokens: int = 0
    """Effective tokens of rows that are ok."""
    paces: list[float] = field(default_factory=list)
    """Of each shard: seconds of its rows over those that as many rows of its buckets take on
    average; 1 is the run's own pace."""

    @property
    def spreads(self) -> list[tuple[str, Spread]]:
        """Percentiles that are known, by name."""
        found = (("passes", Spread.of(self.passes)), ("seconds", Spread.of(self.seconds)))
        return [(name, spread) for name, spread in found if spread is not None]


def past_rows(output: Storage) -> PastRows:
    """Read a run's written shards. Raises ValueError where one is damaged."""
    found, shards = PastRows(), list[SlotCounts]()
    for shard in written_shards(output)[0]:
        counts = SlotCounts()
        for rows in batches(output, shard.name, COLUMNS):
            counts.add(rows)
            ok = rows.filter(pc.equal(rows["status"], "ok"))
            found.num_ok += ok.num_rows
            found.num_tokens += sum(n * m for n, m in occurrences(ok["num_output_tokens"]).items())
            found.passes.update(occurrences(ok["num_forwards"]))
            if "seconds" in ok.schema.names:
                found.seconds.update(occurrences(three_digits(ok["seconds"])))
        shards.append(counts)
    found.paces = relative_paces(shards)
    return found


def relative_paces(shards: Sequence[SlotCounts]) -> list[float]:
    """`PastRows.paces`; none of shards without decoded rows."""
    all_seconds, all_rows = defaultdict[int, float](float), Counter[int]()
    for shard in shards:
        for length, bucket in shard.buckets.items():
            all_seconds[length] += bucket.seconds
            all_rows[length] += bucket.num_rows
    paces = []
    for shard in shards:
        own = sum(bucket.seconds for bucket in shard.buckets.values())
        mean = sum(b.num_rows * all_seconds[n] / all_rows[n] for n, b in shard.buckets.items())
        paces += [own / mean] if mean else []
    return paces


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """What the rows that are left will cost."""

    cost: Cost
    """Its tokens are the rows' by the mean of the earlier run."""
    low: float | None
    """Factor of the cost where all shards are like the earlier run's fastest; None where it has a
    single one."""
    high: float | None
    """The same, of its slowest."""


def cost_of(
    config: RunConfig, duration: Duration | str, source: str | None, past: PastRows, price: float
) -> CostEstimate | str:
    """The cost of the rows that are left, or a text that says why it is not known.

    duration: how long they take at the pace of the run `source`, whose rows are `past`.
    """
    if config.device == "cpu":
        return "unknown: --device cpu uses no GPU"
    if isinstance(duration, str) or source is None:
        return "unknown, as the time is"
    events, _ = read_events(Storage(source))
    devices = {event.facts.get("device") for event in events if event.what == DRIVER_STARTED}
    if devices != {"cuda"}:
        return f"unknown: {source} was not decoded on GPUs; --like OUT takes another run's pace"
    hours = duration.seconds * duration.num_replicas * config.gpus_per_replica / 3600
    several = len(past.paces) > 1
    num_tokens = duration.num_rows * past.num_tokens / past.num_ok if past.num_ok else 0.0
    return CostEstimate(
        Cost(hours, price, duration.num_rows, num_tokens),
        low=min(past.paces) if several else None,
        high=max(past.paces) if several else None,
    )
