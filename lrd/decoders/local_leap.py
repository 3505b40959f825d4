"""LocalLeap: near a sure position less certainty is enough (arXiv 2510.07081).

The positions that `confidence_threshold` admits are anchors. Open positions within `leap_radius` of
one are committed too where their probability is at least `leap_threshold`. Without an anchor the
most confident position is committed alone.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lrd.config import DecodingConfig
from lrd.decoders.rule import Rule
from lrd.one_pass import Pass


class LocalLeap(Rule):
    """Commits neighbours of what the threshold admits."""

    def applies(self, config: DecodingConfig) -> bool:
        return config.leap_radius is not None

    def commits(self, now: Pass, named_BK: Tensor, open_BK: Tensor) -> Tensor:
        config = now.config
        assert config.leap_radius is not None
        near_BK = within(named_BK & now.sure, config.leap_radius)
        enough_BK = now.reading.confidence_BK >= config.leap_threshold
        return named_BK | (open_BK & near_BK & enough_BK)


def within(anchor_BK: Tensor, radius: int) -> Tensor:
    """The positions [B, K] that have an anchor at most `radius` positions away."""
    reach = min(radius, anchor_BK.shape[1] - 1)
    counts_B1K = anchor_BK[:, None].float()
    return F.max_pool1d(counts_B1K, 2 * reach + 1, stride=1, padding=reach)[:, 0] > 0
