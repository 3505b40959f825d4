"""Chunks of positions, with and without a separate head, give the same with no more work."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from helpers.engine import SETTINGS, assert_same, drain, requests, run
from helpers.few import spread
from helpers.random_model import LIVELY, VOCABULARY, random_model
from torch import Tensor

import lrd
from lrd import forward
from lrd.models.checkpoint import LoadedModel
from lrd.models.protocol import is_split


class Whole:
    """A model as another package may bring it: `logits` and nothing else."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def logits(self, *inputs: Any) -> Tensor:
        return self.model.logits(*inputs)


class CountedHead(LoadedModel):
    """Notes how many positions the head is asked for, a call at a time."""

    calls: list[int]

    def head(self, hidden: Tensor) -> Tensor:
        self.calls.append(hidden.shape[:-1].numel())
        return super().head(hidden)


def counted_model() -> CountedHead:
    model = random_model(**LIVELY)
    model.__class__ = CountedHead
    assert isinstance(model, CountedHead)
    model.calls = []
    return model


@functools.cache
def expected(setting: str) -> dict[Any, lrd.Sample]:
    return run(random_model(**LIVELY), SETTINGS[setting], requests())[0]


@pytest.mark.parametrize(("split", "setting"), spread([True, False], SETTINGS))
def test_chunks_say_the_same(
    setting: str, split: bool, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: Any = model if split else Whole(model)
    assert is_split(chosen) == split
    if not split and SETTINGS[setting].feeds_some:
        with pytest.raises(ValueError, match=r"need a model with the members"):
            run(chosen, SETTINGS[setting], requests())
        return
    for head, cached in ((1 << 24, 1 << 20), (1, 1), (5 * VOCABULARY, 2 * VOCABULARY)):
        monkeypatch.setattr(forward, "HEAD_ELEMENTS", head)
        monkeypatch.setattr(forward, "CACHED_ELEMENTS", cached)
        assert_same(run(chosen, SETTINGS[setting], requests())[0], expected(setting))


@pytest.mark.parametrize("pass_rows", ["busy", "all"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_fixed_shapes_say_the_same(setting: str, pass_rows: Any, model: LoadedModel) -> None:
    """The way that accelerators go, where a pass reads no tensor on the host."""
    for num_slots in (3, 7):
        engine = lrd.Engine(
            model, SETTINGS[setting], num_slots, 9, fixed_shapes=True, pass_rows=pass_rows
        )
        assert_same(drain(engine, requests()), expected(setting))


def test_the_head_runs_for_open_positions_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = counted_model()
    samples, _ = run(model, SETTINGS["uneven"], requests())
    open_positions = sum(
        sum(step >= number for step in sample.commit_step)
        for sample in samples.values()
        for number in range(1, sample.num_forwards + 1)
    )
    # A CPU is never asked for fewer than 4.
    assert open_positions <= sum(model.calls) <= 1.05 * open_positions
    assert max(model.calls) > 5
    model.calls.clear()
    monkeypatch.setattr(forward, "HEAD_ELEMENTS", 5 * VOCABULARY)
    run(model, SETTINGS["uneven"], requests())
    assert max(model.calls) == 5


def test_hidden_and_head_make_the_logits(model: LoadedModel) -> None:
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [0, 0, 0, 7, 7, 7, 20, 30]])
    mask = torch.tensor([[1] * 8, [0, 0, 0, 1, 1, 1, 1, 1]])
    columns = torch.tensor([[0, 2, 7], [3, 4, 7]])
    embeds = model.embed(ids)
    logits = model.logits(embeds, mask)
    rows = torch.arange(2)[:, None]
    assert torch.allclose(model.logits(embeds, mask, columns), logits[rows, columns], atol=1e-5)
    at = torch.tensor([0, 5, 11, 12, 15])
    hidden = model.hidden(embeds, mask, at)
    assert torch.allclose(model.head(hidden), logits.flatten(0, 1)[at], atol=1e-5)


def test_canvases_go_through_the_blocks_a_few_at_a_time(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer than four open positions in a part are computed as four, as everywhere."""
    for positions in (1, 21, 45):
        monkeypatch.setattr(forward, "CACHED_POSITIONS", positions)
        for setting in ("uneven", "blocks", "guided"):
            samples, _ = run(model, SETTINGS[setting], requests(), num_slots=5)
            assert_same(samples, expected(setting))
