"""LLaDA and Dream: how each family's `config.json` and tensor names read.

Knows nothing of files: a parsed `config.json` in, shapes, names and special ids out. A family
is told by `model_type` or `architectures`, never by a path's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lrd.models.transformer import TransformerConfig

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Family:
    """One published family of checkpoints."""

    name: str
    model_types: frozenset[str]
    architectures: frozenset[str]
    transformer_config: Callable[[Config], TransformerConfig]
    outer: Mapping[str, str]
    """Our parameter → the checkpoint's tensor, outside the blocks."""
    inner: Mapping[str, str]
    """The same inside a block, `{}` standing for the block's number."""
    eot_token: str
    """What ends a turn in the family's chat template."""

    def tensor_names(self, config: TransformerConfig) -> dict[str, str]:
        """Every parameter of our transformer → the tensor that must hold it."""
        names = {
            ours: theirs
            for ours, theirs in self.outer.items()
            if not (config.tied_head and ours.startswith("head."))
        }
        for ours, theirs in self.inner.items():
            if ours.endswith(".bias") and not config.qkv_bias:
                continue
            for layer in range(config.num_layers):
                names[f"blocks.{layer}.{ours}"] = theirs.format(layer)
        return names


def _field(config: Config, name: str) -> Any:
    if config.get(name) is None:
        raise ValueError(f"config.json has no '{name}'; it is needed to build the model")
    return config[name]


def _refuse(config: Config, **expected: Any) -> None:
    """Options of the original code that no release uses and this project does not build."""
    for name, value in expected.items():
        if name in config and config[name] not in (value, None):
            raise ValueError(
                f"config.json sets {name} = {config[name]!r}; only {value!r} is supported"
            )


def _llada_config(config: Config) -> TransformerConfig:
    _refuse(
        config,
        rope=True,
        rope_full_precision=True,
        alibi=False,
        layer_norm_type="rms",
        layer_norm_with_affine=True,
        attention_layer_norm=False,
        activation_type="silu",
        block_type="llama",
        block_group_size=1,
        include_bias=False,
        bias_for_layer_norm=False,
        input_emb_norm=False,
    )
    width, num_heads = _field(config, "d_model"), _field(config, "n_heads")
    num_kv_heads = config.get("n_kv_heads")
    if num_kv_heads is None:
        num_kv_heads = 1 if config.get("multi_query_attention") else num_heads
    mlp_width = config.get("mlp_hidden_size")
    return TransformerConfig(
        num_layers=_field(config, "n_layers"),
        width=width,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        mlp_width=mlp_width if mlp_width is not None else _field(config, "mlp_ratio") * width,
        table_rows=config.get("embedding_size") or _field(config, "vocab_size"),
        max_length=_field(config, "max_sequence_length"),
        rope_theta=_field(config, "rope_theta"),
        rms_norm_eps=_field(config, "rms_norm_eps"),
        qkv_bias=bool(config.get("include_qkv_bias")),
        tied_head=bool(config.get("weight_tying")),
        rope_in_float32=True,
        logit_scale=width**-0.5 if config.get("scale_logits") else 1.0,
    )


def _dream_config(config: Config) -> TransformerConfig:
    _refuse(config, hidden_act="silu", rope_scaling=None, use_sliding_window=False)
    return TransformerConfig(
        num_layers=_field(config, "num_hidden_layers"),
        width=_field(config, "hidden_size"),
        num_heads=_field(config, "num_attention_heads"),
        num_kv_heads=_field(config, "num_key_value_heads"),
        mlp_width=_field(config, "intermediate_size"),
        table_rows=_field(config, "vocab_size"),
        max_length=_field(config, "max_position_embeddings"),
        rope_theta=_field(config, "rope_theta"),
        rms_norm_eps=_field(config, "rms_norm_eps"),
        qkv_bias=True,
        tied_head=bool(config.get("tie_word_embeddings")),
        rope_in_float32=False,
        logit_shift=True,
    )


_LLADA_BLOCK = "model.transformer.blocks.{}."
LLADA = Family(
    name="llada",
    model_types=frozenset({"llada"}),
    architectures=frozenset({"LLaDAModelLM"}),
    transformer_config=_llada_config,
    outer={
        "embedding.weight": "model.transformer.wte.weight",
        "norm.weight": "model.transformer.ln_f.weight",
        "head.weight": "model.transformer.ff_out.weight",
    },
    inner={
        "attention_norm.weight": _LLADA_BLOCK + "attn_norm.weight",
        "query.weight": _LLADA_BLOCK + "q_proj.weight",
        "key.weight": _LLADA_BLOCK + "k_proj.weight",
        "value.weight": _LLADA_BLOCK + "v_proj.weight",
        "query.bias": _LLADA_BLOCK + "q_proj.bias",
        "key.bias": _LLADA_BLOCK + "k_proj.bias",
        "value.bias": _LLADA_BLOCK + "v_proj.bias",
        "output.weight": _LLADA_BLOCK + "attn_out.weight",
        "mlp_norm.weight": _LLADA_BLOCK + "ff_norm.weight",
        "gate.weight": _LLADA_BLOCK + "ff_proj.weight",
        "up.weight": _LLADA_BLOCK + "up_proj.weight",
        "down.weight": _LLADA_BLOCK + "ff_out.weight",
    },
    eot_token="<|eot_id|>",
)

_DREAM_BLOCK = "model.layers.{}."
DREAM = Family(
    name="dream",
    model_types=frozenset({"dream"}),
    architectures=frozenset({"DreamModel"}),
    transformer_config=_dream_config,
    outer={
        "embedding.weight": "model.embed_tokens.weight",
        "norm.weight": "model.norm.weight",
        "head.weight": "lm_head.weight",
    },
    inner={
        "attention_norm.weight": _DREAM_BLOCK + "input_layernorm.weight",
        "query.weight": _DREAM_BLOCK + "self_attn.q_proj.weight",
        "key.weight": _DREAM_BLOCK + "self_attn.k_proj.weight",
        "value.weight": _DREAM_BLOCK + "self_attn.v_proj.weight",
        "query.bias": _DREAM_BLOCK + "self_attn.q_proj.bias",
        "key.bias": _DREAM_BLOCK + "self_attn.k_proj.bias",
        "value.bias": _DREAM_BLOCK + "self_attn.v_proj.bias",
        "output.weight": _DREAM_BLOCK + "self_attn.o_proj.weight",
        "mlp_norm.weight": _DREAM_BLOCK + "post_attention_layernorm.weight",
        "gate.weight": _DREAM_BLOCK + "mlp.gate_proj.weight",
        "up.weight": _DREAM_BLOCK + "mlp.up_proj.weight",
        "down.weight": _DREAM_BLOCK + "mlp.down_proj.weight",
    },
    eot_token="<|im_end|>",
)

FAMILIES = (LLADA, DREAM)


def family_of(config: Config) -> Family:
    """The family that a `config.json` belongs to.

    Raises ValueError for any other architecture, naming those that are supported.
    """
    named = {str(config.get("model_type", "")).lower()}, set(config.get("architectures") or ())
    for family in FAMILIES:
        if named[0] & family.model_types or named[1] & family.architectures:
            return family
    supported = ", ".join(
        f"{family.name} ({'/'.join(sorted(family.architectures))})" for family in FAMILIES
    )
    raise ValueError(
        f"config.json names model_type {config.get('model_type')!r}, architectures "
        f"{config.get('architectures')!r}; supported families are {supported}"
    )
