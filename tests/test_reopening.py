"""Positions that open again: WINO, Saber and RCR with what the originals lack, and their bounds."""

from __future__ import annotations

import functools
import math
from itertools import islice, pairwise
from typing import Any

import pytest
import torch
from helpers import reopening_reference
from helpers.engine import PROMPTS, run
from helpers.random_model import EOS, LIVELY, MASK, random_model
from helpers.reopening_reference import Outcome

import lrd
from jobs.tiny.problems import problems
from lrd.choices import Choices
from lrd.decoders.rcr import open_shares
from lrd.decoders.saber import most_to_reopen
from lrd.models.checkpoint import LoadedModel
from lrd.shadow import shadow_mask
from lrd.templates import Hole, Scaffold

ALIGNED = {**LIVELY, "logit_shift": False}
MODELS: dict[str, dict[str, Any]] = {
    "lively": ALIGNED,
    "sure": {**ALIGNED, "seed": 4, "sharpness": 2.5, "coupling": 2.0},
}
PLAIN: dict[str, Any] = {
    "gen_length": 12,
    "r_f": 0.0,
    "max_refine_steps": 0,
    "stop_at_eos": False,
}
LRD: dict[str, Any] = {**PLAIN, "r_f": 0.4, "max_refine_steps": 2, "tau_refine": 0.02}
WINO: dict[str, Any] = {"confidence_threshold": 0.5, "reopen": "shadow", "reopen_threshold": 0.7}
SABER: dict[str, Any] = {"threshold_from_committed": True, "min_commits": 2, "reopen": "drop"}
RCR: dict[str, Any] = {"steps": 6, "schedule": "linear", "reopen": "lowest"}
BLOCKS: dict[str, Any] = {"block_length": 4}
HALVES: dict[str, Any] = {"block_length": 6}
STOP: dict[str, Any] = {"early_stop": True, "tau_decode": 0.2}

SETTINGS: dict[str, dict[str, Any]] = {
    "wino": {**PLAIN, **WINO},
    "wino, capped": {
        **PLAIN, **WINO, "confidence_threshold": 0.3,
        "commit_share": 0.7, "commit_floor": 2, "commit_ceiling": 3,
    },
    "wino, LRD": {**LRD, **WINO},
    "wino, LRD auto, blocks": {**LRD, **WINO, **BLOCKS, "refinement": "auto"},
    "wino, stop": {**LRD, **WINO, **STOP},
    "saber": {**PLAIN, **SABER},
    "saber, LRD": {**LRD, **SABER, "min_commits": 3},
    "saber, LRD auto, blocks": {**LRD, **SABER, **BLOCKS, "refinement": "auto"},
    "saber, block alone": {**LRD, **SABER, **HALVES, "reopen_scope": "block"},
    "saber, stop": {**LRD, **SABER, **HALVES, **STOP},
    "drop of three tokens a pass": {**LRD, "tokens_per_step": 3, "reopen": "drop"},
    "rcr": {**PLAIN, **RCR},
    "rcr, probability, cosine": {
        **PLAIN, **RCR, "schedule": "cosine", "confidence": "probability",
    },
    "rcr, LRD, blocks": {**LRD, **RCR, **BLOCKS},
    "rcr, LRD auto, halves": {**LRD, **RCR, **HALVES, "refinement": "auto"},
    "rcr, block alone": {**LRD, **RCR, **HALVES, "reopen_scope": "block"},
    "rcr, stop": {**LRD, **RCR, **STOP},
}  # fmt: skip
GIVEN: list[int | None] = [None, 5, None, None, None, 7, 7, None, None, None, None, 9]
"""A canvas with fixed tokens."""


@functools.cache
def model_named(name: str) -> LoadedModel:
    return random_model(**MODELS[name])


@functools.cache
def outcomes(setting: str, name: str) -> list[Outcome]:
    config = lrd.DecodingConfig(**SETTINGS[setting])
    return [
        reopening_reference.decode_one(model_named(name), prompt, config, given)
        for prompt, given in zip(PROMPTS, givens(), strict=True)
    ]


def givens() -> list[list[int | None] | None]:
    """Every third prompt has a canvas of its own."""
    return [GIVEN if n % 3 == 2 else None for n in range(len(PROMPTS))]


def scaffold(given: list[int | None] | None) -> Scaffold | None:
    if given is None:
        return None
    ids = tuple(MASK if token is None else token for token in given)
    return Scaffold(ids, (Hole(0, len(ids)),))


def assert_as_expected(samples: list[lrd.Sample], expected: list[Outcome], most: int) -> None:
    for sample, one in zip(samples, expected, strict=True):
        names = ("canvas", "commit_step", "num_uncommits", "refine_steps", "decode_steps")
        for name in names:
            assert getattr(sample, name) == getattr(one, name), name
        assert sample.stop_reason == one.stop_reason
        for name in ("kl_trace", "entropy_trace"):
            approximately = pytest.approx(getattr(one, name), abs=2e-4, nan_ok=True)
            assert getattr(sample, name) == approximately, name
        assert sample.num_forwards <= most


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_matches_the_plain_decoder(setting: str, name: str) -> None:
    config = lrd.DecodingConfig(**SETTINGS[setting])
    scaffolds = [scaffold(given) for given in givens()]
    samples = lrd.decode(
        model_named(name), PROMPTS, config, batch_size=3, scaffolds=scaffolds, padding_side="right"
    )
    assert_as_expected(samples, outcomes(setting, name), config.max_forwards)


def test_the_settings_reach_every_branch() -> None:
    """Otherwise the comparison above would prove less than it seems to."""
    seen = {
        kind: [o for s in SETTINGS if s.startswith(kind) for m in MODELS for o in outcomes(s, m)]
        for kind in ("wino", "saber", "drop", "rcr")
    }
    branches = {kind: set().union(*(o.branches for o in found)) for kind, found in seen.items()}
    assert branches["wino"] == {
        "again", "one commit checks nothing", "no more than were committed before",
        "stopped early",
    }  # fmt: skip
    every = {"again", "again, of an earlier block", "at once", "stopped early"}
    assert branches["saber"] == branches["rcr"] == every
    assert "again" in branches["drop"]


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("kind", ["saber", "rcr"])
def test_a_block_alone_keeps_keys_and_values(kind: str, cache: str) -> None:
    """With a cache that every pass renews, samples are those without one; else they end too."""
    rule = {**(SABER if kind == "saber" else RCR), "reopen_scope": "block"}
    plain = lrd.DecodingConfig(**{**LRD, **HALVES, **rule})
    model = model_named("lively")
    expected = lrd.decode(model, PROMPTS, plain)
    renewed = plain.model_copy(update={"kv_cache": cache, "cache_refresh": 1})
    found = lrd.decode(model, PROMPTS, renewed, batch_size=3)
    assert [s.canvas for s in found] == [s.canvas for s in expected]
    assert [s.num_uncommits for s in found] == [s.num_uncommits for s in expected]
    kept = lrd.decode(model, PROMPTS, plain.model_copy(update={"kv_cache": cache}))
    assert all(MASK not in s.canvas and s.num_forwards <= plain.max_forwards for s in kept)
    assert any(s.num_uncommits for s in kept)
    assert all(s.full_passes < s.num_forwards for s in kept)


BOUNDED: dict[str, dict[str, Any]] = {
    "wino, doubts everything": {**WINO, "reopen_threshold": 1.0, "confidence_threshold": 0.3},
    "wino, doubts everything, capped": {
        **WINO, "reopen_threshold": 1.0, "confidence_threshold": 0.0,
        "commit_share": 0.5, "commit_floor": 2,
    },
    "saber": SABER,
    "saber, one at least": {**SABER, "min_commits": 1},
    "saber, three at least": {**SABER, "min_commits": 3},
    "drop of three tokens a pass": {"tokens_per_step": 3, "reopen": "drop"},
    "rcr": {**RCR, "steps": 12},
    "rcr, more steps than tokens": {**RCR, "steps": 48, "schedule": "cosine"},
}  # fmt: skip


@pytest.mark.parametrize("blocks", [{}, BLOCKS], ids=["one block", "blocks"])
@pytest.mark.parametrize("name", BOUNDED)
def test_no_sample_takes_more_passes_than_its_bound(name: str, blocks: dict[str, Any]) -> None:
    config = lrd.DecodingConfig(**{**PLAIN, **BOUNDED[name], **blocks})
    assert config.max_forwards == max(12, config.steps or 0)
    found = [
        sample
        for seed in range(4)
        for sample in lrd.decode(random_model(seed, sharpness=0.5 + seed), PROMPTS, config)
    ]
    assert all(MASK not in sample.canvas for sample in found)
    assert max(sample.num_forwards for sample in found) <= config.max_forwards
    if name == "rcr":
        assert {sample.num_forwards for sample in found} == {12}
    assert any(sample.num_uncommits for sample in found)


def test_rcr_takes_just_its_steps_and_ends_sooner_where_a_share_is_below_a_position() -> None:
    model = model_named("lively")
    config = lrd.DecodingConfig(**{**PLAIN, **RCR})
    assert {s.num_forwards for s in lrd.decode(model, PROMPTS, config)} == {6}
    longer = config.model_copy(update={"steps": 48})
    # ⌊12 · (1 − s/48)⌋ is 0 from s = 45 on.
    assert {s.num_forwards for s in lrd.decode(model, PROMPTS, longer)} == {45}
    shares = open_shares("cosine", 3, torch.device("cpu"))
    assert (shares * 8).floor().tolist() == [8, 6, 4, 0]


PROPHET = {"stop_gap_early": 0.0, "stop_gap_middle": 0.0, "stop_gap_late": 0.0}
"""Would commit the whole canvas in the first pass."""


@pytest.mark.parametrize(
    "rule", [WINO, SABER, RCR, PROPHET], ids=["wino", "saber", "rcr", "prophet"]
)
def test_fixed_tokens_and_choices_stay(rule: dict[str, Any]) -> None:
    """The tokens of a choice decide what may come next, so none of them opens again, and none is
    committed with others."""
    config = lrd.DecodingConfig(**{**PLAIN, **BLOCKS, **rule, "steps": rule.get("steps")})
    classes = [{1, 2}, {3}, {4}, {5, 6}, {EOS}]
    texts = {"a": [1, 3, 5], "b": [2, 4], "c": [1, 3, 6]}
    choices = Choices.of(texts, EOS, lambda ids: 1 + classes.index(ids))
    allowed = torch.ones(1 + len(classes), 48, dtype=torch.bool)
    for number, ids in enumerate(classes, 1):
        allowed[number] = torch.tensor([token in ids for token in range(48)])
    canvas = (MASK, MASK, MASK, 7, *[MASK] * 8)
    parts = (Hole(0, 3, choices=choices), "x", Hole(4, 12))
    first = choices.next_classes([MASK] * 3, MASK)
    asked = Scaffold(canvas, parts, (*first, *[0] * 9))
    assert asked.has_choices
    engine = lrd.Engine(model_named("lively"), config, 2, 9, allowed=allowed)
    for n, prompt in enumerate(PROMPTS):
        engine.submit(lrd.Request(n, prompt, n, asked))
    steps: dict[int, list[list[int]]] = {}
    samples = []
    while engine.busy:
        samples += engine.step()
        state = engine.canvases
        for row, occupied in enumerate(engine._slots._occupied):
            if occupied is not None:
                now = state.commit_step_BG[row].tolist()
                steps.setdefault(occupied.request.key, []).append(now)
    for sample in samples:
        assert choices.text(sample.canvas[:3]) in ("a", "b", "c")
        assert sample.canvas[3] == 7
        assert sample.commit_step[3] == 0
    for seen in steps.values():
        for before, after in pairwise(seen):
            assert all(a == b for a, b in zip(before[:3], after[:3], strict=True) if a)


def test_the_mask_of_shadows() -> None:
    """Two rows of five columns, the second with padding; three shadows each, two unused columns."""
    real = torch.tensor([[True] * 5, [False] + [True] * 4])
    mask = shadow_mask(real, torch.tensor([[1, 2, 3], [2, 3, 4]]), 10)
    for row, columns in enumerate(((1, 2, 3), (2, 3, 4))):
        for query in range(8):
            for key in range(10):
                if key >= 8:
                    expected = False
                elif query < 5:
                    expected = key < 5 and bool(real[row, key])
                else:
                    own = columns[query - 5]
                    expected = key >= 5 or (bool(real[row, key]) and key != own)
                assert bool(mask[row, query, key]) == expected, (row, query, key)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("fixed", [False, True])
def test_shadows_change_nothing_else(side: Any, fixed: bool) -> None:
    """Where no shadow is believed to say less than 0, samples are those without shadows."""
    model, rule = model_named("lively"), {**LRD, **BLOCKS, "confidence_threshold": 0.5}
    plain = lrd.DecodingConfig(**rule)
    asked = [lrd.Request(n, prompt, n) for n, prompt in enumerate(PROMPTS)]
    expected, _ = run(model, plain, asked, padding_side=side)
    shadowed = plain.model_copy(update={"reopen": "shadow", "reopen_threshold": 0.0})
    engine = lrd.Engine(model, shadowed, 3, 9, side, fixed)
    for request in asked:
        engine.submit(request)
    while engine.busy:
        for sample in engine.step():
            other = expected[sample.key]
            assert sample.canvas == other.canvas
            assert sample.commit_step == other.commit_step
            assert sample.num_uncommits == 0
            extra = plain.block_tokens * sample.num_forwards
            assert sample.positions_computed == other.positions_computed + extra


REFUSED: dict[str, dict[str, Any]] = {
    "stable_kl": {**WINO, "stable_kl": 0.01},
    "reject_js": {**SABER, "mix": "remix", "reject_js": 0.3},
    "kv_cache": {**WINO, **BLOCKS, "kv_cache": "dual"},
    "suffix": {**WINO, **BLOCKS, "suffix": 0},
    "cfg_scale": {**WINO, "cfg_scale": 1.0},
    "soft_suffix": {**WINO, **BLOCKS, "soft_suffix": True},
    "reopen_scope to block": {**SABER, **BLOCKS, "kv_cache": "dual"},
    "reopen_scope block": {**WINO, "reopen_scope": "block"},
    "steps are used up": {**WINO, "steps": 12},
    "reopen lowest": {"reopen": "lowest", "tokens_per_step": 2},
    "schedule even": {"reopen": "lowest", "steps": 12},
    "schedule linear": {"schedule": "linear", "steps": 12},
    "min_commits": {"min_commits": 2},
    "threshold_from_committed": {**SABER, "confidence_threshold": 0.9},
    "confidence_eos_eot_inf": {**SABER, "confidence_eos_eot_inf": True},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_refused_in_a_line(name: str) -> None:
    with pytest.raises(ValueError, match=name) as refused:
        lrd.DecodingConfig(**{**PLAIN, **REFUSED[name]})
    errors: Any = refused.value
    (error,) = errors.errors()
    assert "\n" not in error["msg"]


class WithoutMasks:
    """A plug-in model with the least that there must be."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (WithoutMasks(model_named("lively")), "WithoutMasks has no hidden, head"),
        (random_model(**{**LIVELY, "logit_shift": True}), "predicts the next position"),
    ],
    ids=["plug-in", "Dream"],
)
def test_models_that_cannot_feed_shadows_are_refused(model: Any, said: str) -> None:
    config = lrd.DecodingConfig(**PLAIN, **WINO)
    with pytest.raises(ValueError, match=said):
        lrd.Engine(model, config, 2, 9)
    lrd.Engine(model, config.model_copy(update={"reopen": "drop"}), 2, 9)


def test_a_commit_rule_that_is_given_replaces_sabers() -> None:
    saber = lrd.DecodingConfig.preset("saber", min_commits=4)
    assert (saber.threshold_from_committed, saber.min_commits) == (True, 4)
    other = lrd.DecodingConfig.preset("saber", confidence_threshold=0.9)
    assert (other.threshold_from_committed, other.min_commits, other.reopen) == (False, 1, "drop")
    ours = lrd.DecodingConfig.preset("fast", **SABER)
    assert ours.entropy_threshold is None


@pytest.mark.parametrize("rule", [WINO, SABER, RCR], ids=["wino", "saber", "rcr"])
def test_an_eos_ends_a_sample_only_where_its_block_is_full(rule: dict[str, Any]) -> None:
    """An EOS may open again until then."""
    tiny = lrd.load_model("tiny")
    settings = {**PLAIN, **rule, "gen_length": 64, "block_length": 16, "stop_at_eos": True}
    if "steps" in rule:
        settings["steps"] = 16
    config = lrd.DecodingConfig(**settings)
    prompts = [
        tiny.tokenizer.encode(problem.question) for problem in islice(problems("test", 3), 6)
    ]
    ended = [s for s in lrd.decode(tiny, prompts, config) if s.stop_reason == "eos"]
    assert ended
    for sample in ended:
        filled = sample.commit_step.index(0)
        assert filled % 16 == 0
        assert tiny.eos_id in sample.canvas[:filled]
        assert set(sample.canvas[filled:]) == {tiny.eos_id}


def test_how_many_positions_saber_opens_again() -> None:
    counts = range(1, 41)
    for n in (1, 2, 4, 8):
        expected = [min(max(n // 2, math.ceil(k / 8)), k - 1) for k in counts]
        assert most_to_reopen(torch.tensor(counts), n).tolist() == expected
