"""Runs the driver's loop: read, feed, collect, store.

The driver is the only writer of the output; replicas return rows. Progress goes to a callback.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayError

from pipeline.cluster import last_words
from pipeline.config import RunConfig
from pipeline.input.buckets import Buckets
from pipeline.input.reader import Reader
from pipeline.observe.eta import Progress, ProgressTracker
from pipeline.observe.events import (
    CANVASES,
    DRIVER_FINISHED,
    DRIVER_STARTED,
    DRIVER_STOPPED,
    PASS_SECONDS,
    note,
    record_rows,
)
from pipeline.observe.metrics import RunMetrics
from pipeline.output.ledger import Ledger
from pipeline.output.session_facts import differences, environments
from pipeline.replicas.deaths import Limits, RunStoppedError, Suspects, quarantined
from pipeline.replicas.fleet import Fleet, room_error
from pipeline.replicas.handle import ReplicaHandle
from pipeline.replicas.replica import SLOTS_AHEAD
from pipeline.rows import Prompt, Report, reported_schema, results_batch

TICK_SECONDS = 0.5
PROGRESS_SECONDS = 0.1
"""Time between two updates of the progress."""
FETCH_SECONDS = 60.0
"""A replica whose report cannot be fetched within this time counts as dead."""


class Driver:
    """One run over one Ray cluster."""

    def __init__(
        self,
        config: RunConfig,
        ledger: Ledger,
        reader: Reader,
        fleet: Fleet,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        self._config, self._ledger, self._reader = config, ledger, reader
        self.fleet = fleet
        self._on_progress = on_progress
        self._owed = deque(ledger.owed())
        self._buckets = Buckets(config.slots)
        self._suspects = Suspects(config.max_attempts)
        self._stopping = False
        self._limits = Limits(config.max_restarts, config.start_seconds)
        owed_rows = sum(map(ledger.plan.num_rows_of, self._owed))
        self._tracker = ProgressTracker(ledger.plan.num_rows, ledger.plan.num_rows - owed_rows)
        self._metrics = RunMetrics()
        self._environments = environments(ledger.earlier)
        """What replicas of this run have computed on."""
        self._flushed_at = time.monotonic()
        self._published_at = 0.0

    def stop(self) -> None:
        """Ask the loop to end: no more prompts are fed, finished rows are stored."""
        self._stopping = True

    def run(self) -> None:
        """Decode every row that storage does not hold yet.

        Raises RunStoppedError where it was asked to stop or replicas keep dying; finished rows are
        on storage then.
        """
        self._ledger.event(DRIVER_STARTED, owed_shards=len(self._owed), **self.fleet.facts)
        try:
            while not self._stopping:
                self._read_ahead()
                self._store()
                if not self._owed and not self._ledger.shards:
                    self._publish()
                    self._ledger.event(DRIVER_FINISHED, **self._work_done)
                    return
                for replica, error in self.fleet.poll():
                    self._remove_dead(replica, error)
                self._decide()
                self._feed()
                self._collect()
            self._publish()
            raise RunStoppedError("stopped on request")
        except RunStoppedError:
            self._ledger.event(DRIVER_STOPPED, **self._work_done)
            raise
        finally:
            self._metrics.flush()
            self._reader.close()
            self.fleet.end()

    @property
    def _work_done(self) -> dict[str, float]:
        """What the last event of this driver records of its replicas."""
        seconds = round(self.fleet.pass_seconds, 3)
        return {CANVASES: self.fleet.num_canvases, PASS_SECONDS: seconds}

    # Reading.

    def _read_ahead(self) -> None:
        """Open shards while there is room for more."""
        while self._wants_more():
            found = self._reader.ahead(self._owed[0])
            if found is None:
                return
            self._owed.popleft()
            shard = found.shard
            self._ledger.open(shard)
            self._tracker.shard_read(shard.num_rows, shard.num_done, found.prompts)
            self._take(shard.number, found.failed)
            self._buckets.add(found.prompts)

    def _wants_more(self) -> bool:
        """Whether shards are left, the window has room, and the prompts that wait are too few to
        fill every replica."""
        enough = self.fleet.capacity * SLOTS_AHEAD + self._config.slots
        room = len(self._ledger.shards) < self._config.lookahead_shards
        return bool(self._owed) and room and len(self._buckets) < enough

    # Feeding.

    def _feed(self) -> None:
        """Give every ready replica its next batches, one each and then more, so that near the end
        of a run no replica holds prompts for which another has free slots.

        Rows in flight count, not batches: a batch's last row may take as long as many others, and
        the other slots need prompts meanwhile.
        """
        for enough in (1, SLOTS_AHEAD * self._config.slots):
            for replica in self.fleet:
                if replica.ready and len(replica.in_flight) < enough:
                    batch = self._next_batch(replica)
                    if batch:
                        self.fleet.feed(replica, batch)

    def _next_batch(self, replica: ReplicaHandle) -> list[Prompt]:
        """The batch to give next. Suspects go to a replica that holds no other row, and while it
        has them it gets nothing else."""
        if any(prompt.suspect for prompt in replica.in_flight.values()):
            return []
        if self._suspects:
            return [] if replica.in_flight else self._suspects.take()
        # While more prompts come a bucket may still fill a batch.
        return self._buckets.take(replica.last_bucket, partial=not self._wants_more())

    # Collecting.

    def _collect(self) -> None:
        """Wait a moment for reports, steps of starts, and deaths; handle them."""
        owners = {ref: replica for replica in self.fleet for ref in replica.references}
        if not owners:
            time.sleep(TICK_SECONDS / 10)
        else:
            for reference in self._ready(list(owners)):
                self._advance(owners[reference], reference)
        now = time.monotonic()
        if now - self._published_at >= PROGRESS_SECONDS:
            self._published_at = now
            self._publish()

    def _ready(self, references: list[Any]) -> list[Any]:
        """All references that are ready now, else the first to be within a tick."""
        ready, _ = ray.wait(references, num_returns=len(references), timeout=0, fetch_local=False)
        if not ready:
            ready, _ = ray.wait(references, num_returns=1, timeout=TICK_SECONDS, fetch_local=False)
        return ready

    def _advance(self, replica: ReplicaHandle, reference: Any) -> None:
        try:
            if reference is replica.collecting:
                self._take_report(replica, ray.get(reference, timeout=FETCH_SECONDS))
                self.fleet.collect(replica)
            elif reference is replica.scheduling or reference is replica.loading:
                self._note_environment(replica, self.fleet.advance_start(replica, reference))
        except RayError as error:
            self._stop_without_room(replica, error)
            self._remove_dead(replica, error)

    def _note_environment(self, replica: ReplicaHandle, found: dict[str, Any] | None) -> None:
        """Warn where a replica computes on something else than those before it in this run."""
        if found is None or found in self._environments:
            return
        if self._environments:
            differing = "; ".join(differences(self._environments[-1], found))
            note(
                f"{replica.name} does not compute as replicas of this run did before ({differing}):"
                " rows may differ from theirs by rounding"
            )
        self._environments.append(found)

    def _stop_without_room(self, replica: ReplicaHandle, error: Exception) -> None:
        """RunStoppedError where a replica has no memory for one slot. One that replaces a dead one
        is tried again, since that one's memory may not have been free yet."""
        lacking = room_error(error)
        if lacking is not None and (replica.deaths == 0 or replica.lacked_room):
            raise RunStoppedError(f"{replica.name}: {lacking}")

    def _take_report(self, replica: ReplicaHandle, report: Report) -> None:
        for text in report.events:
            self._ledger.event("replica notice", replica=replica.name, text=text)
        self._return([replica.in_flight.pop(key) for key in report.returned])
        canvases = self._config.decoding.canvases
        self._return(
            [replica.in_flight.pop(key).moved(canvases, spent) for key, spent in report.moved]
        )
        finished = self.fleet.received(replica, report)
        if finished:
            self._take_rows(finished, report.rows())
        if finished or report.moved:
            self._limits.row_finished()

    def _publish(self) -> None:
        """Publish the progress: in the lease's file, as metrics, and to the caller."""
        progress = self._tracker.progress({replica.name: replica.state for replica in self.fleet})
        self._ledger.lease.publish(progress.to_json)
        num_waiting = len(self._buckets) + len(self._suspects)
        self._metrics.tick(progress.num_rows - progress.num_done, num_waiting, self.fleet)
        self._on_progress(progress)

    def _take_rows(self, prompts: list[Prompt], results: pa.RecordBatch) -> None:
        """Store the rows of a report, which may come from several shards."""
        by_shard: dict[int, list[int]] = {}
        for position, prompt in enumerate(prompts):
            by_shard.setdefault(prompt.shard, []).append(position)
        for shard, positions in by_shard.items():
            rows = results if len(by_shard) == 1 else results.take(pa.array(positions, pa.int64()))
            place = self._ledger.plan.layout.position
            finished = [prompts[position] for position in positions]
            self._take(shard, rows, [place(prompt.index, prompt.sample) for prompt in finished])

    def _take(self, shard: int, results: pa.RecordBatch, places: list[int] | None = None) -> None:
        new = self._ledger.add(shard, results, places)
        self._tracker.rows_done(new)
        self._metrics.rows(new)
        record_rows(shard, new)

    def _remove_dead(self, replica: ReplicaHandle, error: Exception) -> None:
        """Remove a dead replica. Rows that had no slot go back to the buckets at once."""
        if replica.actor is None:
            return
        death = self.fleet.remove_dead(replica, error)
        self._metrics.died(replica.name)
        self._return(death.untouched)
        self._suspects.died(death)

    def _decide(self) -> None:
        """Decide which rows are suspects, free or quarantined after deaths, and whether to stop."""
        verdict = self._suspects.decide(time.monotonic(), self.fleet.is_gone)
        for node in verdict.lost_nodes:
            self._ledger.event("node lost", node=node)
        self._return(verdict.freed)
        for prompt, reason in verdict.given_up:
            self._quarantine(prompt, reason)
        for death in verdict.blamed:
            self._limits.died(death, self.fleet.any_ready)
        self._limits.unscheduled(self.fleet.unscheduled_seconds, last_words)

    def _return(self, prompts: list[Prompt]) -> None:
        """Put prompts back where they came from."""
        self._suspects.put_back([prompt for prompt in prompts if prompt.suspect])
        self._buckets.put_back([prompt for prompt in prompts if not prompt.suspect])

    def _quarantine(self, prompt: Prompt, reason: str) -> None:
        result = quarantined(prompt, reason)
        self._ledger.event("row quarantined", row=prompt.row_id, error=result.error)
        schema = reported_schema(self._config.columns)
        self._take(prompt.shard, results_batch([result], schema))

    # Storing.

    def _store(self) -> None:
        """Commit shards that are complete; flush the others every few seconds."""
        self._ledger.commit_complete()
        if time.monotonic() - self._flushed_at >= self._config.flush_seconds:
            self._ledger.flush()
            self._flushed_at = time.monotonic()
