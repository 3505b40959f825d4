"""The report's histograms: passes and effective tokens a row."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from pipeline.output.run_records import Run
from pipeline.output.statistics import quantile
from pipeline.report.counting import ReportCounts
from pipeline.report.curves import bin_edges, binned, mean
from pipeline.report.facts import canvases
from pipeline.report.figure import Figure, stop_order, stop_style
from pipeline.report.svg import Axis, Chart


def histograms(run: Run, counts: ReportCounts) -> list[Figure]:
    """Passes and effective tokens a row; empty where no row was decoded."""
    if not counts.num_ok:
        return []
    forwards = counts.all_forwards
    passes = _histogram(
        {f"{stop} {rows.total():,}": (stop, rows) for stop, rows in counts.forwards.items()},
        "forward passes a row",
    )
    tokens = _histogram({"": ("complete", counts.output_tokens)}, "effective tokens a row")
    return [
        Figure(
            "forwards",
            "Forward passes a row",
            f"All {counts.num_ok:,} decoded rows by stop reason: mean {mean(forwards):.1f}, median "
            f"{quantile(forwards, 0.5):,}, 90% at most {quantile(forwards, 0.9):,}.",
            passes,
        ),
        Figure(
            "tokens",
            "Effective tokens a row",
            f"Tokens before the first EOS, of a canvas of {canvases(run)}: mean "
            f"{mean(counts.output_tokens):.1f}, median {quantile(counts.output_tokens, 0.5):,}.",
            tokens,
        ),
    ]


def _histogram(series: dict[str, tuple[str, Counter[int]]], label: str) -> Chart:
    """Stacked bars; series: name in the legend → stop reason for the colour, counts."""
    together: Counter[int] = Counter()
    for _, counter in series.values():
        together.update(counter)
    edges = bin_edges(together)
    heights = binned(together, edges)
    chart = Chart(
        Axis(label, edges[0] - 0.5, edges[-1] - 0.5, whole=True),
        Axis("rows", 0, max(heights) * 1.05, whole=True),
    )
    chart.reading_xs = [
        ((low + high - 1) / 2, f"{low}" if high - low == 1 else f"{low}–{high - 1}")
        for low, high in pairwise(edges)
    ]
    below = [0] * len(heights)
    for name, (stop, counter) in sorted(series.items(), key=lambda entry: stop_order(entry[1][0])):
        rows = binned(counter, edges)
        for low, high, base, number in zip(edges, edges[1:], below, rows, strict=False):
            if number:
                chart.bar(low - 0.5, high - 0.5, base, base + number, stop_style(stop))
        below = [base + number for base, number in zip(below, rows, strict=True)]
        chart.readings.append((stop if name else "rows", [f"{n:,}" for n in rows]))
        if name:
            chart.legend.append((stop_style(stop), "box", name))
    return chart
