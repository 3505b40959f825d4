"""How much memory slots take: a formula, and the largest number of slots that fit.

Counts tensors, in bytes; what kernels take for themselves is left to the margin. Knows nothing
of Ray: whoever shares a device says what share is his.

Legend: S slots, L positions of a slot, G of them canvas, K of a block, T passes at most,
V columns of the logits, D width, M the MLP's width.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from lrd.config import DecodingConfig
from lrd.engine import Engine, Request
from lrd.forward import CACHED_ELEMENTS, CACHED_POSITIONS, HEAD_ELEMENTS
from lrd.models.checkpoint import LoadedModel
from lrd.models.protocol import DiffusionModel, wants_fixed_shapes
from lrd.previous_beliefs import EXACT_COLUMNS

MEMINFO = Path("/proc/meminfo")
MARGIN = 0.9
"""Share of the free memory that a probe plans with: kernels' workspaces, fragments."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that a replica needs at the peak of a pass."""

    weights: int
    state: int
    """The canvases: embeddings, tokens, counters, traces."""
    past: int
    """Beliefs of the pass before."""
    draws: int
    """Uniform numbers, where sampling needs them."""
    activations: int
    """Of the forward pass, which is over before logits are made."""
    chunk: int
    """Logits and beliefs of one chunk, and what is kept of all of them."""
    inputs: int
    """The next embeddings of a block."""

    @property
    def beside_weights(self) -> int:
        """The last three are never there together."""
        passing = max(self.activations, self.chunk, self.inputs)
        return self.state + self.past + self.draws + passing

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
    """What `num_slots` slots for prompts of so many tokens need.

    Of a model that is not ours only the embedding table is known: its weights count as that
    table, its MLP as four times as wide as itself. fixed_shapes: as of `Engine`.
    """
    if fixed_shapes is None:
        fixed_shapes = wants_fixed_shapes(model)
    table = model.embedding_table
    (V, D), d = table.shape, table.element_size()
    S, G, K = num_slots, config.gen_length, config.block_tokens
    L, T = prompt_length + G, config.max_forwards

    positions, cached = S * L, HEAD_ELEMENTS
    if not fixed_shapes:
        few = max(L, CACHED_POSITIONS * torch.get_num_threads())
        positions, cached = min(positions, few), CACHED_ELEMENTS
    guided = 2 if config.cfg_scale else 1
    logits, beliefs = min(HEAD_ELEMENTS, S * K * V), min(cached, S * K * V)
    kept = guided * S * K * D * d + S * K * (D * d if config.mixes else 0)
    return Memory(
        weights=_weights(model),
        # Embeddings and mask, tokens and their passes, two traces, counters and flags.
        state=S * (L * (D * d + 8) + 16 * G + 8 * T + 98),
        past=S * K * (V * (4 if V <= EXACT_COLUMNS else 2) + 4),
        draws=S * K * V * 8 if config.temperature else 0,
        activations=positions * _forward_bytes(model) + (guided - 1) * S * L * D * d,
        chunk=kept + (guided * 2 - 1) * logits * d + beliefs * _belief_bytes(config),
        inputs=S * K * D * d * 8,
    )


def _belief_bytes(config: DecodingConfig) -> int:
    """Of one element of a chunk's beliefs: eight float32 tensors in a nucleus's search, or those
    of a draw in float64, with a sort of what may be drawn."""
    if config.sample_top_p is not None:
        return 64
    return 32 if config.temperature == 0 else 48


def _weights(model: DiffusionModel) -> int:
    if isinstance(model, LoadedModel):
        return sum(weight.nbytes for weight in model.transformer.parameters())
    return model.embedding_table.nbytes


def _forward_bytes(model: DiffusionModel) -> int:
    """Activations of one position where they are most: in the MLP (gate and up, silu, product;
    states before and after attention), or where queries have been rotated and keys are."""
    D, d = model.embedding_table.shape[1], model.embedding_table.element_size()
    head, kv, M, r = 128, D, 4 * D, 4
    if isinstance(model, LoadedModel):
        shape = model.transformer.config
        head, M = D // shape.num_heads, shape.mlp_width
        kv, r = head * shape.num_kv_heads, 4 if shape.rope_in_float32 else d
    rotated = (3 * D + 2 * kv) * d + (3 if r == d else 4) * D * r
    # Cosines, sines and positions are there throughout.
    return max(4 * M * d + 3 * D * d, rotated) + head * (8 + 2 * r) + 32


def fitting_slots(
    model: DiffusionModel,
    config: DecodingConfig,
    prompt_length: int,
    most: int,
    num_bytes: int,
) -> int:
    """The most slots, from 1 to `most`, whose memory beside the weights is within `num_bytes`
    by the formula; 1 where none is."""
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        if memory_of(model, config, prompt_length, middle).beside_weights <= num_bytes:
            low = middle
        else:
            high = middle - 1
    return low


def free_bytes(device: torch.device) -> int:
    """Memory that tensors may still take on a device; of a CPU what Linux calls available, and
    no limit on a system that does not say."""
    if device.type != "cuda":
        if not MEMINFO.exists():
            return sys.maxsize
        found = re.search(r"MemAvailable:\s+(\d+) kB", MEMINFO.read_text())
        assert found is not None
        return int(found[1]) * 1024
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def probe_slots(
    model: DiffusionModel,
    config: DecodingConfig,
    prompt_length: int,
    most: int,
    share: float = 1.0,
) -> int:
    """The most slots, up to `most`, for which there is memory: what the formula says, halved
    until a real pass goes through.

    prompt_length: tokens of the longest prompt, as of `Engine`. share: of the device's free
    memory that is the caller's. Raises ValueError where prompt and canvas exceed the model's
    positions, and the device's own error where there is no memory for one slot.
    """
    spare = int(free_bytes(model.embedding_table.device) * share * MARGIN)
    num_slots = fitting_slots(model, config, prompt_length, most, spare)
    engine = Engine(model, config, num_slots, prompt_length)
    for index in range(num_slots):
        # One is padded, where there is room, so that the pass has a mask.
        length = max(1, prompt_length - (index == 0))
        engine.submit(Request(index, [model.mask_id] * length, index))
    while not engine.num_passes:
        engine.step()
    return engine.num_slots
