"""KLASS: a sure position is committed once its belief has stopped moving (arXiv 2511.05664).

A position is stable where its last `stable_passes` divergences KL(p_t ‖ p_t−1) were below
`stable_kl`. Each pass commits the stable positions that `confidence_threshold` admits; where there
are none, the most confident position, or with `steps` as many as the pass's share.

Differs from the authors' code: the past begins anew in each block, and a block goes on until it is
full, where theirs leaves [MASK] once the block's steps are spent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrd.commit_rules import scheduled_quota, surest
from lrd.config import DecodingConfig
from lrd.decoders.rule import Row, Rule
from lrd.one_pass import Pass

CALM = "klass_calm"
"""Passes in a row, up to the last, whose divergence was below."""


class Klass(Rule):
    """Commits what is sure and stable."""

    def applies(self, config: DecodingConfig) -> bool:
        return config.stable_kl is not None

    def keeps(self, config: DecodingConfig) -> dict[str, Row]:
        return {CALM: ((config.window_tokens,), torch.int32)}

    def commits(self, now: Pass, named_BK: Tensor, open_BK: Tensor) -> Tensor:
        config, state = now.config, now.state
        confidence_BK = now.reading.confidence_BK
        is_stable_BK = count_calm(now) >= config.stable_passes
        sure_BK = open_BK & is_stable_BK & now.sure
        num_open_B = now.open_BK.sum(-1)
        quota_B = torch.ones_like(num_open_B)
        if config.steps is not None:
            quota_B = scheduled_quota(
                config, num_open_B, state.decode_in_block_B, state.num_at_start_B
            )
        best_BK = surest(confidence_BK, open_BK, quota_B)
        return torch.where(sure_BK.any(-1, keepdim=True), sure_BK, best_BK)


def count_calm(now: Pass) -> Tensor:
    """How many passes in a row [B, K] have been calm, this one counted; none in a block's first,
    which has no pass before to compare with."""
    config, kept = now.config, now.state.kept
    assert config.stable_kl is not None
    is_calm_BK = now.open_BK & (now.reading.kl_BK < config.stable_kl) & ~now.is_first
    kept[CALM] = torch.where(is_calm_BK, kept[CALM] + 1, 0)
    return kept[CALM]
