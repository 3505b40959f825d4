"""Eq. 6 against beliefs kept in few bytes: exact for small vocabularies, bounded for large ones."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.logits import MASK, VOCABULARY, random_logits
from helpers.reference import softmax
from torch import Tensor

from lrd.beliefs import Belief
from lrd.previous_beliefs import EXACT_COLUMNS, PastBeliefs

LARGE = EXACT_COLUMNS + 64


def divergence(now: Tensor, before: Tensor) -> Tensor:
    """KL [N] of two passes' logits [N, V], through PastBeliefs."""
    past = PastBeliefs(1, len(now), now.shape[1], now.device)
    rows = torch.arange(len(now))
    past.kl_then_keep(Belief.of_logits(before, MASK), rows)
    return past.kl_then_keep(Belief.of_logits(now, MASK), rows)


def exact(now: Tensor, before: Tensor) -> Tensor:
    def log_beliefs(logits: Tensor) -> Tensor:
        logits = logits.double()
        logits[:, MASK] = -1e30
        return logits.log_softmax(-1)

    log_p, log_q = log_beliefs(now), log_beliefs(before)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def test_divergence_is_from_this_pass_to_the_one_before() -> None:
    now, before = random_logits(4, VOCABULARY, seed=4), random_logits(4, VOCABULARY, seed=5)
    kl = divergence(now, before).tolist()
    for row in range(4):
        p, q = (softmax(x[row].tolist(), MASK) for x in (now, before))
        forward = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
        backward = sum(b * math.log(b / a) for a, b in zip(p, q, strict=True) if b > 0)
        assert kl[row] == pytest.approx(forward, rel=1e-4)
        assert abs(forward - backward) > 1e-2


@pytest.mark.parametrize("vocabulary", [VOCABULARY, EXACT_COLUMNS, LARGE])
def test_divergence_is_never_negative(vocabulary: int) -> None:
    """Nearly equal beliefs round to either side of 0; a threshold of 0 must not be passed."""
    now = random_logits(50, vocabulary, seed=6)
    almost = now + random_logits(50, vocabulary, scale=1e-5, seed=7)
    kl = divergence(now, almost)
    assert kl.min() >= 0
    assert kl.max() < 1e-5


@pytest.mark.parametrize("scale", [1.0, 4.0, 12.0])
@pytest.mark.parametrize("change", [1e-3, 0.03, 0.3, 3.0])
def test_compact_past_keeps_the_stated_bound(scale: float, change: float) -> None:
    before = random_logits(20, LARGE, scale=scale, seed=8)
    now = before + random_logits(20, LARGE, scale=change, seed=9)
    found, expected = divergence(now, before).double(), exact(now, before)
    p, q = Belief.of_logits(now, MASK), Belief.of_logits(before, MASK)
    first_order = ((p.p_NV - q.p_NV).abs() * q.s_NV.abs()).double().sum(-1) * 2**-11
    largest_move = (q.s_NV.abs() * (q.p_NV > 1e-12)).amax(-1).double() * 2**-11
    rounding = 4e-6  # of float32 sums over the vocabulary
    assert ((found - expected).abs() <= first_order + largest_move**2 + rounding).all()


def test_small_vocabularies_have_no_error_but_rounding() -> None:
    before = random_logits(20, EXACT_COLUMNS, scale=3.0, seed=8)
    now = before + random_logits(20, EXACT_COLUMNS, scale=0.1, seed=9)
    assert torch.allclose(divergence(now, before).double(), exact(now, before), atol=4e-6)


def test_a_samples_past_moves_with_it() -> None:
    logits = [random_logits(2, VOCABULARY, seed=seed) for seed in range(4)]
    past = PastBeliefs(3, 2, VOCABULARY, torch.device("cpu"))
    past.move(2, 1)  # Before the first pass there is nothing to move.
    for sample in range(3):
        rows = torch.arange(2 * sample, 2 * sample + 2)
        past.kl_then_keep(Belief.of_logits(logits[sample], MASK), rows)
    past.move(2, 1)
    for place, sample in ((0, 0), (1, 2)):
        rows = torch.arange(2 * place, 2 * place + 2)
        kl = past.kl_then_keep(Belief.of_logits(logits[3], MASK), rows)
        assert torch.allclose(kl.double(), exact(logits[3], logits[sample]), atol=1e-5)
    assert past.num_bytes == 3 * 2 * (VOCABULARY + 1) * 4, "memory is taken once"
