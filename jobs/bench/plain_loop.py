"""Decodes the plain way, one prompt at a time with a full head, for `jobs.bench` to compare.

It decodes as a straightforward script would: logits of every position, whole log-softmax tensors, a
nucleus by sorting the vocabulary, whole beliefs of the previous pass, loops and host reads wherever
convenient. It shares only the model and the settings with `lrd`, so that equal results are
evidence.

Legend: G canvas positions, K positions of a block, V columns of the logits, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lrd import DecodingConfig
from lrd.models.protocol import DiffusionModel


@dataclass(slots=True)
class PlainSample:
    """The fields that are compared with an `lrd.Sample`."""

    canvas: list[int]
    num_forwards: int = 0
    refine_steps: int = 0
    decode_steps: int = 0
    stop_reason: str = "complete"


def check(config: DecodingConfig) -> None:
    """Raises ValueError for settings that this loop does not support."""
    others = config.entropy_bound, config.confidence_threshold, config.steps
    if any(other is not None for other in others) or config.refinement != "initial":
        raise ValueError("the plain loop refines once a block and commits by entropy alone")
    if config.monitor != "kl":
        raise ValueError("the plain loop compares D_t with tau_refine and tau_decode")
    if config.temperature or config.cfg_scale or not config.reads_beliefs_alone:
        raise ValueError("the plain loop takes the most probable token, without guidance")


@torch.inference_mode()
def decode_plain(model: DiffusionModel, prompt: list[int], config: DecodingConfig) -> PlainSample:
    """Decode one prompt: `lrd/README.md`, 'One pass', for a batch of one."""
    G, K, mask_id = config.gen_length, config.block_tokens, model.mask_id
    table_VD = model.embedding_table
    embeds = model.embed(torch.tensor([prompt + [mask_id] * G]))
    canvas_G = torch.full((G,), mask_id)
    sample = PlainSample([])
    for first in range(0, G, K):
        block = slice(first, first + K)
        columns = slice(len(prompt) + first, len(prompt) + first + K)
        refining, refined, decoded, calm = config.refines, 0, 0, 0
        before_KV: Tensor | None = None
        while (canvas_G[block] == mask_id).any():
            logits = model.logits(embeds)[0, columns].float()
            logits[:, mask_id] = -torch.inf
            log_p_KV = logits.log_softmax(-1).clamp(min=-1e30)
            p_KV = log_p_KV.exp()
            entropy_K = -(p_KV * log_p_KV).sum(-1)
            open_K = canvas_G[block] == mask_id
            divergence_K = None
            if before_KV is not None:
                divergence_K = (p_KV * (log_p_KV - before_KV)).sum(-1).clamp(min=0) * open_K
            before_KV = log_p_KV
            sample.num_forwards += 1

            if refining:
                settled = divergence_K is not None and divergence_K.mean() < config.tau_refine
                if not settled and refined < config.max_refine_steps:
                    refined += 1
                    sample.refine_steps += 1
                    mixed = soft_embeddings(p_KV, entropy_K, table_VD, config, mask_id)
                    embeds[0, columns] = torch.where(open_K[:, None], mixed, embeds[0, columns])
                    continue
                refining = False

            decoded += 1
            sample.decode_steps += 1
            stop = False
            if config.early_stop and decoded >= 2:
                assert divergence_K is not None
                calm = calm + 1 if monitor(divergence_K, open_K, config) < config.tau_decode else 0
                gate = config.stop_max_entropy
                stop = calm >= config.patience and (
                    gate is None or bool((entropy_K[open_K] < gate).all())
                )
            commit_K = open_K if stop else chosen(entropy_K, open_K, config)
            canvas_G[block] = torch.where(commit_K, p_KV.argmax(-1), canvas_G[block])
            mixed = soft_embeddings(p_KV, entropy_K, table_VD, config, mask_id)
            tokens = model.embed(canvas_G[block])
            still_open_K = canvas_G[block] == mask_id
            embeds[0, columns] = torch.where(still_open_K[:, None], mixed, tokens)
            sample.stop_reason = "converged" if stop else "complete"
            if config.stop_at_eos and config.num_blocks > 1 and model.eos_id in canvas_G:
                eos = canvas_G.tolist().index(model.eos_id)
                if mask_id not in canvas_G[:eos]:
                    if mask_id in canvas_G:
                        sample.stop_reason = "eos"
                    canvas_G[canvas_G == mask_id] = model.eos_id
    sample.canvas = canvas_G.tolist()
    return sample


def monitor(divergence_K: Tensor, open_K: Tensor, config: DecodingConfig) -> float:
    """What the early stop watches."""
    if config.reduction == "max":
        return float(divergence_K.max())
    total = float(divergence_K.sum())
    if config.reduction == "sum":
        return total
    return total / (len(open_K) if config.scope == "block" else int(open_K.sum()))


def chosen(entropy_K: Tensor, open_K: Tensor, config: DecodingConfig) -> Tensor:
    """The positions that the commit rule names."""
    order = entropy_K.masked_fill(~open_K, torch.inf).argsort(stable=True)
    named = torch.zeros_like(open_K)
    if config.entropy_threshold is not None:
        named = entropy_K < config.entropy_threshold
        named[order[0]] = True
    else:
        named[order[: config.tokens_per_step]] = True
    return named & open_K


def soft_embeddings(
    p_KV: Tensor, entropy_K: Tensor, table_VD: Tensor, config: DecodingConfig, mask_id: int
) -> Tensor:
    """Eq. 3 and 4, by a whole sort and a whole matrix product."""
    if not config.mixes:
        return table_VD[mask_id].expand(len(p_KV), -1)
    descending_KV, order_KV = p_KV.sort(dim=-1, descending=True, stable=True)
    inside_KV = (descending_KV.cumsum(-1) - descending_KV) < config.top_p
    inside_KV[:, 0] = True
    kept_KV = torch.zeros_like(p_KV).scatter(-1, order_KV, descending_KV * inside_KV)
    kept_KV = kept_KV / kept_KV.sum(-1, keepdim=True)
    alpha_K1 = config.r_f * (1 - entropy_K[:, None] / math.log(p_KV.shape[1]))
    alpha_K1 = alpha_K1.to(table_VD.dtype)
    return (1 - alpha_K1) * table_VD[mask_id] + alpha_K1 * (kept_KV.to(table_VD.dtype) @ table_VD)
