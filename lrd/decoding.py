"""The procedure: canvases of many samples, advanced by one forward pass at a time.

Every sample has its own block, phase, counts and stop; nothing here decides for a batch.
All of a pass is tensor operations under masks, so that it needs no host synchronisation.
Knows nothing of queues, slots or text: `engine.py` fills and empties the canvases, and
`sampling.py` names tokens and commits.

Legend: B samples, L columns (prompt, canvas, padding), G canvas positions, K positions of the
current block, D width, V columns of the logits, T passes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrd import beliefs
from lrd.canvases import Canvases, StopReason
from lrd.config import DecodingConfig
from lrd.models.protocol import DiffusionModel
from lrd.sampling import (
    choose_commits,
    choose_tokens,
    gumbel_tokens,
    is_any_of,
    scheduled_quota,
    token_confidence,
    without_tokens,
)

__all__ = ["Canvases", "StopReason", "choose_commits", "gumbel_tokens", "step"]

LAST = -beliefs.EXCLUDED
"""A doubt that any sure position is below; finite, since closed positions have infinity."""


def step(
    model: DiffusionModel,
    config: DecodingConfig,
    state: Canvases,
    uniform_BKV: Tensor | None = None,
) -> None:
    """One forward pass for every running sample, in place (decoding.md, 'One sample, one block').

    uniform [B, K, V]: each sample's own draws in (0, 1), needed at temperature > 0.
    """
    K = config.block_tokens
    running_B = state.stop_B == StopReason.RUNNING
    position_BK = state.block_B[:, None] * K + torch.arange(K, device=running_B.device)
    column_BK = state.start_B[:, None] + position_BK
    ids_BK = state.canvas_BG.gather(1, position_BK)
    open_BK = (ids_BK == model.mask_id) & running_B[:, None]

    log_p_BKV = block_beliefs(model, config, state, column_BK)
    entropy_BK = beliefs.entropy(log_p_BKV)
    failed_B = (open_BK & ~torch.isfinite(entropy_BK)).any(-1)
    monitor_B, eq6_B = divergences(config, state, log_p_BKV, open_BK)
    decoding_B = enter_phase(config, state, eq6_B, running_B)
    stop_B = early_stop(config, state, monitor_B, entropy_BK, open_BK, decoding_B)

    token_BK, commit_BK = name_commits(
        model, config, state, log_p_BKV, entropy_BK, open_BK, uniform_BKV
    )
    commit_BK = (commit_BK | stop_B[:, None]) & decoding_B[:, None] & open_BK
    ids_BK = torch.where(commit_BK, token_BK, ids_BK)
    still_open_BK = open_BK & ~commit_BK
    write_commits(state, ids_BK, commit_BK, position_BK)
    record_pass(state, eq6_B, entropy_BK, open_BK, running_B, stop_B)
    next_BKD = next_inputs(model, config, state, log_p_BKV, entropy_BK, ids_BK, still_open_BK)
    write_inputs(state, next_BKD, column_BK, running_B)

    block_done_B = decoding_B & ~still_open_BK.any(-1)
    end_samples(model, config, state, ids_BK, still_open_BK, decoding_B, block_done_B, stop_B)
    state.stop_B = torch.where(failed_B, int(StopReason.FAILED), state.stop_B)
    advance(config, state, running_B, decoding_B, block_done_B)
    state.log_p_BKV = log_p_BKV


def block_beliefs(
    model: DiffusionModel, config: DecodingConfig, state: Canvases, column_BK: Tensor
) -> Tensor:
    """The forward pass: log p_t [B, K, V] of the current block's positions."""
    if config.cfg_scale > 0:
        logits_BKV = guided_logits(model, config.cfg_scale, state, column_BK)
    else:
        logits_BKV = model.logits(state.embeds_BLD, state.attention_mask_BL, column_BK)
    if config.logits_eos_inf:
        logits_BKV[..., model.eos_id] = -torch.inf
    return beliefs.log_beliefs(logits_BKV, model.mask_id)


def guided_logits(
    model: DiffusionModel, scale: float, state: Canvases, column_BK: Tensor
) -> Tensor:
    """Classifier-free guidance: away from what the canvas alone says, its prompt all [MASK]."""
    columns_L = torch.arange(state.embeds_BLD.shape[1], device=column_BK.device)
    prompt_BL1 = (columns_L < state.start_B[:, None])[..., None]
    mask_embedding_D = model.embedding_table[model.mask_id]
    unprompted_BLD = torch.where(prompt_BL1, mask_embedding_D, state.embeds_BLD)
    conditional_BKV, unconditional_BKV = model.logits(
        torch.cat([state.embeds_BLD, unprompted_BLD]),
        torch.cat([state.attention_mask_BL, state.attention_mask_BL]),
        torch.cat([column_BK, column_BK]),
    ).chunk(2)
    return unconditional_BKV + (scale + 1) * (conditional_BKV - unconditional_BKV)


def divergences(
    config: DecodingConfig, state: Canvases, log_p_BKV: Tensor, open_BK: Tensor
) -> tuple[Tensor, Tensor]:
    """The monitor [B] and Eq. 6's D_t [B] against the pass before; NaN in a block's first."""
    has_before_B = state.pass_in_block_B > 0
    kl_BK = beliefs.kl_divergence(log_p_BKV, state.log_p_BKV)
    monitor_B = beliefs.reduce_kl(kl_BK, open_BK, config.reduction, config.scope)
    eq6_B = beliefs.reduce_kl(kl_BK, open_BK, "mean", "block")
    return (
        torch.where(has_before_B, monitor_B, torch.nan),
        torch.where(has_before_B, eq6_B, torch.nan),
    )


def enter_phase(
    config: DecodingConfig, state: Canvases, eq6_B: Tensor, running_B: Tensor
) -> Tensor:
    """Refine or decode? Counts the pass and returns which samples decode in it [B].

    A comparison with NaN is false, so a block's first pass never has settled.
    """
    if isinstance(config.refinement, int):
        settled_B = state.phase_steps_B >= config.refinement
        by_threshold_B = torch.zeros_like(settled_B)
    else:
        by_threshold_B = eq6_B < config.tau_refine
        settled_B = by_threshold_B | (state.phase_steps_B >= config.max_refine_steps)
    decoding_B = running_B & (~state.refining_B | settled_B)
    state.all_phases_converged_B &= ~(decoding_B & state.refining_B) | by_threshold_B
    state.refine_steps_B += running_B & ~decoding_B
    state.phase_steps_B += running_B & ~decoding_B
    state.decode_steps_B += decoding_B
    state.decode_in_block_B += decoding_B
    return decoding_B


def early_stop(
    config: DecodingConfig,
    state: Canvases,
    monitor_B: Tensor,
    entropy_BK: Tensor,
    open_BK: Tensor,
    decoding_B: Tensor,
) -> Tensor:
    """Samples [B] whose block has converged, from its second decode pass on."""
    if not config.early_stop:
        return torch.zeros_like(decoding_B)
    calm_B = (monitor_B < config.tau_decode) & (state.decode_in_block_B >= 2)
    counted_B = torch.where(calm_B, state.calm_B + 1, 0)
    state.calm_B = torch.where(decoding_B, counted_B, state.calm_B)
    stop_B = decoding_B & (state.calm_B >= config.patience)
    if config.stop_max_entropy is not None:
        sure_BK = (entropy_BK < config.stop_max_entropy) | ~open_BK
        stop_B &= sure_BK.all(-1)
    return stop_B


def name_commits(
    model: DiffusionModel,
    config: DecodingConfig,
    state: Canvases,
    log_p_BKV: Tensor,
    entropy_BK: Tensor,
    open_BK: Tensor,
    uniform_BKV: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Each position's token [B, K], and the positions [B, K] that the commit rule names."""
    token_BK, log_r_BKV = choose_tokens(config, log_p_BKV, uniform_BKV)
    late_ids = [model.eos_id] if config.confidence_eos_eot_inf else []
    if late_ids and model.eot_id is not None:
        late_ids.append(model.eot_id)
    if late_ids:
        log_r_BKV = without_tokens(log_r_BKV, late_ids)
    # The belief's own entropy is known; any other source needs its own.
    doubt_BK = entropy_BK if log_r_BKV is log_p_BKV else beliefs.entropy(log_r_BKV)
    confidence_BK = token_confidence(config, log_r_BKV, token_BK)
    if late_ids:
        late_BK = is_any_of(token_BK, late_ids)
        doubt_BK = doubt_BK.masked_fill(late_BK, LAST)
        confidence_BK = confidence_BK.masked_fill(late_BK, -LAST)
    quota_B = None
    if config.steps is not None:
        quota_B = scheduled_quota(config, open_BK.sum(-1), state.decode_in_block_B)
    return token_BK, choose_commits(config, doubt_BK, confidence_BK, open_BK, quota_B)


def write_commits(state: Canvases, ids_BK: Tensor, commit_BK: Tensor, position_BK: Tensor) -> None:
    """Tokens into the canvas, and the number of the pass that committed them."""
    num_forwards_B = state.refine_steps_B + state.decode_steps_B
    state.canvas_BG.scatter_(1, position_BK, ids_BK)
    commit_step_BK = state.commit_step_BG.gather(1, position_BK)
    commit_step_BK = torch.where(commit_BK, num_forwards_B[:, None], commit_step_BK)
    state.commit_step_BG.scatter_(1, position_BK, commit_step_BK)


def record_pass(
    state: Canvases,
    eq6_B: Tensor,
    entropy_BK: Tensor,
    open_BK: Tensor,
    running_B: Tensor,
    stop_B: Tensor,
) -> None:
    """Traces of this pass, and what an early stop commits unsettled."""
    trace_B1 = (state.refine_steps_B + state.decode_steps_B - 1).clamp(min=0)[:, None]
    num_open_B = open_BK.sum(-1)
    entropy_open_BK = entropy_BK * open_BK
    mean_entropy_B = entropy_open_BK.sum(-1) / num_open_B.clamp(min=1)
    for trace_BT, value_B in (
        (state.kl_trace_BT, eq6_B),
        (state.entropy_trace_BT, mean_entropy_B),
    ):
        kept_B1 = trace_BT.gather(1, trace_B1)
        trace_BT.scatter_(1, trace_B1, torch.where(running_B[:, None], value_B[:, None], kept_B1))
    state.open_at_stop_B += torch.where(stop_B, num_open_B, 0)
    state.max_entropy_at_stop_B = torch.where(
        stop_B,
        torch.maximum(state.max_entropy_at_stop_B, entropy_open_BK.amax(-1)),
        state.max_entropy_at_stop_B,
    )


def next_inputs(
    model: DiffusionModel,
    config: DecodingConfig,
    state: Canvases,
    log_p_BKV: Tensor,
    entropy_BK: Tensor,
    ids_BK: Tensor,
    still_open_BK: Tensor,
) -> Tensor:
    """The block's next embeddings [B, K, D]: tokens where committed, soft embeddings where open
    (Eq. 3 and 7)."""
    mask_embedding_D = model.embedding_table[model.mask_id]
    if config.mixes:
        alpha_BK = beliefs.mix_weight(entropy_BK, log_p_BKV.shape[-1], config.r_f)
        p_bar_BKV = beliefs.nucleus(log_p_BKV.exp(), config.top_p)
        open_BKD = beliefs.soft_embedding(
            p_bar_BKV, alpha_BK, model.embedding_table, mask_embedding_D
        )
        state.mix_weight_sum_B += (alpha_BK * still_open_BK).sum(-1)
        state.mix_weight_count_B += still_open_BK.sum(-1)
    else:
        open_BKD = mask_embedding_D.expand(*ids_BK.shape, -1)
    return torch.where(still_open_BK[..., None], open_BKD, model.embed(ids_BK))


def write_inputs(state: Canvases, next_BKD: Tensor, column_BK: Tensor, running_B: Tensor) -> None:
    """The block's next embeddings into its columns, for running samples alone."""
    column_BKD = column_BK[..., None].expand_as(next_BKD)
    kept_BKD = state.embeds_BLD.gather(1, column_BKD)
    next_BKD = torch.where(running_B[:, None, None], next_BKD, kept_BKD)
    state.embeds_BLD.scatter_(1, column_BKD, next_BKD)


def end_samples(
    model: DiffusionModel,
    config: DecodingConfig,
    state: Canvases,
    ids_BK: Tensor,
    still_open_BK: Tensor,
    decoding_B: Tensor,
    block_done_B: Tensor,
    stop_B: Tensor,
) -> None:
    """Samples end with their last block, or at an EOS that has no gap before it."""
    ended_B = block_done_B & (state.block_B == config.num_blocks - 1)
    reason_B = torch.where(stop_B, int(StopReason.CONVERGED), int(StopReason.COMPLETE))
    if config.stop_at_eos and config.num_blocks > 1:
        gapless_BK = still_open_BK.long().cumsum(-1) == 0
        at_eos_B = decoding_B & ((ids_BK == model.eos_id) & gapless_BK).any(-1)
        reason_B = torch.where(at_eos_B & ~ended_B, int(StopReason.EOS), reason_B)
        ended_B = ended_B | at_eos_B
        open_BG = (state.canvas_BG == model.mask_id) & at_eos_B[:, None]
        state.canvas_BG.masked_fill_(open_BG, model.eos_id)
    state.stop_B = torch.where(ended_B, reason_B, state.stop_B)


def advance(
    config: DecodingConfig,
    state: Canvases,
    running_B: Tensor,
    decoding_B: Tensor,
    block_done_B: Tensor,
) -> None:
    """Counters for the next pass: refinement starts with a block, or after every commitment
    (auto, LF×k)."""
    refine_again_B = block_done_B if config.refinement == "initial" else decoding_B
    state.refining_B = torch.where(refine_again_B, config.refines, state.refining_B & ~decoding_B)
    state.phase_steps_B.masked_fill_(decoding_B, 0)
    state.pass_in_block_B = torch.where(block_done_B, 0, state.pass_in_block_B + running_B)
    state.decode_in_block_B.masked_fill_(block_done_B, 0)
    state.calm_B.masked_fill_(block_done_B, 0)
    # A sample that has ended stays in the block that it ended in.
    state.block_B += block_done_B & (state.stop_B == StopReason.RUNNING)
