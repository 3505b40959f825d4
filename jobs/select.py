"""Write the rows of a run that are worth keeping as a new dataset.

    lrd select OUT --to PLACE --correct --where "mean_confidence > 0.9" --best-of mean_confidence
    lrd select OUT --to PLACE --correct --dedupe exact --as messages
    lrd select OUT --to PLACE --correct --as preference

Rules apply in the order of the help's flags, whatever the command line's; the last lines say how
many rows each dropped. `pipeline/selecting/README.md` says more.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import get_args

from jobs import output
from pipeline.observe.stages import stage
from pipeline.selecting.rules import Dedupe, Form, Rules, table
from pipeline.selecting.select import select
from pipeline.selecting.selection import Selection
from pipeline.storage.storage import Storage

JOB = "lrd select"
NOTHING = "nothing was written, the same command starts over"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("output", metavar="OUT", help="the run's output folder")
    parser.add_argument("--to", required=True, metavar="PLACE", help="new folder, or a URI")
    rules = parser.add_argument_group("rules, in the order in which they apply")
    rules.add_argument(
        "--correct", action="store_true", help="rows that lrd evaluate scored as right"
    )
    rules.add_argument(
        "--where",
        metavar="EXPR",
        help="rows for which this SQL condition on their columns is true, such as "
        '"mean_confidence > 0.9 and num_output_tokens < 400"',
    )
    rules.add_argument(
        "--dedupe",
        choices=get_args(Dedupe),
        help="of rows with equal (exact) or similar (minhash) prompt and answer the first",
    )
    rules.add_argument(
        "--dedupe-threshold",
        type=float,
        metavar="S",
        help="similarity from which minhash drops a row [0.8]",
    )
    rules.add_argument(
        "--best-of", metavar="COLUMN", help="of each prompt the row with the largest value"
    )
    rules.add_argument(
        "--majority", action="store_true", help="of each prompt the rows with its commonest answer"
    )
    rules.add_argument(
        "--max-per-prompt", type=int, metavar="N", help="of each prompt the first N rows"
    )
    parser.add_argument(
        "--as",
        dest="form",
        choices=get_args(Form),
        default="rows",
        help="rows: all columns; messages: chats for trl's SFTTrainer; preference: the better and "
        "the worse answer to a prompt, for its DPOTrainer, by --correct, --best-of or both [rows]",
    )
    parser.add_argument("--task", help="whose scores to use [the only one that is stored]")
    parser.add_argument(
        "--partial", action="store_true", help="select from the finished shards of a run"
    )


@output.command(
    JOB,
    storage=(output.INTERRUPTED, f"{{}}; {NOTHING}"),
    interrupt=(output.INTERRUPTED, f"interrupted; {NOTHING}"),
)
def run(args: argparse.Namespace) -> int:
    """Select; the exit code."""
    if args.dedupe_threshold is not None and args.dedupe != "minhash":
        raise ValueError(
            "--dedupe-threshold is for --dedupe minhash; add it, or drop the threshold"
        )
    rules = Rules(
        correct=args.correct,
        where=args.where,
        dedupe=args.dedupe,
        threshold=0.8 if args.dedupe_threshold is None else args.dedupe_threshold,
        best_of=args.best_of,
        majority=args.majority,
        max_per_prompt=args.max_per_prompt,
        form=args.form,
    )
    with stage("selecting") as step:

        def tell(name: str) -> None:
            step.detail = name

        found = select(
            Storage(args.output),
            args.to,
            rules,
            task=args.task,
            partial=args.partial,
            on_step=tell,
        )
    if output.is_json():
        rows = [asdict(step) for step in found.rules]
        facts = {"rules": rows, "num_rows": found.num_rows, "form": found.form, "to": args.to}
        output.LOG.info("selection finished", extra={"facts": facts})
    else:
        print("\n".join(describe(found, args.to)))
    return output.OK


def describe(found: Selection, to: str) -> list[str]:
    """A table of what each rule dropped, and where the dataset is."""
    rows = list(table(found.rules))
    width = max(len(row[0]) for row in rows)
    lines = [f"{name:{width}} {n:>10} {out:>10} {kept:>10}" for name, n, out, kept in rows]
    if found.num_shards < found.num_shards_planned:
        lines.append(f"partial: {found.num_shards} of {found.num_shards_planned} shards of the run")
    what = "pairs" if found.form == "preference" else "rows"
    return [*lines, f"{found.num_rows} {what}: {to}"]
