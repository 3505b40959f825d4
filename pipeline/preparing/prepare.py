"""Makes prompt shards: Parquet files of equal size, with every column of a source unchanged.

The output folder gets its name only when it is whole.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.observe.stages import stage
from pipeline.preparing.reading import Reading, Rows
from pipeline.preparing.source import open_source
from pipeline.preparing.task_prompts import read_exemplars, with_prompts
from pipeline.scoring.tasks import task_named
from pipeline.storage.storage import PARTIAL, Storage
from pipeline.storage.uris import canonical, is_uri


@dataclass(frozen=True, slots=True)
class TaskPrompts:
    """Which task makes the column `prompt`, and how."""

    name: str
    shots: int | None = None
    """Number of exemplars in a base model's prompt; None: a chat model's prompt."""
    exemplars: str | None = None
    """File of the solved examples."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was written."""

    num_rows: int
    num_shards: int
    columns: list[str]
    left_out: tuple[str, ...]
    """Files of the source that were not read."""


def prepare(
    source: str,
    output: str,
    rows_per_shard: int,
    reading: Reading,
    task_prompts: TaskPrompts | None = None,
) -> Prepared:
    """Read a source and write its shards to a local folder or a URI, where nothing may be yet.

    Raises ValueError, in one line that names file and line or setting, where the source cannot
    be read as asked, and OSError where storage fails. Nothing is left behind then.
    """
    if rows_per_shard < 1:
        raise ValueError(f"--rows-per-shard is {rows_per_shard}; at least 1 is needed")
    if reading.limit is not None and reading.limit < 1:
        raise ValueError(f"--limit is {reading.limit}; at least 1 row is needed")
    with (
        stage(f"reading {source}"),
        _output_folder(output) as folder,
        open_source(source, reading) as rows,
    ):
        if task_prompts:
            task = task_named(task_prompts.name)
            exemplars = read_exemplars(task, task_prompts.shots, task_prompts.exemplars)
            rows = with_prompts(rows, source, task, exemplars)
        try:
            num_rows, num_shards = write_shards(rows, folder, rows_per_shard)
        except (pa.ArrowException, OverflowError) as error:
            raise ValueError(f"{source}: {str(error).splitlines()[0]}") from error
        if not num_rows:
            raise ValueError(f"{source}: the source has no rows")
    return Prepared(num_rows, num_shards, rows.schema.names, rows.left_out)


@contextmanager
def _output_folder(output: str) -> Iterator[Path]:
    """A folder that becomes the output when the context ends; after an error it is removed."""
    if not output.strip():
        raise ValueError("--output is empty; name a folder or a URI")
    output = canonical(output)
    if is_uri(output):
        store = Storage(output)
        store.check_empty()
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)
            store.take_folder(Path(scratch))
        return
    place = Path(output)
    if os.path.lexists(place):
        raise ValueError(f"{place}: exists already; name a new --output or remove it")
    Storage(output).check_writable()
    partial = place.with_name(f"{place.name}.{uuid.uuid4().hex}{PARTIAL}")
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(place)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_shards(rows: Rows, folder: Path, rows_per_shard: int) -> tuple[int, int]:
    """Write shards of so many rows each, the last with the rest; numbers of rows and shards."""
    num_rows = num_shards = 0
    with stage("writing shards", unit="rows") as step:
        for shard, pieces in groupby(_cut(rows.tables, rows_per_shard), lambda piece: piece[0]):
            with pq.ParquetWriter(folder / f"{shard}{PARTIAL}", rows.schema) as writer:
                for _, table in pieces:
                    writer.write_table(table)
                    num_rows += table.num_rows
                    step.at(num_rows)
            num_shards = shard + 1
    for shard in range(num_shards):  # The names hold the number of shards, known only now.
        (folder / f"{shard}{PARTIAL}").rename(folder / shard_name(shard, num_shards))
    return num_rows, num_shards


def shard_name(number: int, num_shards: int) -> str:
    """The name of a shard, from 0; names sort as their numbers do."""
    digits = max(5, len(str(num_shards)))
    return f"prompts-{number:0{digits}d}-of-{num_shards:0{digits}d}.parquet"


def _cut(tables: Iterator[pa.Table], rows_per_shard: int) -> Iterator[tuple[int, pa.Table]]:
    """Slices of the tables, each within one shard and with that shard's number."""
    row = 0
    for table in tables:
        while table.num_rows:
            shard, used = divmod(row, rows_per_shard)
            piece = table.slice(0, rows_per_shard - used)
            yield shard, piece
            row += piece.num_rows
            table = table.slice(piece.num_rows)
