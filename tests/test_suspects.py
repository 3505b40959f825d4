"""Who killed the replica: found by halving, whatever else died beside it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from pipeline.rows import Prompt
from pipeline.suspects import Suspects


def prompts(count: int) -> list[Prompt]:
    return [Prompt(0, n, [1], 16, suspect=True) for n in range(count)]


def hunt(poisoned: set[int], count: int, max_attempts: int, chance: float) -> tuple[set[int], int]:
    """Rows given up, and deaths until all others were decoded. chance: of a death that no row
    has to do with."""
    rng = random.Random(count)
    suspects = Suspects(max_attempts)
    given_up = {p.index for p in suspects.add(prompts(count), alone=False)}
    deaths, decoded = 1, set[int]()
    while group := suspects.take():
        sick = [p for p in group if p.index in poisoned]
        if not sick and rng.random() >= chance:
            decoded |= {p.index for p in group}
            continue
        deaths += 1
        begun = [replace(p, begun=p.begun + 1) for p in group]
        given_up |= {p.index for p in suspects.add(begun, alone=len(begun) == 1)}
    assert decoded | given_up == set(range(count))
    assert not decoded & given_up
    return given_up, deaths


@pytest.mark.parametrize("count", [1, 2, 7, 16, 64])
@pytest.mark.parametrize("max_attempts", [1, 3])
def test_a_culprit_costs_a_logarithm_of_deaths(count: int, max_attempts: int) -> None:
    for culprit in {0, count // 2, count - 1}:
        given_up, deaths = hunt({culprit}, count, max_attempts, chance=0.0)
        assert given_up == {culprit}
        assert deaths <= (count - 1).bit_length() + max_attempts + 1


def test_two_culprits_are_both_found() -> None:
    given_up, _ = hunt({3, 12}, 16, 2, chance=0.0)
    assert given_up == {3, 12}


def test_other_deaths_accuse_nobody_for_good() -> None:
    disturbed, quiet = ([hunt({5}, count, 5, c) for count in (16, 32, 64, 100)] for c in (0.3, 0))
    assert all(given_up == {5} for given_up, _ in disturbed)
    assert sum(deaths for _, deaths in disturbed) > sum(deaths for _, deaths in quiet)


def test_a_group_comes_back_as_it_was() -> None:
    suspects = Suspects(3)
    suspects.add(prompts(8), alone=False)
    group = suspects.take()
    suspects.put_back(group)
    assert len(suspects) == 8
    assert suspects.take() == group
    assert len(suspects.take()) == 4
    assert suspects.take() == []
