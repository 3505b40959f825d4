"""Read a whole result dataset and name all that is wrong with it, and what to do.

    lrd verify OUT [--partial] [--no-input | --input PROMPTS]

OUT may be a dataset of `lrd select`: its files are compared with the digests of its record.
One line per finding, then one line that sums up. `pipeline/inspection/verify.py` has the checks.
"""

from __future__ import annotations

import argparse

from jobs import output
from pipeline.input import input_files
from pipeline.inspection.verify import Verification
from pipeline.output.run_folder import MANIFEST, no_run, read_manifest
from pipeline.selecting.selection import AGAIN, check_shards, holds_selection, read_selection
from pipeline.storage.retry import RefusedError
from pipeline.storage.storage import Storage

JOB = "lrd verify"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("output", metavar="OUT", help="the run's output folder")
    parser.add_argument(
        "--partial", action="store_true", help="shards that are not written yet are not an error"
    )
    places = parser.add_mutually_exclusive_group()
    places.add_argument("--no-input", action="store_true", help="do not read the prompts")
    places.add_argument("--input", help="where the prompts are now [as the run has it]")


@output.command(JOB, storage=(output.WRONG, "storage does not answer: {}"))
def run(args: argparse.Namespace) -> int:
    """Check everything; the exit code."""
    try:
        return verify(Storage(args.output), args)
    except RefusedError as error:
        return output.refuse(JOB, str(error))


def verify(storage: Storage, args: argparse.Namespace) -> int:
    """Check the run in `storage`, and print what was found; the exit code."""
    if holds_selection(storage):
        return verify_selection(storage)
    if storage.kind(MANIFEST) == "missing":
        return output.refuse(JOB, no_run(storage))
    try:
        inputs = None if args.no_input else _inputs(storage, args.input)
        return report(Verification(storage, inputs), args.partial)
    except ValueError as error:
        return output.refuse(JOB, str(error), output.WRONG)


def verify_selection(storage: Storage) -> int:
    """Check a dataset of `lrd select` against its record, and print the findings; the exit code."""
    try:
        selection = read_selection(storage)
    except ValueError as error:
        return output.refuse(JOB, str(error), output.WRONG)
    faults = list(check_shards(storage, selection))
    for name, what in faults:
        print(f"{name}: {what}; {AGAIN}")
    counts = f"{len(selection.shards)} selected shards, {selection.num_rows} rows"
    print(f"WRONG: {len(faults)} findings; {counts}" if faults else f"whole: {counts}")
    return output.WRONG if faults else output.OK


def _inputs(storage: Storage, moved_to: str | None) -> Storage | None:
    """Where the prompts are; None, and a note, where they cannot be reached.

    Raises ValueError where a place was named and holds none.
    """
    uri = moved_to or read_manifest(storage).settings["input"]
    try:
        return input_files.find(uri).storage
    except (ValueError, OSError) as error:
        if moved_to is not None:
            raise
        reason = str(error).partition("; check")[0]
        print(f"note: the prompts are not compared: {reason}; name their place with --input")
        return None


def report(verification: Verification, partial: bool) -> int:
    """Print every finding and the sum; the exit code."""
    num_wrong = 0
    wrong_files: set[str] = set()
    for finding in verification.findings():
        print(finding, flush=True)
        if finding.wrong:
            num_wrong += 1
            wrong_files.add(finding.file)
    unfinished, num_shards = verification.num_unfinished, verification.num_shards
    if unfinished:
        print(
            f"{unfinished} of {num_shards} shards are not committed yet; the same lrd generate "
            "command (or lrd retry-failed) continues"
        )
    counts = (
        f"{num_shards - unfinished} of {num_shards} shards, {verification.num_rows} rows, "
        f"{verification.num_failed} failed"
    )
    if num_wrong:
        print(f"WRONG: {num_wrong} findings in {len(wrong_files)} files; {counts}")
        return output.WRONG
    if unfinished and not partial:
        print(f"not finished, nothing wrong so far: {counts}")
        return output.WRONG
    print(f"whole: {counts}" if not unfinished else f"nothing wrong so far: {counts}")
    return output.OK
