"""The paper's equations as pure functions on tensors (arXiv 2510.11052).

Beliefs in, numbers out. `lrd/README.md` maps every equation to its function here.

Legend: N positions (any leading shape), V vocabulary (columns of the logits), D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lrd.nucleus import argmax

EXCLUDED = -1e30
"""Stands for log 0. Finite, so that 0 · log 0 is 0 and differences of logs stay finite."""
LOWEST = -6e4
"""Stands for the s of an excluded token: exp(s) is 0 as of any s below −104, and float16 has it."""


@dataclass(slots=True)
class BeliefSummary:
    """A few numbers of p_t at each of N positions."""

    log_z_N: Tensor
    """log Σ exp(s) with s the logits less their maximum, so that log p = s − log Z."""
    token_N: Tensor
    """The most probable token, the lowest id among equals."""
    entropy_N: Tensor


@dataclass(slots=True)
class Belief(BeliefSummary):
    """p_t of N positions with what Eq. 2, 4 and 6 ask of it, made in one go over the logits."""

    s_NV: Tensor
    """Logits less their maximum; at least LOWEST."""
    p_NV: Tensor

    @classmethod
    def of_logits(cls, logits_NV: Tensor, mask_id: int) -> Belief:
        """Beliefs in float32; [MASK] itself has probability 0 and is never predicted.

        A single −inf excludes a token; NaN, +inf or −inf everywhere leave no belief: NaN.
        """
        s_NV = logits_NV.to(torch.float32, copy=True)
        s_NV[:, mask_id] = -torch.inf
        token_N = argmax(s_NV)
        s_NV.sub_(s_NV.gather(-1, token_N[:, None])).clamp_(min=LOWEST)
        p_NV = s_NV.softmax(-1)
        log_z_N = -p_NV.gather(-1, token_N[:, None])[:, 0].log()
        # −Σ p·log p: both terms are small where the belief is sure, so little cancels.
        entropy_N = log_z_N - (p_NV * s_NV).sum(-1)
        return cls(log_z_N, token_N, entropy_N, s_NV, p_NV)


def log_beliefs(logits_NV: Tensor, mask_id: int) -> Tensor:
    """log p_t [N, V] in float32; [MASK] itself has probability 0 and is never predicted.

    A single −inf excludes a token; NaN, +inf or −inf everywhere leave no belief: NaN.
    """
    logits_NV = logits_NV.to(torch.float32, copy=True)
    logits_NV[..., mask_id] = -torch.inf
    return logits_NV.log_softmax(-1).clamp(min=EXCLUDED)


def entropy(log_p_NV: Tensor) -> Tensor:
    """H [N] of a belief over the whole vocabulary, in nats (the H of Eq. 2 and 4)."""
    return -(log_p_NV.exp() * log_p_NV).sum(-1)


def mix_weight(entropy_N: Tensor, num_columns: int, r_f: float) -> Tensor:
    """α [N] = r_f · (1 − H / log|V|), Eq. 4 as the main text has it."""
    return r_f * (1.0 - entropy_N / math.log(num_columns))


def soft_embedding(
    p_bar_NV: Tensor, alpha_N: Tensor, table_VD: Tensor, mask_embedding_D: Tensor
) -> Tensor:
    """ẽ [N, D] = (1 − α)·e_mask + α·Σ_v p̄(v)·e_v, Eq. 3, in the table's dtype."""
    return mix(p_bar_NV.to(table_VD.dtype) @ table_VD, alpha_N, mask_embedding_D)


def mix(expected_ND: Tensor, alpha_N: Tensor, mask_embedding_D: Tensor) -> Tensor:
    """The same where Σ_v p̄(v)·e_v is known (`nucleus.expected_embedding`)."""
    alpha_N1 = alpha_N[..., None].to(expected_ND.dtype)
    return (1 - alpha_N1) * mask_embedding_D + alpha_N1 * expected_ND


def reduce_kl(
    kl_BN: Tensor,
    open_BN: Tensor,
    reduction: Literal["mean", "max", "sum"],
    scope: Literal["block", "open"],
    length_B: Tensor | None = None,
) -> Tensor:
    """D_t [B] of Eq. 6 (mean over the block) or one of its variants.

    Committed positions count 0. scope decides what a mean divides by: the block's length,
    or the number of open positions. length: each block's, where some are shorter than others.
    """
    kl_BN = torch.where(open_BN, kl_BN, 0)
    if reduction == "max":
        return kl_BN.amax(-1)
    total_B = kl_BN.sum(-1)
    if reduction == "sum":
        return total_B
    if scope == "open":
        return total_B / open_BN.sum(-1).clamp(min=1)
    return total_B / (kl_BN.shape[-1] if length_B is None else length_B)
