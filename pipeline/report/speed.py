"""What a run cost: percentiles of passes and seconds, tokens a second, time not in passes, money.

A figure that the files do not hold is None, with the reason beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline.output.money import Cost, money
from pipeline.output.run_records import Run
from pipeline.output.session_facts import GpuTime, gpu_time, pass_seconds, replica_seconds
from pipeline.output.statistics import Spread
from pipeline.report.counting import ReportCounts
from pipeline.report.page import Tile, heading, paragraph, table

NOT_FINISHED = "the run is not finished, and rows of shards that are not committed took time too"
NO_END = "a driver did not record its end, as when it was killed"
HOW = (
    "Passes and seconds are those of decoded rows, seconds from getting a slot to the row's end, "
    "to three digits. A replica's time counts from its loaded model to its driver's end, waiting "
    "for prompts included; a pass's by the host's clock."
)
HOW_COST = (
    "Measured: the GPUs of the replicas, from each driver's start to its end, loading, idle slots, "
    "failed rows and retries included; machines outside these hours are not."
)


@dataclass(slots=True)
class Speed:
    """The figures of one run."""

    passes: Spread | None
    seconds: Spread | None
    """None where the run does not keep the column."""
    replica_tokens: float | None = None
    """Effective tokens a second and replica."""
    outside_passes: float | None = None
    """Share of the replicas' time in which no pass ran."""
    cost: Cost | None = None
    bound: str = ""
    """`at least` or `at most` where the true cost may differ, on that side."""
    why_not: dict[str, str] = field(default_factory=dict)
    """Reasons for what is None, by the figure's name in the page."""

    def to_json(self) -> dict[str, Any]:
        spreads = {"passes": self.passes, "seconds": self.seconds}
        cost = self.cost
        return {
            **{
                name: spread and {"p50": spread.p50, "p90": spread.p90, "p99": spread.p99}
                for name, spread in spreads.items()
            },
            "effective_tokens_per_replica_second": self.replica_tokens,
            "share_outside_passes": self.outside_passes,
            "cost": cost
            and {
                "gpu_hours": cost.gpu_hours,
                "price_per_gpu_hour": cost.price,
                "total": cost.total,
                "thousand_rows": cost.thousand_rows,
                "million_effective_tokens": cost.million_tokens,
                "bound": self.bound,
            },
        }


def measured(run: Run, counts: ReportCounts, price: float | None = None) -> Speed:
    """The figures of a run. price: of a GPU-hour; no cost without it."""
    found = Speed(Spread.of(counts.all_forwards), Spread.of(counts.row_seconds))
    if found.seconds is None and counts.num_ok:
        found.why_not[SECONDS] = f"the run keeps {run.layout.columns} columns, without seconds"
    up, in_passes = replica_seconds(run.events), pass_seconds(run.events)
    if not run.is_whole or not up:
        why = NO_END if up is None else "the start of no replica is recorded"
        why = why if run.is_whole else NOT_FINISHED
        found.why_not |= {TOKENS: why, OUTSIDE: why}
    else:
        found.replica_tokens = counts.num_output_tokens / up
        if in_passes is None:
            found.why_not[OUTSIDE] = "a driver did not record the seconds in passes"
        else:
            found.outside_passes = max(0.0, 1 - in_passes / up)
    if price is not None:
        time = _gpu_time(run, counts)
        if isinstance(time, str):
            found.why_not[COST] = time
        else:
            hours = time.seconds / 3600
            found.cost = Cost(hours, price, counts.num_ok, counts.num_output_tokens)
            may_wait = bool(run.settings.get("autoscale"))
            found.bound = "at most" if may_wait else "" if time.is_whole else "at least"
    return found


def _gpu_time(run: Run, counts: ReportCounts) -> GpuTime | str:
    """The run's GPU time, or why its rows cannot be charged with it."""
    if not run.is_whole:
        return NOT_FINISHED
    if not counts.num_ok:
        return "no row was decoded"
    time = gpu_time(run.events)
    if isinstance(time, GpuTime) and not time.is_whole and run.settings.get("autoscale"):
        return f"{NO_END}, and with --autoscale replicas may have waited for machines"
    return time


SECONDS, TOKENS, OUTSIDE = "seconds a row", "effective tokens/s a replica", "time not in passes"
COST = "cost"


def figures(speed: Speed) -> Iterator[tuple[str, str]]:
    """Name and text of every figure that is known but the percentiles."""
    if speed.replica_tokens is not None:
        yield TOKENS, f"{speed.replica_tokens:,.1f}"
    if speed.outside_passes is not None:
        yield OUTSIDE, f"{speed.outside_passes:.1%}"
    if speed.cost is not None:
        cost, before = speed.cost, f"{speed.bound} " if speed.bound else ""
        yield "GPU-hours", f"{before}{cost.gpu_hours:,.2f}"
        yield f"cost at {money(cost.price)} a GPU-hour", before + money(cost.total)
        yield "cost of a thousand rows", before + money(cost.thousand_rows)
        if cost.million_tokens is not None:
            yield "cost of a million effective tokens", before + money(cost.million_tokens)


def reasons(speed: Speed) -> list[str]:
    """Why figures are left out, a sentence for each reason."""
    names: dict[str, list[str]] = {}
    for name, why in speed.why_not.items():
        names.setdefault(why, []).append(name)
    return [f"Not known: {' and '.join(of)}, since {why}." for why, of in names.items()]


def spreads(speed: Speed) -> list[tuple[str, Spread]]:
    """The percentiles that are known, by name."""
    found = (("passes a row", speed.passes), (SECONDS, speed.seconds))
    return [(name, spread) for name, spread in found if spread is not None]


def cards(speed: Speed) -> list[str]:
    """One HTML card; none where nothing is known."""
    rows = [
        (name, *(f"{value:,g}" for value in (spread.p50, spread.p90, spread.p99)))
        for name, spread in spreads(speed)
    ]
    rest = list(figures(speed))
    if not rows and not rest:
        return []
    html = heading("Speed and cost" if speed.cost else "Speed")
    if rows:
        html += table(["", "p50", "p90", "p99"], rows, (1, 2, 3), "figures")
    if rest:
        html += table(["", "measured"], rest, (1,), "figures")
    texts = [HOW, *([HOW_COST, *bound_reasons(speed)] if speed.cost else []), *reasons(speed)]
    return [html + "".join(map(paragraph, texts))]


def bound_reasons(speed: Speed) -> list[str]:
    """Why the true cost may differ."""
    why = {
        "at least": f"At least so much: {NO_END}, and its time counts up to its last event.",
        "at most": "At most so much: with --autoscale a replica counts while it waits for a "
        "machine too.",
    }
    return [why[speed.bound]] if speed.bound else []


def tiles(speed: Speed) -> Iterator[Tile]:
    """The numbers for the top of the page."""
    if speed.replica_tokens is not None:
        remark = "a replica, from its loaded model on"
        yield Tile(f"{speed.replica_tokens:,.1f}", "effective tokens a second", remark)
    if speed.cost is not None:
        remark = f"{speed.bound}, {money(speed.cost.total)} in all".removeprefix(", ")
        yield Tile(money(speed.cost.thousand_rows), "cost of a thousand rows", remark)


def lines(speed: Speed) -> Iterator[str]:
    """The figures for a terminal."""
    for name, spread in spreads(speed):
        yield f"{name}: {spread}"
    rest = [f"{name}: {text}" for name, text in figures(speed)]
    if rest:
        yield "; ".join(rest)
    if COST in speed.why_not:
        yield f"cost: not known, since {speed.why_not[COST]}"
