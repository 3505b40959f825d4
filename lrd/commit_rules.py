"""Which token each open position would take, its confidence, and which positions are committed.

The commit rules of the paper and of other samplers, as pure functions on tensors.

Legend: B samples, K positions of the current block, V columns of the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lrd.beliefs import EXCLUDED
from lrd.config import DecodingConfig


def gumbel_tokens(log_p_BKV: Tensor, temperature_BK: Tensor, uniform_BKV: Tensor) -> Tensor:
    """Sampled tokens [B, K]: LLaDA's rule argmax exp(logit) / (−log u)^temperature in float64.

    Constant shifts of the logits do not matter, so log-beliefs serve as logits. This is a
    draw from softmax(logits / temperature), and the argmax at temperature 0.
    """
    noise = (-uniform_BKV.double().log()) ** temperature_BK.double()[..., None]
    drawn_BK = (log_p_BKV.double().exp() / noise).argmax(-1)
    return torch.where(temperature_BK == 0, log_p_BKV.argmax(-1), drawn_BK)


def tempered(log_p_BKV: Tensor, temperature_BK: Tensor) -> Tensor:
    """log softmax(logits / temperature); the belief itself at temperature 0, as Dream has it."""
    at_zero_BK1 = (temperature_BK == 0)[..., None]
    divisor_BK1 = temperature_BK[..., None].masked_fill(at_zero_BK1, 1).to(log_p_BKV.dtype)
    warm_BKV = (log_p_BKV / divisor_BK1).clamp(min=EXCLUDED).log_softmax(-1).clamp(min=EXCLUDED)
    return torch.where(at_zero_BK1, log_p_BKV, warm_BKV)


def cut(log_q_BKV: Tensor, top_p: float | None, top_k: int | None) -> Tensor:
    """Which tokens [B, K, V] may be drawn: the most probable ones whose mass first exceeds
    top_p, and of these the top_k most probable (ties at the k-th stay), as Dream cuts them."""
    kept_BKV = torch.ones_like(log_q_BKV, dtype=torch.bool)
    if top_p is not None and top_p < 1:
        descending_BKV, order_BKV = log_q_BKV.exp().sort(dim=-1, descending=True, stable=True)
        mass_before_BKV = descending_BKV.cumsum(-1).roll(1, dims=-1)
        mass_before_BKV[..., 0] = 0
        kept_BKV = torch.zeros_like(kept_BKV).scatter(-1, order_BKV, mass_before_BKV <= top_p)
    if top_k is not None:
        remaining_BKV = log_q_BKV.masked_fill(~kept_BKV, EXCLUDED)
        kth_BK1 = remaining_BKV.topk(min(top_k, log_q_BKV.shape[-1]), dim=-1).values[..., -1:]
        kept_BKV = kept_BKV & (remaining_BKV >= kth_BK1)
    return kept_BKV


def choose_tokens(
    config: DecodingConfig,
    log_p_BKV: Tensor,
    temperature_BK: Tensor | None,
    draw: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """The token [B, K] each position would take, and the log-probabilities [B, K, V] that its
    confidence is read from: the belief, or under confidence_source = sampling what it is drawn
    from. temperature: None: 0 everywhere. draw: log-probabilities → tokens at the temperature."""
    log_r_BKV = log_p_BKV

    def warm(log_x_BKV: Tensor) -> Tensor:
        return log_x_BKV if temperature_BK is None else tempered(log_x_BKV, temperature_BK)

    if config.sample_top_p is not None or config.sample_top_k is not None:
        kept_BKV = cut(warm(log_p_BKV), config.sample_top_p, config.sample_top_k)
        log_p_BKV = log_p_BKV.masked_fill(~kept_BKV, EXCLUDED)
    if config.confidence_source == "sampling":
        log_r_BKV = warm(log_p_BKV.log_softmax(-1).clamp(min=EXCLUDED))
    if temperature_BK is None:
        return log_p_BKV.argmax(-1), log_r_BKV
    return draw(log_p_BKV), log_r_BKV


def token_confidence(config: DecodingConfig, log_r_BKV: Tensor, token_BK: Tensor) -> Tensor:
    """Probability of the token [B, K]; the margin of the first over the second token under
    confidence = margin."""
    if config.confidence == "margin":
        first_BK, second_BK = log_r_BKV.topk(2, dim=-1).values.exp().unbind(-1)
        return first_BK - second_BK
    return log_r_BKV.gather(-1, token_BK[..., None])[..., 0].exp()


def without_tokens(log_r_BKV: Tensor, tokens: Sequence[int]) -> Tensor:
    """Log-probabilities renormalised without these tokens (LLaDA's confidence_eos_eot_inf)."""
    log_r_BKV = log_r_BKV.clone()
    for token in tokens:
        log_r_BKV[..., token] = EXCLUDED
    return log_r_BKV.log_softmax(-1).clamp(min=EXCLUDED)


def is_any_of(token_BK: Tensor, tokens: Sequence[int]) -> Tensor:
    """Where a token [B, K] is one of `tokens`."""
    found_BK = torch.zeros_like(token_BK, dtype=torch.bool)
    for token in tokens:
        found_BK |= token_BK == token
    return found_BK


def scheduled_quota(
    config: DecodingConfig, num_open_B: Tensor, decode_pass_B: Tensor, num_at_start_B: Tensor
) -> Tensor:
    """How many positions [B] the schedule lets a block's decode pass commit; `is_scheduled`.

    num_open: open positions of the block before the pass. decode_pass: its number, from 1.
    num_at_start: open positions before the block's first one.
    """
    block_B, index_B = num_at_start_B, (decode_pass_B - 1).clamp(min=0)
    if config.schedule == "doubling":
        last_B = doubling_passes(config, num_at_start_B) - 1
        return torch.where(index_B >= last_B, num_open_B, 1 << index_B.clamp(max=62))
    assert config.steps is not None
    steps = config.steps // config.num_blocks
    if config.confidence_threshold is not None and config.stable_kl is None:
        # Fast-dLLM's Dream: what a pass leaves of its share stays available to later passes.
        target_B = torch.where(index_B >= steps - 1, block_B, block_B // steps * (index_B + 1))
        return (target_B - (block_B - num_open_B)).clamp(min=1)
    if config.schedule == "even":
        return block_B // steps + (index_B < block_B % steps).long()
    if config.schedule in ("linear", "cosine"):
        return num_open_B  # `decoders/rcr.py` opens the rest again.
    times = torch.linspace(1, config.schedule_eps, steps + 1, device=num_open_B.device)
    now_B = index_B.clamp(max=steps - 1)
    share_B = 1 - times[now_B + 1] / times[now_B]
    return torch.where(index_B >= steps - 1, num_open_B, (num_open_B * share_B).long())


def doubling_passes(config: DecodingConfig, num_at_start_B: Tensor) -> Tensor:
    """Passes [B] over which the schedule `doubling` shares out so many open positions: those of
    `steps`, or log2 of their number, rounded down."""
    if config.steps is not None:
        return torch.full_like(num_at_start_B, config.steps // config.num_blocks)
    exponent_B = torch.frexp(num_at_start_B.double()).exponent.long()
    return (exponent_B - 1).clamp(min=1)


def choose_commits(
    config: DecodingConfig,
    entropy_BK: Tensor,
    confidence_BK: Tensor,
    open_BK: Tensor,
    quota_B: Tensor | None = None,
) -> Tensor:
    """Positions [B, K] that the commit rule names: surest first, only open ones, and at least
    one unless a schedule's quota is 0. Ties go to the earlier position.

    confidence is the token's probability, or its margin. quota: see `scheduled_quota`.
    """
    by_entropy = config.confidence_threshold is None and config.confidence == "entropy"
    doubt_BK = entropy_BK if by_entropy else -confidence_BK
    sorted_BK, order_BK = doubt_BK.masked_fill(~open_BK, torch.inf).sort(dim=-1, stable=True)
    rank_K = torch.arange(open_BK.shape[1], device=open_BK.device)
    within_BK = (rank_K < (config.tokens_per_step if quota_B is None else quota_B[:, None])).expand(
        open_BK.shape
    )
    if config.entropy_threshold is not None:
        chosen_BK = (sorted_BK < config.entropy_threshold) | (rank_K == 0)
    elif config.confidence_threshold is not None:
        chosen_BK = (-sorted_BK >= config.confidence_threshold) | (rank_K == 0)
        chosen_BK = chosen_BK & within_BK if quota_B is not None else chosen_BK
    elif config.entropy_bound is not None:
        # Ascending, so the sum less its largest member is the sum of those before.
        before_BK = sorted_BK.cumsum(-1).roll(1, dims=-1)
        chosen_BK = (before_BK <= config.entropy_bound) & (sorted_BK < torch.inf)
        chosen_BK = chosen_BK | (rank_K == 0)
    else:
        chosen_BK = within_BK
    return torch.zeros_like(open_BK).scatter(-1, order_BK, chosen_BK) & open_BK


def surest(confidence_BK: Tensor, among_BK: Tensor, most_B: Tensor) -> Tensor:
    """At most so many of these positions [B, K], the most confident; ties go to the earlier."""
    order_BK = (-confidence_BK).masked_fill(~among_BK, torch.inf).argsort(dim=-1, stable=True)
    rank_K = torch.arange(among_BK.shape[1], device=among_BK.device)
    chosen_BK = rank_K < most_B[:, None]
    return torch.zeros_like(among_BK).scatter(-1, order_BK, chosen_BK) & among_BK
