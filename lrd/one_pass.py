"""One pass of all samples: what it may read and commit, and what its beliefs said.

Legend: B samples, K canvas positions that a pass reads (the current block's, or the whole canvas
where a decoder needs that), D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from lrd.choices import NOT_YET
from lrd.config import DecodingConfig
from lrd.models.protocol import DiffusionModel

if TYPE_CHECKING:
    from lrd.canvases import Canvases


@dataclass(slots=True)
class Reading:
    """The values of a pass's beliefs that decisions need. Where open positions alone are computed,
    the others hold zeros."""

    entropy_BK: Tensor
    kl_BK: Tensor
    """Divergence from the previous pass, the summand of Eq. 6; undefined in a block's first."""
    token_BK: Tensor
    doubt_BK: Tensor
    """Entropy of the probabilities that confidence is read from."""
    confidence_BK: Tensor
    probability_BK: Tensor
    """Of the token, by the belief."""
    weight_BK: Tensor | None
    """Share of the token embeddings in the next input, Eq. 4; None where nothing is mixed."""
    expected_BKD: Tensor | None
    """Their mean, Σ_v p̄(v)·e_v; None where nothing is mixed."""
    eos_BK: Tensor | None
    """Probability of EOS where it is the most probable token, else 0; None where canvases do not
    grow."""
    more: dict[str, Tensor] = field(default_factory=dict)
    """What decoders measured besides, by their names [B, K, …]."""


@dataclass(slots=True)
class Pass:
    """A pass of all samples, before anything is committed."""

    model: DiffusionModel
    config: DecodingConfig
    state: Canvases
    running_B: Tensor
    passes_B: Tensor
    """Passes before this one."""
    position_BK: Tensor
    """Canvas positions that may be read."""
    reached_BK: Tensor
    """Those up to the end of the current block."""
    ids_BK: Tensor
    """Their tokens; [MASK] where open."""
    masked_BK: Tensor
    """Open positions of running samples, in later blocks too."""
    open_BK: Tensor
    """Those up to the end of the current block."""
    reading: Reading = field(init=False)
    """Once the model has run."""
    decoding_B: Tensor = field(init=False)
    """Samples that decode in this pass, while the others refine; known after `reading`."""

    @property
    def columns(self) -> Tensor:
        """The columns of the positions that may be read."""
        return self.state.start_B[:, None] + self.position_BK

    @property
    def ready(self) -> Tensor:
        """Open positions of running samples [B, K], anywhere, that wait for no other: in a choice,
        tokens come one after the other."""
        class_BG = self.state.class_BG
        if class_BG is None:
            return self.masked_BK
        return self.masked_BK & (class_BG.gather(1, self.position_BK) != NOT_YET)

    @property
    def sure(self) -> Tensor:
        """Where confidences reach `confidence_threshold` [B, K], which is set."""
        assert self.config.confidence_threshold is not None
        return self.reading.confidence_BK >= self.config.confidence_threshold

    @property
    def is_first(self) -> Tensor:
        """Whether the pass is the first of its block [B, 1]."""
        return (self.state.pass_in_block_B == 0)[:, None]
