"""The loop: plan, feed, collect, commit. Holds the only `ray.wait`.

Knows no command line and prints nothing: progress goes to a callback. The driver is the only
writer of the output; replicas return rows.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from lrd.prompts import encode_prompt, fit_prompt
from pipeline import parquet
from pipeline.buckets import Buckets, bucket_of, choose_lengths, fitting
from pipeline.config import RunConfig
from pipeline.ledger import Ledger, OpenShard
from pipeline.replica import UNITS_IN_FLIGHT, Replica, ReplicaSettings
from pipeline.rows import Notice, Prompt, Result, row_id

MAX_FAILED_STARTS = 3
"""Starts in a row that may fail before any replica has come up."""
TICK_SECONDS = 0.5
MAX_BUCKETS = 6
"""Shapes of slots at most. Fewer leave more padding, more leave buckets that fill no unit."""
SAMPLE_ROWS = 500
"""Prompts of a shard that are looked at when the shapes are chosen."""


class RunStoppedError(Exception):
    """The run cannot go on now; what is finished is safe and the same command continues."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands, for whoever shows it."""

    num_rows: int
    num_done: int
    num_done_before: int
    """Rows that an earlier driver had finished."""
    num_failed: int
    num_forwards: int
    """Forwards of the rows decoded now."""
    seconds: float


@dataclass(slots=True, eq=False)
class _Worker:
    """A replica as the driver sees it."""

    name: str
    actor: Any = None
    starting: Any = None
    """Reference that is due once the model is loaded; None afterwards."""
    units: dict[Any, dict[str, Prompt]] = field(default_factory=dict)
    """Stream → its prompts that are not back, by row id."""
    last_bucket: int | None = None
    start_at: float = 0.0
    deaths: int = 0

    @property
    def num_in_flight(self) -> int:
        return sum(map(len, self.units.values()))


class Driver:
    """One run over one Ray cluster."""

    def __init__(
        self,
        config: RunConfig,
        ledger: Ledger,
        tokenizer_of: Any,
        max_length: int,
        settings: ReplicaSettings,
        num_replicas: int,
        resources: dict[str, float],
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        """tokenizer_of: anything with the model's `.tokenizer`. resources: options of an actor."""
        self._config, self._ledger = config, ledger
        self._tokenizer_of, self._max_length = tokenizer_of, max_length
        self._settings, self._resources = settings, resources
        self._on_progress = on_progress
        self._workers = [_Worker(f"replica-{n}") for n in range(num_replicas)]
        self._owed = deque(ledger.owed())
        self._buckets = Buckets(config.slots)
        self._lengths = self._choose_lengths()
        """Buckets that the first shard's prompts need; longer prompts get their own."""
        self._suspects: deque[Prompt] = deque()
        """Rows that were in a replica that died: each is tried alone."""
        self._stopping = False
        self._any_ready = False
        self._failed_starts = 0
        self._deaths_without_row = 0
        self._num_done = self._num_failed = self._num_forwards = 0
        self._began = time.monotonic()
        self._flushed = self._began
        owed_rows = sum(ledger.plan.files[n].num_rows for n in self._owed)
        self._num_done_before = ledger.plan.num_rows - owed_rows

    def stop(self) -> None:
        """Ask the loop to end: nothing more is fed, what is finished is kept."""
        self._stopping = True

    def run(self) -> None:
        """Decode what is owed.

        Raises RunStoppedError where it was asked to stop or replicas keep dying; finished rows are
        on storage then.
        """
        self._ledger.event("driver started", owed_shards=len(self._owed))
        try:
            while not self._stopping:
                self._read_ahead()
                self._store()
                if not self._owed and not self._ledger.shards:
                    self._ledger.event("driver finished")
                    return
                self._feed()
                self._collect()
            raise RunStoppedError("stopped on request")
        finally:
            self._ledger.flush()
            for worker in self._workers:
                if worker.actor is not None:
                    ray.kill(worker.actor)

    # Reading.

    def _read_ahead(self) -> None:
        """Open shards while the window has room and no bucket fills a unit for every worker."""
        enough = len(self._workers) * UNITS_IN_FLIGHT * self._config.slots
        while (
            self._owed
            and len(self._ledger.shards) < self._config.lookahead_shards
            and len(self._buckets) < enough
        ):
            shard = self._ledger.open_shard(self._owed.popleft())
            self._num_done_before += len(shard.results)
            self._buckets.add(self._prompts_of(shard))

    def _prompts_of(self, shard: OpenShard) -> list[Prompt]:
        """The shard's prompts that are still owed; rows that cannot be decoded fail here."""
        config = self._config
        max_tokens = self._max_length - config.decoding.gen_length
        prompts = []
        for index, text in enumerate(shard.prompts[config.prompt_column].to_pylist()):
            if index in shard.results:
                continue
            num_tokens = None
            try:
                ids = self._encode(text)
                num_tokens = len(ids)
                ids = fit_prompt(ids, max_tokens, config.truncation)
            except ValueError as error:
                failed = Result.failed(
                    row_id(shard.number, index), str(error), num_prompt_tokens=num_tokens
                )
                self._take(shard.number, failed)
                continue
            bucket = fitting(len(ids), self._lengths) or bucket_of(len(ids), max_tokens)
            prompts.append(Prompt(shard.number, index, ids, bucket))
        return prompts

    def _encode(self, text: str | None) -> list[int]:
        if text is None or not text.strip():
            raise ValueError("the prompt is null" if text is None else "the prompt is empty")
        config = self._config
        return encode_prompt(self._tokenizer_of, text, config.prompt_format, config.system_prompt)

    def _choose_lengths(self) -> list[int]:
        """Bucket lengths from the prompts of the first, the middle and the last shard.

        Equal at every start of a run, so that a row's bucket does not tell where an earlier
        driver was interrupted.
        """
        files = self._ledger.plan.files
        max_tokens = self._max_length - self._config.decoding.gen_length
        lengths = []
        for number in sorted({0, len(files) // 2, len(files) - 1}):
            texts = parquet.read_prompts(
                self._ledger.inputs, files[number].name, self._config.prompt_column, SAMPLE_ROWS
            )
            for text in texts:
                with suppress(ValueError):
                    lengths.append(min(len(self._encode(text)), max_tokens))
        return choose_lengths(lengths, MAX_BUCKETS)

    # Feeding.

    def _feed(self) -> None:
        """Start workers that are due, and give every ready one its next units."""
        now = time.monotonic()
        for worker in self._workers:
            if worker.actor is None and now >= worker.start_at:
                self._start(worker)
        # Round robin, so that near the end of a run no worker hoards the last units.
        for num_units in range(UNITS_IN_FLIGHT):
            for worker in self._workers:
                ready = worker.actor is not None and worker.starting is None
                if ready and len(worker.units) <= num_units:
                    self._feed_one(worker)

    def _feed_one(self, worker: _Worker) -> None:
        if self._suspects:
            if worker.units:
                return
            unit = [self._suspects.popleft()]
        elif any(p.deaths for prompts in worker.units.values() for p in prompts.values()):
            return
        else:
            window_full = not self._owed or (
                len(self._ledger.shards) >= self._config.lookahead_shards
            )
            unit = self._buckets.take(worker.last_bucket, partial=window_full)
            if not unit:
                return
            worker.last_bucket = unit[0].bucket
        stream = worker.actor.decode.options(num_returns="streaming").remote(unit)
        worker.units[stream] = {prompt.row_id: prompt for prompt in unit}

    def _start(self, worker: _Worker) -> None:
        actor_class = ray.remote(Replica).options(
            max_concurrency=UNITS_IN_FLIGHT + 1, max_restarts=0, **self._resources
        )
        worker.actor = actor_class.remote(worker.name, self._settings)
        worker.starting = worker.actor.ready.remote()

    # Collecting.

    def _collect(self) -> None:
        """Wait a moment for rows, ends of units, and deaths; take them."""
        owners = {stream: worker for worker in self._workers for stream in worker.units}
        owners |= {w.starting: w for w in self._workers if w.starting is not None}
        if not owners:
            time.sleep(TICK_SECONDS / 10)
        else:
            ready, _ = ray.wait(
                list(owners), num_returns=len(owners), timeout=0.0, fetch_local=False
            )
            if not ready:
                ready, _ = ray.wait(
                    list(owners), num_returns=1, timeout=TICK_SECONDS, fetch_local=False
                )
            for reference in ready:
                worker = owners[reference]
                try:
                    if reference is worker.starting:
                        ray.get(reference)
                        worker.starting, self._any_ready = None, True
                    elif reference in worker.units:
                        self._take_next(worker, reference)
                except (RayActorError, RayTaskError) as error:
                    self._bury(worker, error)
        self._report()

    def _take_next(self, worker: _Worker, stream: Any) -> None:
        owed = worker.units[stream]
        try:
            results: list[Result] | Notice = ray.get(next(stream))
        except StopIteration:
            assert not owed
            del worker.units[stream]
            return
        if isinstance(results, Notice):
            self._ledger.event("replica notice", replica=worker.name, text=results.text)
            return
        for result in results:
            prompt = owed.pop(result.row_id)
            self._take(prompt.shard, result)
        self._deaths_without_row = worker.deaths = 0

    def _take(self, shard: int, result: Result) -> None:
        if self._ledger.add(shard, result):
            self._num_done += 1
            self._num_failed += result.status == "failed"
            self._num_forwards += result.num_forwards or 0

    def _bury(self, worker: _Worker, error: Exception) -> None:
        """A replica died: its rows are tried alone, a new one starts after a pause."""
        if worker.actor is None:
            return
        reason = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
        in_flight = [p for prompts in worker.units.values() for p in prompts.values()]
        self._ledger.event(
            "replica died", replica=worker.name, error=reason, rows=[p.row_id for p in in_flight]
        )
        ray.kill(worker.actor)
        failed_start = worker.starting is not None
        worker.actor, worker.starting = None, None
        worker.units.clear()
        worker.deaths += 1
        worker.start_at = time.monotonic() + min(30.0, 0.5 * 2 ** (worker.deaths - 1))
        for prompt in in_flight:
            tried = replace(prompt, deaths=prompt.deaths + 1)
            if tried.deaths >= self._config.max_attempts:
                self._set_aside(tried, reason)
            else:
                self._suspects.append(tried)
        self._failed_starts += failed_start
        self._deaths_without_row += 1
        if not self._any_ready and self._failed_starts >= MAX_FAILED_STARTS:
            raise RunStoppedError(f"no replica could start: {reason}")
        if self._deaths_without_row > self._config.max_restarts:
            raise RunStoppedError(
                f"replicas died {self._deaths_without_row} times in a row without finishing a "
                f"row; the last: {reason}"
            )

    def _set_aside(self, prompt: Prompt, reason: str) -> None:
        error = f"its replica died {prompt.deaths} times with this row in flight; last: {reason}"
        self._ledger.event("row set aside", row=prompt.row_id, error=error)
        result = Result.failed(
            prompt.row_id,
            error,
            num_prompt_tokens=len(prompt.token_ids),
            bucket=prompt.bucket,
            attempts=prompt.deaths,
        )
        self._take(prompt.shard, result)

    # Storing.

    def _store(self) -> None:
        """Commit shards that are complete; flush the others every few seconds."""
        self._ledger.commit_complete()
        if time.monotonic() - self._flushed >= self._config.flush_seconds:
            self._ledger.flush()
            self._flushed = time.monotonic()

    def _report(self) -> None:
        self._on_progress(
            Progress(
                num_rows=self._ledger.plan.num_rows,
                num_done=self._num_done_before + self._num_done,
                num_done_before=self._num_done_before,
                num_failed=self._num_failed,
                num_forwards=self._num_forwards,
                seconds=time.monotonic() - self._began,
            )
        )
