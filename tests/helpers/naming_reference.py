"""Decoders that only name commits, in loops, for one sample: written from their rules alone.

`decode_named` is the procedure around them with soft embeddings and k refinement passes before
every commitment; columns that a decoder hides are not fed at all. Early stops, ends at EOS and
draws are left out: `reference.py` has them.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

import torch

from helpers.reference import Belief, divergence, entropy, soft_embedding, softmax
from lrd.config import DecodingConfig
from lrd.models.protocol import DiffusionModel


@dataclass
class View:
    """What a decoder sees of one pass."""

    c: DecodingConfig
    first: int
    """The block's first position."""
    block: list[int]
    """Its open positions."""
    later: list[int]
    """Open positions behind the block."""
    sure: dict[int, float]
    """Probability of each open position's token."""
    h: dict[int, float]
    kl: dict[int, float]
    """Of the block's open positions, infinite in its first pass."""
    is_eos: dict[int, bool]
    decode_pass: int
    """Of the block, from 1."""
    num_at_start: int
    """Open positions of the block before its first pass."""

    def best(self, number: int, among: list[int]) -> list[int]:
        return sorted(among, key=lambda i: (-self.sure[i], i))[:number]

    def admitted(self, among: list[int]) -> list[int]:
        threshold = self.c.confidence_threshold
        assert threshold is not None
        return [i for i in among if self.sure[i] >= threshold] or self.best(1, among)


class Named:
    """A decoder: what it sees of each pass, and what it commits. Here Fast-dLLM's rule."""

    def end(self, c: DecodingConfig, first: int, opened: list[int], starts: bool) -> int:
        """Positions of the canvas from here on are not fed. starts: the block's first pass."""
        return c.gen_length

    def watch(self, view: View) -> None:
        """Called in every pass, refinement too."""

    def names(self, view: View) -> list[int]:
        return view.admitted(view.block)


@dataclass
class NamedKlass(Named):
    calm: dict[int, int] = field(default_factory=dict)

    def watch(self, view: View) -> None:
        limit = view.c.stable_kl
        assert limit is not None
        self.calm = {i: self.calm.get(i, 0) + 1 if view.kl[i] < limit else 0 for i in view.block}

    def names(self, view: View) -> list[int]:
        c, threshold = view.c, view.c.confidence_threshold
        assert threshold is not None
        stable = [i for i in view.block if self.calm[i] >= c.stable_passes]
        share = 1
        if c.steps is not None:
            each, rest = divmod(view.num_at_start, c.steps // c.num_blocks)
            share = each + (view.decode_pass <= rest)
        chosen = [i for i in stable if view.sure[i] >= threshold]
        return chosen or view.best(share, view.block)


class NamedLocalLeap(Named):
    def names(self, view: View) -> list[int]:
        c, threshold = view.c, view.c.confidence_threshold
        assert threshold is not None
        assert c.leap_radius is not None
        anchors = [i for i in view.block if view.sure[i] >= threshold]
        leaps = [
            i
            for i in view.block
            if view.sure[i] >= c.leap_threshold
            and any(abs(i - a) <= c.leap_radius for a in anchors)
        ]
        return sorted({*anchors, *leaps}) or view.best(1, view.block)


class NamedEoser(Named):
    def names(self, view: View) -> list[int]:
        c, tau, start = view.c, view.decode_pass, view.c.eos_confidence_start
        if c.schedule == "doubling":
            passes = c.steps // c.num_blocks if c.steps else int(math.log2(view.num_at_start))
            number = 2 ** (tau - 1) if tau < passes else len(view.block)
            share = (2**tau - 1) / 2**passes
        else:
            assert c.steps is not None
            each, rest = divmod(view.num_at_start, c.steps // c.num_blocks)
            number, share = each + (tau <= rest), (tau - 1) / (c.steps - 1)
        factor = start + (1 - start) * min(1.0, share)
        for i in view.block:
            view.sure[i] *= factor if view.is_eos[i] else 1
        return view.best(number, view.block)


class NamedExplore(Named):
    def names(self, view: View) -> list[int]:
        threshold, above = view.c.confidence_threshold, view.c.explore_above
        assert threshold is not None
        assert above is not None
        exploited = [i for i in (*view.block, *view.later) if view.sure[i] >= threshold]
        if any(i in view.block for i in exploited):
            return exploited
        uncertain = [i for i in view.block if view.h[i] > above]
        if uncertain:
            return [*exploited, max(uncertain, key=lambda i: (view.h[i], -i))]
        return [*exploited, *view.best(1, view.block)]


@dataclass
class NamedSlowFast(Named):
    start: int = 0
    length: int = 0
    explored: int = 0
    decoded: int = 0
    estimates: list[int] = field(default_factory=list)

    def _begin(self, start: int) -> None:
        self.start, self.length, self.explored, self.decoded = start, 0, 0, 0
        self.estimates = []

    def end(self, c: DecodingConfig, first: int, opened: list[int], starts: bool) -> int:
        if starts:
            self._begin(0)
        exploring = self.explored < c.span_explore
        if not exploring and all(i - first >= self.length for i in opened):
            self._begin(self.length)
        return first + self.length if self.decoded else c.gen_length

    def names(self, view: View) -> list[int]:
        c = view.c
        if self.explored == c.span_explore:
            self.decoded += 1
            return view.admitted([i for i in view.block if i - view.first < self.length])
        self.explored += 1
        if not self.length:
            assert c.span_confidence is not None
            far = [i - view.first for i in view.block if view.sure[i] >= c.span_confidence]
            estimate = max(far) + 1 if far else self.start + 1
            self.estimates.append(max(1, min(estimate, c.block_tokens)))
            last = self.estimates[-c.span_window :]
            if len(last) == c.span_window and statistics.pstdev(last) < c.span_std:
                self.length = last[-1]
            elif self.explored == c.span_explore:
                self.length = sum(last) // len(last)
        return view.admitted(view.block)


def decode_named(
    model: DiffusionModel,
    prompt: list[int],
    c: DecodingConfig,
    decoder: Named,
    given: list[int | None],
) -> tuple[list[int | None], list[int], int]:
    """Canvas, commit steps and number of passes. given: the canvas, None where it is open."""
    mask_id, table = model.mask_id, model.embedding_table.tolist()
    canvas, commit_step, passes = list(given), [0] * len(given), 0
    vectors = [table[mask_id if token is None else token] for token in canvas]
    refinements = c.refinement if isinstance(c.refinement, int) else 0
    for first in range(0, c.gen_length, c.block_tokens):
        block = range(first, first + c.block_tokens)
        before: dict[int, Belief] = {}
        num_at_start = sum(canvas[i] is None for i in block)
        refined = decode_pass = 0
        starts = True
        while any(canvas[i] is None for i in block):
            opened = [i for i in block if canvas[i] is None]
            later = [i for i in range(block.stop, c.gen_length) if canvas[i] is None]
            end = decoder.end(c, first, opened, starts)
            embeds = torch.tensor([table[token] for token in prompt] + vectors[:end])
            logits = model.logits(embeds[None])[0][len(prompt) :].tolist()
            # Where a position is not fed, its last belief stands: nothing reads it.
            p = {
                i: softmax(logits[i], mask_id) if i < end else before[i] for i in (*opened, *later)
            }
            token = {i: max(range(len(p[i])), key=lambda v: p[i][v]) for i in p}
            view = View(
                c=c,
                first=first,
                block=opened,
                later=later,
                sure={i: p[i][token[i]] for i in p},
                h={i: entropy(p[i]) for i in p},
                kl={i: math.inf if starts else divergence(p[i], before[i]) for i in opened},
                is_eos={i: token[i] == model.eos_id for i in p},
                decode_pass=decode_pass + 1,
                num_at_start=num_at_start,
            )
            before, starts = p, False
            passes += 1
            decoder.watch(view)
            if refined < refinements:
                refined += 1
            else:
                refined, decode_pass = 0, decode_pass + 1
                for i in decoder.names(view):
                    canvas[i], commit_step[i] = token[i], passes
                    vectors[i] = table[token[i]]
            if c.mixes:
                for i in opened:
                    if canvas[i] is None and i < end:
                        vectors[i] = soft_embedding(p[i], c, table, mask_id)[1]
    return canvas, commit_step, passes
