"""How many slots a device holds, told before there is one: from the checkpoint's shape alone.

The formula is `lrd/memory.py`'s; a replica probes its own device by the same one. Knows nothing
of Ray or files.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from lrd import DecodingConfig
from lrd.memory import MARGIN, fitting_slots, memory_of
from lrd.models.checkpoint import DTYPES, LoadedModel

MOST_SLOTS = 4096
"""More are not looked for."""


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Of one replica with slots for prompts of `prompt_length` tokens."""

    weights: int
    """Bytes."""
    model: LoadedModel
    """Without weights, in the dtype that is computed in."""
    decoding: DecodingConfig
    prompt_length: int

    def beside_weights(self, num_slots: int) -> int:
        """Bytes at the peak of a pass."""
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
    """Of a model on the meta device; None for one of another package, whose shape is not known."""
    if not isinstance(model, LoadedModel):
        return None
    typed = copy.copy(model)
    typed.transformer = copy.deepcopy(model.transformer).to(DTYPES[dtype])
    return MemoryNeed(weight_bytes(model, dtype), typed, decoding, prompt_length)


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
