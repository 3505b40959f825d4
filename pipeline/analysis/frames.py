"""A run's result rows → a pandas DataFrame, and what a frame must have for a table or a plot."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pandas as pd
import pyarrow as pa

from lrd.models.tokenizer import load_tokenizer
from pipeline.output.run_folder import read_manifest
from pipeline.report.tokens import tokenizer_folder
from pipeline.rows import RESULT_SCHEMA
from pipeline.scoring.stored_scores import read_scores, stored_tasks
from pipeline.selecting.run_rows import RunRows, read_correct, read_run_rows
from pipeline.storage.storage import Storage

SCORES = ("correct", "extracted")
"""Columns that scores add."""
DTYPES: dict[pa.DataType, Any] = {
    pa.int8(): pd.Int8Dtype(),
    pa.int16(): pd.Int16Dtype(),
    pa.int32(): pd.Int32Dtype(),
    pa.int64(): pd.Int64Dtype(),
    pa.uint8(): pd.UInt8Dtype(),
    pa.uint16(): pd.UInt16Dtype(),
    pa.uint32(): pd.UInt32Dtype(),
    pa.uint64(): pd.UInt64Dtype(),
    pa.bool_(): pd.BooleanDtype(),
}
"""Integers and booleans keep their type where a failed row has none, and integers their value."""
CANNOT_HOLD = (pa.ArrowException, ValueError)
"""What a conversion raises for a type without a pandas one, and for dates that Python lacks."""
RUN = "lrd"
"""Key of `DataFrame.attrs` under which `load` notes the run's output and level of columns."""


def load(
    output: str | os.PathLike[str],
    *,
    columns: Sequence[str] | None = None,
    task: str | None = None,
    partial: bool = False,
) -> pd.DataFrame:
    """The result rows of a run, in order: the input's columns, then those of the results.

    output: the run's --output, a path or URI. columns: only these, for large runs. task: adds the
    scores that `lrd evaluate --task` stored with the run: `correct`, and `extracted` (the answer
    that was compared). partial: of a run that is not finished, the rows of its finished shards.

    Integers and booleans have pandas' nullable types, lists are numpy arrays. Raises ValueError, in
    one line, where the run is not finished, or a column or the scores are not there.
    """
    rows = read_run_rows(Storage(os.fspath(output)), partial, "load", "partial=True")
    names = rows.schema.names if columns is None else _known(rows, columns)
    scores = {} if task is None else _scores(rows, task, names)
    schema = pa.schema([rows.schema.field(name) for name in names])
    table = pa.Table.from_batches([batch for _, batch in rows.batches(names)], schema)
    frame = _frame(table, rows.output.uri)
    for name, values in scores.items():
        frame[name] = values
    frame.attrs[RUN] = {"output": rows.output.uri, "columns": rows.manifest.layout.columns}
    return frame


def tokenizer(output: str | os.PathLike[str]) -> Any:
    """The tokenizer of a run's model, for `tokens` and `plot_commit_order`; no weights are read.

    Raises ValueError where it cannot be loaded.
    """
    settings = read_manifest(Storage(os.fspath(output))).settings
    found = load_tokenizer(tokenizer_folder(str(settings["model"]), settings.get("revision")))
    if found is None:
        raise ValueError(f"{settings['model']}: has no tokenizer files")
    return found


def require(frame: pd.DataFrame, names: Sequence[str], use: str) -> None:
    """Raises ValueError where a frame lacks columns: which, for what, and how to get them."""
    lacking = [name for name in names if name not in frame.columns]
    if not lacking:
        return
    what = f"{use} needs {', '.join(lacking)}, which this frame lacks"
    run = frame.attrs.get(RUN, {})
    if run.get("columns", "full") != "full":
        what += f": {_not_kept(run['output'], run['columns'])}"
    else:
        what += "; load the run without columns=, or name them there"
    raise ValueError(what)


def _not_kept(output: str, level: str) -> str:
    return f"{output} keeps {level} columns (lrd generate --columns says which are written)"


def _known(rows: RunRows, columns: Sequence[str]) -> list[str]:
    for name in columns:
        if name in RESULT_SCHEMA.names and name not in rows.schema.names:
            level = rows.manifest.layout.columns
            raise ValueError(f"no column {name!r}: {_not_kept(rows.output.uri, level)}")
        rows.field(name)
    return list(dict.fromkeys(columns))


def _scores(rows: RunRows, task: str, names: Sequence[str]) -> dict[str, Any]:
    """The columns of a task's scores, checked against the rows as they are now."""
    there = stored_tasks(rows.output)
    if task not in there:
        known = f"there are {', '.join(there)}" if there else "there are none"
        raise ValueError(
            f"{rows.output.uri}: no scores of {task}, {known}; lrd evaluate stores them"
        )
    if doubled := [name for name in SCORES if name in names]:
        raise ValueError(
            f"{rows.output.uri}: the input has a column {doubled[0]} itself; name the columns to "
            "load without it (columns=…)"
        )
    correct = read_correct(rows, task)
    extracted = [b["extracted"] for b in read_scores(rows.output, task, ["extracted"])]
    return {
        "correct": pd.array(correct, dtype="boolean"),
        "extracted": pa.chunked_array(extracted, pa.string()).to_pandas(),
    }


def _frame(table: pa.Table, where: str) -> pd.DataFrame:
    options = {"types_mapper": DTYPES.get, "ignore_metadata": True}
    try:
        frame: pd.DataFrame = table.to_pandas(**options)
        return frame
    except CANNOT_HOLD as error:
        for name in table.column_names:
            try:
                table.select([name]).to_pandas(**options)
            except CANNOT_HOLD as reason:
                kind = table.schema.field(name).type
                raise ValueError(
                    f"{where}: pandas cannot hold column {name!r} ({kind}: {reason}); name the "
                    "columns to load without it (columns=…)"
                ) from error
        raise
