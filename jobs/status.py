"""Say where a run stands, from its files alone: while it runs, after it died, from any machine.

    lrd status OUT [--watch] [--all] [--json]

`pipeline/inspection/status.py` reads the state.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from typing import Any

from jobs import dashboard, live, output
from jobs.dashboard import Counted
from jobs.screen import cut, is_smart, one_line
from pipeline.inspection.run_state import DriverState, RunState, ShardState
from pipeline.inspection.status import Inspector
from pipeline.observe.eta import Progress
from pipeline.observe.stages import stage
from pipeline.storage.retry import RefusedError
from pipeline.storage.storage import Storage

WATCH_SECONDS = 3.0
FACT_WIDTH, LINE_WIDTH = 80, 160


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The job's flags."""
    parser.add_argument("output", metavar="OUT", help="the run's output folder")
    parser.add_argument("--watch", action="store_true", help="refresh until the run ends")
    parser.add_argument("--all", action="store_true", help="list every shard")
    parser.add_argument("--json", action="store_true", help="print one JSON object per refresh")


@output.command(
    "lrd status",
    storage=(output.INTERRUPTED, "storage does not answer: {}"),
    interrupt=(output.OK, None),
)
def run(args: argparse.Namespace) -> int:
    """Show the state; the exit code."""
    try:
        with stage("reading the run"):
            inspector = Inspector(Storage(args.output))
            state = inspector.snapshot()
        if not args.watch or is_over(state):
            _print(state, args)
        elif args.json or not is_smart(1) or not sys.stdout.isatty():
            _watch_lines(inspector, state, args)
        else:
            _watch_screen(inspector, state, args)
        return output.OK
    except RefusedError as error:
        raise ValueError(str(error)) from error


def _print(state: RunState, args: argparse.Namespace, end: str = "") -> None:
    text = json.dumps(state.to_json()) if args.json else describe(state, args.all)
    print(text + end, flush=True)


def _watch_lines(inspector: Inspector, state: RunState, args: argparse.Namespace) -> None:
    """Print each state below the one before."""
    end = "" if args.json else "\n"
    _print(state, args, end)
    while not is_over(state) and not output.reader_is_gone():
        time.sleep(WATCH_SECONDS)
        state = inspector.snapshot()
        _print(state, args, end)


def _watch_screen(inspector: Inspector, state: RunState, args: argparse.Namespace) -> None:
    """Redraw the state in place; the last one stays as text."""
    try:
        with live.shown("lrd status", descriptor=1) as screen:
            seen = _Seen(state, time.monotonic(), args.all)
            screen.frame = lambda columns: seen.lines(columns)
            while not is_over(state):
                time.sleep(WATCH_SECONDS)
                state = inspector.snapshot()
                seen = _Seen(state, seen.reported_at(state), args.all)
    finally:
        _print(state, args)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A state, and when its driver's report was seen first."""

    state: RunState
    at: float
    every_shard: bool

    def reported_at(self, later: RunState) -> float:
        """When the report of a later state was seen first."""
        before, after = self.state.driver, later.driver
        same = before and after and before.progress == after.progress
        return self.at if same else time.monotonic()

    def lines(self, columns: int) -> list[str]:
        state, driver = self.state, self.state.driver
        reported = _reported(driver)
        at_work = driver is not None and driver.state in ("beating", "unknown")
        since = time.monotonic() - self.at if at_work else 0.0
        title = f"lrd status  {state.settings.get('model', '?')} → {state.uri}"
        lines = dashboard.frame(title, _counted(state), reported, columns, since, at_work)
        rest = [f"driver    {_driver(driver, watched=True)}", *_rest(state, self.every_shard)]
        return [*lines, *(cut(line, columns) for line in rest)]


def _counted(state: RunState) -> Counted:
    return Counted(state.num_rows, state.num_done, state.num_failed)


def _reported(driver: DriverState | None) -> Progress | None:
    """The driver's last report; None where there is none."""
    return Progress.from_json(driver.progress) if driver and driver.progress else None


def is_over(state: RunState) -> bool:
    """Whether nothing more will happen: no driver is running, as far as files can tell."""
    driver = state.driver
    return driver is None or driver.over or (state.whole and driver.state == "silent")


def describe(state: RunState, every_shard: bool = False) -> str:
    """All of it as lines of text."""
    lines = [
        f"{state.uri}: {state.settings.get('model', '?')}, begun {_utc(state.created)}",
        _rows(state),
        f"driver    {_driver(state.driver)}",
    ]
    if state.driver is not None:
        lines += _progress(state.driver)
    return "\n".join([*lines, *_rest(state, every_shard)])


def _rest(state: RunState, every_shard: bool) -> list[str]:
    """Shards, what cannot be read, and the last events."""
    lines = _shards(state.shards, every_shard)
    lines += [f"cannot be read: {name}" for name in state.unreadable]
    if state.events:
        lines += ["events", *(f"  {_event(event)}" for event in state.events)]
    return lines


def _rows(state: RunState) -> str:
    left = state.num_rows - state.num_done
    share = state.num_done / state.num_rows if state.num_rows else 1.0
    line = (
        f"rows      {state.num_done} of {state.num_rows} done ({share:.1%}), "
        f"{state.num_failed} failed, {left} left; "
        f"{state.num_whole} of {len(state.shards)} shards written"
    )
    if state.num_samples > 1:
        num_prompts = state.num_rows // state.num_samples
        line += f"; {num_prompts} prompts × {state.num_samples} samples"
    if state.whole and state.num_failed:
        line += "; lrd retry-failed decodes the failed rows again"
    return line


def _driver(driver: DriverState | None, watched: bool = False) -> str:
    if driver is None:
        return "none has written its lease here"
    who = f"process {driver.pid} on {driver.host}"
    beat = f"last heartbeat at {_utc(driver.last_heartbeat)}"
    return {
        "ended": f"none is running; the last one ended at {_utc(driver.last_heartbeat)}",
        "dead": f"none is running; {who} is dead, {beat}: the same command continues",
        "beating": f"running: {who}, {beat}",
        "silent": f"{who} sent no heartbeat while watched, {beat}: it may be gone",
        "unknown": f"{who}, {beat}; "
        + ("watching for the next" if watched else "--watch shows whether it is running"),
    }[driver.state]


def _progress(driver: DriverState) -> list[str]:
    """Speed, buckets and replicas as that driver last reported them."""
    reported = _reported(driver)
    if reported is None:
        return []
    lines = []
    if speed := dashboard.speed(reported):
        spent = f"{reported.num_done_now} rows in {output.duration(reported.seconds)}"
        left = None if driver.over else dashboard.time_left(reported)
        lines.append(f"speed     {', '.join([*speed, spent, *([left] if left else [])])}")
    done = sorted((length, b) for length, b in reported.buckets.items() if b.done)
    if done:
        lines.append("bucket    rows done     of read  forwards/row  seconds/row")
        lines += [
            f"  {length:5d} {b.done:12d} {b.read:11d} {b.num_forwards / b.done:13.1f} "
            f"{b.seconds / b.done:12.2f}"
            for length, b in done
        ]
    if reported.replicas and not driver.over:
        replicas = ", ".join(f"{name} {word}" for name, word in reported.replicas.items())
        lines.append(f"replicas  {replicas}")
        if now := dashboard.starting(reported):
            lines.append(f"now       {now}")
    return lines


def _shards(shards: list[ShardState], every_shard: bool) -> list[str]:
    """A line a shard that is open or has failures."""
    listed = [
        shard
        for shard in shards
        if every_shard or shard.state in ("open", "retried") or shard.num_failed
    ]
    if not listed:
        return []
    return [
        "shard     state           rows        done      failed        left",
        *(
            f"  {s.number:05d}   {s.state:8} {s.num_rows:11d} {s.num_done:11d} {s.num_failed:11d} "
            f"{s.num_rows - s.num_done:11d}"
            for s in listed
        ),
    ]


def _event(event: dict[str, Any]) -> str:
    facts = {key: value for key, value in event.items() if key not in ("time", "event")}
    if isinstance(facts.get("rows"), list):
        facts["rows"] = len(facts["rows"])
    if isinstance(facts.get("environment"), dict):  # Versions and more are in the report.
        facts["environment"] = facts["environment"].get("device")
    words = " ".join(
        f"{key}={one_line(str(value), FACT_WIDTH)}"
        for key, value in facts.items()
        if value is not None
    )
    line = f"{_utc(str(event.get('time', '?')))}  {event.get('event', '?')}  {words}"
    return cut(line.rstrip(), LINE_WIDTH)


def _utc(stamp: str) -> str:
    return stamp.partition("+")[0].partition(".")[0].replace("T", " ") + " UTC"
