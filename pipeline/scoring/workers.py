"""Scores answers in processes of their own, which may die without ending the run.

    python -P -m pipeline.scoring.workers TASK DESCRIPTOR     # what the pool starts

* A worker imports everything and passes its task's check before it says that it is ready. One
  that dies or hangs before that ends the run with its exit code and last line: no row is the
  cause, so no row is scored wrong.
* A row that takes too long is a wrong answer with that reason. A row whose worker dies is tried
  again in a new, checked worker; dying twice, it is a wrong answer with that reason.
* An error of the system (no space, a package that is gone) ends the run; any other exception
  comes from the row's own values and costs the row.

Processes are started, not forked or spawned: forks inherit Arrow's threads, and spawned ones
import the caller's main module, which may bring Ray and torch. That, the working directory (a
spawned process imports from it before any setting of ours) and the exit code of an idle worker
(which pebble does not report) are why this is not a `pebble.ProcessPool`.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from pipeline.import_path import safe_environment
from pipeline.scoring.confined import lower
from pipeline.scoring.task import Example, Score, Task
from pipeline.scoring.tasks import task_named

ROW_SECONDS = 30.0
"""The longest that one row may take; above every limit of the sandbox."""
START_SECONDS = 60.0
"""The longest that a process may take until it is ready: it imports what the task needs."""
MEMORY_BYTES = 4 << 30
"""Address space of a worker: mathematics of large powers takes all there is."""
EXIT_SECONDS = 5.0
LAST_LINE = 300
"""Characters of a reason that are kept."""
_READY = "ready"
MODULE = "pipeline.scoring.workers"


class ScorerError(ValueError):
    """Rows cannot be scored on this machine: the reason, in one line."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One row to score."""

    index: int
    text: str
    reference: Any
    example: Example


def score_answers(
    task: str, answers: Iterable[Answer], num_workers: int, row_seconds: float = ROW_SECONDS
) -> Iterator[tuple[int, Score]]:
    """Each answer's index and score, in the order they are done; reads ahead one a worker.

    Raises ValueError for an unknown task, ScorerError where a worker cannot score.
    """
    task_named(task)
    waiting = iter(answers)
    workers: list[_Worker] = []
    try:
        for answer in waiting:
            workers.append(_Worker(task, row_seconds, answer))
            if len(workers) == num_workers:
                break
        while any(worker.answer for worker in workers):
            for worker in _reporting(workers):
                scored, score = worker.answer, worker.report()
                if scored and score:
                    yield scored.index, score
                    worker.give(next(waiting, None))
    finally:
        for worker in workers:
            worker.end()


def _reporting(workers: list[_Worker]) -> list[_Worker]:
    """Workers that say something, or whose process or time is at its end."""
    busy = [worker for worker in workers if worker.answer]
    seconds = min(worker.deadline for worker in busy) - time.monotonic()
    ready = wait([worker.connection for worker in busy], max(0.0, seconds))
    now = time.monotonic()
    return [worker for worker in busy if worker.connection in ready or worker.deadline <= now]


class _Worker:
    """One process and the row it has, which is sent once the process is ready."""

    def __init__(self, task: str, row_seconds: float, answer: Answer) -> None:
        self.task = task
        self.row_seconds = row_seconds
        self.answer: Answer | None = answer
        self.deaths = 0
        self._start()

    def _start(self) -> None:
        self.connection, theirs = Pipe()
        # `end` closes it.
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", MODULE, self.task, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self.stderr,
            env={**os.environ, **safe_environment()},
        )
        theirs.close()
        self.is_ready = False
        self.deadline = time.monotonic() + START_SECONDS

    def give(self, answer: Answer | None) -> None:
        self.answer, self.deaths = answer, 0
        if answer and self.is_ready:
            self._send()

    def _send(self) -> None:
        self.deadline = time.monotonic() + self.row_seconds
        # A process that is gone is found where its report is awaited.
        with suppress(ConnectionError):
            self.connection.send(self.answer)

    def report(self) -> Score | None:
        """The row's score; None where the row goes on. Raises ScorerError."""
        try:
            message = self.connection.recv() if self.connection.poll() else None
        except (EOFError, ConnectionError):
            return self._dead()
        if message is None:
            return self._late()
        if isinstance(message, Score):
            return message
        if message != _READY:
            raise ScorerError(f"rows cannot be scored here: {message}")
        self.is_ready = True
        self._send()
        return None

    def _dead(self) -> Score | None:
        # The connection may close a moment before the process has its exit code.
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(EXIT_SECONDS)
        last_line = self._last_line()
        self.end()
        code = self.process.returncode
        how = f"exit code {code}" if code >= 0 else f"signal {-code}"
        if not self.is_ready:
            raise ScorerError(f"a scoring process died before its first row: {how}{last_line}")
        self.deaths += 1
        self._start()
        return Score(False, None, f"scoring died: {how}{last_line}") if self.deaths > 1 else None

    def _late(self) -> Score:
        last_line = self._last_line()
        self.end()
        if not self.is_ready:
            limit = f"{START_SECONDS:g} s"
            raise ScorerError(f"a scoring process was not ready after {limit}{last_line}")
        self._start()
        return Score(False, None, f"scoring took too long: {self.row_seconds:g} s")

    def _last_line(self) -> str:
        """The last line on standard error, where there is one, to append to a reason."""
        size = self.stderr.seek(0, os.SEEK_END)
        self.stderr.seek(max(0, size - 4 * LAST_LINE))
        lines = self.stderr.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f", {last[-LAST_LINE:]}" if last else ""

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()
        self.stderr.close()


def main() -> None:
    """A worker: says that it is ready, then rows in, scores out, until the pool closes its end."""
    # Ctrl-C is the pool's to handle; it ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (lower(MEMORY_BYTES, hard), hard))
    task = task_named(sys.argv[1])
    task.check()
    pool: Connection[Any, Any] = Connection(int(sys.argv[2]))
    pool.send(_READY)
    while True:
        try:
            answer: Answer = pool.recv()
        except EOFError:
            return
        pool.send(_scored(task, answer))


def _scored(task: Task, answer: Answer) -> Score | str:
    """The row's score; a line where the machine, not the row, keeps it from being scored."""
    try:
        return task.score(answer.text, answer.reference, answer.example)
    except (OSError, ImportError) as error:
        return f"{type(error).__name__}: {error}"[:LAST_LINE]
    except Exception as error:
        return Score(False, None, f"scoring failed: {type(error).__name__}: {error}"[:LAST_LINE])


if __name__ == "__main__":
    main()
