"""Reads a run's state from its files alone: while it runs, after it died, on any storage.

Writes nothing. Whether a driver on another machine is running cannot be read from one version of
its lease: only a lease that changes while it is watched proves it.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.inspection.run_state import (
    SILENT_SECONDS,
    DriverState,
    Liveness,
    RunState,
    ShardState,
)
from pipeline.output.lease import is_dead
from pipeline.output.run_folder import (
    DRIVER,
    Stamp,
    UnreadableError,
    commit_files,
    numbers_in,
    read_commit,
    read_events,
    read_lease,
    read_manifest,
    segment_files,
    shard_name,
    written_shards,
)
from pipeline.output.run_records import Commit, LeaseRecord
from pipeline.rows import InputFile
from pipeline.storage.storage import Storage

READS_AT_A_TIME = 8
"""Small files that are read together."""
LAST_EVENTS = 8


class Inspector:
    """Takes snapshots of a run's state; files that have not changed are read once."""

    def __init__(self, output: Storage) -> None:
        """Raises ValueError where the folder holds no run, or its manifest is broken."""
        self._output = output
        self._manifest = read_manifest(output)
        self.files = self._manifest.files
        self._segments: dict[tuple[str, Stamp], pa.Table | None] = {}
        self._commits: dict[tuple[str, Stamp], Commit | None] = {}
        self._beat: tuple[str, int] | None = None
        self._beat_seen_at = 0.0
        self._beat_changed = False

    @property
    def fingerprint(self) -> dict[str, Any]:
        return self._manifest.fingerprint

    def snapshot(self) -> RunState:
        """The state now. Raises OSError where storage does not answer."""
        # Segments before records: a segment that vanishes in between is part of a whole shard.
        segments = self._read_segments()
        commits = self._read_commits()
        written = {shard.number for shard in written_shards(self._output, len(self.files))[0]}
        shards = []
        for number, file in enumerate(self.files):
            commit = commits.get(number) if number in written else None
            shards.append(self._shard(number, file, commit, segments.get(number, [])))
        broken = [name for (name, _), table in self._segments.items() if table is None]
        broken += [name for (name, _), commit in self._commits.items() if commit is None]
        try:
            driver = self._driver()
        except UnreadableError:
            driver, broken = None, [*broken, DRIVER]
        events, _ = read_events(self._output)
        return RunState(
            uri=self._output.uri,
            created=self._manifest.created,
            settings=self._manifest.settings,
            num_samples=self._manifest.layout.num_samples,
            shards=shards,
            num_forwards=sum(commit.num_forwards for commit in commits.values()),
            driver=driver,
            events=[event.to_json() for event in events[-LAST_EVENTS:]],
            unreadable=sorted(broken),
        )

    def _shard(
        self, number: int, file: InputFile, commit: Commit | None, segments: list[pa.Table]
    ) -> ShardState:
        num_rows = file.num_rows * self._manifest.layout.num_samples
        if commit is None:
            num_done, num_failed = _tally(segments)
            state: Literal["open", "waiting"] = "open" if segments else "waiting"
            return ShardState(number, state, num_rows, num_done, num_failed)
        num_failed = commit.failed
        if segments and num_failed:
            name = shard_name(number, len(self.files))
            own = _read_statuses(self._output, name)
            _, num_failed = _tally([*([] if own is None else [own]), *segments])
        # Segments of a shard without failures were left by a driver that died at its commit.
        retried = bool(segments and commit.failed)
        word: Literal["retried", "whole"] = "retried" if retried else "whole"
        return ShardState(number, word, num_rows, num_rows, num_failed)

    def _read_segments(self) -> dict[int, list[pa.Table]]:
        """Row ids and statuses of the segments, by shard."""
        self._segments = _refreshed(
            self._segments,
            segment_files(self._output),
            lambda name: _read_statuses(self._output, name),
        )
        by_shard: dict[int, list[pa.Table]] = {}
        for (name, _), table in sorted(self._segments.items()):
            if table is not None:
                by_shard.setdefault(numbers_in(name)[0], []).append(table)
        return by_shard

    def _read_commits(self) -> dict[int, Commit]:
        self._commits = _refreshed(
            self._commits, commit_files(self._output), lambda name: read_commit(self._output, name)
        )
        return {
            numbers_in(name)[0]: commit
            for (name, _), commit in self._commits.items()
            if commit is not None
        }

    def _driver(self) -> DriverState | None:
        lease = read_lease(self._output)
        if lease is None:
            return None
        return DriverState(
            state=self._liveness(lease),
            host=lease.host,
            pid=lease.pid,
            last_heartbeat=lease.time,
            progress=lease.progress,
        )

    def _liveness(self, lease: LeaseRecord) -> Liveness:
        """Whether the driver is running, by how long its lease did not change by this process's
        clock."""
        now, beat = time.monotonic(), (lease.id, lease.beat)
        if beat != self._beat:
            self._beat_changed = self._beat is not None
            self._beat, self._beat_seen_at = beat, now
        if lease.released:
            return "ended"
        if is_dead(lease):
            return "dead"
        if now - self._beat_seen_at >= SILENT_SECONDS:
            return "silent"
        return "beating" if self._beat_changed else "unknown"


def _refreshed(before: dict[Any, Any], found: dict[str, Stamp], read: Any) -> dict[Any, Any]:
    """The contents of these files by name and stamp; only new files and versions are read."""
    names = sorted(found.items())
    new = [item for item in names if item not in before]
    with ThreadPoolExecutor(READS_AT_A_TIME) as pool:
        contents = dict(zip(new, pool.map(lambda item: read(item[0]), new), strict=True))
    return {item: before[item] if item in before else contents[item] for item in names}


def _read_statuses(output: Storage, name: str) -> pa.Table | None:
    """Row ids and statuses of a segment or shard, neighbouring columns that need one read;
    None where it cannot be read, no rows where it has vanished."""
    columns = ["row_id", "status"]
    try:
        with output.open(name) as source:
            return pq.ParquetFile(source).read(columns=columns).select(columns)
    except FileNotFoundError:
        return pa.table({column: pa.array([], pa.string()) for column in columns})
    except (pa.ArrowException, OSError, KeyError):
        return None


def _tally(tables: list[pa.Table]) -> tuple[int, int]:
    """Rows done and failed. A row may be in several tables; if one has its success, that counts."""
    if not tables:
        return 0, 0
    rows = pa.concat_tables([table.select(["row_id", "status"]) for table in tables])
    good = rows.filter(pc.equal(rows["status"], "ok"))
    num_done: int = pc.count_distinct(rows["row_id"]).as_py()
    num_good: int = pc.count_distinct(good["row_id"]).as_py()
    return num_done, num_done - num_good
