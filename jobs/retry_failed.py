"""Decode the failed rows of a run once more, with the settings that it was started with.

    lrd retry-failed OUT [--replicas N] [--input PROMPTS] …

A stored success is never decoded again, and a success replaces the failure. What results depend
on cannot be changed here; where and how fast they are decoded can. Exit codes are those of
`lrd generate`.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from pydantic import ValidationError

from jobs import logs
from jobs.flags import add_model_flags, given, one_line
from jobs.generate import decode
from pipeline.config import RunConfig
from pipeline.output.run_folder import read_manifest
from pipeline.storage.storage import Storage, refused_as_settings

FIXED = {
    *("output", "decoding", "dtype", "compile"),
    *("prompt_column", "prompt_format", "system_prompt", "truncation"),
}
"""What the fingerprint holds word for word. Input and model are in it by their contents, so that
they may lie elsewhere now."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The job's flags: the output, and every setting that results do not depend on."""
    parser.add_argument("output", metavar="OUT", help="the run's output folder")
    logs.add_argument(parser)
    add_model_flags(parser, RunConfig, exclude=FIXED)
    parser.epilog = "What is not given is as the run had it, whatever stands in brackets."


def run(args: argparse.Namespace) -> int:
    """The job; its exit code."""
    return decode(
        "lrd retry-failed",
        lambda: settings_from(args),
        retry_failed=True,
        log_format=args.log_format,
    )


@refused_as_settings()
def settings_from(args: argparse.Namespace) -> RunConfig:
    """The run's settings as its manifest has them, under the flags.

    Raises ValueError where there is no run, or its input is not where it was.
    """
    manifest = read_manifest(Storage(args.output))
    settings: dict[str, Any] = {**manifest.settings, "output": args.output}
    # `auto` means another dtype on another device, and rows of two would be mixed.
    settings["dtype"] = manifest.fingerprint["dtype"]
    try:
        config = RunConfig(**{**settings, **given(args, RunConfig)})
    except ValidationError as error:
        raise ValueError(one_line(error)) from error
    if Storage(config.input).kind() == "missing":
        raise ValueError(
            f"{config.input}: the run's prompts are not there (a relative path holds where the run "
            "was started); name their place with --input"
        )
    return config


def main() -> None:
    """`python -m jobs.retry_failed`."""
    parser = argparse.ArgumentParser(prog="lrd retry-failed", description="Decode failed rows.")
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))


if __name__ == "__main__":
    main()
