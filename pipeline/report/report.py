"""A run's folder → its report: what is read, counted and drawn, in that order.

Equal files give an equal report: it does not contain when or where it was made.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from pipeline.output.run_folder import DATA, read_run
from pipeline.output.run_records import Run
from pipeline.output.session_facts import canvases_computed, environments, per_forward
from pipeline.report import facts, speed
from pipeline.report.counting import ReportCounts, count
from pipeline.report.figure import Figure
from pipeline.report.histograms import histograms
from pipeline.report.machine import padding, throughput
from pipeline.report.page import Section, page, paragraph
from pipeline.report.passes import pass_figures
from pipeline.report.samples import read_rows
from pipeline.report.timeline import Timeline, timeline
from pipeline.report.tokens import Tokens, token_texts
from pipeline.report.viewer import viewer_data
from pipeline.scoring.stored_scores import read_evaluations
from pipeline.storage.storage import Storage

BESIDE = 4
"""Figures of the first section; with more than two rows of them the next would be far down."""


@dataclass(frozen=True, slots=True)
class Report:
    """A report that is ready to be written."""

    html: str
    figures: list[Figure]
    counts: ReportCounts
    speed: speed.Speed
    is_whole: bool
    """Whether every shard of the run is committed."""


def make_report(output: Storage, num_viewer_rows: int = 200, price: float | None = None) -> Report:
    """The report on what lies under an output folder. num_viewer_rows: of the sample viewer. price:
    of a GPU-hour, for the cost.

    Raises ValueError, with the file and what to do, where there is nothing to report on.
    """
    run = read_run(output)
    if not run.shards:
        raise ValueError(
            f"{output.path(DATA)}: no committed shards yet; wait for the first one, or continue "
            "the run with the `lrd generate` that began it"
        )
    counts, chosen = count(run, num_viewer_rows)
    rows = read_rows(run, {*chosen.curves, *chosen.viewer})
    shown = {index: rows[index] for index in chosen.viewer}
    tokens = token_texts(run.settings, [row for row in shown.values() if len(row.token_ids)])
    course = timeline(run, counts)
    found = speed.measured(run, counts, price)
    by_pass = pass_figures(run, counts, [rows[index] for index in chosen.curves])
    by_row = histograms(run, counts)
    by_time = [f for f in (throughput(course), padding(counts)) if f is not None]
    machine, events = facts.machine(run, counts, course)
    outcome = [*facts.outcome(run, counts), *facts.scores(read_evaluations(output))]
    sections = [
        Section("rows", "Sample viewer", body=_viewer(counts, len(shown), tokens)),
        Section("convergence", "Convergence", by_pass[:BESIDE]),
        Section("outcome", "Rows and passes", [*by_pass[BESIDE:], *by_row], outcome),
        Section(
            "machine", "Throughput and slots", by_time, [*speed.cards(found), *machine], events
        ),
        Section("settings", "Settings", cards=facts.settings(run)),
    ]
    data = {
        "viewer": viewer_data(run.decoding, shown, chosen.viewer, tokens),
        "numbers": {**_numbers(run, counts, course), "speed": found.to_json()},
    }
    html = page(
        *facts.head(run, counts),
        facts.notices(run, counts),
        [*facts.tiles(run, counts, course), *speed.tiles(found)],
        sections,
        data,
    )
    return Report(html, [*by_pass, *by_row, *by_time], counts, found, run.is_whole)


def _viewer(counts: ReportCounts, num_shown: int, tokens: Tokens) -> str:
    """The viewer's HTML, and how its rows were sampled."""
    sampled = (
        f"All {num_shown:,} rows."
        if num_shown == counts.num_rows
        else f"{num_shown:,} of {counts.num_rows:,} rows: the most passes, failed ones, and the "
        "rest by the BLAKE2b digest of row_id."
    )
    why_not = f" Tokens are shown as ids: {tokens.why_not}." if tokens.why_not else ""
    html = files("pipeline.report").joinpath("viewer.html").read_text(encoding="utf-8")
    return paragraph(sampled + why_not) + html


def _numbers(run: Run, counts: ReportCounts, course: Timeline) -> dict[str, Any]:
    """The counts behind the page, for programs that read it."""
    num_canvases = canvases_computed(run.events)
    return {
        "num_rows": counts.num_rows,
        "num_failed": counts.num_failed,
        "reasons": dict(counts.errors.most_common()),
        "stops": dict(counts.stops.most_common()),
        "forwards": dict(sorted(counts.all_forwards.items())),
        "full_passes": counts.num_full_passes,
        "positions": counts.num_positions,
        "output_tokens": dict(sorted(counts.output_tokens.items())),
        "num_unsure": counts.num_unsure_stops,
        "occupancy": course.occupancy,
        "canvases_computed": num_canvases,
        "canvases_per_forward": per_forward(num_canvases, counts.num_forwards),
        "environments": environments(run.events),
    }
