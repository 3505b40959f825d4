"""Scores every row of finished result shards, and summarises the scores.

Reads OUT/data alone (the manifest only says how many shards there will be), decodes nothing
and can be run again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa

from pipeline.input.one_schema import is_list
from pipeline.observe.stages import stage
from pipeline.output.result_shards import kept_columns, opened, parquet_bytes
from pipeline.output.run_folder import SCORES, finished_shards
from pipeline.output.statistics import COUNTED
from pipeline.rows import RESULT_SCHEMA
from pipeline.scoring.stored_scores import EVALUATION
from pipeline.scoring.summary import Evaluation, summarize
from pipeline.scoring.task import Score, Task
from pipeline.scoring.workers import Answer, score_answers
from pipeline.storage import uris
from pipeline.storage.storage import Storage

_RESULTS = ["row_id", *COUNTED]
_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("status", pa.string()),
        ("correct", pa.bool_()),
        ("extracted", pa.string()),
        ("reference", pa.string()),
        ("reason", pa.string()),
    ]
)


def evaluate(
    output: Storage,
    task: Task,
    *,
    reference_column: str | None = None,
    scores: str | None = None,
    num_workers: int = 0,
    partial: bool = False,
) -> Evaluation:
    """Score every row of a result dataset and write the scores to one Parquet file.

    reference_column: the input column with the reference; the task's own where None.
    scores: path of the file; OUT/.scores/TASK.parquet where None. num_workers: processes; one
    a core where 0. partial: score a run that is not finished.
    Raises ValueError where there is nothing to score or a column is missing, ScorerError where
    this machine cannot score.
    """
    shards, num_planned = finished_shards(output, "score", partial)
    names = [shard.name for shard in shards]
    folder, file = _scores_file(output, task, scores)
    folder.check_writable()
    reference, columns = _columns(output, names, task, reference_column)
    tables: list[pa.Table] = []
    found: dict[int, Score] = {}
    answers = _answers(output, names, columns, reference, tables, found)
    with stage("scoring answers", unit="rows") as step:
        for index, score in score_answers(task.name, answers, num_workers or os.cpu_count() or 1):
            found[index] = score
            step.at(len(found))
    rows = pa.concat_tables(tables)
    if not rows.num_rows:
        raise ValueError(f"{output.uri}: has no rows to score")
    table = _scores(rows, found)
    result = summarize(task, rows, table, len(names), num_planned, folder.path(file))
    folder.write(file, parquet_bytes(table, {EVALUATION: json.dumps(result.to_json())}))
    return result


def _scores_file(output: Storage, task: Task, scores: str | None) -> tuple[Storage, str]:
    if scores is None:
        return output, f"{SCORES}/{task.name}.parquet"
    parent, name = uris.parent(scores)
    folder = Storage(parent)
    if not name.endswith(".parquet"):
        raise ValueError(f"{scores}: is not the name of a .parquet file; change --output")
    inside = (folder.root + "/").startswith(output.root + "/")
    hidden = folder.root.removeprefix(output.root).startswith("/.")
    if folder.is_local == output.is_local and inside and not hidden:
        raise ValueError(
            f"{scores}: would be read as results there; leave --output out, or name a file "
            f"outside {output.uri}"
        )
    return folder, name


def _columns(
    output: Storage, names: Sequence[str], task: Task, reference_column: str | None
) -> tuple[str, list[str]]:
    """The reference's column, and the columns to read beside the results'."""
    with opened(output, names[0]) as parquet:
        there = parquet.schema_arrow.names
        types = {field.name: field.type for field in parquet.schema_arrow}
    wanted = (reference_column,) if reference_column else task.reference_columns
    reference = next((name for name in wanted if name in there), None)
    given = [name for name in there if name not in RESULT_SCHEMA.names]
    missing = None if reference else f"{' or '.join(wanted)} for the references"
    missing = missing or next(iter(sorted(set(task.score_columns) - set(there))), None)
    if missing or reference is None:
        raise ValueError(
            f"{output.uri}: no column {missing}; the input gave it {', '.join(given)}. "
            "Name the references' with --reference-column, or prepare the input with "
            f"lrd prepare --task {task.name}"
        )
    optional = [name for name in task.optional_columns if name in there]
    if "prompt" in task.score_columns and is_list(types["prompt"]) and not optional:
        raise ValueError(
            f"{output.uri}: column 'prompt' holds chats, and task {task.name} reads a text there; "
            f"keep that text in a column {' or '.join(task.optional_columns)}"
        )
    return reference, list(dict.fromkeys([reference, *task.score_columns, *optional]))


def _answers(
    output: Storage,
    names: Sequence[str],
    columns: list[str],
    reference: str,
    tables: list[pa.Table],
    found: dict[int, Score],
) -> Iterator[Answer]:
    """Decoded rows, shard by shard; what scores need of every row is kept in `tables`.

    A decoded row with a cell that cannot be read has its score in `found` and is left out.
    """
    first = 0
    for name in names:
        with opened(output, name) as parquet:
            kept = kept_columns(parquet, _RESULTS, output.path(name))
            table = parquet.read(columns=[*kept, "output_text", *columns])
        rows = _readable_rows(table)
        references = pa.array([_written(row.get(reference)) for row in rows], pa.string())
        results = table.select(kept).append_column("reference", references)
        tables.append(results.replace_schema_metadata(None))
        for number, row in enumerate(rows):
            if row["status"] != "ok":
                continue
            if missing := [name for name in ["output_text", *columns] if name not in row]:
                found[first + number] = Score(False, None, f"not UTF-8: column {missing[0]}")
            elif row[reference] is not None:
                example = {column: row[column] for column in columns}
                yield Answer(first + number, row["output_text"], row[reference], example)
        first += table.num_rows


def _readable_rows(table: pa.Table) -> list[dict[str, Any]]:
    """The rows by column, without the cells whose bytes are not UTF-8."""
    try:
        rows: list[dict[str, Any]] = table.to_pylist()
    except UnicodeDecodeError:
        rows = [{} for _ in range(table.num_rows)]
        for name in table.column_names:
            for row, value in zip(rows, table[name], strict=True):
                with suppress(UnicodeDecodeError):
                    row[name] = value.as_py()
    return rows


def _written(reference: Any) -> str | None:
    if reference is None or isinstance(reference, str):
        return reference
    return json.dumps(reference, default=str)


def _scores(rows: pa.Table, found: dict[int, Score]) -> pa.Table:
    scores = [
        found.get(index) or Score(False, None, f"not decoded: {error}" if error else "no reference")
        for index, error in enumerate(rows["error"].to_pylist())
    ]
    columns = {
        "row_id": rows["row_id"],
        "status": rows["status"],
        "correct": [score.correct for score in scores],
        "extracted": [score.extracted for score in scores],
        "reference": rows["reference"],
        "reason": [score.reason for score in scores],
    }
    return pa.table(columns, schema=_SCHEMA)
