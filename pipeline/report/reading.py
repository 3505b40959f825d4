"""A run's folder → what its files say of it: manifest, events, committed shards.

Knows nothing of charts. Reads OUT/data, OUT/.run/manifest.json, OUT/.run/events.jsonl and
OUT/.run/driver.json, and writes nothing, so it may look at a run that is going on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.retry import StorageError
from pipeline.storage.storage import Storage

MANIFEST, EVENTS, DRIVER = ".run/manifest.json", ".run/events.jsonl", ".run/driver.json"


@dataclass(frozen=True, slots=True)
class Shard:
    """One committed result shard."""

    name: str
    """Under OUT."""
    written: datetime | None
    """Its file's time; None where the storage keeps none."""


@dataclass(frozen=True, slots=True)
class Event:
    """One line of events.jsonl."""

    time: datetime
    what: str
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """What lies under an output folder."""

    output: Storage
    settings: dict[str, Any]
    fingerprint: dict[str, Any]
    created: str
    planned_rows: list[int]
    """Rows of every input file, in order: what the finished run will hold."""
    shards: list[Shard]
    events: list[Event]
    num_bad_events: int
    """Lines of events.jsonl that are none, such as the last of a file cut short."""
    driver: dict[str, Any]
    """The lease of the driver that wrote here last; empty where there is none."""

    @property
    def is_whole(self) -> bool:
        return len(self.shards) == len(self.planned_rows)

    @property
    def decoding(self) -> dict[str, Any]:
        found: dict[str, Any] = self.settings.get("decoding", {})
        return found


def read_run(output: Storage) -> Run:
    """Everything but the rows.

    Raises ValueError, with the file and what to do, where the folder holds no run or no shard
    of it is committed yet.
    """
    kind = output.kind()
    if kind != "folder":
        what = "is a file" if kind == "file" else "no such folder"
        raise ValueError(f"{output.uri}: {what}; name the --output folder of `lrd generate`")
    if output.kind(MANIFEST) == "missing":
        raise ValueError(
            f"{output.path(MANIFEST)}: not there, so {output.uri} holds no run; name the --output "
            "folder of `lrd generate`"
        )
    manifest = _read_object(output, MANIFEST)
    missing = {"settings", "fingerprint", "files"} - manifest.keys()
    if missing:
        raise ValueError(
            f"{output.path(MANIFEST)}: has no {', '.join(sorted(missing))}; restore the manifest "
            "that `lrd generate` wrote"
        )
    shards = _shards(output)
    if not shards:
        raise ValueError(
            f"{output.path('data')}: no committed shards yet; wait for the first one, or continue "
            "the run with the `lrd generate` that began it"
        )
    events, num_bad = _events(output)
    return Run(
        output=output,
        settings=manifest["settings"],
        fingerprint=manifest["fingerprint"],
        created=str(manifest.get("created", "")),
        planned_rows=[int(file["num_rows"]) for file in manifest["files"]],
        shards=shards,
        events=events,
        num_bad_events=num_bad,
        driver=_read_object(output, DRIVER) if output.kind(DRIVER) == "file" else {},
    )


def batches(
    run: Run, shard: Shard, columns: Sequence[str], num_rows: int
) -> Iterator[pa.RecordBatch]:
    """A shard's rows, at most `num_rows` in memory at a time.

    Raises ValueError naming the file where it is damaged or lacks a column.
    """
    where = run.output.path(shard.name)
    try:
        with run.output.open(shard.name) as source:
            parquet = pq.ParquetFile(source)
            absent = [name for name in columns if name not in parquet.schema_arrow.names]
            if absent:
                raise ValueError(
                    f"{where}: has no column {', '.join(absent)}, so it is no result shard of "
                    "this version; name another run's output"
                )
            yield from parquet.iter_batches(batch_size=num_rows, columns=list(columns))
    except StorageError:
        raise
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{where}: not a whole Parquet file ({reason}); delete it and continue the run with "
            "the `lrd generate` that began it"
        ) from error


def _shards(output: Storage) -> list[Shard]:
    found = [info for info in output.files("data") if info.base_name.endswith(".parquet")]
    for info in found:
        if re.fullmatch(r"train-\d+-of-\d+\.parquet", info.base_name) is None:
            raise ValueError(f"{info.path}: no result shard of ours; move it out of the folder")
    return [
        Shard(f"data/{info.base_name}", _utc(info.mtime))
        for info in sorted(found, key=lambda info: str(info.base_name))
    ]


def _utc(time: datetime | None) -> datetime | None:
    """pyarrow's file times know their zone on some filesystems and are UTC on the others."""
    if time is None or time.tzinfo is not None:
        return time
    return time.replace(tzinfo=UTC)


def _events(output: Storage) -> tuple[list[Event], int]:
    if output.kind(EVENTS) != "file":
        return [], 0
    lines = output.read(EVENTS).decode(errors="replace").splitlines()
    events = [event for event in map(_event, lines) if event is not None]
    return events, len(lines) - len(events)


def _event(line: str) -> Event | None:
    try:
        facts = json.loads(line)
        time = datetime.fromisoformat(facts.pop("time"))
        return Event(time, str(facts.pop("event")), facts)
    except (ValueError, KeyError, AttributeError, TypeError):
        return None


def _read_object(output: Storage, name: str) -> dict[str, Any]:
    try:
        found = json.loads(output.read(name))
    except ValueError as error:
        raise ValueError(
            f"{output.path(name)}: not JSON ({error}); restore it, or decode into a new folder"
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f"{output.path(name)}: not a JSON object; restore the file")
    return found
