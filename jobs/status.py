"""Tell where a run stands, from its files alone: while it is on, after it died, from anywhere.

    lrd status OUT [--watch] [--all] [--json]

Knows nothing of how the state is read (`pipeline/inspection/status.py`).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pipeline.inspection.run_state import DriverState, RunState, ShardState
from pipeline.inspection.status import Inspector
from pipeline.storage.retry import RefusedError
from pipeline.storage.storage import Storage

OK, NO_RUN, STORAGE_FAILED = 0, 2, 75
WATCH_SECONDS = 3.0
FACT_WIDTH, LINE_WIDTH = 80, 160


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The job's flags."""
    parser.add_argument("output", metavar="OUT", help="the run's output folder")
    parser.add_argument("--watch", action="store_true", help="again and again until the run ends")
    parser.add_argument("--all", action="store_true", help="list every shard")
    parser.add_argument("--json", action="store_true", help="one JSON object a look")


def run(args: argparse.Namespace) -> int:
    """The job; its exit code."""
    try:
        inspector = Inspector(Storage(args.output))
        with _shown(live=args.watch and not args.json) as show:
            while True:
                state = inspector.look()
                show(json.dumps(state.to_json()) if args.json else describe(state, args.all))
                if not args.watch or is_over(state):
                    return OK
                time.sleep(WATCH_SECONDS)
    except (ValueError, RefusedError) as error:
        print(f"lrd status: {error}", file=sys.stderr)
        return NO_RUN
    except BrokenPipeError:
        return OK  # Whoever read it (`| head`) has seen enough.
    except OSError as error:
        print(f"lrd status: storage does not answer: {error}", file=sys.stderr)
        return STORAGE_FAILED
    except KeyboardInterrupt:
        return OK


def is_over(state: RunState) -> bool:
    """Whether nothing more will happen: nobody is at work, as far as files can tell."""
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
    if state.whole and state.num_failed:
        line += "; lrd retry-failed decodes the failed rows again"
    return line


def _driver(driver: DriverState | None) -> str:
    if driver is None:
        return "none has left word here"
    who, heard = f"process {driver.pid} on {driver.host}", f"last heard at {_utc(driver.heard_at)}"
    return {
        "ended": f"none is at work; the last one ended at {_utc(driver.heard_at)}",
        "dead": f"none is at work; {who} is dead, {heard}: the same command continues",
        "beating": f"at work: {who}, {heard}",
        "silent": f"{who} has been silent while watched, {heard}: it may be gone",
        "unknown": f"{who}, {heard}; --watch tells whether it is at work",
    }[driver.state]


def _progress(driver: DriverState) -> list[str]:
    """Speed, buckets and replicas as that driver last told of them."""
    told = driver.progress
    if not told:
        return []
    num_now, seconds = told["num_done"] - told["num_done_before"], told["seconds"]
    lines = []
    if num_now and seconds:
        left = told["seconds_left"]
        spent = f"{num_now} rows in {duration(seconds)}"
        ahead = "" if left is None or driver.over else f", {duration(left)} left"
        lines.append(f"speed     {num_now / seconds:.2f} rows/s, {spent}{ahead}")
    done = [(int(name), b) for name, b in told["buckets"].items() if b["done"]]
    if done:
        lines.append("bucket    rows done     of read  forwards/row  seconds/row")
        lines += [
            f"  {length:5d} {b['done']:12d} {b['read']:11d} {b['num_forwards'] / b['done']:13.1f} "
            f"{b['seconds'] / b['done']:12.2f}"
            for length, b in sorted(done)
        ]
    if told["replicas"] and not driver.over:
        replicas = ", ".join(f"{name} {word}" for name, word in told["replicas"].items())
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
    told = " ".join(
        f"{key}={_cut(str(value), FACT_WIDTH)}" for key, value in facts.items() if value is not None
    )
    line = f"{_utc(str(event.get('time', '?')))}  {event.get('event', '?')}  {told}"
    return _cut(line.rstrip(), LINE_WIDTH)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _utc(stamp: str) -> str:
    return stamp.partition("+")[0].partition(".")[0].replace("T", " ") + " UTC"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 120:
        return f"{minutes} min"
    hours = round(minutes / 60)
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"


@contextmanager
def _shown(live: bool) -> Iterator[Callable[[str], None]]:
    """Where text goes: over the last one on a terminal that is watched, else below it."""
    console = Console()
    if live and console.is_terminal:
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as display:
            yield lambda text: display.update(Text(text), refresh=True)
    else:
        yield lambda text: print(text + "\n" if live else text, flush=True)


def main() -> None:
    """`python -m jobs.status`."""
    parser = argparse.ArgumentParser(prog="lrd status", description="Tell where a run stands.")
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))


if __name__ == "__main__":
    main()
