"""The procedure: canvases of many samples, advanced by one forward pass at a time.

Every sample has its own block, phase, counts and stop; nothing here decides for a batch.
All of a pass is tensor operations under masks, so that it needs no host synchronisation.
`engine.py` fills and empties the canvases, `forward.py` runs the model and reads its beliefs,
`commit_rules.py` chooses the positions to commit, `mixing.py` what open ones are fed, and
`decoders/` holds what published decoders change of that.

Legend: B samples, L columns (prompt, canvas, padding), G canvas positions, M blocks, K positions
that a pass may read (the current block's, or the whole canvas), D width, T passes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lrd import beliefs, block_cache
from lrd.canvases import Canvases, StopReason
from lrd.commit_rules import choose_commits, is_any_of, scheduled_quota
from lrd.config import DecodingConfig
from lrd.decoders import Rule, rules_of
from lrd.draws import Draws
from lrd.forward import read_block
from lrd.models.protocol import DiffusionModel, eos_ids
from lrd.one_pass import Pass

__all__ = ["Canvases", "StopReason", "step"]


def step(
    model: DiffusionModel,
    config: DecodingConfig,
    state: Canvases,
) -> None:
    """One forward pass for every running sample, in place."""
    rules = rules_of(config)
    now = begin(model, config, state)
    # The first pass in blocks looks at the last one, and decides about the canvas alone.
    looking_B = (now.passes_B == 0) & config.looks
    draws = draws_of_pass(now)
    now.reading = reading = read_block(now, rules, draws)
    if config.reopen != "none":
        # What is kept of the pass before is not the belief that the position had then.
        reading.kl_BK = reading.kl_BK.masked_fill(state.kept["reopened"], 0)
    entropy_BK, open_BK, running_B = reading.entropy_BK, now.open_BK, now.running_B
    block_cache.count(model, config, state, running_B)
    failed_B = (open_BK & ~torch.isfinite(entropy_BK)).any(-1)
    divergence_B2 = divergences(config, state, reading.kl_BK, open_BK)
    monitor_B2 = monitored(config, state, divergence_B2, running_B)
    now.decoding_B = enter_phase(config, state, monitor_B2[:, 1], running_B, looking_B)
    if config.is_scheduled:
        begin_schedule(now)
    for rule in rules:
        rule.weigh(now)

    ready_BK = now.open_BK & now.ready
    stop_B = early_stop(config, state, monitor_B2[:, 0], entropy_BK, open_BK, now.decoding_B)
    stop_B = stop_B & (ready_BK == open_BK).all(-1)
    whole_BK, stop_B = whole_commits(now, rules, stop_B)
    commit_BK = name_commits(now, rules, ready_BK) | whole_BK
    commit_BK = commit_BK & now.decoding_B[:, None] & now.masked_BK
    ids_BK = torch.where(commit_BK, reading.token_BK, now.ids_BK)
    write_commits(now, ids_BK, commit_BK)
    record_pass(now, divergence_B2[:, 1], whole_BK)
    reopened_BK = reopen(now, rules, commit_BK, stop_B)
    ids_BK = ids_BK.masked_fill(reopened_BK, model.mask_id)
    still_open_BK = (now.masked_BK & ~commit_BK) | reopened_BK
    waits_BK = still_open_BK & now.reached_BK
    # A position that was committed before has no belief to mix: the next pass reads it.
    mixed_BK = waits_BK & now.masked_BK & ~looking_B[:, None]
    held_BK = torch.zeros_like(mixed_BK)
    for rule in rules:
        mixed_BK = rule.mixes(now, mixed_BK, still_open_BK)
        more_BK = rule.holds(now, still_open_BK)
        held_BK = held_BK if more_BK is None else held_BK | more_BK
    write_inputs(now, next_inputs(now, ids_BK, mixed_BK), held_BK)

    block_done_B = now.decoding_B & ~waits_BK.any(-1)
    left_BM = (state.canvas_BG == model.mask_id).view(-1, config.num_blocks, config.block_tokens)
    left_BM = left_BM.any(-1)
    ended_B = block_done_B & ~left_BM.any(-1)
    state.stop_B = torch.where(
        ended_B,
        torch.where(stop_B, int(StopReason.CONVERGED), int(StopReason.COMPLETE)),
        state.stop_B,
    )
    end_at_eos(now, ids_BK, still_open_BK, block_done_B)
    if config.grows:
        first_B = running_B & (now.passes_B == 0)
        too_short_B = lacks_room(now, first_B, ended_B)
        state.stop_B = torch.where(too_short_B, int(StopReason.GROW), state.stop_B)
    state.stop_B = torch.where(failed_B, int(StopReason.FAILED), state.stop_B)
    next_block_B = torch.where(looking_B, 0, left_BM.byte().argmax(-1))
    advance(config, state, running_B, now.decoding_B, block_done_B | looking_B, next_block_B)


def begin(model: DiffusionModel, config: DecodingConfig, state: Canvases) -> Pass:
    """The next pass of the canvases as they are."""
    block, device = config.block_tokens, state.stop_B.device
    running_B = state.stop_B == int(StopReason.RUNNING)
    first_B = torch.zeros_like(state.block_B) if config.reads_canvas else state.block_B * block
    position_BK = first_B[:, None] + torch.arange(config.window_tokens, device=device)
    reached_BK = position_BK < block * (state.block_B[:, None] + 1)
    ids_BK = state.canvas_BG.gather(1, position_BK)
    masked_BK = (ids_BK == model.mask_id) & running_B[:, None]
    return Pass(
        model=model,
        config=config,
        state=state,
        running_B=running_B,
        passes_B=state.refine_steps_B + state.decode_steps_B,
        position_BK=position_BK,
        reached_BK=reached_BK,
        ids_BK=ids_BK,
        masked_BK=masked_BK,
        open_BK=masked_BK & reached_BK,
    )


def draws_of_pass(now: Pass) -> Draws | None:
    """What tokens are drawn with; None where none is drawn."""
    temperature_B = now.state.temperature_B
    if temperature_B is None:
        if now.config.temperature == 0:
            return None
        temperature_B = torch.full_like(now.passes_B, now.config.temperature, dtype=torch.float64)
    num_columns = now.model.embedding_table.shape[0]
    return Draws.of(now.state.seed_B, now.passes_B, now.position_BK, temperature_B, num_columns)


def divergences(config: DecodingConfig, state: Canvases, kl_BK: Tensor, open_BK: Tensor) -> Tensor:
    """D_t [B, 2] against the pass before: as `reduction` and `scope` have it, and Eq. 6's. NaN in a
    block's first pass."""
    block = config.block_tokens
    length_B = (state.length_B - state.block_B * block).clamp(max=block)
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


def begin_schedule(now: Pass) -> None:
    """Count what a schedule shares out, up to a block's first decode pass."""
    state = now.state
    # Refinement passes after it have its number too.
    begins_B = state.decode_in_block_B <= now.decoding_B.long()
    state.num_at_start_B = torch.where(begins_B, now.open_BK.sum(-1), state.num_at_start_B)


def whole_commits(now: Pass, rules: Sequence[Rule], stop_B: Tensor) -> tuple[Tensor, Tensor]:
    """What is committed unsettled [B, K], the block's open positions after an early stop or all of
    the canvas where a rule says so; and the samples [B]."""
    whole_BK = now.open_BK & stop_B[:, None]
    for rule in rules:
        ends_B = rule.stops(now)
        if ends_B is not None:
            ends_B = ends_B & now.decoding_B
            whole_BK = whole_BK | (now.masked_BK & ends_B[:, None])
            stop_B = stop_B | ends_B
    return whole_BK, stop_B


def name_commits(now: Pass, rules: Sequence[Rule], ready_BK: Tensor) -> Tensor:
    """The positions [B, K] that the commit rule and the decoders' own rules name."""
    config, state, reading = now.config, now.state, now.reading
    quota_B = None
    if config.is_scheduled:
        quota_B = scheduled_quota(
            config, now.open_BK.sum(-1), state.decode_in_block_B, state.num_at_start_B
        )
    for rule in rules:
        ready_BK = rule.may_commit(now, ready_BK)
    named_BK = choose_commits(config, reading.doubt_BK, reading.confidence_BK, ready_BK, quota_B)
    for rule in rules:
        named_BK = rule.commits(now, named_BK, ready_BK)
    return named_BK


def write_commits(now: Pass, ids_BK: Tensor, commit_BK: Tensor) -> None:
    """Tokens into the canvas, the number of the pass that committed them, and how probable they
    were then."""
    state, position_BK = now.state, now.position_BK
    num_forwards_B = state.refine_steps_B + state.decode_steps_B
    state.canvas_BG.scatter_(1, position_BK, ids_BK)
    for written_BG, value_BK in (
        (state.commit_step_BG, num_forwards_B[:, None]),
        (state.confidence_BG, now.reading.probability_BK),
    ):
        kept_BK = written_BG.gather(1, position_BK)
        written_BG.scatter_(1, position_BK, torch.where(commit_BK, value_BK, kept_BK))


def reopen(now: Pass, rules: Sequence[Rule], commit_BK: Tensor, stop_B: Tensor) -> Tensor:
    """Committed positions [B, K] that rules open again, written into the canvas; none of a sample
    that stops. Those that were committed before this pass are counted, and end what was calm."""
    reopened_BK = torch.zeros_like(commit_BK)
    for rule in rules:
        found_BK = rule.reopens(now, commit_BK)
        if found_BK is not None:
            reopened_BK |= found_BK & (now.decoding_B & ~stop_B)[:, None]
    if now.config.reopen == "none":
        return reopened_BK
    state = now.state
    for written_BG, value in (
        (state.canvas_BG, now.model.mask_id),
        (state.commit_step_BG, 0),
        (state.confidence_BG, 0),
    ):
        kept_BK = written_BG.gather(1, now.position_BK)
        written_BG.scatter_(1, now.position_BK, kept_BK.masked_fill(reopened_BK, value))
    again_BK = reopened_BK & ~now.masked_BK
    state.num_uncommits_B += again_BK.sum(-1)
    state.calm_B.masked_fill_(again_BK.any(-1), 0)
    state.kept["reopened"] = again_BK
    return reopened_BK


def record_pass(now: Pass, eq6_B: Tensor, whole_BK: Tensor) -> None:
    """Traces of this pass, and what a stop commits unsettled."""
    state, entropy_BK = now.state, now.reading.entropy_BK
    trace_B1 = (state.refine_steps_B + state.decode_steps_B - 1).clamp(min=0)[:, None]
    num_open_B = now.open_BK.sum(-1)
    mean_entropy_B = torch.where(now.open_BK, entropy_BK, 0).sum(-1) / num_open_B.clamp(min=1)
    running_B1 = now.running_B[:, None]
    for trace_BT, value_B in (
        (state.kl_trace_BT, eq6_B),
        (state.entropy_trace_BT, mean_entropy_B),
    ):
        kept_B1 = trace_BT.gather(1, trace_B1)
        trace_BT.scatter_(1, trace_B1, torch.where(running_B1, value_B[:, None], kept_B1))
    state.open_at_stop_B += whole_BK.sum(-1)
    largest_B = torch.where(whole_BK, entropy_BK, 0).amax(-1)
    state.max_entropy_at_stop_B = torch.maximum(state.max_entropy_at_stop_B, largest_B)


def next_inputs(now: Pass, ids_BK: Tensor, mixed_BK: Tensor) -> Tensor:
    """The next embeddings [B, K, D]: soft ones where they are to be mixed (Eq. 3 and 7), elsewhere
    those of the tokens."""
    model, state, reading = now.model, now.state, now.reading
    open_BKD = model.embedding_table[model.mask_id]
    if reading.expected_BKD is not None:
        assert reading.weight_BK is not None
        open_BKD = beliefs.mix(reading.expected_BKD, reading.weight_BK, open_BKD)
        state.mix_weight_sum_B += torch.where(mixed_BK, reading.weight_BK, 0).sum(-1)
        state.mix_weight_count_B += mixed_BK.sum(-1)
    return torch.where(mixed_BK[..., None], open_BKD, model.embed(ids_BK))


def write_inputs(now: Pass, next_BKD: Tensor, held_BK: Tensor) -> None:
    """The next embeddings into their columns, for running samples alone and not where rules hold
    what is there."""
    embeds_BLD = now.state.embeds_BLD
    column_BKD = now.columns[..., None].expand_as(next_BKD)
    kept_BKD = embeds_BLD.gather(1, column_BKD)
    written_BK = now.running_B[:, None] & ~held_BK
    embeds_BLD.scatter_(1, column_BKD, torch.where(written_BK[..., None], next_BKD, kept_BKD))


def end_at_eos(now: Pass, ids_BK: Tensor, still_open_BK: Tensor, block_done_B: Tensor) -> None:
    """In blocks, samples that are not complete end at an EOS that has no gap before it (where
    positions may open again, only once their block is done), or with a full block that holds one
    anywhere."""
    config, state = now.config, now.state
    if not (config.stop_at_eos or config.eos_ends_block) or config.num_blocks == 1:
        return
    may_end_BK = now.position_BK >= state.eos_from_B[:, None]
    is_eos_BK = is_any_of(ids_BK, eos_ids(now.model)) & may_end_BK
    at_eos_B = torch.zeros_like(block_done_B)
    if config.stop_at_eos:
        gapless_BK = still_open_BK.long().cumsum(-1) == 0
        settled_B = now.decoding_B if config.reopen == "none" else block_done_B
        at_eos_B = settled_B & (is_eos_BK & gapless_BK).any(-1)
    if config.eos_ends_block:
        # An EOS of an earlier block has ended the sample there.
        at_eos_B |= block_done_B & (is_eos_BK & now.reached_BK).any(-1)
    at_eos_B &= state.stop_B == int(StopReason.RUNNING)
    state.stop_B = torch.where(at_eos_B, int(StopReason.EOS), state.stop_B)
    open_BG = (state.canvas_BG == now.model.mask_id) & at_eos_B[:, None]
    state.canvas_BG.masked_fill_(open_BG, now.model.eos_id)


def lacks_room(now: Pass, first_pass_B: Tensor, full_B: Tensor) -> Tensor:
    """Samples [B] that need a longer canvas: in their first pass, where EOS is not expected at the
    canvas' end (DAEDAL's rule); later, where the canvas is full and holds none."""
    config, eos_BK = now.config, now.reading.eos_BK
    assert eos_BK is not None
    window = min(config.eos_window, config.block_tokens)
    expected_B = eos_BK[:, -window:].sum(-1) / window
    has_eos_B = is_any_of(now.state.canvas_BG, eos_ids(now.model)).any(-1)
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
