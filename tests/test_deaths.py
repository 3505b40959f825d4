"""The row that killed a replica is found by halving, whatever other replicas die meanwhile."""

from __future__ import annotations

import random

import pytest

from pipeline.replicas.deaths import Death, Suspects, Verdict
from pipeline.rows import Bucket, Prompt


def prompts(count: int, bucket: int = 16) -> list[Prompt]:
    return [Prompt(0, n, [1], Bucket(bucket, 32)) for n in range(count)]


def death(begun: list[Prompt], node: str = "node", decide_at: float = 0.0) -> Death:
    return Death("killed", begun, [], len(begun) == 1, node, False, decide_at)


def die(suspects: Suspects, begun: list[Prompt]) -> Verdict:
    """A death that no lost machine explains."""
    suspects.died(death(begun))
    return suspects.decide(1.0, lambda node: False)


def hunt(poisoned: set[int], count: int, max_attempts: int, chance: float) -> tuple[set[int], int]:
    """Rows given up, and deaths until all others were decoded. chance: of a death that no row
    has to do with."""
    rng = random.Random(count)
    suspects = Suspects(max_attempts)
    given_up = {p.index for p, _ in die(suspects, prompts(count)).given_up}
    deaths, decoded = 1, set[int]()
    while group := suspects.take():
        assert all(prompt.suspect for prompt in group)
        sick = [p for p in group if p.index in poisoned]
        if not sick and rng.random() >= chance:
            decoded |= {p.index for p in group}
            continue
        deaths += 1
        given_up |= {p.index for p, _ in die(suspects, group).given_up}
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
    die(suspects, prompts(8))
    group = suspects.take()
    suspects.put_back(group)
    assert len(suspects) == 8
    assert suspects.take() == group
    assert len(suspects.take()) == 4
    assert suspects.take() == []


def test_a_lost_machine_blames_nobody() -> None:
    suspects = Suspects(1)
    suspects.died(death(prompts(1), node="gone", decide_at=5.0))
    verdict = suspects.decide(1.0, lambda node: node == "gone")
    assert verdict.lost_nodes == ["gone"]
    assert [(p.begun, p.suspect, p.deaths_alone) for p in verdict.freed] == [(1, False, 0)]
    assert not verdict.given_up
    assert not verdict.blamed
    assert len(suspects) == 0


def test_a_death_is_not_decided_before_its_time() -> None:
    suspects = Suspects(1)
    suspects.died(death(prompts(1), decide_at=5.0))
    assert suspects.decide(4.9, lambda node: False) == Verdict()
    verdict = suspects.decide(5.0, lambda node: False)
    assert [(p.index, reason) for p, reason in verdict.given_up] == [(0, "killed")]


def test_groups_hold_one_bucket() -> None:
    suspects = Suspects(3)
    die(suspects, [*prompts(3, bucket=16), *prompts(1, bucket=48)])
    buckets = []
    while group := suspects.take():
        buckets.append({prompt.bucket.prompt for prompt in group})
    assert buckets == [{16}, {16}, {48}]
