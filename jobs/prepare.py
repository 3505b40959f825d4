"""Make prompt shards from CSV, JSON or Parquet files, a folder of them, or a dataset.

    lrd prepare SOURCE --output PROMPTS --rows-per-shard 1000
    lrd prepare --task gsm8k SOURCE --output PROMPTS [--shots 8 --exemplars TRAIN.parquet]

All columns are kept with their values; `lrd generate --prompt-column` says which one is the prompt.
With --task the task's template makes the column `prompt`; a column of that name that the source has
is kept as `source_prompt`.
"""

from __future__ import annotations

import argparse

from jobs import output
from pipeline.preparing.exact_cells import TYPES, parse_types
from pipeline.preparing.prepare import Prepared, TaskPrompts, prepare
from pipeline.preparing.reading import Reading
from pipeline.scoring.tasks import TASKS

DELIMITERS = {"tab": "\t", "\\t": "\t"}
MOST_NAMES = 5
"""Most left-out files that the closing lines name."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
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
        "--prompt-column",
        metavar="COLUMN",
        help="this column of CSV or JSON is text, or of JSON chats [prompt]",
    )
    parser.add_argument(
        "--delimiter", help="between the cells of CSV: one character, or tab [detected: , ; tab |]"
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


@output.command("lrd prepare")
def run(args: argparse.Namespace) -> int:
    """Run the command; its exit code."""
    made = prepare(args.source, args.output, args.rows_per_shard, reading(args), task_prompts(args))
    print(describe(made, args.output, args.prompt_column or "prompt"))
    return output.OK


def reading(args: argparse.Namespace) -> Reading:
    """The flags on how to read the source. Raises ValueError for impossible values."""
    types = parse_types(args.types)
    kind = types.get(args.prompt_column or "prompt", TYPES["string"])
    if kind != TYPES["string"]:
        raise ValueError(
            f"--types gives the prompt column the type {kind}; a prompt is text, or a chat"
        )
    delimiter = DELIMITERS.get(args.delimiter, args.delimiter)
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise ValueError(f"--delimiter is {args.delimiter!r}; expected one character, or tab")
    return Reading(args.split, types, delimiter, args.field, args.prompt_column, args.limit)


def task_prompts(args: argparse.Namespace) -> TaskPrompts | None:
    """The flags on a task's prompts; None without --task. Raises ValueError for others alone."""
    if args.task:
        return TaskPrompts(args.task, args.shots, args.exemplars)
    if args.shots is not None or args.exemplars:
        raise ValueError("--shots and --exemplars need --task")
    return None


def describe(made: Prepared, folder: str, prompt_column: str = "prompt") -> str:
    """The closing lines. prompt_column: the prompt's, as far as that is known here."""
    lines = [
        f"{made.num_rows} rows in {made.num_shards} shards, columns "
        f"{', '.join(made.columns)}: {folder}"
    ]
    if made.left_out:
        more = len(made.left_out) - MOST_NAMES
        names = ", ".join(made.left_out[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
        lines.append(f"files left out: {names}")
    if prompt_column not in made.columns:
        lines.append(f"no column {prompt_column!r}: name yours with lrd generate --prompt-column")
    elif prompt_column != "prompt":
        lines.append(
            f"the prompts are in {prompt_column!r}: lrd generate --prompt-column {prompt_column}"
        )
    return "\n".join(lines)
