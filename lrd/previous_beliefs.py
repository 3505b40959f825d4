"""Beliefs of the previous pass, stored for Eq. 6 in as few bytes as their error allows.

Stored are s = logits − their maximum and log Z, the logarithm of the sum of their exponentials,
so that log q = s − log Z. Up to `EXACT_COLUMNS` columns s is float32; above it is float16, with
log Z of the rounded s, so that what is kept is a belief q' that sums to 1. Rounding moves each
log q(v) by ε(v), |ε(v)| ≤ 2⁻¹¹·|s(v)|, and

    |KL(p ‖ q') − KL(p ‖ q)| = |Σ_v (p − q)(v)·ε(v)| + O(ε²) ≤ 2⁻¹¹·Σ_v |p − q|(v)·|s(v)| + O(ε²),

which vanishes where the passes agree: there thresholds are compared.

Legend: B samples, K positions of the current block, V columns of the logits, N of the B·K
positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrd.beliefs import Belief

EXACT_COLUMNS = 16_384
"""Most columns of which the past is kept in float32."""


class PastBeliefs:
    """s [B, K, V] and log Z [B, K] of the pass before, overwritten position by position."""

    def __init__(
        self, num_samples: int, num_positions: int, num_columns: int, device: torch.device
    ) -> None:
        dtype = torch.float32 if num_columns <= EXACT_COLUMNS else torch.float16
        self._num_samples = num_samples
        # Memory is taken when beliefs first come. Zeros, since a block's first pass computes a
        # divergence that is not used.
        self._s_BKV = torch.zeros(0, num_positions, num_columns, dtype=dtype, device=device)
        self._log_z_BK = torch.zeros(0, num_positions, device=device)

    @property
    def num_bytes(self) -> int:
        return self._s_BKV.nbytes + self._log_z_BK.nbytes

    def rows(self) -> tuple[Tensor, Tensor]:
        """s [B·K, V] and log Z [B·K], to be overwritten in place."""
        self._take_memory()
        return self._s_BKV.flatten(0, 1), self._log_z_BK.flatten()

    def kl_then_keep(self, belief: Belief, rows_N: Tensor) -> Tensor:
        """KL(p ‖ q) [N] in nats with q the belief kept at these rows of B·K, which p replaces.

        Of nearly equal beliefs the sum rounds to either side of 0; a threshold of 0 stays unmet.
        """
        s_RV, log_z_R = self.rows()
        p_NV, log_z_N = belief.p_NV, belief.log_z_N
        cross_N = log_z_R[rows_N] - (p_NV * s_RV[rows_N].float()).sum(-1)
        kept_NV = belief.s_NV.to(s_RV.dtype)
        if kept_NV.dtype != torch.float32:
            # Of a rounded belief: Σ exp(s + ε) is Z·(1 + Σ p·ε) to the first order.
            log_z_N = log_z_N + (p_NV * (kept_NV.float() - belief.s_NV)).sum(-1)
        s_RV[rows_N] = kept_NV
        log_z_R[rows_N] = log_z_N
        return (cross_N - belief.entropy_N).clamp(min=0)

    def log_beliefs_at(self, rows_N: Tensor) -> Tensor:
        """log q [N, V] in float32 of the pass before at these of the B·K rows, before it is
        replaced; of no meaning in a block's first pass."""
        s_RV, log_z_R = self.rows()
        return s_RV[rows_N].float() - log_z_R[rows_N, None]

    def log_beliefs(self, row: int, place_N: Tensor) -> Tensor:
        """log p [N, V] of the last pass at these positions of a sample's block, if it read them."""
        return self._s_BKV[row, place_N].float() - self._log_z_BK[row, place_N, None]

    def move(self, old: int, new: int) -> None:
        """Put a sample's beliefs into another row."""
        if len(self._s_BKV):
            self._s_BKV[new] = self._s_BKV[old]
            self._log_z_BK[new] = self._log_z_BK[old]

    def _take_memory(self) -> None:
        if not len(self._s_BKV):
            self._s_BKV = self._s_BKV.new_zeros(self._num_samples, *self._s_BKV.shape[1:])
            self._log_z_BK = self._log_z_BK.new_zeros(self._num_samples, *self._log_z_BK.shape[1:])
