"""Which committed positions may open again: what WINO, Saber and RCR share.

Legend: B samples, K canvas positions that a pass may read, G canvas positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrd.config import DecodingConfig
from lrd.decoders.rule import Row, Rule
from lrd.one_pass import Pass


class Reopening(Rule):
    """A rule by which committed positions open again."""

    def keeps(self, config: DecodingConfig) -> dict[str, Row]:
        """held: positions that never do, `Canvases.place` sets them. reopened: those that did in
        the pass before."""
        return {
            "held": ((config.gen_length,), torch.bool),
            "reopened": ((config.window_tokens,), torch.bool),
        }


def may_reopen(now: Pass) -> Tensor:
    """Positions [B, K] up to the end of the block that passes have committed. A template's fixed
    tokens stay, and its choices, whose tokens each decide what may come next."""
    state = now.state
    committed_BK = state.commit_step_BG.gather(1, now.position_BK) > 0
    held_BK = state.kept["held"].gather(1, now.position_BK)
    return committed_BK & ~held_BK & now.reached_BK & now.running_B[:, None]


def kept_at(now: Pass, name: str) -> Tensor:
    """What is kept of canvas positions, [B, G], at those of the pass [B, K]."""
    return now.state.kept[name].gather(1, now.position_BK)


def keep_at(now: Pass, name: str, value_BK: Tensor, where_BK: Tensor) -> None:
    """Keep new values of these positions."""
    kept_BG = now.state.kept[name]
    kept_BK = torch.where(where_BK, value_BK, kept_BG.gather(1, now.position_BK))
    now.state.kept[name] = kept_BG.scatter(1, now.position_BK, kept_BK)
