"""Requests, settings and models for tests of the engine, and what its samples must be equal in."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import pytest
from torch import Tensor

import lrd
from helpers.random_model import LIVELY, random_model
from lrd.models.checkpoint import LoadedModel

PROMPTS = [
    [3, 1, 4, 1, 5, 9],
    [2],
    [7, 7, 7, 20, 30, 40, 44, 0, 11],
    [8, 9],
    [1, 2, 3, 4],
    [30, 31, 32],
    [12],
]

UNEVEN = lrd.DecodingConfig(
    gen_length=12, r_f=0.3, max_refine_steps=3, tau_refine=0.05, entropy_threshold=0.9
)
"""A commit rule by threshold, so that samples take very different numbers of passes."""

SETTINGS = {
    "uneven": UNEVEN,
    "stop": UNEVEN.model_copy(update={"early_stop": True, "refinement": "auto"}),
    "blocks": UNEVEN.model_copy(update={"block_length": 4}),
    "warm": UNEVEN.model_copy(update={"temperature": 0.8}),
    "dual": UNEVEN.model_copy(update={"block_length": 4, "kv_cache": "dual", "suffix": 0}),
    "guided": UNEVEN.model_copy(update={"cfg_scale": 0.5}),
}


def requests(prompts: list[list[int]] = PROMPTS) -> list[lrd.Request]:
    return [lrd.Request(index, prompt, 1000 + index) for index, prompt in enumerate(prompts)]


def drain(engine: lrd.Engine, asked: list[lrd.Request]) -> dict[Any, lrd.Sample]:
    """Decode all requests; the samples by key, one for each."""
    for request in asked:
        engine.submit(request)
    samples = []
    while engine.busy:
        samples += engine.step()
    assert len(samples) == len(asked)
    return {sample.key: sample for sample in samples}


def run(
    model: LoadedModel,
    config: lrd.DecodingConfig,
    asked: list[lrd.Request],
    num_slots: int = 3,
    prompt_length: int = 9,
    padding_side: Literal["left", "right"] = "left",
) -> tuple[dict[Any, lrd.Sample], lrd.Engine]:
    """Decode all requests with a new engine; the samples by key, and the engine."""
    engine = lrd.Engine(model, config, num_slots, prompt_length, padding_side)
    return drain(engine, asked), engine


def assert_same(samples: dict[Any, lrd.Sample], expected: dict[Any, lrd.Sample]) -> None:
    """Equal in everything that is decided, and to rounding in what is measured."""
    assert samples.keys() == expected.keys()
    for key, sample in samples.items():
        for field in dataclasses.fields(lrd.Sample):
            value, other = getattr(sample, field.name), getattr(expected[key], field.name)
            if field.name in ("kl_trace", "entropy_trace", "token_confidence"):
                assert value == pytest.approx(other, abs=1e-4, nan_ok=True), field.name
            elif field.name in ("mean_mix_weight", "max_entropy_at_stop"):
                assert value == pytest.approx(other, abs=1e-4), field.name
            elif field.name != "seconds":
                assert value == other, field.name


class Observed:
    """A model that notes the embeddings of every pass; `spoil` may change its logits."""

    def __init__(self, model: LoadedModel) -> None:
        self.passes: list[Tensor] = []
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def logits(self, embeds: Tensor, *rest: Any) -> Tensor:
        self.passes.append(embeds.clone())
        return self.spoil(embeds, self.model.logits(embeds, *rest))

    def spoil(self, embeds: Tensor, logits: Tensor) -> Tensor:
        return logits


class Cramped(LoadedModel):
    """Has memory for three canvases at a time; raises `error` for more."""

    error: Exception

    def hidden(self, embeds: Tensor, *rest: Any) -> Tensor:
        if len(embeds) > 3:
            raise self.error
        return super().hidden(embeds, *rest)


def cramped(error: Exception) -> LoadedModel:
    """A random model that raises `error` for more than three canvases."""
    model = random_model(**LIVELY)
    model.__class__ = Cramped
    model.error = error
    return model
