"""Prompt shards that tests write, and what they read of a run's output."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.tiny.problems import problems

OF_THE_RUN = ["seconds", "replica", "attempts"]
"""Result columns that tell of the run rather than of the row: two runs differ in them."""


def distinct_questions(count: int, seed: int) -> list[str]:
    """Word problems that the embedded model was not trained on, the same for the same seed."""
    found: dict[str, None] = {}
    for problem in problems("test", seed=seed):
        found.setdefault(problem.question)
        if len(found) == count:
            break
    return list(found)


def write_shards(
    folder: Path, prompts: Sequence[str | None], num_shards: int = 1, **columns: Sequence[Any]
) -> Path:
    """Write prompts, and columns of as many rows, as `part-00000.parquet`, … of equal sizes but
    for the last; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table({"prompt": pa.array(prompts, pa.string()), **columns})
    size = -(-len(prompts) // num_shards)
    for number in range(num_shards):
        pq.write_table(table.slice(number * size, size), folder / f"part-{number:05d}.parquet")
    return folder


def events(output: Path) -> list[dict[str, Any]]:
    """A run's events so far, in the order in which they happened."""
    path = output / ".run" / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def shorten(folder: Path, num_rows: int) -> None:
    """Keep `num_rows` of a folder's prompts, as many of each of its Parquet files."""
    files = sorted(folder.glob("*.parquet"))
    for file in files:
        pq.write_table(pq.read_table(file).slice(0, num_rows // len(files)), file)
