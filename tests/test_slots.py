"""Fixed shapes: every pass computes all slots, nothing moves, and results are what they were."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from helpers.engine import (
    PROMPTS,
    SETTINGS,
    UNEVEN,
    Observed,
    assert_same,
    cramped,
    drain,
    requests,
    run,
)
from helpers.random_model import LIVELY, random_model
from torch import Tensor

import lrd
from lrd.models.checkpoint import LoadedModel
from lrd.sample import Readout


def run_fixed(
    model: Any, asked: list[lrd.Request], num_slots: int = 3, **arguments: Any
) -> tuple[dict[Any, lrd.Sample], lrd.Engine]:
    engine = lrd.Engine(
        model, arguments.pop("config", UNEVEN), num_slots, 9, fixed_shapes=True, **arguments
    )
    return drain(engine, asked), engine


@pytest.mark.parametrize("num_slots", [1, 3, 16])
def test_every_pass_has_the_same_shape(num_slots: int, model: LoadedModel) -> None:
    observed = Observed(model)
    samples, engine = run_fixed(observed, requests(), num_slots)
    assert {len(embeds) for embeds in observed.passes} == {num_slots}
    assert engine.num_slot_passes == num_slots * engine.num_passes
    assert_same(samples, run(model, UNEVEN, requests())[0])


@pytest.mark.parametrize("setting", [name for name, c in SETTINGS.items() if not c.caches])
def test_every_bit_is_the_samples_own(setting: str, model: LoadedModel) -> None:
    """Whatever else is in the batch: equal shapes are computed by equal kernels.

    Not with a cache: a full pass has as many rows as need one, so there samples are equal to
    rounding alone.
    """
    config = SETTINGS[setting]
    padded = [request for request in requests() if len(request.prompt) < 9]
    for request in padded:
        alone, _ = run_fixed(model, [request], config=config)
        others = [other for other in padded if other is not request]
        together, _ = run_fixed(model, [request, *others], config=config)
        ours, theirs = (dataclasses.asdict(s[request.key]) for s in (together, alone))
        # As text, since NaN, a trace's first value, is equal to nothing.
        assert all(str(ours[k]) == str(theirs[k]) for k in ours if k != "seconds")


def test_a_sample_leaves_at_most_one_check_and_one_pass_later(model: LoadedModel) -> None:
    expected, _ = run(model, UNEVEN, requests())
    for passes_a_read in (1, 2, 5):
        for request in requests():
            samples, engine = run_fixed(model, [request], passes_a_read=passes_a_read)
            ended = samples[request.key].num_forwards
            assert samples[request.key].num_forwards == expected[request.key].num_forwards
            assert ended + 1 <= engine.num_passes <= ended + passes_a_read
            assert engine.num_passes % passes_a_read == 1 % passes_a_read


def test_a_snapshot_shows_the_state_when_it_was_taken(model: LoadedModel) -> None:
    """The host reads it while later passes change the state."""
    engine = lrd.Engine(model, UNEVEN, 2, 9, fixed_shapes=True)
    engine.submit(requests()[0])
    engine.step()
    with torch.inference_mode():
        readout = Readout(engine.canvases, copied=True)
        before = readout.sample(0, model, "then", 0.0)
        engine.step()
        assert str(readout.sample(0, model, "then", 0.0)) == str(before)
        assert Readout(engine.canvases, copied=False).sample(0, model, 0, 0.0).num_forwards == 2
    assert before.num_forwards == 1


def test_the_mask_does_not_come_and_go_with_the_neighbours(model: LoadedModel) -> None:
    """Kernels with and without a mask round otherwise."""

    class Masks(Observed):
        def logits(self, embeds: Tensor, *rest: Any) -> Tensor:
            masks.append(rest[0])
            return super().logits(embeds, *rest)

    masks: list[Tensor | None] = []
    whole = requests([[n] * 9 for n in range(5)])
    for padded in (True, False):
        masks.clear()
        engine = lrd.Engine(
            Masks(model),
            UNEVEN,
            2,
            9,
            fixed_shapes=True,
            padded=padded,  # type: ignore[arg-type]
        )
        for asked in whole:
            engine.submit(asked)
        while engine.busy:
            engine.step()
        assert {mask is None for mask in masks} == {not padded}
    with pytest.raises(ValueError, match="padding"):
        engine.submit(lrd.Request("short", [1], 0))


def test_slots_are_divided(model: LoadedModel) -> None:
    observed = Observed(model)
    engine = lrd.Engine(observed, UNEVEN, 4, 9, fixed_shapes=True)  # type: ignore[arg-type]
    for request in requests():
        engine.submit(request)
    engine.max_busy = 0
    assert engine.step() == []
    assert (engine.num_passes, engine.num_waiting) == (0, len(PROMPTS))
    engine.max_busy = 2
    engine.step()
    assert (engine.num_busy, engine.num_waiting) == (2, 5)
    assert len(observed.passes[0]) == 4
    engine.max_busy = 4
    samples = []
    while engine.busy:
        samples += engine.step()
        assert engine.num_busy <= 4
    assert_same({s.key: s for s in samples}, run(model, UNEVEN, requests())[0])


@pytest.mark.parametrize("setting", ["uneven", "warm"])
def test_out_of_memory_costs_slots_but_no_sample(setting: str, model: LoadedModel) -> None:
    expected, _ = run(model, SETTINGS[setting], requests())
    tight = cramped(torch.OutOfMemoryError("CUDA out of memory"))
    samples, engine = run_fixed(tight, requests(), 16, config=SETTINGS[setting])
    assert_same(samples, expected)
    assert engine.num_slots == 2
    assert len(engine.oom_events) == 3, "16, 8 and 4 were too many"


def test_a_prompt_that_there_is_no_memory_to_place_still_waits(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = lrd.Engine(model, UNEVEN, 4, 9)
    for request in requests():
        engine.submit(request)
    place, calls = type(engine.canvases).place, 0

    def scarce(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise torch.OutOfMemoryError("no")
        place(*arguments)

    monkeypatch.setattr(type(engine.canvases), "place", scarce)
    samples = []
    while engine.busy:
        samples += engine.step()
    assert engine.num_slots == 2
    assert_same({s.key: s for s in samples}, run(model, UNEVEN, requests())[0])


@pytest.mark.gpu
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_pass_does_not_wait_for_the_device(setting: str) -> None:
    model = random_model(**LIVELY)
    expected, _ = run(model, SETTINGS[setting], requests())
    model.transformer.cuda()
    engine = lrd.Engine(model, SETTINGS[setting], 3, 9)
    assert engine.fixed_shapes
    for request in requests():
        engine.submit(request)
    samples = []
    for _ in range(3):  # cuBLAS and the allocator may wait at first.
        samples += engine.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        while engine.busy:
            samples += engine.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    agree = sum(sample.canvas == expected[sample.key].canvas for sample in samples)
    assert agree >= len(PROMPTS) - 1, "rounding may decide one"
