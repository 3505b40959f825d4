"""Finished result shards → a score for each row, and what they come to.

Reads OUT/data alone (the manifest only says how many shards there will be), decodes nothing
and can be run again. Knows nothing of any single task, of models or of Ray.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.output.result_shards import parquet_bytes
from pipeline.output.run_folder import MANIFEST
from pipeline.rows import RESULT_SCHEMA
from pipeline.scoring.summary import Evaluation, summarize
from pipeline.scoring.task import Score, Task
from pipeline.scoring.workers import Answer, score_answers
from pipeline.storage import retry, uris
from pipeline.storage.storage import Storage

SCORES = ".scores"
"""Folder of scores under an output: pandas and datasets take any other Parquet there for data."""
_RESULTS = ["row_id", "status", "error", "stop_reason", "num_output_tokens", "num_forwards"]
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
    on_progress: Callable[[int], None] = lambda num_scored: None,
) -> Evaluation:
    """Score every row of a result dataset and write the scores to one Parquet file.

    reference_column: the input column with the reference; the task's own where None.
    scores: path of the file; OUT/.scores/TASK.parquet where None. num_workers: processes; one
    a core where 0. partial: score a run that is not finished.
    Raises ValueError where there is nothing to score or a column is missing, ScorerError where
    this machine cannot score.
    """
    names, num_planned = finished_shards(output, partial)
    folder, file = _scores_place(output, task, scores)
    reference, columns = _columns(output, names, task, reference_column)
    tables: list[pa.Table] = []
    found: dict[int, Score] = {}
    answers = _answers(output, names, columns, reference, tables, found)
    for index, score in score_answers(task.name, answers, num_workers or os.cpu_count() or 1):
        found[index] = score
        on_progress(len(found))
    rows = pa.concat_tables(tables)
    if not rows.num_rows:
        raise ValueError(f"{output.uri}: has no rows to score")
    table = _scores(rows, found)
    result = summarize(task.name, rows, table, len(names), num_planned, folder.path(file))
    folder.write(file, parquet_bytes(table, {"lrd.evaluation": json.dumps(asdict(result))}))
    return result


def finished_shards(output: Storage, partial: bool = False) -> tuple[list[str], int]:
    """The result shards and how many there will be.

    Raises ValueError where there are none or, without `partial`, not all.
    """
    if output.kind() != "folder":
        raise ValueError(f"{output.uri}: no such folder; give the --output of lrd generate")
    names = [f"data/{name}" for name in output.names("data") if name.endswith(".parquet")]
    if output.kind(MANIFEST) == "file":
        num_planned = len(json.loads(output.read(MANIFEST))["files"])
    elif names:
        # A dataset that was copied without its run: train-00000-of-00012.parquet.
        count = names[0].removesuffix(".parquet").rpartition("-of-")[2]
        num_planned = int(count) if count.isdigit() else len(names)
    else:
        raise ValueError(f"{output.uri}: holds no run; give the --output of lrd generate")
    if not num_planned:
        raise ValueError(f"{output.uri}: has no rows to score: the run's input has none")
    if not names:
        raise ValueError(f"{output.uri}: 0 of {num_planned} shards are finished; continue the run")
    if len(names) < num_planned and not partial:
        raise ValueError(
            f"{output.uri}: {len(names)} of {num_planned} shards are finished; continue the "
            "run, or score what is there with --partial"
        )
    return names, num_planned


def _scores_place(output: Storage, task: Task, scores: str | None) -> tuple[Storage, str]:
    if scores is None:
        return output, f"{SCORES}/{task.name}.parquet"
    parent, name = uris.parent(scores)
    folder = Storage(parent)
    if not name.endswith(".parquet"):
        raise ValueError(f"{scores}: is no name of a .parquet file; change --output")
    inside = (folder.root + "/").startswith(output.root + "/")
    hidden = folder.root.removeprefix(output.root).startswith("/.")
    if folder.is_local == output.is_local and inside and not hidden:
        raise ValueError(
            f"{scores}: would be read as results there; leave --output out, or name a place "
            f"outside {output.uri}"
        )
    return folder, name


def _columns(
    output: Storage, names: Sequence[str], task: Task, reference_column: str | None
) -> tuple[str, list[str]]:
    """The reference's column, and the columns to read beside the results'."""
    with _shard(output, names[0]) as parquet:
        there = parquet.schema_arrow.names
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
        with _shard(output, name) as parquet:
            table = parquet.read(columns=[*_RESULTS, "output_text", *columns])
        rows = _readable_rows(table)
        references = pa.array([_written(row.get(reference)) for row in rows], pa.string())
        kept = table.select(_RESULTS).append_column(_SCHEMA.field("reference"), references)
        tables.append(kept.replace_schema_metadata(None))
        for number, row in enumerate(rows):
            if row["status"] != "ok":
                continue
            if missing := [name for name in ["output_text", *columns] if name not in row]:
                found[first + number] = Score(False, None, f"no UTF-8: column {missing[0]}")
            elif row[reference] is not None:
                example = {column: row[column] for column in columns}
                yield Answer(first + number, row["output_text"], row[reference], example)
        first += table.num_rows


def _readable_rows(table: pa.Table) -> list[dict[str, Any]]:
    """The rows by column, without the cells whose bytes are no UTF-8."""
    try:
        rows: list[dict[str, Any]] = table.to_pylist()
    except UnicodeDecodeError:
        rows = [{} for _ in range(table.num_rows)]
        for name in table.column_names:
            for row, value in zip(rows, table[name], strict=True):
                with suppress(UnicodeDecodeError):
                    row[name] = value.as_py()
    return rows


@contextmanager
def _shard(output: Storage, name: str) -> Iterator[pq.ParquetFile]:
    """An open shard. Raises ValueError naming a file that is not whole."""
    try:
        with output.open(name) as source:
            yield pq.ParquetFile(source)
    except retry.StorageError:
        raise
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{output.path(name)}: not a whole Parquet file ({reason}); remove it and continue "
            "the run, which decodes it again"
        ) from error


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
