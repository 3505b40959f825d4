"""Read a whole result dataset and name all that is not as it should be, and what to do.

    lrd verify OUT [--partial] [--no-input | --input PROMPTS]

A line a finding, then one line that sums up. Knows nothing of what is checked
(`pipeline/inspection/verify.py`).
"""

from __future__ import annotations

import argparse
import sys

from pipeline.input import input_files
from pipeline.inspection.status import whole_manifest
from pipeline.inspection.verify import Verification
from pipeline.output.run_folder import MANIFEST
from pipeline.storage.retry import RefusedError
from pipeline.storage.storage import Storage

OK, WRONG, NO_RUN = 0, 1, 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The job's flags."""
    parser.add_argument("output", metavar="OUT", help="the run's output folder")
    parser.add_argument(
        "--partial", action="store_true", help="shards that are not written yet are no error"
    )
    places = parser.add_mutually_exclusive_group()
    places.add_argument("--no-input", action="store_true", help="leave the prompts alone")
    places.add_argument("--input", help="where the prompts are now [as the run has it]")


def run(args: argparse.Namespace) -> int:
    """The job; its exit code."""
    output = None
    try:
        output = Storage(args.output)
        if output.kind(MANIFEST) == "missing":
            print(f"lrd verify: {args.output}: holds no run; check the folder", file=sys.stderr)
            return NO_RUN
        inputs = None if args.no_input else _inputs(output, args.input)
        return report(Verification(output, inputs), args.partial)
    except ValueError as error:
        print(f"lrd verify: {error}", file=sys.stderr)
        return WRONG if output is not None else NO_RUN
    except RefusedError as error:
        print(f"lrd verify: {error}", file=sys.stderr)
        return NO_RUN
    except OSError as error:
        print(f"lrd verify: storage does not answer: {error}", file=sys.stderr)
        return WRONG


def _inputs(output: Storage, moved_to: str | None) -> Storage | None:
    """Where the prompts are; None, and a note, where they cannot be reached.

    Raises ValueError where a place was named and holds none.
    """
    uri = moved_to or str(whole_manifest(output)["settings"].get("input", ""))
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
        return WRONG
    if unfinished and not partial:
        print(f"not finished, nothing wrong so far: {counts}")
        return WRONG
    print(f"whole: {counts}" if not unfinished else f"nothing wrong so far: {counts}")
    return OK


def main() -> None:
    """`python -m jobs.verify`."""
    parser = argparse.ArgumentParser(prog="lrd verify", description="Check a result dataset.")
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))


if __name__ == "__main__":
    main()
