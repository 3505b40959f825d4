"""Submits a run as a job to Ray's job server, follows its log, and gets the driver's exit code.

Ray never frees a submission id, so a run's ids are its name and a number that counts up. A name
belongs to one output: while its job is running, no other is submitted.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from pipeline.config import RunConfig
from pipeline.storage.uri_secrets import hidden
from pipeline.storage.uris import canonical, is_uri

INTERRUPTED = 75
PATIENCE_SECONDS = 60.0
"""How long a job server that answered before may not answer."""
BEGIN_SECONDS = 180.0
"""How long a cluster that has just started may refuse jobs."""
RETRY_SECONDS = 1.0
LOST = (
    *(requests.RequestException, aiohttp.ClientError, OSError, RuntimeError),
    AuthenticationError,
)
"""What the job client raises where the server does not answer, or not as it should."""
TOKEN = "set RAY_AUTH_MODE=token, and the token in RAY_AUTH_TOKEN or ~/.ray/auth_token"

EXCLUDES = [
    *("/.git", "/.ci", "/runs", "/tests", "/OUT", "/shared"),
    *(".venv", "venv", "__pycache__", "*.egg-info", ".pytest_cache", ".mypy_cache", ".ruff_cache"),
    *(".env*", "*.pem", "*.key", "*.part"),
]
"""What is not uploaded, in .gitignore's syntax; Ray also leaves out what .gitignore names."""
STOP_SECONDS = "60"
"""Time for a driver to store its rows when its job is stopped; Ray's default of 3 is too short."""
SECRET = re.compile(r"secret|passw|(access|api|private)_?key|(^|_)token($|_)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended."""

    code: int
    """The driver's exit code; 75 where it has none because it was stopped or lost."""
    reason: str | None
    """Why the driver has no exit code; None where it has one."""


def address_from(given: str | None) -> str:
    """The job server's address, from the environment where none is given; ValueError where there
    is none."""
    names = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
    address = given or next((os.environ[name] for name in names if os.environ.get(name)), None)
    if not address:
        raise ValueError("no job server is named; give --address http://HEAD:8265")
    return address if "://" in address or address == "auto" else f"http://{address}"


def check_places(config: RunConfig) -> None:
    """ValueError for paths that mean something else, or do not exist, where the job runs."""
    for name, value in (("input", config.input), ("output", config.output)):
        # The home folder is another one there.
        path = value if value.startswith("~") else canonical(value)
        if not is_uri(path) and not path.startswith("/"):
            raise ValueError(
                f"{name} {value}: a job runs in a folder of its own; give an absolute path on "
                "storage that all nodes share, or a URI"
            )
    model = config.model if config.model.startswith("~") else canonical(config.model)
    if model.startswith((".", "~")) or (not model.startswith("/") and Path(model).is_dir()):
        raise ValueError(f"model {model}: give an absolute path that all nodes have, or a hub id")


def runtime_env(working_dir: str, environment: list[str]) -> dict[str, Any]:
    """The job's Ray runtime environment. environment: `NAME=VALUE`, or `NAME` for its value here.

    Raises ValueError for a folder that does not exist, and for secrets: everybody who may see the
    job sees its environment.
    """
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
                f"--env {name}: a job's environment is not a place for secrets; set them in the "
                "environment of the cluster's nodes"
            )
    return {"working_dir": working_dir, "excludes": EXCLUDES, "env_vars": variables}


def connect(address: str) -> JobSubmissionClient:
    """A client of the job server at http://HOST:PORT.

    Raises ValueError in one line where there is none or it wants another token.
    """
    # Ray logs every file that it does not upload; errors are raised in any case.
    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.CRITICAL)
    url = urlsplit(address)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError(
            f"{address!r} is not the address of a job server; expected http://HEAD:8265"
        )
    if url.username or url.password:
        raise ValueError(f"the address carries a password; leave it out and {TOKEN}")
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        # The client itself has no timeout.
        socket.create_connection((url.hostname, port), timeout=10).close()
    except OSError as error:
        raise ValueError(
            f"no job server answers at {address} ({error}); check --address and the dashboard's "
            "port, 8265"
        ) from error
    with plainly(address), _variable("RAY_API_SERVER_ADDRESS", address):
        return JobSubmissionClient(address)


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable for a moment. Ray prefers several variables to the address that
    it is given, and this one to the others."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def plainly(address: str) -> Iterator[None]:
    """Turns what the job client raises into a ValueError of one line."""
    try:
        yield
    except AuthenticationError as error:
        if "invalid" in str(error).lower():
            raise ValueError(
                f"{address} refuses this token; give the cluster's own in RAY_AUTH_TOKEN or "
                "~/.ray/auth_token"
            ) from error
        raise ValueError(f"{address} asks for a token: {TOKEN}") from error
    except LOST as error:
        raise ValueError(f"the job server at {address} refuses: {_line(error)}") from error


def job_name(output: str) -> str:
    """A readable name that no other output has."""
    output = canonical(output).rstrip("/")
    slug = re.sub(r"[^a-z0-9]+", "-", output.rpartition("/")[2].lower()).strip("-")[:40]
    return f"lrd-{slug or 'run'}-{hashlib.sha256(output.encode()).hexdigest()[:8]}"


def submit(
    client: JobSubmissionClient, name: str, entrypoint: str, runtime_env: dict[str, Any]
) -> tuple[str, bool]:
    """Submit a run, or find its job that is running: its id, and whether it is new.

    Raises what the client raises where the server refuses, or takes no job in three minutes.
    """
    give_up_at = time.monotonic() + BEGIN_SECONDS
    while True:
        attempts = _attempts(client, name)
        for number, status in attempts.items():
            if not status.is_terminal():
                return f"{name}-{number}", False
        job_id = f"{name}-{max(attempts, default=0) + 1}"
        try:
            client.submit_job(
                entrypoint=entrypoint, submission_id=job_id, runtime_env=dict(runtime_env)
            )
        except RuntimeError as error:
            # Somebody else submitted this id first, or the cluster has just started.
            passes = any(words in str(error) for words in ("already exists", "No available agent"))
            if not passes or time.monotonic() > give_up_at:
                raise
            time.sleep(RETRY_SECONDS)
        else:
            return job_id, True


def _attempts(client: JobSubmissionClient, name: str) -> dict[int, Any]:
    """Status by number, of all jobs of a name that the cluster knows."""
    found = {}
    for job in client.list_jobs():
        prefix, _, number = (job.submission_id or "").rpartition("-")
        if prefix == name and number.isdigit():
            found[int(number)] = job.status
    return found


def follow(
    client: JobSubmissionClient,
    job_id: str,
    on_text: Callable[[str], None],
    patience: float = PATIENCE_SECONDS,
) -> None:
    """Pass a job's log to `on_text` until the job ends; lost connections are made anew.

    Raises what the client raises where the server does not answer for `patience` seconds.
    """
    seen, answered_at = 0, time.monotonic()

    def on_chunk(place: int, text: str) -> None:
        # A new connection sends the log from its first line.
        nonlocal seen, answered_at
        answered_at = time.monotonic()
        if place + len(text) > seen:
            on_text(text[max(0, seen - place) :])
            seen = place + len(text)

    while True:
        try:
            asyncio.run(_tail(client, job_id, on_chunk))
            if client.get_job_status(job_id).is_terminal():
                return
            answered_at = time.monotonic()
        except (AuthenticationError, BrokenPipeError):
            # A wrong token, or nobody reads stdout: trying again does not help.
            raise
        except LOST:
            if time.monotonic() - answered_at > patience:
                raise
        time.sleep(RETRY_SECONDS)


async def _tail(
    client: JobSubmissionClient, job_id: str, on_chunk: Callable[[int, str], None]
) -> None:
    place = 0
    async for text in client.tail_job_logs(job_id):
        on_chunk(place, text)
        place += len(text)


def outcome(client: JobSubmissionClient, job_id: str) -> Outcome:
    """The exit code of a job that has ended."""
    info = client.get_job_info(job_id)
    code = info.driver_exit_code
    if code is None:
        status = str(getattr(info.status, "value", info.status)).lower()
        return Outcome(INTERRUPTED, f"the job was {status}: {_line(info.message or 'no reason')}")
    if code < 0 or code > 128:
        return Outcome(INTERRUPTED, f"the driver was killed (signal {abs(code) % 128})")
    return Outcome(code, None)


def _line(error: object) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
