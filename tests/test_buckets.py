"""Shapes from the data against trying all, and what the driver makes of them."""

from __future__ import annotations

import itertools
import random

import pytest

from pipeline.input.buckets import MAX_LENGTHS, choose_lengths, fitting


def padding(prompts: list[int], lengths: list[int]) -> int:
    buckets = [fitting(n, lengths) for n in prompts]
    assert None not in buckets
    return sum(bucket - n for bucket, n in zip(buckets, prompts, strict=True))


@pytest.mark.parametrize("max_shapes", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("seed", range(4))
def test_no_other_shapes_leave_less_padding(seed: int, max_shapes: int) -> None:
    rng = random.Random(seed)
    kinds = rng.sample(range(1, 200), 8)
    prompts = [rng.choice(kinds) for _ in range(40)]
    chosen = choose_lengths(prompts, max_shapes)
    assert chosen == sorted(set(chosen))
    assert len(chosen) <= max_shapes
    others = itertools.combinations(sorted(set(prompts)), min(max_shapes, len(set(prompts))))
    least = min(padding(prompts, list(o)) for o in others if o[-1] == max(prompts))
    assert padding(prompts, chosen) == least


def test_few_lengths_need_few_shapes() -> None:
    assert choose_lengths([7, 7, 7], 5) == [7]
    assert choose_lengths([3, 9], 5) == [3, 9]
    assert choose_lengths([], 5) == []


def test_many_lengths_are_taken_in_steps_and_all_still_fit() -> None:
    prompts = list(range(1, 20 * MAX_LENGTHS))
    chosen = choose_lengths(prompts, 4)
    assert len(chosen) == 4
    assert chosen[-1] == max(prompts)
    # Evenly spread lengths are best cut evenly; a step is 20 tokens.
    assert padding(prompts, chosen) <= 1.03 * max(prompts) ** 2 / 8


def test_fitting() -> None:
    assert fitting(5, [4, 8, 16]) == 8
    assert fitting(8, [4, 8, 16]) == 8
    assert fitting(17, [4, 8, 16]) is None
