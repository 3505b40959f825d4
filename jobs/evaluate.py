"""Score a result dataset against its references: `lrd evaluate OUT --task gsm8k`.

Works on finished shards alone, on the CPU, and can be run again; the last line is the result
as JSON. Knows nothing of how a task is scored.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.scoring import math500, sandbox, word_sheets
from pipeline.scoring.evaluate import SCORES, evaluate
from pipeline.scoring.summary import Evaluation
from pipeline.scoring.tasks import TASKS, task_named
from pipeline.storage import uris
from pipeline.storage.storage import Storage

OK, BAD_INPUT, INTERRUPTED = 0, 2, 75
LINE_SECONDS = 5.0
"""How often a terminal is told where it stands."""
RUNS_PROGRAMS = ("humaneval", "mbpp")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The job's flags."""
    parser.add_argument("output_of_run", metavar="OUT", help="the --output of lrd generate")
    parser.add_argument("--task", required=True, metavar="|".join(TASKS), help="how to score")
    parser.add_argument("--reference-column", help="column of the references [the task's own]")
    parser.add_argument(
        "--output", metavar="FILE.parquet", help="the rows' scores [OUT/.scores/TASK.parquet]"
    )
    parser.add_argument("--workers", type=int, default=0, help="processes [one a core]")
    parser.add_argument(
        "--partial", action="store_true", help="score the finished shards of an unfinished run"
    )


def run(args: argparse.Namespace) -> int:
    """The job; its exit code."""
    try:
        task = task_named(args.task)
        if args.workers < 0:
            raise ValueError(f"--workers is {args.workers}; 0 is one a core")
        for line in _requirements(task.name):
            print(line)
        result = evaluate(
            Storage(args.output_of_run),
            task,
            reference_column=args.reference_column,
            scores=args.output,
            num_workers=args.workers,
            partial=args.partial,
            on_progress=Progress(),
        )
        problems = _problems(args, task.name)
    except (ValueError, OSError) as error:
        print(f"lrd evaluate: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("lrd evaluate: interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED
    print(describe(result))
    if problems:
        num_right, num_problems = problems.values()
        share = f"{num_right / max(1, num_problems):.1%}"
        print(f"problems: {num_right} of {num_problems} right, {share}")
    print(json.dumps(asdict(result) | problems))
    return OK


def describe(result: Evaluation) -> str:
    """The result for people."""
    lines = [
        f"{result.task}: {result.num_correct} of {result.num_rows} right, "
        f"{result.accuracy:.1%} (95 %: {result.accuracy_low:.1%} to {result.accuracy_high:.1%})",
    ]
    if result.num_shards < result.num_shards_planned:
        lines.append(f"partial: {result.num_shards} of {result.num_shards_planned} shards")
    if result.num_failed:
        lines.append(f"{result.num_failed} failed rows, counted as wrong")
    if result.mean_forwards is not None:
        lines.append(
            f"effective tokens a row: {result.mean_output_tokens:.1f} mean; "
            f"forwards a row: {result.mean_forwards:.1f} mean"
        )
    lines.append("stops: " + _counts(result.stop_reasons))
    if result.wrong:
        lines.append("wrong: " + _counts(result.wrong))
    lines.append(f"scores: {result.scores}")
    return "\n".join(lines)


class Progress:
    """Says now and then how many rows are scored."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, num_scored: int) -> None:
        if time.monotonic() - self._last >= LINE_SECONDS:
            self._last = time.monotonic()
            print(f"{num_scored} rows scored", file=sys.stderr, flush=True)


def _problems(args: argparse.Namespace, task: str) -> dict[str, int]:
    """Problems of worksheets, right and all, from the scores that were written; else nothing."""
    if task != word_sheets.TASK.name:
        return {}
    folder, name = uris.parent(
        args.output or uris.child(args.output_of_run, f"{SCORES}/{task}.parquet")
    )
    scores = pq.read_table(pa.BufferReader(Storage(folder).read(name)))
    num_right, num_problems = word_sheets.counted(scores)
    return {"num_problems_right": num_right, "num_problems": num_problems}


def _requirements(task: str) -> list[str]:
    """Check what a task needs before all rows fail for the lack of it; what to say of it."""
    if task == math500.TASK.name:
        math500.require()
    if task in RUNS_PROGRAMS:
        return [f"programs run confined by: {', '.join(sandbox.walls())}"]
    return []


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in counts.items())


def main() -> None:
    """`python -m jobs.evaluate`."""
    parser = argparse.ArgumentParser(prog="lrd evaluate", description="Score a result dataset.")
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))


if __name__ == "__main__":
    main()
