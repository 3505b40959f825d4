"""Nuclei and expected embeddings of `lrd/nucleus.py` against a full sort."""

from __future__ import annotations

import pytest
import torch
from helpers.logits import MASK, VOCABULARY, random_logits
from helpers.reference import softmax
from torch import Tensor

from lrd import beliefs
from lrd.nucleus import argmax, expected_embedding, has_groups, nucleus, nucleus_of_top_k, top_k


def sorted_nucleus(p: Tensor, top_p: float) -> Tensor:
    """The plain reference: sort, cumulate, cut, scatter back."""
    descending, order = p.double().sort(dim=-1, descending=True, stable=True)
    mass_before = descending.cumsum(-1) - descending
    kept = descending * (mass_before < top_p)
    kept[..., 0] = descending[..., 0]
    kept = kept / kept.sum(-1, keepdim=True)
    return torch.zeros_like(p, dtype=torch.float64).scatter_(-1, order, kept)


def plain_nucleus(p: list[float], top_p: float) -> set[int]:
    """Most probable first, lower ids first among equals, until the mass reaches top_p."""
    chosen: list[int] = []
    for v in sorted(range(len(p)), key=lambda v: (-p[v], v)):
        if chosen and sum(p[u] for u in chosen) >= top_p:
            break
        chosen.append(v)
    return set(chosen)


BELIEFS = {
    "vague": (0.3, None),
    "middling": (2.0, None),
    "sure": (6.0, None),
    "heavy ties": (2.0, 0.5),
    "nothing but ties": (0.0, None),
    "bfloat16": (4.0, "bfloat16"),
}


def some_beliefs(kind: str, vocabulary: int, rows: int = 6) -> Tensor:
    scale, step = BELIEFS[kind]
    logits = random_logits(rows, vocabulary, scale=scale, seed=vocabulary)
    if step == "bfloat16":
        logits = logits.bfloat16().float()
    elif step is not None:
        logits = (logits / step).round() * step
    return beliefs.Belief.of_logits(logits, MASK).p_NV


def near(p: Tensor, top_p: float) -> Tensor:
    """Rows whose nucleus rounding decides: a cumulated mass within 4e-7 of top_p."""
    mass = p.double().sort(dim=-1, descending=True).values.cumsum(-1)
    return ((mass - top_p).abs() < 4e-7).any(-1)


VOCABULARIES = (37, 752, 5000, 64 * 256)
"""Sorted whole, by candidates, without whole groups, and by groups."""


@pytest.mark.parametrize("top_p", [0.0, 0.1, 0.52, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("kind", BELIEFS)
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_is_the_sorted_nucleus(vocabulary: int, kind: str, top_p: float) -> None:
    p = some_beliefs(kind, vocabulary)
    expected = sorted_nucleus(p, top_p) if top_p < 1 else p.double()
    clear = ~near(p, top_p) if top_p < 1 else torch.ones(len(p), dtype=torch.bool)
    assert clear.any()
    found = nucleus(p, top_p)
    assert torch.equal((found > 0)[clear], (expected > 0)[clear])
    assert torch.allclose(found[clear].double(), expected[clear], atol=1e-6)

    table = torch.randn(vocabulary, 8, generator=torch.Generator().manual_seed(0))
    mixed = expected_embedding(p, p.argmax(-1), top_p, table)
    assert torch.allclose(mixed[clear].double(), (expected @ table.double())[clear], atol=1e-5)


@pytest.mark.parametrize("kind", BELIEFS)
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_candidates_prove_what_they_hold(vocabulary: int, kind: str) -> None:
    """Proven means equal to the whole nucleus; unproven rows exist only where it is larger, or
    where equals of its last token may lie beyond the candidates."""
    p, top_p, k = some_beliefs(kind, vocabulary), 0.9, 32
    expected = sorted_nucleus(p, top_p)
    ids, weights, proven = nucleus_of_top_k(p, top_p, k)
    found = torch.zeros_like(p).scatter(-1, ids, weights)
    assert torch.equal(found[proven] > 0, expected[proven] > 0)
    descending = p.sort(dim=-1, descending=True).values
    size = (expected > 0).sum(-1)
    for row in (~proven).nonzero().flatten().tolist():
        last = min(int(size[row]), k) - 1
        assert size[row] >= k or descending[row, last] == descending[row, k - 1]


def test_candidates_are_proven_where_they_matter() -> None:
    for kind, everywhere in (("sure", True), ("vague", False), ("nothing but ties", False)):
        proven = nucleus_of_top_k(some_beliefs(kind, 64 * 256), 0.9, 64)[2]
        assert proven.all() if everywhere else not proven.any()


def test_top_k_of_groups_is_the_top_k() -> None:
    p = some_beliefs("middling", 64 * 256)
    assert has_groups(p.shape[1])
    values, ids = top_k(p, 40)
    assert torch.equal(p.gather(-1, ids), values)
    assert torch.equal(
        values.sort(descending=True).values, p.topk(40).values.sort(descending=True).values
    )
    assert torch.equal(argmax(p), p.argmax(-1))
    crowd = torch.zeros(2, 64 * 256)
    crowd[:, [70, 71, 9000]] = 1.0
    assert argmax(crowd).tolist() == [70, 70]


def test_bfloat16_tables_mix_in_bfloat16() -> None:
    p = some_beliefs("middling", 752)
    table = torch.randn(752, 8, generator=torch.Generator().manual_seed(0))
    mixed = expected_embedding(p, p.argmax(-1), 0.9, table.bfloat16())
    assert mixed.dtype == torch.bfloat16
    assert torch.allclose(mixed.float(), expected_embedding(p, p.argmax(-1), 0.9, table), atol=0.05)


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("scale", [0.3, 2.0, 6.0])
def test_nucleus_is_the_smallest_set_that_reaches_top_p(top_p: float, scale: float) -> None:
    logits = random_logits(4, VOCABULARY, scale=scale, seed=2)
    p_bar = nucleus(beliefs.log_beliefs(logits, MASK).exp(), top_p)
    for row in range(4):
        p = softmax(logits[row].tolist(), MASK)
        chosen = plain_nucleus(p, top_p)
        mass = sum(p[v] for v in chosen)
        assert mass >= top_p
        assert mass - min(p[v] for v in chosen) < top_p
        expected = [p[v] / mass if v in chosen else 0.0 for v in range(VOCABULARY)]
        assert p_bar[row].tolist() == pytest.approx(expected, abs=1e-6)
        assert {v for v, x in enumerate(p_bar[row].tolist()) if x > 0} == chosen


def test_nucleus_keeps_the_top_token_at_0_and_everything_at_1() -> None:
    # The last row is so sure that in float32 its top tokens alone sum to 1.
    logits = torch.cat([random_logits(3, VOCABULARY), random_logits(1, VOCABULARY, scale=9.0)])
    p = beliefs.log_beliefs(logits, MASK).exp()
    only_top = nucleus(p, 0.0)
    assert torch.equal(only_top, torch.nn.functional.one_hot(p.argmax(-1), VOCABULARY).float())
    assert torch.allclose(nucleus(p, 1.0), p, atol=1e-7)
    assert torch.equal(nucleus(p, 1.0) > 0, p > 0)


def test_nucleus_prefers_the_lower_id_among_equals() -> None:
    p = torch.tensor([[0.1, 0.2, 0.2, 0.1, 0.2, 0.2], [1 / 6] * 6])
    assert (nucleus(p, 0.55) > 0).tolist() == [
        [False, True, True, False, True, False],
        [True, True, True, True, False, False],
    ]
