"""Checkpoints made in tests: the true configurations, small ones, files with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lrd.models.checkpoint import LoadedModel
from lrd.models.families import family_of
from lrd.models.transformer import Transformer

LLADA_8B = {
    "model_type": "llada",
    "architectures": ["LLaDAModelLM"],
    "d_model": 4096,
    "n_layers": 32,
    "n_heads": 32,
    "n_kv_heads": 32,
    "mlp_hidden_size": 12288,
    "mlp_ratio": 4,
    "rope_theta": 500000.0,
    "max_sequence_length": 4096,
    "vocab_size": 126464,
    "embedding_size": 126464,
    "rms_norm_eps": 1e-5,
    "weight_tying": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "mask_token_id": 126336,
    "eos_token_id": 126081,
    "pad_token_id": 126081,
}
DREAM_7B = {
    "model_type": "Dream",
    "architectures": ["DreamModel"],
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 131072,
    "vocab_size": 152064,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "mask_token_id": 151666,
    "eos_token_id": 151643,
    "pad_token_id": 151643,
}
SMALL_LLADA = {
    **LLADA_8B,
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 4,
    "mlp_hidden_size": 48,
    "vocab_size": 40,
    "embedding_size": 48,
    "max_sequence_length": 64,
    "mask_token_id": 39,
    "eos_token_id": 38,
    "pad_token_id": 38,
}
SMALL_DREAM = {
    **DREAM_7B,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 48,
    "max_position_embeddings": 64,
    "mask_token_id": 39,
    "eos_token_id": 38,
    "pad_token_id": 38,
}
SMALL = {"llada": SMALL_LLADA, "dream": SMALL_DREAM}


def stored_shapes(config: dict[str, Any]) -> dict[str, list[int]]:
    """The checkpoint's tensor → shape that a configuration implies, from our own transformer."""
    family = family_of(config)
    with torch.device("meta"):
        transformer = Transformer(family.transformer_config(config))
    names = family.tensor_names(transformer.config)
    return {names[ours]: list(p.shape) for ours, p in transformer.named_parameters()}


def random_tensors(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) * 0.3 + (len(shape) == 1)
        for name, shape in stored_shapes(config).items()
    }


def write(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def shard(folder: Path, tensors: dict[str, torch.Tensor], count: int) -> None:
    """The same tensors in `count` files and an index, as large releases come."""
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number in range(count):
        name = f"model-{number + 1:05}-of-{count:05}.safetensors"
        part = {key: tensors[key] for key in sorted(tensors)[number::count]}
        save_file(part, folder / name)
        weight_map.update(dict.fromkeys(part, name))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def logits_of(model: LoadedModel) -> torch.Tensor:
    return model.logits(model.embed(torch.arange(12).view(2, 6)))
