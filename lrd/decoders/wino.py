"""WINO: tokens that a second, masked copy of the block doubts are open again (arXiv 2507.18578).

Every pass also feeds K shadow columns (`lrd/shadow.py`), which hold [MASK] at the block's positions
and say how probable each committed token is without itself. A pass that commits a_t > 1 tokens
opens the earlier ones of the block that are below `reopen_threshold` again, at most a_(t−1) − 1 of
them, the least probable. A pass of a block can so open fewer than the one before has committed:
after t passes at least t positions stay committed, and a block of K takes at most K decode passes.

Legend: B samples, K positions of the current block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrd.commit_rules import surest
from lrd.config import DecodingConfig
from lrd.decoders.reopening import Reopening, may_reopen
from lrd.decoders.rule import Chunk, Row
from lrd.one_pass import Pass


class Shadow(Reopening):
    """Opens what shadow columns doubt (`reopen` = shadow)."""

    def applies(self, config: DecodingConfig) -> bool:
        return config.reopen == "shadow"

    def keeps(self, config: DecodingConfig) -> dict[str, Row]:
        """num_before: commits of the last decode pass."""
        return super().keeps(config) | {"num_before": ((), torch.long)}

    def reads(self, now: Pass) -> Tensor:
        """Committed positions, of which `lrd.forward` gives the shadows' logits."""
        return may_reopen(now)

    def measure(self, now: Pass, chunk: Chunk) -> dict[str, Tensor]:
        ids_n1 = now.ids_BK.flatten()[chunk.rows_n][:, None]
        return {"shadow": chunk.log_p(ids_n1)[:, 0].exp()}

    def reopens(self, now: Pass, commit_BK: Tensor) -> Tensor:
        shadow_BK, num_B = now.reading.more["shadow"], commit_BK.sum(-1)
        doubted_BK = may_reopen(now) & ~commit_BK & (shadow_BK < now.config.reopen_threshold)
        kept = now.state.kept
        most_B = torch.where(num_B > 1, kept["num_before"] - 1, 0)
        kept["num_before"] = torch.where(now.decoding_B, num_B, kept["num_before"])
        return surest(-shadow_BK, doubted_BK, most_B)
