"""Joins the Ray cluster that is named, or starts a local one on a machine that can have it.

What a machine lacks for a local Ray is found out first where Ray would crash, wait for minutes or
end the process; what Ray itself says becomes one line. Ray's processes import nothing from the
working directory.
"""

from __future__ import annotations

import logging
import os
import re
import resource
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.job_config import JobConfig

from pipeline.config import RunConfig
from pipeline.import_path import SAFE, named_folders, safe_environment, safe_folders

CONNECT_SECONDS = 10.0
LIMITS = {
    "v": ("the bytes of a process's memory", resource.RLIMIT_AS),
    "f": ("the bytes of a file", resource.RLIMIT_FSIZE),
}
"""By the flag of ulimit: what a shell may limit to less than Ray's processes need."""
SOCKET = "/ray/session_2026-01-01_00-00-00_000000_{pid}/sockets/plasma_store"
"""The longest path of a socket that Ray makes below its folder of temporary files."""
SOCKET_BYTES = 107
"""The longest path that Linux allows for a socket."""
WITHOUT_WAITING = {"RAY_prestart_worker_first_driver": "0"}
"""Ray would answer a session's first driver only once workers are up, and for ever wait for those
that cannot start; replicas have workers of their own."""
LINE = 300
"""Characters of another process's words that are shown."""


class _SafeJobConfig(JobConfig):
    """Ray adds the driver's working directory to what workers search; this takes it out again."""

    def _serialize(self) -> str:
        folders: list[str] = self._py_driver_sys_path
        folders[:] = safe_folders(folders, named_folders())
        serialized: str = super()._serialize()
        return serialized


def connect(config: RunConfig) -> None:
    """Join the cluster of `config.address`, else of `RAY_ADDRESS`, else start a local one.

    Raises ValueError in one line where no cluster answers or none can be started here.
    """
    if ray.is_initialized():
        return
    address = cluster_of(config)
    if address is None:
        _start_local()
    else:
        _join(address)


def cluster_of(config: RunConfig) -> str | None:
    """The address of the cluster that the run joins; None: it starts a local one."""
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    return None if address == "local" else address


def last_words() -> str | None:
    """The last line that a worker process on this machine wrote to stderr; None where none did."""
    try:
        # No public call names the folder of a session's logs.
        from ray._private.worker import global_worker

        node: Any = global_worker.node
        logs = Path(node.get_logs_dir_path())
        # One that dies before it has a log of its own writes to the raylet's.
        files = [*logs.glob("worker-*.err"), *logs.glob("raylet.err")]
        written = [file for file in files if file.stat().st_size]
        newest = max(written, key=lambda file: file.stat().st_mtime)
        lines = newest.read_text(errors="replace").splitlines()
    except (ImportError, AttributeError, OSError, ValueError):
        return None
    return next((line.strip()[-LINE:] for line in reversed(lines) if _is_said(line)), None)


def _is_said(line: str) -> bool:
    """Whether a line of a log is more than Ray's own marks (`:job_id:01000000`) and notes."""
    return bool(line.strip()) and not re.match(r":\w+:|\[\d{4}-\d\d-\d\d .* [IW] ", line)


# A cluster that is there.


def _join(address: str) -> None:
    try:
        _check_answers(_found() if address == "auto" else address)
        options: dict[str, Any] = {}
        if SAFE not in os.environ:  # Ray refuses variables that the job has been given too.
            options["runtime_env"] = {"env_vars": {SAFE: "1"}}
        if not address.startswith("ray://"):  # A client's folder is not searched.
            options["job_config"] = _SafeJobConfig()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except ConnectionError as error:
        raise ValueError(f"no Ray cluster answers at {address}: {error}") from error


def _found() -> str:
    """The address that `auto` stands for. Raises ConnectionError where there is none."""
    # No public call tells it without waiting for its answer.
    from ray._private.services import find_bootstrap_address, find_gcs_addresses

    running: set[str] = find_gcs_addresses()  # type: ignore[no-untyped-call]
    address: str | None = next(iter(running), None) or find_bootstrap_address(None)
    if address is None:
        raise ConnectionError("none is running on this machine; check --address and RAY_ADDRESS")
    return address


def _check_answers(address: str) -> None:
    """ValueError where nothing listens at host:port; Ray itself would retry for minutes and
    then end the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"no Ray cluster answers at {address} ({error}); check --address and RAY_ADDRESS"
        ) from error


# A local one.


def _start_local() -> None:
    _check_temporary_folder()
    with _environment(safe_environment(named_folders()) | WITHOUT_WAITING):
        try:
            ray.init(
                # Ray itself would join a cluster that happens to run on this machine.
                address="local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=False,
                job_config=_SafeJobConfig(),
            )
        except Exception as error:
            raise ValueError(f"Ray cannot start on this machine: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Ray's words in one line, with what to change where that is known."""
    words = " ".join(str(error).split())[:LINE] or type(error).__name__
    home = os.path.expanduser("~")
    if isinstance(error, OSError) and str(error.filename or "").startswith(home):
        words += f"; HOME is {home!r}: set it to a folder that can be written"
    for flag, (what, kind) in LIMITS.items():
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY:
            words += f"; this shell limits {what} to {limit} (ulimit -{flag}): raise it"
    return words


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """Environment variables as the processes that are started inside are to have them."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _check_temporary_folder() -> None:
    """ValueError where Ray cannot have its sockets and logs below its temporary folder."""
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), None)
    folder = os.environ[name] if name else "/tmp"
    shown = f"{name} is {folder!r}" if name else folder
    fix = "set RAY_TMPDIR to a short folder that can be written, such as /tmp"
    if not os.path.isabs(folder):
        raise ValueError(f"{shown}: not an absolute path; {fix}")
    excess = len(os.fsencode(folder + SOCKET.format(pid=os.getpid()))) - SOCKET_BYTES
    if excess > 0:
        raise ValueError(f"{shown}: {excess} bytes too long for Ray's sockets; {fix}")
    try:
        below = os.path.join(folder, "ray")
        os.makedirs(below, exist_ok=True)
        tempfile.TemporaryFile(dir=below).close()
    except OSError as error:
        raise ValueError(
            f"{shown}: Ray can write no file in {below} ({error.strerror}); {fix}"
        ) from error
