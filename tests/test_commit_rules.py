"""Token choice, confidences, schedules and commit rules of the baseline samplers."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.random_model import EOS, MASK, random_model

import lrd
from lrd.beliefs import EXCLUDED, Belief
from lrd.canvases import Canvases
from lrd.commit_rules import (
    choose_commits,
    choose_tokens,
    cut,
    gumbel_tokens,
    scheduled_quota,
    tempered,
    token_confidence,
    without_tokens,
)
from lrd.decoding import step
from lrd.engine import row_seed
from lrd.forward import read_tokens
from lrd.models.checkpoint import LoadedModel

PLAIN: dict[str, Any] = {"r_f": 0.0, "max_refine_steps": 0, "gen_length": 16, "stop_at_eos": False}
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [11], [12, 13, 14, 15, 16]]


def beliefs_of(*rows: list[float]) -> torch.Tensor:
    """Log-beliefs [1, K, V] of probabilities."""
    return torch.tensor([rows]).log().clamp(min=EXCLUDED)


# What tokens are drawn from


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999, 1.0, None])
@pytest.mark.parametrize("top_k", [1, 3, 100, None])
def test_cut_is_the_plain_rule(top_p: float | None, top_k: int | None) -> None:
    generator = torch.Generator().manual_seed(1)
    log_q = (3 * torch.randn(2, 5, 12, generator=generator)).log_softmax(-1)
    kept = cut(log_q, top_p, top_k)
    for row, found in zip(log_q.view(-1, 12).tolist(), kept.view(-1, 12).tolist(), strict=True):
        order = sorted(range(12), key=lambda token: -row[token])
        expected, mass = [], 0.0
        for token in order:
            if top_p is not None and mass > top_p:
                break
            expected.append(token)
            mass += math.exp(row[token])
        assert sorted(expected[:top_k]) == [token for token in range(12) if found[token]]


def test_draws_follow_the_tempered_cut_distribution() -> None:
    temperature, top_k, num_draws = 0.7, 3, 20_000
    log_p = beliefs_of([0.4, 0.3, 0.15, 0.1, 0.05])
    config = lrd.DecodingConfig(temperature=temperature, sample_top_k=top_k)
    uniform = torch.rand(
        1, num_draws, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    warm = torch.full((1, num_draws), temperature)
    draw = partial(gumbel_tokens, temperature_BK=warm, uniform_BKV=uniform)
    tokens, _ = choose_tokens(config, log_p.expand(1, num_draws, 5), warm, draw)
    counts = Counter(tokens.flatten().tolist())
    weights = [p ** (1 / temperature) for p in (0.4, 0.3, 0.15)]
    assert set(counts) == {0, 1, 2}
    for token, weight in enumerate(weights):
        share = weight / sum(weights)
        deviation = math.sqrt(share * (1 - share) / num_draws)
        assert abs(counts[token] / num_draws - share) < 4 * deviation


def test_confidence_is_read_from_the_belief_or_from_what_is_drawn() -> None:
    log_p = beliefs_of([0.5, 0.3, 0.2])
    uniform = torch.full((1, 1, 3), 0.5, dtype=torch.float64)
    for source, expected in (("belief", 0.5), ("sampling", 0.5**2 / (0.5**2 + 0.3**2))):
        config = lrd.DecodingConfig(
            temperature=0.5, sample_top_k=2, confidence_source=source, confidence="probability"
        )
        warm = torch.full((1, 1), 0.5)
        draw = partial(gumbel_tokens, temperature_BK=warm, uniform_BKV=uniform)
        token, log_r = choose_tokens(config, log_p, warm, draw)
        assert token.tolist() == [[0]]
        assert token_confidence(config, log_r, token).item() == pytest.approx(expected)


def test_tempering_and_leaving_out_keep_a_distribution() -> None:
    log_p = beliefs_of([0.5, 0.3, 0.2, 0.0])
    assert torch.equal(tempered(log_p, torch.zeros(1, 1)), log_p)
    warm = tempered(log_p, torch.full((1, 1), 1e-3))
    assert warm.exp().sum().item() == pytest.approx(1)
    assert torch.isfinite(warm).all()
    rest = without_tokens(log_p, [0, 2])
    assert rest.exp()[0, 0].tolist() == pytest.approx([0, 1, 0, 0])
    assert log_p.exp()[0, 0, 0].item() == pytest.approx(0.5)  # not changed in place


# Orders and schedules


def never_drawn(log_p: torch.Tensor) -> torch.Tensor:
    raise AssertionError("nothing is drawn at temperature 0")


def test_three_orders_name_three_positions() -> None:
    log_p = beliefs_of(
        [0.50, 0.50, 0.00, 0.00],  # lowest entropy, no margin
        [0.60, 0.30, 0.05, 0.05],  # highest probability
        [0.55, 0.15, 0.15, 0.15],  # largest margin
    )
    still_open = torch.ones(1, 3, dtype=torch.bool)
    chosen = {}
    for order in ("entropy", "probability", "margin"):
        config = lrd.DecodingConfig(confidence=order)
        token, log_r = choose_tokens(config, log_p, None, never_drawn)
        entropy = -(log_p.exp() * log_p).sum(-1)
        commits = choose_commits(
            config, entropy, token_confidence(config, log_r, token), still_open
        )
        chosen[order] = commits[0].nonzero().flatten().tolist()
    assert chosen == {"entropy": [0], "probability": [1], "margin": [2]}


def run_schedule(config: lrd.DecodingConfig, sure: bool) -> list[int]:
    """Positions that each pass commits where none or all positions reach the threshold."""
    block = config.block_tokens
    still_open, commits = torch.ones(1, block, dtype=torch.bool), []
    while still_open.any():
        number = torch.tensor([len(commits) + 1])
        quota = None
        if config.steps:
            start = torch.tensor([block])
            quota = scheduled_quota(config, still_open.sum(-1), number, start)
        confidence = torch.full((1, block), 0.9 if sure else 0.1)
        chosen = choose_commits(config, confidence, confidence, still_open, quota)
        still_open &= ~chosen
        commits.append(int(chosen.sum()))
    return commits


def test_schedules() -> None:
    def settings(**more: Any) -> lrd.DecodingConfig:
        return lrd.DecodingConfig(gen_length=32, **more)

    assert run_schedule(settings(steps=12), sure=True) == [3] * 8 + [2] * 4
    assert run_schedule(settings(steps=20, block_length=8), sure=True) == [2, 2, 2, 1, 1]
    # Dream's shares are just short of 1/steps, so the first passes fall short by one.
    assert run_schedule(settings(steps=8, schedule="timestep"), sure=True) == [3] + [4] * 6 + [5]
    # More steps than positions: the first passes commit nothing, and the last all the rest.
    late = run_schedule(settings(steps=64, schedule="timestep"), sure=True)
    assert (len(late), sum(late), late[0]) == (64, 32, 0)


def test_threshold_alone_and_capped_by_steps() -> None:
    """Fast-dLLM on LLaDA commits all that is sure; on Dream never ahead of its schedule."""
    alone = lrd.DecodingConfig(gen_length=16, confidence_threshold=0.5)
    capped = lrd.DecodingConfig(gen_length=16, confidence_threshold=0.5, steps=4)
    assert run_schedule(alone, sure=True) == [16]
    assert run_schedule(capped, sure=True) == [4] * 4
    assert run_schedule(alone, sure=False) == run_schedule(capped, sure=False) == [1] * 16


def test_more_steps_than_the_canvas_fit_the_traces(model: LoadedModel) -> None:
    config = lrd.DecodingConfig(**PLAIN, steps=40, schedule="timestep")
    sample = lrd.decode(model, [PROMPTS[0]], config)[0]
    assert sample.num_forwards == sample.decode_steps == 40 == config.max_forwards
    assert len(sample.entropy_trace) == 40
    assert MASK not in sample.canvas
    refined = lrd.DecodingConfig(gen_length=16, steps=40, schedule="timestep", refinement=2)
    sample = lrd.decode(model, [PROMPTS[0]], refined)[0]
    assert (sample.decode_steps, sample.refine_steps) == (40, 80)
    assert len(sample.kl_trace) == 120 == refined.max_forwards


# Every sampler keeps the promise that a sample is its own

SAMPLERS: dict[str, dict[str, Any]] = {
    "llada": {"confidence": "probability", "steps": 8, "block_length": 8},
    "llada guided": {"confidence": "probability", "steps": 8, "cfg_scale": 1.5},
    "llada warm": {"confidence": "probability", "steps": 8, "temperature": 0.8},
    "llada eos last": {"confidence": "probability", "steps": 8, "confidence_eos_eot_inf": True},
    "fast": {"confidence_threshold": 0.3, "block_length": 8},
    "dream": {"steps": 8, "schedule": "timestep", "confidence_source": "sampling"},
    "dream warm": {
        "steps": 8,
        "schedule": "timestep",
        "confidence_source": "sampling",
        "confidence": "margin",
        "temperature": 0.8,
        "sample_top_p": 0.9,
        "sample_top_k": 20,
    },
    "fast dream": {"confidence_threshold": 0.3, "steps": 4, "confidence_source": "sampling"},
    "refined by margin": {"confidence": "margin", "r_f": 0.2, "max_refine_steps": 3},
    "refined, guided, scheduled": {"steps": 4, "cfg_scale": 0.5, "r_f": 0.2, "max_refine_steps": 3},
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_decode_alone_as_in_padded_batches(model: LoadedModel, name: str) -> None:
    config = lrd.DecodingConfig(**{**PLAIN, **SAMPLERS[name]}, seed=5)
    batched = lrd.decode(model, PROMPTS, config)
    for other in (
        lrd.decode(model, PROMPTS, config, padding_side="right"),
        lrd.decode(model, PROMPTS, config, batch_size=2),
    ):
        assert [s.canvas for s in other] == [s.canvas for s in batched]
        assert [s.commit_step for s in other] == [s.commit_step for s in batched]
    for index, prompt in enumerate(PROMPTS):
        engine = lrd.Engine(model, config, 1, len(prompt))
        engine.submit(lrd.Request(index, prompt, row_seed(5, index)))
        while not (done := engine.step()):
            pass
        assert done[0].canvas == batched[index].canvas
        assert done[0].num_forwards == batched[index].num_forwards
        assert MASK not in done[0].canvas


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_sampler_reads_a_tensor_on_the_host(name: str) -> None:
    """On the meta device there is nothing to read: what would wait for a device raises here."""
    config = lrd.DecodingConfig(**{**PLAIN, **SAMPLERS[name]})
    with torch.device("meta"):
        model = random_model(seed=0)
        state = Canvases.empty(model, config, 3, 24)
    step(model, config, state)
    assert state.canvas_BG.device.type == "meta"
    with pytest.raises(RuntimeError, match="meta"):
        state.stop_B.tolist()


def test_seeds_decide_warm_samples(model: LoadedModel) -> None:
    def canvases(seed: int) -> list[list[int]]:
        config = lrd.DecodingConfig(**PLAIN, temperature=1.0, seed=seed)
        return [s.canvas for s in lrd.decode(model, [PROMPTS[0]] * 3, config)]

    first = canvases(1)
    assert first == canvases(1)
    assert len({tuple(canvas) for canvas in [*first, *canvases(2)]}) == 6


# Guidance and the EOS switches


def test_guidance_is_the_plain_formula(model: LoadedModel) -> None:
    """One pass, every position: away from what a masked prompt predicts."""
    prompt, scale = PROMPTS[1], 2.0
    config = lrd.DecodingConfig(**PLAIN, steps=1, cfg_scale=scale)
    sample = lrd.decode(model, [prompt], config)[0]
    ids = torch.tensor([[*prompt, *[MASK] * 16], [MASK] * (len(prompt) + 16)])
    conditional, unconditional = model.logits(model.embed(ids))[:, len(prompt) :]
    guided = unconditional + (scale + 1) * (conditional - unconditional)
    guided[:, MASK] = -torch.inf
    assert sample.canvas == guided.argmax(-1).tolist()
    log_p = guided.log_softmax(-1).clamp(min=EXCLUDED)
    entropy = -(log_p.exp() * log_p).sum(-1).mean().item()
    assert sample.entropy_trace == pytest.approx([entropy], abs=1e-5)
    unguided = lrd.decode(model, [prompt], lrd.DecodingConfig(**PLAIN, steps=1))[0]
    assert abs(unguided.entropy_trace[0] - entropy) > 0.01
    assert sample.num_forwards == 1


def test_eos_switches() -> None:
    model = random_model(seed=3, eos_bias=3.0)

    def decode(**more: Any) -> lrd.Sample:
        config = lrd.DecodingConfig(**PLAIN, confidence="probability", steps=16, **more)
        return lrd.decode(model, [PROMPTS[0]], config)[0]

    def last_other_before_first_eos(sample: lrd.Sample) -> bool:
        steps = list(zip(sample.canvas, sample.commit_step, strict=True))
        eos = [step for token, step in steps if token == EOS]
        return max(step for token, step in steps if token != EOS) < min(eos)

    plain, never, last = decode(), decode(logits_eos_inf=True), decode(confidence_eos_eot_inf=True)
    assert EOS in plain.canvas
    assert not last_other_before_first_eos(plain)
    assert EOS not in never.canvas
    assert EOS in last.canvas
    assert last.num_forwards == 16
    model.eot_id = next(token for token in last.canvas if token != EOS)
    with_eot = decode(confidence_eos_eot_inf=True)
    assert with_eot.commit_step != last.commit_step


@pytest.mark.parametrize("order", ["entropy", "probability", "margin"])
def test_eos_comes_last_in_every_order(order: str) -> None:
    """The first position would write EOS and without it would be the surest of another token."""
    probabilities = torch.full((3, 48), 0.1 / 47)
    probabilities[0] = 1e-4
    probabilities[0, EOS], probabilities[0, 5] = 0.53, 0.46
    probabilities[1, 7], probabilities[1, 9], probabilities[2, 8] = 0.4, 0.38, 0.9
    log_p = (probabilities / probabilities.sum(-1, keepdim=True)).log()
    belief = Belief.of_logits(log_p, MASK)
    still_open = torch.ones(1, 3, dtype=torch.bool)

    def order_of(eot_id: int | None, **more: Any) -> list[int]:
        config = lrd.DecodingConfig(confidence=order, **more)
        fake = SimpleNamespace(eos_id=EOS, eot_id=eot_id, mask_id=MASK)
        _, doubt, confidence, _ = read_tokens(fake, config, belief, log_p, torch.arange(3), None)
        remaining, found = still_open.clone(), []
        while remaining.any():
            commit = choose_commits(config, doubt[None], confidence[None], remaining)
            found += commit[0].nonzero().flatten().tolist()
            remaining &= ~commit
        return found

    assert order_of(None)[2] != 0
    assert order_of(None, confidence_eos_eot_inf=True) == [2, 1, 0]
    assert order_of(8, confidence_eos_eot_inf=True) == [1, 0, 2]


# Settings that contradict each other


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 10, "gen_length": 16, "block_length": 4}, "must be a multiple of 4"),
        ({"steps": 4, "tokens_per_step": 2}, "steps and tokens_per_step are both set"),
        ({"steps": 4, "entropy_threshold": 0.1}, "steps and entropy_threshold are both set"),
        ({"schedule": "timestep"}, "set steps too"),
        ({"steps": 4, "confidence_threshold": 0.5, "schedule": "timestep"}, "drop schedule"),
        ({"entropy_bound": 0.1, "confidence": "margin"}, "drop confidence = margin"),
        ({"confidence_threshold": 0.5, "confidence": "margin"}, "drop confidence = margin"),
        ({"sample_top_k": 5}, "set confidence_source to sampling, raise temperature, or drop"),
        ({"sample_top_p": 0.0}, "greater than 0"),
        ({"cfg_scale": -1.0}, "greater than or equal to 0"),
    ],
)
def test_contradictions_name_the_way_out(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lrd.DecodingConfig(**settings)


def test_steps_replace_a_presets_commit_rule() -> None:
    config = lrd.DecodingConfig.preset("fast", steps=32)
    assert config.entropy_threshold is None
    assert config.steps == 32
    assert lrd.DecodingConfig.preset("paper", steps=32).tokens_per_step == 1
