"""Saber: the threshold is the mean confidence of what has been committed, and tokens whose
probability rose least are open again (arXiv 2510.18165).

Two rules that also work alone. Let R be the canvas up to the end of the block (`reopen_scope` =
block: the block alone), q_i the largest probability at i in R, committed or not, and Δ_i how much
it rose since the pass before. A pass commits the open positions whose q is above the mean recorded
confidence, at least `min_commits` (n). Of its k commits and all earlier ones it then opens the

    min(max(⌊n/2⌋, ⌈k/8⌉), k − 1)

of smallest Δ again, unless nothing was left open. So every decode pass leaves at least one open
position fewer, and a sample of G open positions takes at most G of them.

Legend: B samples, K canvas positions that a pass may read, G canvas positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrd.commit_rules import surest
from lrd.config import DecodingConfig
from lrd.decoders.reopening import Reopening, keep_at, kept_at, may_reopen
from lrd.decoders.rule import Chunk, Row, Rule
from lrd.one_pass import Pass


class CommittedThreshold(Rule):
    """Commits what is surer than the mean of all commits were (`threshold_from_committed`)."""

    def applies(self, config: DecodingConfig) -> bool:
        return config.threshold_from_committed

    def keeps(self, config: DecodingConfig) -> dict[str, Row]:
        """recorded: confidence of each position's last commit, also after it was opened again."""
        return {"recorded": ((config.gen_length,), torch.float32)}

    def commits(self, now: Pass, named_BK: Tensor, open_BK: Tensor) -> Tensor:
        confidence_BK = now.reading.confidence_BK
        recorded_BR = now.state.kept["recorded"]
        if now.config.reopen_scope == "block":
            recorded_BR = kept_at(now, "recorded")
        num_B = (recorded_BR > 0).sum(-1)
        mean_B = torch.where(num_B > 0, recorded_BR.sum(-1) / num_B.clamp(min=1), 1)
        sure_BK = open_BK & (confidence_BK > mean_B[:, None])
        least_B = torch.full_like(now.passes_B, now.config.min_commits)
        best_BK = surest(confidence_BK, open_BK, least_B)
        return sure_BK | best_BK

    def reopens(self, now: Pass, commit_BK: Tensor) -> None:
        """Nothing; records what is committed, by an early stop too."""
        keep_at(now, "recorded", now.reading.confidence_BK, commit_BK)


class Drop(Reopening):
    """Opens what rose least (`reopen` = drop)."""

    def applies(self, config: DecodingConfig) -> bool:
        return config.reopen == "drop"

    def keeps(self, config: DecodingConfig) -> dict[str, Row]:
        """largest: q of the last pass that read a position."""
        return super().keeps(config) | {"largest": ((config.gen_length,), torch.float32)}

    def reads(self, now: Pass) -> Tensor:
        return may_reopen(now)

    def measure(self, now: Pass, chunk: Chunk) -> dict[str, Tensor]:
        return {"largest": (-chunk.belief.log_z_N).exp()}

    def weigh(self, now: Pass) -> None:
        """Δ, in every pass; a block's first has none there but for the sample's first block."""
        largest_BK = now.reading.more["largest"]
        rise_BK = largest_BK - kept_at(now, "largest")
        own_BK = now.position_BK >= now.config.block_tokens * now.state.block_B[:, None]
        is_new_BK = own_BK & now.is_first & (now.state.blocks_B > 1)[:, None]
        now.reading.more["rise"] = rise_BK.masked_fill(is_new_BK, torch.inf)
        keep_at(now, "largest", largest_BK, now.open_BK | may_reopen(now))

    def reopens(self, now: Pass, commit_BK: Tensor) -> Tensor:
        most_B = most_to_reopen(commit_BK.sum(-1), now.config.min_commits)
        is_full_B = ~(now.open_BK & ~commit_BK).any(-1)
        most_B = most_B.masked_fill(is_full_B, 0)
        rise_BK = now.reading.more["rise"]
        among_BK = may_reopen(now) & (rise_BK < torch.inf)
        return surest(-rise_BK, among_BK, most_B)


def most_to_reopen(num_commits_B: Tensor, min_commits: int) -> Tensor:
    """How many positions may open again [B] after a pass with so many commits: an eighth, rounded
    up, but at least half of `min_commits`; always fewer than were committed."""
    eighth_B = (num_commits_B + 7) // 8
    return torch.minimum(eighth_B.clamp(min=min_commits // 2), num_commits_B - 1)
