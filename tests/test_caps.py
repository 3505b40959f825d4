"""The cap of ReMix and WINO against loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.random_model import LIVELY, random_model

from lrd import DecodingConfig, Engine, Request
from lrd.commit_rules import surest
from lrd.decoders.caps import most_commits


@pytest.mark.parametrize(("share", "floor", "ceiling"), [(0.7, 5, 20), (0.3, 1, None), (1, 1, 4)])
def test_the_cap_is_the_formula(share: float, floor: int, ceiling: int | None) -> None:
    config = DecodingConfig(
        confidence_threshold=0.9, commit_share=share, commit_floor=floor, commit_ceiling=ceiling
    )
    found = most_commits(config, torch.arange(1, 200)).tolist()
    lowest = [max(int(share * n), floor) for n in range(1, 200)]
    assert found == [n if ceiling is None else min(n, ceiling) for n in lowest]


def test_the_surest_are_the_first_of_a_stable_sort() -> None:
    generator = torch.Generator().manual_seed(0)
    confidence_BK = torch.randint(0, 5, (40, 12), generator=generator) / 4
    among_BK = torch.rand(40, 12, generator=generator) < 0.6
    most_B = torch.randint(0, 14, (40,), generator=generator)
    found_BK = surest(confidence_BK, among_BK, most_B)
    for confidence, among, most, found in zip(
        *(x.tolist() for x in (confidence_BK, among_BK, most_B, found_BK)), strict=True
    ):
        places = [at for at in range(12) if among[at]]
        best = sorted(places, key=lambda at: -confidence[at])[:most]
        assert [at for at in range(12) if found[at]] == sorted(best)


@pytest.mark.parametrize("refined", [False, True])
def test_no_pass_commits_more_than_the_cap(refined: bool) -> None:
    settings: dict[str, Any] = {"max_refine_steps": 3} if refined else {"max_refine_steps": 0}
    config = DecodingConfig(
        gen_length=24,
        block_length=12,
        stop_at_eos=False,
        confidence_threshold=0.05,
        commit_share=0.5,
        commit_floor=2,
        commit_ceiling=4,
        **settings,
    )
    engine = Engine(random_model(**LIVELY), config, 3, 6)
    for key in range(5):
        engine.submit(Request(key, [3 + key, 5, 7][: 1 + key % 3], 0))
    num_seen = 0
    while engine.busy:
        for sample in engine.step():
            num_seen += 1
            for steps in (sample.commit_step[:12], sample.commit_step[12:]):
                num_open, sizes = 12, []
                for step in sorted(set(steps)):
                    sizes.append(steps.count(step))
                    assert sizes[-1] <= min(max(num_open // 2, 2), 4)
                    num_open -= sizes[-1]
                # Nearly all pass the threshold: each pass takes what the cap leaves.
                assert sizes == [4, 4, 2, 2]
    assert num_seen == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"commit_share": 0.7}, "set it too"),
        ({"commit_ceiling": 5, "entropy_threshold": 0.2}, "set it too"),
        ({"commit_floor": 5, "confidence_threshold": 0.9}, "lower commit_share"),
    ],
)
def test_caps_that_cap_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecodingConfig(**settings)
