"""The replicas as the driver sees them: started, watched, buried, moved.

Knows nothing of shards or results. Ray restarts no actor here and repeats no call: a replica
that ends in any way is replaced by a new actor after a pause, and what it held is the driver's
to decide.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError

from pipeline import nodes
from pipeline.placement import Placement
from pipeline.replica import UNITS_IN_FLIGHT, Replica, ReplicaSettings
from pipeline.rows import Prompt
from pipeline.suspects import Death
from pipeline.worker import Worker

LONGEST_PAUSE = 30.0
LOOK_SECONDS = 2.0
"""Time between two looks at the cluster's nodes."""
PASSES_OF_SILENCE = 20
"""A replica that is silent for as many of the longest pass seen hangs."""
FIRST_PASS_FACTOR = 10
"""A first pass may take as many times `hang_seconds`: kernels are compiled in it."""
DOUBT_SECONDS = 20.0
"""How long a replica that cannot be reached may turn out to have been on a lost node; Ray takes
some twelve seconds to call a node dead."""
STARTS_A_NODE = 2
"""Failed starts on a node after which it is avoided."""


NewActor = Callable[[str, ReplicaSettings, dict[str, Any]], Any]
"""A replica's name, settings and options → the handle of its actor."""


def actor_of(replica_class: type[Replica]) -> NewActor:
    """Actors of a class."""

    def new_actor(name: str, settings: ReplicaSettings, options: dict[str, Any]) -> Any:
        actor_class: Any = ray.remote(replica_class)
        return actor_class.options(**options).remote(name, settings)

    return new_actor


class Fleet:
    """All replicas of a run."""

    def __init__(
        self,
        settings: ReplicaSettings,
        placement: Placement,
        on_event: Callable[..., None],
        hang_seconds: float,
        start_seconds: float,
        new_actor: NewActor,
    ) -> None:
        """on_event: as `Ledger.event`."""
        self._settings, self._placement = settings, placement
        self._new_actor = new_actor
        self._event = on_event
        self._hang_seconds, self._start_seconds = hang_seconds, start_seconds
        self.longest_pass = 0.0
        """Seconds, of all passes that replicas told of."""
        self.any_ready = False
        self._any_heard = False
        self._looked_at = 0.0
        self._placed_at = time.monotonic()
        self._failed_on: Counter[str] = Counter()
        self._num_named = 0
        self.workers: list[Worker] = []
        self._resize()

    def __iter__(self) -> Iterator[Worker]:
        return iter(self.workers)

    @property
    def capacity(self) -> int:
        """Rows that are in slots when all replicas are busy."""
        return len(self.workers) * self._settings.slots

    @property
    def facts(self) -> dict[str, Any]:
        """Where replicas go, for the record."""
        resources = self._placement.resources
        return {"device": self._placement.device, "replicas": len(self.workers), **resources}

    @property
    def homeless_seconds(self) -> float:
        """For how long no replica has had a place on any node."""
        return time.monotonic() - self._placed_at

    def tend(self) -> list[tuple[Worker, Exception]]:
        """Start those that are due, move those whose node is going; those that hang or start too
        slowly, for the driver to bury."""
        now = time.monotonic()
        if now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            self._resize()
            self._drain()
        if any(worker.node is not None for worker in self.workers):
            self._placed_at = now
        for worker in self.workers:
            if worker.actor is None and now >= worker.start_at:
                self._start(worker)
        return [(w, error) for w in self.workers if (error := self._stuck(w, now)) is not None]

    def feed(self, worker: Worker, unit: list[Prompt]) -> None:
        """Give a replica a unit of one bucket."""
        if not worker.units:
            worker.heard_at = time.monotonic()
        worker.last_bucket = unit[0].bucket
        decode = worker.actor.decode.options(num_returns="streaming")
        stream = decode.remote(worker.num_fed, unit)
        worker.num_fed += 1
        worker.units[stream] = {prompt.row_id: prompt for prompt in unit}

    def heard(self, worker: Worker, longest_pass: float = 0.0) -> None:
        """A replica gave a sign of life."""
        worker.heard_at, worker.heard = time.monotonic(), True
        self._any_heard = True
        self.longest_pass = max(self.longest_pass, longest_pass)

    def step_up(self, worker: Worker, reference: Any) -> None:
        """A start has come one step further; raises what went wrong in it."""
        if reference is worker.placing:
            worker.node, worker.pid = ray.get(reference)
            worker.placing, worker.loading = None, worker.actor.load.remote()
            worker.heard_at = time.monotonic()
            return
        ray.get(reference)
        worker.loading = None
        self.any_ready = True
        self._failed_on.pop(str(worker.node), None)
        self._event("replica up", replica=worker.name, node=worker.node, pid=worker.pid)

    def bury(self, worker: Worker, error: Exception) -> Death:
        """End what is left of a replica; a new one starts after a pause that grows."""
        in_flight, now = worker.in_flight, time.monotonic()
        unreachable = isinstance(error, ActorUnavailableError)
        death = Death(
            reason=str(getattr(error, "cause", None) or error).strip().splitlines()[-1],
            # Slots are filled in the order of submission, so no other row can have been in one.
            begun=in_flight[: self._settings.slots],
            untouched=in_flight[self._settings.slots :],
            alone=len(in_flight) == 1,
            node=worker.node,
            # One that was killed while it loaded says nothing of what it loaded.
            failed_start=worker.loading is not None and not isinstance(error, RayActorError),
            decide_at=now + DOUBT_SECONDS if unreachable else now,
        )
        if worker.loading is not None and worker.node is not None:
            self._failed_on[worker.node] += 1
        self._event(
            "replica died",
            replica=worker.name,
            node=worker.node,
            error=death.reason,
            rows=[prompt.row_id for prompt in in_flight],
        )
        self._end(worker)
        worker.units.clear()
        worker.deaths += 1
        pause = min(LONGEST_PAUSE, 0.5 * 2 ** (worker.deaths - 1))
        worker.start_at = now + pause
        return death

    def retire(self, worker: Worker) -> None:
        """End an idle replica on a node that is going; a new one starts elsewhere."""
        self._event("replica retired", replica=worker.name, node=worker.node)
        self._end(worker)

    def is_gone(self, node: str | None) -> bool:
        """Whether Ray knows that a node is no more."""
        return node is not None and node not in nodes.alive()

    def end(self) -> None:
        """End all replicas."""
        for worker in self.workers:
            self._end(worker)

    def _start(self, worker: Worker) -> None:
        options = dict(self._placement.resources)
        avoided = self._avoided()
        if avoided:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(avoided))})"}
        options |= {"max_concurrency": UNITS_IN_FLIGHT + 2, "max_restarts": 0}
        worker.num_fed = 0
        worker.actor = self._new_actor(worker.name, self._settings, options)
        worker.placing = worker.actor.whereabouts.remote()

    def _avoided(self) -> set[str]:
        """Nodes where replicas failed to start, unless there are no others."""
        avoided = {node for node, failed in self._failed_on.items() if failed >= STARTS_A_NODE}
        if avoided and nodes.alive().keys() <= avoided:
            self._failed_on.clear()
            return set()
        return avoided

    def _end(self, worker: Worker) -> None:
        if worker.actor is not None:
            with suppress(RayError):
                ray.kill(worker.actor)
        worker.actor = worker.placing = worker.loading = worker.node = worker.pid = None
        worker.draining = worker.heard = False

    def _stuck(self, worker: Worker, now: float) -> Exception | None:
        silence = now - worker.heard_at
        if worker.loading is not None and silence > self._start_seconds:
            return TimeoutError(f"the model was not loaded within {self._start_seconds:g} s")
        if not worker.units:
            return None
        limit = max(self._hang_seconds, PASSES_OF_SILENCE * self.longest_pass)
        if not (worker.heard or (self._any_heard and self._settings.compile == "none")):
            limit *= FIRST_PASS_FACTOR
        if silence <= limit:
            return None
        return TimeoutError(
            f"no pass ended within {silence:.0f} s; the longest before took "
            f"{self.longest_pass:.1f} s"
        )

    def _resize(self) -> None:
        size = self._placement.size(list(nodes.alive().values()))
        if size != len(self.workers) and self.workers:
            self._event("replicas", wanted=size, before=len(self.workers))
        while len(self.workers) < size:
            self.workers.append(Worker(f"replica-{self._num_named}"))
            self._num_named += 1
        spare = len(self.workers) - size
        # Only those that hold nothing go; a lost node's replicas have died by themselves.
        for worker in [w for w in reversed(self.workers) if not w.units][: max(0, spare)]:
            if worker.placing is not None or worker.actor is None:
                self._end(worker)
                self.workers.remove(worker)

    def _drain(self) -> None:
        going = nodes.draining()
        for worker in self.workers:
            if worker.node in going and worker.ready:
                worker.draining = True
                self._event("replica drained", replica=worker.name, node=worker.node)
                worker.actor.drain.remote()
            if worker.draining and not worker.units:
                self.retire(worker)
