"""A run as a job of Ray's job server: submitted, followed, and the driver's own exit code.

Ray keeps every submission's id for good, so a run's ids are its name and a number that counts up.
A name belongs to one output: while its job is at work there is nothing to submit. Prints nothing
and knows no command line.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

OK, INTERRUPTED = 0, 75
PATIENCE_SECONDS = 60.0
"""How long a job server that has answered before may be silent."""
BEGIN_SECONDS = 180.0
"""How long a cluster that has just begun may take until it takes jobs."""
RETRY_SECONDS = 1.0
LOST = (
    *(requests.RequestException, aiohttp.ClientError, OSError, RuntimeError),
    AuthenticationError,
)
"""What the job client raises where the server does not answer, or not as it should."""
TOKEN = "set RAY_AUTH_MODE=token, and the token in RAY_AUTH_TOKEN or ~/.ray/auth_token"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended."""

    code: int
    """The driver's own; 75 where it has none, as it was stopped or lost."""
    reason: str | None
    """Why there is none."""


def connect(address: str) -> JobSubmissionClient:
    """A client of the job server at http://HOST:PORT.

    Raises ValueError in one line where there is none or it wants another token.
    """
    url = urlsplit(address)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError(f"{address!r} is no address of a job server; http://HEAD:8265 is due")
    if url.username or url.password:
        raise ValueError(f"the address carries a password; leave it out and {TOKEN}")
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        # The client itself would wait for as long as the network likes.
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
    """Set an environment variable for a moment: Ray lets some win over an address that is given,
    this one over all others."""
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
    """What the job client raises, as a ValueError of one line."""
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
    """A readable name that is the output's own."""
    output = output.rstrip("/")
    slug = re.sub(r"[^a-z0-9]+", "-", output.rpartition("/")[2].lower()).strip("-")[:40]
    return f"lrd-{slug or 'run'}-{hashlib.sha256(output.encode()).hexdigest()[:8]}"


def submit(
    client: JobSubmissionClient, name: str, entrypoint: str, runtime_env: dict[str, Any]
) -> tuple[str, bool]:
    """Submit a run, or find its job that is at work: its id, and whether it is new.

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
            # Someone else was faster, and theirs is at work now; or the cluster has just begun.
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
    """Hand on a job's log until the job has ended, over lost connections.

    Raises what the client raises where the server is silent for longer than `patience` seconds.
    """
    seen, heard_at = 0, time.monotonic()

    def on_chunk(place: int, text: str) -> None:
        # A connection that is made anew begins with the log's first line.
        nonlocal seen, heard_at
        heard_at = time.monotonic()
        if place + len(text) > seen:
            on_text(text[max(0, seen - place) :])
            seen = place + len(text)

    while True:
        try:
            asyncio.run(_tail(client, job_id, on_chunk))
            if client.get_job_status(job_id).is_terminal():
                return
            heard_at = time.monotonic()
        except (AuthenticationError, BrokenPipeError):
            # Of the token, or of whoever reads our output: the server is not to blame.
            raise
        except LOST:
            if time.monotonic() - heard_at > patience:
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
    """How a job that is over ended."""
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
