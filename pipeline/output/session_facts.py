"""What drivers and replicas recorded about themselves in a run's events: what replicas computed on,
and how many canvases."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pipeline.observe.events import (
    CANVASES,
    DRIVER_FINISHED,
    DRIVER_STARTED,
    DRIVER_STOPPED,
    ENVIRONMENT,
    REPLICA_UP,
)
from pipeline.output.run_records import Event


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
    total, is_open, is_known = 0, False, False
    for event in events:
        if event.what == DRIVER_STARTED:
            if is_open:
                return None
            is_open = True
        elif event.what in (DRIVER_FINISHED, DRIVER_STOPPED) and is_open:
            number = event.facts.get(CANVASES)
            if not isinstance(number, int):
                return None
            total, is_open, is_known = total + number, False, True
    return total if is_known and not is_open else None


def per_forward(num_canvases: int | None, num_forwards: int) -> float | None:
    """Canvases computed for each forward that a row needed: 1.0 where no pass computed a canvas for
    nothing. None where the number is not known."""
    return num_canvases / num_forwards if num_canvases is not None and num_forwards else None
