"""Soft suffix: what lies behind the block is fed soft embeddings too, made once a block.

Legend: B samples, K positions that a pass may read.
"""

from __future__ import annotations

from torch import Tensor

from lrd.config import DecodingConfig
from lrd.decoders.rule import Rule
from lrd.one_pass import Pass


class SoftSuffix(Rule):
    """Reads open positions behind the block in its first pass; their next inputs are mixed then and
    stay until the first pass of the next block."""

    def applies(self, config: DecodingConfig) -> bool:
        return config.soft_suffix

    def reads(self, now: Pass) -> Tensor:
        return now.masked_BK & now.is_first

    def mixes(self, now: Pass, mixed_BK: Tensor, open_BK: Tensor) -> Tensor:
        return mixed_BK | (open_BK & ~now.reached_BK & now.is_first)

    def holds(self, now: Pass, open_BK: Tensor) -> Tensor:
        return open_BK & now.masked_BK & ~now.reached_BK & ~now.is_first
