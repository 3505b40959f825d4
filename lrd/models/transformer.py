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


def rms_norm(x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Statistics in float32, cast back, then times the weight (both families)."""
    return weight_D * F.rms_norm(x_ND, weight_D.shape, None, eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of [..., E] in the dtype of cos and sin (`rotary_table`), cast back to
    x's."""
    wide = x.to(cos.dtype)
    if torch.compiler.is_compiling():  # Stays in registers, where `cat` would go to memory.
        swapped = wide.view(*x.shape[:-1], 2, -1).flip(-2).view(x.shape)
    else:
        swapped = torch.cat(wide.chunk(2, dim=-1)[::-1], dim=-1)
    rotated: Tensor = (wide * cos + swapped * sin).to(x.dtype)
    return rotated


def rotate_both(
    query_NHE: Tensor, key_NKE: Tensor, cos_N1E: Tensor, sin_N1E: Tensor
) -> tuple[Tensor, Tensor]:
    """`rotate` of queries and keys; the keys, which are fewer, go first."""
    key_NKE = rotate(key_NKE, cos_N1E, sin_N1E)
    return rotate(query_NHE, cos_N1E, sin_N1E), key_NKE


def swiglu(gate_NM: Tensor, up_NM: Tensor) -> Tensor:
    """What goes into the MLP's last product."""
    return F.silu(gate_NM) * up_NM


@dataclass(frozen=True, slots=True)
class Pointwise:
    """The element-wise work of the layers but for two additions: all that is worth fusing.

    Eager PyTorch runs each function as several kernels; `compiled.py` has them as one or two.
    """

    norm: Callable[[Tensor, Tensor, float], Tensor] = rms_norm
    rotate: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = rotate_both
    swiglu: Callable[[Tensor, Tensor], Tensor] = swiglu


EAGER = Pointwise()


class RMSNorm(nn.Module):
    """`rms_norm` with its weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps
        self.pointwise = EAGER

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise.norm(x, self.weight, self.eps)


def rotary_table(positions_BL: Tensor, head_width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine [B, 1, L, E] in float32 of the half-split rotary embedding. The sine's first
    half is negated: it is multiplied with x's second half."""
    exponent = torch.arange(0, head_width, 2, device=positions_BL.device).float() / head_width
    angle = positions_BL.float()[:, None, :, None] * theta**-exponent
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Every query over every real key: [B, H, L, E] and two [B, K, L, E] to [B, H, L, E]."""
    shares = query.shape[1] != key.shape[1]
    if shares and mask is not None and query.device.type != "cpu":
        if mask.shape[2] == 1:
            return attention_of_groups(query, key, value, mask)
        # Each query has keys of its own.
        groups, shares = query.shape[1] // key.shape[1], False
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=shares)


def attention_of_groups(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """The same for CUDA's kernel for masks, which shares no kv heads. All queries see the same
    keys, so heads that share one are more queries of a single head, and no key is copied."""
    B, H, L, E = query.shape
    grouped = query.reshape(B, key.shape[1], -1, E)
    attended = F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask)
    return attended.reshape(B, H, L, E)


def attention_mask(key_mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The mask [R, 1, 1, P] that attention takes of one [R, P] of keys, or [R, 1, C, P] of one
    [R, C, P] that has keys for each query: True or False, and off the CPU 0 or -inf, which CUDA
    would otherwise make of it in every layer."""
    if key_mask is None:
        return None
    mask = key_mask[:, None, None, :] if key_mask.dim() == 2 else key_mask[:, None]
    if mask.device.type == "cpu":
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask.logical_not(), -torch.inf)


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
        self.pointwise = EAGER
        self.before: Before = before_attention
        self.after: After = after_attention
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

    def forward(
        self,
        x_BLD: Tensor,
        cos_N1E: Tensor,
        sin_N1E: Tensor,
        mask: Tensor | None,
        at_N: Tensor | None = None,
        keep: Keep | None = None,
        spans: Sequence[tuple[int, int]] | None = None,
    ) -> Tensor:
        """[B, L, D], or [N, D] at the flat positions [N] alone: all are attended to, but only
        these go on to the MLP. cos, sin: of every position b·L + l. mask: see `attention_mask`.
        keep: takes the rotated keys and the values, and gives those that are attended to. spans:
        see `attention_by_row`."""
        x_ND = x_BLD.flatten(0, 1)
        if at_N is not None:
            attended_ND = self._attended(x_BLD, cos_N1E, sin_N1E, mask, keep, spans)[at_N]
            return self.after(self, x_ND[at_N], attended_ND)
        # Nothing here holds what attention gave, so that it is freed as soon as it is used.
        out_ND = self.after(self, x_ND, self._attended(x_BLD, cos_N1E, sin_N1E, mask, keep, spans))
        return out_ND.view_as(x_BLD)

    def _attended(
        self,
        x_BLD: Tensor,
        cos_N1E: Tensor,
        sin_N1E: Tensor,
        mask: Tensor | None,
        keep: Keep | None,
        spans: Sequence[tuple[int, int]] | None,
    ) -> Tensor:
        """What attention gives, [B·L, D]."""
        B, L, D = x_BLD.shape
        query, key, value = (
            part.view(B, L, *part.shape[1:]).transpose(1, 2)
            for part in self.before(self, x_BLD.flatten(0, 1), cos_N1E, sin_N1E)
        )
        if keep is not None:
            key, value = keep(key, value)
        if spans is not None:
            attended = attention_by_row(self.attend, query, key, value, spans)
        else:
            attended = self.attend(query, key, value, mask)
        return attended.transpose(1, 2).reshape(B * L, D)


def before_attention(
    block: Block, x_ND: Tensor, cos_N1E: Tensor, sin_N1E: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries [N, H, E] and keys [N, K, E], and values [N, K, E]."""
    D, h_ND = x_ND.shape[1], block.attention_norm(x_ND)
    if block.query_key_value is None:
        parts = block.query(h_ND), block.key(h_ND), block.value(h_ND)
    else:
        kv_width = D // block.num_heads * block.num_kv_heads
        parts = block.query_key_value(h_ND).split([D, kv_width, kv_width], dim=-1)
    del h_ND
    query, key, value = (x.view(len(x), -1, D // block.num_heads) for x in parts)
    return *block.pointwise.rotate(query, key, cos_N1E, sin_N1E), value


def after_attention(block: Block, x_ND: Tensor, attended_ND: Tensor) -> Tensor:
    """The layer's output [N, D]: what attention found and the MLP, each added to its input."""
    x_ND = x_ND + block.output(attended_ND)
    del attended_ND
    h_ND = block.mlp_norm(x_ND)
    if block.gate_up is None:
        gate_NM, up_NM = block.gate(h_ND), block.up(h_ND)
    else:
        gate_NM, up_NM = block.gate_up(h_ND).chunk(2, dim=-1)
    out_ND: Tensor = x_ND + block.down(block.pointwise.swiglu(gate_NM, up_NM))
    return out_ND


Before = Callable[[Block, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
After = Callable[[Block, Tensor, Tensor], Tensor]


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
        self.graphs: Callable[..., Tensor] | None = None
        """Runs `layers` with its arguments; None: directly."""
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
        real_BL = None
        if attention_mask_BL is None:
            positions_BL = torch.arange(L, device=embeds_BLD.device).expand(B, L)
        else:
            assert attention_mask_BL.shape == (B, L)
            real_BL = attention_mask_BL.bool()
            positions_BL = (real_BL.long().cumsum(-1) - 1).clamp(min=0)
        return self.hidden_kept(embeds_BLD, positions_BL, L, real_BL, at_N, None)

    def hidden_kept(
        self,
        embeds_RCD: Tensor,
        positions_RC: Tensor,
        num_positions: int,
        key_mask: Tensor | None,
        at_N: Tensor | None,
        window: Window | None,
        spans: Sequence[tuple[int, int]] | None = None,
    ) -> Tensor:
        """Final hidden states [N, D] of some columns alone; see `CachedModel.hidden_kept`.

        Unshifted, as `hidden`.
        """
        self.prepare(num_positions, embeds_RCD.device)
        cos, sin = self.rotary(positions_RC, embeds_RCD.dtype)
        mask = attention_mask(key_mask, embeds_RCD.dtype)
        run = self.layers if self.graphs is None else partial(self.graphs, self.layers)
        return run(embeds_RCD, cos, sin, mask, at_N, window, spans)

    def layers(
        self,
        x: Tensor,
        cos_N1E: Tensor,
        sin_N1E: Tensor,
        mask: Tensor | None,
        at_N: Tensor | None,
        window: Window | None,
        spans: Sequence[tuple[int, int]] | None = None,
    ) -> Tensor:
        """All layers and the final norm, of embeddings [B, L, D]."""
        last = len(self.blocks) - 1
        for number, block in enumerate(self.blocks):
            keep = None if window is None else partial(window.renew, number)
            x = block(x, cos_N1E, sin_N1E, mask, at_N if number == last else None, keep, spans)
        normed: Tensor = self.norm(x)
        return normed

    def use(self, pointwise: Pointwise) -> None:
        """Run the element-wise work of all layers by these functions."""
        for module in self.modules():
            if isinstance(module, RMSNorm | Block):
                module.pointwise = pointwise

    def fuse(self) -> None:
        """`Block.fuse` for all, one after the other: one block stands twice in memory at most."""
        for block in self.blocks:
            assert isinstance(block, Block)
            block.fuse()
        if self.embedding.weight.is_cuda:
            torch.cuda.empty_cache()

    def prepare(self, length: int, device: torch.device) -> None:
        """Make cosines and sines of so many positions, before a pass needs them: of the next power
        of two, so that a few tables serve all lengths."""
        config, table = self.config, self._table
        if table is None or len(table[0]) < length or table[0].device != device:
            longest = max(length, min(config.max_length, 1 << (length - 1).bit_length()))
            # An inference tensor could not serve in training.
            with torch.inference_mode(False):
                columns_1L = torch.arange(longest, device=device)[None]
                cos, sin = rotary_table(
                    columns_1L, config.width // config.num_heads, config.rope_theta
                )
            self._table = cos[0, 0], sin[0, 0]

    def rotary(self, positions_BL: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine [B·L, 1, E], looked up in the table."""
        assert self._table is not None
        cos, sin = (table_LE[positions_BL.flatten()][:, None] for table_LE in self._table)
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
