"""SlowFast sampling: a block is decoded span by span (code: LiangrunFlora/Slow-Fast-Sampling).

A block's cycle begins at d, up to where it is full (0 at first):

* explore: `span_explore` passes over all of [d, K). Each estimates how far the canvas is settled,
  one past the last open position of probability `span_confidence` (none: d + 1), until the last
  `span_window` estimates differ by a standard deviation below `span_std`: the last one is then the
  span's end. Where they never agree, their mean is.
* decode: until [d, end) is full. From the second of these passes on, all columns behind the end are
  hidden. Then d = end.

Each pass commits what `confidence_threshold` admits of [d, K), or of [d, end), and at least one.

Differs from the authors' code: passes that find nothing open are left out, which changes no token;
hidden columns are masked and not cut off, which costs their computation; a past is not cached.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lrd.config import DecodingConfig
from lrd.decoders.rule import Row, Rule
from lrd.one_pass import Pass

SPAN, ESTIMATES = "slow_fast_span", "slow_fast_estimates"


@dataclass(slots=True)
class Spans:
    """Where samples are in their cycle; positions count from the block's start."""

    start_B: Tensor
    end_B: Tensor
    """0 while it is undecided."""
    explored_B: Tensor
    """Decode passes of the exploration, and of the rest."""
    decoded_B: Tensor
    num_estimates_B: Tensor

    @classmethod
    def of(cls, now: Pass) -> Spans:
        return cls(*now.state.kept[SPAN].unbind(-1))

    def keep(self, now: Pass) -> None:
        now.state.kept[SPAN] = torch.stack(
            [self.start_B, self.end_B, self.explored_B, self.decoded_B, self.num_estimates_B], -1
        )


class SlowFast(Rule):
    """Commits within a span whose end it estimates."""

    def applies(self, config: DecodingConfig) -> bool:
        return config.span_confidence is not None

    def keeps(self, config: DecodingConfig) -> dict[str, Row]:
        return {SPAN: ((5,), torch.long), ESTIMATES: ((config.span_window,), torch.long)}

    def hides(self, now: Pass) -> Tensor | None:
        """Columns behind a span, from its second decode pass on. Begins the next cycle where the
        span is full."""
        spans = begin_cycle(now)
        spans.keep(now)
        column_L = torch.arange(now.state.embeds_BLD.shape[1], device=spans.end_B.device)
        end_B = block_start(now) + now.state.start_B + spans.end_B
        return (column_L >= end_B[:, None]) & (spans.decoded_B > 0)[:, None]

    def may_commit(self, now: Pass, open_BK: Tensor) -> Tensor:
        spans = Spans.of(now)
        explores_B = now.decoding_B & (spans.explored_B < now.config.span_explore)
        within_BK = in_block(now) < spans.end_B[:, None]
        estimate(now, spans, explores_B)
        spans.decoded_B = spans.decoded_B + (now.decoding_B & ~explores_B)
        spans.keep(now)
        return open_BK & (explores_B[:, None] | within_BK)


def block_start(now: Pass) -> Tensor:
    """The first canvas position of each sample's block."""
    return now.state.block_B * now.config.block_tokens


def in_block(now: Pass) -> Tensor:
    """Positions [B, K] counted from the block's start."""
    return now.position_BK - block_start(now)[:, None]


def begin_cycle(now: Pass) -> Spans:
    """The spans of this pass: a new one in a block's first pass, and where the last one is full."""
    spans = Spans.of(now)
    is_first_B = now.is_first[:, 0]
    left_BK = now.open_BK & (in_block(now) < spans.end_B[:, None])
    full_B = (spans.explored_B >= now.config.span_explore) & ~left_BK.any(-1)
    start_B = torch.where(full_B, spans.end_B, spans.start_B).masked_fill(is_first_B, 0)
    begins_B = is_first_B | full_B
    others = (spans.end_B, spans.explored_B, spans.decoded_B, spans.num_estimates_B)
    return Spans(start_B, *(value_B.masked_fill(begins_B, 0) for value_B in others))


def estimate(now: Pass, spans: Spans, explores_B: Tensor) -> None:
    """An exploring pass's estimate of the span's end, and the end where it decides it."""
    config, kept = now.config, now.state.kept
    assert config.span_confidence is not None
    settled_BK = now.open_BK & (now.reading.confidence_BK >= config.span_confidence)
    # One past the last settled position; committed ones before `start` are never beyond it.
    far_B = torch.where(settled_BK, in_block(now) + 1, 0).amax(-1)
    found_B = torch.where(far_B > 0, far_B, spans.start_B + 1).clamp(1, config.block_tokens)
    guesses_B = explores_B & (spans.end_B == 0)
    shifted_BW = torch.cat([kept[ESTIMATES][:, 1:], found_B[:, None]], dim=-1)
    kept[ESTIMATES] = torch.where(guesses_B[:, None], shifted_BW, kept[ESTIMATES])
    spans.num_estimates_B = spans.num_estimates_B + guesses_B
    spans.explored_B = spans.explored_B + explores_B

    enough_B = spans.num_estimates_B >= config.span_window
    spread_B = kept[ESTIMATES].double().std(-1, correction=0)
    agree_B = enough_B & (spread_B < config.span_std)
    last_B = spans.explored_B >= config.span_explore
    end_B = torch.where(agree_B, found_B, mean_estimate(kept[ESTIMATES], spans.num_estimates_B))
    spans.end_B = torch.where(guesses_B & (agree_B | last_B), end_B, spans.end_B)


def mean_estimate(estimate_BW: Tensor, number_B: Tensor) -> Tensor:
    """The mean of the last estimates, rounded down; there may be fewer than the window holds."""
    W = estimate_BW.shape[1]
    age_W = torch.arange(W - 1, -1, -1, device=estimate_BW.device)
    known_BW = age_W < number_B[:, None]
    return torch.where(known_BW, estimate_BW, 0).sum(-1) // known_BW.sum(-1).clamp(min=1)
