"""Finished runs → the paper's Figures 2 to 5: curves, their points, and what the paper says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.experiments.paper.decodings import FIXED_STEPS, SHARES, point
from pipeline.experiments.paper.study import Group, model_name
from pipeline.experiments.paper.tables import Results
from pipeline.report.counting import CURVE_ROWS
from pipeline.report.figure import Figure
from pipeline.report.svg import Axis, Chart

STYLES = ("s1", "s2", "s3", "s6", "s4", "s5")
SAYS = {
    "figure2": "The divergence drops fast and settles within the 20 refinement passes, then falls "
    "on with mild fluctuations; near zero by about pass 300 of 512, for Dream-Ins by 140; MATH500 "
    "keeps some to the end.",
    "figure3": "HumanEval on Dream-Ins: 68.9 % by step 2, more than 85 % by step 3; GSM8K, MBPP "
    "and MATH500: over 70 % within the first three to four steps.",
    "figure4": "Both ends are worse: r_f = 0 equals the baseline, r_f = 1 collapses; best between, "
    "and 0.1 to 0.2 is used.",
    "figure5": "p = 0 is the baseline and lowest; accuracy rises fast and is stable beyond p of "
    "about 0.2, where only a very small share of the tokens is mixed.",
}
"""What the paper's text and captions say; its drawings have no numbers."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure of the paper: one or two charts and the points in them."""

    figures: list[Figure]
    points: list[dict[str, float | int | str]]
    remarks: list[str]


def labels(groups: Sequence[Group]) -> dict[Group, str]:
    """Names in a legend: what the groups differ in, the length always."""
    models, tasks = ({g.model for g in groups}, {g.task for g in groups})
    found = {}
    for group in groups:
        parts = [model_name(group.model)] if len(models) > 1 else []
        parts += [group.task] if len(tasks) > 1 else []
        found[group] = " ".join([*parts, f"length {group.gen_length}"])
    return found


def figure2(replays: Mapping[Group, pa.Table]) -> Drawn:
    """KL to the final answer by pass; replays: of runs with a fixed refinement phase."""
    names = labels(list(replays))
    curves = {group: _mean(_same(table), "kl_to_final") for group, table in replays.items()}
    high = max((float(np.nanmax(c)) for c in curves.values() if len(c)), default=1.0)
    last = max((len(curve) for curve in curves.values()), default=1)
    chart = Chart(Axis("forward pass", 0, last, whole=True), Axis("KL (nats)", 0.0, high or 1.0))
    chart.moment(FIXED_STEPS + 0.5, "s4")
    points: list[dict[str, float | int | str]] = []
    for style, (group, curve) in zip(_styles(curves), curves.items(), strict=True):
        chart.line(range(1, len(curve) + 1), curve.tolist(), style, names[group])
        points += [
            {**_of(group), "pass": n, "kl": float(value)} for n, value in enumerate(curve, 1)
        ]
    rows = {names[g]: _same(table).num_rows for g, table in replays.items()}
    caption = (
        "KL between each pass's beliefs and the final tokens, −log p_t(final token), mean over "
        f"the canvas (committed positions count 0) and over rows. {FIXED_STEPS} refinement passes "
        "(dashed line), one token a pass after them, no early stop. Rows replayed: "
        + ", ".join(f"{name} {number}" for name, number in rows.items())
        + "."
    )
    figure = Figure("figure2", "KL to the final answer", caption, chart)
    return Drawn([figure], points, _differing(replays, names))


def figure3(shares: Mapping[Group, Mapping[int, float]], tau: float) -> Drawn:
    """Share of rows whose refinement had converged by each step; shares: `refined_by`'s."""
    names = labels(list(shares))
    last = max([10, *(step for found in shares.values() for step in found)])
    chart = Chart(
        Axis("refinement step", 2, last, whole=True),
        Axis("rows converged", 0.0, 1.0, percent=True),
    )
    points: list[dict[str, float | int | str]] = []
    for style, (group, found) in zip(_styles(shares), shares.items(), strict=True):
        steps = list(range(2, last + 1))
        ys = [found.get(step, found[max(found)]) if found else math.nan for step in steps]
        chart.line(steps, ys, style, names[group])
        points += [{**_of(group), "step": n, "share": y} for n, y in zip(steps, ys, strict=True)]
    caption = (
        f"Share of rows (a random sample of {CURVE_ROWS:,} if there are more) whose refinement had "
        f"ended by D_t < tau_refine = {tau:g}; the step is the pass that showed it, at least 2."
    )
    return Drawn([Figure("figure3", "Refinement that has converged", caption, chart)], points, [])


def sweep(item: str, setting: str, results: Results) -> Drawn:
    """Accuracy over r_f (Figure 4) or top_p (Figure 5), with 95 % bands."""
    names = labels(list(results))
    found = {
        group: {share: runs[name] for share in SHARES if (name := point(setting, share)) in runs}
        for group, runs in results.items()
    }
    every = [m for by_share in found.values() for m in by_share.values()]
    levels = [runs["baseline"].accuracy for runs in results.values() if "baseline" in runs]
    low = min([m.low for m in every] + levels, default=0.0)
    high = max([m.high for m in every] + levels, default=1.0)
    y = Axis("accuracy", max(0.0, low - 0.02), min(1.0, high + 0.02), percent=True)
    chart = Chart(Axis(setting, 0.0, 1.0), y)
    points: list[dict[str, float | int | str]] = []
    for style, (group, by_share) in zip(_styles(found), found.items(), strict=True):
        xs = list(by_share)
        lows, highs = ([getattr(m, n) for m in by_share.values()] for n in ("low", "high"))
        chart.band(xs, lows, highs, style)
        chart.line(xs, [m.accuracy for m in by_share.values()], style, names[group])
        baseline = results[group].get("baseline")
        if baseline is not None:
            chart.level(baseline.accuracy, f"baseline, {names[group]}")
        for share, m in by_share.items():
            points.append(
                {
                    **_of(group),
                    setting: share,
                    "accuracy": m.accuracy,
                    "low": m.low,
                    "high": m.high,
                    "forwards": m.forwards if m.forwards is not None else "",
                }
            )
    caption = (
        f"Accuracy of LRD over {setting}, all other settings as in its preset, with Wilson's 95 % "
        "bands; dashed: the baseline."
    )
    return Drawn([Figure(item, f"Accuracy over {setting}", caption, chart)], points, [])


def token_ratio(replays: Mapping[Group, Mapping[float, pa.Table]]) -> Drawn:
    """Figure 5's second curve: the share of the vocabulary that is mixed, over top_p.

    top_p 0 mixes nothing and cannot be drawn on a logarithmic axis.
    """
    names = labels(list(replays))
    found = {
        group: {share: _ratio(table) for share, table in sorted(tables.items()) if share > 0}
        for group, tables in replays.items()
    }
    values = [y for by in found.values() for y in by.values() if not math.isnan(y) and y > 0]
    low = 10.0 ** math.floor(math.log10(min(values, default=1e-3)))
    chart = Chart(Axis("top_p", 0.0, 1.0), Axis("tokens mixed", low, 1.0, log=True))
    points: list[dict[str, float | int | str]] = []
    for style, (group, by_share) in zip(_styles(found), found.items(), strict=True):
        chart.line(list(by_share), list(by_share.values()), style, names[group])
        points += [{**_of(group), "top_p": x, "token_ratio": y} for x, y in by_share.items()]
    caption = (
        "Mean share of the vocabulary in the nucleus, over all mixtures that were formed in the "
        "replayed rows; at top_p 0 nothing is mixed."
    )
    remarks = [
        remark
        for share in sorted({share for tables in replays.values() for share in tables})
        for remark in _differing({g: t[share] for g, t in replays.items() if share in t}, names)
    ]
    figure = Figure("figure5-tokens", "Share of tokens in the mixture", caption, chart)
    return Drawn([figure], points, remarks)


def _same(table: pa.Table) -> pa.Table:
    return table.filter(table["is_same"])


def _differing(replays: Mapping[Group, pa.Table], names: Mapping[Group, str]) -> list[str]:
    lost = {names[g]: t.num_rows - _same(t).num_rows for g, t in replays.items()}
    return [
        f"{name}: {number} rows came out differently when replayed and are left out."
        for name, number in lost.items()
        if number
    ]


def _mean(table: pa.Table, column: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Mean by pass; a row that has ended stays at 0."""
    lists = [np.array(values, np.float64) for values in table[column].to_pylist()]
    total = np.zeros(max(map(len, lists), default=0))
    for values in lists:
        total[: len(values)] += values
    return total / max(1, len(lists))


def _ratio(table: pa.Table) -> float:
    values = np.array([v for row in _same(table)["nucleus_share"].to_pylist() for v in row], float)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else math.nan


def _styles(lines: Mapping[Group, object]) -> list[str]:
    return [STYLES[n % len(STYLES)] for n in range(len(lines))]


def _of(group: Group) -> dict[str, float | int | str]:
    return {
        "model": model_name(group.model),
        "task": group.task,
        "gen_length": group.gen_length,
    }
