"""`lrd NAME`: one command for each job. Knows only their names."""

from __future__ import annotations

import argparse
import os
import sys

from jobs import (
    evaluate,
    generate,
    models,
    plan,
    prepare,
    publish,
    report,
    reproduce,
    retry_failed,
    status,
    submit,
    tune,
    verify,
)

JOBS = {
    "generate": (generate, "decode prompt shards into a result dataset"),
    "submit": (submit, "run generate as a job on a Ray cluster, and follow it"),
    "plan": (plan, "tell what generate would do, without doing it"),
    "status": (status, "tell where a run stands, from its files alone"),
    "verify": (verify, "read a whole result dataset and name all that is wrong with it"),
    "retry-failed": (retry_failed, "decode a run's failed rows once more"),
    "prepare": (prepare, "make prompt shards from Parquet, JSONL, CSV or a hub dataset"),
    "evaluate": (evaluate, "score a result dataset against its references"),
    "tune": (tune, "find a checkpoint's settings: sweep them over a sample of a task"),
    "report": (report, "write a report on a run: one HTML file, and figures for papers"),
    "reproduce": (reproduce, "make the paper's tables and figures, decoded through the pipeline"),
    "publish": (publish, "make a dataset in the hub's layout of a finished run"),
    "models": (models, "list the models that are known by name"),
}


def main() -> None:
    """The console script."""
    parser = argparse.ArgumentParser(
        prog="lrd", description="Latent Refinement Decoding as a batch-generation pipeline."
    )
    commands = parser.add_subparsers(dest="job", required=True, metavar="JOB")
    for name, (job, what) in JOBS.items():
        command = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
        job.add_arguments(command)
        command.set_defaults(run=job.run)
    args = parser.parse_args()
    code = args.run(args)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read it has left; what is buffered goes nowhere instead of failing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


if __name__ == "__main__":
    main()
