"""A run's state, read from its files alone: while it is on, after it died, on any storage.

Writes nothing, and knows nothing of Ray. What cannot be told from files is not told: whether a
driver on another machine lives shows only in its lease changing between two looks.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
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
from pipeline.output.lease import is_dead, read_lease
from pipeline.output.run_folder import (
    COMMITS,
    EVENTS,
    MANIFEST,
    SEGMENTS,
    Commit,
    read_manifest,
    shard_name,
)
from pipeline.rows import InputFile
from pipeline.storage.storage import Storage

READS_AT_A_TIME = 8
"""Small files that are read together."""
LAST_EVENTS = 8

Stamp = tuple[int, int | None]
"""Size and time of change of a file: what tells a new version from the one that was read."""


class Inspector:
    """Looks at a run once or again and again; what cannot have changed is read once."""

    def __init__(self, output: Storage) -> None:
        """Raises ValueError where the folder holds no run, or its manifest is broken."""
        self._output = output
        self._manifest = whole_manifest(output)
        self.files = planned_files(self._manifest)
        self._segments: dict[tuple[str, Stamp], pa.Table | None] = {}
        self._commits: dict[tuple[str, Stamp], Commit | None] = {}
        self._beat: tuple[str, int] | None = None
        self._beat_seen_at = 0.0
        self._beat_changed = False

    @property
    def fingerprint(self) -> dict[str, Any]:
        fingerprint: dict[str, Any] = self._manifest["fingerprint"]
        return fingerprint

    def look(self) -> RunState:
        """The state now. Raises OSError where storage does not answer."""
        # Segments before records: one that went in between has become part of a whole shard.
        segments = self._read_segments()
        commits = self._read_commits()
        written = set(self._output.names("data"))
        shards = []
        for number, file in enumerate(self.files):
            name = shard_name(number, len(self.files))
            commit = commits.get(number) if PurePosixPath(name).name in written else None
            shards.append(self._shard(number, file, commit, segments.get(number, [])))
        broken = [name for (name, _), table in self._segments.items() if table is None]
        broken += [name for (name, _), commit in self._commits.items() if commit is None]
        return RunState(
            uri=self._output.uri,
            created=self._manifest["created"],
            settings=self._manifest["settings"],
            shards=shards,
            num_forwards=sum(commit.num_forwards for commit in commits.values()),
            driver=self._driver(),
            events=read_events(self._output)[-LAST_EVENTS:],
            unreadable=sorted(broken),
        )

    def _shard(
        self, number: int, file: InputFile, commit: Commit | None, segments: list[pa.Table]
    ) -> ShardState:
        if commit is None:
            num_done, num_failed = _tally(segments)
            state: Literal["open", "waiting"] = "open" if segments else "waiting"
            return ShardState(number, state, file.num_rows, num_done, num_failed)
        num_failed = commit.failed
        if segments and num_failed:
            name = shard_name(number, len(self.files))
            own = _read_statuses(self._output, name)
            _, num_failed = _tally([*([] if own is None else [own]), *segments])
        # Segments of a shard without failures were left by a driver that died at its commit.
        retried = bool(segments and commit.failed)
        return ShardState(
            number, "retried" if retried else "whole", file.num_rows, file.num_rows, num_failed
        )

    def _read_segments(self) -> dict[int, list[pa.Table]]:
        """Row ids and statuses of the segments, by shard."""
        found = listing(self._output, SEGMENTS, recursive=True)
        self._segments = _refreshed(
            self._segments, found, lambda name: _read_statuses(self._output, name)
        )
        by_shard: dict[int, list[pa.Table]] = {}
        for (name, _), table in sorted(self._segments.items()):
            number = PurePosixPath(name).parent.name
            if table is not None and number.isdigit():
                by_shard.setdefault(int(number), []).append(table)
        return by_shard

    def _read_commits(self) -> dict[int, Commit]:
        found = listing(self._output, COMMITS)
        self._commits = _refreshed(
            self._commits, found, lambda name: read_commit(self._output, name)
        )
        return {
            int(PurePosixPath(name).stem): commit
            for (name, _), commit in self._commits.items()
            if commit is not None
        }

    def _driver(self) -> DriverState | None:
        try:
            lease = read_lease(self._output)
        except ValueError:
            lease = None
        if lease is None:
            return None
        return DriverState(
            state=self._pulse(lease),
            host=lease["host"],
            pid=lease["pid"],
            heard_at=lease["time"],
            progress=lease["progress"],
        )

    def _pulse(self, lease: dict[str, Any]) -> Liveness:
        """By this process's clock alone: how long the lease has stood still while watched."""
        now, beat = time.monotonic(), (lease["id"], lease["beat"])
        if beat != self._beat:
            self._beat_changed = self._beat is not None
            self._beat, self._beat_seen_at = beat, now
        if lease["released"]:
            return "ended"
        if is_dead(lease):
            return "dead"
        if now - self._beat_seen_at >= SILENT_SECONDS:
            return "silent"
        return "beating" if self._beat_changed else "unknown"


def whole_manifest(output: Storage) -> dict[str, Any]:
    """A run's manifest with all its parts.

    Raises ValueError where the folder holds no run, or the manifest lacks one.
    """
    manifest = read_manifest(output)
    parts = {"created": str, "fingerprint": dict, "settings": dict, "files": list}
    lacking = [name for name, kind in parts.items() if not isinstance(manifest.get(name), kind)]
    if lacking:
        raise ValueError(f"{output.path(MANIFEST)}: lacks {', '.join(lacking)}; restore it")
    return manifest


def planned_files(manifest: dict[str, Any]) -> list[InputFile]:
    """The prompt shards of a whole manifest, in order."""
    return [InputFile(**file) for file in manifest["files"]]


def listing(storage: Storage, folder: str, *, recursive: bool = False) -> dict[str, Stamp]:
    """Files under a folder by their name under the storage's root; with those that are not whole
    yet. One request a thousand files, where `Storage.names` needs one a folder."""
    return {
        f"{folder}/{info.path.rpartition(f'/{folder}/')[2]}": (info.size, info.mtime_ns)
        for info in storage.files(folder, recursive=recursive)
    }


def read_commit(output: Storage, name: str) -> Commit | None:
    """A shard's record; None where there is none that can be read."""
    try:
        return Commit(**json.loads(output.read(name)))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def read_events(output: Storage) -> list[dict[str, Any]]:
    """All events, oldest first; lines that are no JSON are left out."""
    events = []
    try:
        lines = output.read(EVENTS).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events


def _refreshed(before: dict[Any, Any], found: dict[str, Stamp], read: Any) -> dict[Any, Any]:
    """What the files found hold; only new ones and new versions are read."""
    names = [item for item in sorted(found.items()) if item[0].endswith((".parquet", ".json"))]
    new = [item for item in names if item not in before]
    with ThreadPoolExecutor(READS_AT_A_TIME) as pool:
        contents = dict(zip(new, pool.map(lambda item: read(item[0]), new), strict=True))
    return {item: before[item] if item in before else contents[item] for item in names}


def _read_statuses(output: Storage, name: str) -> pa.Table | None:
    """Row ids and statuses of a segment or shard, two neighbouring columns that cost one read;
    None where it cannot be read, no rows where it has gone."""
    columns = ["row_id", "status"]
    try:
        with output.open(name) as source:
            return pq.ParquetFile(source).read(columns=columns).select(columns)
    except FileNotFoundError:
        return pa.table({column: pa.array([], pa.string()) for column in columns})
    except (pa.ArrowException, OSError, KeyError):
        return None


def _tally(tables: list[pa.Table]) -> tuple[int, int]:
    """Rows done and failed: a row may stand in several, and its success counts."""
    if not tables:
        return 0, 0
    rows = pa.concat_tables([table.select(["row_id", "status"]) for table in tables])
    good = rows.filter(pc.equal(rows["status"], "ok"))
    num_done: int = pc.count_distinct(rows["row_id"]).as_py()
    num_good: int = pc.count_distinct(good["row_id"]).as_py()
    return num_done, num_done - num_good
