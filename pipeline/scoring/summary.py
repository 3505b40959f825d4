"""Summarises the scores of one dataset: accuracy with its interval, tokens, cost, stops; of several
samples a prompt also pass@k and the majority vote."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from statistics import fmean, pvariance
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.statistics import Counts
from pipeline.rows import prompt_id
from pipeline.scoring.task import Task
from pipeline.scoring.votes import majority, pass_at_k


@dataclass(frozen=True, slots=True)
class Share:
    """A mean over prompts, with its 95 % interval."""

    share: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class SampleShares:
    """What several samples a prompt are worth. Failed rows count as wrong."""

    num_samples: int
    """Samples of the prompt that has fewest."""
    num_prompts: int
    pass_at: dict[int, Share]
    """pass@k for k = 1, 2, 4, 8 … up to `num_samples`."""
    majority: Share | None
    """Prompts whose most frequent answer is right; one without any answer is wrong."""
    no_majority: str | None
    """Why there is no majority vote."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Summary of the scores of one dataset. Failed rows count as wrong."""

    task: str
    num_rows: int
    num_failed: int
    num_correct: int
    accuracy: float
    accuracy_low: float
    """Lower end of the 95 % interval: Wilson's over rows, or pass@1's over prompts where a prompt
    has several rows."""
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
    samples: SampleShares | None = None
    """None where every prompt has one sample."""

    def to_json(self) -> dict[str, Any]:
        """The fields by name; `samples` only where there are several."""
        found = asdict(self)
        if self.samples is None:
            del found["samples"]
        return found


def wilson(num_correct: float, num_rows: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z, share = 1.959964, num_correct / num_rows
    middle = share + z * z / (2 * num_rows)
    half = z * math.sqrt(share * (1 - share) / num_rows + z * z / (4 * num_rows * num_rows))
    return (middle - half) / (1 + z * z / num_rows), (middle + half) / (1 + z * z / num_rows)


def share_over_prompts(values: Sequence[float], num_samples: int) -> Share:
    """The mean of one value from 0 to 1 a prompt, and its interval over prompts.

    Rows of one prompt are alike, so they are not independent trials. The interval is Wilson's with
    the effective number of trials p(1−p) / (s²/n), s² the variance between n prompts (Kish's design
    effect; Dean and Pagano, Evaluating Confidence Interval Methods for Binomial Proportions in
    Clustered Surveys, 2015): n where every value is 0 or 1, n × num_samples at most.
    """
    n, mean = len(values), fmean(values)
    variance = pvariance(values, mean)
    most = float(n * num_samples)
    trials = min(most, mean * (1 - mean) * n / variance) if variance > 0 else float(n)
    if variance == 0 and 0 < mean < 1:
        trials = most
    return Share(mean, *wilson(mean * trials, trials))


def share_samples(task: Task, scores: pa.Table) -> SampleShares | None:
    """pass@k and the majority vote of `scores` (row_id, correct, extracted), whose rows of one
    prompt follow each other; None where every prompt has one row."""
    names = [prompt_id(name) for name in scores["row_id"].to_pylist()]
    rows = zip(names, scores["correct"].to_pylist(), scores["extracted"].to_pylist(), strict=True)
    prompts = [list(group) for _, group in groupby(rows, lambda row: row[0])]
    num_samples = min(map(len, prompts))
    if len(prompts) == scores.num_rows:
        return None
    rights = [(len(prompt), sum(correct for _, correct, _ in prompt)) for prompt in prompts]
    ks = [1 << power for power in range(num_samples.bit_length())]
    pass_at = {
        k: share_over_prompts([pass_at_k(n, c, k) for n, c in rights], num_samples) for k in ks
    }
    if task.comparable is None:
        reason = f"answers of {task.name} are programs, which cannot be compared"
        return SampleShares(num_samples, len(prompts), pass_at, None, reason)
    votes = []
    for prompt in prompts:
        wins = majority([extracted for _, _, extracted in prompt], task.comparable)
        votes.append(float(True in wins and prompt[wins.index(True)][1]))
    return SampleShares(num_samples, len(prompts), pass_at, share_over_prompts(votes, 1), None)


def summarize(
    task: Task, rows: pa.Table, scores: pa.Table, num_shards: int, num_planned: int, where: str
) -> Evaluation:
    """Sum up `scores` (row_id, correct, extracted, reason) of `rows` (the results' columns), row by
    row the same."""
    counts = Counts()
    counts.add(rows)
    num_correct = pc.sum(scores["correct"]).as_py()
    samples = share_samples(task, scores)
    low, high = wilson(num_correct, counts.num_rows)
    if samples is not None:
        low, high = samples.pass_at[1].low, samples.pass_at[1].high
    reasons = [reason for reason in scores["reason"].to_pylist() if reason]
    return Evaluation(
        task=task.name,
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
        samples=samples,
    )
