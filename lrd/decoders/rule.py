"""The places of the procedure where a decoder may change it.

Legend: B samples, K canvas positions that a pass may read, n positions of a chunk of them, V
columns of the logits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from lrd.beliefs import LOWEST, Belief, BeliefSummary
from lrd.config import DecodingConfig
from lrd.nucleus import largest
from lrd.one_pass import Pass

Row = tuple[tuple[int, ...], torch.dtype]
"""Shape and dtype of what is kept of one sample."""


@dataclass(slots=True)
class Chunk:
    """Beliefs of some positions, while their logits are in memory."""

    rows_n: Tensor
    """Which of the B·K positions."""
    logits_nV: Tensor
    """Not to be changed."""
    mask_id: int
    belief: BeliefSummary
    before_nV: Tensor | None = None
    """log p of the pass before, where `Rule.compares`."""

    def log_p(self, ids_nk: Tensor) -> Tensor:
        """log p [n, k] of these tokens."""
        largest_n1 = self.logits_nV.gather(-1, self.belief.token_N[:, None]).float()
        s_nk = self.logits_nV.gather(-1, ids_nk).float() - largest_n1
        return s_nk - self.belief.log_z_N[:, None]

    def top(self, k: int) -> Tensor:
        """Ids [n, k] of the most probable tokens in order, of equals the lower id first; fewer
        where there are no more."""
        ids_nk = largest(self.logits_nV, min(k + 1, self.logits_nV.shape[1]))
        last_nk = (ids_nk == self.mask_id).byte().argsort(dim=-1, stable=True)
        return ids_nk.gather(-1, last_nk)[:, :-1]

    def p(self) -> Tensor:
        """The beliefs [n, V] in float32, not to be changed."""
        if isinstance(self.belief, Belief):
            return self.belief.p_NV
        largest_n1 = self.logits_nV.gather(-1, self.belief.token_N[:, None]).float()
        s_nV = self.logits_nV.to(torch.float32, copy=True).sub_(largest_n1).clamp_(min=LOWEST)
        s_nV[:, self.mask_id] = LOWEST
        return s_nV.sub_(self.belief.log_z_N[:, None]).exp_()


class Rule(ABC):
    """A decoder's part of the procedure: what it changes in a pass. Here nothing.

    A rule holds no state. What it remembers of samples lies in `Canvases.kept` by name, a row a
    sample: zero when a prompt is placed, and moved with it.
    """

    @abstractmethod
    def applies(self, config: DecodingConfig) -> bool:
        """Whether the settings ask for it."""

    def keeps(self, config: DecodingConfig) -> dict[str, Row]:
        """What it needs in `Canvases.kept`, by name."""
        return {}

    def compares(self, config: DecodingConfig) -> bool:
        """Whether `measure` needs whole beliefs of the pass before."""
        return False

    def reads(self, now: Pass) -> Tensor | None:
        """Positions [B, K] that are read beside the open ones of the block."""
        return None

    def hides(self, now: Pass) -> Tensor | None:
        """Columns [B, L] that this pass neither sees nor reads; positions stay what they are.
        Asked once, before the forward pass."""
        return None

    def measure(self, now: Pass, chunk: Chunk) -> dict[str, Tensor]:
        """Numbers [n, …] of beliefs that the rule needs afterwards, in `Reading.more` [B, K, …];
        under the name of a field of `Reading` they replace it."""
        return {}

    def weigh(self, now: Pass) -> None:  # noqa: B027 (a rule may do without it)
        """Change tokens, doubts or confidences in `now.reading`, which order commits."""

    def may_commit(self, now: Pass, open_BK: Tensor) -> Tensor:
        """Fewer positions that the commit rule may name."""
        return open_BK

    def commits(self, now: Pass, named_BK: Tensor, open_BK: Tensor) -> Tensor:
        """The positions to commit, from those that the commit rule named. open: those that it
        could name."""
        return named_BK

    def stops(self, now: Pass) -> Tensor | None:
        """Samples [B] of which every open position of the canvas is committed now."""
        return None

    def mixes(self, now: Pass, mixed_BK: Tensor, open_BK: Tensor) -> Tensor:
        """The positions whose next input is mixed; mixed: the block's. open: those of the canvas
        after the commits."""
        return mixed_BK

    def holds(self, now: Pass, open_BK: Tensor) -> Tensor | None:
        """Positions [B, K] whose input stays as it is."""
        return None

    def reopens(self, now: Pass, commit_BK: Tensor) -> Tensor | None:
        """Committed positions [B, K] that are open again; commit: those of this pass, which
        `now.state` has already."""
        return None
