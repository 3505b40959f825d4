"""Lets only one driver at a time write to a run, by a file that its owner rewrites every few
seconds.

Object stores offer neither locks nor one clock, so times of two machines are never compared. A
lease is alive while its beat number changes; a driver that wants it watches for longer than a beat
may take. Where two drivers take it at once, both wait and read it again: it belongs to the one
that wrote last. A file that is not a lease is watched for as long, since its owner would rewrite it
at the next beat; then a copy is kept (`driver.json.unreadable`) and the lease starts anew.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from pipeline.output.run_folder import DRIVER, UnreadableError, keep_unreadable, read_lease
from pipeline.output.run_records import LeaseRecord
from pipeline.storage.storage import Storage

BEAT_SECONDS = 5.0
LOCAL_SETTLE_SECONDS = 0.2
LOST_AFTER = 6
"""Beats that may be missed before a lease counts as abandoned."""


class LeaseLostError(Exception):
    """Another driver has taken the lease; this one must not write any more."""


class Lease:
    """The right to write under one output folder."""

    def __init__(self, storage: Storage, beat_seconds: float = BEAT_SECONDS) -> None:
        self._storage = storage
        self._beat_seconds = beat_seconds
        self._id = uuid.uuid4().hex
        self._beat = 0
        self._beaten_at = 0.0
        self._lost: str | None = None
        self._progress: Callable[[], dict[str, Any]] = dict
        self.on_unreadable: Callable[[str, str], None] = lambda error, kept: None
        """Called with the reason and the copy's name where the file was not a lease."""
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._writing = threading.Lock()

    def acquire(self) -> None:
        """Take the lease, and renew it in a thread from then on.

        Waits for up to `LOST_AFTER` beats where the last owner may be alive. Raises ValueError
        where it is.
        """
        read_at = self._wait_for_silence()
        self._write()
        settle = LOCAL_SETTLE_SECONDS if self._storage.is_local else self._beat_seconds / 2
        if not self._storage.is_local and time.monotonic() - read_at > settle / 2:
            # The store was slow to write: another driver may have started meanwhile, and notices
            # at its next beat.
            settle = 1.5 * self._beat_seconds
        # A driver that found the lease free at the same moment has written by then.
        time.sleep(settle)
        other = self._others()
        if other is not None:
            raise ValueError(_held(self._storage, other))
        self._thread = threading.Thread(target=self._keep_beating, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises LeaseLostError unless the lease is certainly ours. Call before every write."""
        if self._lost is None and time.monotonic() - self._beaten_at > self._longest_silence / 2:
            # The process or the storage paused, perhaps long enough for another driver.
            self._renew()
        if self._lost is not None:
            raise LeaseLostError(self._lost)

    def publish(self, progress: Callable[[], dict[str, Any]]) -> None:
        """Set the function that gives the progress, which each beat writes into the lease."""
        self._progress = progress

    def release(self) -> None:
        """Stop renewing and mark the lease as released, unless it is lost."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        if self._lost is None and self._others() is None:
            self._write(released=True)

    @property
    def _longest_silence(self) -> float:
        return LOST_AFTER * self._beat_seconds

    def _wait_for_silence(self) -> float:
        """Wait until the lease is free; the monotonic time before it was last read."""
        read_at = time.monotonic()
        seen = now = self._read()
        if not self._may_be_held(seen):
            return read_at
        since = time.monotonic()
        while time.monotonic() - since < self._longest_silence:
            time.sleep(self._beat_seconds / 4)
            read_at = time.monotonic()
            now = self._read()
            if now is None or (isinstance(now, LeaseRecord) and now.released):
                return read_at
            if isinstance(now, LeaseRecord) and _beat_of(now) != _beat_of(seen):
                raise ValueError(_held(self._storage, now))
        if isinstance(now, UnreadableError):
            self._replace_unreadable(now)
        return read_at

    @staticmethod
    def _may_be_held(seen: LeaseRecord | UnreadableError | None) -> bool:
        if isinstance(seen, LeaseRecord):
            return not seen.released and not is_dead(seen)
        return seen is not None

    def _keep_beating(self) -> None:
        while not self._over.wait(self._beat_seconds):
            try:
                self._renew()
            except OSError:
                continue  # `check` finds out if this lasts.
            if self._lost is not None:
                return

    def _renew(self) -> None:
        with self._writing:
            other = self._others()
            if other is not None:
                self._lost = _held(self._storage, other)
            else:
                self._write()

    def _write(self, released: bool = False) -> None:
        self._beat += 1
        record = LeaseRecord(
            id=self._id,
            **_whereabouts(),
            beat=self._beat,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            released=released,
            progress=self._progress(),
        )
        self._storage.write(DRIVER, json.dumps(asdict(record)).encode())
        self._beaten_at = time.monotonic()

    def _read(self) -> LeaseRecord | UnreadableError | None:
        """The lease; the error where the file is not a lease, None where there is no file."""
        try:
            return read_lease(self._storage)
        except UnreadableError as error:
            return error

    def _others(self) -> LeaseRecord | None:
        """Another driver's lease, where one has written the file; else None."""
        seen = self._read()
        if isinstance(seen, UnreadableError):
            self._replace_unreadable(seen)
            return None
        return seen if seen is not None and seen.id != self._id else None

    def _replace_unreadable(self, error: UnreadableError) -> None:
        self.on_unreadable(str(error), keep_unreadable(self._storage, DRIVER))


def _beat_of(seen: LeaseRecord | UnreadableError | None) -> tuple[str, int] | None:
    return (seen.id, seen.beat) if isinstance(seen, LeaseRecord) else None


def _held(storage: Storage, other: LeaseRecord) -> str:
    return (
        f"{storage.uri}: another driver writes it (process {other.pid} on {other.host}); "
        "wait for it, stop it, or name another --output"
    )


def _whereabouts() -> dict[str, Any]:
    process = psutil.Process()
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": process.pid,
        "process_began": process.create_time(),
    }


def _machine() -> str:
    """Identifies this boot of this machine and this process namespace."""
    parts = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            link = os.path.islink(path)
            parts.append(os.readlink(path) if link else Path(path).read_text().strip())
        except OSError:
            parts.append("?")
    return "/".join(parts)


def is_dead(lease: LeaseRecord) -> bool:
    """Whether the owner has certainly ended: it ran on this machine and its process is gone."""
    if lease.machine != _machine():
        return False
    try:
        process = psutil.Process(lease.pid)
        gone: bool = (
            process.create_time() != lease.process_began or process.status() == psutil.STATUS_ZOMBIE
        )
        return gone
    except psutil.NoSuchProcess:
        return True
