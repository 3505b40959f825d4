"""The report's figures of the machine: rows over time, padding by bucket."""

from __future__ import annotations

from pipeline.report.counting import ReportCounts
from pipeline.report.figure import Figure
from pipeline.report.svg import Axis, Chart
from pipeline.report.timeline import Timeline

UNITS = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))


def throughput(found: Timeline) -> Figure | None:
    """Rows in committed shards over time; None where no time is known."""
    if not found.committed:
        return None
    start = found.sessions[0].started
    ends = [(s.started - start).total_seconds() + s.seconds for s in found.sessions]
    last = max(*ends, found.committed[-1][0], 1.0)
    unit, length = next((u, s) for u, s in UNITS if last >= 3 * s or s == 1.0)
    total = found.committed[-1][1]
    chart = Chart(
        Axis(f"{unit} since the first driver's start", 0.0, last / length),
        Axis("rows committed", 0, max(1, total) * 1.05, whole=True),
    )
    xs, ys = [0.0], [0.0]
    for seconds, num_rows in found.committed:
        xs += [seconds / length, seconds / length]
        ys += [ys[-1], float(num_rows)]
    xs.append(last / length)
    ys.append(ys[-1])
    chart.band(xs, [0.0] * len(xs), ys, "s1")
    chart.line(xs, ys, "s1", "whole shards")
    for session in found.sessions[1:]:
        chart.moment((session.started - start).total_seconds() / length, "s3")
    for seconds in found.deaths:
        chart.moment(seconds / length, "s4")
    chart.legend += [("s3", "dash", "driver started again")] if found.sessions[1:] else []
    chart.legend += [("s4", "dash", "replica died")] if found.deaths else []
    chart.reading_xs = [(s / length, f"{s / length:.3g} {unit}") for s, _ in found.committed]
    chart.readings = [("rows", [f"{rows:,}" for _, rows in found.committed])]
    return Figure(
        "throughput",
        "Rows committed over time",
        "Each step is a committed shard, at its file's time. Rows appear with their shard, not "
        "when they were decoded: that time is not stored.",
        chart,
    )


def padding(counts: ReportCounts) -> Figure | None:
    """Prompt tokens and padding of each bucket's rows; None where no row had a slot."""
    if not counts.slots.buckets:
        return None
    buckets = sorted(counts.slots.buckets.items())
    names = tuple((float(n), f"{length}") for n, (length, _) in enumerate(buckets))
    chart = Chart(
        Axis("bucket (prompt tokens a slot holds)", -0.5, len(buckets) - 0.5, marks=names),
        Axis("tokens a row, mean", 0.0, max(counts.slots.buckets) * 1.05),
        legend=[("s1", "box", "prompt"), ("s5", "box", "padding")],
    )
    rows, prompts, pads = [], [], []
    for n, (length, bucket) in enumerate(buckets):
        mean = bucket.num_prompt_tokens / bucket.num_rows
        chart.bar(n - 0.35, n + 0.35, 0.0, mean, "s1")
        chart.bar(n - 0.35, n + 0.35, mean, float(length), "s5")
        rows.append(f"{bucket.num_rows:,}")
        prompts.append(f"{mean:.1f}")
        pads.append(f"{length - mean:.1f} ({1 - mean / length:.1%})")
    chart.reading_xs = [(float(n), f"bucket {length}") for n, (length, _) in enumerate(buckets)]
    chart.readings = [("rows", rows), ("prompt tokens", prompts), ("padding", pads)]
    return Figure(
        "padding",
        "Padding by bucket",
        f"Mean over each bucket's rows. {padding_share(counts):.1%} of all prompt positions in "
        "slots were padding, each row counted once.",
        chart,
    )


def padding_share(counts: ReportCounts) -> float:
    """Share of padding in the prompt positions of all rows that had a slot."""
    positions = sum(length * bucket.num_rows for length, bucket in counts.slots.buckets.items())
    tokens = sum(bucket.num_prompt_tokens for bucket in counts.slots.buckets.values())
    return 1 - tokens / positions if positions else 0.0
