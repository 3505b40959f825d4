"""Decodes finished samples again and compares every pass with the final answer.

Figure 2 shows that divergence, and Figure 5 the number of tokens that are mixed. A sample keeps
neither, since both need whole beliefs.

Legend: B samples, G canvas positions, K positions of the current block, N of these, V columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lrd.canvases import Canvases, StopReason
from lrd.config import DecodingConfig
from lrd.decoding import step
from lrd.models.protocol import DiffusionModel


@dataclass(slots=True)
class Replay:
    """Measurements of one sample, one entry a pass."""

    token_ids: list[int]
    """The whole canvas of this decoding; [MASK] where nothing was committed."""
    kl_to_final: list[float] = field(default_factory=list)
    """−log p_t(final token), which is KL(final ‖ p_t) in nats, as a mean over the block's
    positions; a committed position counts 0, as in D_t."""
    nucleus_share: list[float] = field(default_factory=list)
    """Mean |T|/|V| of the positions that took a mixture; NaN where none did."""


@torch.inference_mode()
def replay(
    model: DiffusionModel,
    config: DecodingConfig,
    prompts: Sequence[Sequence[int]],
    finals: Sequence[Sequence[int]],
) -> list[Replay]:
    """Decode prompts together; finals: the canvases [B, G] that came out before.

    The caller compares `token_ids` with them. Raises ValueError at temperature > 0, where another
    draw gives another answer.
    """
    if config.temperature > 0:
        raise ValueError(f"temperature is {config.temperature:g}; only argmax can be replayed")
    num_columns = max(map(len, prompts)) + config.gen_length
    state = Canvases.empty(model, config, len(prompts), num_columns)
    for row, prompt in enumerate(prompts):
        state.place(row, list(prompt), model, config, "left")
    final_BG = torch.tensor(finals, dtype=torch.long, device=state.canvas_BG.device)
    replays = [Replay([]) for _ in prompts]
    while running := (state.stop_B == StopReason.RUNNING).nonzero()[:, 0].tolist():
        before_BG = state.canvas_BG == model.mask_id
        blocks = state.block_B.tolist()
        step(model, config, state)
        for row in running:
            end = (blocks[row] + 1) * config.block_tokens
            read = slice(0 if config.reads_canvas else end - config.block_tokens, end)
            after_K = (state.canvas_BG[row, read] == model.mask_id) & before_BG[row, read]
            _record(replays[row], config, state, row, final_BG[row, read], before_BG[row, read])
            _record_nuclei(replays[row], config, state, row, after_K)
    for one, canvas in zip(replays, state.canvas_BG.tolist(), strict=True):
        one.token_ids = canvas
    return replays


def _record(
    one: Replay, config: DecodingConfig, state: Canvases, row: int, final_K: Tensor, open_K: Tensor
) -> None:
    """The pass's divergence from the final answer; `past` holds the pass's own beliefs by now."""
    place_N = open_K.nonzero()[:, 0]
    log_p_NV = state.past.log_beliefs(row, place_N)
    log_p_N = log_p_NV.gather(-1, final_K[place_N, None])[:, 0]
    one.kl_to_final.append(float(-log_p_N.sum()) / config.block_tokens)


def _record_nuclei(
    one: Replay, config: DecodingConfig, state: Canvases, row: int, open_K: Tensor
) -> None:
    if not config.mixes or not bool(open_K.any()):
        one.nucleus_share.append(float("nan"))
        return
    p_NV = state.past.log_beliefs(row, open_K.nonzero()[:, 0]).exp()
    one.nucleus_share.append(float((nucleus_sizes(p_NV, config.top_p) / p_NV.shape[1]).mean()))


def nucleus_sizes(p_NV: Tensor, top_p: float) -> Tensor:
    """|T| [N] of Eq. 3: the fewest most probable tokens whose mass reaches top_p."""
    if top_p >= 1:
        return torch.full_like(p_NV[:, 0], p_NV.shape[1])
    sorted_NV = p_NV.sort(dim=-1, descending=True).values
    return (sorted_NV.cumsum(-1) - sorted_NV < top_p).sum(-1)
