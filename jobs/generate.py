"""Decode prompt shards into a result dataset: the main job.

    lrd generate --input PROMPTS --output OUT [--config RUN.toml] [settings]
    python -m jobs.generate …            # the same, for `ray job submit`

Settings come from the preset, then the TOML file, then the flags; each overrides the last.
"""

from __future__ import annotations

import argparse

from jobs import output
from jobs.flags import add_run_flags, run_config

JOB = "lrd generate"
add_arguments = add_run_flags


@output.decoding_command(JOB)
def run(args: argparse.Namespace) -> int:
    """Decode; the exit code."""
    return output.decode(JOB, run_config(args))


if __name__ == "__main__":
    from jobs import cli

    cli.main("generate")
