"""Reads what `lrd evaluate` stored with a run: the summary of each task, and its rows' scores."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.output.result_shards import opened
from pipeline.output.run_folder import SCORES
from pipeline.parquet_batches import batches
from pipeline.storage.storage import Storage

EVALUATION = "lrd.evaluation"
"""Footer key of the summary in a file of scores, JSON."""
AGAIN = "score again or remove it"


def stored_tasks(output: Storage) -> list[str]:
    """Names of the files of scores that are stored with a run, sorted, without `.parquet`: tasks,
    unless somebody renamed one."""
    names = output.names(SCORES)
    return [name.removesuffix(".parquet") for name in names if name.endswith(".parquet")]


def read_evaluations(output: Storage) -> list[dict[str, Any]]:
    """The summary of `lrd evaluate` for every task whose scores are stored with the run: task,
    num_correct, num_rows, accuracy, accuracy_low, accuracy_high, and `samples` (a dictionary of
    `SampleShares`) or None.

    Raises ValueError that names the file where one is not a file of scores.
    """
    found = []
    for task in stored_tasks(output):
        name = f"{SCORES}/{task}.parquet"
        try:
            with output.open(name) as source:
                footer = pq.read_metadata(source).metadata or {}
            found.append(_checked(json.loads(footer[EVALUATION.encode()])))
        except (pa.ArrowException, KeyError, ValueError, TypeError) as error:
            raise ValueError(
                f"{output.path(name)}: is not a file of scores ({error!r}); {AGAIN}"
            ) from error
    return found


def read_scores(output: Storage, task: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """These columns of a task's scores in the order of the rows, a batch at a time.

    Raises ValueError that names the file where it is damaged or is not one of scores.
    """
    name = f"{SCORES}/{task}.parquet"
    with opened(output, name, AGAIN) as parquet:
        lacking = sorted(set(columns) - set(parquet.schema_arrow.names))
        if lacking:
            raise ValueError(
                f"{output.path(name)}: is not a file of scores (no column {lacking[0]}); {AGAIN}"
            )
        for batch in batches(parquet, columns):
            yield batch.select(list(columns))


def _checked(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The parts that are used, with their types. Raises KeyError, TypeError or ValueError where
    they are missing or others."""
    counts = {key: int(evaluation[key]) for key in ("num_correct", "num_rows")}
    shares = ("accuracy", "accuracy_low", "accuracy_high")
    samples = evaluation.get("samples")
    return {
        "task": str(evaluation["task"]),
        **counts,
        **{key: float(evaluation[key]) for key in shares},
        "samples": samples if samples is None else _checked_samples(samples),
    }


def _checked_samples(samples: dict[str, Any]) -> dict[str, Any]:
    majority = samples["majority"]
    return {
        **{key: int(samples[key]) for key in ("num_samples", "num_prompts")},
        "pass_at": {int(k): _share(share) for k, share in samples["pass_at"].items()},
        "majority": majority if majority is None else _share(majority),
    }


def _share(found: dict[str, Any]) -> dict[str, float]:
    return {key: float(found[key]) for key in ("share", "low", "high")}


def sample_rows(evaluation: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """Name and share of every figure that an evaluation of several samples has: pass@1, pass@2, …,
    `majority of 8`; none of one with one sample a prompt."""
    samples = evaluation["samples"]
    if samples is None:
        return []
    rows = [(f"pass@{k}", share) for k, share in samples["pass_at"].items()]
    if samples["majority"] is not None:
        rows.append((f"majority of {samples['num_samples']}", samples["majority"]))
    return rows
