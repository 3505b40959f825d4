"""A run's progress for people: the frame of `lrd generate` and of `lrd status --watch`, and lines
where there is no terminal.

Both commands draw with `frame`; the figures are those of one `Progress`, whether the driver hands
it over or it was read from the lease.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from jobs import live, output
from jobs.screen import cut, one_line, styled, width_of
from pipeline.observe.eta import Progress

LABEL = 10
"""Columns of a line's name."""
LONGEST_BAR, SHORTEST_BAR = 30, 8
FAILED = " failed"
_BREAKS = re.compile(r"(?<=,) | (?=\()")
"""Where a line may go on in the next one."""


@dataclass(frozen=True, slots=True)
class Counted:
    """How many rows of a run are done."""

    num_rows: int
    num_done: int
    num_failed: int
    """Of all rows that are done, those of earlier drivers too."""

    @classmethod
    def of(cls, progress: Progress) -> Counted:
        num_failed = progress.num_failed_before + progress.num_failed
        return cls(progress.num_rows, progress.num_done, num_failed)


def frame(
    title: str,
    counted: Counted,
    progress: Progress | None,
    columns: int,
    since: float = 0.0,
    at_work: bool = True,
) -> list[str]:
    """The lines of at most so many columns that show a run.

    counted: what is done. progress: the driver's last report. since: seconds that have passed since
    then. at_work: whether its driver is running.
    """
    lines = [styled(cut(title, columns), "bold"), *_rows(counted, columns)]
    if progress is None:
        return lines
    if parts := speed(progress):
        lines += _line("speed", parts, columns)
    lines += _line("time", _time(progress, since, at_work), columns)
    if at_work:
        if progress.replicas:
            lines += _line("replicas", replicas(progress), columns)
        if (now := starting(progress)) is not None:
            dots = "." * (int(2 * (progress.seconds + since)) % 4)
            lines += _line("now", [now + dots], columns)
    if progress.last_answer is not None:
        lines.append(_last(progress.last_answer.row_id, progress.last_answer.text, columns))
    return lines


def _rows(counted: Counted, columns: int) -> list[str]:
    share = counted.num_done / counted.num_rows if counted.num_rows else 1.0
    parts = [f"{counted.num_done:,} of {counted.num_rows:,} ({share:.1%})"]
    if counted.num_failed:
        parts.append(f"{counted.num_failed:,}{FAILED}")
    lines = _line("rows", parts, columns)
    room = min(LONGEST_BAR, columns - width_of(lines[0]) - 2)
    if len(lines) == 1 and room >= SHORTEST_BAR:
        full = round(share * room) if share in (0, 1) else min(room - 1, max(1, int(share * room)))
        lines[0] += f"  {styled('━' * full, 'green')}{styled('─' * (room - full), 'dim')}"
    return lines


def speed(progress: Progress) -> list[str]:
    """Rows and effective tokens a second and mean forwards a row, of the rows decoded now; empty
    before there is one."""
    seconds = progress.rate_seconds
    if not progress.num_done_now or seconds <= 0:
        return []
    parts = [f"{progress.num_done_now / seconds:,.2f} rows/s"]
    if progress.num_ok_now > 0:
        parts.append(f"{progress.num_forwards / progress.num_ok_now:.1f} forwards/row")
    if progress.num_output_tokens:
        parts.append(f"{progress.num_output_tokens / seconds:,.0f} effective tokens/s")
    return parts


def time_left(progress: Progress) -> str | None:
    """`12 min left (10 to 15 min)`; None before it can be estimated."""
    left = progress.seconds_left
    if left is None or progress.num_done >= progress.num_rows:
        return None
    text = f"{output.duration(left)} left"
    if progress.seconds_left_range is None:
        return text
    low, high = map(output.duration, progress.seconds_left_range)
    if low == high:
        return text
    number, _, unit = low.partition(" ")
    # `10 to 15 min`, but `50 s to 2 min`.
    low = number if unit and high.partition(" ")[2] == unit else low
    return f"{text} ({low} to {high})"


def _time(progress: Progress, since: float, at_work: bool) -> list[str]:
    seconds = int(progress.seconds + since)
    parts = [f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"]
    left = time_left(progress) if at_work else None
    return [*parts, left] if left else parts


def replicas(progress: Progress) -> list[str]:
    """`6 decoding`, `1 loading`: most frequent first."""
    counted = Counter(progress.replicas.values())
    return [f"{number} {state}" for state, number in counted.most_common()]


def starting(progress: Progress) -> str | None:
    """What the replicas do before the first row is done, and while none of them decodes; None where
    rows are being decoded, or none is left."""
    states = Counter(progress.replicas.values())
    total = states.total()
    if not total or progress.num_done >= progress.num_rows:
        return None
    if states["decoding"]:
        return None if progress.num_done_now else "first passes"
    if states["waiting"]:
        return f"waiting for room on a node for {states['waiting']} of {total} replicas"
    for state, what in (
        ("preparing", "finding out how many slots fit on"),
        ("compiling", "compiling kernels on"),
        ("loading", "loading the model on"),
        ("starting", "starting"),
        ("dead", "restarting after a pause:"),
    ):
        if states[state]:
            return f"{what} {states[state]} of {total} replicas"
    return "reading prompts" if states["idle"] else None


def _last(row_id: str, text: str, columns: int) -> str:
    room = columns - _indent(columns)
    name = cut(row_id, room)
    line = one_line(text, room - len(name) - 2)
    return f"{_label('last', columns)}{styled(name, 'dim')}{'  ' + line if line else ''}"


def _indent(columns: int) -> int:
    """Columns of the labels; very narrow terminals have no room for them."""
    return LABEL if columns >= 2 * LABEL else 0


def _label(name: str, columns: int) -> str:
    return styled(f"{name:{LABEL}}", "dim") if _indent(columns) else ""


def _line(name: str, parts: Sequence[str], columns: int) -> list[str]:
    """Parts with commas between them, on as many lines as they need."""
    indent = _indent(columns)
    lines: list[str] = []
    for piece in _BREAKS.split(", ".join(parts)):
        if lines and indent + len(lines[-1]) + 1 + len(piece) <= columns:
            lines[-1] += f" {piece}"
        else:
            lines.append(piece)
    shown = [_coloured(cut(text, columns - indent)) for text in lines]
    return [_label(name, columns) + shown[0], *(" " * indent + text for text in shown[1:])]


def _coloured(text: str) -> str:
    """The text with the part about failed rows in red."""
    before, comma, last = text.rpartition(", ")
    is_failed = (last or text).endswith(FAILED)
    return f"{before}{comma}{styled(last, 'red')}" if is_failed else text


def in_one_line(progress: Progress) -> str:
    """`12/40 rows, 3.41 rows/s, …`: where there is no terminal."""
    parts = speed(progress) or [starting(progress) or "starting"]
    if left := time_left(progress):
        parts.append(left)
    if num_failed := Counted.of(progress).num_failed:
        parts.append(f"{num_failed}{FAILED}")
    return f"{progress.num_done}/{progress.num_rows} rows, {', '.join(parts)}"


class Display:
    """Shows a run's progress: a frame on a terminal, a line every few seconds elsewhere."""

    def __init__(self, job: str, title: str) -> None:
        """title: model and output."""
        self._job, self._title = job, title
        self.progress: Progress | None = None
        """The last one that was shown."""
        self._reported_at = self._told_at = time.monotonic()
        self._told: str | None = None
        self._live: live.Live | None = None
        self._contexts = ExitStack()

    def __enter__(self) -> Display:
        self._live = self._contexts.enter_context(live.joined(self._job))
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.frame = None
            self._live.show()
        self._contexts.close()

    def accepted(self) -> None:
        """The run is not one that is refused: what it does is told from here on."""
        if self._live is not None:
            self._live.accepted()

    def show(self, progress: Progress) -> None:
        """Take a new progress: this costs its caller nothing; another thread draws it."""
        is_first = self.progress is None
        self.progress, self._reported_at = progress, time.monotonic()
        if self._live is None or self._live.screen is None:
            self._tell(progress)
        elif is_first:
            self._live.frame = self._frame
            self._live.show()

    def _frame(self, columns: int) -> list[str]:
        progress = self.progress
        if progress is None:
            return []
        since = time.monotonic() - self._reported_at
        title = f"{self._job}  {self._title}"
        return frame(title, Counted.of(progress), progress, columns, since)

    def _tell(self, progress: Progress) -> None:
        """A line where the stage of the start changes, and every `LINE_SECONDS`."""
        what = starting(progress)
        is_new = what is not None and what != self._told
        if not is_new and time.monotonic() - self._told_at < output.LINE_SECONDS:
            return
        self._told, self._told_at = what or self._told, time.monotonic()
        if not output.is_json():
            output.tell(in_one_line(progress))
        elif is_new:
            output.LOG.info("stage", extra={"facts": {"stage": what}})
        else:
            output.LOG.info("progress", extra={"facts": progress.to_json()})
