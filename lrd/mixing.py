"""What open positions are fed next: the seam of all mixing rules (`mix`).

Each gives the share of token embeddings and their mean; `decoding.next_inputs` mixes them with the
embedding of [MASK] (Eq. 3).

Legend: n positions of a chunk, V columns of the logits, D width, k candidates.
"""

from __future__ import annotations

from torch import Tensor

from lrd import belief_ops, beliefs, nucleus
from lrd.config import DecodingConfig
from lrd.decoders.rule import Chunk


def mixture(
    config: DecodingConfig,
    chunk: Chunk,
    table_VD: Tensor,
    nuclei: belief_ops.Nuclei | None,
    fixed_shapes: bool,
) -> tuple[Tensor, Tensor]:
    """Share [n] of the token embeddings in the next input, and their mean [n, D] in the table's
    dtype. nuclei: Eq. 3's, where kernels have found them; the logits are then overwritten."""
    weight_n = beliefs.mix_weight(chunk.belief.entropy_N, table_VD.shape[0], config.r_f)
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
