"""The forward pass with shadow columns: a masked copy of the block beside the canvas (WINO).

K more columns hold [MASK] at the positions of the block. Prompt and canvas see each other and no
shadow; shadow i sees the prompt, the canvas but for its own position, and all shadows. So it says
what the model holds of a committed token without that token.

Legend: B samples, L columns of prompt and canvas, K positions of the block, C columns that are fed:
L, K shadows, and up to 7 of no meaning; R rows that go through the model together, D width, N of
the B·K positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lrd import nucleus
from lrd.block_cache import CACHED_POSITIONS
from lrd.canvases import Canvases
from lrd.models.protocol import CachedModel

ALIGNED = 8
"""CUDA's attention copies a mask in every layer whose rows are not a multiple of so many places."""


def states(model: CachedModel, state: Canvases, column_BK: Tensor, rows_N: Tensor) -> Tensor:
    """The states [N, D] at these of the B·K positions: of the canvas where they are open, of their
    shadows where they are committed."""
    B, L, _ = state.embeds_BLD.shape
    K = column_BK.shape[1]
    C = -(-(L + K) // ALIGNED) * ALIGNED
    is_open_BK = _is_open(model, state, column_BK)
    at_BK = torch.where(is_open_BK, column_BK, torch.arange(L, L + K, device=column_BK.device))
    if state.fixed_shapes:
        return _states(model, state, column_BK, at_BK, slice(0, B), rows_N, C)
    parts = []
    per_part = max(1, CACHED_POSITIONS * torch.get_num_threads() // C)
    for first in range(0, B, per_part):
        rows = slice(first, min(first + per_part, B))
        inside_N = (rows_N >= rows.start * K) & (rows_N < rows.stop * K)
        own_n = rows_N[inside_N] - rows.start * K
        enough_n = nucleus.enough_rows(own_n)
        found_nD = _states(model, state, column_BK, at_BK, rows, enough_n, C)
        parts.append(found_nD[: len(own_n)])
    return torch.cat(parts)


def _is_open(model: CachedModel, state: Canvases, column_BK: Tensor) -> Tensor:
    ids_BK = state.canvas_BG.gather(1, column_BK - state.start_B[:, None])
    return ids_BK == model.mask_id


def _states(
    model: CachedModel,
    state: Canvases,
    column_BK: Tensor,
    at_BK: Tensor,
    rows: slice,
    rows_N: Tensor,
    num_columns: int,
) -> Tensor:
    """The same of these rows of the canvases, at these of their R·K positions."""
    column_RK, embeds_RLD = column_BK[rows], state.embeds_BLD[rows]
    R, L, D = embeds_RLD.shape
    extra = num_columns - L
    masked_RED = model.embedding_table[model.mask_id].expand(R, extra, D)
    first_R1 = (state.start_B - state.prompt_B)[rows, None]
    columns_RL = torch.arange(L, device=column_RK.device).expand(R, L)
    columns_RC = F.pad(torch.cat([columns_RL, column_RK], dim=1), (0, extra - column_RK.shape[1]))
    positions_RC = (columns_RC - first_R1).clamp(min=0)
    mask_RCC = shadow_mask(state.attention_mask_BL[rows].bool(), column_RK, num_columns)
    at_N = torch.arange(R, device=column_RK.device)[:, None] * num_columns + at_BK[rows]
    return model.hidden_kept(
        torch.cat([embeds_RLD, masked_RED], dim=1),
        positions_RC,
        L,
        mask_RCC,
        at_N.flatten()[rows_N],
        None,
    )


def shadow_mask(real_RL: Tensor, column_RK: Tensor, num_columns: int) -> Tensor:
    """Which columns [R, C, C] each column attends to; those behind the shadows, like padding, are
    attended to by none."""
    R, L = real_RL.shape
    K = column_RK.shape[1]
    mask_RCC = real_RL.new_zeros(R, num_columns, num_columns)
    mask_RCC[:, :, :L] = real_RL[:, None, :]
    shadows = slice(L, L + K)
    mask_RCC[:, shadows, shadows] = True
    mask_RCC[:, shadows, :L].scatter_(2, column_RK[:, :, None], False)
    return mask_RCC
