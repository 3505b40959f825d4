"""The loop: plan, feed, collect, commit. Holds the only `ray.wait`.

Knows no command line and prints nothing: progress goes to a callback. The driver is the only
writer of the output; replicas return rows.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayError

from pipeline import parquet
from pipeline.buckets import Buckets
from pipeline.config import RunConfig
from pipeline.fleet import Fleet
from pipeline.ledger import Ledger
from pipeline.limits import Limits, RunStoppedError
from pipeline.log import record_rows
from pipeline.metrics import RunMetrics
from pipeline.progress import Meter, Progress
from pipeline.reader import Reader
from pipeline.replica import SLOTS_AHEAD, UNITS_IN_FLIGHT
from pipeline.rows import HandedBack, Notice, Prompt, Pulse
from pipeline.suspects import Suspects, set_aside
from pipeline.worker import Worker

TICK_SECONDS = 0.5
FETCH_SECONDS = 60.0
"""A result that cannot be fetched for as long counts as its replica's death."""


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
        owed_rows = sum(ledger.plan.files[number].num_rows for number in self._owed)
        self._meter = Meter(ledger.plan.num_rows, ledger.plan.num_rows - owed_rows)
        self._metrics = RunMetrics()
        self._flushed_at = time.monotonic()

    def stop(self) -> None:
        """Ask the loop to end: nothing more is fed, what is finished is kept."""
        self._stopping = True

    def run(self) -> None:
        """Decode what is owed.

        Raises RunStoppedError where it was asked to stop or replicas keep dying; finished rows are
        on storage then.
        """
        self._ledger.event("driver started", owed_shards=len(self._owed), **self.fleet.facts)
        try:
            while not self._stopping:
                self._read_ahead()
                self._store()
                if not self._owed and not self._ledger.shards:
                    self._ledger.event("driver finished")
                    return
                for worker, error in self.fleet.tend():
                    self._bury(worker, error)
                self._decide()
                self._feed()
                self._collect()
            self._ledger.event("driver stopped")
            raise RunStoppedError("stopped on request")
        finally:
            self._metrics.flush()
            self._reader.close()
            self.fleet.end()

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
            self._meter.shard_read(shard.prompts.num_rows, shard.num_done, found.prompts)
            self._take(shard.number, found.failed)
            self._buckets.add(found.prompts)

    def _wants_more(self) -> bool:
        """Whether shards are left, the window has room, and there are not units enough for every
        worker."""
        enough = self.fleet.capacity * SLOTS_AHEAD + self._config.slots
        room = len(self._ledger.shards) < self._config.lookahead_shards
        return bool(self._owed) and room and len(self._buckets) < enough

    # Feeding.

    def _feed(self) -> None:
        """Give every ready worker its next units, round robin, so that near the end of a run no
        worker hoards the last ones.

        What is held counts, not units: a unit's last row may take as long as many others, and
        the other slots want prompts meanwhile.
        """
        for enough in (1, SLOTS_AHEAD * self._config.slots):
            for worker in self.fleet:
                wants = worker.num_held < enough and len(worker.units) < UNITS_IN_FLIGHT
                if worker.ready and wants:
                    unit = self._next_unit(worker)
                    if unit:
                        self.fleet.feed(worker, unit)

    def _next_unit(self, worker: Worker) -> list[Prompt]:
        """Suspects go to a worker that holds nothing, and nothing joins them."""
        if any(prompt.suspect for prompt in worker.in_flight):
            return []
        if self._suspects:
            return [] if worker.units else self._suspects.take()
        # While more prompts come a bucket may still fill a unit.
        return self._buckets.take(worker.last_bucket, partial=not self._wants_more())

    # Collecting.

    def _collect(self) -> None:
        """Wait a moment for rows, ends of units, and deaths; take them."""
        owners = {ref: worker for worker in self.fleet for ref in worker.references}
        if not owners:
            time.sleep(TICK_SECONDS / 10)
        else:
            for reference in self._ready(list(owners)):
                worker = owners[reference]
                try:
                    if reference in worker.units:
                        self._take_next(worker, reference)
                    elif reference is worker.placing or reference is worker.loading:
                        self.fleet.step_up(worker, reference)
                except RayError as error:
                    self._bury(worker, error)
        progress = self._meter.progress({worker.name: worker.state for worker in self.fleet})
        self._ledger.lease.publish(progress.to_json)
        num_waiting = len(self._buckets) + len(self._suspects)
        self._metrics.tick(progress.num_rows - progress.num_done, num_waiting, self.fleet)
        self._on_progress(progress)

    def _ready(self, references: list[Any]) -> list[Any]:
        """All that are due now, else the first that is within a tick."""
        ready, _ = ray.wait(references, num_returns=len(references), timeout=0, fetch_local=False)
        if not ready:
            ready, _ = ray.wait(references, num_returns=1, timeout=TICK_SECONDS, fetch_local=False)
        return ready

    def _take_next(self, worker: Worker, stream: Any) -> None:
        owed = worker.units[stream]
        try:
            item = ray.get(next(stream), timeout=FETCH_SECONDS)
        except StopIteration:
            assert not owed
            del worker.units[stream]
            return
        if isinstance(item, Notice):
            self._ledger.event("replica notice", replica=worker.name, text=item.text)
        elif isinstance(item, Pulse):
            self.fleet.heard(worker, item.longest_pass)
        elif isinstance(item, HandedBack):
            self.fleet.heard(worker)
            self._return([owed.pop(row_id) for row_id in item.row_ids])
        else:
            self.fleet.heard(worker)
            results = parquet.results_of(item.content)
            prompts = [owed.pop(row_id) for row_id in results["row_id"].to_pylist()]
            self._take_rows(prompts, results)
            self._limits.row_finished()
            worker.deaths = 0

    def _take_rows(self, prompts: list[Prompt], results: pa.Table) -> None:
        """Rows of a unit, which may come from several shards."""
        shards = [prompt.shard for prompt in prompts]
        if len(set(shards)) == 1:
            self._take(shards[0], results)
            return
        for shard in set(shards):
            self._take(shard, results.filter(pa.array([number == shard for number in shards])))

    def _take(self, shard: int, results: pa.Table) -> None:
        new = self._ledger.add(shard, results)
        self._meter.rows_done(new)
        self._metrics.rows(new)
        record_rows(shard, new)

    def _bury(self, worker: Worker, error: Exception) -> None:
        """A replica died. What it had not begun goes back at once."""
        if worker.actor is None:
            return
        death = self.fleet.bury(worker, error)
        self._metrics.died(worker.name)
        self._return(death.untouched)
        self._suspects.died(death)

    def _decide(self) -> None:
        """Draw the conclusions from deaths."""
        verdict = self._suspects.decide(time.monotonic(), self.fleet.is_gone)
        for node in verdict.lost_nodes:
            self._ledger.event("machine lost", node=node)
        self._return(verdict.freed)
        for prompt, reason in verdict.given_up:
            self._set_aside(prompt, reason)
        for death in verdict.blamed:
            self._limits.died(death, self.fleet.any_ready)
        self._limits.homeless(self.fleet.homeless_seconds)

    def _return(self, prompts: list[Prompt]) -> None:
        """What nobody blames, back to where it came from."""
        self._suspects.put_back([prompt for prompt in prompts if prompt.suspect])
        self._buckets.put_back([prompt for prompt in prompts if not prompt.suspect])

    def _set_aside(self, prompt: Prompt, reason: str) -> None:
        result = set_aside(prompt, reason)
        self._ledger.event("row set aside", row=prompt.row_id, error=result.error)
        self._take(prompt.shard, parquet.results_table([result]))

    # Storing.

    def _store(self) -> None:
        """Commit shards that are complete; flush the others every few seconds."""
        self._ledger.commit_complete()
        if time.monotonic() - self._flushed_at >= self._config.flush_seconds:
            self._ledger.flush()
            self._flushed_at = time.monotonic()
