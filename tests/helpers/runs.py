"""Runs on storage without Ray: written by the ledger itself, then damaged by the tests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.input import input_files, prompt_shards
from pipeline.input.prompt_shards import PromptShards
from pipeline.output import result_shards
from pipeline.output.ledger import Ledger, Plan
from pipeline.output.open_shard import OpenShard
from pipeline.output.run_folder import commit_name, shard_name
from pipeline.output.run_records import Commit
from pipeline.rows import InputFile, Result, results_batch, row_id
from pipeline.storage.storage import Storage

DECODING = {"gen_length": 3}
FINGERPRINT = {"model": "m", "dtype": "float32", "decoding": DECODING}
FAILURE = "non-finite logits in pass 1"


def good(shard: int, index: int, **changes: Any) -> Result:
    """An ok row of three passes over three positions."""
    row = Result.failed(row_id(shard, index), "none", num_prompt_tokens=5, bucket=8, attempts=1)
    values = {
        "status": "ok",
        "error": None,
        "output_text": f"answer {index}",
        "output_token_ids": [4, 5, 6],
        "num_output_tokens": 3,
        "num_forwards": 3,
        "kl_trace": [None, 0.5, 0.25],
        "entropy_trace": [1.0, 0.5, 0.25],
        "commit_step": [1, 2, 3],
        "seconds": 0.5,
        "replica": "replica-0",
        "stop_reason": "complete",
    }
    return replace(row, **{**values, **changes})


def bad(shard: int, index: int) -> Result:
    """A failed row."""
    return Result.failed(row_id(shard, index), FAILURE, num_prompt_tokens=5, bucket=8, attempts=1)


def begun(
    output: Storage,
    source: Path,
    prompts: Sequence[pa.Table],
    prompt_column: str,
    fingerprint: Callable[[list[InputFile]], dict[str, Any]],
    settings: dict[str, Any],
) -> tuple[Ledger, PromptShards]:
    """A run's ledger, which holds its lease, and its input; the prompts are written first where
    they are not there yet."""
    if not source.exists():
        source.mkdir(parents=True)
        for number, table in enumerate(prompts):
            pq.write_table(table, source / f"{number}.parquet")
    inputs = prompt_shards.inspect(input_files.find(str(source)), prompt_column)
    ledger = Ledger(output, Plan(inputs.files, fingerprint(inputs.files), settings))
    ledger.begin()
    return ledger, inputs


@dataclass
class MadeRun:
    """Shards of `num_rows` rows under a folder, and their ledger."""

    folder: Path
    num_shards: int = 3
    num_rows: int = 4
    ledger: Any = None
    prompt_column: str = "prompt"
    inputs: Any = None

    @property
    def output(self) -> Path:
        return self.folder / "out"

    @property
    def storage(self) -> Storage:
        return Storage(str(self.output))

    def begin(self) -> MadeRun:
        """Write prompts and manifest; the driver holds its lease until `end`."""
        source = self.folder / "in"
        prompts = [
            pa.table(
                {
                    "prompt": [f"prompt {number} {index}" for index in range(self.num_rows)],
                    "weight": pa.array([float("nan"), *range(1, self.num_rows)], pa.float64()),
                }
            )
            for number in range(self.num_shards)
        ]
        settings = {"input": str(source), "model": "m", "slots": 2, "decoding": DECODING}
        self.ledger, self.inputs = begun(
            self.storage, source, prompts, self.prompt_column, lambda files: FINGERPRINT, settings
        )
        return self

    def open_shard(self, number: int) -> OpenShard:
        """A shard's prompts and what storage has of its results."""
        shard = OpenShard(number, self.inputs.read(self.ledger.plan.files[number].name))
        self.ledger.restore(shard)
        return shard

    def end(self) -> MadeRun:
        self.ledger.end()
        return self

    def add(self, number: int, rows: Collection[int], failed: Collection[int] = ()) -> None:
        """Rows of a shard come in and reach storage; a shard that is complete is written."""
        if number not in self.ledger.shards:
            self.ledger.open(self.open_shard(number))
        results = [bad(number, n) if n in failed else good(number, n) for n in rows]
        self.ledger.add(number, results_batch(results))
        self.ledger.flush()
        self.ledger.commit_complete()

    def whole(self, failed: Collection[int] = ()) -> MadeRun:
        """All shards, each with these failed rows."""
        for number in range(self.num_shards):
            self.add(number, range(self.num_rows), failed)
        return self

    def shard(self, number: int) -> Path:
        """A result shard's file."""
        return self.output / shard_name(number, self.num_shards)

    def rewrite(
        self,
        number: int,
        change: Callable[[pa.Table], pa.Table],
        provenance: dict[str, Any] | None = None,
    ) -> None:
        """Write a shard anew with its record, as a driver that is wrong would."""
        path = self.shard(number)
        footer = {
            "lrd.fingerprint": json.dumps(FINGERPRINT),
            "lrd.input": f"{number}.parquet",
            **(provenance or {}),
        }
        table = change(pq.read_table(path))
        content = bytes(result_shards.parquet_bytes(table, footer))
        path.write_bytes(content)
        record = self.output / commit_name(number)
        commit = Commit(**json.loads(record.read_text()))
        digest = hashlib.sha256(content).hexdigest()
        record.write_text(json.dumps(asdict(replace(commit, sha256=digest, rows=table.num_rows))))


def with_column(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    """The table with one column's values replaced."""
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(name), [pa.array(values, table[name].type)])
