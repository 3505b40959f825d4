"""EOSER: EOS counts as less probable in early passes, so that answers do not end too soon.

The confidence of a position whose token is EOS is multiplied by a factor that rises from
`eos_confidence_start` (γ) to 1 while the schedule runs; its token stays. With
`schedule="doubling"`, the same authors' ascending step sizes (ASS), pass τ commits 2^(τ−1).

    factor = γ + (1 − γ) · (τ − 1) / (steps − 1)            in pass τ of a block
    factor = γ + (1 − γ) · (2^τ − 1) / 2^P                   with doubling, P passes a block

As in the authors' code `steps` are those of all blocks: in several blocks the first factor never
comes near 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrd.commit_rules import doubling_passes, is_any_of
from lrd.config import DecodingConfig
from lrd.decoders.rule import Rule
from lrd.models.protocol import eos_ids
from lrd.one_pass import Pass


class Eoser(Rule):
    """Orders EOS behind other tokens at first."""

    def applies(self, config: DecodingConfig) -> bool:
        return config.eos_confidence_start < 1

    def weigh(self, now: Pass) -> None:
        reading = now.reading
        is_eos_BK = is_any_of(reading.token_BK, eos_ids(now.model))
        state = now.state
        factor_B = eos_factor(now.config, state.decode_in_block_B, state.num_at_start_B).float()
        reading.confidence_BK = torch.where(
            is_eos_BK, reading.confidence_BK * factor_B[:, None], reading.confidence_BK
        )


def eos_factor(config: DecodingConfig, decode_pass_B: Tensor, num_at_start_B: Tensor) -> Tensor:
    """The factor [B] on the confidence of EOS in a block's decode pass of this number, from 1;
    float64. At most 1, where a block takes more passes than its share. num_at_start: its open
    positions before the first."""
    pass_B = decode_pass_B.clamp(min=1).double()
    if config.schedule == "doubling":
        num_passes_B = doubling_passes(config, num_at_start_B).double()
        share_B = torch.exp2(pass_B - num_passes_B) - torch.exp2(-num_passes_B)
    else:
        assert config.steps is not None
        share_B = (pass_B - 1) / max(1, config.steps - 1)
    start = config.eos_confidence_start
    return start + (1 - start) * share_B.clamp(max=1)
