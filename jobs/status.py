"""Say where a run stands, from its files alone: while it runs, after it died, from any machine.

    lrd status OUT [--watch] [--all] [--json]

`pipeline/inspection/status.py` reads the state.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jobs import output
from pipeline.inspection.run_state import DriverState, RunState, ShardState
from pipeline.inspection.status import Inspector
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
        inspector = Inspector(Storage(args.output))
        with _shown(live=args.watch and not args.json) as show:
            while True:
                state = inspector.snapshot()
                show(json.dumps(state.to_json()) if args.json else describe(state, args.all))
                if not args.watch or is_over(state) or output.reader_is_gone():
                    return output.OK
                time.sleep(WATCH_SECONDS)
    except RefusedError as error:
        raise ValueError(str(error)) from error


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
    lines += _shards(state.shards, every_shard)
    lines += [f"cannot be read: {name}" for name in state.unreadable]
    if state.events:
        lines += ["events", *(f"  {_event(event)}" for event in state.events)]
    return "\n".join(lines)


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


def _driver(driver: DriverState | None) -> str:
    if driver is None:
        return "none has written its lease here"
    who = f"process {driver.pid} on {driver.host}"
    beat = f"last heartbeat at {_utc(driver.last_heartbeat)}"
    return {
        "ended": f"none is running; the last one ended at {_utc(driver.last_heartbeat)}",
        "dead": f"none is running; {who} is dead, {beat}: the same command continues",
        "beating": f"running: {who}, {beat}",
        "silent": f"{who} sent no heartbeat while watched, {beat}: it may be gone",
        "unknown": f"{who}, {beat}; --watch shows whether it is running",
    }[driver.state]


def _progress(driver: DriverState) -> list[str]:
    """Speed, buckets and replicas as that driver last reported them."""
    reported = driver.progress
    if not reported:
        return []
    num_now = reported["num_done"] - reported["num_done_before"]
    seconds = reported["seconds"]
    lines = []
    if num_now and seconds:
        left = reported["seconds_left"]
        spent = f"{num_now} rows in {output.duration(seconds)}"
        ahead = "" if left is None or driver.over else f", {output.duration(left)} left"
        lines.append(f"speed     {num_now / seconds:.2f} rows/s, {spent}{ahead}")
    done = [(int(name), b) for name, b in reported["buckets"].items() if b["done"]]
    if done:
        lines.append("bucket    rows done     of read  forwards/row  seconds/row")
        lines += [
            f"  {length:5d} {b['done']:12d} {b['read']:11d} {b['num_forwards'] / b['done']:13.1f} "
            f"{b['seconds'] / b['done']:12.2f}"
            for length, b in sorted(done)
        ]
    if reported["replicas"] and not driver.over:
        replicas = ", ".join(f"{name} {word}" for name, word in reported["replicas"].items())
        lines.append(f"replicas  {replicas}")
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
    words = " ".join(
        f"{key}={_cut(str(value), FACT_WIDTH)}" for key, value in facts.items() if value is not None
    )
    line = f"{_utc(str(event.get('time', '?')))}  {event.get('event', '?')}  {words}"
    return _cut(line.rstrip(), LINE_WIDTH)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _utc(stamp: str) -> str:
    return stamp.partition("+")[0].partition(".")[0].replace("T", " ") + " UTC"


@contextmanager
def _shown(live: bool) -> Iterator[Callable[[str], None]]:
    """Where text goes: over the last one on a terminal that is watched, else below it."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    if live and console.is_terminal:
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as display:
            yield lambda text: display.update(Text(text), refresh=True)
    else:
        yield lambda text: print(text + "\n" if live else text, flush=True)
