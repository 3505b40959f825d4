"""A plain decoder of one sample under the rules that change beliefs, inputs and stops: loops, lists
and doubles, written from the papers' rules alone.

CreditDecoding with the credit of all V tokens, Prophet's gap, ReMix's mix and rejection, soft
masking, soft suffixes, the end at a full block with an EOS; over latent refinement or without it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from helpers.reference import Belief, divergence, entropy, named_by_rule, soft_embedding, softmax
from lrd.config import DecodingConfig
from lrd.models.protocol import DiffusionModel


@dataclass
class Plain:
    """One sample, pass by pass."""

    model: DiffusionModel
    prompt: list[int]
    c: DecodingConfig
    canvas: list[int | None]
    eos_from: int = 0
    """Canvas position from which on an EOS may end the sample."""
    commit_step: list[int] = field(default_factory=list)
    refine_steps: int = 0
    decode_steps: int = 0
    stop_reason: str = "complete"
    seen: set[str] = field(default_factory=set)
    """Which branches were taken."""

    def run(self) -> None:
        G, K, c = len(self.canvas), self.c.block_tokens, self.c
        self.table = self.model.embedding_table.tolist()
        mask_id = self.model.mask_id
        self.vectors = [self.table[mask_id if t is None else t] for t in self.canvas]
        self.commit_step = [0] * G
        for first in range(0, G, K):
            block = range(first, min(first + K, G))
            if self.open_in(block):
                self.one_block(block)
            if self.stop_reason != "complete" or None not in self.canvas:
                return
            may_end = [i for i in block if i >= self.eos_from]
            if c.eos_ends_block and any(self.canvas[i] == self.model.eos_id for i in may_end):
                self.seen.add("EOS ends")
                self.stop_reason = "eos"
                self.canvas = [self.model.eos_id if t is None else t for t in self.canvas]
                return

    def open_in(self, places: range) -> list[int]:
        return [i for i in places if self.canvas[i] is None]

    def one_block(self, block: range) -> None:
        c, everywhere = self.c, range(len(self.canvas))
        refining, phase = c.refines, 0
        credit: dict[int, dict[int, float]] = {i: {} for i in block}
        before: dict[int, Belief] = {}
        rejected: set[int] = set()
        while opened := self.open_in(block):
            p = self.beliefs()
            divergences = [divergence(p[i], before[i]) for i in opened] if before else [math.nan]
            if c.reject_js is not None:
                now_rejected = {i for i in opened if self.rejects(p, before, i, i in rejected)}
                self.seen |= {"comes back"} if rejected & {*opened} - now_rejected else set()
                rejected = now_rejected if before else set()
                self.seen |= {"rejected"} if rejected else set()
            q = {i: self.credited(p[i], credit[i]) for i in opened}
            first_pass, before = not before, dict(enumerate(p))
            may_mix = [i for i in opened if i not in rejected]
            if c.reject_js is not None and first_pass:
                may_mix = []
            if c.soft_suffix and first_pass:
                self.seen |= {"suffix"} if self.open_in(range(block.stop, len(p))) else set()
                may_mix += self.open_in(range(block.stop, len(p)))
            if refining and not (
                sum(divergences) / len(block) < c.tau_refine or phase >= c.max_refine_steps
            ):
                self.refine_steps, phase = self.refine_steps + 1, phase + 1
                self.feed_back(p, may_mix, opened)
                continue
            refining = False
            self.decode_steps += 1
            if self.gap_is_large(p):
                self.stop_reason = "converged"
                self.seen |= {"gap"} if self.open_in(range(block.stop, len(p))) else set()
                for i in self.open_in(everywhere):
                    self.write(i, p[i])
                return
            for i in self.named(q):
                self.write(i, q[i])
            self.feed_back(p, may_mix, opened)

    def beliefs(self) -> list[Belief]:
        embeds = torch.tensor([self.table[token] for token in self.prompt] + self.vectors)
        logits = self.model.logits(embeds[None])[0][len(self.prompt) :].tolist()
        return [softmax(x, self.model.mask_id) for x in logits]

    def write(self, i: int, p: Belief) -> None:
        self.canvas[i] = p.index(max(p))
        self.vectors[i] = self.table[self.canvas[i]]
        self.commit_step[i] = self.refine_steps + self.decode_steps

    def credited(self, p: Belief, credit: dict[int, float]) -> Belief:
        """The belief with the credit of all tokens, after this pass's."""
        if self.c.credit_alpha == 0:
            return p
        for token in credit:
            credit[token] *= self.c.credit_decay
        best = p.index(max(p))
        credit[best] = credit.get(best, 0.0) + p[best] ** self.c.credit_gamma
        raised = [x * (1 + credit.get(v, 0.0)) ** self.c.credit_alpha for v, x in enumerate(p)]
        found = [x / sum(raised) for x in raised]
        if found.index(max(found)) != best:
            self.seen.add("another token by credit")
        return found

    def rejects(
        self, p: list[Belief], before: dict[int, Belief], i: int, was_rejected: bool
    ) -> bool:
        if not before:
            return False
        mean = [(a + b) / 2 for a, b in zip(p[i], before[i], strict=True)]
        js = (divergence(p[i], mean) + divergence(before[i], mean)) / 2
        return (math.log(2) / 2 if was_rejected else js) > self.c.reject_js

    def gap_is_large(self, p: list[Belief]) -> bool:
        c = self.c
        if c.stop_gap_early is None:
            return False
        places = self.open_in(range(len(p)))
        if c.stop_gap_start is not None:
            places = list(range(len(p)))[c.stop_gap_start :][: c.stop_gap_length]
        ranked = [sorted(p[i])[-2:] for i in places]
        gap = sum(math.log(one / two) for two, one in ranked) / len(places)
        share = self.decode_steps / (c.steps or c.gen_length)
        bound = c.stop_gap_early if share < 0.33 else c.stop_gap_middle
        return gap >= (bound if share < 0.67 else c.stop_gap_late)

    def named(self, q: dict[int, Belief]) -> list[int]:
        c = self.c
        sure = {i: max(x) for i, x in q.items()}
        named = named_by_rule(c, {i: entropy(x) for i, x in q.items()}, sure)
        if c.credit_alpha and c.confidence_threshold is not None:
            named += [i for i in q if i not in named and sure[i] >= max(sure.values()) - 1e-5]
        if c.commit_ceiling is not None:
            named = sorted(named, key=lambda i: (-sure[i], i))[: c.commit_ceiling]
        return named

    def feed_back(self, p: list[Belief], may_mix: list[int], block: list[int]) -> None:
        """The next inputs of all open positions."""
        for i in {*may_mix, *block}:
            if self.canvas[i] is None:
                mask = self.table[self.model.mask_id]
                self.vectors[i] = self.mixed(p[i]) if i in may_mix else mask

    def mixed(self, p: Belief) -> list[float]:
        c, mask_id = self.c, self.model.mask_id
        if not c.mixes:
            return list(self.table[mask_id])
        if c.mix == "lrd":
            return soft_embedding(p, c, self.table, mask_id)[1]
        ranked = sorted(range(len(p)), key=lambda v: (-p[v], v))
        if c.mix == "topk":
            chosen = ranked[: c.mix_top_k]
            weight = c.r_f * (1 - entropy(p) / math.log(len(p)))
        else:
            bound, chosen = min(max(2 * max(p), 0.2), 0.9), ranked[:1]
            for v in ranked[1:50]:
                if sum(p[u] for u in chosen) + p[v] > bound:
                    break
                chosen.append(v)
            weight = c.mix_share * sum(p[v] for v in chosen)
            self.seen |= {"several in the nucleus"} if len(chosen) > 1 else set()
        mass = sum(p[v] for v in chosen)
        found = [(1 - weight) * x for x in self.table[mask_id]]
        for v in chosen:
            found = [
                m + weight * p[v] / mass * x for m, x in zip(found, self.table[v], strict=True)
            ]
        return found


def decode_plainly(
    model: DiffusionModel,
    prompt: list[int],
    c: DecodingConfig,
    given: list[int | None] | None = None,
    eos_from: int = 0,
) -> Plain:
    """Decode one prompt. given: the canvas, None where it is open; all of it by default."""
    canvas = [None] * c.gen_length if given is None else list(given)
    found = Plain(model, prompt, c, canvas, eos_from)
    found.run()
    return found
