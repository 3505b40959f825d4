"""The last lines of a terminal, redrawn in place; what else is printed goes above them.

Nothing hides the cursor or takes another screen, so that a process that is killed leaves the
terminal as it should be. A redraw is one write that never clears a line before it has its new
text: nothing flickers.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}
DUMB = ("", "dumb", "unknown")
"""Values of TERM for terminals without escape sequences."""
_SGR = re.compile(r"\x1b\[[0-9;]*m")
_LINE_END = re.compile(r"[\r\n]\Z")


def is_smart(descriptor: int) -> bool:
    """Whether a descriptor is a terminal on which lines can be redrawn."""
    return os.isatty(descriptor) and os.environ.get("TERM", "").lower() not in DUMB


def styled(text: str, style: str) -> str:
    """The text in a style of `STYLES`; as it is under NO_COLOR (https://no-color.org)."""
    if os.environ.get("NO_COLOR") or not text:
        return text
    return f"\x1b[{STYLES[style]}m{text}\x1b[0m"


def width_of(text: str) -> int:
    """Columns that a text takes, without its styles."""
    plain = _SGR.sub("", text)
    if plain.isascii():  # The first line has to stand there before anything is imported.
        return len(plain)
    from rich.cells import cell_len

    return cell_len(plain)


def one_line(text: str, columns: int) -> str:
    """A text from elsewhere as one line of at most so many columns, cut with `…`.

    Spaces, tabs and line ends become one space. Left out are control and format characters, which
    could move the cursor or turn the text around, and halves of surrogate pairs.
    """
    return cut(" ".join(text[: 8 * max(columns, 1)].split()), columns)


def cut(text: str, columns: int) -> str:
    """The printable characters of a text in at most so many columns."""
    text = "".join(filter(str.isprintable, text))
    if width_of(text) <= columns:
        return text
    if columns < 1:
        return ""
    from rich.cells import set_cell_size

    return set_cell_size(text, columns - 1).rstrip() + "…"


class Screen:
    """The frame at the end of a terminal."""

    def __init__(self, descriptor: int, encoding: str = "utf-8") -> None:
        self._descriptor, self._encoding = descriptor, encoding
        self._lock = threading.RLock()
        self._widths: list[int] = []
        """Columns of the lines that stand there now."""
        self._columns = 0
        """Those of the terminal when it was drawn last."""
        self._at_line_start = True
        """Whether what others printed has ended its line."""

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines of the terminal."""
        try:
            columns, lines = os.get_terminal_size(self._descriptor)
        except OSError:
            columns, lines = 0, 0
        return columns or 80, lines or 24

    def draw(self, lines: Sequence[str]) -> None:
        """Replace the frame. Lines are to be shorter than the terminal is wide; those for which it
        is not high enough are left out. Nothing is drawn beside a line that has not ended."""
        with self._lock:
            if not self._at_line_start:
                return
            columns, height = self.size
            lines = list(lines)[: max(1, height - 1)]
            start, self._columns = self._to_first_row(columns), columns
            text = "\r\n".join(f"{line}\x1b[K" for line in lines)
            self._widths = [width_of(line) for line in lines]
            # The cursor waits at the line's start: the terminal's echo of ^C breaks no line there.
            self._write(f"{start}{text}\x1b[J\r")

    def erase(self) -> None:
        """Take the frame away; what is printed next begins where it stood."""
        with self._lock:
            if self._widths:
                start = self._to_first_row(self.size[0])
                self._widths = []
                self._write(f"{start}\x1b[J")

    @contextmanager
    def above(self, text: str) -> Iterator[None]:
        """Print a text within the context; the frame comes back with the next `draw`."""
        with self._lock:
            self.erase()
            yield
            if text:
                self._at_line_start = bool(_LINE_END.search(text))

    def say_at_once(self, line: str) -> None:
        """Write a line above the frame from a signal handler: without buffers, and without waiting
        long for a thread that is drawing."""
        has_lock = self._lock.acquire(timeout=1)
        try:
            self.erase()
            self._write(f"\r{line}\r\n")
        finally:
            if has_lock:
                self._lock.release()

    def _to_first_row(self, columns: int) -> str:
        """Moves the cursor from the start of the frame's last line to that of its first. A terminal
        that was made narrower since has broken longer lines, and joins them when it gets wider: all
        is cleared then."""
        rows = sum(max(1, -(-width // columns)) for width in self._widths[:-1])
        up = f"\x1b[{rows}A" if rows else ""
        return f"\r{up}\x1b[J" if columns != self._columns else f"\r{up}"

    def _write(self, text: str) -> None:
        content = text.encode(self._encoding, errors="replace")
        try:
            while content:
                content = content[os.write(self._descriptor, content) :]
        except OSError:
            pass  # What cannot be shown is dropped, as everywhere.
