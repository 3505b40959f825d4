"""Which canvas positions the passes of a block feed: all, or a fixed pattern behind the block.

The pattern keeps the next w blocks whole and the last position of every later block, or positions
at given distances behind the block (DPad), so that a pass costs what is written and not what is
empty; the positions that are kept stay where they are.

Legend: M blocks, G canvas positions, N = G + 1, B samples, R rows, C columns of a pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lrd.config import DecodingConfig


def fed_positions(config: DecodingConfig, block: int) -> list[int]:
    """The canvas positions, ascending, that passes of block number `block` feed and attend to."""
    G, K = config.gen_length, config.block_tokens
    if config.suffix == "all":
        return list(range(G))
    if isinstance(config.suffix, tuple):
        end = (block + 1) * K
        return [*range(end), *(end + d for d in config.suffix if end + d < G)]
    whole = min(G, (block + 1 + config.suffix) * K)
    return [*range(whole), *range(whole + K - 1, G, K)]


@dataclass(frozen=True, slots=True)
class FedPositions:
    """`fed_positions` of every block, on a device."""

    position_MG: Tensor
    """The positions of each block's passes, the last one repeated to the end."""
    count_MN: Tensor
    """How many of these are among the first N canvas positions."""
    counts: list[int]
    """How many there are of each block, on the host."""

    @classmethod
    def of(cls, config: DecodingConfig, device: torch.device) -> FedPositions:
        lists = [fed_positions(config, block) for block in range(config.num_blocks)]
        counts = [len(fed) for fed in lists]
        G = config.gen_length
        table = torch.tensor([fed + [G - 1] * (G - len(fed)) for fed in lists])
        count_MN = torch.zeros(config.num_blocks, G + 1, dtype=torch.long)
        for block, fed in enumerate(lists):
            count_MN[block, torch.tensor(fed) + 1] = 1
        return cls(table.to(device), count_MN.cumsum(-1).to(device), counts)

    def count(self, block_B: Tensor, length_B: Tensor) -> Tensor:
        """How many canvas positions [B] the passes of a block feed of a canvas of this length."""
        return self.count_MN[block_B, length_B]

    def positions(self, place_RC: Tensor, prompt_R: Tensor, block_R: Tensor) -> Tensor:
        """Positions [R, C], counted from the prompt's first token, of numbered columns."""
        in_canvas_RC = (place_RC - prompt_R[:, None]).clamp(min=0)
        canvas_RC = prompt_R[:, None] + self.position_MG[block_R[:, None], in_canvas_RC]
        return torch.where(place_RC < prompt_R[:, None], place_RC, canvas_RC)
