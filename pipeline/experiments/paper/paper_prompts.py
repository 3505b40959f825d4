"""The prompts of the paper's tables: the embedded model's test problems, or shards that
`lrd prepare --task` made, all of them or the first rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.input import input_files, prompt_shards
from pipeline.output import result_shards
from pipeline.scoring.tasks import TASKS, task_named
from pipeline.scoring.word_problems import TASK as OWN_TASK
from pipeline.storage.storage import Storage
from pipeline.storage.uris import child

OWN_ROWS = 500


@dataclass(frozen=True, slots=True)
class Prompts:
    """One task's prompts."""

    uri: str
    """Their folder, as runs take it."""
    table: pa.Table | None
    """What has to be written there; None where it is there already."""


def prompts_of(
    words: Sequence[str],
    limit: int | None,
    output: str,
    make_problems: Callable[[int], pa.Table],
) -> dict[str, Prompts]:
    """`--task NAME[=PROMPTS]` → each task's prompts, read but not written.

    make_problems: so many rows of the embedded model's task, columns prompt and answer.

    Raises ValueError for an unknown task, shards that are missing or not a task's, and a
    limit that leaves no row.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"--limit is {limit}; at least 1 row is needed")
    found: dict[str, Prompts] = {}
    for word in words:
        name, _, source = word.partition("=")
        name = task_named(name.replace("_", "-")).name
        if name in found:
            raise ValueError(f"--task {name} is given twice; one set of prompts a task")
        if not source and name != OWN_TASK.name:
            raise ValueError(
                f"--task {name} needs its prompts: --task {name}=FOLDER, made by "
                f"lrd prepare --task {name} SOURCE --output FOLDER"
            )
        if source:
            found[name] = _given(name, source, limit, output)
        else:
            count = limit or OWN_ROWS
            uri = child(output, f"prompts/{OWN_TASK.name}-{count}")
            found[name] = Prompts(uri, make_problems(count))
    return found


def write(prompts: Mapping[str, Prompts]) -> None:
    """Write what is not there yet. Raises ValueError where other prompts are."""
    for found in prompts.values():
        if found.table is None:
            continue
        folder, name = Storage(found.uri), "prompts-00000-of-00001.parquet"
        if folder.kind(name) == "missing":
            folder.write(name, result_shards.parquet_bytes(found.table))
            continue
        with folder.open(name) as source:
            if not prompt_shards.read_shard(source, name).equals(found.table):
                raise ValueError(f"{found.uri}: holds other prompts; name another --output")


def _given(name: str, source: str, limit: int | None, output: str) -> Prompts:
    inputs = prompt_shards.inspect(input_files.find(source), "prompt")
    task = TASKS[name]
    there = set(inputs.schema.names)
    if not set(task.reference_columns) & there or set(task.score_columns) - there:
        needed = [" or ".join(task.reference_columns), *task.score_columns]
        raise ValueError(
            f"{source}: no column {', '.join(needed)} as task {name} is scored by; make the "
            f"prompts with lrd prepare --task {name}"
        )
    if limit is None or sum(file.num_rows for file in inputs.files) <= limit:
        return Prompts(source, None)
    tables: list[pa.Table] = []
    for file in inputs.files:
        tables.append(inputs.read(file.name))
        if sum(table.num_rows for table in tables) >= limit:
            break
    return Prompts(child(output, f"prompts/{name}-{limit}"), pa.concat_tables(tables)[:limit])
