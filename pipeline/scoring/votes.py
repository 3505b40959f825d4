"""Several samples of one prompt: the majority vote over their answers, and pass@k."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence


def majority(answers: Sequence[str | None], comparable: Callable[[str], object]) -> list[bool]:
    """Which of a prompt's samples gave its most frequent answer; none where none has an answer.

    answers: the part that was extracted of each sample, None where there was none. comparable:
    `Task.comparable`. Of equally frequent answers the one that comes first wins.
    """
    values = [None if answer is None else (comparable(answer),) for answer in answers]
    votes = Counter(value for value in values if value is not None)
    if not votes:
        return [False] * len(values)
    # Of equal counts `most_common` has the one that was counted first.
    ((winner, _),) = votes.most_common(1)
    return [value == winner for value in values]


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """The probability that k of these samples, drawn without replacement, hold a right one.

    1 − C(n−c, k) / C(n, k): the unbiased estimator of Chen et al., Evaluating Large Language Models
    Trained on Code (2021), Eq. 1. Raises ValueError where k is more than there are samples.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} of {num_samples} samples")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)
