"""Make a dataset in the hub's layout of a finished run, in a folder, an object store or on the hub.

    lrd publish OUT --to FOLDER --license cc-by-4.0
    lrd publish OUT --to s3://bucket/dataset
    lrd publish OUT --to owner/name [--public]

A name of the form owner/name is a hub id; a folder that looks like one is written ./owner/name.
`pipeline/publishing` makes the dataset.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial as bound
from pathlib import Path

from lrd.models.hub import is_hub_id
from pipeline.publishing.dataset_card import About, Facts
from pipeline.publishing.publish import PushError, publish, push
from pipeline.storage.storage import Storage
from pipeline.storage.uris import is_uri

OK, BAD_INPUT, NOT_SENT = 0, 2, 75
HUB = "hf://datasets/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The job's flags."""
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


def run(args: argparse.Namespace) -> int:
    """The job; its exit code."""
    try:
        send = destination(args.to, args.public)
        name = args.to.partition("?")[0].rstrip("/").rpartition("/")[2]
        about = About(args.title or name, args.license, tuple(args.tag))
        output = Storage(args.output)
        if send is None:
            folder = Path(args.to.removeprefix("file://"))
            where = str(folder)
            facts = publish(output, folder, about, partial=args.partial, on_shard=tell)
        else:
            facts, where = publish_and(send, output, about, args.partial)
    except ValueError as error:
        print(f"lrd publish: {error}", file=sys.stderr)
        return BAD_INPUT
    except (PushError, OSError) as error:
        print(f"lrd publish: {error}", file=sys.stderr)
        return NOT_SENT
    print(describe(facts, about, where))
    return OK


Send = Callable[[Path], str]
"""Takes a published folder elsewhere; where it is then."""


def destination(to: str, public: bool) -> Send | None:
    """What takes the dataset to where it shall be; None for a local folder.

    Raises ValueError for what is no hub id, where a folder could be meant as well, and where a
    store holds something there already.
    """
    if is_uri(to) and not to.startswith(HUB):
        store = Storage(to)
        store.check_empty()
        return bound(to_store, store)
    hub_id = to.removeprefix(HUB)
    if not is_hub_id(hub_id):
        if to.startswith(HUB):
            raise ValueError(f"--to {to}: is no hub id; owner/name is due")
        return None
    if hub_id == to and Path(to).parent.exists():
        raise ValueError(f"--to {to}: write ./{to} for the folder, {HUB}{to} for the hub")
    return bound(push, hub_id=hub_id, public=public)


def to_store(store: Storage, folder: Path) -> str:
    """Write a published folder to a store, the card last; where it is."""
    store.take_folder(folder, last="README.md")
    return store.uri


def publish_and(send: Send, output: Storage, about: About, partial: bool) -> tuple[Facts, str]:
    """Publish to a folder of the moment and send it; what was written, and where it is."""
    # Beside a local run, so that its shards need no second copy.
    beside = str(Path(output.root).resolve().parent) if output.is_local else None
    with tempfile.TemporaryDirectory(prefix=".lrd-publish-", dir=beside) as parent:
        folder = Path(parent) / "dataset"
        facts = publish(output, folder, about, partial=partial, on_shard=tell)
        return facts, send(folder)


def tell(done: int, planned: int) -> None:
    """A line now and then while a big run is read."""
    if done % 100 == 0:
        print(f"{done} of {planned} shards", file=sys.stderr, flush=True)


def describe(facts: Facts, about: About, where: str) -> str:
    """The closing lines."""
    lines = [f"{facts.num_ok} rows, {facts.num_failed} failed ones apart: {where}"]
    if facts.num_shards < facts.num_shards_planned:
        lines.append(f"partial: {facts.num_shards} of {facts.num_shards_planned} shards")
    if not facts.evaluations:
        lines.append("not scored: lrd evaluate beforehand puts the accuracy on the card")
    if about.license is None:
        lines.append("no licence on the card: give one with --license")
    return "\n".join(lines)


def main() -> None:
    """`python -m jobs.publish`."""
    parser = argparse.ArgumentParser(prog="lrd publish", description="Publish a result dataset.")
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))


if __name__ == "__main__":
    main()
