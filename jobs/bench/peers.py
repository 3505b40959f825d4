"""Fast-dLLM's samplers, one prompt at a time, over our weights: what `jobs.bench` compares with.

Written as a good script of theirs would be (NVlabs/Fast-dLLM, `llada/generate.py`), and faster
where that costs nothing: no Gumbel noise, float32 instead of float64 beliefs, no loop over
positions, the last layer's MLP and the head at open positions alone, keys kept after rotation. The
tokens are theirs: golden's `fast_*` records (`tests/test_peers.py`).

Fast-dLLM decodes every block to its end, also behind an EOS. Others end after a block that holds
one (dInfer's `early_stop`); `stop_at_eos` ends a prompt as soon as nothing before an EOS is open.

Legend: T columns (prompt and canvas), L of them fed to a pass, K positions of a block, N of them
open, D width, V columns of the logits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from lrd.models.checkpoint import LoadedModel
from lrd.models.transformer import Block, Transformer, rotary_table, rotate

Cache = Literal["none", "prefix", "dual"]


@dataclass(slots=True)
class PeerSample:
    """A decoded canvas, and what its passes computed."""

    canvas: list[int]
    widths: list[int] = field(default_factory=list)
    """Columns that each pass fed to the model."""
    full_passes: int = 0
    """Passes that fed all columns."""

    @property
    def num_forwards(self) -> int:
        return len(self.widths)

    @property
    def positions_computed(self) -> int:
        return sum(self.widths)


def check(model: LoadedModel) -> None:
    """Raises ValueError for a model that these loops do not run."""
    transformer = model.transformer
    if transformer.config.logit_shift:
        raise ValueError(
            "the peers' loops are LLaDA's; Dream predicts a position from the one before"
        )
    if any(block.query_key_value is not None for block in blocks_of(transformer)):
        raise ValueError("the peers' loops take unfused weights; load the model on the CPU")


def blocks_of(transformer: Transformer) -> list[Block]:
    """The layers, with their type."""
    blocks: list[Block] = [block for block in transformer.blocks if isinstance(block, Block)]
    return blocks


class CachedPasses:
    """Forward passes over the columns of B sequences of one length, without padding.

    Every pass keeps its columns' keys and values; a pass over some columns attends to all, to the
    others as they were last computed. The first pass feeds every column.
    """

    def __init__(self, transformer: Transformer, length: int, device: torch.device) -> None:
        config = transformer.config
        columns_1T = torch.arange(length, device=device)[None]
        cos, sin = rotary_table(columns_1T, config.width // config.num_heads, config.rope_theta)
        if not config.rope_in_float32:
            cos, sin = (x.to(transformer.embedding.weight.dtype) for x in (cos, sin))
        self._cos, self._sin = cos, sin
        self._transformer, self._blocks = transformer, blocks_of(transformer)
        self._kept: list[tuple[Tensor, Tensor]] = []

    def run(self, embeds_BLD: Tensor, first: int, at_N: Tensor) -> Tensor:
        """Final states [B, N, D] of the columns at_N, which count from `first`, the first column
        that embeds_BLD holds."""
        fed = slice(first, first + embeds_BLD.shape[1])
        cos, sin = self._cos[:, :, fed], self._sin[:, :, fed]
        x, last = embeds_BLD, len(self._blocks) - 1
        for layer, block in enumerate(self._blocks):
            h = block.attention_norm(x)
            keys, values = self._keep(
                layer,
                fed,
                rotate(_heads(block.key(h), block), cos, sin),
                _heads(block.value(h), block),
            )
            if layer == last:  # What is not read ends here.
                x, h, cos, sin = x[:, at_N], h[:, at_N], cos[:, :, at_N], sin[:, :, at_N]
            query = rotate(_heads(block.query(h), block), cos, sin)
            attended = block.attend(query, keys, values, None)
            x = x + block.output(attended.transpose(1, 2).reshape(x.shape))
            normed = block.mlp_norm(x)
            x = x + block.down(torch.nn.functional.silu(block.gate(normed)) * block.up(normed))
        states: Tensor = self._transformer.norm(x)
        return states

    def _keep(self, layer: int, fed: slice, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, T, E] of all columns, those of the fed ones replaced."""
        if layer == len(self._kept):
            self._kept.append((key, value))
        elif key.shape == self._kept[layer][0].shape:
            self._kept[layer] = key, value
        else:
            for kept, fresh in zip(self._kept[layer], (key, value), strict=True):
                kept[:, :, fed] = fresh
        return self._kept[layer]


def _heads(x_BLD: Tensor, block: Block) -> Tensor:
    """[B, L, D] or keys and values of fewer heads → [B, H, L, E]."""
    B, L, _ = x_BLD.shape
    width = block.query.in_features // block.num_heads
    return x_BLD.view(B, L, -1, width).transpose(1, 2)


@torch.inference_mode()
def decode_peer(
    model: LoadedModel,
    prompt: list[int],
    gen_length: int,
    block_length: int,
    threshold: float = 0.9,
    cache: Cache = "none",
    stop_at_eos: bool = False,
) -> PeerSample:
    """Decode one prompt; every pass commits the block's positions of probability >= threshold, at
    least one.

    cache: what a block's passes after its first feed. none: everything; prefix: from the block to
    the end; dual: the block.
    """
    num_columns = len(prompt) + gen_length
    ids_T = torch.tensor(prompt + [model.mask_id] * gen_length)
    passes = CachedPasses(model.transformer, num_columns, ids_T.device)
    sample = PeerSample([])
    for start in range(len(prompt), num_columns, block_length):
        block_K = ids_T[start : start + block_length]
        fed = slice(0, num_columns)
        while len(open_N := (block_K == model.mask_id).nonzero()[:, 0]):
            embeds = model.embed(ids_T[fed][None])
            states = passes.run(embeds, fed.start, open_N + (start - fed.start))
            commit(block_K, open_N, model.head(states[0]), model.mask_id, threshold)
            sample.widths.append(fed.stop - fed.start)
            sample.full_passes += fed.stop - fed.start == num_columns
            if stop_at_eos and has_ended(ids_T[len(prompt) :].tolist(), model):
                sample.canvas = filled(ids_T[len(prompt) :].tolist(), model)
                return sample
            if cache != "none":
                fed = slice(start, start + block_length if cache == "dual" else num_columns)
    sample.canvas = ids_T[len(prompt) :].tolist()
    return sample


def commit(
    block_K: Tensor, open_N: Tensor, logits_NV: Tensor, mask_id: int, threshold: float
) -> None:
    """Write the sure ones of the open positions into the block, at least one; never [MASK]."""
    logits_NV = logits_NV.float()
    logits_NV[:, mask_id] = -torch.inf
    best_N, token_N = logits_NV.max(dim=-1)
    p_N = (best_N - logits_NV.logsumexp(dim=-1)).exp()
    sure_N = p_N >= threshold
    sure_N[p_N.argmax()] = True
    block_K[open_N[sure_N]] = token_N[sure_N]


def has_ended(canvas: list[int], model: LoadedModel) -> bool:
    """Whether an EOS is written and nothing before it is open."""
    ends = [canvas.index(index) for index in model.eos_ids if index in canvas]
    return bool(ends) and model.mask_id not in canvas[: min(ends)]


def filled(canvas: list[int], model: LoadedModel) -> list[int]:
    """The canvas with EOS where it is open."""
    return [model.eos_id if token == model.mask_id else token for token in canvas]
