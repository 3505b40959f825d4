"""Ready plots of a run's frame.

Each draws into the axes that it is given, or into a new figure, and returns the axes. matplotlib
is the extra `plots`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.analysis.frames import require
from pipeline.analysis.tidy import TOKEN_COLUMNS, tokens, traces
from pipeline.report.curves import MIN_ROWS
from pipeline.report.figure import STOPS
from pipeline.report.style import LIGHT
from pipeline.scoring.summary import wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
TAIL = (0.5, 0.9, 0.99)
MOST_BINS = 40
LEAST_KL = 1e-8
"""Lower end of the axis of D_t at the least, nats."""
MOST_CHARACTERS = 7
"""Of a token's text in a cell."""


def plot_kl(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """D_t (Eq. 6, nats) by pass: median, 25–75 % and 10–90 % of the rows that ran the pass and have
    a D_t in it. Ends where fewer than five rows are left."""
    passes = traces(frame).dropna(subset="kl")
    _some(len(passes), "plot_kl", "a D_t")
    groups = passes.groupby("pass")["kl"]
    counts = groups.size()
    shown = counts >= min(MIN_ROWS, int(counts.max()))
    bands = groups.quantile(np.array(QUANTILES)).unstack()[shown]
    ax = _axes(ax)
    for low, high, alpha in ((0.1, 0.9, 0.18), (0.25, 0.75, 0.3)):
        label = f"{low:.0%} to {high:.0%}"
        ax.fill_between(
            bands.index, bands[low], bands[high], color=LIGHT["s1"], alpha=alpha, lw=0, label=label
        )
    ax.plot(bands.index, bands[0.5], color=LIGHT["s1"], label="median")
    positive = bands.to_numpy()[bands.to_numpy() > 0]
    ax.set_yscale("log", nonpositive="clip")
    if len(positive):
        ax.set_ylim(bottom=max(LEAST_KL, float(positive.min()) / 2))
    ax.set(xlabel="forward pass", ylabel="D_t (nats)")
    ax.set_title(f"KL divergence from the pass before, {passes['row_id'].nunique():,} rows")
    ax.legend(frameon=False)
    return ax


def plot_passes(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Histogram of forward passes a row, by stop reason, with p50, p90 and p99."""
    require(frame, ("status", "num_forwards", "stop_reason"), "plot_passes")
    rows = frame[frame["status"] == "ok"]
    _some(len(rows), "plot_passes", "an answer")
    passes = rows["num_forwards"].astype(int)
    low, high = int(passes.min()), int(passes.max())
    width = -(-(high - low + 1) // MOST_BINS)
    edges = np.arange(low, high + width + 1, width) - 0.5
    stops = sorted(rows["stop_reason"].unique(), key=_order)
    ax = _axes(ax)
    ax.hist(
        [passes[rows["stop_reason"] == stop].to_numpy() for stop in stops],
        bins=edges.tolist(),
        stacked=True,
        color=[LIGHT[f"s{_order(stop) + 1}"] for stop in stops],
        label=[f"{stop} {(rows['stop_reason'] == stop).sum():,}" for stop in stops],
    )
    found = np.quantile(passes, TAIL, method="inverted_cdf").tolist()
    for value in found:
        ax.axvline(value, color=LIGHT["soft"], ls="--", lw=1)
    texts = ", ".join(f"p{100 * p:.0f} {value}" for p, value in zip(TAIL, found, strict=True))
    ax.set(xlabel="forward passes a row", ylabel="rows", title=f"Forward passes: {texts}")
    ax.legend(frameon=False)
    return ax


def plot_commit_order(
    frame: pd.DataFrame,
    row_id: str | None = None,
    *,
    tokenizer: Any = None,
    width: int = 16,
    ax: Axes | None = None,
) -> Axes:
    """Heat map of the canvas, `width` positions a line: the pass that committed each position of
    one answer, or without `row_id` the mean over all answers that have the position. Grey: no pass
    committed it. tokenizer: writes the tokens of one answer into
    its cells, without the EOS and what is behind it."""
    require(frame, TOKEN_COLUMNS, "plot_commit_order")
    if row_id is not None:
        frame = frame[frame["row_id"] == row_id]
        if not len(frame):
            raise ValueError(f"plot_commit_order: this frame has no row {row_id}")
    positions = tokens(frame, None if row_id is None else tokenizer)
    _some(len(positions), "plot_commit_order", "a canvas")
    steps = positions["commit_step"].where(positions["commit_step"] > 0)
    means = steps.groupby(positions["position"]).mean().to_numpy(np.float64)
    grid = np.full((-(-len(means) // width), width), np.nan)
    grid.flat[: len(means)] = means
    ax = _axes(ax, (0.62 * width + 1.6, 0.42 * len(grid) + 1.4))
    ax.set_facecolor(LIGHT["grid"])
    image = ax.pcolormesh(np.ma.masked_invalid(grid), cmap="viridis", edgecolors="w", linewidth=1)
    ax.invert_yaxis()
    ax.set_yticks(np.arange(len(grid)) + 0.5, [f"{n * width}" for n in range(len(grid))])
    ax.set_xticks([])
    ax.set_ylabel("first position of the line")
    one = row_id is not None
    ax.figure.colorbar(image, ax=ax, label="pass" if one else "mean pass")
    what = row_id if one else f"mean of {positions['row_id'].nunique():,} answers"
    ax.set_title(f"Pass that committed each position, {what}")
    if "text" in positions:
        texts = positions["text"].where(positions["kept"].fillna(True), "")
        _write(ax, texts.tolist(), image, means, width)
    return ax


def plot_confidence(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Where the frame has scores (`load(OUT, task=…)`): the share of right answers against
    `mean_confidence`, in ten groups of equally many rows, with 95 % intervals. Without scores:
    forward passes against effective tokens, a point a row."""
    if "correct" not in frame.columns:
        return _passes_by_tokens(frame, ax)
    require(frame, ("mean_confidence",), "plot_confidence")
    rows = frame[["mean_confidence", "correct"]].dropna()
    _some(len(rows), "plot_confidence", "a score and a confidence")
    rows = rows.sort_values("mean_confidence", kind="stable")
    groups = np.array_split(np.arange(len(rows)), min(10, len(rows)))
    right = rows["correct"].to_numpy(bool)
    confidence = rows["mean_confidence"].to_numpy(float)
    xs = [confidence[group].mean() for group in groups]
    ys = [right[group].mean() for group in groups]
    spans = [wilson(int(right[group].sum()), len(group)) for group in groups]
    ends = np.array([(y - low, high - y) for y, (low, high) in zip(ys, spans, strict=True)])
    ax = _axes(ax)
    least = min(*xs, *(low for low, _ in spans))
    ax.plot([least, 1], [least, 1], color=LIGHT["soft"], ls="--", lw=1, label="equal")
    ax.errorbar(
        xs, ys, np.clip(ends.T, 0, None), color=LIGHT["s1"], marker="o", capsize=3, label="rows"
    )
    ax.set(xlabel="mean confidence of an answer's tokens", ylabel="share right")
    ax.set_title(f"Confidence against correctness, {len(rows):,} rows")
    ax.legend(frameon=False)
    return ax


def _passes_by_tokens(frame: pd.DataFrame, ax: Axes | None) -> Axes:
    require(frame, ("status", "num_forwards", "num_output_tokens"), "plot_confidence")
    rows = frame[frame["status"] == "ok"]
    _some(len(rows), "plot_confidence", "an answer")
    ax = _axes(ax)
    xs, ys = (rows[name].astype(int) for name in ("num_output_tokens", "num_forwards"))
    ax.scatter(xs, ys, s=14, alpha=0.4, color=LIGHT["s1"], lw=0)
    most = max(1, int(min(xs.max(), ys.max())))
    ax.plot([0, most], [0, most], color=LIGHT["soft"], ls="--", lw=1, label="one token a pass")
    ax.set(xlabel="effective tokens", ylabel="forward passes")
    ax.set_title(f"Passes against tokens, {len(rows):,} rows")
    ax.legend(frameon=False)
    return ax


def _axes(ax: Axes | None, size: tuple[float, float] = (7.0, 4.2)) -> Axes:
    """The axes to draw into: those given, or of a new figure."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            "plots need matplotlib, which is an extra: pip install 'lrd-pipeline[plots]'"
        ) from error
    return pyplot.subplots(figsize=size, layout="constrained")[1] if ax is None else ax


def _write(
    ax: Axes, texts: list[str], image: Any, means: npt.NDArray[np.float64], width: int
) -> None:
    """Each position's token in its cell, dark on light cells and light on dark ones."""
    for n, (text, mean) in enumerate(zip(texts, means, strict=True)):
        shown = text.replace("\n", "↵").replace("\t", "→").replace(" ", "·")
        if len(shown) > MOST_CHARACTERS:
            shown = shown[: MOST_CHARACTERS - 1] + "…"
        red, green, blue = (0.9,) * 3 if np.isnan(mean) else image.cmap(image.norm(mean))[:3]
        ink = "#10151d" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.55 else "#ffffff"
        at = n % width + 0.5, n // width + 0.5
        ax.text(*at, shown, ha="center", va="center", fontsize=7, color=ink, parse_math=False)


def _order(stop: str) -> int:
    return STOPS.index(stop) if stop in STOPS else 5


def _some(number: int, use: str, what: str) -> None:
    if not number:
        raise ValueError(f"{use}: no row of this frame has {what}")
