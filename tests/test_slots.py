"""Fixed shapes: passes of few numbers of rows, and results are what they were."""

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
from lrd import slots
from lrd.canvases import StopReason
from lrd.models.checkpoint import LoadedModel
from lrd.slots import few_numbers


def run_fixed(
    model: Any, asked: list[lrd.Request], num_slots: int = 3, **arguments: Any
) -> tuple[dict[Any, lrd.Sample], lrd.Engine]:
    engine = lrd.Engine(
        model, arguments.pop("config", UNEVEN), num_slots, 9, fixed_shapes=True, **arguments
    )
    return drain(engine, asked), engine


@pytest.mark.parametrize("num_slots", [1, 3, 16])
def test_a_pass_computes_busy_rows_in_few_numbers(num_slots: int, model: LoadedModel) -> None:
    observed = Observed(model)
    samples, engine = run_fixed(observed, requests(), num_slots)
    seen = [len(embeds) for embeds in observed.passes]
    assert max(seen) == min(num_slots, len(PROMPTS))
    assert min(seen) == 1
    assert seen == sorted(seen, reverse=True), "rows end, and the others are the first ones"
    assert engine.num_slot_passes == sum(seen)
    useful = sum(sample.num_forwards for sample in samples.values())
    assert engine.num_slot_passes == useful
    assert_same(samples, run(model, UNEVEN, requests())[0])


@pytest.mark.parametrize("num_slots", [1, 3, 16])
def test_all_slots_are_computed_where_that_is_asked_for(num_slots: int, model: LoadedModel) -> None:
    observed = Observed(model)
    samples, engine = run_fixed(observed, requests(), num_slots, pass_rows="all")
    assert {len(embeds) for embeds in observed.passes} == {num_slots}
    assert engine.num_slot_passes == num_slots * engine.num_passes
    assert_same(samples, run(model, UNEVEN, requests())[0])


@pytest.mark.parametrize(
    ("num_slots", "graphs", "numbers"),
    [
        (1, False, {1}),
        (3, True, {1, 2, 3}),
        (16, False, {*range(1, 9), 10, 12, 14, 16}),
        (16, True, {1, 2, 4, 8, 12, 16}),
        (30, True, {1, 2, 4, 8, 12, 16, 24, 30}),
        (40, False, {*range(1, 9), *range(10, 33, 2), 36, 40}),
    ],
)
def test_numbers_of_rows_are_few_and_near(num_slots: int, graphs: bool, numbers: set[int]) -> None:
    found = {busy: few_numbers(busy, num_slots, graphs) for busy in range(1, num_slots + 1)}
    assert set(found.values()) == numbers
    assert all(busy <= rows <= (1.6 if graphs else 1.2) * busy for busy, rows in found.items())


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_head_runs_for_about_the_open_positions(
    setting: str, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fixed shapes ask for a multiple of OPEN_STEP; all slots, for every position of a block."""
    if SETTINGS[setting].cfg_scale:
        pytest.skip("the head runs twice")
    monkeypatch.setattr(slots, "OPEN_STEP", 4)

    class Counted(LoadedModel):
        def head(self, hidden: Tensor) -> Tensor:
            asked.append(len(hidden))
            return super().head(hidden)

    model.__class__ = Counted
    needed: list[int] = []
    step = slots.step

    def watched(model: Any, config: Any, state: Any) -> None:
        running = (state.stop_B == StopReason.RUNNING)[:, None]
        blocks = state.canvas_BG.view(len(state.stop_B), -1, config.block_tokens)
        block = blocks[torch.arange(len(blocks)), state.block_B]
        needed.append(int(((block == model.mask_id) & running).sum()))
        step(model, config, state)

    monkeypatch.setattr(slots, "step", watched)
    for pass_rows in ("busy", "all"):
        asked: list[int] = []
        needed.clear()
        run_fixed(model, requests(), config=SETTINGS[setting], pass_rows=pass_rows)
        if pass_rows == "all":
            assert set(asked) == {3 * SETTINGS[setting].block_tokens}
        else:
            assert [-(-n // 4) * 4 for n in needed] == asked


@pytest.mark.parametrize("setting", [name for name, c in SETTINGS.items() if not c.caches])
def test_with_all_rows_every_bit_is_the_samples_own(setting: str, model: LoadedModel) -> None:
    """Whatever else is in the batch: equal shapes are computed by equal kernels.

    Not with a cache: a full pass has as many rows as need one, so there samples are equal to
    rounding alone.
    """
    config = SETTINGS[setting]
    padded = [request for request in requests() if len(request.prompt) < 9]
    for request in padded:
        alone, _ = run_fixed(model, [request], config=config, pass_rows="all")
        others = [other for other in padded if other is not request]
        together, _ = run_fixed(model, [request, *others], config=config, pass_rows="all")
        ours, theirs = (dataclasses.asdict(s[request.key]) for s in (together, alone))
        # As text, since NaN, a trace's first value, is equal to nothing.
        assert all(str(ours[k]) == str(theirs[k]) for k in ours if k != "seconds")


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_sample_leaves_with_its_last_pass(setting: str, model: LoadedModel) -> None:
    expected, _ = run(model, SETTINGS[setting], requests())
    for request in requests():
        samples, engine = run_fixed(model, [request], config=SETTINGS[setting])
        assert samples[request.key].num_forwards == expected[request.key].num_forwards
        assert engine.num_passes == samples[request.key].num_forwards


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
            padded=padded,
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
    engine = lrd.Engine(observed, UNEVEN, 4, 9, fixed_shapes=True)
    for request in requests():
        engine.submit(request)
    engine.max_busy = 0
    assert engine.step() == []
    assert (engine.num_passes, engine.num_waiting) == (0, len(PROMPTS))
    engine.max_busy = 2
    engine.step()
    assert (engine.num_busy, engine.num_waiting) == (2, 5)
    assert len(observed.passes[0]) == 2
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
    assert engine.num_slots == 1, "two were busy"
    assert_same({s.key: s for s in samples}, run(model, UNEVEN, requests())[0])


@pytest.mark.gpu
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_pass_does_not_wait_for_the_device(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host waits between passes alone."""
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
    step = slots.step

    def watched(*arguments: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(slots, "step", watched)
    while engine.busy:
        samples += engine.step()
    agree = sum(sample.canvas == expected[sample.key].canvas for sample in samples)
    assert agree >= len(PROMPTS) - 1, "rounding may decide one"
