"""A plain decoder of one sample, to compare the real one with: loops, lists and doubles.

Written from the method's description alone (`lrd/README.md`). No batch, no masks, no slots:
one prompt, one canvas, one pass after another. It also notes which branches it took.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lrd.config import DecodingConfig
from lrd.models.protocol import DiffusionModel

Belief = list[float]
Vector = list[float]
Forward = Callable[[Tensor, int, int], Tensor]
"""One pass: the embeddings [T, D] of prompt and canvas, the block's first canvas position, the
number of passes that the block has had → logits [T, V], aligned, right at the block at least."""


@dataclass
class Outcome:
    """What `lrd.Sample` tells of a sample, under the same names."""

    canvas: list[int]
    commit_step: list[int]
    confidence: list[float]
    refine_steps: int = 0
    decode_steps: int = 0
    blocks: int = 0
    stop_reason: str = ""
    stops: list[str] = field(default_factory=list)
    """How each block ended, the last one's as `stop_reason` has it."""
    open_at_stop: int = 0
    max_entropy_at_stop: float = 0.0
    refine_converged: bool = False
    kl_trace: list[float] = field(default_factory=list)
    entropy_trace: list[float] = field(default_factory=list)
    mean_mix_weight: float = 0.0
    branches: set[str] = field(default_factory=set)


def softmax(logits: list[float], mask_id: int) -> Belief:
    """[MASK] has probability 0."""
    largest = max(x for v, x in enumerate(logits) if v != mask_id)
    weights = [0.0 if v == mask_id else math.exp(x - largest) for v, x in enumerate(logits)]
    total = sum(weights)
    return [w / total for w in weights]


def entropy(p: Belief) -> float:
    return -sum(x * math.log(x) for x in p if x > 0)


def divergence(p: Belief, q: Belief) -> float:
    return sum(a * math.log(a / max(b, 1e-300)) for a, b in zip(p, q, strict=True) if a > 0)


def soft_embedding(
    p: Belief, c: DecodingConfig, table: list[Vector], mask_id: int
) -> tuple[float, Vector]:
    """Eq. 3 and 4: the mix weight and the embedding."""
    alpha = c.r_f * (1 - entropy(p) / math.log(len(p)))
    nucleus: list[int] = []
    for v in sorted(range(len(p)), key=lambda v: (-p[v], v)):
        if nucleus and sum(p[u] for u in nucleus) >= c.top_p:
            break
        nucleus.append(v)
    mass = sum(p[v] for v in nucleus)
    mixed = [(1 - alpha) * x for x in table[mask_id]]
    for v in nucleus:
        mixed = [m + alpha * p[v] / mass * x for m, x in zip(mixed, table[v], strict=True)]
    return alpha, mixed


def split_mix(state: int) -> int:
    """The number that SplitMix64 gives in this state, of 64 bits."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return state ^ (state >> 31)


def uniform(seed: int, passes: int, position: int, token: int) -> float:
    """In (0, 1), for a canvas position in the pass after so many; the same whenever it is asked."""
    state = seed % 2**64
    for number in (passes, position, token):
        state = (split_mix(state) + 0x9E3779B97F4A7C15 * (number + 1)) % 2**64
    return max((split_mix(state) >> 11) * 2.0**-53, 2.0**-54)


def named_by_rule(c: DecodingConfig, h: dict[int, float], sure: dict[int, float]) -> list[int]:
    """Open positions that the commit rule names; h entropy, sure the token's probability."""
    if c.confidence_threshold is not None:
        ranked = sorted(h, key=lambda i: (-sure[i], i))
        named = [i for i in ranked if sure[i] >= c.confidence_threshold]
    else:
        ranked = sorted(h, key=lambda i: (h[i], i))
        if c.entropy_threshold is not None:
            named = [i for i in ranked if h[i] < c.entropy_threshold]
        elif c.entropy_bound is not None:
            named = []
            for i in ranked:
                taken = [h[j] for j in named] + [h[i]]
                if sum(taken) - max(taken) > c.entropy_bound:
                    break
                named.append(i)
        else:
            named = ranked[: c.tokens_per_step]
    return named or ranked[:1]


def decode_one(
    model: DiffusionModel,
    prompt: list[int],
    c: DecodingConfig,
    seed: int,
    forward: Forward | None = None,
    given: list[int | None] | None = None,
    eos_from: int = 0,
    allowed: list[set[int] | None] | None = None,
) -> Outcome:
    """Decode one prompt; seed is the row's own. forward: the model's whole pass by default. given:
    the canvas, None where it is open; all of it by default. eos_from: where an EOS may end the
    sample from. allowed: tokens that each position may take; None: any."""
    forward = forward or (lambda embeds, first, passes: model.logits(embeds[None])[0])
    G, K, mask_id = c.gen_length, c.block_length or c.gen_length, model.mask_id
    table: list[Vector] = model.embedding_table.tolist()
    canvas: list[int | None] = [None] * G if given is None else list(given)
    G = len(canvas)
    vectors = [table[mask_id if token is None else token] for token in canvas]
    o = Outcome(canvas=[], commit_step=[0] * G, confidence=[0.0] * G)
    exactly_k = isinstance(c.refinement, int)
    refines = exactly_k or c.max_refine_steps > 0
    mixes = c.r_f > 0 and c.top_p > 0
    phases: list[bool] = []
    alphas: list[float] = []
    ended_at_eos = False

    def feed_back(p: dict[int, Belief]) -> None:
        for i in p:
            if canvas[i] is None and mixes:
                alpha, vectors[i] = soft_embedding(p[i], c, table, mask_id)
                alphas.append(alpha)

    for first in range(0, G, K):
        block = range(first, min(first + K, G))
        size = len(block)
        if all(canvas[i] is not None for i in block):
            continue
        before: dict[int, Belief] = {}
        compared = {"refine": math.nan, "stop": math.nan}
        refining = refines and (o.blocks == 0 or c.refinement != "first")
        phase_steps, decode_passes, calm = 0, 0, 0
        passes = 0
        o.blocks += 1
        while any(canvas[i] is None for i in block) and not ended_at_eos:
            # Forward.
            embeds = torch.tensor([table[token] for token in prompt] + vectors)
            logits = forward(embeds, first, passes)[len(prompt) :].tolist()
            passes += 1
            number = o.refine_steps + o.decode_steps
            for i in block:
                known = allowed[i] if allowed else None
                if known is not None:
                    logits[i] = [x if v in known else -1e30 for v, x in enumerate(logits[i])]
            p = {i: softmax(logits[i], mask_id) for i in block}
            opened = [i for i in block if canvas[i] is None]
            h = {i: entropy(p[i]) for i in opened}
            kl = [divergence(p[i], before[i]) for i in opened] if before else [math.nan]
            o.kl_trace.append(sum(kl) / size)
            o.entropy_trace.append(sum(h.values()) / len(h))
            before = p
            mean = sum(kl) / (size if c.scope == "block" else len(opened))
            reduced = {"mean": mean, "max": max(kl), "sum": sum(kl)}[c.reduction]
            earlier, compared = compared, {"refine": sum(kl) / size, "stop": reduced}
            monitor = compared
            if c.monitor == "change":
                monitor = {which: abs(d - earlier[which]) for which, d in compared.items()}
                if passes == 2:
                    o.branches.add("no change yet")

            # Refine?
            if refining:
                converged = not exactly_k and monitor["refine"] < c.tau_refine
                due = phase_steps >= (c.refinement if exactly_k else c.max_refine_steps)
                if not converged and not due:
                    phase_steps += 1
                    o.refine_steps += 1
                    feed_back(p)
                    continue
                phases.append(converged)
                o.branches.add("refined until converged" if converged else "refined to the limit")
                refining, phase_steps = False, 0

            # Decode; stop early?
            o.decode_steps += 1
            decode_passes += 1
            stop = False
            if c.early_stop and decode_passes >= 2:
                calm = calm + 1 if monitor["stop"] < c.tau_decode else 0
                gate = c.stop_max_entropy
                stop = calm >= c.patience
                if 0 < calm < c.patience:
                    o.branches.add("patience waits")
                if stop and gate is not None and max(h.values()) >= gate:
                    stop = False
                    o.branches.add("gate holds back")

            # Commit.
            token = {i: max(range(len(p[i])), key=lambda v: p[i][v]) for i in opened}
            if c.temperature > 0:
                for i in opened:
                    u = [uniform(seed, number, i, v) for v in range(len(table))]
                    noisy = [x / (-math.log(y)) ** c.temperature for x, y in zip(p[i], u)]  # noqa: B905
                    sampled = noisy.index(max(noisy))
                    o.branches.add("sampled" if sampled != token[i] else "argmax")
                    token[i] = sampled
            chosen = named_by_rule(c, h, {i: p[i][token[i]] for i in opened})
            if 1 < len(chosen) < len(opened):
                o.branches.add("several committed")
            if stop:
                o.branches.add("stopped early")
                o.open_at_stop += len(opened)
                o.max_entropy_at_stop = max(o.max_entropy_at_stop, *h.values())
                chosen = opened
            for i in chosen:
                canvas[i] = token[i]
                vectors[i] = table[token[i]]
                o.commit_step[i] = o.refine_steps + o.decode_steps
                o.confidence[i] = p[i][token[i]]
            feed_back(p)
            refining = refines and c.refinement not in ("initial", "first")

            # Ended?
            o.stop_reason = "converged" if stop else "complete"
            if c.stop_at_eos and c.gen_length > K and model.eos_id in canvas[eos_from:]:
                ended_at_eos = None not in canvas[: canvas.index(model.eos_id, eos_from)]
                if not ended_at_eos:
                    o.branches.add("an EOS waits for a gap")
        o.stops.append(o.stop_reason)
        if ended_at_eos:
            if None in canvas:  # Else the sample is complete.
                o.branches.add("EOS fills the rest")
                if None not in canvas[first : first + K]:
                    o.branches.add("EOS in a finished block")
                o.stop_reason = o.stops[-1] = "eos"
            break

    o.canvas = [model.eos_id if token is None else token for token in canvas]
    o.refine_converged = bool(phases) and all(phases)
    o.mean_mix_weight = sum(alphas) / len(alphas) if alphas else 0.0
    return o
