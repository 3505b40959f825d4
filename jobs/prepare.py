"""Make prompt shards from CSV, JSON or Parquet files, a folder of them, or a dataset.

    lrd prepare SOURCE --output PROMPTS --rows-per-shard 1000
    lrd prepare --task gsm8k SOURCE --output PROMPTS [--shots 8 --exemplars TRAIN.parquet]

All columns are kept with their values; which one is the prompt is said to `lrd generate`. With a
task the column `prompt` is made by the task's template (one that is there stays as
`source_prompt`).
"""

from __future__ import annotations

import argparse
import sys

from pipeline.preparing.exact_cells import TYPES, parse_types
from pipeline.preparing.prepare import Prepared, TaskPrompts, prepare
from pipeline.preparing.reading import Reading
from pipeline.scoring.tasks import TASKS

BAD_INPUT = 2
DELIMITERS = {"tab": "\t", "\\t": "\t"}
MOST_NAMES = 5
"""Files left out that are named."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The job's flags."""
    parser.add_argument(
        "source",
        help="a file (.parquet, .csv, .tsv, .jsonl, .ndjson, .json; text also .gz, .zst, .bz2), "
        "a folder of such files or of save_to_disk, a URI of one, or a dataset's hub id",
    )
    parser.add_argument("--output", required=True, help="new folder or URI for the shards")
    parser.add_argument("--rows-per-shard", type=int, default=1000, help="[1000]")
    parser.add_argument(
        "--split",
        metavar="NAME[+NAME]",
        help="which split to read, needed where a folder has several [hub: train]",
    )
    parser.add_argument("--limit", type=int, help="read only so many rows, from the first on")
    parser.add_argument(
        "--types",
        action="append",
        default=[],
        metavar="COLUMN=TYPE",
        help=f"a column's type in CSV or JSON: {', '.join(TYPES)}; may repeat. string keeps "
        "other JSON values as JSON text [CSV: string; JSON: as written]",
    )
    parser.add_argument(
        "--prompt-column", metavar="COLUMN", help="this column of CSV or JSON is text [prompt]"
    )
    parser.add_argument(
        "--delimiter", help="between the cells of CSV: one character, or tab [found: , ; tab |]"
    )
    parser.add_argument(
        "--field", metavar="KEY", help="the key of a JSON document that holds the list of rows"
    )
    parser.add_argument("--task", metavar="|".join(TASKS), help="make the column `prompt` for it")
    shots = ", ".join(f"{task.name} {task.paper_shots}" for task in TASKS.values())
    parser.add_argument(
        "--shots",
        type=int,
        help=f"prompts for base models, with so many exemplars (the paper's: {shots}) "
        "[zero-shot prompts for chat models]",
    )
    parser.add_argument("--exemplars", help="file of solved examples; its first rows are shown")


def run(args: argparse.Namespace) -> int:
    """The job; its exit code."""
    try:
        made = prepare(
            args.source, args.output, args.rows_per_shard, reading(args), task_prompts(args)
        )
    except (ValueError, OSError) as error:
        print(f"lrd prepare: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return BAD_INPUT
    print(describe(made, args.output))
    return 0


def reading(args: argparse.Namespace) -> Reading:
    """How to read the source. Raises ValueError for flags that cannot be."""
    types = parse_types(args.types)
    kind = types.get(args.prompt_column or "prompt", TYPES["string"])
    if kind != TYPES["string"]:
        raise ValueError(f"--types gives the prompt column the type {kind}; a prompt is text")
    delimiter = DELIMITERS.get(args.delimiter, args.delimiter)
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise ValueError(f"--delimiter is {args.delimiter!r}; expected one character, or tab")
    return Reading(args.split, types, delimiter, args.field, args.prompt_column, args.limit)


def task_prompts(args: argparse.Namespace) -> TaskPrompts | None:
    """The task's prompts that are asked for. Raises ValueError for its flags without a task."""
    if args.task:
        return TaskPrompts(args.task, args.shots, args.exemplars)
    if args.shots is not None or args.exemplars:
        raise ValueError("--shots and --exemplars are a task's; name it with --task")
    return None


def describe(made: Prepared, output: str) -> str:
    """The closing lines."""
    lines = [
        f"{made.num_rows} rows in {made.num_shards} shards, columns "
        f"{', '.join(made.columns)}: {output}"
    ]
    if made.left_out:
        more = len(made.left_out) - MOST_NAMES
        names = ", ".join(made.left_out[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
        lines.append(f"files left out: {names}")
    return "\n".join(lines)


def main() -> None:
    """`python -m jobs.prepare`."""
    parser = argparse.ArgumentParser(prog="lrd prepare", description="Make prompt shards.")
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))


if __name__ == "__main__":
    main()
