"""A command on a pseudo-terminal, and what a user would see there."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pyte

QUIET_SECONDS = 0.02
"""After so long without output a frame is whole."""


class Screen(pyte.Screen):
    """A terminal's screen with the alternate one, which pyte lacks."""

    is_alternate = False
    _before: Any = None

    def set_mode(self, *modes: int, **kwargs: Any) -> None:
        if kwargs.get("private") and 1049 in modes:
            self.is_alternate = True
            self._before = deepcopy((self.buffer, self.cursor))
            self.erase_in_display(2)
        super().set_mode(*modes, **kwargs)

    def reset_mode(self, *modes: int, **kwargs: Any) -> None:
        super().reset_mode(*modes, **kwargs)
        if kwargs.get("private") and 1049 in modes and self._before:
            self.is_alternate = False
            self.buffer, self.cursor = self._before
            self.cursor.hidden = False
            self._before = None
            self.dirty.update(range(self.lines))


class Terminal:
    """Runs `python -m jobs.cli WORDS` in a terminal of this size."""

    def __init__(
        self, *words: str, columns: int = 80, lines: int = 24, cwd: Path, **environment: str
    ) -> None:
        self.screen = Screen(columns, lines)
        self.output = b""
        """All bytes that were written."""
        self.frames: list[list[str]] = []
        """Each state of the alternate screen, without blank lines at its end."""
        self._stream = pyte.ByteStream(self.screen)
        self._ours, theirs = pty.openpty()
        self._resize_pty(columns, lines)
        names = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "LRD_LOG_FORMAT")
        kept = {name: value for name, value in os.environ.items() if name not in names}
        path = os.pathsep.join([str(Path(__file__).parents[2]), kept.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jobs.cli", *words],
            stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, start_new_session=True,
            env={**kept, "PYTHONPATH": path, "TERM": "xterm-256color", **environment},
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(theirs)

    @property
    def display(self) -> list[str]:
        """The lines of the screen, without blank ones at its end."""
        lines = [line.rstrip() for line in self.screen.display]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    @property
    def text(self) -> str:
        return "\n".join(self.display)

    def wait(self, until: Callable[[], Any], seconds: float = 120) -> None:
        """Read what is written until a condition holds."""
        end = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < end, f"waited {seconds} s:\n{self.text}"
            assert self._read(), f"ended:\n{self.text}"

    def ended(self, seconds: float = 120) -> int:
        """Read to the end; the exit code."""
        end = time.monotonic() + seconds
        while self._read():
            assert time.monotonic() < end, f"waited {seconds} s:\n{self.text}"
        code = self.process.wait(30)
        os.close(self._ours)
        return code

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def resize(self, columns: int, lines: int) -> None:
        self.screen.resize(lines, columns)
        self._resize_pty(columns, lines)
        self.process.send_signal(signal.SIGWINCH)

    def _resize_pty(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def _read(self) -> bool:
        """Read for a moment; False once nobody can write any more."""
        ready, _, _ = select.select([self._ours], [], [], QUIET_SECONDS)
        if not ready:
            if self.screen.is_alternate and (not self.frames or self.frames[-1] != self.display):
                self.frames.append(self.display)
            return True
        try:
            chunk = os.read(self._ours, 1 << 16)
        except OSError:  # EIO: the command has ended.
            return False
        self.output += chunk
        self._stream.feed(chunk)
        return bool(chunk)
