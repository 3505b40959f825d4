"""The report's figures over passes: KL divergence, entropy, and what has stopped by when."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from pipeline.output.run_records import Run
from pipeline.report.counting import ReportCounts
from pipeline.report.curves import (
    DECODING,
    MIN_ROWS,
    REFINEMENT,
    UNKNOWN,
    Curve,
    committed_curve,
    phase_curves,
    refined_by,
    stopped_by,
)
from pipeline.report.figure import Figure, stop_order, stop_style
from pipeline.report.samples import Row
from pipeline.report.svg import Axis, Chart

PHASE_STYLES = {REFINEMENT: "s2", DECODING: "s1", UNKNOWN: "s6"}
PASS = "forward pass"
LEAST_KL = 1e-8
"""Smallest lower end of a logarithmic axis, nats."""


def pass_figures(run: Run, counts: ReportCounts, rows: Sequence[Row]) -> list[Figure]:
    """Figures over passes; rows: the ok rows that curves are drawn from. Empty without any; those
    of traces are left out where the run does not keep them."""
    if not rows:
        return []
    if "kl_trace" not in run.layout.schema.names:
        return [_stopped(counts)]
    sampled = (
        f"all {counts.num_ok:,} decoded rows"
        if len(rows) == counts.num_ok
        else f"{len(rows):,} of {counts.num_ok:,} decoded rows, those whose row_id has the "
        "smallest BLAKE2b digest"
    )
    figures = [
        _kl(run, rows, sampled),
        _entropy(rows, sampled),
        _stopped(counts),
        _committed(rows, sampled),
    ]
    tau = run.decoding.get("tau_refine", 0.0)
    monitor = _monitor(run)
    refined = refined_by(rows, tau, monitor) if _refines(run) else {}
    if refined:
        name = "D_t" if monitor == "kl" else f"{monitor} of D_t"
        figures.insert(3, _refined(refined, f"{name} below tau_refine {tau:g}", sampled))
    return figures


def _kl(run: Run, rows: Sequence[Row], sampled: str) -> Figure:
    curves = phase_curves(rows, lambda row: row.kl)
    seen = [y for c in curves.values() for y in (*c.low, *c.high) if y > 0]
    low, high = max(LEAST_KL, min(seen, default=1e-3)), max(seen, default=1.0)
    levels = _thresholds(run)
    high = max([high, *levels])
    low_power, high_power = math.floor(math.log10(low)), math.ceil(math.log10(high))
    y = Axis("D_t (nats)", 10.0**low_power, 10.0 ** max(high_power, low_power + 1), log=True)
    chart = _phase_chart(curves, y, lambda value: f"{value:.3g}")
    for tau, names in levels.items():
        chart.level(tau, f"{' = '.join(names)} = {tau:g}")
    return Figure(
        "kl",
        "KL divergence between consecutive passes",
        "Median and 10–90% band of D_t (Eq. 6). The paper's Figure 2 compares each pass with the "
        f"final output instead, which no run stores. Of {sampled}; passes that fewer than "
        f"{MIN_ROWS} of them reached are not drawn.",
        chart,
    )


def _thresholds(run: Run) -> dict[float, list[str]]:
    """Each tau above 0 that the run's settings compare D_t with, and its names."""
    decoding = run.decoding
    if _monitor(run) != "kl":
        return {}
    used = {"tau_refine": _refines(run), "tau_decode": decoding.get("early_stop")}
    found: dict[float, list[str]] = {}
    for name, is_used in used.items():
        if is_used and decoding.get(name):
            found.setdefault(float(decoding[name]), []).append(name)
    return found


def _monitor(run: Run) -> str:
    """What both taus are compared with; runs that say nothing compare D_t."""
    return str(run.decoding.get("monitor", "kl"))


def _refines(run: Run) -> bool:
    """Whether refinement phases end by tau_refine: not without any, nor where their
    number is fixed (LF×k)."""
    decoding = run.decoding
    counted = isinstance(decoding.get("refinement"), int)
    return bool(decoding.get("max_refine_steps")) and not counted


def _entropy(rows: Sequence[Row], sampled: str) -> Figure:
    curves = phase_curves(rows, lambda row: row.entropy)
    high = max((y for c in curves.values() for y in c.high if not math.isnan(y)), default=1.0)
    chart = _phase_chart(
        curves, Axis("mean entropy (nats)", 0.0, high * 1.08 or 1.0), "{:.3g}".format
    )
    return Figure(
        "entropy",
        "Entropy of the open positions",
        "Median and 10–90% band over rows of the mean entropy of what is still open; it may rise "
        f"while the most certain positions are committed and leave. Of {sampled}.",
        chart,
    )


def _phase_chart(curves: dict[str, Curve], y: Axis, text: Callable[[float], str]) -> Chart:
    """A band and a median for every phase."""
    last = max((n for c in curves.values() for n, m in _drawn(c)), default=1)
    chart = Chart(Axis(PASS, 0, max(1, last), whole=True), y)
    passes = list(range(1, last + 1))
    chart.reading_xs = [(n, f"pass {n}") for n in passes]
    for name, curve in curves.items():
        chart.band(curve.passes, curve.low, curve.high, PHASE_STYLES[name])
    for name, curve in curves.items():
        chart.line(curve.passes, curve.median, PHASE_STYLES[name], name)
        chart.readings += [
            (name, [_read(m, text) for m in curve.median[:last]]),
            ("  10–90%", [_span(pair, text) for pair in zip(curve.low, curve.high, strict=True)]),
            ("  rows", [f"{n:,}" if n else "" for n in curve.num_rows[:last]]),
        ]
    return chart


def _drawn(curve: Curve) -> list[tuple[int, float]]:
    points = zip(curve.passes, curve.median, strict=True)
    return [(n, median) for n, median in points if not math.isnan(median)]


def _read(value: float, text: Callable[[float], str]) -> str:
    return "" if math.isnan(value) else text(value)


def _span(pair: tuple[float, float], text: Callable[[float], str]) -> str:
    return "" if math.isnan(pair[0]) else f"{text(pair[0])} to {text(pair[1])}"


def _stopped(counts: ReportCounts) -> Figure:
    shares = stopped_by(counts.forwards)
    last = len(next(iter(shares.values()))) - 1
    passes = list(range(last + 1))
    chart = Chart(
        Axis(PASS, 0, max(1, last), whole=True), Axis("rows stopped", 0.0, 1.0, percent=True)
    )
    chart.reading_xs = [(n, f"by pass {n}") for n in passes]
    below = [0.0] * (last + 1)
    for stop in sorted(shares, key=stop_order):
        above = [a + b for a, b in zip(below, shares[stop], strict=True)]
        chart.band(passes, below, above, stop_style(stop), "area", stop)
        chart.readings.append((stop, [f"{share:.1%}" for share in shares[stop]]))
        below = above
    chart.readings.append(("together", [f"{share:.1%}" for share in below]))
    return Figure(
        "stopped",
        "Rows that have stopped",
        f"Share of all {counts.num_ok:,} decoded rows that had ended by each pass, and how.",
        chart,
    )


def _refined(shares: dict[int, float], criterion: str, sampled: str) -> Figure:
    xs, ys = list(shares), list(shares.values())
    last = max(*xs, 10)
    xs, ys = [*xs, *range(xs[-1] + 1, last + 1)], ys + [ys[-1]] * (last - xs[-1])
    chart = Chart(
        Axis(f"{PASS} (refinement)", 2, last, whole=True),
        Axis("rows converged", 0.0, 1.0, percent=True),
    )
    chart.band(xs, [0.0] * len(xs), ys, "s2")
    chart.line(xs, ys, "s2", criterion)
    chart.reading_xs = [(n, f"by pass {n}") for n in xs]
    chart.readings.append(("converged", [f"{share:.1%}" for share in ys]))
    return Figure(
        "refined",
        "Refinement that has converged",
        "Share of rows whose first refinement phase had ended by tau_refine, as the paper's Figure "
        f"3: from pass 2, the first with a D_t. Of {sampled}.",
        chart,
    )


def _committed(rows: Sequence[Row], sampled: str) -> Figure:
    curve = committed_curve(rows)
    last = curve.passes[-1]
    chart = Chart(
        Axis(PASS, 0, max(1, last), whole=True),
        Axis("canvas committed", 0.0, 1.0, percent=True),
    )
    chart.band(curve.passes, curve.low, curve.high, "s3")
    chart.line(curve.passes, curve.median, "s3", "median, 10–90% band")
    chart.reading_xs = [(n, f"after pass {n}") for n in curve.passes]
    chart.readings = [
        ("median", [f"{share:.1%}" for share in curve.median]),
        ("10–90%", [f"{a:.1%} to {b:.1%}" for a, b in zip(curve.low, curve.high, strict=True)]),
    ]
    return Figure(
        "committed",
        "Canvas that is committed",
        f"Share of a row's positions that hold a token after each pass. Of {sampled}.",
        chart,
    )
