"""Writes everything of a run's folder: manifest, finished rows, shards with their records, events.

The driver's ledger is the only writer. It also says which shards still have to be decoded.
`run_folder.py` lists the files.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.observe.events import record
from pipeline.observe.stages import stage
from pipeline.output import result_shards
from pipeline.output.lease import Lease
from pipeline.output.open_shard import OpenShard
from pipeline.output.run_folder import (
    DATA,
    EVENTS,
    MANIFEST,
    NOT_REPLACED,
    commit_name,
    damage,
    is_own,
    keep_unreadable,
    numbers_in,
    read_commits,
    read_events,
    read_manifest,
    segment_files,
    segment_folder,
    shard_name,
)
from pipeline.output.run_records import Commit, Event, Manifest
from pipeline.rows import InputFile, Layout
from pipeline.storage.storage import RUN, Storage

READS_AT_A_TIME = 8
"""Files that are checked together."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is to decode and with which settings, before anything is written."""

    files: list[InputFile]
    fingerprint: dict[str, Any]
    """All that results depend on: model, decoding, prompts, input digests, version."""
    settings: dict[str, Any]
    """The run's whole configuration, for the record."""

    @property
    def layout(self) -> Layout:
        return Layout.of(self.fingerprint)

    @property
    def num_rows(self) -> int:
        """Result rows."""
        return sum(map(self.num_rows_of, range(len(self.files))))

    def num_rows_of(self, shard: int) -> int:
        """Rows of a result shard."""
        return self.files[shard].num_rows * self.layout.num_samples


class Ledger:
    """The state of one run under its output folder."""

    def __init__(self, output: Storage, plan: Plan) -> None:
        """Open a new run or continue one. Writes nothing before `begin`.

        Raises ValueError where the folder holds another run, naming each difference, or
        something that is not a run.
        """
        self.output, self.plan = output, plan
        self.shards: dict[int, OpenShard] = {}
        self.lease = Lease(output)
        self.earlier: list[Event] = []
        """Those of earlier drivers, from `begin` on."""
        self.retry_failed = False
        """Whether rows that failed are decoded again."""
        self._session = uuid.uuid4().hex[:8]
        self._commits: dict[int, Commit] = {}
        self._events: list[str] = []
        self._events_written = 0
        self.is_new = output.kind(MANIFEST) == "missing"
        if self.is_new:
            if output.kind() == "file" or self._has_content():
                raise ValueError(
                    f"{output.uri}: is not empty and holds no run; name a new --output"
                )
            return
        before = read_manifest(output).fingerprint
        differences = list(_differences(_with_layout(before), _with_layout(plan.fingerprint)))
        if differences:
            raise ValueError(
                f"{output.uri}: holds another run; {'; '.join(differences)}. Name another "
                "--output, or use the settings it was started with"
            )

    def _has_content(self) -> bool:
        of_run = [name for name in self.output.names(RUN) if not is_own(name)]
        return bool([*self.output.names(), *self.output.names(DATA), *of_run])

    def begin(self) -> None:
        """Take the lease and write the manifest of a new run.

        Raises ValueError where another driver is running.
        """
        self.lease.on_unreadable = lambda error, kept: self.event(
            "unreadable file replaced", error=error, kept=kept
        )
        self.lease.acquire()
        self.output.on_retry = lambda error: self.event("storage retry", error=error)
        self._continue_events()
        if self.is_new:
            plan, created = self.plan, _now().isoformat(timespec="milliseconds")
            manifest = Manifest(created, plan.fingerprint, plan.settings, plan.files)
            self.output.write(MANIFEST, json.dumps(asdict(manifest), indent=1).encode())

    def _continue_events(self) -> None:
        """Put the events of earlier drivers before this one's."""
        events, num_bad = read_events(self.output)
        self.earlier = events
        self._events[:0] = [json.dumps(event.to_json()) for event in events]
        self._events_written = len(events)
        if num_bad:
            where, kept = self.output.path(EVENTS), keep_unreadable(self.output, EVENTS)
            error = f"{where}: {num_bad} lines are not events; the others were kept"
            self.event("unreadable file replaced", error=error, kept=kept)

    def end(self) -> None:
        """Write the last rows and events, and release the lease."""
        try:
            self.flush()
        finally:
            self.lease.release()

    def owed(self) -> list[int]:
        """Numbers of the shards that have to be decoded.

        Every committed shard is read once. One that is missing or differs from its record's digest
        is decoded again, with an event.
        """
        records = read_commits(self.output)
        owed = []

        def check(number: int) -> tuple[int, str | None]:
            name = shard_name(number, len(self.plan.files))
            if number not in records:
                return number, ""
            return number, damage(self.output, name, records[number])

        with (
            stage("checking written shards", len(self.plan.files), "shards") as step,
            ThreadPoolExecutor(READS_AT_A_TIME) as pool,
        ):
            for number, wrong in pool.map(check, range(len(self.plan.files))):
                step.add()
                if wrong is None or wrong == NOT_REPLACED:
                    self._commits[number] = records[number]
                elif wrong:
                    self.event("shard damaged", shard=number, error=wrong)
                if wrong is not None or (self.retry_failed and records[number].failed):
                    owed.append(number)
        return owed

    def num_failed_but(self, owed: Collection[int]) -> int:
        """Failed rows of the written shards that are not among `owed`."""
        return sum(one.failed for number, one in self._commits.items() if number not in owed)

    def restore(self, shard: OpenShard) -> None:
        """Add to a shard its results that are on storage already."""
        number = shard.number
        if number in self._commits:
            name = shard_name(number, len(self.plan.files))
            stored = result_shards.results_in(self.output.read(name), shard.layout.schema)
            _restore(shard, _good(stored))
        for name in segment_files(self.output, number):
            shard.num_segments = max(shard.num_segments, numbers_in(name)[1])
            try:
                results = result_shards.results_in(self.output.read(name), shard.layout.schema)
            except pa.ArrowException as error:
                self.event("segment damaged", segment=name, error=str(error))
                continue
            # A success replaces a failure; where failures are retried, only successes count.
            _restore(shard, _good(results))
            if not self.retry_failed:
                _restore(shard, results)

    def open(self, shard: OpenShard) -> None:
        """Let `add` take results of this shard from now on."""
        self.shards[shard.number] = shard

    def add(
        self, number: int, results: pa.RecordBatch, positions: Sequence[int] | None = None
    ) -> pa.RecordBatch:
        """Take finished rows, as `OpenShard.add` does; returns those that are new."""
        return self.shards[number].add(results, positions)

    def flush(self) -> None:
        """Write the events and finished rows that are not on storage yet."""
        self.lease.check()
        for shard in self.shards.values():
            results = shard.unflushed()
            if results is not None:
                number = shard.num_segments + 1
                folder = segment_folder(shard.number)
                name = f"{folder}/{number:06d}-{self._session}.parquet"
                self.output.write(name, result_shards.parquet_bytes(results))
                shard.num_segments = number
                shard.flushed()
        if len(self._events) > self._events_written:
            num_events = len(self._events)
            self.output.write(EVENTS, ("\n".join(self._events) + "\n").encode())
            self._events_written = num_events

    def commit_complete(self) -> int:
        """Write every shard whose rows are all finished, and close it; how many there were."""
        complete = [shard for shard in self.shards.values() if shard.complete]
        for shard in complete:
            self.lease.check()
            self._commit(shard)
            del self.shards[shard.number]
        return len(complete)

    def _commit(self, shard: OpenShard) -> None:
        results = shard.results()
        provenance = {
            "lrd.fingerprint": json.dumps(self.plan.fingerprint),
            "lrd.input": self.plan.files[shard.number].name,
        }
        content = result_shards.shard_bytes(shard.prompts, results, provenance, shard.layout)
        before = self._commits.get(shard.number)
        commit = Commit(
            sha256=hashlib.sha256(content).hexdigest(),
            replaces=before.sha256 if before else None,
            rows=results.num_rows,
            failed=pc.sum(pc.equal(results["status"], "failed")).as_py() or 0,
            num_forwards=pc.sum(results["num_forwards"]).as_py() or 0,
            num_output_tokens=pc.sum(results["num_output_tokens"]).as_py() or 0,
        )
        # The record first: a shard without a record would be trusted unread, while a record
        # without its shard is decoded again.
        self.output.write(commit_name(shard.number), json.dumps(asdict(commit)).encode())
        self.output.write(shard_name(shard.number, len(self.plan.files)), content)
        self._commits[shard.number] = commit
        self.output.delete_folder(segment_folder(shard.number))

    def event(self, what: str, **facts: Any) -> None:
        """Record an event: in the log at once, on storage with the next flush."""
        record(what, **facts)
        self._events.append(json.dumps(Event(_now(), what, facts).to_json()))


def _restore(shard: OpenShard, results: pa.Table) -> None:
    for rows in results.to_batches():
        shard.add(rows, stored=True)


def _good(results: pa.Table) -> pa.Table:
    return results.filter(pc.equal(results["status"], "ok"))


def _with_layout(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """The fingerprint with the entries that it leaves out where they are the default."""
    return {**Layout().settings, **fingerprint}


def _now() -> datetime:
    return datetime.now(UTC)


def _differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """`decoding.r_f was 0.1, is 0.2` for every leaf that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            inner = f"{path}.{key}" if path else str(key)
            yield from _differences(before.get(key), now.get(key), inner)
    elif before != now:
        yield f"{path} was {json.dumps(before)}, is {json.dumps(now)}"
