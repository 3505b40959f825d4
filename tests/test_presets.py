"""Every preset: a sample's result is its own, and decoding ends within its bound."""

from __future__ import annotations

import dataclasses
from itertools import islice
from typing import Any

import pytest
from helpers.engine import assert_same, requests, run
from helpers.random_model import LIVELY, MASK, random_model

import lrd
from jobs.tiny.problems import problems
from lrd.config import ALL_PRESETS
from lrd.models.checkpoint import LoadedModel


@pytest.fixture(scope="module")
def lively() -> LoadedModel:
    """Positions predict themselves, as some decoders need it."""
    return random_model(**{**LIVELY, "logit_shift": False})


def preset(name: str, gen_length: int, block_length: int) -> lrd.DecodingConfig:
    """A preset on a small canvas, in blocks where it has blocks."""
    settings: dict[str, Any] = {"gen_length": gen_length}
    if "block_length" in ALL_PRESETS[name]:
        settings["block_length"] = block_length
    if "steps" in ALL_PRESETS[name]:
        settings["steps"] = gen_length
    return lrd.DecodingConfig.preset(name, **settings)


@pytest.mark.parametrize("name", ALL_PRESETS)
def test_samples_do_not_depend_on_the_company(name: str, lively: LoadedModel) -> None:
    """Neither on slots, order, neighbours and free slots, room for longer prompts, the padding's
    side, nor on shapes that are fixed."""
    config = preset(name, 12, 4)
    alone: dict[Any, lrd.Sample] = {}
    for request in requests():
        alone |= run(lively, config, [request], 1, len(request.prompt))[0]
    assert len({tuple(sample.canvas) for sample in alone.values()}) >= 2, "too alike to test"
    for sample in alone.values():
        assert MASK not in sample.canvas
        assert sample.num_forwards <= config.max_forwards
    assert_same(run(lively, config, requests(), 3)[0], alone)
    assert_same(run(lively, config, requests()[::-1], 16, 30, "right")[0], alone)
    engine = lrd.Engine(lively, config, 4, 9, "right", fixed_shapes=True)
    for request in requests():
        engine.submit(request)
    found: dict[Any, lrd.Sample] = {}
    while engine.busy:
        found |= {sample.key: sample for sample in engine.step()}
    assert_same(found, alone)


@pytest.mark.parametrize("name", ALL_PRESETS)
def test_on_a_cpu_every_bit_is_the_samples_own(name: str) -> None:
    compare_bits(preset(name, 32, 16), num_prompts=4, slots=(3,))


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL_PRESETS)
def test_on_a_cpu_every_bit_of_many_is_their_own(name: str) -> None:
    compare_bits(preset(name, 64, 32), num_prompts=24, slots=(3, 7, 16))


def compare_bits(config: lrd.DecodingConfig, num_prompts: int, slots: tuple[int, ...]) -> None:
    """Samples of `tiny`, alone and in company."""
    tiny = lrd.load_model("tiny")
    texts = [problem.question for problem in islice(problems("test", seed=7), num_prompts)]
    prompts = [tiny.tokenizer.encode(text)[: 30 + 5 * (n % 3)] for n, text in enumerate(texts)]
    alone, _ = run(tiny, config, requests(prompts), num_slots=1, prompt_length=40)
    for num_slots in slots:
        together, _ = run(tiny, config, requests(prompts)[::-1], num_slots, prompt_length=40)
        for key, sample in alone.items():
            ours, theirs = (dataclasses.asdict(s) for s in (together[key], sample))
            # As text, since NaN, a trace's first value, is equal to nothing.
            assert all(str(ours[k]) == str(theirs[k]) for k in ours if k != "seconds")
