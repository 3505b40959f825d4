"""The result rows of a run as rules read them: numbered from 0 in their order, a few columns and a
batch at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, zip_longest
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.output.result_shards import opened
from pipeline.output.run_folder import (
    check_digest,
    commit_name,
    finished_shards,
    read_commit,
    read_manifest,
)
from pipeline.output.run_records import Manifest, Shard
from pipeline.parquet_batches import batches
from pipeline.rows import prompt_id
from pipeline.scoring.stored_scores import read_scores
from pipeline.storage.storage import Storage

BLOCK_BYTES = 1 << 23
"""Read at a time for a digest."""

Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]
"""Which rows of a run are still kept: a byte a row."""


def digest_of(output: Storage, name: str) -> str:
    """SHA-256 of a file, a block at a time."""
    found = hashlib.sha256()
    with output.open(name) as source:
        for block in iter(partial(source.read, BLOCK_BYTES), b""):
            found.update(block)
    return found.hexdigest()


@dataclass(frozen=True, slots=True)
class RunRows:
    """The rows of a run's finished shards."""

    output: Storage
    manifest: Manifest
    shards: list[Shard]
    num_shards_planned: int
    shard_rows: list[int]
    """Rows of each shard."""
    schema: pa.Schema
    footer: dict[str, str]
    """Entries under `lrd.` of the shards' footers, but for those of a single shard."""

    @property
    def num_rows(self) -> int:
        return sum(self.shard_rows)

    def check_digests(self) -> None:
        """Read every byte of the shards. Raises ValueError where one is not as it was written."""
        for shard in self.shards:
            record = read_commit(self.output, commit_name(shard.number))
            check_digest(self.output, shard.name, digest_of(self.output, shard.name), record)

    def field(self, name: str) -> pa.Field:
        """A column. Raises ValueError that names the known ones."""
        if name not in self.schema.names:
            known = ", ".join(self.schema.names)
            raise ValueError(f"{self.output.uri}: no column {name!r}; there are {known}")
        return self.schema.field(name)

    def batches(
        self, columns: Sequence[str], kept: Mask | None = None
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """These columns of all rows, with the number of each batch's first row; without batches of
        which no row is `kept`."""
        first = 0
        for shard, num_rows in zip(self.shards, self.shard_rows, strict=True):
            if kept is not None and not kept[first : first + num_rows].any():
                first += num_rows
                continue
            with opened(self.output, shard.name) as parquet:
                for batch in batches(parquet, columns):
                    if kept is None or kept[first : first + batch.num_rows].any():
                        yield first, batch.select(list(columns))
                    first += batch.num_rows

    def prompts(self, columns: Sequence[str], kept: Mask) -> Iterator[list[tuple[Any, ...]]]:
        """The kept rows of one prompt after another: number, row id and these columns of each.

        Raises ValueError where the rows are not in the order of their ids.
        """
        return by_prompt(self.batches(["row_id", *columns], kept), kept, self.output.uri)


def by_prompt(
    found: Iterator[tuple[int, pa.RecordBatch]], kept: Mask, where: str
) -> Iterator[list[tuple[Any, ...]]]:
    """Groups the kept rows of batches by prompt. found: number of the first row, and a batch that
    begins with `row_id`. Raises ValueError where rows of a prompt do not follow each other."""
    rows = (
        (first + number, *cells)
        for first, batch in found
        for number, cells in enumerate(zip(*(c.to_pylist() for c in batch.columns), strict=True))
        if kept[first + number]
    )
    before = ""
    for name, group in groupby(rows, lambda row: prompt_id(row[1])):
        if name <= before:
            raise ValueError(
                f"{where}: row {name} is not in the order of row ids; lrd verify says more"
            )
        before = name
        yield list(group)


def read_run_rows(
    output: Storage, partial: bool = False, use: str = "select", flag: str = "--partial"
) -> RunRows:
    """The rows of a finished run, or with `partial` of its finished shards. Only footers are read.

    use, flag: as `finished_shards`.
    Raises ValueError where the folder holds no run, or a shard is missing, no Parquet or of another
    schema.
    """
    manifest = read_manifest(output)
    shards, num_planned = finished_shards(output, use, partial, flag)
    shard_rows: list[int] = []
    schema: pa.Schema | None = None
    footer: dict[str, str] = {}
    for shard in shards:
        with opened(output, shard.name) as parquet:
            shard_rows.append(parquet.metadata.num_rows)
            if schema is None:
                schema, footer = parquet.schema_arrow, _footer(parquet.metadata.metadata)
            if not parquet.schema_arrow.equals(schema):
                raise ValueError(
                    f"{output.path(shard.name)}: has other columns than the shard before it; "
                    "lrd verify says more"
                )
    assert schema is not None
    return RunRows(output, manifest, shards, num_planned, shard_rows, schema, footer)


def _footer(found: dict[bytes, bytes] | None) -> dict[str, str]:
    return {
        key.decode(): value.decode()
        for key, value in (found or {}).items()
        if key.startswith(b"lrd.") and key != b"lrd.input"
    }


def read_correct(rows: RunRows, task: str) -> Mask:
    """Which rows the scores of a task call right.

    Raises ValueError where the scores are not those of the rows as they are now.
    """
    correct = np.zeros(rows.num_rows, np.bool_)
    names = ["row_id", "status"]
    there = (
        cells
        for _, batch in rows.batches(names)
        for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True)
    )
    scored = (
        cells
        for batch in read_scores(rows.output, task, [*names, "correct"])
        for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True)
    )
    for number, (row, score) in enumerate(zip_longest(there, scored)):
        if row is None or score is None or row != score[:2]:
            name = (row or score)[0]
            raise ValueError(
                f"{rows.output.uri}: the scores of {task} are not those of its rows now (row "
                f"{name}); run lrd evaluate again"
            )
        correct[number] = bool(score[2])
    return correct
