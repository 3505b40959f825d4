"""RCR: every pass commits all open positions, then opens those again that were least sure when they
were committed (arXiv 2508.13148).

Each block takes S = steps / blocks passes. Of a block that began with n open positions pass s < S
opens ⌊n · f(s/S)⌋ of the canvas up to the block's end (`reopen_scope` = block: of the block alone),
earlier ones where sureness ties: f(r) = 1 − r (schedule = linear) or cos(πr/2) (cosine). Pass S
opens none, so that a sample takes at most `steps` decode passes; just so many where ⌊n · f⌋ is
never 0 before, as wherever S ≤ n. In a template's choices, which stay, tokens come one after the
other: a block of K positions takes at most max(S, K) passes.

Legend: B samples, K canvas positions that a pass may read.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lrd.commit_rules import surest
from lrd.config import DecodingConfig
from lrd.decoders.reopening import Reopening, keep_at, kept_at, may_reopen
from lrd.decoders.rule import Row
from lrd.one_pass import Pass

LEAST_SHARE = 1e-6


class Lowest(Reopening):
    """Opens what was least sure when it was committed (`reopen` = lowest)."""

    def applies(self, config: DecodingConfig) -> bool:
        return config.reopen == "lowest"

    def keeps(self, config: DecodingConfig) -> dict[str, Row]:
        """sureness: `confidence` of each position's last commit."""
        return super().keeps(config) | {"sureness": ((config.gen_length,), torch.float32)}

    def reopens(self, now: Pass, commit_BK: Tensor) -> Tensor:
        config, state, reading = now.config, now.state, now.reading
        assert config.steps is not None
        by_entropy = config.confidence == "entropy"
        sureness_BK = -reading.doubt_BK if by_entropy else reading.confidence_BK
        keep_at(now, "sureness", sureness_BK, commit_BK)
        steps = config.steps // config.num_blocks
        share_S = open_shares(config.schedule, steps, commit_BK.device)
        share_B = share_S[state.decode_in_block_B.clamp(max=steps)]
        most_B = (state.num_at_start_B.double() * share_B).floor().long()
        return surest(-kept_at(now, "sureness"), may_reopen(now), most_B)


def open_shares(schedule: str, steps: int, device: torch.device) -> Tensor:
    """The share of a block [S + 1], float64, that is open after each of its passes, 0 after the
    last. Made on the host: a device's cosine could round a number of positions down."""
    found = [1.0]
    for step in range(1, steps):
        done = step / steps
        share = 1 - done if schedule == "linear" else math.cos(math.pi * done / 2)
        found.append(max(share, LEAST_SHARE))
    # From pinned memory, so that the host does not wait for the copy.
    is_pinned = device.type == "cuda"
    on_host = torch.tensor([*found, 0.0], dtype=torch.float64, pin_memory=is_pinned)
    return on_host.to(device, non_blocking=True)
