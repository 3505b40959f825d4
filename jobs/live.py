"""Shows what a command is doing while it has nothing else to show: no second without a sign.

On a terminal the current stage (`pipeline/observe/stages.py`) is a line that counts its seconds;
the first one stands there before anything large is imported. Elsewhere a stage is one line on
stderr, as JSON an event `stage`; those of a command that ends within `LINE_SECONDS` stay untold,
so that a refusal is one line.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from jobs import output
from jobs.screen import Screen, cut, is_smart, styled, width_of
from pipeline.observe import stages
from pipeline.observe.stages import Stage

FRAME_SECONDS = 0.2
"""Time between two redraws."""
IDLE_SECONDS = 0.5
"""A line stays for so long after its stage: most often the next one begins meanwhile."""

Frame = Callable[[int], list[str]]
"""Terminal's columns → the lines to show."""


class Live:
    """Shows stages, and above them a frame where a command has one."""

    def __init__(self, job: str, descriptor: int = 2, clock: Callable[[], float] = time.monotonic):
        """descriptor: the terminal's, of stdout or stderr."""
        self.job, self._clock = job, clock
        self.screen: Screen | None = None
        if is_smart(descriptor) and not output.is_json():
            self.screen = Screen(descriptor, output.encoding_of(descriptor))
        self.frame: Frame | None = None
        self._over = threading.Event()
        self._held: list[tuple[float, Stage]] | None = []
        """Stages that wait until it is known that the command goes on; None: no longer."""
        self._began = self._told_at = self._drawn_at = clock()
        self._lock = threading.RLock()
        self._thread = threading.Thread(target=self._keep_showing, name="live", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Take everything away."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        if self.screen is not None:
            self.screen.erase()

    def begin(self, stage: Stage) -> None:
        """Take notice of a stage that begins."""
        if self.screen is not None:
            self.show()
            return
        with self._lock:
            if self._held is not None:
                self._held.append((time.time(), stage))
            else:
                self._tell(time.time(), stage)

    def accepted(self) -> None:
        """From here on every stage is told: the command is not one that is refused."""
        with self._lock:
            held, self._held = self._held or [], None
            going_on = stages.current()
            for at, stage in held:
                # A log gets all, with their times; people who read along get what still goes on.
                if output.is_json() or stage in going_on:
                    self._tell(at, stage)

    def show(self) -> None:
        """Show what is so now: called every `FRAME_SECONDS`, and when something begins."""
        if self.screen is None:
            self._show_lines()
            return
        if _active and _active[-1] is not self:
            return  # Another one has the terminal.
        columns, _ = self.screen.size
        lines = self.frame(columns - 1) if self.frame is not None else []
        running = stages.current()
        if running:
            lines = [*lines, self._stage_line(running, columns - 1)]
        now = self._clock()
        if lines:
            self._drawn_at = now
            self.screen.draw(lines)
        elif now - self._drawn_at >= IDLE_SECONDS:
            self.screen.erase()

    def _stage_line(self, running: list[Stage], columns: int) -> str:
        passed = self._clock() - running[-1].began
        seconds = f" {passed:.1f} s" if passed < 100 else f" {passed:.0f} s"
        what = "; ".join(stage.text for stage in running)
        line, room = f"{self.job}: {what}", max(1, columns - len(seconds))
        return cut(line if width_of(line) <= room else what, room) + styled(seconds, "dim")

    def _show_lines(self) -> None:
        now = self._clock()
        if self._held is not None and now - self._began >= output.LINE_SECONDS:
            self.accepted()
        if now - self._told_at < output.LINE_SECONDS:
            return
        self._told_at = now
        for stage in stages.current():
            if stage.done:
                self._tell(time.time(), stage, "stage progress")

    def _tell(self, at: float, stage: Stage, event: str = "stage") -> None:
        self._told_at = self._clock()
        if not output.is_json():
            output.tell(f"{self.job}: {stage.text if event != 'stage' else stage.what}")
            return
        facts: dict[str, Any] = {"stage": stage.what}
        if stage.total is not None or stage.done:
            facts |= {"done": stage.done, "total": stage.total, "unit": stage.unit}
        output.log_event(datetime.fromtimestamp(at, UTC), event, facts)

    def _keep_showing(self) -> None:
        while not self._over.wait(FRAME_SECONDS):
            try:
                self.show()
            except Exception as error:  # A display must not end what it shows.
                logging.getLogger(__name__).debug("not shown", exc_info=error)


_active: list[Live] = []
"""Those that are shown now; the last one has the terminal."""


@contextmanager
def shown(job: str, descriptor: int = 2) -> Iterator[Live]:
    """Show stages within the context, on the terminal of a descriptor."""
    live = Live(job, descriptor)
    _active.append(live)
    output.screens.append(live.screen)
    try:
        with stages.listening(live.begin):
            live.start()
            yield live
    finally:
        live.end()
        _active.remove(live)
        output.screens.remove(live.screen)


@contextmanager
def joined(job: str) -> Iterator[Live]:
    """What is shown already, else shown within the context."""
    if _active:
        yield _active[-1]
    else:
        with shown(job) as live:
            yield live
