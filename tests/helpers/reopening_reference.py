"""A plain decoder of one sample by WINO, Saber or RCR: loops, lists and doubles, as `reference`.

Written from the rules alone (`lrd/decoders/`); with soft embeddings, refinement and the early stop,
which the originals lack.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from helpers.reference import Belief, divergence, entropy, soft_embedding, softmax
from lrd.config import DecodingConfig
from lrd.models.checkpoint import LoadedModel


@dataclass
class Outcome:
    """What `lrd.Sample` tells of a sample, under the same names."""

    canvas: list[int]
    commit_step: list[int]
    refine_steps: int = 0
    decode_steps: int = 0
    num_uncommits: int = 0
    stop_reason: str = ""
    kl_trace: list[float] = field(default_factory=list)
    entropy_trace: list[float] = field(default_factory=list)
    branches: set[str] = field(default_factory=set)


def shadow_beliefs(
    model: LoadedModel, prompt: int, vectors: list[list[float]], block: range
) -> dict[int, Belief]:
    """What shadows of the block say of its positions. vectors: of prompt and canvas."""
    L, mask_id = len(vectors), model.mask_id
    columns = [*range(L), *(prompt + i for i in block)]
    sees = [
        [k < L if q < L else (k >= L or columns[k] != columns[q]) for k in range(len(columns))]
        for q in range(len(columns))
    ]
    embeds = torch.cat([torch.tensor(vectors), model.embedding_table[[mask_id] * len(block)]])
    states = model.hidden_kept(
        embeds[None],
        torch.tensor([columns]),
        L,
        torch.tensor([sees]),
        torch.arange(L, len(columns)),
        None,
    )
    logits = model.head(states).tolist()
    return {i: softmax(one, mask_id) for i, one in zip(block, logits, strict=True)}


def lowest(value: dict[int, float], most: int) -> list[int]:
    return sorted(value, key=lambda i: (value[i], i))[: max(0, most)]


def decode_one(
    model: LoadedModel, prompt: list[int], c: DecodingConfig, given: list[int | None] | None = None
) -> Outcome:
    """Decode one prompt. given: the canvas, None where it is open; all of it by default."""
    G, K, mask_id = c.gen_length, c.block_tokens, model.mask_id
    table: list[list[float]] = model.embedding_table.tolist()
    canvas: list[int | None] = [None] * G if given is None else list(given)
    fixed = {i for i, token in enumerate(canvas) if token is not None}
    vectors = [table[mask_id if token is None else token] for token in canvas]
    o = Outcome([], [0] * G)
    recorded: dict[int, float] = {}
    largest: dict[int, float] = {}
    num_before, sample_blocks = 0, 0
    by_entropy = c.reopen == "lowest" and c.confidence == "entropy"

    def feed_back(p: dict[int, Belief], opened: list[int]) -> None:
        for i in opened:
            if canvas[i] is None and c.mixes:
                _, vectors[i] = soft_embedding(p[i], c, table, mask_id)

    for first in range(0, G, K):
        end = first + K
        window = range(0 if c.reads_canvas else first, end)
        block = range(first, end)
        if all(canvas[i] is not None for i in block):
            continue
        sample_blocks += 1
        past: dict[int, Belief] = {}
        reopened: set[int] = set()
        refining, phase, decode_passes, calm, passes, at_start = c.refines, 0, 0, 0, 0, 0
        while opened := [i for i in window if canvas[i] is None]:
            embeds = torch.tensor([table[token] for token in prompt] + vectors)
            logits = model.logits(embeds[None])[0][len(prompt) :].tolist()
            p = {i: softmax(logits[i], mask_id) for i in window}
            h = {i: entropy(p[i]) for i in opened}
            kl = [divergence(p[i], past[i]) for i in opened if passes and i not in reopened]
            d = sum(kl) / K if passes else math.nan
            o.kl_trace.append(d)
            o.entropy_trace.append(sum(h.values()) / len(h))
            past |= {i: p[i] for i in opened}
            reopened = set()
            passes += 1
            committed = [i for i in window if canvas[i] is not None and i not in fixed]
            rise = {i: max(p[i]) - largest.get(i, 0.0) for i in [*opened, *committed]}
            if passes == 1 and sample_blocks > 1:
                rise |= {i: math.inf for i in rise if i in block}
            largest |= {i: max(p[i]) for i in rise}

            if refining and not d < c.tau_refine and phase < c.max_refine_steps:
                phase += 1
                o.refine_steps += 1
                feed_back(p, opened)
                continue
            refining, phase = c.refines and c.refinement == "auto", 0
            o.decode_steps += 1
            decode_passes += 1
            at_start = len(opened) if decode_passes == 1 else at_start
            if c.early_stop and decode_passes >= 2:
                calm = calm + 1 if d < c.tau_decode else 0
            stop = c.early_stop and decode_passes >= 2 and calm >= c.patience

            sure = {i: max(p[i]) for i in opened}
            chosen = _named(c, sure, h, recorded, window)
            o.stop_reason = "converged" if stop else "complete"
            if stop:
                chosen = opened
                o.branches.add("stopped early")
            shadows = {}
            if c.reopen == "shadow":
                vectors_now = [table[token] for token in prompt] + vectors
                shadows = shadow_beliefs(model, len(prompt), vectors_now, block)
            for i in chosen:
                canvas[i] = max(range(len(p[i])), key=lambda v: p[i][v])
                vectors[i] = table[canvas[i]]
                o.commit_step[i] = o.refine_steps + o.decode_steps
                recorded[i] = -h[i] if by_entropy else sure[i]
            bad = [] if stop else _reopened(
                c, canvas, chosen, committed, rise, recorded, shadows, num_before,
                decode_passes, at_start, o.branches, any(canvas[i] is None for i in window),
            )  # fmt: skip
            num_before = len(chosen)
            for i in bad:
                canvas[i], o.commit_step[i], vectors[i] = None, 0, table[mask_id]
                if i not in opened:
                    o.num_uncommits += 1
                    o.branches.add("again" if i in block else "again, of an earlier block")
                    reopened.add(i)
                    calm = 0
                else:
                    o.branches.add("at once")
            feed_back(p, opened)
    o.canvas = [token for token in canvas if token is not None]
    return o


def _named(
    c: DecodingConfig,
    sure: dict[int, float],
    h: dict[int, float],
    recorded: dict[int, float],
    window: range,
) -> list[int]:
    ranked = sorted(sure, key=lambda i: (-sure[i], i))
    if c.reopen == "lowest":
        return ranked
    if c.threshold_from_committed:
        known = [x for i, x in recorded.items() if c.reopen_scope == "reached" or i in window]
        mean = sum(known) / len(known) if known else 1.0
        named = [i for i in ranked if sure[i] > mean]
        return named if len(named) >= c.min_commits else ranked[: c.min_commits]
    if c.confidence_threshold is None:
        return sorted(h, key=lambda i: (h[i], i))[: c.tokens_per_step]
    named = [i for i in ranked if sure[i] >= c.confidence_threshold] or ranked[:1]
    most = max(math.floor(c.commit_share * len(sure)), c.commit_floor)
    return named[: min(most, c.commit_ceiling or most)]


def _reopened(
    c: DecodingConfig,
    canvas: list[int | None],
    chosen: list[int],
    committed: list[int],
    rise: dict[int, float],
    recorded: dict[int, float],
    shadows: dict[int, Any],
    num_before: int,
    decode_passes: int,
    at_start: int,
    branches: set[str],
    waits: bool,
) -> list[int]:
    if c.reopen == "shadow":
        said = {i: shadows[i][canvas[i]] for i in committed}
        bad = {i: x for i, x in said.items() if x < c.reopen_threshold}
        if bad and len(chosen) == 1:
            branches.add("one commit checks nothing")
        if len(bad) >= num_before:
            branches.add("no more than were committed before")
        return lowest(bad, num_before - 1) if len(chosen) > 1 else []
    if c.reopen == "drop":
        k, n = len(chosen), c.min_commits
        most = min(max(n // 2, math.ceil(k / 8)), k - 1) if waits else 0
        known = {i: rise[i] for i in [*committed, *chosen] if rise[i] < math.inf}
        return lowest(known, most)
    assert c.steps is not None
    S = c.steps // c.num_blocks
    if decode_passes >= S:
        return []
    done = decode_passes / S
    share = max(1 - done if c.schedule == "linear" else math.cos(math.pi * done / 2), 1e-6)
    known = {i: recorded[i] for i in [*committed, *chosen]}
    return lowest(known, math.floor(at_start * share))
