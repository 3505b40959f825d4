"""Run `lrd generate` as a job on a Ray cluster, and follow it to its own exit code.

    lrd submit RUN.toml --address http://HEAD:8265 [settings]

The working directory is uploaded (without .git, .venv, runs, tests, …), so the cluster runs this
code. Submitted again, a run is continued; while its job is running, that one is followed. It is
no more than

    ray job submit --working-dir . -- python -m jobs.generate --input … --output …

`pipeline/ray_jobs.py` talks to the job server.
"""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from pydantic import BaseModel

from jobs import output
from jobs.flags import add_model_flags, add_run_flags, flag_of, run_config
from lrd.config import ALL_PRESETS, DecodingConfig
from lrd.settings import suffix_text
from pipeline.config import RunConfig

JOB = "lrd submit"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The cluster's flags, and all settings of `lrd generate`."""
    parser.add_argument(
        "config", metavar="RUN.toml", help="file of settings; those of [decoding] as a table"
    )
    parser.add_argument(
        "--address",
        help="job server, http://HEAD:8265 [$RAY_API_SERVER_ADDRESS, $RAY_ADDRESS]",
    )
    parser.add_argument("--working-dir", default=".", help="folder that is uploaded [.]")
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="environment variable of the job; may repeat; no secrets",
    )
    parser.add_argument(
        "--stop-on-interrupt", action="store_true", help="Ctrl-C stops the job [it goes on]"
    )
    parser.add_argument("--no-follow", action="store_true", help="submit, and do not follow")
    parser.add_argument("--preset", choices=sorted(ALL_PRESETS), help="decoding preset [fast]")
    add_model_flags(parser, RunConfig, exclude={"decoding", "address"})
    add_model_flags(parser.add_argument_group("decoding"), DecodingConfig)


@output.command(
    JOB,
    interrupt=(output.INTERRUPTED, "interrupted; check with ray job list whether the job started"),
)
def run(args: argparse.Namespace) -> int:
    """Submit the job and follow it; the driver's exit code."""
    config = run_config(args)
    from pipeline import ray_jobs
    from pipeline.preflight import refuse_secrets

    refuse_secrets(config)
    ray_jobs.check_places(config)
    entrypoint = entrypoint_of(config, args.log_format)
    environment = ray_jobs.runtime_env(args.working_dir, args.env)
    address = ray_jobs.address_from(args.address)
    client = ray_jobs.connect(address)
    with ray_jobs.plainly(address):
        name = ray_jobs.job_name(config.output)
        job_id, new = ray_jobs.submit(client, name, entrypoint, environment)
    output.tell(f"{'submitted' if new else 'running already, with its own settings'}: {job_id}")
    if args.no_follow:
        return output.OK
    return watch(client, job_id, address, stop_on_interrupt=args.stop_on_interrupt)


def watch(client: Any, job_id: str, address: str, *, stop_on_interrupt: bool = False) -> int:
    """Show a job's log to its end; the driver's exit code. Ctrl-C leaves the job alone, or stops
    it and shows the rest; a second one ends this command in any case."""
    from pipeline import ray_jobs

    where = f"{job_id} --address {address}"
    stopping = False
    while True:
        try:
            if stopping:
                client.stop_job(job_id)
            ray_jobs.follow(client, job_id, lambda text: print(text, end="", flush=True))
            ended = ray_jobs.outcome(client, job_id)
        except KeyboardInterrupt:
            if stopping or not stop_on_interrupt:
                reason = (
                    "the job goes on. The same command follows it again, "
                    f"ray job stop {where} ends it; finished rows are safe"
                )
                return output.refuse(JOB, reason, output.INTERRUPTED)
            output.tell(f"{JOB}: stopping the job; a second Ctrl-C ends this command at once")
            stopping = True
        except ray_jobs.LOST as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            reason = (
                f"the cluster stopped answering ({reason}); the same command follows the job "
                "where it is still running, else continues the run"
            )
            return output.refuse(JOB, reason, output.INTERRUPTED)
        else:
            if ended.reason:
                output.tell(f"{JOB}: {ended.reason}; finished rows are safe, submit it again")
            return ended.code


def entrypoint_of(config: RunConfig, log_format: str | None = None) -> str:
    """The command that the cluster runs: all settings as flags, so that no file has to be there.

    Ray tells the driver which cluster it is in. Raises ValueError for settings that flags cannot
    say.
    """
    words = _flags(config, RunConfig.model_fields.keys() - {"decoding", "address"}, _defaults())
    choices = [_preset_flags(config.decoding, preset) for preset in ALL_PRESETS]
    shortest: list[str] = min(choices, key=len)
    words += shortest
    parser = argparse.ArgumentParser()
    add_run_flags(parser)
    if run_config(parser.parse_args(words)) != config.model_copy(update={"address": None}):
        raise ValueError("a setting is the text 'none', which flags cannot say; change it")
    shown_as = [f"--log-format={log_format}"] if log_format else []
    return shlex.join(["python", "-m", "jobs.generate", *shown_as, *words])


def _defaults() -> dict[str, Any]:
    return {name: field.default for name, field in RunConfig.model_fields.items()}


def _preset_flags(decoding: DecodingConfig, preset: str) -> list[str]:
    start = DecodingConfig.preset(preset).model_dump()
    return [f"--preset={preset}", *_flags(decoding, start.keys(), start)]


def _flags(settings: BaseModel, names: Any, defaults: dict[str, Any]) -> list[str]:
    """A word for each setting that is not its default, in the settings' own order."""
    words = []
    for name, value in settings.model_dump().items():
        if name not in names or value == defaults[name]:
            continue
        flag = flag_of(name)
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag.removeprefix('--')}")
        elif name == "suffix":
            words.append(f"{flag}={suffix_text(value)}")
        elif isinstance(value, tuple):
            words += [f"{flag}={one}" for one in value]
        else:
            words.append(f"{flag}={'none' if value is None else value}")
    return words
