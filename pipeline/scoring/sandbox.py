"""Runs generated Python programs apart from this one: limits, no network, a folder of their own.

Every program gets a process in a session of its own (killed as a whole at its end), an empty
temporary folder as cwd and HOME, a scrubbed environment, and limits on CPU seconds, wall
seconds, memory, file size, open files, and processes: none beside its own, so no threads.
The kernel gives it a network namespace with nothing in it, a ruleset (Landlock) that lets it
write in its folder alone, start no other program and signal nobody, and where this runs as root
another user. What a machine does not allow of these is left to a hook inside Python;
`Outcome.walls` names what stood.

What it does NOT protect against: reading any file that the user may read; filling the disk
with many files while it runs; code that breaks out of Python (ctypes, a bug of the
interpreter) where only the hook stands, for the network, other processes and files outside
then; changing modes and times of the user's files by such code; holes in the kernel; and a
program that is written against this very file, which can call itself passed. For hostile
models run it in a container or a virtual machine that may be lost.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CONFINED = Path(__file__).with_name("confined.py")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use."""

    cpu_seconds: int = 5
    wall_seconds: float = 15.0
    memory_bytes: int = 1 << 30
    """Address space, the interpreter's own included."""
    file_bytes: int = 10 << 20
    """Each file's size."""
    num_files: int = 64
    """Files open at a time."""

    def resources(self) -> dict[str, int]:
        """Limits by their names in `resource`; threads count as processes."""
        return {
            "RLIMIT_CPU": self.cpu_seconds,
            "RLIMIT_AS": self.memory_bytes,
            "RLIMIT_FSIZE": self.file_bytes,
            "RLIMIT_NOFILE": self.num_files,
            "RLIMIT_NPROC": 0,
            "RLIMIT_CORE": 0,
        }


DEFAULT = Limits()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended."""

    passed: bool
    """All sources ran to their end within the limits and nothing was raised."""
    error: str | None
    """None where it passed."""
    walls: tuple[str, ...]
    """What confined it, as far as it came to say so."""


def run_program(sources: Sequence[str], limits: Limits = DEFAULT) -> Outcome:
    """Run `sources` one after the other in one module; never raises for what they do.

    Only the end of the last source passes: a program that leaves before it, by whatever exit
    code, has failed. Output is dropped. Raises ValueError on another system than Linux.
    """
    if sys.platform != "linux":
        raise ValueError("programs are confined by Linux alone; score this task there")
    nonce = secrets.token_hex()
    spec = {"sources": list(sources), "nonce": nonce, "limits": limits.resources()}
    with (
        tempfile.TemporaryDirectory(prefix="lrd-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as task,
        tempfile.TemporaryFile() as report,
    ):
        task.write(json.dumps(spec).encode())
        task.seek(0)
        if os.getuid() == 0:
            os.chmod(folder, 0o777)
        process = subprocess.Popen(
            # Not -I: it would drop PYTHONHASHSEED, and results would differ between runs.
            [sys.executable, "-s", "-P", "-B", str(CONFINED)],
            stdin=task,
            stdout=report,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=_environment(folder),
            start_new_session=True,
        )
        code = _end(process, limits.wall_seconds)
        report.seek(0)
        return _outcome(report.read(1 << 16), nonce, code)


def walls() -> tuple[str, ...]:
    """What confines programs on this machine.

    Raises ValueError where not even a harmless program runs.
    """
    # A module that Python does not load by itself: the confined user may not reach its folder.
    outcome = run_program(["import colorsys"])
    if not outcome.passed:
        raise ValueError(f"programs cannot be run here: {outcome.error}")
    return outcome.walls


def _environment(folder: str) -> dict[str, str]:
    return {
        "PATH": os.defpath,
        "HOME": folder,
        "TMPDIR": folder,
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def _end(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """The process's exit code; None where it had to be killed. Nothing of it is left."""
    ended = select.poll()
    descriptor = os.pidfd_open(process.pid)
    try:
        ended.register(descriptor, select.POLLIN)
        in_time = bool(ended.poll(seconds * 1000))
    finally:
        os.close(descriptor)
        # Not reaped yet, so the number is still this session's.
        os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
    return code if in_time else None


def _outcome(report: bytes, nonce: str, code: int | None) -> Outcome:
    if code is None:
        return Outcome(False, "time limit", ())
    if code == -signal.SIGXCPU:
        return Outcome(False, "CPU limit", ())
    try:
        finished = json.loads(report)
        said = finished["nonce"] == nonce
    except (ValueError, TypeError, KeyError):
        said = False
    if not said:
        how = f"exit code {code}" if code >= 0 else f"signal {-code}"
        return Outcome(False, f"ended before its tests: {how}", ())
    return Outcome(finished["error"] is None, finished["error"], tuple(finished["walls"]))
