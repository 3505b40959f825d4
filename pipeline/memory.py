"""What a replica needs of its device's memory, reckoned from the model's shape.

An estimate from the tensors that stand together at the worst moment of a pass; an engine that
runs out all the same gives up slots by itself. Knows nothing of Ray or files.
"""

from __future__ import annotations

from dataclasses import dataclass

from lrd import DecodingConfig
from lrd.models.checkpoint import DTYPES, LoadedModel
from lrd.models.transformer import TransformerConfig
from lrd.past import EXACT_COLUMNS
from lrd.reading import HEAD_ELEMENTS

USABLE = 0.92
"""Of a device; the rest goes to the driver's context, kernels and fragments."""
BELIEF_BYTES = 8 << 26
"""A chunk's beliefs with what is computed beside them, off the CPU (lrd/README.md)."""


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes of one replica."""

    weights: int
    shared: int
    """Once, however many slots there are: chunks of logits and beliefs."""
    slot: int

    def slots_in(self, num_bytes: float) -> int:
        """Slots that fit a device of this size; 0 where not one does."""
        left = USABLE * num_bytes - self.weights - self.shared
        return max(0, int(left // self.slot))


def memory_need(
    model: object, dtype: str, decoding: DecodingConfig, prompt_length: int
) -> MemoryNeed | None:
    """Of a model, which may be on the meta device, with slots for prompts of this many tokens;
    None for models of other packages, whose shape is not known."""
    if not isinstance(model, LoadedModel):
        return None
    config = model.transformer.config
    num_bytes = DTYPES[dtype].itemsize
    return MemoryNeed(
        weights=weight_bytes(model, dtype),
        shared=HEAD_ELEMENTS * num_bytes + BELIEF_BYTES,
        slot=slot_bytes(config, num_bytes, decoding, prompt_length + decoding.gen_length),
    )


def weight_bytes(model: LoadedModel, dtype: str) -> int:
    """All parameters in what they are kept in; int8 has a scale a row for the blocks' matrices."""
    num_bytes = DTYPES[dtype].itemsize
    total = 0
    for name, weight in model.transformer.named_parameters():
        packed = dtype == "int8" and name.startswith("blocks.") and weight.dim() == 2
        if packed:
            total += weight.numel() + weight.shape[0] * num_bytes
        else:
            total += weight.numel() * num_bytes
    return total


def slot_bytes(
    config: TransformerConfig, num_bytes: int, decoding: DecodingConfig, num_columns: int
) -> int:
    """One slot: what it keeps between passes, and its share of the largest moment in a block.

    num_bytes: of an element. num_columns: prompt and canvas.
    """
    L, K, D = num_columns, decoding.block_tokens, config.width
    V, M = config.table_rows, config.mlp_width
    past = K * V * (4 if V <= EXACT_COLUMNS else 2)
    states = 2 * K * D * num_bytes
    uniforms = K * V * 8 if decoding.temperature > 0 else 0
    # Embeddings are kept; the residual, its norm and float32 copies for the norm stand beside.
    kept = L * D * num_bytes
    residual = L * D * (2 * num_bytes + 4)
    # Query, key, value and the result, with the rotation of query and key in float32.
    attention = L * D * (4 * num_bytes + 3 * 4)
    # Gate and up, the gate's activation, the product.
    mlp = 4 * L * M * num_bytes
    return past + states + uniforms + kept + residual + max(attention, mlp)
