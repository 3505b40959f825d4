"""Starts, watches, replaces and moves the replicas of a run.

Ray restarts no actor here and repeats no call: a replica that ends for any reason is replaced by
a new actor after a pause, and the driver decides what happens to the rows that it held.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError

from pipeline.observe.events import (
    ENVIRONMENT,
    REPLICA_DIED,
    REPLICA_RETIRED,
    REPLICA_UP,
    REPLICAS,
)
from pipeline.replicas import nodes
from pipeline.replicas.deaths import Death
from pipeline.replicas.handle import ReplicaHandle
from pipeline.replicas.pass_loop import NoRoomError
from pipeline.replicas.placement import Placement
from pipeline.replicas.replica import Replica, ReplicaSettings
from pipeline.rows import Phase, Prompt, Report

LONGEST_PAUSE = 30.0
NODES_SECONDS = 2.0
"""Time between two requests for the list of the cluster's nodes."""
PASSES_OF_SILENCE = 20
"""A replica hangs when no pass ends within this many times the longest pass seen, and within
`hang_seconds`."""
FIRST_PASS_FACTOR = 10
"""Multiplier on `hang_seconds` for a pass that may compile kernels, and for all until one has
ended."""
DOUBT_SECONDS = 20.0
"""How long to wait, after a replica became unreachable, for Ray to say that its node is dead; Ray
takes about twelve seconds."""
CALLS_AT_A_TIME = 4
"""Concurrent calls of a replica: `collect`, `submit`, `drain`, and one to spare."""
STARTS_A_NODE = 2
"""Failed starts on a node after which it is avoided."""


class NotPreparedError(TimeoutError):
    """A replica did not get ready for a bucket in time; no row of it was in a slot."""


class Actors:
    """Starts and kills the Ray actors of replicas."""

    def __init__(self, replica_class: type[Replica] = Replica) -> None:
        self._replica_class = replica_class

    def start(self, name: str, settings: ReplicaSettings, options: dict[str, Any]) -> Any:
        """The handle of a new actor with these options of Ray's."""
        actor_class: Any = ray.remote(self._replica_class)
        return actor_class.options(**options).remote(name, settings)

    def kill(self, actor: Any) -> None:
        """End an actor at once; nothing happens where it is dead."""
        with suppress(RayError):
            ray.kill(actor)


class Fleet:
    """All replicas of a run."""

    def __init__(
        self,
        settings: ReplicaSettings,
        placement: Placement,
        on_event: Callable[..., None],
        hang_seconds: float,
        start_seconds: float,
        actors: Actors,
    ) -> None:
        """on_event: as `Ledger.event`."""
        self._settings, self._placement = settings, placement
        self._actors = actors
        self.on_event = on_event
        self._hang_seconds, self._start_seconds = hang_seconds, start_seconds
        self.longest_pass = 0.0
        """Seconds, over all passes that replicas reported."""
        self.num_canvases = 0
        """Canvases that replicas reported as computed, those that have died since too."""
        self.pass_seconds = 0.0
        """Time in passes, summed over these replicas."""
        self.any_ready = False
        self._any_passed = False
        self._nodes_read_at = 0.0
        self._placed_at = time.monotonic()
        self._failed_on: Counter[str] = Counter()
        self._num_named = 0
        self.replicas: list[ReplicaHandle] = []
        self._resize()

    def __iter__(self) -> Iterator[ReplicaHandle]:
        return iter(self.replicas)

    @property
    def capacity(self) -> int:
        """Slots of all replicas together."""
        return len(self.replicas) * self._settings.slots

    @property
    def facts(self) -> dict[str, Any]:
        """Device, replicas and the resources of one, for the event `driver started`."""
        resources = self._placement.resources
        return {"device": self._placement.device, "replicas": len(self.replicas), **resources}

    @property
    def unscheduled_seconds(self) -> float:
        """For how long no replica has been on any node."""
        return time.monotonic() - self._placed_at

    def poll(self) -> list[tuple[ReplicaHandle, Exception]]:
        """Start replicas whose pause is over, and drain those whose node will be taken away.

        Returns those that hang or start too slowly, with the reason, for `remove_dead`.
        """
        now = time.monotonic()
        if now - self._nodes_read_at >= NODES_SECONDS:
            self._nodes_read_at = now
            self._resize()
            self._drain()
        if any(replica.node is not None for replica in self.replicas):
            self._placed_at = now
        for replica in self.replicas:
            if replica.actor is None and now >= replica.start_at:
                self._start(replica)
        return [(w, error) for w in self.replicas if (error := self._stuck(w, now)) is not None]

    def feed(self, replica: ReplicaHandle, batch: list[Prompt]) -> None:
        """Give a replica a batch of one bucket."""
        if not replica.in_flight:
            replica.last_heartbeat = time.monotonic()
        number = replica.num_batches
        replica.last_bucket = batch[0].bucket
        replica.actor.submit.remote(number, batch)
        replica.num_batches += 1
        replica.in_flight.update(((number, index), p) for index, p in enumerate(batch))
        if replica.collecting is None:
            replica.collecting = replica.actor.collect.remote()

    def received(self, replica: ReplicaHandle, report: Report) -> list[Prompt]:
        """Take in a report: the prompts of its finished rows, in its order."""
        if report.num_passes > replica.num_passes:
            replica.num_passes, replica.last_heartbeat = report.num_passes, time.monotonic()
            self._any_passed = True
            self.longest_pass = max(self.longest_pass, report.longest_pass)
            self.num_canvases += report.num_canvases - replica.num_canvases
            replica.num_canvases = report.num_canvases
            self.pass_seconds += report.pass_seconds - replica.pass_seconds
            replica.pass_seconds = report.pass_seconds
        if report.phase is not replica.phase:
            replica.phase, replica.last_heartbeat = report.phase, time.monotonic()
        finished = [replica.in_flight.pop(key) for key in report.finished]
        if finished or report.moved:
            replica.deaths, replica.lacked_room = 0, False
        return finished

    def collect(self, replica: ReplicaHandle) -> None:
        """Ask a replica for its next report, if it holds prompts."""
        replica.collecting = replica.actor.collect.remote() if replica.in_flight else None

    def begin_starts(self) -> None:
        """Start replicas and the loading of their models as far as that goes without waiting; what
        goes wrong in it is left to `advance_start`."""
        self.poll()
        for replica in self.replicas:
            if replica.scheduling is None:
                continue
            with suppress(RayError):
                if ray.wait([replica.scheduling], timeout=0, fetch_local=False)[0]:
                    self.advance_start(replica, replica.scheduling)

    def advance_start(self, replica: ReplicaHandle, reference: Any) -> dict[str, Any] | None:
        """Go one step on in a replica's start; raises what went wrong in it.

        Returns what its results depend on beside the settings (`Replica.load`), once it is up.
        """
        if reference is replica.scheduling:
            replica.node, replica.pid = ray.get(reference)
            replica.scheduling, replica.loading = None, replica.actor.load.remote()
            replica.last_heartbeat = time.monotonic()
            return None
        found: dict[str, Any] | None = ray.get(reference)
        replica.loading = None
        self.any_ready = True
        self._failed_on.pop(str(replica.node), None)
        facts = {} if found is None else {ENVIRONMENT: found}
        name, node, pid = replica.name, replica.node, replica.pid
        self.on_event(REPLICA_UP, replica=name, node=node, pid=pid, **facts)
        return found

    def remove_dead(self, replica: ReplicaHandle, error: Exception) -> Death:
        """End what is left of a replica; a new one starts after a pause, which doubles with each
        death in a row."""
        in_flight, now = list(replica.in_flight.values()), time.monotonic()
        replica.lacked_room = room_error(error) is not None
        # No row is to blame for what happens before it has a slot.
        num_begun = self._settings.slots
        if replica.lacked_room or isinstance(error, NotPreparedError):
            num_begun = 0
        unreachable = isinstance(error, ActorUnavailableError)
        death = Death(
            reason=str(getattr(error, "cause", None) or error).strip().splitlines()[-1],
            # Slots are filled in the order of submission. Rows that had finished and were not
            # reported yet stand first here, and as many rows behind the cut were in slots.
            begun=in_flight[:num_begun],
            untouched=in_flight[num_begun:],
            alone=len({prompt.row for prompt in in_flight}) == 1 and num_begun > 0,
            node=replica.node,
            failed_start=_is_failed_start(replica, error),
            decide_at=now + DOUBT_SECONDS if unreachable else now,
        )
        if replica.loading is not None and replica.node is not None:
            self._failed_on[replica.node] += 1
        self.on_event(
            REPLICA_DIED,
            replica=replica.name,
            node=replica.node,
            error=death.reason,
            rows=[prompt.row_id for prompt in in_flight],
        )
        self._end(replica)
        replica.in_flight.clear()
        replica.deaths += 1
        pause = min(LONGEST_PAUSE, 0.5 * 2 ** (replica.deaths - 1))
        replica.start_at = now + pause
        return death

    def retire(self, replica: ReplicaHandle) -> None:
        """End an idle replica on a node that will be taken away; a new one starts elsewhere."""
        self.on_event(REPLICA_RETIRED, replica=replica.name, node=replica.node)
        self._end(replica)

    def is_gone(self, node: str | None) -> bool:
        """Whether Ray says that a node is dead."""
        return node is not None and node not in nodes.alive()

    def end(self) -> None:
        """End all replicas."""
        for replica in self.replicas:
            self._end(replica)

    def _start(self, replica: ReplicaHandle) -> None:
        options = dict(self._placement.resources)
        avoided = self._avoided()
        if avoided:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(avoided))})"}
        options |= {"max_concurrency": CALLS_AT_A_TIME, "max_restarts": 0}
        replica.num_batches = replica.num_passes = replica.num_canvases = 0
        replica.pass_seconds = 0.0
        replica.phase = Phase.DECODING
        replica.actor = self._actors.start(replica.name, self._settings, options)
        replica.scheduling = replica.actor.location.remote()

    def _avoided(self) -> set[str]:
        """Nodes where replicas failed to start, unless there are no others."""
        avoided = {node for node, failed in self._failed_on.items() if failed >= STARTS_A_NODE}
        if avoided and nodes.alive().keys() <= avoided:
            self._failed_on.clear()
            return set()
        return avoided

    def _end(self, replica: ReplicaHandle) -> None:
        if replica.actor is not None:
            self._actors.kill(replica.actor)
        replica.actor = replica.scheduling = replica.loading = replica.collecting = None
        replica.node = replica.pid = None
        replica.draining = False

    def _stuck(self, replica: ReplicaHandle, now: float) -> Exception | None:
        silence = now - replica.last_heartbeat
        if replica.loading is not None and silence > self._start_seconds:
            return TimeoutError(f"the model was not loaded within {self._start_seconds:g} s")
        if not replica.in_flight:
            return None
        if replica.phase is Phase.PREPARING:
            if silence <= self._start_seconds:
                return None
            return NotPreparedError(
                f"the slots of a bucket were not prepared within {self._start_seconds:g} s"
            )
        limit = max(self._hang_seconds, PASSES_OF_SILENCE * self.longest_pass)
        if replica.phase is Phase.COMPILING or not self._any_passed:
            limit *= FIRST_PASS_FACTOR
        if silence <= limit:
            return None
        return TimeoutError(
            f"no pass ended within {silence:.0f} s; the longest before took "
            f"{self.longest_pass:.1f} s"
        )

    def _resize(self) -> None:
        size = self._placement.size(list(nodes.alive().values()))
        if size != len(self.replicas) and self.replicas:
            self.on_event(REPLICAS, wanted=size, before=len(self.replicas))
        while len(self.replicas) < size:
            self.replicas.append(ReplicaHandle(f"replica-{self._num_named}"))
            self._num_named += 1
        spare = len(self.replicas) - size
        # Only those that hold nothing go; a lost node's replicas have died by themselves.
        for replica in [w for w in reversed(self.replicas) if not w.in_flight][: max(0, spare)]:
            if replica.scheduling is not None or replica.actor is None:
                self._end(replica)
                self.replicas.remove(replica)

    def _drain(self) -> None:
        going = nodes.draining()
        for replica in self.replicas:
            if replica.node in going and replica.ready:
                replica.draining = True
                self.on_event("replica drained", replica=replica.name, node=replica.node)
                replica.actor.drain.remote()
            if replica.draining and not replica.in_flight:
                self.retire(replica)


def room_error(error: Exception) -> NoRoomError | None:
    """The NoRoomError that a replica raised, whatever Ray wrapped around it."""
    cause = getattr(error, "cause", error)
    return cause if isinstance(cause, NoRoomError) else None


def _is_failed_start(replica: ReplicaHandle, error: Exception) -> bool:
    """Whether the model could not be loaded, or the actor not be made, which the next try would
    meet again. One that was killed meanwhile says nothing of what it loaded."""
    if isinstance(error, RayActorError):
        return replica.scheduling is not None and error.actor_init_failed
    return replica.loading is not None
