"""How much memory slots take: a formula, the largest number of slots that fit a device, and the
same estimated before there is one, from the checkpoint's shape.

Counts tensors, in bytes; the margin is for what kernels allocate themselves.

Legend: S slots, L positions of a slot, G of them canvas, N blocks, K positions that a
pass may read, T passes at most, V columns of the logits, D width, M the MLP's width.
"""

from __future__ import annotations

import copy
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lrd.belief_ops import MOST_IDS, kernels_apply
from lrd.block_cache import CACHED_POSITIONS, FULL_POSITIONS
from lrd.config import DecodingConfig
from lrd.decoders import compares_beliefs, rules_of
from lrd.engine import Engine, Request
from lrd.forward import GPU_ELEMENTS, chunk_elements
from lrd.models.checkpoint import DTYPES, LoadedModel
from lrd.models.protocol import (
    DiffusionModel,
    is_cached,
    replays_graphs,
    wants_fixed_shapes,
)
from lrd.models.w8a8 import FORMATS, W8A8Linear
from lrd.nucleus import LARGEST_BYTES
from lrd.previous_beliefs import EXACT_COLUMNS
from lrd.shadow import ALIGNED

MEMINFO = Path("/proc/meminfo")
MARGIN = 0.9
"""Share of the free memory that slots may take; the rest is for kernels' workspaces and
fragmentation."""
MOST_SLOTS = 4096
"""The largest number of slots that `MemoryNeed.slots_in` gives."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that a replica needs at the peak of a pass."""

    weights: int
    state: int
    """The canvases: embeddings, tokens, counters, traces."""
    past: int
    """Beliefs of the previous pass."""
    cache: int
    """Keys and values that a block cache keeps."""
    activations: int
    """Of the forward pass, freed before logits are computed; but CUDA graphs keep them."""
    chunk: int
    """Logits and beliefs of one chunk, and what is kept of all of them."""
    inputs: int
    """The next embeddings of a block."""
    replayed: bool = False
    """Whether passes are CUDA graphs."""

    @property
    def beside_weights(self) -> int:
        """Chunk and inputs are never in memory at the same time; neither are activations, unless
        CUDA graphs keep them."""
        passing = max(self.chunk, self.inputs)
        passing = passing + self.activations if self.replayed else max(passing, self.activations)
        return self.state + self.past + self.cache + passing

    @property
    def total(self) -> int:
        return self.weights + self.beside_weights


def memory_of(
    model: DiffusionModel,
    config: DecodingConfig,
    prompt_length: int,
    num_slots: int,
    fixed_shapes: bool | None = None,
) -> Memory:
    """Memory of `num_slots` slots for prompts of at most `prompt_length` tokens.

    Of a plug-in model only the embedding table is known: its weights count as that table, and its
    MLP as four times the model's width. fixed_shapes: as for `Engine`.
    """
    if fixed_shapes is None:
        fixed_shapes = wants_fixed_shapes(model)
    table = model.embedding_table
    (V, D), d = table.shape, table.element_size()
    S, G, K = num_slots, config.gen_length, config.window_tokens
    L, T, N = prompt_length + G, config.max_forwards, config.num_blocks

    shadowed = config.reopen == "shadow"
    C = L + K + ALIGNED if shadowed else L
    positions = S * C
    if not fixed_shapes:
        few = max(C, CACHED_POSITIONS * torch.get_num_threads())
        positions = min(positions, few)
    elif config.caches:
        fed = G + 1 if config.kv_cache == "prefix" else config.block_tokens + 1
        positions = max(S * fed, min(positions, max(L, FULL_POSITIONS)))
    # Columns that are fed alone are copied first, with their places, positions and columns.
    fed_bytes = D * d + 24 if config.feeds_some or shadowed else 0
    if shadowed:  # The mask: of every column, which columns it attends to.
        fed_bytes += C * (1 + d)
    guided = 2 if config.cfg_scale else 1
    logits, beliefs = (min(x, S * K * V) for x in chunk_elements(model, config, fixed_shapes))
    by_kernels = kernels_apply(table)
    if by_kernels:  # Only what needs whole beliefs makes some, a few rows at a time.
        alone = config.reads_beliefs_alone and not compares_beliefs(config)
        beliefs = 0 if alone else min(GPU_ELEMENTS, beliefs)
    kept = guided * S * K * D * d + S * K * (D * d if config.mixes else 0)
    return Memory(
        weights=_weights(model),
        # Embeddings and mask, tokens and their passes, two traces, counters and flags.
        state=S * (L * (D * d + 8) + 20 * G + 8 * T + 178 + _kept_bytes(config))
        + N * (2 * G + 1) * 8,
        past=S * K * (V * (4 if V <= EXACT_COLUMNS else 2) + 4),
        cache=S * model.new_cache(0, L).row_bytes if config.caches and is_cached(model) else 0,
        activations=positions * (_forward_bytes(model) + fed_bytes) + (guided - 1) * S * L * D * d,
        chunk=kept
        + max(
            (guided * 2 - 1) * logits * d, logits * d + beliefs * _belief_bytes(config, by_kernels)
        )
        + (logits // V * (MOST_IDS * 4 + D * d + 100) if by_kernels else 0)
        + (LARGEST_BYTES if config.ranks_tokens else 0),
        inputs=S * K * D * d * 8,
        replayed=replays_graphs(model),
    )


def _kept_bytes(config: DecodingConfig) -> int:
    """Bytes that the decoders' rules remember of a sample."""
    rows = (row for rule in rules_of(config) for row in rule.keeps(config).values())
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in rows)


def drawing(config: DecodingConfig) -> DecodingConfig:
    """Settings with which memory is measured where rows have temperatures of their own: tokens are
    drawn, which takes more of it."""
    return config.model_copy(update={"temperature": config.temperature or 1.0})


def _belief_bytes(config: DecodingConfig, by_kernels: bool) -> int:
    """Bytes of one element of a chunk's beliefs: eight float32 tensors in a nucleus's search, or
    those of a draw in float64, with a sort of what may be drawn. Kernels search and draw without
    such tensors. Rules that compare it with the pass before make four float32 ones more."""
    compared = 16 if compares_beliefs(config) else 0
    if config.sample_top_p is not None:
        return 64 + compared
    if by_kernels:
        return 16 + compared
    return (32 if config.temperature == 0 else 48) + compared


def _weights(model: DiffusionModel) -> int:
    if isinstance(model, LoadedModel):
        return sum(weight.nbytes for weight in model.transformer.parameters())
    return model.embedding_table.nbytes


def _forward_bytes(model: DiffusionModel) -> int:
    """Activations of one position at their peak: in the MLP (gate and up, silu, product;
    states before and after attention), or where queries have been rotated and keys are."""
    D, d = model.embedding_table.shape[1], model.embedding_table.element_size()
    head, kv, M, r = 128, D, 4 * D, 4
    if isinstance(model, LoadedModel):
        shape = model.transformer.config
        head, M = D // shape.num_heads, shape.mlp_width
        kv, r = head * shape.num_kv_heads, 4 if shape.rope_in_float32 else d
    rotated = 3 * (D + kv) * d + (3 if r == d else 4) * D * r
    # Gate and up as sums of int8, in float32 and as what they are cast to.
    summed = 20 * M + 4 * D * d if _sums_int8(model) else 0
    # Cosines, sines and positions are kept throughout.
    return max(4 * M * d + 3 * D * d, rotated, summed) + head * (8 + 2 * r) + 32


def _sums_int8(model: DiffusionModel) -> bool:
    """Whether the blocks' products are sums in int32 that are scaled afterwards."""
    return isinstance(model, LoadedModel) and any(
        isinstance(layer, W8A8Linear) and not layer.form.dtype.is_floating_point
        for layer in model.transformer.modules()
    )


def fitting_slots(
    model: DiffusionModel,
    config: DecodingConfig,
    prompt_length: int,
    most: int,
    num_bytes: int,
) -> int:
    """The most slots, from 1 to `most`, whose memory beside the weights is within `num_bytes`
    by the formula; 1 where not even one fits."""
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        if memory_of(model, config, prompt_length, middle).beside_weights <= num_bytes:
            low = middle
        else:
            high = middle - 1
    return low


def free_bytes(device: torch.device) -> int:
    """Memory that tensors may still take on a device: on a CPU Linux's MemAvailable, and no limit
    on a system without it."""
    if device.type != "cuda":
        if not MEMINFO.exists():
            return sys.maxsize
        found = re.search(r"MemAvailable:\s+(\d+) kB", MEMINFO.read_text())
        assert found is not None
        return int(found[1]) * 1024
    held = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
    return torch.cuda.mem_get_info(device)[0] + unused_bytes(held)


def unused_bytes(segments: list[dict[str, Any]]) -> int:
    """What torch holds of a device and may use for any tensor, by its snapshot: without the pools
    of CUDA graphs, which use theirs at every replay."""
    shared = (one for one in segments if tuple(one["segment_pool_id"]) == (0, 0))
    return sum(one["total_size"] - one["allocated_size"] for one in shared)


def probe_slots(
    model: DiffusionModel,
    config: DecodingConfig,
    prompt_length: int,
    most: int,
    share: float = 1.0,
) -> int:
    """The most slots, up to `most`, for which there is memory: by the formula, then halved until
    a real pass succeeds.

    prompt_length: tokens of the longest prompt, as for `Engine`. share: the caller's share of the
    device's free memory. Raises ValueError where prompt and canvas exceed the model's
    positions, and the device's own error where there is no memory for one slot.
    """
    spare = int(free_bytes(model.embedding_table.device) * share * MARGIN)
    num_slots = fitting_slots(model, config, prompt_length, most, spare)
    engine = Engine(model, config, num_slots, prompt_length)
    for index in range(num_slots):
        # One prompt is shorter, if it can be, so that the pass has padding and a mask.
        length = max(1, prompt_length - (index == 0))
        engine.submit(Request(index, [model.mask_id] * length, index))
    while not engine.num_passes:
        engine.step()
    return engine.num_slots


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Memory of one replica with slots for prompts of `prompt_length` tokens."""

    weights: int
    """Bytes."""
    model: LoadedModel
    """Without weights, in the dtype that is computed in."""
    decoding: DecodingConfig
    prompt_length: int

    def beside_weights(self, num_slots: int) -> int:
        """Bytes at the peak of a pass, without the weights."""
        need = memory_of(self.model, self.decoding, self.prompt_length, num_slots)
        return need.beside_weights

    def slots_in(self, num_bytes: float) -> int:
        """Slots that fit a device of this size, up to `MOST_SLOTS`; 0 where not one does."""
        spare = int((num_bytes - self.weights) * MARGIN)
        if self.beside_weights(1) > spare:
            return 0
        return fitting_slots(self.model, self.decoding, self.prompt_length, MOST_SLOTS, spare)


def memory_need(
    model: object, dtype: str, decoding: DecodingConfig, prompt_length: int
) -> MemoryNeed | None:
    """Memory that a model on the meta device will need; None for a plug-in model, whose shape is
    not known."""
    if not isinstance(model, LoadedModel):
        return None
    typed = copy.copy(model)
    typed.transformer = copy.deepcopy(model.transformer).to(DTYPES[dtype])
    return MemoryNeed(weight_bytes(model, dtype), typed, decoding, prompt_length)


def weight_bytes(model: LoadedModel, dtype: str) -> int:
    """Bytes of all parameters as stored: those of the layers in eight bits have a scale a row."""
    num_bytes = DTYPES[dtype].itemsize
    scale_bytes = {"int8": num_bytes, **dict.fromkeys(FORMATS, 4)}.get(dtype)
    total = 0
    for name, weight in model.transformer.named_parameters():
        if scale_bytes is not None and name.startswith("blocks.") and weight.dim() == 2:
            total += weight.numel() + weight.shape[0] * scale_bytes
        else:
            total += weight.numel() * num_bytes
    return total
