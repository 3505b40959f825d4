"""Make a dataset in the hub's layout from a finished run: in a folder, a store or on the hub.

    lrd publish OUT --to FOLDER --license cc-by-4.0
    lrd publish OUT --to s3://bucket/dataset
    lrd publish OUT --to owner/name [--public]

A name of the form owner/name is a hub id; a folder that looks like one is written ./owner/name.
"""

from __future__ import annotations

import argparse

from jobs import output
from pipeline.observe.stages import stage
from pipeline.publishing.dataset_card import About, Facts
from pipeline.publishing.destinations import publish_to
from pipeline.publishing.publish import PushError
from pipeline.storage.storage import Storage

JOB = "lrd publish"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("output", metavar="OUT", help="the run's output folder")
    parser.add_argument(
        "--to",
        required=True,
        metavar="FOLDER|URI|hub-id",
        help="new folder, or owner/name on the hub",
    )
    parser.add_argument("--license", help="licence id for the card, such as mit or cc-by-4.0")
    parser.add_argument("--title", help="the card's title [the last part of --to]")
    parser.add_argument("--tag", action="append", default=[], help="for the card; again for more")
    parser.add_argument(
        "--public", action="store_true", help="a new hub repository is public [private]"
    )
    parser.add_argument(
        "--partial", action="store_true", help="publish the finished shards of an unfinished run"
    )


@output.command(JOB, storage=(output.INTERRUPTED, "{}"))
def run(args: argparse.Namespace) -> int:
    """Publish; the exit code."""
    name = args.to.partition("?")[0].rstrip("/").rpartition("/")[2]
    about = About(args.title or name, args.license, tuple(args.tag))
    try:
        with stage("writing the dataset", unit="shards") as step:
            facts, where = publish_to(
                Storage(args.output),
                args.to,
                about,
                public=args.public,
                partial=args.partial,
                on_shard=step.at,
            )
    except PushError as error:
        return output.refuse(JOB, str(error), output.INTERRUPTED)
    print(describe(facts, about, where))
    return output.OK


def describe(facts: Facts, about: About, where: str) -> str:
    """The closing lines."""
    lines = [f"{facts.num_ok} rows, {facts.num_failed} failed ones apart: {where}"]
    if facts.num_shards < facts.num_shards_planned:
        lines.append(f"partial: {facts.num_shards} of {facts.num_shards_planned} shards")
    if not facts.evaluations:
        lines.append("not scored: run lrd evaluate first to put the accuracy on the card")
    if about.license is None:
        lines.append("no licence on the card: give one with --license")
    return "\n".join(lines)
