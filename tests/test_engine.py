"""Slots: a sample's result is its own, freed slots are refilled, a failure stays alone."""

from __future__ import annotations

import dataclasses
import heapq
from itertools import islice
from typing import Any

import pytest
import torch
from helpers.engine import (
    PROMPTS,
    SETTINGS,
    UNEVEN,
    Cramped,
    Observed,
    assert_same,
    cramped,
    requests,
    run,
)
from helpers.random_model import MASK
from torch import Tensor

import lrd
from jobs.tiny.problems import problems
from lrd.engine import is_out_of_memory
from lrd.models.checkpoint import LoadedModel


@pytest.mark.parametrize("setting", SETTINGS)
def test_results_do_not_depend_on_the_company(setting: str, model: LoadedModel) -> None:
    """Neither on slots, order, neighbours, room for longer prompts, nor on the padding's side."""
    config = SETTINGS[setting]
    alone: dict[Any, lrd.Sample] = {}
    for request in requests():
        alone |= run(model, config, [request], 1, len(request.prompt))[0]
    assert len({sample.num_forwards for sample in alone.values()}) >= 4, "too alike to test"
    for num_slots in (1, 2, 7, 16):
        assert_same(run(model, config, requests(), num_slots)[0], alone)
    assert_same(run(model, config, requests()[::-1])[0], alone)
    assert_same(run(model, config, requests(), padding_side="right")[0], alone)
    assert_same(run(model, config, requests(), prompt_length=30)[0], alone)


BLOCKS_OF_16 = {"gen_length": 48, "block_length": 16, "stop_at_eos": False}


@pytest.mark.parametrize(
    ("preset", "settings"),
    [
        ("fast", {"gen_length": 32, "block_length": 16}),
        ("fast", {**BLOCKS_OF_16, "kv_cache": "prefix", "cache_refresh": 3}),
        ("blocks", BLOCKS_OF_16),
        *(
            pytest.param(preset, settings, marks=pytest.mark.slow)
            for preset, settings in (
                ("paper", {"gen_length": 32, "block_length": 16}),
                ("fast", {**BLOCKS_OF_16, "suffix": 0}),
                ("fast", {**BLOCKS_OF_16, "kv_cache": "dual"}),
            )
        ),
    ],
    ids=str,
)
def test_on_a_cpu_every_bit_is_the_samples_own(preset: str, settings: dict[str, Any]) -> None:
    tiny = lrd.load_model("tiny")
    texts = [problem.question for problem in islice(problems("test", seed=7), 8)]
    prompts = [tiny.tokenizer.encode(text)[: 30 + 5 * (n % 3)] for n, text in enumerate(texts)]
    config = lrd.DecodingConfig.preset(preset, **settings)
    alone, _ = run(tiny, config, requests(prompts), num_slots=1, prompt_length=40)
    for num_slots in (3, 7):
        together, _ = run(tiny, config, requests(prompts)[::-1], num_slots, prompt_length=40)
        for key, sample in alone.items():
            ours, theirs = (dataclasses.asdict(s) for s in (together[key], sample))
            # As text, since NaN, a trace's first value, is equal to nothing.
            assert all(str(ours[k]) == str(theirs[k]) for k in ours if k != "seconds")


def test_slots_are_divided_and_waiting_prompts_come_back(model: LoadedModel) -> None:
    engine = lrd.Engine(model, UNEVEN, 4, 9)
    for request in requests():
        engine.submit(request)
    engine.max_busy = 2
    engine.step()
    assert (engine.num_busy, engine.num_waiting) == (2, 5)
    assert [request.key for request in engine.return_waiting()] == [2, 3, 4, 5, 6]
    engine.max_busy = 4
    keys = []
    while engine.busy:
        keys += [sample.key for sample in engine.step()]
    assert sorted(keys) == [0, 1]
    engine.submit(requests()[0])
    engine.max_busy = 0
    assert engine.step() == []
    assert engine.num_waiting == 1


def test_a_seed_decides_what_is_drawn(model: LoadedModel) -> None:
    asked = [lrd.Request(seed, PROMPTS[0], seed) for seed in range(6)]
    samples, _ = run(model, SETTINGS["warm"], asked)
    assert len({tuple(sample.canvas) for sample in samples.values()}) > 1
    again = [lrd.Request(f"again {seed}", PROMPTS[0], seed) for seed in range(6)]
    repeated, _ = run(model, SETTINGS["warm"], again, num_slots=1)
    for seed in range(6):
        assert repeated[f"again {seed}"].canvas == samples[seed].canvas


@pytest.mark.parametrize("num_slots", [2, 3, 4])
def test_a_freed_slot_is_refilled_at_the_next_pass(num_slots: int, model: LoadedModel) -> None:
    observed = Observed(model)
    samples, engine = run(observed, UNEVEN, requests(), num_slots)
    taken = [samples[key].num_forwards for key in range(len(PROMPTS))]
    slots = [0] * num_slots
    for forwards in taken:
        heapq.heappush(slots, heapq.heappop(slots) + forwards)
    static = sum(max(taken[i : i + num_slots]) for i in range(0, len(taken), num_slots))
    assert engine.num_passes == len(observed.passes) == max(slots) < static
    assert max(len(embeds) for embeds in observed.passes) == num_slots
    assert sum(len(embeds) for embeds in observed.passes) == sum(taken), "free slots cost nothing"


def test_a_slot_that_stays_free_is_not_computed(model: LoadedModel) -> None:
    """Two samples end in the same pass while one prompt waits."""
    observed = Observed(model)
    asked = requests([[1], [1], [2]])
    samples, _ = run(observed, UNEVEN, asked, num_slots=2)
    assert samples[0].num_forwards == samples[1].num_forwards
    assert [len(embeds) for embeds in observed.passes] == [2] * samples[0].num_forwards + [
        1
    ] * samples[2].num_forwards


def test_more_slots_than_prompts_cost_nothing(model: LoadedModel) -> None:
    observed = Observed(model)
    samples, _ = run(observed, UNEVEN, requests(PROMPTS[:3]), num_slots=50)
    assert sum(len(embeds) for embeds in observed.passes) == sum(
        sample.num_forwards for sample in samples.values()
    )


def test_a_prompt_may_join_while_others_are_decoded(model: LoadedModel) -> None:
    expected, _ = run(model, UNEVEN, requests())
    engine = lrd.Engine(model, UNEVEN, 4, 9)
    assert not engine.busy
    assert engine.step() == []
    assert engine.num_passes == 0, "an idle step is not a pass"
    waiting, samples = requests(), []
    while waiting or engine.busy:
        if waiting:
            engine.submit(waiting.pop(0))
        assert engine.busy
        samples += engine.step()
    assert not engine.busy
    assert_same({sample.key: sample for sample in samples}, expected)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_failure_stays_alone(model: LoadedModel, value: float) -> None:
    class Failing(Observed):
        """From pass 4 on, the sample whose prompt starts with 8 has no logits at one position."""

        def spoil(self, embeds: Tensor, logits: Tensor) -> Tensor:
            if len(self.passes) >= 4:
                logits[(embeds[:, 0] == self.embedding_table[8]).all(-1), 2:3] = value
            return logits

    config = UNEVEN.model_copy(update={"entropy_threshold": 0.3})
    expected, _ = run(model, config, requests(), padding_side="right", num_slots=4)
    assert expected[3].num_forwards > 4
    samples, engine = run(
        Failing(model),
        config,
        requests(),
        padding_side="right",
        num_slots=4,
    )
    failed = samples.pop(3)
    assert (failed.stop_reason, failed.num_forwards) == ("failed", 4)
    assert failed.error is not None
    assert "pass 4" in failed.error
    assert engine.num_passes > 4
    del expected[3]
    assert_same(samples, expected)


def test_a_failure_names_its_own_pass_and_block(model: LoadedModel) -> None:
    class Failing(Observed):
        def spoil(self, embeds: Tensor, logits: Tensor) -> Tensor:
            return logits if len(self.passes) < 5 else logits * torch.nan

    config = lrd.DecodingConfig(
        gen_length=12, block_length=4, r_f=0, max_refine_steps=0, stop_at_eos=False
    )
    samples, _ = run(Failing(model), config, requests(PROMPTS[:3]), num_slots=2)
    # Passes 1 to 4 are the first block; the third prompt's first pass is the engine's sixth.
    assert [(samples[key].num_forwards, samples[key].blocks) for key in range(3)] == [
        (5, 2),
        (5, 2),
        (1, 1),
    ]
    assert [samples[key].error for key in (0, 2)] == [
        "non-finite logits in pass 5",
        "non-finite logits in pass 1",
    ]


def test_a_mask_in_the_prompt_is_context_and_never_written(model: LoadedModel) -> None:
    observed = Observed(model)
    prompt = [8, MASK, 2]
    samples, _ = run(observed, UNEVEN, [lrd.Request("masked", prompt, 0)], 1, 3)
    sample = samples["masked"]
    assert len(sample.canvas) == len(sample.commit_step) == UNEVEN.gen_length
    assert MASK not in sample.canvas
    for embeds in observed.passes:
        assert torch.equal(embeds[0, :3], model.embedding_table[prompt])
    other, _ = run(observed, UNEVEN, [lrd.Request("other", [8, 3, 2], 0)], 1, 3)
    assert other["other"].entropy_trace != sample.entropy_trace


def test_any_key_comes_back(model: LoadedModel) -> None:
    keys: list[Any] = [None, ("a", 1), "same", "same", 0]
    engine = lrd.Engine(model, UNEVEN, 2, 6)
    for key in keys:
        engine.submit(lrd.Request(key, PROMPTS[0], 0))
    samples = []
    while engine.busy:
        samples += engine.step()
    assert sorted(map(repr, keys)) == sorted(repr(sample.key) for sample in samples)


def test_slots_have_their_limits(model: LoadedModel) -> None:
    with pytest.raises(ValueError, match="0 slots"):
        lrd.decode(model, PROMPTS, UNEVEN, batch_size=0)
    with pytest.raises(ValueError, match="64 positions"):
        lrd.Engine(model, UNEVEN, 1, 53)
    engine = lrd.Engine(model, UNEVEN, 1, 4)
    with pytest.raises(ValueError, match="5 prompt tokens exceed the slots' 4"):
        engine.submit(lrd.Request("long", [1] * 5, 0))
    assert not engine.busy, "what is refused does not wait"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
@pytest.mark.parametrize("setting", ["uneven", "warm"])
def test_out_of_memory_costs_slots_but_no_sample(
    setting: str, error: Exception, model: LoadedModel
) -> None:
    expected, _ = run(model, SETTINGS[setting], requests())
    samples, engine = run(cramped(error), SETTINGS[setting], requests(), num_slots=16)
    assert_same(samples, expected)
    assert engine.num_slots == 3, "seven were busy"
    assert [line.partition(":")[0] for line in engine.oom_events] == [
        "out of memory with 7 slots of 21 positions, going on with 3"
    ]


WANT = [
    torch.OutOfMemoryError("HIP: no words at all"),
    MemoryError(),
    *map(
        RuntimeError,
        [
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB",
            "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
            "CUDA driver error: out of memory",
            "cuMemCreate failed: CUDA_ERROR_OUT_OF_MEMORY",
            "cudaMalloc failed with cudaErrorMemoryAllocation",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
            "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
            "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
            "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
            "Triton Error [CUDA]: out of memory",
            "backend='inductor' raised:\nOutOfMemoryError: CUDA out of memory.",
            "HIP error: hipErrorOutOfMemory",
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 B",
            "[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes",
            "unable to mmap 64 bytes from file <x>: Cannot allocate memory (12)",
            "std::bad_alloc",
        ],
    ),
]
OTHER = [
    *map(
        RuntimeError,
        [
            "out of resource: shared memory, Required: 294912, Hardware limit: 232448. Reducing "
            "block sizes or `num_stages` may help.",
            "CUDA error: too many resources requested for launch",
            "CUDA error: an illegal memory access was encountered",
            "CUDA error: misaligned address",
            "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
            "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`",
            "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED",
            "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
            "CUDA error: device-side assert triggered",
            "CUDA error: operation failed due to a previous error during capture",
            "Failed to find C compiler. Please specify via CC environment variable",
            "index 7 is out of bounds for dimension 0 with size 7",
            "The size of tensor a (3) must match the size of tensor b (4)",
            "Pin memory thread exited unexpectedly",
            "",
        ],
    ),
    ValueError("out of memory"),
    OSError(12, "Cannot allocate memory"),
]


@pytest.mark.parametrize("error", WANT, ids=repr)
def test_want_of_memory_is_known_by_its_words(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", OTHER, ids=repr)
def test_other_errors_are_no_want_of_memory(error: Exception) -> None:
    """Nor is a kernel that wants more shared memory than there is: fewer slots do not mend it."""
    assert not is_out_of_memory(error)


def test_out_of_memory_in_mid_run_starts_prompts_anew(model: LoadedModel) -> None:
    asked = requests()
    expected, _ = run(model, UNEVEN, asked)
    engine = lrd.Engine(cramped(torch.OutOfMemoryError("no")), UNEVEN, 4, 9)
    samples = []
    for request in asked[:3]:
        engine.submit(request)
    for _ in range(2):
        samples += engine.step()
    assert not engine.oom_events
    for request in asked[3:]:
        engine.submit(request)
    while engine.busy:
        samples += engine.step()
    assert len(engine.oom_events) == 1
    assert_same({sample.key: sample for sample in samples}, expected)


def test_other_errors_and_a_single_slot_without_memory_raise() -> None:
    with pytest.raises(RuntimeError, match="shape"):
        run(cramped(RuntimeError("shape")), UNEVEN, requests(), num_slots=4)

    class Full(Cramped):
        def hidden(self, embeds: Tensor, *rest: Any) -> Tensor:
            raise self.error

    one = cramped(torch.OutOfMemoryError("not even one"))
    one.__class__ = Full
    with pytest.raises(torch.OutOfMemoryError, match="not even one"):
        run(one, UNEVEN, requests())


def test_there_is_a_mask_only_where_there_is_padding(model: LoadedModel) -> None:
    class Masks(Observed):
        def logits(self, embeds: Tensor, *rest: Any) -> Tensor:
            masks.append(rest[0])
            return super().logits(embeds, *rest)

    masks: list[Tensor | None] = []
    full = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    samples, _ = run(Masks(model), UNEVEN, requests(full), 2, 3)
    assert set(masks) == {None}
    masks.clear()
    mixed, _ = run(Masks(model), UNEVEN, requests([*full, [1]]), 4, 3)
    assert masks[0] is not None
    assert len(samples) == 3
    del mixed[3]
    assert_same(mixed, samples)
