"""A small transformer with random weights; what it writes is noise, but never near-uniform noise.

Weights come from a seed.
"""

from __future__ import annotations

from typing import Any

import torch

from lrd.models.checkpoint import LoadedModel
from lrd.models.transformer import Transformer, TransformerConfig

VOCABULARY = 48
MASK, EOS, PAD = 45, 46, 47

LIVELY: dict[str, Any] = {"seed": 9, "sharpness": 1.5, "eos_bias": 2.5, "logit_shift": True}
"""Arguments of a model whose samples take very different numbers of passes, some with an EOS."""


def random_model(
    seed: int,
    *,
    sharpness: float = 1.0,
    coupling: float = 1.0,
    eos_bias: float = 0.0,
    logit_shift: bool = False,
    max_length: int = 64,
    tokenizer: Any = None,
) -> LoadedModel:
    """A model of two layers, width 32.

    sharpness scales the head (beliefs from vague to sure), coupling the attention's and the
    MLP's outputs (how much a position depends on the others), eos_bias lifts EOS's logit by
    that many of its standard deviations.
    """
    config = TransformerConfig(
        num_layers=2,
        width=32,
        num_heads=4,
        num_kv_heads=2,
        mlp_width=48,
        table_rows=VOCABULARY,
        max_length=max_length,
        rope_theta=100.0,
        rms_norm_eps=1e-6,
        logit_shift=logit_shift,
    )
    transformer = Transformer(config).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, weight in transformer.named_parameters():
        if weight.dim() == 1:
            continue  # norms stay 1
        scale = weight.shape[1] ** -0.5
        if "embedding" in name:
            scale = 1.0
        elif name.startswith("head"):
            scale *= 2.0 * sharpness
        elif "output" in name or "down" in name:
            scale *= 2.0 * coupling
        weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    if eos_bias:
        # The final norm fixes the length of a hidden state; along its mean direction EOS gains.
        assert transformer.head is not None
        probe = torch.randint(0, PAD, (8, 24), generator=generator)
        hidden = transformer.hidden(transformer.embedding(probe)).mean((0, 1))
        transformer.head.weight[EOS] += eos_bias * hidden / hidden.norm()
    ids = {"mask_token_id": MASK, "eos_token_id": EOS, "pad_token_id": PAD}
    return LoadedModel(transformer, ids, tokenizer)
