"""Explore-then-exploit (ETE, arXiv 2511.21103): commit across blocks, and probe what is uncertain.

What the paper's abstract says: sure tokens carry little information, so a decoder that commits
them alone needs many rounds; ETE combines decoding across blocks with targeted exploration of
uncertain tokens, which changes the beliefs of others and lets many of them pass at once. The
authors' code was not at hand. What stands here is this project's reading of it:

* exploit: every open position of the canvas that `confidence_threshold` admits is committed, in
  later blocks too;
* explore: where none of the current block passes, the block's position of the largest entropy above
  `explore_above` is committed by its most probable token; where there is none either, the most
  confident one.

The value of `explore_above`, one position a pass, and its argmax instead of a draw are choices made
here; the paper works with a key-value cache, and here every pass reads the whole canvas.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrd.commit_rules import surest
from lrd.config import DecodingConfig
from lrd.decoders.rule import Rule
from lrd.one_pass import Pass


class ExploreThenExploit(Rule):
    """Commits what is sure anywhere, else what is most uncertain."""

    def applies(self, config: DecodingConfig) -> bool:
        return config.explore_above is not None

    def reads(self, now: Pass) -> Tensor | None:
        return now.masked_BK

    def commits(self, now: Pass, named_BK: Tensor, open_BK: Tensor) -> Tensor:
        above, entropy_BK = now.config.explore_above, now.reading.entropy_BK
        assert above is not None
        one_B = torch.ones_like(now.passes_B)
        probe_BK = surest(entropy_BK, open_BK & (entropy_BK > above), one_B)
        stuck_B1 = ~(open_BK & now.sure).any(-1, keepdim=True)
        probes_B1 = stuck_B1 & probe_BK.any(-1, keepdim=True)
        chosen_BK = torch.where(probes_B1, probe_BK, named_BK)
        return chosen_BK | (now.ready & now.sure)
