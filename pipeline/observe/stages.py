"""Tells what a command is doing now: the stages that it has begun and not ended.

    with stage("hashing weights", total, "bytes") as step:
        step.add(len(chunk))

Nobody has to listen, and counting costs an addition. `jobs/live.py` shows the stages.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

BYTES = "bytes"
T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Stage:
    """One stage, and how far it is."""

    what: str
    """Begins with a verb: `hashing weights`."""
    total: int | None = None
    """Units that there are; None where that is not known."""
    unit: str = ""
    done: int = 0
    detail: str = ""
    """What else is known so far."""
    began: float = field(default_factory=time.monotonic)

    def add(self, count: int = 1) -> None:
        """Count units that are done. Several threads may count."""
        with _LOCK:
            self.done += count

    def at(self, done: int, total: int | None = None) -> None:
        """Set how many units are done, and how many there are where that is known now."""
        self.done, self.total = done, self.total if total is None else total

    @property
    def text(self) -> str:
        """`hashing weights, 1.2 of 16.1 GB`."""
        return ", ".join(part for part in (self.what, self._counted(), self.detail) if part)

    def _counted(self) -> str:
        if self.unit == BYTES:
            return _bytes(self.done, self.total)
        if self.total is not None:
            return f"{self.done:,} of {self.total:,} {self.unit}"
        return f"{self.done:,} {self.unit}" if self.done else ""


def _bytes(done: int, total: int | None) -> str:
    if not total:
        return ""
    unit, size = next((u for u in (("GB", 1e9), ("MB", 1e6)) if total >= u[1]), ("kB", 1e3))
    return f"{done / size:.1f} of {total / size:.1f} {unit}"


Listener = Callable[[Stage], None]
"""Called with a stage that begins, in the thread in which it does."""

_LOCK = threading.Lock()
_stacks: dict[int, list[Stage]] = {}
"""By thread, the stages that have not ended, outermost first."""
_listeners: list[Listener] = []


@contextmanager
def stage(what: str, total: int | None = None, unit: str = "") -> Iterator[Stage]:
    """A stage that lasts as long as the context. total: units to count; None: not known."""
    begun = Stage(what, total, unit)
    thread = threading.get_ident()
    with _LOCK:
        _stacks.setdefault(thread, []).append(begun)
        listeners = list(_listeners)
    for listener in listeners:
        listener(begun)
    try:
        yield begun
    finally:
        with _LOCK:
            _stacks[thread].remove(begun)
            if not _stacks[thread]:
                del _stacks[thread]


def counted(items: Sequence[T], what: str, unit: str) -> Iterator[T]:
    """The items, in a stage that counts those that are behind."""
    with stage(what, len(items), unit) as step:
        for item in items:
            yield item
            step.add()


def current() -> list[Stage]:
    """The innermost stage of each thread, in the order in which they began."""
    with _LOCK:
        innermost = [stack[-1] for stack in _stacks.values()]
    return sorted(innermost, key=lambda found: found.began)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call the listener with every stage that begins within the context."""
    with _LOCK:
        _listeners.append(listener)
    try:
        yield
    finally:
        with _LOCK:
            _listeners.remove(listener)
