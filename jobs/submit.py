"""Run `lrd generate` as a job on a Ray cluster, and follow it to its own exit code.

    lrd submit RUN.toml --address http://HEAD:8265 [settings]

The working directory goes along (without .git, .venv, runs, tests, …), so the cluster runs this
code. Submitted again, a run is continued; while its job is at work, that is followed. Knows
nothing of decoding; what it does is no more than

    ray job submit --working-dir . -- python -m jobs.generate --input … --output …
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from jobs import generate, logs
from jobs.flags import add_model_flags
from lrd.config import PRESETS, DecodingConfig
from pipeline.config import RunConfig
from pipeline.preflight import refuse_secrets
from pipeline.ray_jobs import INTERRUPTED, LOST, connect, follow, job_name, outcome, plainly, submit
from pipeline.storage.uri_secrets import hidden

OK, BAD_SETTINGS = 0, 2
EXCLUDES = [
    *("/.git", "/.ci", "/runs", "/tests", "/OUT", "/shared"),
    *(".venv", "venv", "__pycache__", "*.egg-info", ".pytest_cache", ".mypy_cache", ".ruff_cache"),
    *(".env*", "*.pem", "*.key", "*.part"),
]
"""What stays at home, as in a .gitignore; Ray leaves out what .gitignore names, too."""
STOP_SECONDS = "60"
"""What a driver has to flush its rows when its job is stopped; Ray's own three would not do."""
SECRET = re.compile(r"secret|passw|(access|api|private)_?key|(^|_)token($|_)", re.IGNORECASE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The job's flags: the cluster's, and all settings of `lrd generate`."""
    parser.add_argument("config", metavar="RUN.toml", help="settings, [decoding] as a table")
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
        help="environment variable of the job, again for more; no secrets",
    )
    parser.add_argument(
        "--stop-on-interrupt", action="store_true", help="Ctrl-C stops the job [it goes on]"
    )
    parser.add_argument("--no-follow", action="store_true", help="submit and leave")
    parser.add_argument("--preset", choices=sorted(PRESETS), help="decoding preset [fast]")
    logs.add_argument(parser)
    add_model_flags(parser, RunConfig, exclude={"decoding", "address"})
    add_model_flags(parser.add_argument_group("decoding"), DecodingConfig)


def run(args: argparse.Namespace) -> int:
    """The job; the driver's exit code."""
    try:
        config = generate.settings_from(args)
        refuse_secrets(config)
        check_places(config)
        entrypoint = entrypoint_of(config, args.log_format)
        environment = runtime_env(args.working_dir, args.env)
        address = address_from(args.address)
        quieten_ray()
        client = connect(address)
        with plainly(address):
            job_id, new = submit(client, job_name(config.output), entrypoint, environment)
    except ValueError as error:
        return _say(f"lrd submit: {error}", BAD_SETTINGS)
    except KeyboardInterrupt:
        return _say("lrd submit: interrupted; look with ray job list whether it began", INTERRUPTED)
    _say(f"{'submitted' if new else 'at work already, with its own settings'}: {job_id}")
    if args.no_follow:
        return OK
    return watch(client, job_id, address, stop_on_interrupt=args.stop_on_interrupt)


def watch(client: Any, job_id: str, address: str, *, stop_on_interrupt: bool = False) -> int:
    """Show a job's log to its end; the driver's exit code. Ctrl-C leaves the job alone, or stops
    it and shows the rest; a second one leaves in any case."""
    where = f"{job_id} --address {address}"
    stopping = False
    while True:
        try:
            if stopping:
                client.stop_job(job_id)
            follow(client, job_id, lambda text: print(text, end="", flush=True))
            ended = outcome(client, job_id)
        except KeyboardInterrupt:
            if stopping or not stop_on_interrupt:
                return _say(
                    f"\nlrd submit: the job goes on. The same command follows it again, "
                    f"ray job stop {where} ends it; finished rows are safe",
                    INTERRUPTED,
                )
            _say("\nlrd submit: stopping the job; once more leaves at once")
            stopping = True
        except LOST as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            return _say(
                f"lrd submit: the cluster answers no more ({reason}); the same command follows "
                "the job where it is at work still, else continues the run",
                INTERRUPTED,
            )
        else:
            if ended.reason:
                _say(f"lrd submit: {ended.reason}; finished rows are safe, submit it again")
            return ended.code


def quieten_ray() -> None:
    """Ray tells of every file that it leaves at home; of what goes wrong we tell in one line."""
    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.CRITICAL)


def address_from(given: str | None) -> str:
    """The job server's address; ValueError where there is none."""
    names = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
    address = given or next((os.environ[name] for name in names if os.environ.get(name)), None)
    if not address:
        raise ValueError("no job server is named; give --address http://HEAD:8265")
    return address if "://" in address or address == "auto" else f"http://{address}"


def check_places(config: RunConfig) -> None:
    """ValueError for paths that mean something else, or nothing, where the job runs."""
    for name, value in (("input", config.input), ("output", config.output)):
        if "://" not in value and not value.startswith("/"):
            raise ValueError(
                f"{name} {value}: a job runs in a folder of its own; give an absolute path on "
                "storage that all nodes share, or a URI"
            )
    model = config.model
    if model.startswith((".", "~")) or (not model.startswith("/") and Path(model).is_dir()):
        raise ValueError(f"model {model}: give an absolute path that all nodes have, or a hub id")


def runtime_env(working_dir: str, environment: list[str]) -> dict[str, Any]:
    """What the job runs in. Raises ValueError for a folder that there is not, and for secrets:
    Ray shows a job's environment to whoever may see the job."""
    if not Path(working_dir).is_dir():
        raise ValueError(f"--working-dir {working_dir}: no such folder")
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": STOP_SECONDS}
    for word in environment:
        name, equals, value = word.partition("=")
        if not equals and name not in os.environ:
            raise ValueError(f"--env {name}: is not set here; write {name}=VALUE")
        variables[name] = value if equals else os.environ[name]
        if SECRET.search(name) or hidden(variables[name]) != variables[name]:
            raise ValueError(
                f"--env {name}: a job's environment is no place for secrets; put them into that "
                "of the cluster's nodes"
            )
    return {"working_dir": working_dir, "excludes": EXCLUDES, "env_vars": variables}


def entrypoint_of(config: RunConfig, log_format: str | None = None) -> str:
    """The command that the cluster runs: all settings as flags, so that no file has to be there.

    Ray tells the driver which cluster it is in. Raises ValueError for settings that flags cannot
    say.
    """
    words = [f"--log-format={log_format}"] if log_format else []
    words += _flags(config, RunConfig.model_fields.keys() - {"decoding", "address"}, _defaults())
    choices: list[list[str]] = [_preset_flags(config.decoding, preset) for preset in PRESETS]
    words += sorted(choices, key=_length)[0]
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    if generate.settings_from(parser.parse_args(words)) != config.model_copy(
        update={"address": None}
    ):
        raise ValueError("a setting is the text 'none', which flags cannot say; change it")
    return shlex.join(["python", "-m", "jobs.generate", *words])


def _defaults() -> dict[str, Any]:
    return {name: field.default for name, field in RunConfig.model_fields.items()}


def _preset_flags(decoding: DecodingConfig, preset: str) -> list[str]:
    start = DecodingConfig.preset(preset).model_dump()
    return [f"--preset={preset}", *_flags(decoding, start.keys(), start)]


def _length(words: list[str]) -> int:
    return len(words)


def _flags(settings: BaseModel, names: Any, defaults: dict[str, Any]) -> list[str]:
    """A word for each setting that is not its default, in the settings' own order."""
    words = []
    for name, value in settings.model_dump().items():
        if name not in names or value == defaults[name]:
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words.append(f"--{flag}={'none' if value is None else value}")
    return words


def _say(line: str, code: int = OK) -> int:
    """A line on stderr; the exit code to go with it."""
    print(line, file=sys.stderr, flush=True)
    return code


def main() -> None:
    """`python -m jobs.submit`."""
    parser = argparse.ArgumentParser(prog="lrd submit", description="Run on a Ray cluster.")
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))


if __name__ == "__main__":
    main()
