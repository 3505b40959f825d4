"""The batched decoder against the plain one of `reference.py`, over the whole range of settings."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from helpers.few import spread
from helpers.random_model import random_model
from helpers.reference import Outcome, decode_one
from torch import Tensor

import lrd
from lrd.engine import row_seed

MODELS: dict[str, dict[str, Any]] = {
    "plain": {"seed": 1},
    "sure": {"seed": 2, "sharpness": 3.0, "coupling": 0.5},
    "shifted": {"seed": 3, "sharpness": 2.0, "logit_shift": True},
    "brief": {"seed": 5, "sharpness": 2.0, "eos_bias": 2.0},
}

PROMPTS = [[3, 1, 4, 1, 5, 9], [2], [7, 7, 7, 20, 30, 40, 44, 0, 11], [8, 45, 2, 8]]
"""Of different lengths, so that three rows of the batch are padded; one holds a [MASK]."""

LRD = {"gen_length": 8, "r_f": 0.3, "tau_refine": 0.05, "max_refine_steps": 5}
STOP = {**LRD, "early_stop": True, "tau_decode": 0.3}
BLOCKS = {**LRD, "gen_length": 12, "block_length": 4}

SETTINGS: dict[str, dict[str, Any]] = {
    "baseline": {"gen_length": 10, "r_f": 0.0, "max_refine_steps": 0},
    "initial": {**LRD, "gen_length": 16},
    "initial, loose": {**LRD, "tau_refine": 1.0},
    "initial, never converged": {**LRD, "tau_refine": 0.0},
    "auto": {**LRD, "refinement": "auto"},
    "auto, loose": {**LRD, "refinement": "auto", "tau_refine": 0.5},
    "auto without refinement": {**LRD, "refinement": "auto", "max_refine_steps": 0},
    "LF x 1": {**LRD, "refinement": 1},
    "LF x 3": {**LRD, "refinement": 3},
    "LF x 2, limit of 0 is not its own": {**LRD, "refinement": 2, "max_refine_steps": 0},
    "no refinement": {**LRD, "max_refine_steps": 0},
    "no mixing": {**LRD, "r_f": 0.0},
    "no nucleus": {**LRD, "top_p": 0.0},
    "all in the nucleus": {**LRD, "top_p": 1.0},
    "full mixing": {**LRD, "r_f": 1.0, "top_p": 0.5},
    "stop: mean": STOP,
    "stop: mean, open": {**STOP, "scope": "open"},
    "stop: max": {**STOP, "reduction": "max", "tau_decode": 0.5},
    "stop: sum": {**STOP, "reduction": "sum", "tau_decode": 1.0},
    "stop: sum, open": {**STOP, "reduction": "sum", "scope": "open", "tau_decode": 1.0},
    "stop: max, open": {**STOP, "reduction": "max", "scope": "open", "tau_decode": 0.5},
    "stop: tight": {**STOP, "tau_decode": 0.02},
    "stop: patience 2": {**STOP, "patience": 2},
    "stop: patience 3, max": {**STOP, "reduction": "max", "patience": 3},
    "stop: gate": {**STOP, "stop_max_entropy": 1.0},
    "stop: loose gate": {**STOP, "stop_max_entropy": 2.5},
    "stop: gate and patience": {**STOP, "stop_max_entropy": 2.0, "patience": 2},
    "stop: auto": {**STOP, "refinement": "auto"},
    "stop: LF x 2, patience 2": {**STOP, "refinement": 2, "patience": 2},
    "stop: no refinement": {**STOP, "max_refine_steps": 0},
    "stop: blocks": {**BLOCKS, "early_stop": True, "tau_decode": 0.3},
    "stop: blocks, patience, no EOS": {
        **BLOCKS, "early_stop": True, "patience": 2, "stop_at_eos": False,
    },
    "stop: to the letter": {
        "gen_length": 12, "early_stop": True, "tau_decode": 10.0, "tau_refine": 10.0,
    },
    "change": {**STOP, "monitor": "change", "tau_decode": 0.05},
    "change: refinement alone": {**LRD, "monitor": "change"},
    "change: refinement, loose": {**LRD, "monitor": "change", "tau_refine": 9.0},
    "change: no refinement": {**STOP, "monitor": "change", "max_refine_steps": 0},
    "change: open": {**STOP, "monitor": "change", "scope": "open", "tau_decode": 0.2},
    "change: max": {**STOP, "monitor": "change", "reduction": "max", "tau_decode": 0.3},
    "change: sum, patience 2": {**STOP, "monitor": "change", "reduction": "sum", "patience": 2},
    "change: gate": {**STOP, "monitor": "change", "stop_max_entropy": 2.0},
    "change: gate and patience": {
        **STOP, "monitor": "change", "stop_max_entropy": 2.5, "patience": 2,
    },
    "change: auto": {**STOP, "monitor": "change", "refinement": "auto"},
    "change: LF x 2": {**STOP, "monitor": "change", "refinement": 2},
    "change: blocks": {**BLOCKS, "monitor": "change", "early_stop": True, "tau_decode": 0.2},
    "change: blocks, first, no EOS": {
        **BLOCKS, "monitor": "change", "early_stop": True, "tau_decode": 0.2, "refinement": "first",
        "stop_at_eos": False,
    },
    "change: hot": {**STOP, "monitor": "change", "temperature": 1.5, "seed": 12},
    "rule: 3 tokens": {**LRD, "tokens_per_step": 3},
    "rule: entropy below": {**LRD, "entropy_threshold": 1.0},
    "rule: entropy below 0": {**LRD, "entropy_threshold": 0.0},
    "rule: entropy bound": {**LRD, "entropy_bound": 1.5},
    "rule: entropy bound 0": {**LRD, "entropy_bound": 0.0},
    "rule: confidence": {**LRD, "confidence_threshold": 0.5},
    "rule: confidence 0": {**LRD, "confidence_threshold": 0.0},
    "rule: entropy below, stop": {**STOP, "entropy_threshold": 0.5, "stop_max_entropy": 1.5},
    "rule: 3 tokens, auto": {**LRD, "tokens_per_step": 3, "refinement": "auto"},
    "rule: confidence, blocks": {**BLOCKS, "confidence_threshold": 0.6},
    "blocks": BLOCKS,
    "blocks, no EOS": {**BLOCKS, "stop_at_eos": False},
    "blocks, baseline": {**BLOCKS, "r_f": 0.0, "max_refine_steps": 0},
    "blocks, auto": {**BLOCKS, "refinement": "auto"},
    "blocks, first": {**BLOCKS, "refinement": "first", "stop_at_eos": False},
    "blocks, first, EOS": {**BLOCKS, "refinement": "first", "entropy_threshold": 1.0},
    "blocks, first, never converged": {**BLOCKS, "refinement": "first", "tau_refine": 0.0},
    "blocks, first, stop": {
        **BLOCKS, "refinement": "first", "early_stop": True, "tau_decode": 0.3, "patience": 2,
    },
    "blocks, first without refinement": {**BLOCKS, "refinement": "first", "max_refine_steps": 0},
    "first, one block": {**LRD, "refinement": "first"},
    "blocks, LF x 2, 3 tokens": {**BLOCKS, "refinement": 2, "tokens_per_step": 3},
    "blocks of one": {**BLOCKS, "block_length": 1, "gen_length": 6},
    "warm": {**LRD, "temperature": 0.7, "seed": 11},
    "hot, stop": {**STOP, "temperature": 1.5, "seed": 12},
    "warm, blocks": {**BLOCKS, "temperature": 0.7, "seed": 13},
    "warm, confidence": {**LRD, "temperature": 0.7, "confidence_threshold": 0.4},
}  # fmt: skip


@functools.cache
def model_named(name: str) -> Any:
    return random_model(**MODELS[name])


@functools.cache
def outcomes(setting: str, model_name: str) -> list[Outcome]:
    config = lrd.DecodingConfig(**SETTINGS[setting])
    return [
        decode_one(model_named(model_name), prompt, config, row_seed(config.seed, index))
        for index, prompt in enumerate(PROMPTS)
    ]


def confidences(sample: lrd.Sample, expected: Outcome) -> list[float | None]:
    """Up to the first EOS; none where EOS filled the rest."""
    return [
        p if step and n <= sample.num_output_tokens else None
        for n, (p, step) in enumerate(zip(expected.confidence, expected.commit_step, strict=True))
    ]


@pytest.mark.parametrize(("setting", "model_name"), spread(SETTINGS, MODELS, every=4))
def test_matches_the_plain_decoder(setting: str, model_name: str) -> None:
    config = lrd.DecodingConfig(**SETTINGS[setting])
    samples = lrd.decode(model_named(model_name), PROMPTS, config, batch_size=3)
    for sample, expected in zip(samples, outcomes(setting, model_name), strict=True):
        assert sample.error is None
        for name in (
            "canvas",
            "commit_step",
            "refine_steps",
            "decode_steps",
            "blocks",
            "stop_reason",
            "open_at_stop",
            "refine_converged",
        ):
            assert getattr(sample, name) == getattr(expected, name), name
        for name in ("kl_trace", "entropy_trace", "max_entropy_at_stop", "mean_mix_weight"):
            approximately = pytest.approx(getattr(expected, name), abs=2e-4, nan_ok=True)
            assert getattr(sample, name) == approximately, name
        assert sample.token_confidence == pytest.approx(confidences(sample, expected), abs=2e-4)
        assert sample.num_forwards == expected.refine_steps + expected.decode_steps
        assert len(sample.kl_trace) == sample.num_forwards <= config.max_forwards


def test_the_settings_reach_every_branch() -> None:
    """Otherwise the comparison above would prove less than it seems to."""
    seen = [o for setting in SETTINGS for name in MODELS for o in outcomes(setting, name)]
    assert {o.stop_reason for o in seen} == {"complete", "converged", "eos"}
    assert set().union(*(o.branches for o in seen)) == {
        "refined until converged",
        "refined to the limit",
        "patience waits",
        "gate holds back",
        "no change yet",
        "stopped early",
        "several committed",
        "sampled",
        "argmax",
        "an EOS waits for a gap",
        "EOS fills the rest",
        "EOS in a finished block",
    }
    assert {o.refine_converged for o in seen} == {True, False}
    by_change = [
        o
        for setting in SETTINGS
        if "change" in setting
        for m in MODELS
        for o in outcomes(setting, m)
    ]
    assert {o.refine_converged for o in by_change} == {True, False}
    assert {"stopped early", "gate holds back", "patience waits", "no change yet"} <= set().union(
        *(o.branches for o in by_change)
    )
    assert any(1 < o.open_at_stop < 8 for o in seen)
    assert any(o.open_at_stop and o.stop_reason != "converged" for o in seen)
    assert any(o.stop_reason == "eos" and 0 not in o.commit_step[:8] for o in seen)
    assert any(1 < o.blocks < 3 for o in seen)


class Tied:
    """A model that believes the same everywhere, and as much in token 9 as in token 4."""

    def __init__(self) -> None:
        self.model = model_named("plain")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def logits(self, embeds: Tensor, mask: Tensor, columns: Tensor) -> Tensor:
        logits = torch.zeros(*columns.shape, len(self.model.embedding_table))
        logits[..., [9, 4]] = 3.0
        return logits


@pytest.mark.parametrize(
    ("rule", "commit_step"),
    [
        ({"tokens_per_step": 1}, [1, 2, 3, 4, 5, 6]),
        ({"tokens_per_step": 2}, [1, 1, 2, 2, 3, 3]),
        ({"entropy_threshold": 0.0}, [1, 2, 3, 4, 5, 6]),
        ({"confidence_threshold": 1.0}, [1, 2, 3, 4, 5, 6]),
        ({"entropy_bound": 0.0}, [1, 2, 3, 4, 5, 6]),
        ({"entropy_threshold": 9.0}, [1] * 6),
        ({"confidence_threshold": 0.0}, [1] * 6),
        ({"entropy_bound": 99.0}, [1] * 6),
    ],
)
def test_ties_go_to_the_earlier_position_and_the_lower_id(
    rule: dict[str, float], commit_step: list[int]
) -> None:
    config = lrd.DecodingConfig(gen_length=6, max_refine_steps=0, **rule)
    (sample,) = lrd.decode(Tied(), [[1, 2]], config)
    assert sample.commit_step == commit_step
    assert sample.canvas == [4] * 6


@pytest.mark.parametrize(
    ("limit", "rule", "cache", "model_name"),
    spread(
        [1, 4],
        [{}, {"entropy_threshold": 1.0}, {"early_stop": True, "tau_decode": 0.3}],
        [{}, {"kv_cache": "dual"}, {"kv_cache": "prefix", "suffix": 0}],
        MODELS,
    ),
)
def test_first_is_initial_in_the_first_block_and_nothing_after_it(
    limit: int, rule: dict[str, Any], cache: dict[str, Any], model_name: str
) -> None:
    """The first block has every pass, commitment and trace of `initial`; each later one begins
    with a decode pass, as without refinement."""
    settings = {
        **BLOCKS, **rule, **cache, "tau_refine": 0.1, "max_refine_steps": limit,
        "stop_at_eos": False,
    }  # fmt: skip
    initial, first = (decoded(model_name, settings, when) for when in ("initial", "first"))
    for ours, theirs in zip(first, initial, strict=True):
        assert ours.canvas[:4] == theirs.canvas[:4]
        assert ours.commit_step[:4] == theirs.commit_step[:4]
        ended = max(ours.commit_step[:4])
        expected = pytest.approx(theirs.kl_trace[:ended], abs=1e-5, nan_ok=True)
        assert ours.kl_trace[:ended] == expected
        assert {*range(1, ended + 1)} - {*ours.commit_step[:4]} == {
            *range(1, ours.refine_steps + 1)
        }
        assert 1 <= ours.refine_steps <= min(limit, theirs.refine_steps - 2)
        # Every pass behind the first block commits.
        assert {*ours.commit_step[4:]} == {*range(ended + 1, ours.num_forwards + 1)}
    whole = {**settings, "block_length": None}
    assert [(s.canvas, s.commit_step) for s in decoded(model_name, whole, "first")] == [
        (s.canvas, s.commit_step) for s in decoded(model_name, whole, "initial")
    ]


def decoded(model_name: str, settings: dict[str, Any], refinement: str) -> list[lrd.Sample]:
    config = lrd.DecodingConfig(**settings, refinement=refinement)
    return lrd.decode(model_named(model_name), PROMPTS, config)


@pytest.mark.parametrize(
    "setting",
    [
        {"gen_length": 8, "r_f": 0.0, "max_refine_steps": 0},
        {"gen_length": 8, "max_refine_steps": 3, "tau_refine": 0.0},
        {"gen_length": 8, "max_refine_steps": 3, "tau_refine": 0.0, "refinement": "auto"},
        {"gen_length": 8, "refinement": 2},
        {
            "gen_length": 8,
            "block_length": 4,
            "max_refine_steps": 3,
            "tau_refine": 0.0,
            "stop_at_eos": False,
        },
        {
            "gen_length": 8,
            "block_length": 2,
            "max_refine_steps": 3,
            "tau_refine": 0.0,
            "refinement": "first",
            "stop_at_eos": False,
        },
    ],
)
def test_the_bound_on_passes_is_reached(setting: dict[str, Any]) -> None:
    config = lrd.DecodingConfig(**setting)
    for sample in lrd.decode(model_named("plain"), PROMPTS, config):
        assert sample.num_forwards == config.max_forwards
        assert 0 not in sample.commit_step
