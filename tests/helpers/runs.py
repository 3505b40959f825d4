"""Runs on storage without Ray: written by the ledger itself, then damaged by the tests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
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
from pipeline.rows import InputFile, Layout, Result, results_batch, row_id
from pipeline.storage.storage import Storage

DECODING = {"gen_length": 3}
FINGERPRINT = {"model": "m", "dtype": "float32", "decoding": DECODING}
FAILURE = "non-finite logits in pass 1"


def good(shard: int, index: int, part: int | None = None, **changes: Any) -> Result:
    """An ok row of three passes over three positions. part: which of the prompt's samples."""
    name = row_id(shard, index, part)
    row = Result.failed(name, "none", num_prompt_tokens=5, bucket=8, attempts=1)
    values = {
        "status": "ok",
        "error": None,
        "output_text": f"answer {index}" if part is None else f"answer {index} {part}",
        "output_token_ids": [4, 5, 6],
        "num_output_tokens": 3,
        "canvas_length": 3,
        "num_forwards": 3,
        "kl_trace": [None, 0.5, 0.25],
        "entropy_trace": [1.0, 0.5, 0.25],
        "num_uncommits": 0,
        "commit_step": [1, 2, 3],
        "token_confidence": [0.9, 0.8, 0.7],
        "mean_confidence": 0.8,
        "min_confidence": 0.7,
        "seconds": 0.5,
        "replica": "replica-0",
        "stop_reason": "complete",
    }
    return replace(row, **{**values, **changes})


def bad(shard: int, index: int, part: int | None = None) -> Result:
    """A failed row."""
    name = row_id(shard, index, part)
    return Result.failed(name, FAILURE, num_prompt_tokens=5, bucket=8, attempts=1)


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
    """Shards of `num_rows` prompts under a folder, and their ledger. Rows are named by their
    numbers in the result shard."""

    folder: Path
    num_shards: int = 3
    num_rows: int = 4
    layout: Layout = field(default_factory=Layout)
    ledger: Any = None
    prompt_column: str = "prompt"
    inputs: Any = None

    @property
    def output(self) -> Path:
        return self.folder / "out"

    @property
    def fingerprint(self) -> dict[str, Any]:
        decoding = {**DECODING, "reopen": "drop"} if self.layout.reopens else DECODING
        return {**FINGERPRINT, "decoding": decoding, **self.layout.facts}

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
            self.storage,
            source,
            prompts,
            self.prompt_column,
            lambda files: self.fingerprint,
            settings,
        )
        return self

    def open_shard(self, number: int) -> OpenShard:
        """A shard's prompts and what storage has of its results."""
        prompts = self.inputs.read(self.ledger.plan.files[number].name)
        shard = OpenShard(number, prompts, self.layout)
        self.ledger.restore(shard)
        return shard

    def end(self) -> MadeRun:
        self.ledger.end()
        return self

    def add(self, number: int, rows: Collection[int], failed: Collection[int] = ()) -> None:
        """Rows of a shard come in and reach storage; a shard that is complete is written."""
        if number not in self.ledger.shards:
            self.ledger.open(self.open_shard(number))
        results = []
        for row in rows:
            index, part = divmod(row, self.layout.num_samples)
            make = bad if row in failed else good
            results.append(make(number, index, self.layout.samples[part]))
        self.ledger.add(number, results_batch(results))
        self.ledger.flush()
        self.ledger.commit_complete()

    def whole(self, failed: Collection[int] = ()) -> MadeRun:
        """All shards, each with these failed rows."""
        for number in range(self.num_shards):
            self.add(number, range(self.num_rows * self.layout.num_samples), failed)
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
            "lrd.fingerprint": json.dumps(self.fingerprint),
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
