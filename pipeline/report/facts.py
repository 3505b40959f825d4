"""The report's texts and tables: head, notices, tiles, outcome, machine, settings.

Returns texts, or HTML in which every text is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from pipeline.output.run_records import Run, run_canvases
from pipeline.output.session_facts import canvases_computed, environments, per_forward
from pipeline.output.statistics import UNSURE_ENTROPY, quantile
from pipeline.report.counting import ReportCounts
from pipeline.report.curves import mean
from pipeline.report.machine import padding_share
from pipeline.report.page import Tile, folded, heading, paragraph, table
from pipeline.report.timeline import Timeline
from pipeline.scoring.stored_scores import sample_rows

SHARE_KEYS = {"share": "", "low": "_low", "high": "_high"}
MAX_EVENTS = 200
"""Events that are listed, the latest."""
MAX_REASONS_SHOWN = 50
MAX_CHARACTERS = 300
"""Of an event's facts or a failure's reason."""


def head(run: Run, counts: ReportCounts) -> tuple[str, str, tuple[str, str]]:
    """Title, subtitle, and the mark beside the title."""
    subtitle = (
        f"{run.output.uri} · model {run.settings.get('model')} · started {run.manifest.created}"
    )
    if not run.is_whole:
        mark = ("warn", f"not finished: {len(run.shards)} of {len(run.manifest.files)} shards")
    elif counts.num_failed:
        mark = ("bad", f"finished, {counts.num_failed:,} rows failed")
    else:
        mark = ("good", "finished, every row ok")
    return "Decoding run", subtitle, mark


def notices(run: Run, counts: ReportCounts) -> Iterator[str]:
    """What a reader must know before any number."""
    if not run.is_whole:
        event = run.events[-1] if run.events else None
        last = f" Its last event: {event.what}, {_time(event.time)} UTC." if event else ""
        yield (
            f"This run is still running or was interrupted: {counts.num_rows:,} of "
            f"{run.num_planned_rows:,} rows are in committed shards, and this report covers only "
            f"these.{last}{_driver(run)} The same lrd generate command continues it."
        )
    absent = run.layout.absent
    if absent:
        yield (
            f"This run keeps {run.layout.columns} columns. What this report shows of the others is "
            f"left out: {', '.join(absent)}."
        )
    if counts.num_ok == 0:
        yield "No row was decoded, so there are no curves; the reasons are below."
    if counts.num_unsure_stops:
        yield (
            f"{counts.num_unsure_stops:,} early stops committed positions of entropy above "
            f"{UNSURE_ENTROPY:g} nats: set --stop-max-entropy, or lower --tau-decode."
        )
    if run.num_bad_events:
        yield f"Lines of events.jsonl that are unreadable and left out: {run.num_bad_events}."


def _time(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def _driver(run: Run) -> str:
    """The state of the driver by its lease; empty without one."""
    if run.driver is None:
        return ""
    if run.driver.released:
        return " No driver is running."
    return (
        f" The last heartbeat of the driver on {run.driver.host} was at {run.driver.time}, and it "
        "has not ended."
    )


def canvases(run: Run) -> str:
    """How many positions the canvases of a run have."""
    lengths = run_canvases(run.manifest.fingerprint)
    if lengths is None:
        return "the row's own length"
    first, *_, last = (*lengths, *lengths[-1:])
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"


def tiles(run: Run, counts: ReportCounts, course: Timeline) -> Iterator[Tile]:
    """The numbers at the top."""
    failed = f"{counts.num_failed:,} failed" if counts.num_failed else "none failed"
    samples = run.layout.num_samples
    of_prompts = f"{samples:,} samples a prompt, " if samples > 1 else ""
    yield Tile(f"{counts.num_rows:,}", "rows", of_prompts + failed)
    if counts.num_ok:
        forwards, tokens = counts.all_forwards, counts.output_tokens
        yield Tile(
            f"{mean(forwards):.1f}",
            "forward passes a row",
            f"median {quantile(forwards, 0.5):,}; one token a pass: {canvases(run)}",
        )
        if counts.num_positions is not None and counts.num_full_passes is not None:
            yield Tile(
                f"{counts.num_positions / counts.num_ok:,.0f}",
                "positions computed a row",
                f"{counts.num_full_passes / max(1, counts.num_forwards):.0%} of passes went "
                "through prompt and canvas",
            )
        yield Tile(
            f"{mean(tokens):.1f}",
            "effective tokens a row",
            f"{mean(tokens) / mean(forwards):.2f} a forward pass",
        )
        if counts.num_uncommits:
            yield Tile(
                f"{counts.num_uncommits / counts.num_ok:,.1f}",
                "positions opened again a row",
                f"{counts.num_uncommits:,} in all",
            )
        (stop, number), *_ = counts.stops.most_common(1)
        yield Tile(f"{number / counts.num_ok:.0%}", f"stopped as {stop}", f"{number:,} rows")
    rate = rows_a_second(course)
    if rate is not None:
        yield Tile(f"{rate:,.2f}", "rows a second", "from drivers' starts to their ends")
    if course.occupancy is not None:
        yield Tile(f"{course.occupancy:.0%}", "of slots were occupied", "start and end included")
    if counts.slots.buckets:
        yield Tile(f"{padding_share(counts):.0%}", "padding", "of the prompt positions in slots")


def rows_a_second(course: Timeline) -> float | None:
    """Rows of committed shards over the time from drivers' starts to their ends; None where it is
    not known."""
    seconds = sum(session.seconds for session in course.sessions if session.num_rows)
    rows = sum(session.num_rows for session in course.sessions)
    return rows / seconds if seconds and rows else None


def outcome(run: Run, counts: ReportCounts) -> list[str]:
    """Stop reasons and failures, an HTML card each."""
    refined = ""
    if counts.num_ok and "refine_converged" in run.layout.schema.names:
        refined = (
            f"In {counts.num_refined / counts.num_ok:.1%} of rows every refinement phase ended by "
            "tau_refine. Mean α of soft embeddings: "
            f"{counts.mix_weight / counts.num_ok:.3f}."
        )
    stops = [
        (stop, f"{number:,}", f"{number / counts.num_ok:.1%}", _spread(counts, stop))
        for stop, number in counts.stops.most_common()
    ]
    failures = [
        (_cut(reason), f"{number:,}")
        for reason, number in counts.errors.most_common(MAX_REASONS_SHOWN)
    ]
    parts = []
    if stops:
        parts.append(
            heading("How rows stopped")
            + table(["stop reason", "rows", "share", "passes: mean, median, max"], stops, (1, 2))
            + paragraph(refined)
        )
    if counts.stop_texts:
        texts = [(_cut(repr(text)), f"{n:,}") for text, n in counts.stop_texts.most_common()]
        parts.append(
            heading("Texts that answers end before")
            + table(["--stop", "rows"], texts, (1,), "pairs")
        )
    parts.append(
        heading("Failures by reason")
        + (
            table(["reason, numbers as N", "rows"], failures, (1,), "pairs")
            if failures
            else paragraph("No row failed.")
        )
    )
    return parts


def scores(evaluations: Iterable[dict[str, Any]]) -> list[str]:
    """The accuracy of each task that was scored, an HTML card each: of several samples a prompt
    pass@k and the majority vote too."""
    cards = []
    for found in evaluations:
        right = f"{found['num_correct']:,} of {found['num_rows']:,} rows right"
        row = {key: found[f"accuracy{end}"] for key, end in SHARE_KEYS.items()}
        rows = [(right, row), *sample_rows(found)]
        cells = [
            (name, f"{of['share']:.1%}", f"{of['low']:.1%} to {of['high']:.1%}")
            for name, of in rows
        ]
        cards.append(
            heading(f"Scores: {found['task']}") + table(["", "share", "95 % interval"], cells, (1,))
        )
    return cards


def _spread(counts: ReportCounts, stop: str) -> str:
    forwards = counts.forwards[stop]
    return f"{mean(forwards):.1f}, {quantile(forwards, 0.5):,}, {max(forwards):,}"


def machine(run: Run, counts: ReportCounts, course: Timeline) -> tuple[list[str], str]:
    """Drivers with remarks on what is not known about time, and replicas, an HTML card each; then
    the events."""
    drivers = [
        (
            _time(session.started),
            "finished" if session.ended else "not recorded",
            _length(session.seconds),
            f"{session.num_shards:,}",
            f"{session.num_rows:,}",
        )
        for session in course.sessions
    ]
    replicas = [
        (name, f"{number:,}", f"{number / counts.num_rows:.1%}")
        for name, number in sorted(counts.slots.replicas.items())
    ]
    parts = []
    if drivers:
        parts.append(
            heading("Drivers")
            + table(
                ["started (UTC)", "end", "length", "shards", "rows in them"], drivers, (2, 3, 4)
            )
            + "".join(map(paragraph, course.notes))
        )
    else:
        parts.append(heading("Time") + "".join(map(paragraph, course.notes)))
    if replicas:
        retried = f"{counts.num_retried:,} rows were tried more than once."
        parts.append(
            heading("Replicas")
            + table(["replica", "rows", "share"], replicas, (1, 2))
            + paragraph(retried if counts.num_retried else "")
        )
    parts.append(heading("Canvases") + paragraph(_canvases(run, counts)))
    return parts, _events(run)


def _canvases(run: Run, counts: ReportCounts) -> str:
    number = canvases_computed(run.events)
    if number is None:
        return "How many canvases were computed is not known: a driver did not record it."
    ratio = per_forward(number, counts.num_forwards)
    a_forward = "" if ratio is None else f", {ratio:.2f} for each forward that a row needed"
    return f"{number:,} canvases went through the model{a_forward}; those of free slots count."


def _events(run: Run) -> str:
    """The latest events in a closed list, as HTML."""
    rows = [
        (
            _time(event.time),
            event.what,
            _cut(", ".join(f"{name} {_plain(value)}" for name, value in event.facts.items())),
        )
        for event in run.events[-MAX_EVENTS:]
    ]
    if not rows:
        return ""
    which = "" if len(rows) == len(run.events) else f", the last {len(rows)}"
    return folded(
        f"{len(run.events):,} events{which}", table(["time (UTC)", "event", "details"], rows)
    )


def settings(run: Run) -> list[str]:
    """Settings and fingerprint, an HTML card each."""
    rest = {name: value for name, value in run.settings.items() if name != "decoding"}
    names = {
        name: value
        for name, value in run.manifest.fingerprint.items()
        if name in ("version", "dtype", "model")
    }
    inputs = run.manifest.fingerprint.get("input", {})
    computed_on = environments(run.events)
    return [
        heading("Decoding") + _pairs(run.decoding),
        heading("Run") + _pairs(rest),
        *(heading("Computed on") + _pairs(environment) for environment in computed_on),
        heading("Fingerprint")
        + _pairs(names)
        + folded(f"{len(inputs):,} input files and their SHA-256", _pairs(inputs)),
    ]


def _pairs(values: Mapping[str, Any]) -> str:
    return table(["name", "value"], [(n, _plain(v)) for n, v in values.items()], style="pairs")


def _plain(value: Any) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}…"


def _length(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
