"""The procedure: canvases of many samples, advanced by one forward pass at a time.

Every sample has its own block, phase, counts and stop; nothing here decides for a batch.
All of a pass is tensor operations under masks, so that it needs no host synchronisation.
Knows nothing of queues, slots or text: `engine.py` fills and empties the canvases.

Legend: B samples, L columns (prompt, canvas, padding), G canvas positions, K positions of the
current block, D width, V columns of the logits, T passes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum

import torch
from torch import Tensor

from lrd import beliefs
from lrd.config import DecodingConfig
from lrd.models.protocol import DiffusionModel


class StopReason(IntEnum):
    """Why a sample ended; `running` while it has not."""

    RUNNING = 0
    COMPLETE = 1
    CONVERGED = 2
    EOS = 3
    FAILED = 4


@dataclass(slots=True)
class Canvases:
    """State of B samples; every tensor's first dimension is B."""

    embeds_BLD: Tensor
    attention_mask_BL: Tensor
    start_B: Tensor
    """Column of each sample's first canvas position."""
    canvas_BG: Tensor
    """Token ids; [MASK] where open."""
    commit_step_BG: Tensor
    """1-based pass that committed a position; 0 while open, and where EOS filled the rest."""
    stop_B: Tensor
    """StopReason."""
    block_B: Tensor
    pass_in_block_B: Tensor
    refining_B: Tensor
    phase_steps_B: Tensor
    """Refinement passes of the current phase."""
    decode_in_block_B: Tensor
    calm_B: Tensor
    """Consecutive decode passes below tau_decode."""
    refine_steps_B: Tensor
    decode_steps_B: Tensor
    all_phases_converged_B: Tensor
    open_at_stop_B: Tensor
    max_entropy_at_stop_B: Tensor
    mix_weight_sum_B: Tensor
    mix_weight_count_B: Tensor
    kl_trace_BT: Tensor
    entropy_trace_BT: Tensor
    log_p_BKV: Tensor
    """Beliefs of the pass before."""

    @classmethod
    def empty(
        cls, model: DiffusionModel, config: DecodingConfig, num_samples: int, num_columns: int
    ) -> Canvases:
        """B canvases that hold nothing: `stop` is COMPLETE until a prompt is placed."""
        B, L, T = num_samples, num_columns, config.max_forwards
        table = model.embedding_table
        device = table.device

        def integers(*shape: int, fill: int = 0) -> Tensor:
            return torch.full(shape, fill, dtype=torch.long, device=device)

        def floats(*shape: int, fill: float = 0.0) -> Tensor:
            return torch.full(shape, fill, dtype=torch.float32, device=device)

        return cls(
            embeds_BLD=torch.zeros(B, L, table.shape[1], dtype=table.dtype, device=device),
            attention_mask_BL=integers(B, L, fill=1),
            start_B=integers(B),
            canvas_BG=integers(B, config.gen_length, fill=model.mask_id),
            commit_step_BG=integers(B, config.gen_length),
            stop_B=integers(B, fill=StopReason.COMPLETE),
            block_B=integers(B),
            pass_in_block_B=integers(B),
            refining_B=torch.zeros(B, dtype=torch.bool, device=device),
            phase_steps_B=integers(B),
            decode_in_block_B=integers(B),
            calm_B=integers(B),
            refine_steps_B=integers(B),
            decode_steps_B=integers(B),
            all_phases_converged_B=torch.ones(B, dtype=torch.bool, device=device),
            open_at_stop_B=integers(B),
            max_entropy_at_stop_B=floats(B),
            mix_weight_sum_B=floats(B),
            mix_weight_count_B=integers(B),
            kl_trace_BT=floats(B, T, fill=float("nan")),
            entropy_trace_BT=floats(B, T, fill=float("nan")),
            log_p_BKV=floats(B, config.block_tokens, table.shape[0]),
        )

    def place(
        self,
        row: int,
        prompt: list[int],
        model: DiffusionModel,
        config: DecodingConfig,
        padding_side: str,
    ) -> None:
        """Put a prompt and an empty canvas into row `row`; whatever was there is forgotten.

        Raises ValueError where prompt and canvas have more tokens than there are columns.
        """
        L, used = self.attention_mask_BL.shape[1], len(prompt) + config.gen_length
        if used > L:
            raise ValueError(f"{len(prompt)} prompt tokens do not fit {L - config.gen_length}")
        first = L - used if padding_side == "left" else 0
        ids_L = torch.full((L,), model.pad_id, dtype=torch.long)
        mask_L = torch.zeros(L, dtype=torch.long)
        ids_L[first : first + used] = torch.tensor(prompt + [model.mask_id] * config.gen_length)
        mask_L[first : first + used] = 1
        device = self.embeds_BLD.device
        self.embeds_BLD[row] = model.embed(ids_L.to(device)[None])[0]
        self.attention_mask_BL[row] = mask_L.to(device)
        self.start_B[row] = first + len(prompt)
        self.canvas_BG[row] = model.mask_id
        for counter in (
            self.commit_step_BG,
            self.block_B,
            self.pass_in_block_B,
            self.phase_steps_B,
            self.decode_in_block_B,
            self.calm_B,
            self.refine_steps_B,
            self.decode_steps_B,
            self.open_at_stop_B,
            self.max_entropy_at_stop_B,
            self.mix_weight_sum_B,
            self.mix_weight_count_B,
        ):
            counter[row] = 0
        self.kl_trace_BT[row] = float("nan")
        self.entropy_trace_BT[row] = float("nan")
        self.refining_B[row] = config.refines
        self.all_phases_converged_B[row] = config.refines
        self.stop_B[row] = StopReason.RUNNING

    def keep(self, rows: list[int]) -> None:
        """Drop every other row."""
        index = torch.tensor(rows, dtype=torch.long, device=self.embeds_BLD.device)
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[index])

    def append(self, others: Canvases) -> None:
        """Add the rows of `others` below."""
        for field in fields(self):
            both = (getattr(self, field.name), getattr(others, field.name))
            setattr(self, field.name, torch.cat(both))


def choose_commits(
    config: DecodingConfig, entropy_BK: Tensor, confidence_BK: Tensor, open_BK: Tensor
) -> Tensor:
    """Positions [B, K] that the commit rule names: surest first, at least one, only open ones.

    confidence is the probability of the most probable token. Ties go to the earlier position.
    """
    doubt_BK = -confidence_BK if config.confidence_threshold is not None else entropy_BK
    sorted_BK, order_BK = doubt_BK.masked_fill(~open_BK, torch.inf).sort(dim=-1, stable=True)
    rank_K = torch.arange(open_BK.shape[1], device=open_BK.device)
    if config.entropy_threshold is not None:
        chosen_BK = sorted_BK < config.entropy_threshold
    elif config.confidence_threshold is not None:
        chosen_BK = -sorted_BK >= config.confidence_threshold
    elif config.entropy_bound is not None:
        # Ascending, so the sum less its largest member is the sum of those before.
        before_BK = sorted_BK.cumsum(-1).roll(1, dims=-1)
        chosen_BK = (before_BK <= config.entropy_bound) & (sorted_BK < torch.inf)
    else:
        chosen_BK = (rank_K < config.tokens_per_step).expand_as(open_BK)
    chosen_BK = chosen_BK | (rank_K == 0)
    return torch.zeros_like(open_BK).scatter(-1, order_BK, chosen_BK) & open_BK


def gumbel_tokens(log_p_BKV: Tensor, temperature: float, uniform_BKV: Tensor) -> Tensor:
    """Sampled tokens [B, K]: LLaDA's rule argmax exp(logit) / (−log u)^temperature in float64.

    Constant shifts of the logits do not matter, so log-beliefs serve as logits.
    """
    noise = (-uniform_BKV.double().log()) ** temperature
    return (log_p_BKV.double().exp() / noise).argmax(-1)


def step(
    model: DiffusionModel,
    config: DecodingConfig,
    state: Canvases,
    uniform_BKV: Tensor | None = None,
) -> None:
    """One forward pass for every running sample, in place (decoding.md, 'One sample, one block').

    uniform [B, K, V]: each sample's own draws in (0, 1), needed at temperature > 0.
    """
    B, K = state.stop_B.shape[0], config.block_tokens
    device = state.stop_B.device
    running_B = state.stop_B == StopReason.RUNNING
    position_BK = state.block_B[:, None] * K + torch.arange(K, device=device)
    column_BK = state.start_B[:, None] + position_BK

    # Beliefs of the block's positions.
    logits_BKV = model.logits(state.embeds_BLD, state.attention_mask_BL, column_BK)
    log_p_BKV = beliefs.log_beliefs(logits_BKV, model.mask_id)
    entropy_BK = beliefs.entropy(log_p_BKV)
    ids_BK = state.canvas_BG.gather(1, position_BK)
    open_BK = (ids_BK == model.mask_id) & running_B[:, None]
    failed_B = (open_BK & ~torch.isfinite(entropy_BK)).any(-1)

    # D_t against the pass before; there is none in a block's first pass.
    has_before_B = state.pass_in_block_B > 0
    kl_BK = beliefs.kl_divergence(log_p_BKV, state.log_p_BKV)
    nan = torch.full((B,), torch.nan, device=device)
    monitor_B = beliefs.reduce_kl(kl_BK, open_BK, config.reduction, config.scope)
    monitor_B = torch.where(has_before_B, monitor_B, nan)
    eq6_B = torch.where(has_before_B, beliefs.reduce_kl(kl_BK, open_BK, "mean", "block"), nan)

    # Refine or decode? A comparison with NaN is false, so a first pass never has settled.
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
    num_forwards_B = state.refine_steps_B + state.decode_steps_B

    # Early stop, from a block's second decode pass on.
    stop_B = torch.zeros_like(running_B)
    if config.early_stop:
        calm_B = (monitor_B < config.tau_decode) & (state.decode_in_block_B >= 2)
        counted_B = torch.where(calm_B, state.calm_B + 1, 0)
        state.calm_B = torch.where(decoding_B, counted_B, state.calm_B)
        stop_B = decoding_B & (state.calm_B >= config.patience)
        if config.stop_max_entropy is not None:
            sure_BK = (entropy_BK < config.stop_max_entropy) | ~open_BK
            stop_B &= sure_BK.all(-1)

    # Commit.
    top_BK = log_p_BKV.argmax(-1)
    token_BK = top_BK
    if config.temperature > 0:
        assert uniform_BKV is not None
        token_BK = gumbel_tokens(log_p_BKV, config.temperature, uniform_BKV)
    confidence_BK = log_p_BKV.gather(-1, token_BK[..., None])[..., 0].exp()
    commit_BK = choose_commits(config, entropy_BK, confidence_BK, open_BK)
    commit_BK = (commit_BK | stop_B[:, None]) & decoding_B[:, None] & open_BK
    ids_BK = torch.where(commit_BK, token_BK, ids_BK)
    still_open_BK = open_BK & ~commit_BK
    state.canvas_BG.scatter_(1, position_BK, ids_BK)
    commit_step_BK = state.commit_step_BG.gather(1, position_BK)
    commit_step_BK = torch.where(commit_BK, num_forwards_B[:, None], commit_step_BK)
    state.commit_step_BG.scatter_(1, position_BK, commit_step_BK)

    # Records of this pass.
    trace_B1 = (num_forwards_B - 1).clamp(min=0)[:, None]
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

    # Next inputs: tokens where committed, soft embeddings where open (Eq. 3 and 7).
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
        open_BKD = mask_embedding_D.expand(B, K, -1)
    next_BKD = torch.where(still_open_BK[..., None], open_BKD, model.embed(ids_BK))
    column_BKD = column_BK[..., None].expand_as(next_BKD)
    kept_BKD = state.embeds_BLD.gather(1, column_BKD)
    next_BKD = torch.where(running_B[:, None, None], next_BKD, kept_BKD)
    state.embeds_BLD.scatter_(1, column_BKD, next_BKD)

    # Ends: of a block, of the sample.
    block_done_B = decoding_B & ~still_open_BK.any(-1)
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
    state.stop_B = torch.where(failed_B, int(StopReason.FAILED), state.stop_B)

    # The next pass: refinement starts with a block, or after every commitment (auto, LF x k).
    refine_again_B = block_done_B if config.refinement == "initial" else decoding_B
    state.refining_B = torch.where(refine_again_B, config.refines, state.refining_B & ~decoding_B)
    state.phase_steps_B.masked_fill_(decoding_B, 0)
    state.pass_in_block_B = torch.where(block_done_B, 0, state.pass_in_block_B + running_B)
    state.decode_in_block_B.masked_fill_(block_done_B, 0)
    state.calm_B.masked_fill_(block_done_B, 0)
    # A sample that has ended stays in the block that it ended in.
    state.block_B += block_done_B & (state.stop_B == StopReason.RUNNING)
    state.log_p_BKV = log_p_BKV
