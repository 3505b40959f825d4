"""Each function of `lrd/beliefs.py` against its equation, computed the plain way in float64."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.logits import MASK, VOCABULARY, random_logits
from helpers.reference import entropy, softmax

from lrd import beliefs
from lrd.nucleus import nucleus


def test_belief_is_the_softmax_without_mask() -> None:
    logits = random_logits(6, VOCABULARY)
    untouched = logits.clone()
    p = beliefs.log_beliefs(logits, MASK).exp()
    for row in range(6):
        assert p[row].tolist() == pytest.approx(softmax(logits[row].tolist(), MASK), abs=1e-6)
    assert torch.equal(logits, untouched), "the model's logits are not the callee's to change"


def test_mask_has_probability_zero_even_where_the_model_is_sure_of_it() -> None:
    logits = random_logits(2, VOCABULARY)
    logits[:, MASK] = 1e4
    p = beliefs.log_beliefs(logits, MASK).exp()
    assert p[:, MASK].tolist() == [0.0, 0.0]
    assert p.sum(-1).tolist() == pytest.approx([1.0, 1.0])
    assert MASK not in beliefs.log_beliefs(logits, MASK).argmax(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_belief_is_float32_whatever_the_model_computes_in(dtype: torch.dtype) -> None:
    logits = random_logits(2, VOCABULARY).to(dtype)
    log_p = beliefs.log_beliefs(logits, MASK)
    assert log_p.dtype == torch.float32
    expected = softmax(logits[0].tolist(), MASK)
    assert log_p[0].exp().tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0, 50.0])
@pytest.mark.parametrize("vocabulary", [VOCABULARY, 4096 + 64])
def test_a_belief_made_in_one_go(vocabulary: int, scale: float, dtype: torch.dtype) -> None:
    """A vocabulary of whole groups takes its own way to the argmax."""
    logits = random_logits(5, vocabulary, scale=scale, seed=1).to(dtype)
    logits[0, 9:12] = logits[0].max() + 1  # the lowest of equals
    logits[1, MASK] = 1e4
    untouched = logits.clone()
    belief = beliefs.Belief.of_logits(logits, MASK)
    assert torch.equal(logits, untouched)
    for row in range(5):
        p = softmax(logits[row].tolist(), MASK)
        assert belief.p_NV[row].tolist() == pytest.approx(p, abs=1e-6)
        assert belief.token_N[row].item() == p.index(max(p))
        assert belief.entropy_N[row].item() == pytest.approx(entropy(p), abs=1e-5)
        log_p = (belief.s_NV - belief.log_z_N[:, None])[row]
        assert log_p[p.index(max(p))].item() == pytest.approx(math.log(max(p)), abs=1e-5)
    assert belief.token_N[0] == 9


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0, 50.0])
def test_entropy(scale: float) -> None:
    logits = random_logits(5, VOCABULARY, scale=scale, seed=1)
    entropies = beliefs.entropy(beliefs.log_beliefs(logits, MASK)).tolist()
    expected = [entropy(softmax(row, MASK)) for row in logits.tolist()]
    assert entropies == pytest.approx(expected, abs=1e-5)


def test_excluded_tokens_are_fine_and_nan_shows() -> None:
    logits = random_logits(4, VOCABULARY)
    logits[0, 10:] = -torch.inf
    logits[1, 7] = torch.nan
    logits[2, 7] = torch.inf
    logits[3, :] = -torch.inf
    log_p = beliefs.log_beliefs(logits, MASK)
    entropies = beliefs.entropy(log_p)
    expected = softmax(logits[0].tolist(), MASK)
    assert log_p[0].exp().tolist() == pytest.approx(expected, abs=1e-6)
    assert entropies[0].item() == pytest.approx(entropy(expected), abs=1e-5)
    assert entropies[1:].isnan().tolist() == [True, True, True], "no belief, no entropy"
    belief = beliefs.Belief.of_logits(logits, MASK)
    assert belief.entropy_N[0].item() == pytest.approx(entropy(expected), abs=1e-5)
    assert belief.entropy_N[1:].isnan().tolist() == [True, True, True]


def test_mix_weight() -> None:
    ends = torch.tensor([0.0, math.log(VOCABULARY)])
    assert beliefs.mix_weight(ends, VOCABULARY, 0.2).tolist() == pytest.approx([0.2, 0.0], abs=1e-7)
    middle = torch.tensor([1.7])
    expected = 0.2 * (1 - 1.7 / math.log(VOCABULARY))
    assert beliefs.mix_weight(middle, VOCABULARY, 0.2).item() == pytest.approx(expected)


def test_soft_embedding() -> None:
    generator = torch.Generator().manual_seed(3)
    table = torch.randn(VOCABULARY, 6, generator=generator)
    p_bar = nucleus(beliefs.log_beliefs(random_logits(3, VOCABULARY), MASK).exp(), 0.9)
    alpha = torch.tensor([0.0, 0.15, 1.0])
    soft = beliefs.soft_embedding(p_bar, alpha, table, table[MASK])
    for row in range(3):
        a, weights = alpha[row].item(), p_bar[row].tolist()
        for d in range(6):
            column = table[:, d].tolist()
            mean = sum(w * x for w, x in zip(weights, column, strict=True))
            expected = (1 - a) * column[MASK] + a * mean
            assert soft[row, d].item() == pytest.approx(expected, abs=1e-5)
    half = beliefs.soft_embedding(p_bar, alpha, table.bfloat16(), table[MASK].bfloat16())
    assert half.dtype == torch.bfloat16


KL = [[0.4, 0.1, 0.3, 0.2], [0.0, 0.7, 0.5, 0.1], [9.0, 9.0, 9.0, 9.0]]
OPEN = [[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]]


@pytest.mark.parametrize("scope", ["block", "open"])
@pytest.mark.parametrize("reduction", ["mean", "max", "sum"])
def test_reduce_kl(reduction: str, scope: str) -> None:
    reduced = beliefs.reduce_kl(torch.tensor(KL), torch.tensor(OPEN).bool(), reduction, scope)
    for row, (kl, opened) in enumerate(zip(KL, OPEN, strict=True)):
        counted = [k for k, is_open in zip(kl, opened, strict=True) if is_open]
        divisor = 4 if scope == "block" else max(len(counted), 1)
        expected = {
            "mean": sum(counted) / divisor,
            "max": max(counted, default=0.0),
            "sum": sum(counted),
        }[reduction]
        assert reduced[row].item() == pytest.approx(expected)
