"""Settings are checked before anything runs, and what is wrong is named."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from lrd.config import COMMIT_RULES, PRESETS, YOUNGER, DecodingConfig
from lrd.decoder_settings import DecoderSettings


def test_the_default_is_the_method_without_early_stop() -> None:
    config = DecodingConfig()
    assert (config.top_p, config.tau_refine, config.tau_decode) == (0.9, 0.1, 0.1)
    assert 0.1 <= config.r_f <= 0.2
    assert config.max_refine_steps == 20
    assert (config.refinement, config.early_stop, config.temperature) == ("initial", False, 0)
    assert config.block_tokens == config.gen_length
    assert config.refines
    assert config.mixes


def test_presets_are_valid_and_say_what_they_are() -> None:
    assert set(PRESETS) == {"baseline", "paper", "fast", "blocks"}
    baseline, paper, fast = (DecodingConfig.preset(name) for name in ("baseline", "paper", "fast"))
    assert (baseline.mixes, baseline.refines, baseline.early_stop) == (False, False, False)
    assert (paper.tokens_per_step, paper.early_stop, paper.stop_max_entropy) == (1, True, None)
    assert (paper.reduction, paper.scope, paper.patience) == ("mean", "block", 1)
    assert not paper.stop_at_eos
    assert fast.entropy_threshold is not None
    assert fast.stop_max_entropy is not None
    blocks = DecodingConfig.preset("blocks", gen_length=64)
    assert (blocks.block_tokens, blocks.kv_cache, blocks.cache_refresh) == (32, "dual", 0)
    whole = {"block_length": None, "kv_cache": "none", "suffix": "all"}
    assert blocks.model_copy(update=whole) == DecodingConfig.preset("fast", gen_length=64)
    with pytest.raises(ValueError, match="'quick'; there are baseline, paper, fast, blocks"):
        DecodingConfig.preset("quick")


def test_overrides_win_over_the_preset() -> None:
    config = DecodingConfig.preset("paper", r_f=0.3, gen_length=32, block_length=8)
    assert (config.r_f, config.gen_length, config.num_blocks) == (0.3, 32, 4)
    assert config.early_stop, "what is not overridden stays"
    with pytest.raises(ValidationError, match="r_ff"):
        DecodingConfig.preset("paper", r_ff=0.3)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    ("rule", "value"),
    [
        ("tokens_per_step", 4),
        ("entropy_threshold", 0.3),
        ("entropy_bound", 0.5),
        ("confidence_threshold", 0.9),
    ],
)
def test_a_commit_rule_replaces_the_presets(preset: str, rule: str, value: float) -> None:
    config = DecodingConfig.preset(preset, **{rule: value})
    assert getattr(config, rule) == value
    others = {name for name in COMMIT_RULES if name != rule}
    assert all(getattr(config, name) is None for name in others)
    assert config.early_stop == DecodingConfig.preset(preset).early_stop


def test_a_presets_commit_rule_can_be_taken_away() -> None:
    config = DecodingConfig.preset("fast", entropy_threshold=None)
    assert all(getattr(config, name) is None for name in COMMIT_RULES)
    assert config.tokens_per_step == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"block_lenght": 8}, "block_lenght"),
        ({"gen_length": 16, "block_length": 5}, "block_length 5 does not divide gen_length 16"),
        ({"gen_length": 16, "block_length": 32}, "block_length 32 does not divide gen_length 16"),
        ({"gen_length": 0}, "gen_length"),
        ({"block_length": 0}, "block_length"),
        ({"refinement": 0}, "set max_refine_steps to 0"),
        ({"refinement": -1}, "at least 1"),
        ({"refinement": "always"}, "refinement"),
        ({"entropy_threshold": 0.1, "entropy_bound": 0.1}, "keep one commit rule"),
        ({"entropy_threshold": 0.1, "confidence_threshold": 0.9}, "keep one commit rule"),
        ({"entropy_bound": 0.1, "tokens_per_step": 2}, "keep one commit rule"),
        ({"r_f": 1.1}, "r_f"),
        ({"r_f": -0.1}, "r_f"),
        ({"r_f": float("nan")}, "r_f"),
        ({"top_p": 1.5}, "top_p"),
        ({"tau_refine": -1}, "tau_refine"),
        ({"tau_decode": float("nan")}, "tau_decode"),
        ({"max_refine_steps": -1}, "max_refine_steps"),
        ({"tokens_per_step": 0}, "tokens_per_step"),
        ({"patience": 0}, "patience"),
        ({"confidence_threshold": 2}, "confidence_threshold"),
        ({"temperature": -0.5}, "temperature"),
        ({"reduction": "median"}, "reduction"),
        ({"scope": "canvas"}, "scope"),
        ({"monitor": "entropy"}, "monitor"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DecodingConfig(**settings)


def test_settings_are_frozen_and_can_be_hashed() -> None:
    config = DecodingConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.r_f = 0.5
    assert hash(config) == hash(DecodingConfig())
    assert config != DecodingConfig(r_f=0.2)


def test_settings_survive_json() -> None:
    for settings in (
        {"refinement": 3},
        {"refinement": "first", "monitor": "change"},
        {"refinement": "auto", "stop_max_entropy": 0.5},
    ):
        config = DecodingConfig.preset("paper", **settings)
        assert DecodingConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("preset", PRESETS)
def test_a_younger_setting_is_recorded_only_where_it_is_set(preset: str) -> None:
    """So that runs which were recorded without it go on."""
    config = DecodingConfig.preset(preset, gen_length=32)
    assert config.unrecorded == YOUNGER
    values = {"monitor": "change", "max_gen_length": 64, "eos_window": 8, "eos_enough": 0.4}
    assert values.keys() | DecoderSettings.model_fields.keys() == YOUNGER
    for name, value in values.items():
        other = DecodingConfig.preset(preset, gen_length=32, **{name: value})
        assert other.unrecorded == YOUNGER - {name}


@pytest.mark.parametrize(
    ("settings", "bound"),
    [
        ({"max_refine_steps": 0}, 16),
        ({"max_refine_steps": 3}, 19),
        ({"max_refine_steps": 3, "block_length": 4}, 28),
        ({"max_refine_steps": 3, "refinement": "auto"}, 64),
        ({"max_refine_steps": 3, "refinement": "first"}, 19),
        ({"max_refine_steps": 3, "refinement": "first", "block_length": 4}, 19),
        ({"max_refine_steps": 0, "refinement": "first", "block_length": 4}, 16),
        ({"max_refine_steps": 3, "refinement": 2}, 48),
        ({"max_refine_steps": 3, "refinement": 2, "block_length": 4}, 48),
    ],
)
def test_bound_on_passes(settings: dict[str, Any], bound: int) -> None:
    assert DecodingConfig(gen_length=16, **settings).max_forwards == bound
