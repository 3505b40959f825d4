"""Decoders that only name commits: against loops, their refusals, and what is theirs alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.few import spread
from helpers.naming_reference import (
    Named,
    NamedEoser,
    NamedExplore,
    NamedKlass,
    NamedLocalLeap,
    NamedSlowFast,
    decode_named,
)
from helpers.random_model import LIVELY, random_model

from lrd import DecodingConfig, Engine, Request, Sample
from lrd.decoders.local_leap import within
from lrd.models.checkpoint import LoadedModel
from lrd.templates import Hole, Scaffold

SURE: dict[str, Any] = {"confidence_threshold": 0.5}
ORDERED: dict[str, Any] = {"confidence": "probability"}
DECODERS: dict[str, tuple[Callable[[], Named], dict[str, Any]]] = {
    "klass": (NamedKlass, {**SURE, "stable_kl": 0.4}),
    "klass, by steps": (NamedKlass, {**SURE, "stable_kl": 0.3, "stable_passes": 1, "steps": 8}),
    "localleap": (NamedLocalLeap, {**SURE, "leap_radius": 2, "leap_threshold": 0.3}),
    "slowfast": (NamedSlowFast, {**SURE, "span_confidence": 0.4, "span_explore": 3}),
    "slowfast, at odds": (
        NamedSlowFast,
        {**SURE, "span_confidence": 0.2, "span_explore": 2, "span_window": 3, "span_std": 0.1},
    ),
    "eoser": (NamedEoser, {**ORDERED, "eos_confidence_start": 0.1, "steps": 8}),
    "ass": (NamedEoser, {**ORDERED, "eos_confidence_start": 0.01, "schedule": "doubling"}),
    "ass, by steps": (NamedEoser, {**ORDERED, "schedule": "doubling", "steps": 6}),
    "ete": (NamedExplore, {"confidence_threshold": 0.8, "explore_above": 1.5}),
}
PROCEDURES: dict[str, dict[str, Any]] = {
    "plain": {"r_f": 0.0, "max_refine_steps": 0},
    "mixed, refined": {"r_f": 0.3, "refinement": 1},
}
PROMPTS = [[3, 1, 4], [15, 9, 2, 6, 5, 35], [8], [9, 7, 9, 3, 2]]
LENGTH = 16


@pytest.fixture(scope="module")
def lively() -> LoadedModel:
    return random_model(**LIVELY)


def decoded(
    model: LoadedModel, config: DecodingConfig, canvas: list[int], fixed_shapes: bool
) -> list[Sample]:
    """Samples in the order of PROMPTS, two slots for all. canvas: [MASK] where it is open."""
    engine = Engine(model, config, 2, 8, "right", fixed_shapes)
    holes = [Hole(at, at + 1) if token == model.mask_id else "" for at, token in enumerate(canvas)]
    for key, prompt in enumerate(PROMPTS):
        engine.submit(Request(key, prompt, 0, Scaffold(tuple(canvas), tuple(holes))))
    samples: list[Sample] = []
    while engine.busy:
        samples += engine.step()
    return sorted(samples, key=lambda sample: int(sample.key))


@pytest.mark.parametrize(
    ("decoder", "procedure", "fixed_tokens"), spread(DECODERS, PROCEDURES, [False, True])
)
def test_a_decoder_is_its_rule_in_loops(
    decoder: str, procedure: str, fixed_tokens: bool, lively: LoadedModel
) -> None:
    make, settings = DECODERS[decoder]
    num_committed_at_once = 0
    for block_length in (None, 8):
        config = DecodingConfig(
            gen_length=LENGTH,
            block_length=block_length,
            stop_at_eos=False,
            **settings,
            **PROCEDURES[procedure],
        )
        canvas = [lively.mask_id] * LENGTH
        if fixed_tokens:
            for at in (2, 3, 9):
                canvas[at] = 10 + at
        given = [None if token == lively.mask_id else token for token in canvas]
        expected = [decode_named(lively, prompt, config, make(), given) for prompt in PROMPTS]
        for fixed_shapes in (False, True):
            samples = decoded(lively, config, canvas, fixed_shapes)
            assert [(s.canvas, s.commit_step, s.num_forwards) for s in samples] == expected
        steps = [step for _, found, _ in expected for step in found if step]
        num_committed_at_once += len(steps) > sum(passes for _, _, passes in expected)
    assert procedure != "plain" or num_committed_at_once


def test_neighbours_are_those_within_the_radius() -> None:
    generator = torch.Generator().manual_seed(3)
    anchor_BK = torch.rand(30, 11, generator=generator) < 0.2
    for radius in (1, 4, 30):
        found = within(anchor_BK, radius).tolist()
        for anchors, near in zip(anchor_BK.tolist(), found, strict=True):
            places = [at for at in range(11) if anchors[at]]
            assert near == [any(abs(at - one) <= radius for one in places) for at in range(11)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stable_kl": 0.1}, "set it too"),
        ({"leap_radius": 4}, "set it too"),
        ({"span_confidence": 0.3}, "set it too"),
        ({"explore_above": 1.0, "entropy_threshold": 0.2}, "set it too"),
        ({"leap_radius": 4, **SURE, "steps": 8}, "drop steps"),
        ({"leap_radius": 4, **SURE}, "leap_threshold 0.75 is above"),
        ({"eos_confidence_start": 0.4}, "set steps"),
        ({"eos_confidence_start": 0.4, "steps": 8}, "confidence to probability"),
        ({"schedule": "doubling", **SURE}, "keep one commit rule"),
        ({"schedule": "doubling", "tokens_per_step": 2}, "keep one commit rule"),
        ({"span_confidence": 0.3, **SURE, "kv_cache": "dual"}, "kv_cache to none"),
        ({"span_confidence": 0.3, **SURE, "block_length": 8, "suffix": 1}, "suffix to all"),
        ({"explore_above": 1.0, **SURE, "steps": 8}, "keep one"),
        ({"explore_above": 1.0, **SURE, "stable_kl": 0.1}, "keep one"),
        ({"explore_above": 1.0, **SURE, "block_length": 8, "suffix": 0}, "suffix to all"),
    ],
)
def test_what_cannot_be_combined_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        DecodingConfig(gen_length=16, **settings)
    assert len(str(refusal.value).splitlines()) <= 4  # One of them the message.
