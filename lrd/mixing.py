"""What open positions are fed next: the seam of all mixing rules (`mix`).

Each gives the share of token embeddings and their mean; `decoding.next_inputs` mixes them with the
embedding of [MASK] (Eq. 3).

Legend: n positions of a chunk, V columns of the logits, D width, k candidates.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lrd import belief_ops, beliefs, nucleus
from lrd.config import DecodingConfig
from lrd.decoders.rule import Chunk

REMIX_TOKENS = 50
"""Most probable tokens that ReMix's nucleus is taken from."""
REMIX_MASS = (0.2, 0.9)
"""Bounds of its mass, which is twice the largest probability."""


def mixture(
    config: DecodingConfig,
    chunk: Chunk,
    table_VD: Tensor,
    nuclei: belief_ops.Nuclei | None,
    fixed_shapes: bool,
) -> tuple[Tensor, Tensor]:
    """Share [n] of the token embeddings in the next input, and their mean [n, D] in the table's
    dtype. nuclei: Eq. 3's, where kernels have found them; the logits are then overwritten."""
    if config.mix == "remix":
        return _by_mass(config, chunk, table_VD)
    weight_n = beliefs.mix_weight(chunk.belief.entropy_N, table_VD.shape[0], config.r_f)
    if config.mix == "topk":
        ids_nk, p_nk = _most_probable(chunk, config.mix_top_k)
        return weight_n, _mean_embedding(ids_nk, p_nk, table_VD)
    if nuclei is not None:
        expected_nD = belief_ops.expected_embedding(
            chunk.logits_nV, nuclei, table_VD, chunk.mask_id
        )
        return weight_n, expected_nD
    assert isinstance(chunk.belief, beliefs.Belief)
    expected_nD = nucleus.expected_embedding(
        chunk.belief.p_NV, chunk.belief.token_N, config.top_p, table_VD, fixed_shapes
    )
    return weight_n, expected_nD


def _by_mass(config: DecodingConfig, chunk: Chunk, table_VD: Tensor) -> tuple[Tensor, Tensor]:
    """ReMix's: the longest prefix of the most probable tokens whose mass stays within a bound, the
    first in any case; weighted by its mass."""
    ids_nk, p_nk = _most_probable(chunk, REMIX_TOKENS)
    bound_n1 = (2 * p_nk[:, :1]).clamp(*REMIX_MASS)
    inside_nk = p_nk.cumsum(-1) <= bound_n1
    inside_nk[:, 0] = True
    p_nk = p_nk * inside_nk
    return config.mix_share * p_nk.sum(-1), _mean_embedding(ids_nk, p_nk, table_VD)


def _most_probable(chunk: Chunk, k: int) -> tuple[Tensor, Tensor]:
    """Ids and probabilities [n, k] in order."""
    ids_nk = chunk.top(k)
    return ids_nk, chunk.log_p(ids_nk).exp()


def _mean_embedding(ids_nk: Tensor, p_nk: Tensor, table_VD: Tensor) -> Tensor:
    """Σ p·e / Σ p [n, D], in the table's dtype."""
    weight_nk = (p_nk / p_nk.sum(-1, keepdim=True)).to(table_VD.dtype)
    return F.embedding_bag(ids_nk, table_VD, mode="sum", per_sample_weights=weight_nk)
