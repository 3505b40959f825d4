"""ReMix's and WINO's cap: a pass commits a share of the open positions at most.

m = min(max(⌊commit_share · |O|⌋, commit_floor), commit_ceiling), of the block's open positions O;
where `confidence_threshold` names more than m, the m most confident of them are committed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrd.commit_rules import surest
from lrd.config import DecodingConfig
from lrd.decoders.rule import Rule
from lrd.one_pass import Pass


class CommitCaps(Rule):
    """Commits fewer positions where many pass the threshold."""

    def applies(self, config: DecodingConfig) -> bool:
        return config.commit_share < 1 or config.commit_ceiling is not None

    def commits(self, now: Pass, named_BK: Tensor, open_BK: Tensor) -> Tensor:
        most_B = most_commits(now.config, now.open_BK.sum(-1))
        return surest(now.reading.confidence_BK, named_BK, most_B)


def most_commits(config: DecodingConfig, num_open_B: Tensor) -> Tensor:
    """How many positions [B] a pass may commit of so many open ones."""
    most_B = (num_open_B.double() * config.commit_share).floor().long()
    most_B = most_B.clamp(min=config.commit_floor)
    return torch.clamp(most_B, max=config.commit_ceiling) if config.commit_ceiling else most_B
