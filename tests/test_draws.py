"""Uniform numbers by counter: a function of seed, pass, position and token, and evenly spread."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers.engine import assert_same, drain, requests
from helpers.reference import uniform
from torch import Tensor

import lrd
from lrd.commit_rules import gumbel_tokens
from lrd.draws import GOLDEN, Draws, signed
from lrd.models.checkpoint import LoadedModel

SEEDS = [0, 1, 2**63 - 1, -5, 2**64 - 5, 0x9E3779B97F4A7C15]


def draws(seeds: Tensor, passes: Tensor, positions: Tensor, num_columns: int) -> Tensor:
    """[B, K, V]."""
    B, K = positions.shape
    made = Draws.of(seeds, passes, positions, torch.ones(B).double(), num_columns)
    return made.uniform(torch.arange(B * K)).view(B, K, num_columns)


def test_are_the_hash_in_plain_integers() -> None:
    """In any order and selection of rows, to the bit."""
    passes, positions = [0, 7, 2, 1000, 3, 4], [[5, 0], [1, 99], [31, 8], [2, 2], [6, 7], [0, 1]]
    made = Draws.of(
        torch.tensor([signed(seed) for seed in SEEDS]),
        torch.tensor(passes),
        torch.tensor(positions),
        torch.ones(len(SEEDS)).double(),
        9,
    )
    rows = torch.tensor([11, 0, 4, 7, 2, 5, 9])
    for row, found in zip(rows.tolist(), made.uniform(rows).tolist(), strict=True):
        sample, place = divmod(row, 2)
        expected = [
            uniform(SEEDS[sample], passes[sample], positions[sample][place], v) for v in range(9)
        ]
        assert found == expected
    assert made.uniform(rows[:0]).shape == (0, 9)


def test_lie_inside_of_0_and_1() -> None:
    """A hash of 0 would make a token certain."""
    zero = Draws(torch.tensor([[-GOLDEN]]), torch.ones(1, 1).double(), 1).uniform(torch.tensor([0]))
    assert zero.item() == 2.0**-54
    many = draws(torch.arange(50), torch.zeros(50).long(), torch.arange(40).expand(50, 40), 1000)
    assert many.dtype == torch.float64
    assert 0 < many.min() < 1e-5
    assert 1 - 1e-5 < many.max() < 1


# 64 seeds × 16 positions × 1,000 tokens; neighbours along one of the four axes.
NUMBERS = (64, 16, 1000)
AXES = ("seeds", "passes", "positions", "tokens")


def numbers(seed: int = 0, passes: int = 3, position: int = 0, token: int = 0) -> Tensor:
    B, K, V = NUMBERS
    positions = (torch.arange(K) + position).expand(B, K)
    found = draws(torch.arange(B) + seed, torch.full((B,), passes), positions, V + token)
    return found[..., token:]


def test_are_evenly_spread() -> None:
    """Mean, variance, the largest gap of the distribution (Kolmogorov, Smirnov), and every bit."""
    u = numbers().flatten()
    n = u.numel()
    assert abs(u.mean() - 0.5) < 4 * math.sqrt(1 / 12 / n)
    assert abs(u.var() - 1 / 12) < 4 * math.sqrt(1 / 180 / n)
    steps = torch.arange(1, n + 1, dtype=torch.float64) / n
    gap = (u.sort().values - steps).abs().max() + 1 / n
    assert gap * math.sqrt(n) < 1.95, "one sample in a thousand is farther"
    integers = (u * 2.0**53).long()
    for bit in range(53):
        share = ((integers >> bit) & 1).double().mean()
        assert abs(share - 0.5) < 4.5 * 0.5 / math.sqrt(n), bit


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("distance", [1, 2, 16])
def test_neighbours_are_independent(axis: str, distance: int) -> None:
    """Correlation, and pairs over the cells of an 8 × 8 board (chi-square of 63 degrees)."""
    other = {"seeds": "seed", "passes": "passes", "positions": "position", "tokens": "token"}[axis]
    base = 3 if axis == "passes" else 0
    first, second = numbers().flatten(), numbers(**{other: base + distance}).flatten()
    n = first.numel()
    correlation = torch.corrcoef(torch.stack([first, second]))[0, 1].item()
    assert abs(correlation) < 4 / math.sqrt(n)
    cells = torch.bincount((first * 8).long() * 8 + (second * 8).long(), minlength=64).double()
    chi_square = ((cells - n / 64) ** 2 / (n / 64)).sum().item()
    assert 63 - 4 * math.sqrt(126) < chi_square < 63 + 4.5 * math.sqrt(126)


def test_numbers_do_not_come_twice() -> None:
    assert numbers().flatten().unique().numel() == math.prod(NUMBERS)


@pytest.mark.parametrize("temperature", [0.3, 0.8, 1.0, 2.0])
def test_drawn_tokens_follow_the_softmax(temperature: float) -> None:
    """Chi-square over 12 tokens, of 20,000 positions' draws."""
    logits = torch.randn(12, generator=torch.Generator().manual_seed(3)).double()
    expected = (logits / temperature).softmax(-1)
    n = 20_000
    u = draws(torch.arange(200), torch.full((200,), 5), torch.arange(100).expand(200, 100), 12)
    warm = torch.full((n,), temperature)
    tokens = gumbel_tokens(logits.log_softmax(-1).expand(n, 12), warm, u.view(n, 12))
    counts = torch.bincount(tokens, minlength=12).double()
    often = expected * n >= 5
    chi_square = ((counts - expected * n) ** 2 / (expected * n))[often].sum().item()
    degrees = int(often.sum()) - 1
    assert chi_square < degrees + 4.5 * math.sqrt(2 * degrees)


@pytest.mark.parametrize("settings", [{}, {"cache_refresh": 2}, {"suffix": 0}], ids=str)
def test_a_block_cache_of_fixed_shapes_draws_the_same(
    settings: dict[str, Any], model: LoadedModel
) -> None:
    config = lrd.DecodingConfig.preset(
        "blocks", gen_length=16, block_length=4, temperature=0.8, **{"suffix": "all", **settings}
    )
    found = []
    for fixed_shapes in (False, True):
        engine = lrd.Engine(model, config, 3, 9, fixed_shapes=fixed_shapes)
        found.append(drain(engine, requests()))
    assert_same(found[1], found[0])
