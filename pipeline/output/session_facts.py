"""What drivers and replicas recorded about themselves in a run's events: what replicas computed on,
how many canvases, and their time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipeline.observe.events import (
    CANVASES,
    DRIVER_FINISHED,
    DRIVER_STARTED,
    DRIVER_STOPPED,
    ENVIRONMENT,
    PASS_SECONDS,
    REPLICA_DIED,
    REPLICA_RETIRED,
    REPLICA_UP,
    REPLICAS,
)
from pipeline.output.run_records import Event

ENDS = (DRIVER_FINISHED, DRIVER_STOPPED)


def environments(events: Iterable[Event]) -> list[dict[str, Any]]:
    """The different environments of a run's replicas, in the order in which they came; none of
    replicas that recorded none."""
    found: list[dict[str, Any]] = []
    for event in events:
        environment = event.facts.get(ENVIRONMENT)
        if event.what == REPLICA_UP and isinstance(environment, dict) and environment not in found:
            found.append(environment)
    return found


def differences(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """`torch was 2.9.0, is 2.13.0` for each part of an environment that is not the same."""
    for name in [*before, *(name for name in now if name not in before)]:
        if before.get(name) != now.get(name):
            yield f"{name} was {_plain(before.get(name))}, is {_plain(now.get(name))}"


def _plain(value: Any) -> str:
    return "not recorded" if value is None else str(value)


def canvases_computed(events: Iterable[Event]) -> int | None:
    """Canvases that the replicas of all drivers computed; None where a driver did not record it,
    since it was killed or is running."""
    found = _recorded(events, CANVASES, int)
    return None if found is None else int(found)


def pass_seconds(events: Iterable[Event]) -> float | None:
    """Seconds that the replicas of all drivers spent in forward passes, summed over replicas; None
    as `canvases_computed`. What a replica did in its last second before it died is lost."""
    return _recorded(events, PASS_SECONDS, (int, float))


def _recorded(events: Iterable[Event], fact: str, kind: Any) -> float | None:
    """The sum of a fact of every driver's last event; None where one lacks it."""
    total, is_open, is_known = 0.0, False, False
    for event in events:
        if event.what == DRIVER_STARTED:
            if is_open:
                return None
            is_open = True
        elif event.what in ENDS and is_open:
            number = event.facts.get(fact)
            if not isinstance(number, kind):
                return None
            total, is_open, is_known = total + number, False, True
    return total if is_known and not is_open else None


def replica_seconds(events: Iterable[Event]) -> float | None:
    """Seconds that replicas were up, from a loaded model to their end or their driver's, summed
    over replicas; None where the end of a driver is not recorded."""
    total, is_known, up = 0.0, False, dict[str, datetime]()
    is_open = False
    for event in events:
        name = str(event.facts.get("replica"))
        if event.what == DRIVER_STARTED:
            if is_open:
                return None
            is_open = True
        elif event.what == REPLICA_UP:
            up[name] = event.time
        elif event.what in (REPLICA_DIED, REPLICA_RETIRED) and name in up:
            total += (event.time - up.pop(name)).total_seconds()
        elif event.what in ENDS and is_open:
            total += sum((event.time - since).total_seconds() for since in up.values())
            up.clear()
            is_open, is_known = False, True
    return total if is_known and not is_open else None


@dataclass(frozen=True, slots=True)
class GpuTime:
    """GPUs × time that the drivers of a run held them."""

    seconds: float
    """GPU-seconds: of each driver its replicas' GPUs from its first event to its last."""
    is_whole: bool
    """Whether every driver recorded its end; else the true number is larger."""


def gpu_time(events: Iterable[Event]) -> GpuTime | str:
    """The GPU time of a run, or why it is not known."""
    total, is_whole, is_open = 0.0, True, False
    gpus, replicas, since, seen = 0.0, 0, None, False
    for event in events:
        if event.what == DRIVER_STARTED:
            is_whole &= not is_open
            facts = event.facts
            if not isinstance(facts.get("replicas"), int) or "device" not in facts:
                return "a driver did not record its device and replicas"
            gpus, replicas = float(facts.get("num_gpus") or 0.0), facts["replicas"]
            since, is_open, seen = event.time, True, True
        elif since is not None and is_open:
            total += gpus * replicas * (event.time - since).total_seconds()
            since, is_open = event.time, event.what not in ENDS
            if event.what == REPLICAS and isinstance(event.facts.get("wanted"), int):
                replicas = event.facts["wanted"]
    if not seen:
        return "the events name no driver's start"
    return GpuTime(total, is_whole and not is_open) if total else "its replicas held no GPU"


def per_forward(num_canvases: int | None, num_forwards: int) -> float | None:
    """Canvases computed for each forward that a row needed: 1.0 where no pass computed a canvas for
    nothing. None where the number is not known."""
    return num_canvases / num_forwards if num_canvases is not None and num_forwards else None
