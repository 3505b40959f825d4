"""Prophet: all of the canvas is committed once the answer's tokens are far ahead of their rivals.

Legend: B samples, K positions that a pass may read, n positions of a chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrd.config import DecodingConfig
from lrd.decoders.rule import Chunk, Rule
from lrd.one_pass import Pass


class Prophet(Rule):
    """Compares the mean gap between the largest two logits of the answer's positions, open or not,
    with a bound that falls in each third of the decode passes. Where it is not known which these
    are, all open positions of the canvas count."""

    def applies(self, config: DecodingConfig) -> bool:
        return config.stop_gap_early is not None

    def reads(self, now: Pass) -> Tensor:
        """All open positions of the canvas too: any pass may commit them."""
        return now.masked_BK | self._counted(now)

    def measure(self, now: Pass, chunk: Chunk) -> dict[str, Tensor]:
        first_n, second_n = chunk.log_p(chunk.top(2)).unbind(-1)
        assert now.config.stop_gap_early is not None
        enough = max(
            now.config.stop_gap_early, now.config.stop_gap_middle, now.config.stop_gap_late
        )
        # A position that may take one token alone neither stops a sample nor holds it up.
        alone_n = torch.isneginf(second_n)
        return {"gap": torch.where(alone_n, enough, first_n - second_n)}

    def stops(self, now: Pass) -> Tensor:
        counted_BK, config = self._counted(now), now.config
        assert config.stop_gap_early is not None
        number_B = counted_BK.sum(-1)
        gap_B = torch.where(counted_BK, now.reading.more["gap"], 0).sum(-1) / number_B
        share_B = now.state.decode_steps_B.double() / (config.steps or config.gen_length)
        bound_B = torch.where(share_B < 0.67, config.stop_gap_middle, config.stop_gap_late)
        bound_B = torch.where(share_B < 0.33, config.stop_gap_early, bound_B)
        # In a choice tokens come one after the other.
        none_waits_B = (now.ready == now.masked_BK).all(-1)
        return (gap_B >= bound_B) & (number_B > 0) & none_waits_B

    def _counted(self, now: Pass) -> Tensor:
        """The answer's positions [B, K]."""
        config = now.config
        if config.stop_gap_start is None:
            return now.masked_BK
        after_BK = now.position_BK - config.stop_gap_start
        inside_BK = (after_BK >= 0) & (after_BK < config.stop_gap_length)
        inside_BK &= now.position_BK < now.state.length_B[:, None]
        return inside_BK & now.running_B[:, None]
