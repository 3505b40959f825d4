"""Replicas whose processes serve one run after another: starting one, with torch in it, takes
longer than most of the runs that tests make."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import ray

from pipeline.replicas.fleet import Actors
from pipeline.replicas.replica import Replica, ReplicaSettings


class Host:
    """A process that holds one replica at a time; a run's calls are passed on to it."""

    def __init__(self, name: str, settings: ReplicaSettings) -> None:
        self.begin(name, settings)

    def begin(self, name: str, settings: ReplicaSettings) -> None:
        """Make the replica of a run, which loads its model as any other."""
        self._replica: Any = Replica(name, settings)

    def is_idle(self) -> bool:
        """Whether the last run's replica holds no prompts, so that its thread does nothing."""
        return not self._replica._prompts

    def location(self) -> tuple[str, int]:
        return self._replica.location()

    def load(self) -> Any:
        return self._replica.load()

    def drain(self) -> None:
        self._replica.drain()

    def submit(self, *args: Any) -> None:
        self._replica.submit(*args)

    def collect(self) -> Any:
        return self._replica.collect()


class KeptActors(Actors):
    """Keeps the processes of replicas that a run ends while they are idle for the next run.

    A run with faults or with servers of its own gets new processes: both change a process. A kept
    one takes no CPUs of Ray's, so that it is in no other run's way.
    """

    def __init__(self) -> None:
        super().__init__()
        self._cluster: str | None = None
        self._idle: list[Any] = []
        self._hosts: list[Any] = []

    def start(self, name: str, settings: ReplicaSettings, options: dict[str, Any]) -> Any:
        if settings.faults or settings.servers:
            return super().start(name, settings, options)
        self._forget_others()
        if self._idle:
            host = self._idle.pop()
            ray.get(host.begin.remote(name, settings))  # Calls may overtake each other.
            return host
        made: Any = ray.remote(Host).options(**{**options, "num_cpus": 0})
        self._hosts.append(made.remote(name, settings))
        return self._hosts[-1]

    def kill(self, actor: Any) -> None:
        if actor in self._hosts and _answers_idle(actor):
            self._idle.append(actor)
        else:
            super().kill(actor)

    def trim(self, most: int) -> None:
        """End processes that are kept, all but some."""
        self._forget_others()
        while len(self._idle) > most:
            super().kill(self._idle.pop())

    def _forget_others(self) -> None:
        """Processes have ended with their cluster."""
        cluster = ray.get_runtime_context().get_node_id() if ray.is_initialized() else None
        if cluster != self._cluster:
            self._cluster, self._idle, self._hosts = cluster, [], []


def _answers_idle(host: Any) -> bool:
    """Whether a process is up and its replica holds no prompts."""
    try:
        return bool(ray.get(host.is_idle.remote(), timeout=10))
    except ray.exceptions.RayError:
        return False


KEPT = KeptActors()
KEPT_BETWEEN_MODULES = 2
"""Processes; more would take memory while tests need none."""


@contextmanager
def keeping() -> Iterator[None]:
    """All runs inside share processes, but those that bring actors of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.run.Actors", lambda: KEPT)
        yield
    KEPT.trim(KEPT_BETWEEN_MODULES)
