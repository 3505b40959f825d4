"""Computes how many slots fit on a device, from the checkpoint's shape alone.

The formula is in `lrd/memory.py`; replicas probe their devices with the same one.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from lrd import DecodingConfig
from lrd.memory import MARGIN, fitting_slots, memory_of
from lrd.models.checkpoint import DTYPES, LoadedModel

MOST_SLOTS = 4096
"""Most slots that are tried."""


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """The memory of one replica with slots for prompts of `prompt_length` tokens."""

    weights: int
    """Bytes."""
    model: LoadedModel
    """On the meta device, in the dtype of the computation."""
    decoding: DecodingConfig
    prompt_length: int

    def beside_weights(self, num_slots: int) -> int:
        """Bytes beside the weights at the peak of a pass."""
        need = memory_of(self.model, self.decoding, self.prompt_length, num_slots)
        return need.beside_weights

    def slots_in(self, num_bytes: float) -> int:
        """Slots that fit into this much device memory, up to `MOST_SLOTS`; 0 where none does."""
        spare = int((num_bytes - self.weights) * MARGIN)
        if self.beside_weights(1) > spare:
            return 0
        return fitting_slots(self.model, self.decoding, self.prompt_length, MOST_SLOTS, spare)


def memory_need(
    model: object, dtype: str, decoding: DecodingConfig, prompt_length: int
) -> MemoryNeed | None:
    """The need of a model on the meta device; None for another package's model, whose shape is
    unknown."""
    if not isinstance(model, LoadedModel):
        return None
    typed = copy.copy(model)
    typed.transformer = copy.deepcopy(model.transformer).to(DTYPES[dtype])
    return MemoryNeed(weight_bytes(model, dtype), typed, decoding, prompt_length)


def weight_bytes(model: LoadedModel, dtype: str) -> int:
    """Bytes of all parameters as stored; int8 adds a scale for each row of the blocks' matrices."""
    num_bytes = DTYPES[dtype].itemsize
    total = 0
    for name, weight in model.transformer.named_parameters():
        packed = dtype == "int8" and name.startswith("blocks.") and weight.dim() == 2
        if packed:
            total += weight.numel() + weight.shape[0] * num_bytes
        else:
            total += weight.numel() * num_bytes
    return total
