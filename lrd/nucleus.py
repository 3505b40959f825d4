"""T of Eq. 3, the smallest set of most probable tokens whose mass reaches top_p, without a sort.

Beliefs in, renormalised beliefs or expected embeddings out.
Among equal probabilities the lower id comes first, and the top token is always in T.

Legend: N positions, V vocabulary, D width, k candidates.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

FIRST_CANDIDATES = 128
"""Beliefs of trained models reach top_p with fewer tokens, nearly always."""
GROUP = 64
"""Tokens that share a maximum. A large vocabulary's maxima are found in one vectorised pass,
and its top k tokens lie in the k groups of largest maxima."""

LARGEST_ELEMENTS = 1 << 18
"""Maxima or candidates that `largest` orders at a time."""
LARGEST_BYTES = 48 * LARGEST_ELEMENTS
"""What it takes for that."""

FEWEST_ROWS = 4
"""A CPU multiplies fewer rows by other kernels, which round otherwise: what a position gets
would depend on how many it is computed with."""


def enough_rows(rows_N: Tensor) -> Tensor:
    """Indices, the first one repeated where there are some but fewer than `FEWEST_ROWS`."""
    if not 0 < len(rows_N) < FEWEST_ROWS:
        return rows_N
    return torch.cat([rows_N, rows_N[:1].expand(FEWEST_ROWS - len(rows_N))])


def nucleus(p_NV: Tensor, top_p: float) -> Tensor:
    """p̄ [N, V]: beliefs renormalised on T; 0 outside.

    The smallest probability in T by bisection over a float's bits, whose order as integers is
    that of the numbers: 31 masked sums of fixed shape, and nothing is read on the host.
    """
    if top_p >= 1:
        return p_NV  # A sum may round to 1 before the last token.
    top_p = max(top_p, 1e-30)  # The top token is in T even where top_p is 0.
    low_N1 = torch.zeros_like(p_NV[:, :1]).view(torch.int32)
    high_N1 = p_NV.amax(-1, keepdim=True).view(torch.int32) + 1
    for _ in range(31):
        middle_N1 = low_N1 + (high_N1 - low_N1) // 2
        reached_N1 = _mass(p_NV, torch.ge, middle_N1.view(torch.float32)) >= top_p
        low_N1 = torch.where(reached_N1, middle_N1, low_N1)
        high_N1 = torch.where(reached_N1, high_N1, middle_N1)
    # Of the tokens at the edge the first ones belong to T, until the mass is reached.
    edge_N1 = low_N1.view(torch.float32)
    at_edge_NV = _compared(p_NV, torch.eq, edge_N1)
    before_NV = _mass(p_NV, torch.gt, edge_N1) + (at_edge_NV.cumsum(-1) - 1) * edge_N1
    first_NV = _compared(before_NV, torch.lt, torch.full_like(edge_N1, top_p)).mul_(at_edge_NV)
    kept_NV = _compared(p_NV, torch.gt, edge_N1).add_(first_NV).mul_(p_NV)
    return kept_NV / kept_NV.sum(-1, keepdim=True)


def _mass(p_NV: Tensor, compare: Callable[..., Tensor], edge_N1: Tensor) -> Tensor:
    return _compared(p_NV, compare, edge_N1).mul_(p_NV).sum(-1, keepdim=True)


def _compared(x_NV: Tensor, compare: Callable[..., Tensor], edge_N1: Tensor) -> Tensor:
    """1.0 and 0.0: floats throughout go through a CPU ten times as fast as booleans."""
    return compare(x_NV, edge_N1, out=torch.empty_like(x_NV))


def expected_embedding(
    p_NV: Tensor, token_N: Tensor, top_p: float, table_VD: Tensor, fixed_shapes: bool = False
) -> Tensor:
    """Σ_v p̄(v)·e_v [N, D] in the table's dtype; token is each position's most probable one.

    Positions are taken by the size of their nuclei: one token, then as few candidates as
    suffice, and the whole table only where most of it is needed. With fixed shapes nothing is
    looked at, and one matrix product serves all.
    """
    if fixed_shapes or top_p >= 1:
        return nucleus(p_NV, top_p).to(table_VD.dtype) @ table_VD
    expected_ND = table_VD[token_N]
    alone_N = p_NV.gather(-1, token_N[:, None])[:, 0] >= top_p
    left = (~alone_N).nonzero()[:, 0]
    V = p_NV.shape[1]
    k = min(FIRST_CANDIDATES, -(-V // 16))
    while len(left):
        if 2 * k > V:
            left = enough_rows(left)
            expected_ND[left] = nucleus(p_NV[left], top_p).to(table_VD.dtype) @ table_VD
            break
        ids_Nk, weight_Nk, proven_N = nucleus_of_top_k(p_NV[left], top_p, k)
        weight_Nk = weight_Nk[proven_N].to(table_VD.dtype)
        largest = max([1, *(weight_Nk > 0).sum(-1).tolist()])
        expected_ND[left[proven_N]] = F.embedding_bag(
            ids_Nk[proven_N, :largest].contiguous(),
            table_VD,
            mode="sum",
            per_sample_weights=weight_Nk[:, :largest].contiguous(),
        )
        left = left[~proven_N]
        k *= 8
    return expected_ND


def nucleus_of_top_k(p_NV: Tensor, top_p: float, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids [N, k] and weights p̄ [N, k] of the top k tokens in order, and where they prove to hold
    T [N].

    They do where the mass is reached before the last of them, and that one is less probable
    than all of T: no other token can then belong to T, equal ones included.
    """
    value_Nk, id_Nk = top_k(p_NV, k)
    # One integer orders by probability, then by the lower id.
    key_Nk = (value_Nk.view(torch.int32).long() << 32) | (_LARGEST - id_Nk)
    key_Nk = key_Nk.sort(dim=-1, descending=True).values
    value_Nk = (key_Nk >> 32).int().view(torch.float32)
    inside_Nk = (value_Nk.cumsum(-1) - value_Nk) < top_p
    inside_Nk[:, 0] = True
    weight_Nk = value_Nk * inside_Nk
    smallest_N = value_Nk.masked_fill(~inside_Nk, 2).amin(-1)
    proven_N = ~inside_Nk[:, -1] & (value_Nk[:, -1] < smallest_N)
    id_Nk = _LARGEST - (key_Nk & _LARGEST)
    return id_Nk, weight_Nk / weight_Nk.sum(-1, keepdim=True), proven_N


_LARGEST = 2**32 - 1


def top_k(p_NV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values [N, k] and their ids, in no order; which of equals is not said."""
    N, V = p_NV.shape
    size = GROUP
    while size > 1 and 4 * k > V // size:
        size //= 4
    if not has_groups(V) or size == 1:
        return p_NV.topk(k, dim=-1, sorted=False)
    grouped_NGg = p_NV.view(N, V // size, size)
    group_Nk = grouped_NGg.amax(-1).topk(k, dim=-1, sorted=False).indices
    candidate_Nkg = grouped_NGg.gather(1, group_Nk[..., None].expand(-1, -1, size))
    value_Nk, place_Nk = candidate_Nkg.view(N, -1).topk(k, dim=-1, sorted=False)
    return value_Nk, group_Nk.gather(1, place_Nk // size) * size + place_Nk % size


def largest(x_NV: Tensor, k: int) -> Tensor:
    """Ids [N, k] of the k largest values in order, of equals the lower id first.

    Of groups of tokens too: the k tokens lie in the k groups of largest maxima, of equals the
    first ones. So little more is done of a row than to look for its groups' maxima.
    """
    a_row = max(k * GROUP, x_NV.shape[1] // GROUP)
    num_parts = -(-len(x_NV) * a_row // LARGEST_ELEMENTS) or 1
    return torch.cat([_largest(x_nV, k) for x_nV in x_NV.tensor_split(num_parts)])


def _largest(x_NV: Tensor, k: int) -> Tensor:
    (N, V), device = x_NV.shape, x_NV.device
    if k * GROUP >= V:
        return _keys(x_NV, torch.arange(V, device=device)).topk(k, dim=-1).indices
    num_groups = V // GROUP
    maxima_NG = x_NV[:, : num_groups * GROUP].view(N, num_groups, GROUP).amax(-1)
    group_Nk = _keys(maxima_NG, torch.arange(num_groups, device=device)).topk(k, dim=-1).indices
    id_Nc = (group_Nk[..., None] * GROUP + torch.arange(GROUP, device=device)).flatten(1)
    rest_Nr = torch.arange(num_groups * GROUP, V, device=device).expand(N, -1)
    id_Nc = torch.cat([id_Nc, rest_Nr], dim=1)
    place_Nk = _keys(x_NV.gather(1, id_Nc), id_Nc).topk(k, dim=-1).indices
    return id_Nc.gather(1, place_Nk)


def _keys(x_NV: Tensor, id_NV: Tensor) -> Tensor:
    """Integers in the order of the numbers, of equals the lower id above the higher one."""
    key_NV = (x_NV.float() + 0.0).view(torch.int32).long()  # −0 and 0 are equals.
    key_NV ^= (key_NV >> 63) & 0x7FFFFFFF
    key_NV <<= 32
    key_NV += _LARGEST - id_NV
    return key_NV


def has_groups(num_columns: int) -> bool:
    """Whether a row of so many columns is worth taking apart, and falls into whole groups."""
    return num_columns >= 64 * GROUP and num_columns % GROUP == 0


def argmax(x_NV: Tensor) -> Tensor:
    """Ids [N] of the largest values, the lowest among equals (a plain argmax takes 5 passes)."""
    N, V = x_NV.shape
    if x_NV.device.type != "cpu" or not has_groups(V):
        return x_NV.argmax(-1)
    grouped_NGg = x_NV.view(N, V // GROUP, GROUP)
    group_N = grouped_NGg.amax(-1).argmax(-1)
    best_Ng = grouped_NGg[torch.arange(N), group_N]
    return group_N * GROUP + best_Ng.argmax(-1)
