"""Adds a task's column `prompt` to a source's rows, with solved exemplars for base models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa

from pipeline.preparing.parquet_rows import FEATURES
from pipeline.preparing.reading import PROMPT, Reading, Rows
from pipeline.preparing.source import open_source
from pipeline.scoring.task import Example, Task, few_shot_prompt

KEPT = "source_prompt"
"""The name that the source's own column `prompt` gets."""


def read_exemplars(task: Task, shots: int | None, path: str | None) -> list[Any] | None:
    """The solved examples to show; None for a chat model's prompt.

    Raises ValueError where --shots and --exemplars do not fit or the file lacks rows or columns.
    """
    if shots is None and path is None:
        return None
    if shots is None or shots < 0 or bool(shots) != bool(path):
        raise ValueError(
            "--shots N and --exemplars FILE.parquet go together; --shots 0 goes without"
        )
    if path is None:
        return []
    with open_source(path, Reading(limit=shots)) as rows:
        _check_columns(path, rows.schema.names, task, task.exemplar_columns)
        found = [row for table in rows.tables for row in table.to_pylist()]
    if len(found) < shots:
        raise ValueError(f"{path}: has {len(found)} rows, --shots is {shots}")
    return found


def with_prompts(rows: Rows, source: str, task: Task, exemplars: Sequence[Example] | None) -> Rows:
    """The rows with the task's column `prompt`, null in a row that lacks a part of it.

    Raises ValueError where the source lacks the task's columns, or was prepared already.
    """
    names = rows.schema.names
    _check_columns(source, names, task, task.prompt_columns)
    if PROMPT in names and KEPT in names:
        raise ValueError(f"{source}: has `{PROMPT}` and `{KEPT}`; it is prepared already")
    fields = [
        field.with_name(KEPT if field.name == PROMPT else field.name) for field in rows.schema
    ]
    schema = pa.schema([*fields, pa.field(PROMPT, pa.string())], _features(rows.schema.metadata))
    make: Callable[[Example], str] = task.chat_prompt
    if exemplars is not None:
        make = partial(few_shot_prompt, task, exemplars)

    def tables() -> Iterator[pa.Table]:
        for table in rows.tables:
            parts = table.select(task.prompt_columns).to_pylist()
            prompts = [None if None in row.values() else make(row) for row in parts]
            columns = [*table.columns, pa.array(prompts, pa.string())]
            yield pa.table(columns, schema)

    return replace(rows, schema=schema, tables=tables())


def _features(metadata: dict[bytes, bytes] | None) -> dict[bytes, bytes] | None:
    """The features of `datasets` with those of the new columns."""
    if not metadata or FEATURES not in metadata:
        return None
    content = json.loads(metadata[FEATURES])
    features = content["info"]["features"]
    if PROMPT in features:
        features[KEPT] = features[PROMPT]
    features[PROMPT] = {"dtype": "string", "_type": "Value"}
    return {FEATURES: json.dumps(content).encode()}


def _check_columns(source: str, there: list[str], task: Task, columns: tuple[str, ...]) -> None:
    missing = [column for column in columns if column not in there]
    if missing:
        raise ValueError(
            f"{source}: no column {', '.join(missing)} for task {task.name}; it has "
            f"{', '.join(there)}"
        )
