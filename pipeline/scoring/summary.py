"""Summarises the scores of one dataset: accuracy with its interval, tokens, cost, stops."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.statistics import Counts


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Summary of the scores of one dataset. Failed rows count as wrong."""

    task: str
    num_rows: int
    num_failed: int
    num_correct: int
    accuracy: float
    accuracy_low: float
    """Lower end of Wilson's 95 % interval."""
    accuracy_high: float
    mean_output_tokens: float | None
    """The paper's effective tokens, over decoded rows; None where no row was."""
    mean_forwards: float | None
    mean_positions: float | None
    """Positions computed a decoded row; None where no row was, or the run does not keep them."""
    stop_reasons: dict[str, int]
    wrong: dict[str, int]
    """Reasons of wrong rows, details left out, most frequent first."""
    num_shards: int
    num_shards_planned: int
    scores: str
    """Where the rows' scores are."""


def wilson(num_correct: int, num_rows: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z, share = 1.959964, num_correct / num_rows
    middle = share + z * z / (2 * num_rows)
    half = z * math.sqrt(share * (1 - share) / num_rows + z * z / (4 * num_rows * num_rows))
    return (middle - half) / (1 + z * z / num_rows), (middle + half) / (1 + z * z / num_rows)


def summarize(
    task: str, rows: pa.Table, scores: pa.Table, num_shards: int, num_planned: int, where: str
) -> Evaluation:
    """Sum up `scores` (correct, reason) of `rows` (the results' columns), row by row the same."""
    counts = Counts()
    counts.add(rows)
    num_correct = pc.sum(scores["correct"]).as_py()
    low, high = wilson(num_correct, counts.num_rows)
    reasons = [reason for reason in scores["reason"].to_pylist() if reason]
    return Evaluation(
        task=task,
        num_rows=counts.num_rows,
        num_failed=counts.num_failed,
        num_correct=num_correct,
        accuracy=num_correct / counts.num_rows,
        accuracy_low=low,
        accuracy_high=high,
        mean_output_tokens=counts.num_output_tokens / counts.num_ok if counts.num_ok else None,
        mean_forwards=counts.num_forwards / counts.num_ok if counts.num_ok else None,
        mean_positions=(
            counts.num_positions / counts.num_ok
            if counts.num_ok and counts.num_positions is not None
            else None
        ),
        stop_reasons=dict(counts.all_stops.most_common()),
        wrong=dict(Counter(reason.partition(":")[0] for reason in reasons).most_common()),
        num_shards=num_shards,
        num_shards_planned=num_planned,
        scores=where,
    )
