"""LLaDA and Dream: how each family's `config.json` and tensor names read.

A parsed `config.json` in, shapes, names and special ids out. A family is recognised by
`model_type` or `architectures`, never by a path's name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from lrd.models.files import validated
from lrd.models.transformer import TransformerConfig

Config = Mapping[str, Any]

PLAIN_ROPE: Mapping[str, tuple[Any, ...]] = {
    "rope": (True,),
    "rope_full_precision": (True,),
    "rope_type": ("default",),
    "type": ("default",),
    "partial_rotary_factor": (1,),
}
"""Settings of RoPE beside its base, and their values that change nothing."""


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

    @property
    def twins(self) -> dict[str, str]:
        """Tensors that a file may hold where they are not needed → those that they must equal: the
        head of a tied model."""
        return {self.outer["head.weight"]: self.outer["embedding.weight"]}


Size = Annotated[int, Field(gt=0, le=2**28)]
Layers = Annotated[int, Field(gt=0, le=1000)]
Epsilon = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Fields(BaseModel):
    """Fields of a `config.json` that are read, of exactly their JSON types."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class _Named(_Fields):
    model_type: str = ""
    architectures: list[str] = []


class _LLaDAFields(_Fields):
    d_model: Size
    n_layers: Layers
    n_heads: Size
    n_kv_heads: Size | None = None
    multi_query_attention: bool = False
    mlp_hidden_size: Size | None = None
    mlp_ratio: Size | None = None
    embedding_size: Annotated[int, Field(ge=0, le=2**28)] = 0
    vocab_size: Size | None = None
    max_sequence_length: Size
    rms_norm_eps: Epsilon
    include_qkv_bias: bool = False
    weight_tying: bool = False
    scale_logits: bool = False


class _DreamFields(_Fields):
    hidden_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    num_key_value_heads: Size
    intermediate_size: Size
    vocab_size: Size
    max_position_embeddings: Size
    rms_norm_eps: Epsilon
    tie_word_embeddings: bool = False


def _needed(value: int | None, name: str) -> int:
    if value is None:
        raise ValueError(f"config.json: no '{name}'; it is needed to build the model")
    return value


def _refuse(config: Config, **expected: Any) -> None:
    """Options of the original code that no release uses and this project does not build."""
    for name, value in expected.items():
        if name in config and config[name] not in (value, None):
            raise ValueError(
                f"config.json sets {name} = {config[name]!r}; only {value!r} is supported"
            )


def rope_theta(config: Config) -> float:
    """RoPE's base, from `rope_theta` or from transformers 5's `rope_parameters`.

    Raises ValueError where there is none, where two differ, and for every other setting of RoPE
    (scaling, partial rotation): plain RoPE is what is built.
    """
    found: dict[str, Any] = {}
    for path, value in _rope_settings(config):
        name = path.rpartition(".")[2]
        if name == "rope_theta":
            found[path] = value
        elif value not in PLAIN_ROPE.get(name, (False,)):
            raise ValueError(
                f"config.json sets {path} = {value!r}, which is not built: RoPE is plain here "
                "(rope_type 'default'); use a checkpoint without it"
            )
    if not found:
        raise ValueError("config.json: no 'rope_theta'; it is needed to build the model")
    for path, value in found.items():
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise ValueError(f"config.json: {path} is {value!r}; expected a number above 0")
    if len(set(found.values())) > 1:
        stated = " and ".join(f"{path} = {value!r}" for path, value in found.items())
        raise ValueError(f"config.json sets {stated}; keep the one the model was trained with")
    return next(iter(found.values()))  # type: ignore[no-any-return]


def _rope_settings(config: Config) -> Iterator[tuple[str, Any]]:
    """Every setting of RoPE that is not null, by its path."""
    for name, value in config.items():
        if value is None or not re.search("rope|rotary", name):
            continue
        if name not in ("rope_parameters", "rope_scaling"):
            yield name, value
        elif not isinstance(value, dict):
            raise ValueError(f"config.json: {name} is {value!r}; expected an object")
        else:
            yield from ((f"{name}.{key}", v) for key, v in value.items() if v is not None)


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
    c = validated(_LLaDAFields, config, "config.json")
    num_kv_heads = c.n_kv_heads or (1 if c.multi_query_attention else c.n_heads)
    return TransformerConfig(
        num_layers=c.n_layers,
        width=c.d_model,
        num_heads=c.n_heads,
        num_kv_heads=num_kv_heads,
        mlp_width=c.mlp_hidden_size or _needed(c.mlp_ratio, "mlp_ratio") * c.d_model,
        table_rows=c.embedding_size or _needed(c.vocab_size, "vocab_size"),
        max_length=c.max_sequence_length,
        rope_theta=rope_theta(config),
        rms_norm_eps=c.rms_norm_eps,
        qkv_bias=c.include_qkv_bias,
        tied_head=c.weight_tying,
        rope_in_float32=True,
        logit_scale=c.d_model**-0.5 if c.scale_logits else 1.0,
    )


def _dream_config(config: Config) -> TransformerConfig:
    _refuse(config, hidden_act="silu", use_sliding_window=False)
    c = validated(_DreamFields, config, "config.json")
    return TransformerConfig(
        num_layers=c.num_hidden_layers,
        width=c.hidden_size,
        num_heads=c.num_attention_heads,
        num_kv_heads=c.num_key_value_heads,
        mlp_width=c.intermediate_size,
        table_rows=c.vocab_size,
        max_length=c.max_position_embeddings,
        rope_theta=rope_theta(config),
        rms_norm_eps=c.rms_norm_eps,
        qkv_bias=True,
        tied_head=c.tie_word_embeddings,
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
    named = validated(_Named, config, "config.json")
    for family in FAMILIES:
        is_type = named.model_type.lower() in family.model_types
        if is_type or family.architectures.intersection(named.architectures):
            return family
    supported = ", ".join(
        f"{family.name} ({'/'.join(sorted(family.architectures))})" for family in FAMILIES
    )
    raise ValueError(
        f"config.json names model_type {config.get('model_type')!r}, architectures "
        f"{config.get('architectures')!r}; supported families are {supported}"
    )
