"""A step on tensors that say they are on `cuda`: no device is mixed, and the host reads nothing."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from helpers.fake_cuda import CUDA, assign, fake_cuda, indexed
from helpers.few import spread
from torch import Tensor, nn

import lrd
from lrd import decoding
from lrd.canvases import Canvases
from lrd.models.checkpoint import LoadedModel
from lrd.models.transformer import Transformer, TransformerConfig
from lrd.templates import Hole, Scaffold

COLUMNS = 1 << 18
"""Of the logits: so many that a whole canvas' beliefs are computed in two chunks."""
FAMILIES = {
    "LLaDA": TransformerConfig(2, 64, 4, 4, 96, COLUMNS, 512, 5e5, 1e-5),
    "Dream": TransformerConfig(
        *(2, 64, 4, 2, 96, COLUMNS, 512, 1e6, 1e-6),
        qkv_bias=True,
        rope_in_float32=False,
        logit_shift=True,
    ),
}
WARM = {"temperature": 0.7}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "fast": ("fast", {"block_length": 16}),
    "paper": ("paper", {}),
    "baseline": ("baseline", {"block_length": 8}),
    "auto": ("paper", {"refinement": "auto"}),
    "LF×2": ("paper", {"refinement": 2}),
    "drawn": ("fast", WARM),
    "drawn from a part": ("fast", {**WARM, "sample_top_p": 0.9, "sample_top_k": 50}),
    "confidence": ("fast", {"confidence_threshold": 0.9}),
    "entropy bound": ("fast", {"entropy_bound": 0.1}),
    "margin": (
        "baseline",
        {
            "confidence": "margin",
            "steps": 16,
            "schedule": "timestep",
            "confidence_source": "sampling",
        },
    ),
    "guided": (
        "fast",
        {"cfg_scale": 1.0, "logits_eos_inf": True, "confidence_eos_eot_inf": True},
    ),
    "steps": ("baseline", {"steps": 16, "block_length": 16}),
    "shadows": ("wino", {"block_length": 16, "r_f": 0.15}),
    "drop": ("saber", {"block_length": 16, "r_f": 0.15}),
    "lowest": ("rcr", {"block_length": 16, "r_f": 0.15}),
    "Fast-dLLM": (
        "baseline",
        {"steps": 16, "confidence_threshold": 0.9, "confidence_source": "sampling"},
    ),
    "credit": ("credit", {"block_length": 16}),
    "by a gap": ("prophet", {"block_length": 16, "stop_gap_start": 20}),
    "by mass": ("remix", {"block_length": 16}),
    "top k, soft suffix": ("fast", {"mix": "topk", "soft_suffix": True, "block_length": 16}),
    "distances": ("dpad", {"block_length": 16}),
}
CACHES: dict[str, dict[str, Any]] = {
    "prefix": {"kv_cache": "prefix"},
    "dual": {"kv_cache": "dual"},
    "dual, refreshed": {"kv_cache": "dual", "cache_refresh": 2},
    "dual, short suffix": {"kv_cache": "dual", "suffix": 1},
    "short suffix": {"suffix": 0},
}


def model_on_cuda(family: str) -> LoadedModel:
    """As `load_model` makes it on a GPU, without weights."""
    with torch.device("meta"):
        transformer = Transformer(FAMILIES[family]).requires_grad_(False).eval()
    for module in transformer.modules():
        for name, weight in module.named_parameters(recurse=False):
            on_cuda = torch.empty(weight.shape, dtype=torch.bfloat16, device=CUDA)
            setattr(module, name, nn.Parameter(on_cuda, False))
    for block in transformer.blocks:
        block.fuse()
    model = LoadedModel(transformer, {"mask_token_id": 0, "eos_token_id": 1}, None, None, "eager")
    model.eot_id = 3
    return model


def run(
    family: str,
    config: lrd.DecodingConfig,
    padded: bool,
    scaffold: Scaffold | None = None,
    **more: Any,
) -> Canvases:
    """Two passes of three slots; the second has the full passes of two rows and of one. scaffold:
    that of the last row; more: as for `Canvases.empty`."""
    model, slots, columns = model_on_cuda(family), 3, 8 + config.gen_length
    state = Canvases.empty(model, config, slots, columns, **more)
    assert state.fixed_shapes
    state.has_padding = padded
    for row in range(slots):
        own = scaffold if row == 2 else None
        state.place(row, [2] * (8 - padded * row), model, config, "left", scaffold=own)
    groups = [(torch.arange(size, device=CUDA), columns) for size in (2, 1)]
    for number in range(2):
        state.full_passes = groups if number == 1 and config.caches else []
        state.num_open = [None, 5][number]
        decoding.step(model, config, state)
    return state


def tensors_of(thing: Any) -> list[Tensor]:
    """A dataclass's or an object's own tensors."""
    names = [one.name for one in fields(thing)] if hasattr(thing, "__dataclass_fields__") else []
    values = [getattr(thing, name) for name in names or vars(thing)]
    return [value for value in values if isinstance(value, Tensor)]


def assert_on_cuda(state: Canvases) -> None:
    own = tensors_of(state)
    kept = [*tensors_of(state.past), *tensors_of(state.fed)]
    assert len(own) > 20
    assert kept
    if state.cache is not None:
        assert len(state.cache.kept_BN2PKE) == len(state.stop_B), "the cache was written"
        kept += tensors_of(state.cache)
    assert {x.device.type for x in own + kept} == {"cuda"}


@pytest.mark.parametrize(
    ("name", "family", "padded"), spread(SETTINGS, FAMILIES, [True, False], every=3)
)
def test_a_step_stays_on_the_device(name: str, family: str, padded: bool) -> None:
    preset, changes = SETTINGS[name]
    with fake_cuda():
        config = lrd.DecodingConfig.preset(preset, gen_length=32, **changes)
        assert_on_cuda(run(family, config, padded))


@pytest.mark.parametrize(("cache", "family", "padded"), spread(CACHES, FAMILIES, [True, False]))
def test_a_cached_step_stays_on_the_device(cache: str, family: str, padded: bool) -> None:
    with fake_cuda():
        config = lrd.DecodingConfig.preset("fast", gen_length=32, block_length=8, **CACHES[cache])
        assert_on_cuda(run(family, config, padded))


SCAFFOLD = Scaffold(
    (5, 6, *[0] * 4, 7, *[0] * 3), ("ab", Hole(2, 6), "c", Hole(7, 10)), (0,) * 3 + (1,) * 7
)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", [None, *CACHES])
def test_a_step_of_canvases_with_fixed_tokens_stays_on_the_device(
    cache: str | None, family: str
) -> None:
    with fake_cuda():
        blocks = {"block_length": 8, **CACHES[cache]} if cache else {}
        config = lrd.DecodingConfig.preset("fast", gen_length=32, **blocks)
        allowed = torch.ones(2, COLUMNS, dtype=torch.bool)
        more = {"allowed_CV": allowed, "row_temperatures": True}
        assert_on_cuda(run(family, config, True, SCAFFOLD, **more))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("blocks", [{}, {"block_length": 8, "kv_cache": "dual"}])
def test_a_step_of_growing_canvases_stays_on_the_device(
    blocks: dict[str, Any], family: str
) -> None:
    with fake_cuda():
        config = lrd.DecodingConfig.preset("fast", gen_length=32, max_gen_length=64, **blocks)
        assert_on_cuda(run(family, config, True))


@pytest.mark.parametrize(
    "mistake",
    [
        lambda x: x.tolist(),
        lambda x: bool(x[0] > 0),
        lambda x: x[x > 0],
        lambda x: x.to("cpu"),
        lambda x: x + torch.ones(4),
        lambda x: torch.where(x > 0, x, torch.zeros(4)),
        lambda x: x[torch.zeros(2, dtype=torch.long), None] + torch.ones(2, 1),
    ],
)
def test_a_read_or_a_mix_is_noticed(mistake: Any) -> None:
    with fake_cuda(), pytest.raises((AssertionError, RuntimeError)):
        mistake(torch.zeros(4, device=CUDA))


def test_indexing_is_torchs_own() -> None:
    x = torch.arange(120).view(4, 5, 6)
    rows, columns = torch.tensor([3, 0]), torch.tensor([1, 4])
    cases: list[Any] = [
        *(2, -1, slice(1, None), slice(None, None, 2), (..., 3), (None, 1), (slice(None), 2, None)),
        *(rows, (rows, slice(1, 3)), (slice(None), rows), (..., columns), (rows[:, None], columns)),
        *((rows, rows, columns), (1, ..., None), (slice(0, 2), rows, slice(2, 4))),
    ]
    for case in cases:
        assert torch.equal(indexed(x, case), x[case]), case
        mine, torchs = x.clone(), x.clone()
        assign(mine, case, 7)
        torchs[case] = 7
        assert torch.equal(mine, torchs), case
        assign(mine, case, x[case] + 1)
        torchs[case] = x[case] + 1
        assert torch.equal(mine, torchs), case
