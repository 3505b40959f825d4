"""The paper's equations as pure functions on tensors (arXiv 2510.11052).

Knows nothing of samples, phases or models: beliefs in, numbers out. `lrd/README.md` maps
every equation to its function here.

Legend: N positions (any leading shape), V vocabulary (columns of the logits), D width.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

EXCLUDED = -1e30
"""Stands for log 0. Finite, so that 0 · log 0 is 0 and differences of logs stay finite."""


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


def nucleus(p_NV: Tensor, top_p: float) -> Tensor:
    """p̄ [N, V]: beliefs renormalised on T, the smallest set of most probable tokens whose
    mass reaches top_p (Eq. 3); 0 outside. The top token is always in T, and among equal
    probabilities the lower id comes first."""
    if top_p >= 1:
        return p_NV  # A cumulated sum may round to 1 before the last token.
    descending_NV, order_NV = p_NV.sort(dim=-1, descending=True, stable=True)
    mass_before_NV = descending_NV.cumsum(-1) - descending_NV
    kept_NV = descending_NV * (mass_before_NV < top_p)
    kept_NV[..., 0] = descending_NV[..., 0]
    kept_NV = kept_NV / kept_NV.sum(-1, keepdim=True)
    return torch.zeros_like(p_NV).scatter_(-1, order_NV, kept_NV)


def soft_embedding(
    p_bar_NV: Tensor, alpha_N: Tensor, table_VD: Tensor, mask_embedding_D: Tensor
) -> Tensor:
    """ẽ [N, D] = (1 − α)·e_mask + α·Σ_v p̄(v)·e_v, Eq. 3, in the table's dtype."""
    expected_ND = p_bar_NV.to(table_VD.dtype) @ table_VD
    alpha_N1 = alpha_N[..., None].to(table_VD.dtype)
    return (1 - alpha_N1) * mask_embedding_D + alpha_N1 * expected_ND


def kl_divergence(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
    """KL(p ‖ q) [N] in nats: the summand of Eq. 6 with q the pass before.

    Of nearly equal beliefs the sum rounds to either side of 0; a threshold of 0 stays unmet.
    """
    return (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(-1).clamp(min=0)


def reduce_kl(
    kl_BN: Tensor,
    open_BN: Tensor,
    reduction: Literal["mean", "max", "sum"],
    scope: Literal["block", "open"],
) -> Tensor:
    """D_t [B] of Eq. 6 (mean over the block) or one of its variants.

    Committed positions count 0. scope decides what a mean divides by: the block's length,
    or the number of open positions.
    """
    kl_BN = kl_BN * open_BN
    if reduction == "max":
        return kl_BN.amax(-1)
    total_B = kl_BN.sum(-1)
    if reduction == "sum":
        return total_B
    if scope == "open":
        return total_B / open_BN.sum(-1).clamp(min=1)
    return total_B / kl_BN.shape[-1]
