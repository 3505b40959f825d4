"""Rules that choose among the rows of one prompt."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.scoring.stored_scores import read_scores
from pipeline.scoring.tasks import task_named
from pipeline.scoring.votes import majority
from pipeline.selecting.rules import Dropped
from pipeline.selecting.run_rows import Mask, RunRows, by_prompt


def keep_best(rows: RunRows, kept: Mask, column: str) -> Mask:
    """Of each prompt the row with the largest value; of equal ones the first. Null and NaN are
    below every number."""
    check_numbers(rows, column)
    best = (max(group, key=lambda row: _size(row[2]))[0] for group in rows.prompts([column], kept))
    return _only(kept, best)


def keep_majority(rows: RunRows, kept: Mask, task: str) -> Mask:
    """Of each prompt the rows with its most frequent answer, by the scores of a task, which are
    those of the rows. Raises ValueError for a task whose answers cannot be compared."""
    comparable = comparable_answers(task)
    winners = (
        row[0]
        for group in by_prompt(_scores(rows, task), kept, rows.output.uri)
        for row, wins in zip(group, majority([r[2] for r in group], comparable), strict=True)
        if wins
    )
    return _only(kept, winners)


def comparable_answers(task: str) -> Callable[[str], object]:
    """`Task.comparable`. Raises ValueError for an unknown task, and one without."""
    comparable = task_named(task).comparable
    if comparable is None:
        raise ValueError(f"--majority: answers of {task} are programs, which cannot be compared")
    return comparable


def _scores(rows: RunRows, task: str) -> Iterator[tuple[int, pa.RecordBatch]]:
    first = 0
    for batch in read_scores(rows.output, task, ["row_id", "extracted"]):
        yield first, batch
        first += batch.num_rows


def keep_first(rows: RunRows, kept: Mask, most: int) -> Mask:
    """Of each prompt its first rows, at most so many."""
    return _only(kept, (row[0] for group in rows.prompts([], kept) for row in islice(group, most)))


def keep_best_and_worst(
    rows: RunRows, kept: Mask, correct: Mask | None, column: str | None
) -> tuple[Mask, Mask, list[Dropped]]:
    """Of each prompt its best and its worst row: the rows, which of them are best, and what was
    dropped for which reason.

    correct: a right row is better than a wrong one, and pairs have one of each. column: a row with
    a larger value is better. Of equal rows the first counts. Prompts whose best and worst row are
    alike, or have the same text, are dropped.
    """
    if column is not None:
        check_numbers(rows, column)
    chosen: list[int] = []
    rejected: list[int] = []
    dropped = Counter(dict.fromkeys(_PAIR_RULES, 0))
    for group in rows.prompts(["output_text", *([column] if column else [])], kept):
        if len(group) == 1:
            dropped["one row"] += 1
            continue
        values = [
            (correct is None or bool(correct[row[0]]), _size(row[3]) if column else 0.0)
            for row in group
        ]
        best, worst = values.index(max(values)), values.index(min(values))
        same = values[best][0] == values[worst][0] if correct is not None else best == worst
        if same or group[best][2] == group[worst][2]:
            dropped["alike"] += len(group)
            continue
        dropped["between"] += len(group) - 2
        chosen.append(group[best][0])
        rejected.append(group[worst][0])
    left = int(np.count_nonzero(kept))
    steps = []
    for reason, number in dropped.items():
        steps.append(Dropped(_PAIR_RULES[reason], left, number))
        left -= number
    return _only(kept, [*chosen, *rejected]), _only(kept, chosen), steps


_PAIR_RULES = {
    "one row": "preference: prompts of one row",
    "alike": "preference: best and worst alike",
    "between": "preference: between best and worst",
}


def check_numbers(rows: RunRows, column: str) -> None:
    """Raises ValueError where the column is not one of numbers."""
    kind = rows.field(column).type
    is_number = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    if not any(is_kind(kind) for is_kind in is_number):
        known = [f.name for f in rows.schema if any(is_kind(f.type) for is_kind in is_number)]
        raise ValueError(
            f"--best-of {column}: its values are {kind}, not numbers; there are {', '.join(known)}"
        )


def _size(value: Any) -> float:
    return -math.inf if value is None or value != value else value


def _only(kept: Mask, numbers: Any) -> Mask:
    left = np.zeros_like(kept)
    left[np.fromiter(numbers, np.int64)] = True
    return left
