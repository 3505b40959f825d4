"""What block caches, presets, refinement, monitors and dtypes make of accuracy, passes, positions
and speed: a sweep, and its pages.

    python -m jobs.bench.caches --model lrd/models/tiny --tasks singles-64 singles-128 \\
        --output runs/caches.jsonl --page jobs/benchmarks/caches.md
    python -m jobs.bench.caches --model lrd/models/tiny_sheets --tasks sheets-256 \\
        --output runs/caches.jsonl --page jobs/benchmarks/caches.md
    python -m jobs.bench.caches --draw --output runs/caches.jsonl --page jobs/benchmarks/caches.md
    python -m jobs.bench.caches --groups refinement monitor --blocks 16 32 --tasks singles-64 \\
        --output runs/refinement.jsonl
    python -m jobs.bench.caches --draw --groups refinement monitor dtypes \\
        --output runs/refinement.jsonl --page jobs/benchmarks/refinement-and-monitor.md

Decodes disjoint test problems in slots, without Ray, each setting in a process of one thread, and
adds a line to OUTPUT as soon as a setting is measured. What is measured is not decoded again, so
the same command continues after a stop; exit code 75 says that settings are left. Several models
and tasks share one OUTPUT; the page shows what is in it of the groups.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from jobs.bench.rows_per_second import Work, right_answers, run_slots
from jobs.bench.sweep_cases import BLOCKS, CACHES, GROUPS, PRESETS, TASKS, Case, Task, cases
from jobs.bench.sweep_page import write_page
from jobs.output import INTERRUPTED, OK, Parser, command, handle_signals, refuse
from lrd import DecodingConfig, load_model
from lrd.models.checkpoint import DTYPES, LoadedModel, fingerprint
from lrd.prompts import encode_prompt
from pipeline.output.statistics import UNSURE_ENTROPY

JOB = "bench.caches"
SLOTS = 16
WARM_ROWS = 4


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of a task for a model."""

    model: str
    """Checkpoint folder."""
    dtype: str
    task: Task
    count: int
    seed: int


@dataclass(frozen=True, slots=True)
class Cell:
    """One setting to be measured on one task."""

    prompts: Prompts
    case: Case
    facts: dict[str, Any]
    """What its line in the file begins with."""


@dataclass(slots=True)
class Sweep:
    """Cells that are left, measured by several processes until done, stopped or out of time."""

    cells: list[Cell]
    output: Path
    processes: int
    seconds: float
    """No cell starts later than so many after the start."""
    stopped: bool = False

    def stop(self) -> None:
        """Start no further cell; those being measured are finished and stored."""
        self.stopped = True

    def run(self) -> int:
        """Measure; the number of cells that are left."""
        left, began = list(self.cells), time.monotonic()
        running: set[Future[dict[str, Any]]] = set()
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.processes, context, start_worker) as pool:
            while True:
                late = self.stopped or time.monotonic() - began > self.seconds
                while left and not late and len(running) < self.processes:
                    running.add(pool.submit(measure, left.pop(0)))
                if not running:
                    return len(left)
                done, running = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
                for future in done:
                    self._store(future.result(), len(left) + len(running))

    def _store(self, found: dict[str, Any], num_left: int) -> None:
        append(self.output, found)
        right, problems = num_right(found["right"])
        print(
            f"{found['model']}, {found['task']}, {found['case']}: {right} of {problems} right, "
            f"{sum(found['positions']) / len(found['positions']):.0f} positions a row, "
            f"{found['seconds']:.0f} s; {num_left} settings left",
            file=sys.stderr,
            flush=True,
        )


def start_worker() -> None:
    """One thread; signals are the parent's, which lets a running cell end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)


@cache
def loaded(folder: str, dtype: str) -> LoadedModel:
    """The model, once a process."""
    model = load_model(folder, dtype=dtype)
    assert isinstance(model, LoadedModel)
    return model


@cache
def work_of(asked: Prompts) -> Work:
    """The task's prompts in buckets, once a process; its decoding is replaced in each cell."""
    model = loaded(asked.model, asked.dtype)
    questions = asked.task.asked(asked.count, asked.seed)
    prompts = [encode_prompt(model, question) for question, _ in questions]
    config = DecodingConfig(gen_length=asked.task.gen_length)
    return Work(model, config, prompts, [answer for _, answer in questions], SLOTS)


def measure(cell: Cell) -> dict[str, Any]:
    """Decode all prompts by the cell's settings: its line."""
    work = work_of(cell.prompts)
    work.config = cell.case.config(cell.prompts.task.gen_length)
    few = Work(work.model, work.config, work.prompts[:WARM_ROWS], work.answers[:WARM_ROWS], SLOTS)
    run_slots(few)
    began, cpu_began = time.monotonic(), time.process_time()
    samples = run_slots(work).samples
    seconds, cpu_seconds = time.monotonic() - began, time.process_time() - cpu_began
    right = right_answers(work, [sample.canvas for sample in samples])
    return {
        **cell.facts,
        "right": ["".join(str(int(answer)) for answer in prompt) for prompt in right],
        "forwards": [sample.num_forwards for sample in samples],
        "full_passes": [sample.full_passes for sample in samples],
        "positions": [sample.positions_computed for sample in samples],
        "unsure": sum(sample.max_entropy_at_stop > UNSURE_ENTROPY for sample in samples),
        "failed": sum(sample.stop_reason == "failed" for sample in samples),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
    }


def num_right(right: Sequence[str]) -> tuple[int, int]:
    """Problems that are right, and all, of a line's `right`."""
    return sum(one.count("1") for one in right), sum(map(len, right))


# The file.


def read_lines(output: Path) -> list[dict[str, Any]]:
    """The measured settings. Raises ValueError for a line that is not whole, but for the last,
    which was being written when its command was ended."""
    if not output.is_file():
        return []
    lines, found = output.read_text().splitlines(), []
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise ValueError(f"{output}: line {number} is not JSON; remove it") from error
    return found


def append(output: Path, found: dict[str, Any]) -> None:
    """Add a line, on the disk when this returns; half a line before it is cut off."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("ab+") as file:
        file.seek(0)
        kept = file.read()
        file.truncate(kept.rfind(b"\n") + 1)
        file.write(json.dumps(found).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def alone(output: Path) -> Iterator[None]:
    """Only one command at a time adds to a file. Raises ValueError for the second."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.with_name(output.name + ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"{output}: another command measures into it; wait, or name another --output"
            ) from error
        yield


def depends_on(facts: dict[str, Any]) -> tuple[str, ...]:
    """What makes a line the answer to a cell: its model, prompts, case and whole setting."""
    names = ("model", "model_digest", "dtype", "task", "prompts_digest", "case", "decoding")
    return tuple(json.dumps(facts[name], sort_keys=True) for name in names)


def cells_of(args: argparse.Namespace) -> list[Cell]:
    """All cells of the command. Raises ValueError for a model that cannot take a task."""
    digest = fingerprint(args.model)
    found = []
    for key in args.tasks:
        task = TASKS[key]
        count = args.sheets if len(task.sizes) > 1 else args.problems
        texts = "\n".join(map(repr, task.asked(count, args.seed)))
        for case in cases(task.gen_length, args.blocks, args.groups):
            config, dtype = case.config(task.gen_length), case.dtype or args.dtype
            prompts = Prompts(args.model, dtype, task, count, args.seed)
            facts = {
                "model": args.label or Path(args.model).name,
                "model_digest": digest,
                "dtype": dtype,
                "task": task.key,
                "prompts_digest": hashlib.sha256(texts.encode()).hexdigest(),
                "seed": args.seed,
                "case": case.key,
                "group": case.group,
                "labels": case.labels,
                "against": case.against,
                "decoding": config.model_dump(exclude=config.unrecorded),
            }
            found.append(Cell(prompts, case, facts))
    return found


# The command.


@command(JOB, interrupt=(INTERRUPTED, "interrupted; the same command continues"))
def run(args: argparse.Namespace) -> int:
    """Run the job; the exit code."""
    output, page = Path(args.output), Path(args.page) if args.page else None
    for name in ("problems", "sheets", "processes"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} is {getattr(args, name)}; at least 1 is needed")
    num_left = 0
    if not args.draw:
        with alone(output):
            cells = cells_of(args)
            measured = {depends_on(line) for line in read_lines(output)}
            todo = [cell for cell in cells if depends_on(cell.facts) not in measured]
            print(f"{len(cells)} settings, {len(todo)} to measure", file=sys.stderr, flush=True)
            sweep = Sweep(todo, output, min(args.processes, len(todo) or 1), 60 * args.minutes)
            handle_signals(JOB, sweep)
            try:
                num_left = sweep.run()
            except BrokenProcessPool:
                text = "a measuring process was ended from outside; the same command continues"
                return refuse(JOB, text, INTERRUPTED)
    lines = read_lines(output)
    if args.draw and not lines:
        raise ValueError(f"{output}: nothing is measured yet; drop --draw")
    if page and lines:
        write_page(page, lines, args.groups)
    if num_left:
        print(f"{num_left} settings are left; the same command continues", file=sys.stderr)
    return INTERRUPTED if num_left else OK


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = Parser(prog="python -m jobs.bench.caches", description=__doc__.splitlines()[0])
    made.add_argument("--model", default="lrd/models/tiny", help="checkpoint folder")
    made.add_argument("--label", help="the model's name on the page [its folder's]")
    made.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    made.add_argument("--groups", nargs="+", choices=GROUPS, default=[CACHES, PRESETS])
    made.add_argument("--blocks", nargs="+", type=int, default=list(BLOCKS))
    made.add_argument("--output", required=True, help="file of the measured settings, JSON lines")
    made.add_argument("--page", help="Markdown page that is written, with plots beside it")
    made.add_argument("--problems", type=int, default=1000, help="single problems [1000]")
    made.add_argument("--sheets", type=int, default=500, help="worksheets [500]")
    made.add_argument("--seed", type=int, default=15, help="of the problems [15]")
    made.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    made.add_argument("--processes", type=int, default=2, help="one thread each [2]")
    made.add_argument(
        "--minutes", type=float, default=1e6, help="start no setting later [no limit]"
    )
    made.add_argument("--draw", action="store_true", help="only write the page anew")
    return made


if __name__ == "__main__":
    sys.exit(run(parser().parse_args()))
