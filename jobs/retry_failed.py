"""Decode the failed rows of a run once more, with the settings that it was started with.

    lrd retry-failed OUT [--replicas N] [--input PROMPTS] …

A stored success is never decoded again, and a success replaces the failure. What results depend
on cannot be changed here; where and how fast they are decoded can. Exit codes are those of
`lrd generate`.
"""

from __future__ import annotations

import argparse
from typing import Any

from jobs import output
from jobs.flags import add_model_flags, given, in_one_line
from pipeline.config import RunConfig

JOB = "lrd retry-failed"
FIXED = {
    *("output", "decoding", "dtype", "compile", "stop", "row_settings"),
    *("prompt_column", "prompt_format", "system_prompt", "truncation", "allow_special_tokens"),
    *("num_samples", "columns", "template_column", "template_filler", "infill"),
}
"""Settings that the fingerprint has by value. Input, model, template and schema are in it by their
contents, so they may be at another path now."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags: the output, and every setting that results do not depend on."""
    parser.add_argument("output", metavar="OUT", help="the run's output folder")
    add_model_flags(parser, RunConfig, exclude=FIXED)
    parser.epilog = "A setting that is not given is as the run had it, whatever is in brackets."


@output.decoding_command(JOB)
def run(args: argparse.Namespace) -> int:
    """Decode the failed rows; the exit code."""
    return output.decode(JOB, run_config(args), retry_failed=True)


def run_config(args: argparse.Namespace) -> RunConfig:
    """The run's settings as its manifest has them, under the flags.

    Raises ValueError where there is no run, or its input is not where it was.
    """
    from pipeline.output.run_folder import read_manifest
    from pipeline.storage.storage import Storage, refused_as_settings

    with refused_as_settings():
        manifest = read_manifest(Storage(args.output))
        settings: dict[str, Any] = {**manifest.settings, "output": args.output}
        # `auto` means another dtype on another device, and rows of two would be mixed.
        settings["dtype"] = manifest.fingerprint["dtype"]
        with in_one_line():
            config = RunConfig(**{**settings, **given(args, RunConfig)})
        if Storage(config.input).kind() == "missing":
            raise ValueError(
                f"{config.input}: the run's prompts are not there (a relative path holds where the "
                "run was started); name their place with --input"
            )
    return config
