"""The bidirectional transformer that LLaDA and Dream share: embeddings in, logits out.

What differs between the two families is in `TransformerConfig`, which `families.py` sets.

Legend: B samples, L positions, D width, V rows of the embedding table, H heads,
K kv heads, E width of a head, N chosen positions of B·L.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrd.models import w8a8
from lrd.models.kv_cache import Window


@dataclass(frozen=True, slots=True)
class TransformerConfig:
    """Shape and arithmetic of one model, in units of elements."""

    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    mlp_width: int
    table_rows: int
    """Rows of the embedding table and columns of the logits; may exceed the vocabulary."""
    max_length: int
    rope_theta: float
    rms_norm_eps: float
    qkv_bias: bool = False
    tied_head: bool = False
    rope_in_float32: bool = True
    """LLaDA rotates in float32 and casts back; Dream casts cos and sin, then rotates."""
    logit_shift: bool = False
    """Dream: position i is predicted from the hidden state of i - 1."""
    logit_scale: float = 1.0

    def cache_shape(self, num_positions: int) -> tuple[int, int, int, int]:
        """Of one row's keys, and of its values: layers, positions, kv heads, width of a head."""
        return self.num_layers, num_positions, self.num_kv_heads, self.width // self.num_heads

    def __post_init__(self) -> None:
        if self.width % self.num_heads or self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"width {self.width}, {self.num_heads} heads and {self.num_kv_heads} kv heads do "
                "not divide evenly; fix the checkpoint's config.json"
            )
        if self.width // self.num_heads % 2:
            raise ValueError(
                f"width {self.width} and {self.num_heads} heads give heads of an odd width, which "
                "RoPE cannot rotate; fix the checkpoint's config.json"
            )


class RMSNorm(nn.Module):
    """Statistics in float32, cast back, then times the weight (both families)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x_BLD: Tensor) -> Tensor:
        x32 = x_BLD.float()
        x32 = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * x32.to(x_BLD.dtype)


def rotary_table(positions_BL: Tensor, head_width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine [B, 1, L, E] in float32 of the half-split rotary embedding."""
    exponent = torch.arange(0, head_width, 2, device=positions_BL.device).float() / head_width
    angle = positions_BL.float()[:, None, :, None] * theta**-exponent
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rotate(x_BHLE: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x·cos + rotate_half(x)·sin in the dtype of cos and sin, cast back to x's."""
    x = x_BHLE.to(cos.dtype)
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x_BHLE.dtype)


def attention(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None) -> Tensor:
    """Every query over every real key: [B, H, L, E] and two [B, K, L, E] to [B, H, L, E]."""
    if key_mask is not None and query.device.type != "cpu":
        # CUDA's kernel for masks shares no kv heads; without this a plain one would do all.
        times = query.shape[1] // key.shape[1]
        if times > 1:
            key, value = (x.repeat_interleave(times, dim=1) for x in (key, value))
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=key_mask, enable_gqa=key.shape[1] != query.shape[1]
    )


Keep = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def attention_by_row(
    attend: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Sequence[tuple[int, int]],
) -> Tensor:
    """Each row's first queries over its first keys alone, without a mask; see
    `CachedModel.hidden_kept`. With a mask, sums would be rounded by the longest row's length."""
    attended = torch.empty_like(query)
    for row, (num_queries, num_keys) in enumerate(spans):
        own = slice(row, row + 1)
        attended[own, :, :num_queries] = attend(
            query[own, :, :num_queries], key[own, :, :num_keys], value[own, :, :num_keys], None
        )
        attended[own, :, num_queries:] = attended[own, :, num_queries - 1 : num_queries]
    return attended


class Block(nn.Module):
    """Pre-norm attention over all positions, then a SwiGLU MLP."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        c = config
        self.num_heads, self.num_kv_heads = c.num_heads, c.num_kv_heads
        self.attend: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor] = attention
        kv_width = c.width // c.num_heads * c.num_kv_heads
        self.attention_norm = RMSNorm(c.width, c.rms_norm_eps)
        self.query = nn.Linear(c.width, c.width, bias=c.qkv_bias)
        self.key = nn.Linear(c.width, kv_width, bias=c.qkv_bias)
        self.value = nn.Linear(c.width, kv_width, bias=c.qkv_bias)
        self.output = nn.Linear(c.width, c.width, bias=False)
        self.mlp_norm = RMSNorm(c.width, c.rms_norm_eps)
        self.gate = nn.Linear(c.width, c.mlp_width, bias=False)
        self.up = nn.Linear(c.width, c.mlp_width, bias=False)
        self.down = nn.Linear(c.mlp_width, c.width, bias=False)
        self.query_key_value: nn.Linear | None = None
        self.gate_up: nn.Linear | None = None

    def fuse(self) -> None:
        """One matrix product for query, key and value, and one for gate and up: for inference
        on a GPU, whose kernels gain by it. The names of the parameters are then no family's."""
        self.query_key_value = _joined(self.query, self.key, self.value)
        del self.query, self.key, self.value
        self.gate_up = _joined(self.gate, self.up)
        del self.gate, self.up

    def _attended(
        self,
        x_BLD: Tensor,
        cos: Tensor,
        sin: Tensor,
        key_mask: Tensor | None,
        keep: Keep | None,
        spans: Sequence[tuple[int, int]] | None,
    ) -> Tensor:
        query, key, value = self._project(self.attention_norm(x_BLD))
        key = rotate(key, cos, sin)
        if keep is not None:
            key, value = keep(key, value)
        query = rotate(query, cos, sin)
        if spans is not None:
            attended = attention_by_row(self.attend, query, key, value, spans)
        else:
            attended = self.attend(query, key, value, key_mask)
        return attended.transpose(1, 2).reshape(x_BLD.shape)

    def _project(self, h_BLD: Tensor) -> tuple[Tensor, ...]:
        """Queries [B, H, L, E], keys and values [B, K, L, E]."""
        B, L, D = h_BLD.shape
        if self.query_key_value is None:
            parts = self.query(h_BLD), self.key(h_BLD), self.value(h_BLD)
        else:
            kv_width = D // self.num_heads * self.num_kv_heads
            parts = self.query_key_value(h_BLD).split([D, kv_width, kv_width], dim=-1)
        return tuple(x.view(B, L, -1, D // self.num_heads).transpose(1, 2) for x in parts)

    def _rise(self, h: Tensor) -> Tensor:
        if self.gate_up is None:
            gate, up = self.gate(h), self.up(h)
        else:
            gate, up = self.gate_up(h).chunk(2, dim=-1)
        risen: Tensor = F.silu(gate) * up
        return risen

    def forward(
        self,
        x_BLD: Tensor,
        cos: Tensor,
        sin: Tensor,
        key_mask: Tensor | None,
        at_N: Tensor | None = None,
        keep: Keep | None = None,
        spans: Sequence[tuple[int, int]] | None = None,
    ) -> Tensor:
        """[B, L, D], or [N, D] at the flat positions [N] alone: all are attended to, but only
        these go on to the MLP. keep: takes the rotated keys and the values, and gives those that
        are attended to. spans: see `attention_by_row`."""
        x, attended = x_BLD, self._attended(x_BLD, cos, sin, key_mask, keep, spans)
        if at_N is not None:
            x, attended = x.flatten(0, 1)[at_N], attended.flatten(0, 1)[at_N]
        x = x + self.output(attended)
        del attended
        out: Tensor = x + self.down(self._rise(self.mlp_norm(x)))
        return out


def _joined(*layers: nn.Linear) -> nn.Linear:
    """One layer with the outputs of several, in their order."""
    packed = [layer for layer in layers if isinstance(layer, w8a8.W8A8Linear)]
    if packed:
        return w8a8.joined(packed)
    biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
    width_in, width_out = layers[0].in_features, sum(layer.out_features for layer in layers)
    joined = nn.Linear(width_in, width_out, bias=bool(biases), device="meta")
    joined.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]), False)
    if biases:
        joined.bias = nn.Parameter(torch.cat(biases), False)
    return joined


class Transformer(nn.Module):
    """Token embeddings, blocks without a causal mask, final norm, head."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        # On the meta device no weight is drawn: to try to would load torch's compiler, a second.
        shape = config.table_rows, config.width
        table = torch.empty(shape) if torch.get_default_device().type == "meta" else None
        self.embedding = nn.Embedding(*shape, _weight=table)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.width, config.rms_norm_eps)
        self._table: tuple[Tensor, Tensor] | None = None
        self.head: nn.Linear | None = None
        if not config.tied_head:
            self.head = nn.Linear(config.width, config.table_rows, bias=False)

    def hidden(
        self,
        embeds_BLD: Tensor,
        attention_mask_BL: Tensor | None = None,
        at_N: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states [B, L, D], or [N, D] at the flat positions b·L + l; unshifted.

        attention_mask [B, L]: 1 for real positions, 0 for padding on either side. Positions
        count from the first real one, so a padded row computes what it does alone.
        """
        B, L, _ = embeds_BLD.shape
        if attention_mask_BL is None:
            positions_BL = torch.arange(L, device=embeds_BLD.device)[None]
            key_mask = None
        else:
            assert attention_mask_BL.shape == (B, L)
            real_BL = attention_mask_BL.bool()
            positions_BL = (real_BL.long().cumsum(-1) - 1).clamp(min=0)
            key_mask = real_BL[:, None, None, :]
        self.prepare(L, embeds_BLD.device)
        cos, sin = self._rotary(positions_BL, embeds_BLD.dtype)
        x = embeds_BLD
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, cos, sin, key_mask, at_N if number == len(self.blocks) else None)
        normed: Tensor = self.norm(x)
        return normed

    def hidden_kept(
        self,
        embeds_RCD: Tensor,
        positions_RC: Tensor,
        num_positions: int,
        key_mask_RP: Tensor | None,
        at_N: Tensor,
        window: Window | None,
        spans: Sequence[tuple[int, int]] | None = None,
    ) -> Tensor:
        """Final hidden states [N, D] of some columns alone; see `CachedModel.hidden_kept`.

        Unshifted, as `hidden`.
        """
        self.prepare(num_positions, embeds_RCD.device)
        cos, sin = self._rotary(positions_RC, embeds_RCD.dtype)
        key_mask = None if key_mask_RP is None else key_mask_RP[:, None, None, :]
        x, last = embeds_RCD, len(self.blocks) - 1
        for number, block in enumerate(self.blocks):
            keep = None if window is None else partial(window.renew, number)
            x = block(x, cos, sin, key_mask, at_N if number == last else None, keep, spans)
        normed: Tensor = self.norm(x)
        return normed

    def fuse(self) -> None:
        """`Block.fuse` for all, one after the other: one block stands twice in memory at most."""
        for block in self.blocks:
            assert isinstance(block, Block)
            block.fuse()
        if self.embedding.weight.is_cuda:
            torch.cuda.empty_cache()

    def prepare(self, length: int, device: torch.device) -> None:
        """Make cosines and sines of so many positions once, before a pass needs them."""
        config, table = self.config, self._table
        if table is None or len(table[0]) < length or table[0].device != device:
            # An inference tensor could not serve in training.
            with torch.inference_mode(False):
                columns_1L = torch.arange(length, device=device)[None]
                cos, sin = rotary_table(
                    columns_1L, config.width // config.num_heads, config.rope_theta
                )
            self._table = cos[0, 0], sin[0, 0]

    def _rotary(self, positions_BL: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine [B, 1, L, E], looked up in the table."""
        assert self._table is not None
        cos, sin = (table_LE[positions_BL][:, None] for table_LE in self._table)
        if not self.config.rope_in_float32:
            cos, sin = cos.to(dtype), sin.to(dtype)
        return cos, sin

    def project(self, hidden_BCD: Tensor) -> Tensor:
        """Logits [B, C, V] of hidden states [B, C, D]."""
        logits: Tensor
        if self.head is None:
            logits = F.linear(hidden_BCD, self.embedding.weight)
        else:
            logits = self.head(hidden_BCD)
        return logits if self.config.logit_scale == 1.0 else logits * self.config.logit_scale
