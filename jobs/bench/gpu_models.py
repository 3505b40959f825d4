"""LLaDA-8B's and Dream-7B's shapes with random weights, and the arithmetic of their passes.

For measuring a GPU without a checkpoint (`jobs.bench.gpu`), and for counting without a GPU
(`jobs.bench.predict`).
"""

from __future__ import annotations

import dataclasses

import torch

from lrd.config import Compile, DecodingConfig
from lrd.models.checkpoint import LoadedModel
from lrd.models.transformer import Transformer, TransformerConfig

MODELS = {
    "llada-8b": TransformerConfig(32, 4096, 32, 32, 12_288, 126_464, 4096, 5e5, 1e-5),
    "dream-7b": TransformerConfig(
        *(28, 3584, 28, 4, 18_944, 152_064, 131_072, 1e6, 1e-6),
        qkv_bias=True,
        rope_in_float32=False,
        logit_shift=True,
    ),
}
BLOCKS = {"llada-8b": 32, "dream-7b": None}
"""Tokens of a block as published: LLaDA Instruct decodes in blocks, Dream the whole canvas."""
PASSES_A_BLOCK = 10
"""Where answers mean nothing: latent refinement takes 5 to 15 with published thresholds."""
BASELINE = DecodingConfig.preset("baseline", stop_at_eos=False)
REFINED = DecodingConfig.preset("baseline", stop_at_eos=False, r_f=0.15, top_p=0.9)
"""Both commit one position a pass, so that their passes have equally many open positions."""


def num_flops(config: TransformerConfig, positions: int, keys: int, num_read: int) -> int:
    """Floating point operations of forward passes, two for a multiply-add: matrix products alone.

    positions: columns that are fed, each of which attends to `keys`. The last block's output and
    MLP run for the `num_read` positions that are read, as the head.
    """
    D, kv = config.width, config.width // config.num_heads * config.num_kv_heads
    into = 2 * positions * D * (D + 2 * kv) + 4 * positions * keys * D
    out_of_one = 2 * D * D + 6 * D * config.mlp_width
    through = ((config.num_layers - 1) * positions + num_read) * out_of_one
    return config.num_layers * into + through + 2 * num_read * D * config.table_rows


def random_model(config: TransformerConfig, device: str, compile: Compile) -> LoadedModel:
    """Random weights, made on the device in bfloat16; logits have a deviation of 5."""
    with torch.device("meta"):
        transformer = Transformer(config).to(torch.bfloat16).requires_grad_(False).eval()
    transformer.fuse()
    transformer.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for name, weight in transformer.named_parameters():
        if weight.dim() == 1:
            weight.fill_(0 if name.endswith("bias") else 1)
            continue
        scale = 1 if name.startswith("embedding") else weight.shape[1] ** -0.5
        weight.normal_(std=5 * scale if name.startswith("head") else scale, generator=generator)
    ids = {"mask_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return LoadedModel(transformer, ids, None, compile=compile)


def small(config: TransformerConfig) -> TransformerConfig:
    """A shape in the same proportions that a CPU passes in milliseconds."""
    shared = config.num_kv_heads < config.num_heads
    return dataclasses.replace(
        config,
        num_layers=2,
        width=64,
        num_heads=4,
        num_kv_heads=2 if shared else 4,
        mlp_width=96,
        table_rows=2048,
    )
