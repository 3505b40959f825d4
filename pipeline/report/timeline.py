"""Times of drivers, shards, deaths and occupied slots, as far as the files record them.

A row's result does not say when it was finished; a shard's file says
when it was committed and the events when drivers came and went. What they do not record is left
out and named in `notes`, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from pipeline.observe.events import DRIVER_FINISHED, DRIVER_STARTED, REPLICA_DIED
from pipeline.output.run_records import Run
from pipeline.report.counting import ReportCounts

SLACK = timedelta(seconds=10)
"""How far a storage's clock may be from the driver's."""
SLOTS_CHANGED = "replica notice"
"""Name of an event."""


@dataclass(slots=True)
class Session:
    """One driver's work on the run."""

    started: datetime
    ended: datetime | None = None
    """None: it wrote no event at its end, so it was stopped or is running."""
    last_seen: datetime | None = None
    """Its last event or committed shard."""
    num_shards: int = 0
    num_rows: int = 0
    """Rows of the shards that it committed, some of which an earlier driver may have decoded."""

    @property
    def seconds(self) -> float:
        return ((self.ended or self.last_seen or self.started) - self.started).total_seconds()


@dataclass(slots=True)
class Timeline:
    """The run's course in time; seconds count from the first driver's start."""

    sessions: list[Session] = field(default_factory=list)
    committed: list[tuple[float, int]] = field(default_factory=list)
    """When a shard was committed, and how many rows were by then."""
    deaths: list[float] = field(default_factory=list)
    """When replicas died."""
    occupancy: float | None = None
    """Mean share of slots that were occupied, from the driver's start to its end."""
    notes: list[str] = field(default_factory=list)


def timeline(run: Run, counts: ReportCounts) -> Timeline:
    """The course of a run from its events and its files' times."""
    found = Timeline(sessions=_sessions(run))
    if not found.sessions:
        found.notes.append("events.jsonl names no driver's start, so no time is known.")
        return found
    start = found.sessions[0].started
    found.deaths = [(e.time - start).total_seconds() for e in run.events if e.what == REPLICA_DIED]
    _assign_shards(run, counts, found)
    _occupancy(run, counts, found)
    return found


def _sessions(run: Run) -> list[Session]:
    sessions: list[Session] = []
    for event in run.events:
        if event.what == DRIVER_STARTED:
            sessions.append(Session(event.time))
        elif sessions:
            sessions[-1].last_seen = event.time
            if event.what == DRIVER_FINISHED:
                sessions[-1].ended = event.time
    return sessions


def _assign_shards(run: Run, counts: ReportCounts, found: Timeline) -> None:
    """Assign each shard to the driver that was running when its file was written."""
    placed = []
    for shard, num_rows in zip(run.shards, counts.shard_rows, strict=True):
        session = _session_at(found.sessions, shard.written)
        if session is None:
            found.notes.append(
                "The shards' file times do not lie within the run's events, as after a copy, so "
                "there is no throughput over time."
            )
            return
        assert shard.written is not None
        placed.append((shard.written, num_rows, session))
    total = 0
    for time, num_rows, session in sorted(placed, key=lambda entry: entry[0]):
        total += num_rows
        session.num_rows += num_rows
        session.num_shards += 1
        session.last_seen = max(session.last_seen or time, time)
        since = (time - found.sessions[0].started).total_seconds()
        found.committed.append((max(0.0, since), total))


def _session_at(sessions: list[Session], time: datetime | None) -> Session | None:
    """The driver that was running at a time; None where none was."""
    if time is None or time < sessions[0].started - SLACK:
        return None
    running = [s for s in sessions if s.started <= time + SLACK][-1]
    return None if running.ended and time > running.ended + SLACK else running


def _occupancy(run: Run, counts: ReportCounts, found: Timeline) -> None:
    """Time of rows in slots over time that slots were there, for a run in one undisturbed piece.

    A row's `seconds` count from its slot's filling to its end. Attempts that were
    interrupted by a death or a stop are not stored, so runs with these have no figure.
    """
    why = None
    if len(found.sessions) != 1 or found.sessions[0].ended is None or not run.is_whole:
        why = "more than one driver worked on the run, or it is not finished"
    elif found.deaths:
        why = "replicas died, and the time of the rows in their slots is not stored"
    elif any(event.what == SLOTS_CHANGED for event in run.events):
        why = "a replica changed its number of slots"
    elif not counts.slot_seconds or not run.settings.get("slots"):
        why = "no row says how long it was in a slot"
    if why is None:
        num_replicas = run.settings.get("replicas") or len(counts.slots.replicas)
        available = num_replicas * run.settings["slots"] * found.sessions[0].seconds
        share = counts.slot_seconds / available if available else 2.0
        if share <= 1:
            found.occupancy = share
            return
        why = "the rows' times in slots do not fit the run's length"
    found.notes.append(f"Slot occupancy is not known: {why}.")
