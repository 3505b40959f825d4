"""The procedure: canvases of many samples, advanced by one forward pass at a time.

Every sample has its own block, phase, counts and stop; nothing here decides for a batch.
All of a pass is tensor operations under masks, so that it needs no host synchronisation.
`engine.py` fills and empties the canvases, `forward.py` runs the model and reads its beliefs,
`commit_rules.py` chooses the positions to commit.

Legend: B samples, L columns (prompt, canvas, padding), G canvas positions, K positions of the
current block, D width, T passes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrd import beliefs, block_cache
from lrd.canvases import Canvases, StopReason
from lrd.choices import NOT_YET
from lrd.commit_rules import choose_commits, is_any_of, scheduled_quota
from lrd.config import DecodingConfig
from lrd.draws import Draws
from lrd.forward import Reading, read_block
from lrd.models.protocol import DiffusionModel, eos_ids

__all__ = ["Canvases", "StopReason", "step"]


def step(
    model: DiffusionModel,
    config: DecodingConfig,
    state: Canvases,
) -> None:
    """One forward pass for every running sample, in place."""
    K = config.block_tokens
    running_B = state.stop_B == int(StopReason.RUNNING)
    position_BK = state.block_B[:, None] * K + torch.arange(K, device=running_B.device)
    column_BK = state.start_B[:, None] + position_BK
    ids_BK = state.canvas_BG.gather(1, position_BK)
    open_BK = (ids_BK == model.mask_id) & running_B[:, None]

    passes_B = state.refine_steps_B + state.decode_steps_B
    # The first pass in blocks looks at the last one, and decides about the canvas alone.
    looking_B = (passes_B == 0) & config.looks
    draws = draws_of_pass(model, config, state, passes_B, position_BK)
    reading = read_block(model, config, state, column_BK, open_BK, draws)
    entropy_BK = reading.entropy_BK
    block_cache.count(model, config, state, running_B)
    failed_B = (open_BK & ~torch.isfinite(entropy_BK)).any(-1)
    divergence_B2 = divergences(config, state, reading.kl_BK, open_BK)
    monitor_B2 = monitored(config, state, divergence_B2, running_B)
    decoding_B = enter_phase(config, state, monitor_B2[:, 1], running_B, looking_B)
    stop_B = early_stop(config, state, monitor_B2[:, 0], entropy_BK, open_BK, decoding_B)

    ready_BK = open_BK
    if state.class_BG is not None:
        ready_BK = open_BK & (state.class_BG.gather(1, position_BK) != NOT_YET)
        stop_B = stop_B & (ready_BK == open_BK).all(-1)
    commit_BK = name_commits(config, state, reading, open_BK, ready_BK)
    commit_BK = (commit_BK | stop_B[:, None]) & decoding_B[:, None] & open_BK
    ids_BK = torch.where(commit_BK, reading.token_BK, ids_BK)
    still_open_BK = open_BK & ~commit_BK
    write_commits(state, reading, ids_BK, commit_BK, position_BK)
    record_pass(state, divergence_B2[:, 1], entropy_BK, open_BK, running_B, stop_B)
    mixed_BK = still_open_BK & ~looking_B[:, None]
    next_BKD = next_inputs(model, config, state, reading, ids_BK, mixed_BK)
    write_inputs(state, next_BKD, column_BK, running_B)

    block_done_B = decoding_B & ~still_open_BK.any(-1)
    left_BM = (state.canvas_BG == model.mask_id).view(-1, config.num_blocks, K).any(-1)
    ended_B = block_done_B & ~left_BM.any(-1)
    state.stop_B = torch.where(
        ended_B,
        torch.where(stop_B, int(StopReason.CONVERGED), int(StopReason.COMPLETE)),
        state.stop_B,
    )
    end_at_eos(model, config, state, ids_BK, position_BK, still_open_BK, decoding_B)
    if config.grows:
        first_B = running_B & (passes_B == 0)
        too_short_B = lacks_room(model, config, state, reading, first_B, ended_B)
        state.stop_B = torch.where(too_short_B, int(StopReason.GROW), state.stop_B)
    state.stop_B = torch.where(failed_B, int(StopReason.FAILED), state.stop_B)
    next_block_B = torch.where(looking_B, 0, left_BM.byte().argmax(-1))
    advance(config, state, running_B, decoding_B, block_done_B | looking_B, next_block_B)


def draws_of_pass(
    model: DiffusionModel,
    config: DecodingConfig,
    state: Canvases,
    passes_B: Tensor,
    position_BK: Tensor,
) -> Draws | None:
    """What tokens are drawn with; None where none is drawn."""
    temperature_B = state.temperature_B
    if temperature_B is None:
        if config.temperature == 0:
            return None
        temperature_B = torch.full_like(passes_B, config.temperature, dtype=torch.float64)
    num_columns = model.embedding_table.shape[0]
    return Draws.of(state.seed_B, passes_B, position_BK, temperature_B, num_columns)


def divergences(config: DecodingConfig, state: Canvases, kl_BK: Tensor, open_BK: Tensor) -> Tensor:
    """D_t [B, 2] against the pass before: as `reduction` and `scope` have it, and Eq. 6's. NaN in a
    block's first pass."""
    K = config.block_tokens
    length_B = (state.length_B - state.block_B * K).clamp(max=K)
    chosen_B = beliefs.reduce_kl(kl_BK, open_BK, config.reduction, config.scope, length_B)
    eq6_B = beliefs.reduce_kl(kl_BK, open_BK, "mean", "block", length_B)
    has_before_B1 = state.pass_in_block_B[:, None] > 0
    return torch.where(has_before_B1, torch.stack([chosen_B, eq6_B], dim=-1), torch.nan)


def monitored(
    config: DecodingConfig, state: Canvases, divergence_B2: Tensor, running_B: Tensor
) -> Tensor:
    """What tau_decode and tau_refine are compared with [B, 2]: D_t, or how much it changed since
    the pass before, which is NaN up to a block's second pass."""
    if config.monitor == "kl":
        return divergence_B2
    change_B2 = (divergence_B2 - state.divergence_B2).abs()
    state.divergence_B2 = torch.where(running_B[:, None], divergence_B2, state.divergence_B2)
    return change_B2


def enter_phase(
    config: DecodingConfig,
    state: Canvases,
    monitor_B: Tensor,
    running_B: Tensor,
    looking_B: Tensor,
) -> Tensor:
    """Refine or decode? Counts the pass and returns which samples decode in it [B]; those that are
    looking do not.

    A comparison with NaN is false, so a block's first pass never has settled.
    """
    if isinstance(config.refinement, int):
        settled_B = state.phase_steps_B >= config.refinement
        by_threshold_B = torch.zeros_like(settled_B)
    else:
        by_threshold_B = monitor_B < config.tau_refine
        settled_B = by_threshold_B | (state.phase_steps_B >= config.max_refine_steps)
    decoding_B = running_B & (~state.refining_B | settled_B) & ~looking_B
    state.all_phases_converged_B &= ~(decoding_B & state.refining_B) | by_threshold_B
    state.refine_steps_B += running_B & ~decoding_B
    state.phase_steps_B += running_B & ~decoding_B & ~looking_B
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
    config: DecodingConfig, state: Canvases, reading: Reading, open_BK: Tensor, ready_BK: Tensor
) -> Tensor:
    """The positions [B, K] that the commit rule names, among those that are ready."""
    quota_B = None
    if config.steps is not None:
        num_open_B = open_BK.sum(-1)
        state.num_at_start_B = torch.where(
            state.decode_in_block_B <= 1, num_open_B, state.num_at_start_B
        )
        quota_B = scheduled_quota(config, num_open_B, state.decode_in_block_B, state.num_at_start_B)
    return choose_commits(config, reading.doubt_BK, reading.confidence_BK, ready_BK, quota_B)


def write_commits(
    state: Canvases, reading: Reading, ids_BK: Tensor, commit_BK: Tensor, position_BK: Tensor
) -> None:
    """Tokens into the canvas, the number of the pass that committed them, and how probable they
    were then."""
    num_forwards_B = state.refine_steps_B + state.decode_steps_B
    state.canvas_BG.scatter_(1, position_BK, ids_BK)
    for written_BG, value_BK in (
        (state.commit_step_BG, num_forwards_B[:, None]),
        (state.confidence_BG, reading.probability_BK),
    ):
        kept_BK = written_BG.gather(1, position_BK)
        written_BG.scatter_(1, position_BK, torch.where(commit_BK, value_BK, kept_BK))


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
    entropy_open_BK = torch.where(open_BK, entropy_BK, 0)
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
    reading: Reading,
    ids_BK: Tensor,
    mixed_BK: Tensor,
) -> Tensor:
    """The block's next embeddings [B, K, D]: soft ones where they are to be mixed (Eq. 3 and 7),
    elsewhere those of the tokens."""
    table_VD = model.embedding_table
    open_BKD = table_VD[model.mask_id]
    if reading.expected_BKD is not None:
        alpha_BK = beliefs.mix_weight(reading.entropy_BK, table_VD.shape[0], config.r_f)
        open_BKD = beliefs.mix(reading.expected_BKD, alpha_BK, open_BKD)
        state.mix_weight_sum_B += torch.where(mixed_BK, alpha_BK, 0).sum(-1)
        state.mix_weight_count_B += mixed_BK.sum(-1)
    return torch.where(mixed_BK[..., None], open_BKD, model.embed(ids_BK))


def write_inputs(state: Canvases, next_BKD: Tensor, column_BK: Tensor, running_B: Tensor) -> None:
    """The block's next embeddings into its columns, for running samples alone."""
    column_BKD = column_BK[..., None].expand_as(next_BKD)
    kept_BKD = state.embeds_BLD.gather(1, column_BKD)
    next_BKD = torch.where(running_B[:, None, None], next_BKD, kept_BKD)
    state.embeds_BLD.scatter_(1, column_BKD, next_BKD)


def end_at_eos(
    model: DiffusionModel,
    config: DecodingConfig,
    state: Canvases,
    ids_BK: Tensor,
    position_BK: Tensor,
    still_open_BK: Tensor,
    decoding_B: Tensor,
) -> None:
    """In blocks, samples that are not complete end at an EOS that has no gap before it."""
    if not config.stop_at_eos or config.num_blocks == 1:
        return
    gapless_BK = still_open_BK.long().cumsum(-1) == 0
    may_end_BK = position_BK >= state.eos_from_B[:, None]
    is_end_BK = is_any_of(ids_BK, eos_ids(model)) & gapless_BK & may_end_BK
    running_B = state.stop_B == int(StopReason.RUNNING)
    at_eos_B = decoding_B & is_end_BK.any(-1) & running_B
    state.stop_B = torch.where(at_eos_B, int(StopReason.EOS), state.stop_B)
    open_BG = (state.canvas_BG == model.mask_id) & at_eos_B[:, None]
    state.canvas_BG.masked_fill_(open_BG, model.eos_id)


def lacks_room(
    model: DiffusionModel,
    config: DecodingConfig,
    state: Canvases,
    reading: Reading,
    first_pass_B: Tensor,
    full_B: Tensor,
) -> Tensor:
    """Samples [B] that need a longer canvas: in their first pass, where EOS is not expected at the
    canvas' end (DAEDAL's rule); later, where the canvas is full and holds none."""
    assert reading.eos_BK is not None
    window = min(config.eos_window, config.block_tokens)
    expected_B = reading.eos_BK[:, -window:].sum(-1) / window
    has_eos_B = is_any_of(state.canvas_BG, eos_ids(model)).any(-1)
    return (first_pass_B & (expected_B < config.eos_enough)) | (full_B & ~has_eos_B)


def advance(
    config: DecodingConfig,
    state: Canvases,
    running_B: Tensor,
    decoding_B: Tensor,
    block_done_B: Tensor,
    next_block_B: Tensor,
) -> None:
    """Counters for the next pass: refinement starts again with every block (initial), after every
    commitment (auto, LF×k), or never (first)."""
    state.refining_B &= ~decoding_B
    if config.refinement != "first":
        again_B = block_done_B if config.refinement == "initial" else decoding_B
        state.refining_B = torch.where(again_B, config.refines, state.refining_B)
    state.phase_steps_B.masked_fill_(decoding_B, 0)
    state.pass_in_block_B = torch.where(block_done_B, 0, state.pass_in_block_B + running_B)
    state.decode_in_block_B.masked_fill_(block_done_B, 0)
    state.calm_B.masked_fill_(block_done_B, 0)
    # A sample that has ended stays in the block that it ended in.
    moves_B = block_done_B & (state.stop_B == int(StopReason.RUNNING))
    state.block_B = torch.where(moves_B, next_block_B, state.block_B)
    state.blocks_B += moves_B
