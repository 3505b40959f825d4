"""Two runs' folders → a page with both: their figures side by side, the rows that differ, and a
viewer of both canvases.

Equal files give an equal page. Speeds are those of the machines that each run had; the page says
where these differ.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np

from pipeline.output.money import Cost, money
from pipeline.output.run_folder import DATA, read_run
from pipeline.output.run_records import Run
from pipeline.output.session_facts import differences, environments
from pipeline.report import speed
from pipeline.report.counting import ReportCounts, count
from pipeline.report.curves import mean
from pipeline.report.facts import rows_a_second
from pipeline.report.figure import Figure
from pipeline.report.page import Section, Tile, heading, page, paragraph, table
from pipeline.report.pairs import Pair, PairCounts, pair_up
from pipeline.report.samples import Row, read_rows
from pipeline.report.svg import Axis, Chart
from pipeline.report.timeline import timeline
from pipeline.report.tokens import Tokens, token_texts
from pipeline.report.viewer import viewer_row
from pipeline.scoring.stored_scores import read_evaluations, stored_tasks
from pipeline.selecting.run_rows import Mask, read_correct, read_run_rows
from pipeline.storage.storage import Storage

SCRIPTS = ("charts.js", "canvas.js", "moving.js", "compare.js")
NAMES = ("A", "B")


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two runs."""

    name: str
    """A or B."""
    run: Run
    counts: ReportCounts
    speed: speed.Speed
    rows_a_second: float | None
    time_notes: list[str]
    """Why times are not known."""
    accuracy: dict[str, dict[str, Any]]
    """Task → summary of `lrd evaluate`."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A page that is ready to be written."""

    html: str
    figures: list[Figure]
    pairs: PairCounts
    sides: tuple[Side, Side]


@dataclass(frozen=True, slots=True)
class Line:
    """A figure of both runs; None where it is not known."""

    name: str
    values: tuple[float | None, float | None]
    text: Callable[[float], str]

    @property
    def cells(self) -> list[str]:
        texts = ["–" if value is None else self.text(value) for value in self.values]
        first, second = self.values
        ratio = f"{second / first:.2f}" if first and second is not None else "–"
        return [self.name, *texts, ratio]


def make_comparison(
    outputs: tuple[Storage, Storage], num_viewer_rows: int = 200, price: float | None = None
) -> Comparison:
    """The page on two runs, A and B. num_viewer_rows: of the viewer. price: of a GPU-hour.

    Raises ValueError, with the file and what to do, where there is nothing to compare.
    """
    a, b = (_side(*pair, price) for pair in zip(NAMES, outputs, strict=True))
    correct, notes = _correct(a, b)
    counts, pairs = pair_up((a.run, b.run), correct, num_viewer_rows)
    if not counts.num_compared:
        raise ValueError(
            f"{outputs[0].uri} and {outputs[1].uri}: no row has the same row_id and prompt in "
            "both; compare runs of one input and one number of samples"
        )
    viewer = _viewer((a, b), pairs)
    figures = [_stopped((a, b))]
    shown = f"{len(pairs):,} of {counts.num_compared:,} compared rows. " + " ".join(
        f"{side.name} shows token ids: {why}." for side, why in viewer.pop("why_not")
    )
    html = files("pipeline.report").joinpath("compare.html").read_text(encoding="utf-8")
    sections = [
        Section("rows", "Both canvases", body=paragraph(shown) + html),
        Section("figures", "Figures", figures, _cards(a, b, counts)),
        Section("settings", "Settings that differ", cards=[_settings(a.run, b.run)]),
    ]
    subtitle = " · ".join(f"{side.name}: {side.run.output.uri}" for side in (a, b))
    differing = counts.num_differing + sum(counts.ok_alone)
    mark = (
        ("warn", f"{differing:,} of {counts.num_compared:,} rows differ")
        if differing
        else ("good", f"all {counts.num_compared:,} rows are equal")
    )
    notices = [*_notices(a, b), *notes]
    tiles = _tiles(a, b, counts)
    data = {"pairs": viewer, "numbers": _numbers(a, b, counts)}
    return Comparison(
        page("Two runs", subtitle, mark, notices, tiles, sections, data, SCRIPTS),
        figures,
        counts,
        (a, b),
    )


def _side(name: str, output: Storage, price: float | None) -> Side:
    run = read_run(output)
    if not run.shards:
        raise ValueError(f"{output.path(DATA)}: no committed shards yet; wait for the first one")
    counts, _ = count(run, 1)
    course = timeline(run, counts)
    rate = rows_a_second(course) if run.is_whole else None
    notes = course.notes if run.is_whole and rate is None else []
    scored = {found["task"]: found for found in read_evaluations(output)}
    return Side(name, run, counts, speed.measured(run, counts, price), rate, notes, scored)


def _correct(a: Side, b: Side) -> tuple[dict[str, tuple[Mask, Mask]], list[str]]:
    """Which rows the scores of common tasks call right; and notes on scores that are left out."""
    found, notes = {}, []
    common = set(stored_tasks(a.run.output)) & set(stored_tasks(b.run.output))
    for task in sorted(common):
        try:
            first, second = (
                read_correct(read_run_rows(side.run.output, partial=True), task) for side in (a, b)
            )
            found[task] = first, second
        except ValueError as error:
            notes.append(f"Scores are not compared row by row: {error}.")
    return found, notes


def _lines(a: Side, b: Side) -> Iterator[Line]:
    """Every figure that one of the runs has."""
    for task in sorted({*a.accuracy, *b.accuracy}):
        shares = [side.accuracy.get(task, {}).get("accuracy") for side in (a, b)]
        yield Line(f"accuracy, {task}", (shares[0], shares[1]), "{:.1%}".format)
    readers: list[tuple[str, Callable[[Side], float | None], Callable[[float], str]]] = [
        ("rows", lambda side: side.counts.num_rows, "{:,}".format),
        ("failed rows", lambda side: side.counts.num_failed, "{:,}".format),
        ("passes a row, mean", lambda side: _mean(side.counts.all_forwards), "{:.2f}".format),
        *_spreads("passes a row", lambda side: side.speed.passes),
        ("positions a row, mean", _positions, "{:,.0f}".format),
        ("positions opened again a row, mean", _uncommits, "{:,.2f}".format),
        (
            "effective tokens a row, mean",
            lambda side: _mean(side.counts.output_tokens),
            "{:.1f}".format,
        ),
        *_spreads(speed.SECONDS, lambda side: side.speed.seconds),
        ("rows a second", lambda side: side.rows_a_second, "{:,.2f}".format),
        (speed.TOKENS, lambda side: side.speed.replica_tokens, "{:,.1f}".format),
        (speed.OUTSIDE, lambda side: side.speed.outside_passes, "{:.1%}".format),
        ("GPU-hours", _of_cost(lambda cost: cost.gpu_hours), "{:,.2f}".format),
        ("cost", _of_cost(lambda cost: cost.total), money),
        ("cost of a thousand rows", _of_cost(lambda cost: cost.thousand_rows), money),
        ("cost of a million effective tokens", _of_cost(lambda cost: cost.million_tokens), money),
    ]
    for name, read, text in readers:
        values = read(a), read(b)
        if values != (None, None):
            yield Line(name, values, text)


def _spreads(
    name: str, spread_of: Callable[[Side], Any]
) -> list[tuple[str, Callable[[Side], float | None], Callable[[float], str]]]:
    def reader(part: str) -> Callable[[Side], float | None]:
        return lambda side: getattr(spread_of(side), part, None)

    return [(f"{name}, {part}", reader(part), "{:,g}".format) for part in ("p50", "p90", "p99")]


def _of_cost(read: Callable[[Cost], float | None]) -> Callable[[Side], float | None]:
    return lambda side: None if side.speed.cost is None else read(side.speed.cost)


def _mean(counted: Counter[int]) -> float | None:
    return mean(counted) if counted else None


def _positions(side: Side) -> float | None:
    number, counts = side.counts.num_positions, side.counts
    return number / counts.num_ok if number is not None and counts.num_ok else None


def _uncommits(side: Side) -> float | None:
    counts = side.counts
    if not side.run.layout.reopens or not counts.num_ok:
        return None
    return counts.num_uncommits / counts.num_ok


def _cards(a: Side, b: Side, counts: PairCounts) -> list[str]:
    figures = [line.cells for line in _lines(a, b)]
    reasons = [f"{side.name}: {text}" for side in (a, b) for text in speed.reasons(side.speed)]
    bounds = [f"{s.name}: {t}" for s in (a, b) for t in speed.bound_reasons(s.speed)]
    reasons += [f"{side.name}: {text}" for side in (a, b) for text in side.time_notes]
    of_all = "These are of all decoded rows of each run."
    cost = [speed.HOW_COST] if a.speed.cost or b.speed.cost else []
    texts = [f"{of_all} {speed.HOW}", *cost, *bounds, *reasons]
    return [
        heading("Rows that differ") + table(["", "rows"], _differing(counts), (1,), "figures"),
        heading("Figures")
        + table(["", "A", "B", "B ÷ A"], figures, (1, 2, 3), "figures")
        + "".join(map(paragraph, texts)),
        *(_right(task, cells, a, b) for task, cells in counts.right.items()),
    ]


def _differing(counts: PairCounts) -> Iterator[tuple[str, str]]:
    rows = [
        ("compared: same row_id and prompt in both", counts.num_compared),
        ("same answer", counts.num_same),
        ("other answer", counts.num_differing),
        ("decoded in A, failed in B", counts.ok_alone[0]),
        ("failed in A, decoded in B", counts.ok_alone[1]),
        ("failed in both", counts.num_failed),
        ("fewer passes in A", counts.fewer[0]),
        ("fewer passes in B", counts.fewer[1]),
        ("not compared: the prompt is another", counts.num_other_prompts),
        ("only in A", counts.only[0]),
        ("only in B", counts.only[1]),
    ]
    yield from ((name, f"{number:,}") for name, number in rows)


def _right(task: str, cells: list[int], a: Side, b: Side) -> str:
    names = ("right in both", "right in A alone", "right in B alone", "wrong in both")
    intervals = "; ".join(
        f"{side.name} {found['accuracy']:.1%}, 95 % interval {found['accuracy_low']:.1%} to "
        f"{found['accuracy_high']:.1%}"
        for side in (a, b)
        if (found := side.accuracy.get(task)) is not None
    )
    rows = [(name, f"{number:,}") for name, number in zip(names, cells, strict=True)]
    return (
        heading(f"Scores: {task}")
        + table(["compared rows", "rows"], rows, (1,), "figures")
        + paragraph(f"Of all rows: {intervals}." if intervals else "")
    )


def _stopped(sides: tuple[Side, Side]) -> Figure:
    """Share of rows that have ended by each pass, a line for each run."""
    passes = [side.counts.all_forwards for side in sides]
    last = max((max(counter, default=0) for counter in passes), default=0)
    xs = list(range(last + 1))
    chart = Chart(
        Axis("forward pass", 0, max(1, last), whole=True),
        Axis("rows stopped", 0.0, 1.0, percent=True),
    )
    chart.reading_xs = [(n, f"by pass {n}") for n in xs]
    for side, counter, style in zip(sides, passes, ("s1", "s2"), strict=True):
        if counter:
            shares = (np.cumsum([counter[n] for n in xs]) / counter.total()).tolist()
            chart.line(xs, shares, style, side.name)
            chart.readings.append((side.name, [f"{share:.1%}" for share in shares]))
    return Figure(
        "stopped",
        "Rows that have stopped",
        "Share of each run's decoded rows that had ended by each pass.",
        chart,
    )


def _viewer(sides: tuple[Side, Side], pairs: list[Pair]) -> dict[str, Any]:
    """What the page's script shows of the chosen pairs."""
    rows = [read_rows(side.run, {pair.rows[n] for pair in pairs}) for n, side in enumerate(sides)]
    tokens = [
        _tokens(side.run, list(found.values())) for side, found in zip(sides, rows, strict=True)
    ]
    shown = []
    for pair in pairs:
        first, second = (
            viewer_row(found[index], pair.why) for found, index in zip(rows, pair.rows, strict=True)
        )
        prompt = first.pop("prompt")
        del second["prompt"]
        shown.append(
            {"id": first["id"], "why": pair.why, "prompt": prompt, "sides": [first, second]}
        )
    return {
        "rows": shown,
        "tokens": [found.texts for found in tokens],
        "blocks": [side.run.decoding.get("block_length") for side in sides],
        "why_not": [
            (side, found.why_not)
            for side, found in zip(sides, tokens, strict=True)
            if found.why_not
        ],
    }


def _tokens(run: Run, rows: list[Row]) -> Tokens:
    return token_texts(run.settings, [row for row in rows if len(row.token_ids)])


def _settings(first: Run, second: Run) -> str:
    a, b = ({**run.settings, **run.decoding} for run in (first, second))
    rows = [
        (name, _plain(a.get(name)), _plain(b.get(name)))
        for name in dict.fromkeys([*a, *b])
        if name not in ("decoding", "output") and a.get(name) != b.get(name)
    ]
    dtypes = [run.manifest.fingerprint["dtype"] for run in (first, second)]
    if dtypes[0] != dtypes[1] and "dtype" not in [name for name, *_ in rows]:
        rows.append(("dtype", *dtypes))
    return table(["name", "A", "B"], rows) if rows else paragraph("None.")


def _plain(value: Any) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _notices(a: Side, b: Side) -> Iterator[str]:
    for side in (a, b):
        if not side.run.is_whole:
            yield (
                f"{side.name} is not finished: {len(side.run.shards)} of "
                f"{len(side.run.manifest.files)} shards are committed, and only these are compared."
            )
    before, now = (environments(side.run.events) for side in (a, b))
    if before and now and before != now:
        parts = "; ".join(differences(before[-1], now[-1])) or "several kinds of them in one run"
        yield (
            f"The runs were not computed by the same machines (A to B: {parts}): their speeds and "
            "costs are of these."
        )
    elif not before or not now:
        yield "What a run was computed on is not recorded, so speeds may be of different machines."


def _tiles(a: Side, b: Side, counts: PairCounts) -> Iterator[Tile]:
    equal = counts.num_same / counts.num_compared
    yield Tile(f"{counts.num_compared:,}", "rows compared", f"{equal:.1%} with the same answer")
    for line in _lines(a, b):
        is_main = line.name.startswith("accuracy") or line.name in (
            *("passes a row, mean", "rows a second", speed.TOKENS, "cost of a thousand rows"),
        )
        if is_main and None not in line.values:
            _, first, second, ratio = line.cells
            yield Tile(f"{first} → {second}", line.name, f"A → B, B ÷ A {ratio}")


def _numbers(a: Side, b: Side, counts: PairCounts) -> dict[str, Any]:
    """The counts behind the page, for programs that read it."""
    return {
        "compared": counts.num_compared,
        "same": counts.num_same,
        "differing": counts.num_differing,
        "ok_alone": counts.ok_alone,
        "failed": counts.num_failed,
        "fewer_passes": counts.fewer,
        "other_prompts": counts.num_other_prompts,
        "only": counts.only,
        "right": counts.right,
        "figures": {line.name: line.values for line in _lines(a, b)},
    }
