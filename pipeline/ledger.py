"""What is planned, done and owed: the run's state on storage and the only writer of it.

    OUT/data/train-00000-of-00012.parquet   a committed shard: all its rows, in order
    OUT/.run/manifest.json                  written once: settings, fingerprint, plan
    OUT/.run/segments/00003/000001.parquet  finished rows of a shard not committed yet
    OUT/.run/events.jsonl                   restarts, quarantines, starts and ends

Knows nothing of Ray or models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import parquet
from pipeline.parquet import InputFile
from pipeline.rows import Result, row_index
from pipeline.storage import Storage

MANIFEST = ".run/manifest.json"
EVENTS = ".run/events.jsonl"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will do, known before anything is written."""

    files: list[InputFile]
    fingerprint: dict[str, Any]
    """All that results depend on: model, decoding, prompts, input digests, version."""
    settings: dict[str, Any]
    """The run's whole configuration, for the record."""

    @property
    def num_rows(self) -> int:
        return sum(file.num_rows for file in self.files)


@dataclass(slots=True)
class OpenShard:
    """A shard in memory: its prompts, and the results that are in."""

    number: int
    prompts: pa.Table
    results: dict[int, Result] = field(default_factory=dict)
    unflushed: list[Result] = field(default_factory=list)
    num_segments: int = 0

    @property
    def complete(self) -> bool:
        return len(self.results) == int(self.prompts.num_rows)


class Ledger:
    """The state of one run under its output folder."""

    def __init__(self, output: Storage, inputs: Storage, plan: Plan) -> None:
        """Open a new run or continue one. Writes nothing before `begin`.

        Raises ValueError where the folder holds another run, naming each difference, or
        anything that is no run.
        """
        self.output, self.inputs, self.plan = output, inputs, plan
        self.shards: dict[int, OpenShard] = {}
        self._events: list[str] = []
        self.is_new = output.kind(MANIFEST) == "missing"
        if self.is_new:
            if output.kind() == "file" or self._has_content():
                raise ValueError(
                    f"{output.uri}: is there and holds no run of ours; name a new --output"
                )
            return
        manifest = json.loads(output.read(MANIFEST))
        differences = list(_differences(manifest["fingerprint"], plan.fingerprint))
        if differences:
            raise ValueError(
                f"{output.uri}: holds another run; {'; '.join(differences)}. Name another "
                "--output, or use the settings it was started with"
            )
        if output.kind(EVENTS) == "file":
            self._events = output.read(EVENTS).decode().splitlines()

    def _has_content(self) -> bool:
        return bool(self.output.names() or self.output.names("data") or self.output.names(".run"))

    def begin(self) -> None:
        """Write the manifest of a new run."""
        if self.is_new:
            manifest = {
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "fingerprint": self.plan.fingerprint,
                "settings": self.plan.settings,
                "files": [asdict(file) for file in self.plan.files],
            }
            self.output.write(MANIFEST, json.dumps(manifest, indent=1).encode())

    def shard_name(self, number: int) -> str:
        return f"data/train-{number:05d}-of-{len(self.plan.files):05d}.parquet"

    def owed(self) -> list[int]:
        """Numbers of the shards that are not committed."""
        done = set(self.output.names("data"))
        numbers = range(len(self.plan.files))
        return [n for n in numbers if self.shard_name(n).removeprefix("data/") not in done]

    def open_shard(self, number: int) -> OpenShard:
        """Read a shard's prompts and whatever segments an earlier driver left of it.

        Raises ValueError where the file has changed since the run was planned.
        """
        planned = self.plan.files[number]
        shard = OpenShard(number, parquet.read_shard(self.inputs, planned.name))
        if shard.prompts.num_rows != planned.num_rows:
            raise ValueError(
                f"{self.inputs.path(planned.name)}: has {shard.prompts.num_rows} rows, "
                f"{planned.num_rows} when the run began; restore the file"
            )
        folder = f".run/segments/{number:05d}"
        for name in self.output.names(folder):
            shard.num_segments = int(name.removesuffix(".parquet"))
            try:
                content = pa.BufferReader(self.output.read(f"{folder}/{name}"))
                results = parquet.results_of(pq.read_table(content))
            except (pa.ArrowException, OSError) as error:
                self.event("segment unreadable", segment=f"{folder}/{name}", error=str(error))
                continue
            for result in results:
                shard.results.setdefault(row_index(result.row_id), result)
        self.shards[number] = shard
        return shard

    def add(self, number: int, result: Result) -> bool:
        """Take a finished row; False for one that is there already."""
        shard, index = self.shards[number], row_index(result.row_id)
        if index in shard.results:
            return False
        shard.results[index] = result
        shard.unflushed.append(result)
        return True

    def flush(self) -> None:
        """Write the finished rows of open shards that storage does not have yet."""
        for shard in self.shards.values():
            if shard.unflushed:
                name = f".run/segments/{shard.number:05d}/{shard.num_segments + 1:06d}.parquet"
                table = parquet.results_table(shard.unflushed)
                self.output.write(name, parquet.parquet_bytes(table))
                shard.num_segments += 1
                shard.unflushed.clear()

    def commit_complete(self) -> int:
        """Write every shard whose rows are all in, and forget it; how many there were."""
        complete = [shard for shard in self.shards.values() if shard.complete]
        for shard in complete:
            results = [shard.results[index] for index in range(shard.prompts.num_rows)]
            provenance = {
                "lrd.fingerprint": json.dumps(self.plan.fingerprint),
                "lrd.input": self.plan.files[shard.number].name,
            }
            content = parquet.shard_bytes(shard.prompts, parquet.results_table(results), provenance)
            self.output.write(self.shard_name(shard.number), content)
            self.output.delete_folder(f".run/segments/{shard.number:05d}")
            del self.shards[shard.number]
        return len(complete)

    def event(self, what: str, **facts: Any) -> None:
        """Record what happened; on storage at once."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._events.append(json.dumps({"time": time, "event": what, **facts}))
        self.output.write(EVENTS, ("\n".join(self._events) + "\n").encode())


def _differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """`decoding.r_f was 0.1, is 0.2` for every leaf that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            inner = f"{path}.{key}" if path else str(key)
            yield from _differences(before.get(key), now.get(key), inner)
    elif before != now:
        yield f"{path} was {json.dumps(before)}, is {json.dumps(now)}"
