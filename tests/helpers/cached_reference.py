"""A plain decoder of one sample with a block cache and a suffix, to compare the engine with.

The procedure is `reference.decode_one`; only what a forward pass computes is written here, and in
another way than the engine's: every pass takes all columns through all layers, and in each layer
the keys and values of columns that the pass does not feed are replaced by those kept before. So
nothing is gathered, written in place or padded. Keys are kept before rotation.

Legend: T columns (prompt and canvas), K positions of the block, D width, H heads, E width of a
head, V columns of the logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.reference import Outcome, decode_one
from lrd.config import DecodingConfig
from lrd.models.checkpoint import LoadedModel


@dataclass
class Pass:
    """What one pass fed: columns [a, b), of which `positions` were computed (a suffix has gaps)."""

    a: int
    b: int
    positions: int
    full: bool


@dataclass
class Passes:
    """The forward passes of one sample, and the keys and values that they keep."""

    model: LoadedModel
    config: DecodingConfig
    prompt_length: int
    log: list[Pass] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    """Of every pass, at the block's positions [1, K, V]."""
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Every layer's keys and values [H, T, E] of all columns."""

    @torch.no_grad()
    def __call__(self, embeds_TD: Tensor, first: int, passes: int) -> Tensor:
        """One pass, as `reference.Forward` describes it."""
        full = self.is_full(passes)
        seen_T = self.seen(first)
        fed_T = seen_T if full else seen_T & self.fed_by_partial_pass(first)
        columns = fed_T.nonzero()[:, 0].tolist()
        self.log.append(Pass(columns[0], columns[-1] + 1, len(columns), full))
        logits_TV = self.forward(embeds_TD, seen_T, fed_T)
        start = self.prompt_length + first
        self.logits.append(logits_TV[None, start : start + self.config.block_tokens])
        return logits_TV

    @property
    def full_passes(self) -> int:
        return sum(one.full for one in self.log)

    @property
    def positions_computed(self) -> int:
        return sum(one.positions for one in self.log)

    def is_full(self, passes: int) -> bool:
        """A block's first pass is full, then every n-th where n passes make a refresh."""
        refresh = self.config.cache_refresh
        if self.config.kv_cache == "none" or passes == 0:
            return True
        return refresh > 0 and passes % refresh == 0

    def seen(self, first: int) -> Tensor:
        """Which columns [T] take part at all: all up to the block's end, and the suffix."""
        P, G, K = self.prompt_length, self.config.gen_length, self.config.block_tokens
        seen_T = torch.ones(P + G, dtype=torch.bool)
        if self.config.suffix == "all":
            return seen_T
        if isinstance(self.config.suffix, tuple):
            seen_T[P + first + K :] = False
            for distance in self.config.suffix:
                seen_T[P + first + K + distance : P + first + K + distance + 1] = True
            return seen_T
        whole = first + (1 + self.config.suffix) * K  # this block and the next ones
        seen_T[P + whole :] = False
        for later in range(whole, G - K + 1, K):  # A shorter last block has no such position.
            seen_T[P + later + K - 1] = True
        return seen_T

    def fed_by_partial_pass(self, first: int) -> Tensor:
        """The block [T], with `prefix` all behind it too, and with Dream the column before it,
        which predicts the block's first position."""
        T = self.prompt_length + self.config.gen_length
        start = self.prompt_length + first
        end = start + self.config.block_tokens if self.config.kv_cache == "dual" else T
        column_T = torch.arange(T)
        return (column_T >= start - self.feeds_before) & (column_T < end)

    @property
    def feeds_before(self) -> int:
        return int(self.model.transformer.config.logit_shift)

    def forward(self, embeds_TD: Tensor, seen_T: Tensor, fed_T: Tensor) -> Tensor:
        """Aligned logits [T, V]; right where a column's own, or Dream's one before, is fed."""
        x_TD = embeds_TD
        for number, layer in enumerate(self.model.transformer.blocks):
            x_TD = self.layer(number, layer, x_TD, seen_T, fed_T)
        logits_TV = self.model.transformer.project(self.model.transformer.norm(x_TD))
        if self.feeds_before:
            logits_TV = torch.cat([logits_TV[:1], logits_TV[:-1]])
        return logits_TV

    def layer(
        self, number: int, layer: torch.nn.Module, x_TD: Tensor, seen_T: Tensor, fed_T: Tensor
    ) -> Tensor:
        h_TD = layer.attention_norm(x_TD)
        query, key, value = (
            linear(h_TD).unflatten(-1, (heads, -1)).transpose(0, 1)
            for linear, heads in (
                (layer.query, layer.num_heads),
                (layer.key, layer.num_kv_heads),
                (layer.value, layer.num_kv_heads),
            )
        )
        if number < len(self.kept):
            kept_key, kept_value = self.kept[number]
            key = torch.where(fed_T[:, None], key, kept_key)
            value = torch.where(fed_T[:, None], value, kept_value)
            self.kept[number] = key, value
        else:
            self.kept.append((key, value))
        theta = self.model.transformer.config.rope_theta
        x_TD = x_TD + layer.output(attend(query, key, value, seen_T, theta))
        h_TD = layer.mlp_norm(x_TD)
        return x_TD + layer.down(F.silu(layer.gate(h_TD)) * layer.up(h_TD))


def attend(query: Tensor, key: Tensor, value: Tensor, seen_T: Tensor, theta: float) -> Tensor:
    """Every column's query over the columns that are seen: [H, T, E] each → [T, D]."""
    shared = len(query) // len(key)
    key, value = key.repeat_interleave(shared, 0), value.repeat_interleave(shared, 0)
    scores = rotate(query, theta) @ rotate(key, theta).mT / math.sqrt(query.shape[-1])
    weights = scores.masked_fill(~seen_T, -torch.inf).softmax(-1)
    return (weights @ value).transpose(0, 1).flatten(1)


def rotate(x_HTE: Tensor, theta: float) -> Tensor:
    """RoPE: components e and e + E/2 are a complex number, turned by column · theta^(−2e/E)."""
    _, T, E = x_HTE.shape
    speed = theta ** -(torch.arange(0, E, 2) / E)
    turn = torch.polar(torch.ones(T, E // 2), torch.outer(torch.arange(T).float(), speed))
    turned = torch.complex(x_HTE[..., : E // 2], x_HTE[..., E // 2 :]) * turn
    return torch.cat([turned.real, turned.imag], dim=-1)


def decode_cached(
    model: LoadedModel, prompt: list[int], config: DecodingConfig, seed: int = 0, **canvas: Any
) -> tuple[Outcome, Passes]:
    """Decode one prompt; the outcome, and every pass with what it fed. canvas: as for
    `decode_one`."""
    given = canvas.get("given")
    own = config if given is None else config.at(len(given))
    passes = Passes(model, own, len(prompt))
    return decode_one(model, prompt, config, seed, passes, **canvas), passes
