"""ReMix's rejection: positions whose belief has just jumped are fed [MASK] and not what they mean.

Legend: B samples, K positions that a pass may read, n positions of a chunk, V columns.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lrd.config import DecodingConfig
from lrd.decoders.rule import Chunk, Row, Rule
from lrd.one_pass import Pass

REJECTED = 0.5 * math.log(2)
"""What counts as the divergence from a rejected belief: that from no belief, as the authors' code
stores zeros for it. With a lower reject_js a rejected position stays [MASK] until it is
committed."""


class Rejection(Rule):
    """Sets the weight of token embeddings to 0 where the Jensen-Shannon divergence from the pass
    before is above `reject_js`, and after a block's first pass, which has none before."""

    def applies(self, config: DecodingConfig) -> bool:
        return config.reject_js is not None

    def keeps(self, config: DecodingConfig) -> dict[str, Row]:
        return {"rejected": ((config.window_tokens,), torch.bool)}

    def compares(self, config: DecodingConfig) -> bool:
        return True

    def measure(self, now: Pass, chunk: Chunk) -> dict[str, Tensor]:
        log_q_nV = chunk.before_nV
        assert log_q_nV is not None
        q_nV = log_q_nV.exp()
        entropy_n = chunk.belief.entropy_N - (q_nV * log_q_nV).sum(-1)
        mean_nV = q_nV.add_(chunk.p()).mul_(0.5)
        log_mean_nV = mean_nV.clamp(min=torch.finfo(torch.float32).tiny).log_()
        return {"js": -(log_mean_nV.mul_(mean_nV).sum(-1)) - entropy_n / 2}

    def weigh(self, now: Pass) -> None:
        state, reading, config = now.state, now.reading, now.config
        assert config.reject_js is not None
        assert reading.weight_BK is not None
        js_BK = torch.where(state.kept["rejected"], REJECTED, reading.more["js"])
        rejected_BK = now.open_BK & (js_BK > config.reject_js) & ~now.is_first
        state.kept["rejected"] = rejected_BK
        reading.weight_BK = reading.weight_BK.masked_fill(rejected_BK | now.is_first, 0)
