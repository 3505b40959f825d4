"""Scores answers in processes of which each may be lost: a row that takes too long, too much
memory or its process's life is a wrong answer with that reason, and another process goes on.

    python -m pipeline.scoring.workers TASK DESCRIPTOR     # what the pool starts

Processes are started, not forked or spawned: forks inherit Arrow's threads, and spawned ones
import the caller's main module, which may bring Ray and torch. Knows nothing of files.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from pipeline.scoring.confined import lower
from pipeline.scoring.task import Example, Score
from pipeline.scoring.tasks import task_named

ROW_SECONDS = 30.0
"""The longest that one row may take; above every limit of the sandbox."""
START_SECONDS = 60.0
"""What a process may take longer for its first row, which imports what the task needs."""
MEMORY_BYTES = 4 << 30
"""Address space of a worker: mathematics of large powers takes all there is."""


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

    Raises ValueError for an unknown task.
    """
    task_named(task)
    waiting = iter(answers)
    workers: list[_Worker] = []
    try:
        for answer in waiting:
            workers.append(_Worker(task, row_seconds))
            workers[-1].give(answer)
            if len(workers) == num_workers:
                break
        while any(worker.answer for worker in workers):
            for worker in _done(workers):
                yield worker.take()
                if (following := next(waiting, None)) is not None:
                    worker.give(following)
    finally:
        for worker in workers:
            worker.end()


def _done(workers: list[_Worker]) -> list[_Worker]:
    """Workers whose row is scored, or whose process or time is at its end."""
    busy = [worker for worker in workers if worker.answer]
    seconds = min(worker.deadline for worker in busy) - time.monotonic()
    ready = wait([worker.connection for worker in busy], max(0.0, seconds))
    now = time.monotonic()
    return [worker for worker in busy if worker.connection in ready or worker.deadline <= now]


class _Worker:
    """One process and the row it has."""

    def __init__(self, task: str, row_seconds: float) -> None:
        self.task = task
        self.row_seconds = row_seconds
        self.answer: Answer | None = None
        self.deadline = 0.0
        self._start()

    def _start(self) -> None:
        self.connection, theirs = Pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.scoring.workers", self.task, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        theirs.close()
        self.is_new = True

    def give(self, answer: Answer) -> None:
        if self.process.poll() is not None:
            self.end()
            self._start()
        self.answer = answer
        self.deadline = time.monotonic() + self.row_seconds + START_SECONDS * self.is_new
        self.is_new = False
        self.connection.send(answer)

    def take(self) -> tuple[int, Score]:
        """The row's score; a process that is late or gone is replaced before the next row."""
        assert self.answer is not None
        index, self.answer = self.answer.index, None
        if self.connection.poll():
            try:
                score: Score = self.connection.recv()
                return index, score
            except (EOFError, ConnectionError):
                self.end()
                code = self.process.returncode
                return index, Score(False, None, f"scoring died: exit code {code}")
        self.end()
        return index, Score(False, None, f"scoring took too long: {self.row_seconds:g} s")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()


def main() -> None:
    """A worker: rows in, scores out, until the pool closes its end."""
    # Ctrl-C is the pool's to handle; it ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (lower(MEMORY_BYTES, hard), hard))
    task = task_named(sys.argv[1])
    pool: Connection[Any, Any] = Connection(int(sys.argv[2]))
    while True:
        try:
            answer: Answer = pool.recv()
        except EOFError:
            return
        try:
            score = task.score(answer.text, answer.reference, answer.example)
        except Exception as error:
            score = Score(False, None, f"scoring failed: {type(error).__name__}: {error}"[:300])
        pool.send(score)


if __name__ == "__main__":
    main()
