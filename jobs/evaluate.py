"""Score a result dataset against its references: `lrd evaluate OUT --task gsm8k`.

Reads finished shards alone, on the CPU, and can be run again; the last line is the result as
JSON.
"""

from __future__ import annotations

import argparse
import json

import pyarrow as pa
import pyarrow.parquet as pq

from jobs import output
from pipeline.output.run_folder import SCORES
from pipeline.scoring import math500, sandbox, word_sheets
from pipeline.scoring.evaluate import evaluate
from pipeline.scoring.summary import Evaluation, SampleShares, Share
from pipeline.scoring.tasks import TASKS, task_named
from pipeline.storage import uris
from pipeline.storage.storage import Storage

RUNS_PROGRAMS = ("humaneval", "mbpp")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("output_of_run", metavar="OUT", help="the --output of lrd generate")
    parser.add_argument("--task", required=True, metavar="|".join(TASKS), help="how to score")
    parser.add_argument("--reference-column", help="column of the references [the task's own]")
    parser.add_argument(
        "--output", metavar="FILE.parquet", help="the rows' scores [OUT/.scores/TASK.parquet]"
    )
    parser.add_argument("--workers", type=int, default=0, help="processes [one per core]")
    parser.add_argument(
        "--partial", action="store_true", help="score the finished shards of an unfinished run"
    )


@output.command("lrd evaluate", interrupt=(output.INTERRUPTED, "interrupted; nothing was written"))
def run(args: argparse.Namespace) -> int:
    """Score the rows; the exit code."""
    task = task_named(args.task)
    if args.workers < 0:
        raise ValueError(f"--workers is {args.workers}; 0 is one per core")
    for line in _requirements(task.name):
        print(line)
    result = evaluate(
        Storage(args.output_of_run),
        task,
        reference_column=args.reference_column,
        scores=args.output,
        num_workers=args.workers,
        partial=args.partial,
    )
    problems = _problems(args, task.name)
    print(describe(result))
    if problems:
        num_right, num_problems = problems.values()
        share = f"{num_right / max(1, num_problems):.1%}"
        print(f"problems: {num_right} of {num_problems} right, {share}")
    print(json.dumps(result.to_json() | problems))
    return output.OK


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
    if result.mean_forwards is not None and result.mean_output_tokens is not None:
        means = result.mean_forwards, result.mean_positions, result.mean_output_tokens
        lines.append(output.means_per_row(*means))
    if result.samples is not None:
        lines += _sample_lines(result.samples)
    lines.append(f"stop reasons: {output.counts(result.stop_reasons)}")
    if result.wrong:
        lines.append(f"wrong: {output.counts(result.wrong)}")
    lines.append(f"scores: {result.scores}")
    return "\n".join(lines)


def _sample_lines(samples: SampleShares) -> list[str]:
    """pass@k and the majority vote, a line each."""
    lines = [f"{samples.num_samples} samples of each of {samples.num_prompts} prompts:"]
    lines += [f"  pass@{k}: {_shown(share)}" for k, share in samples.pass_at.items()]
    if samples.majority is None:
        return [*lines, f"  no majority vote: {samples.no_majority}"]
    return [*lines, f"  majority of {samples.num_samples}: {_shown(samples.majority)}"]


def _shown(share: Share) -> str:
    return f"{share.share:.1%} (95 %: {share.low:.1%} to {share.high:.1%})"


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
    """Check what a task needs before all rows fail for the lack of it; lines about it."""
    if task == math500.TASK.name:
        math500.require()
    if task in RUNS_PROGRAMS:
        return [f"programs run confined by: {', '.join(sandbox.walls())}"]
    return []
