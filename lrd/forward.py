"""The forward pass of one step, and the beliefs of the block's positions, computed in chunks.

Head and beliefs are computed for a few positions at a time, so that a float32 tensor of
[positions × V] never exists as a whole; only a few numbers and one embedding a position are kept.

Legend: B samples, K canvas positions that a pass may read (the current block's, or all), N of the
B·K positions, n positions of a chunk, D width, V columns of the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lrd import belief_ops, mixing, nucleus, shadow
from lrd.beliefs import Belief, BeliefSummary, entropy, log_beliefs
from lrd.block_cache import CACHED_POSITIONS, states
from lrd.canvases import Canvases
from lrd.commit_rules import (
    choose_tokens,
    gumbel_tokens,
    is_any_of,
    token_confidence,
    without_tokens,
)
from lrd.config import DecodingConfig
from lrd.decoders import Rule, compares_beliefs
from lrd.decoders.rule import Chunk
from lrd.draws import Draws
from lrd.models.protocol import DiffusionModel, SplitModel, eos_ids, is_cached, is_split
from lrd.one_pass import Pass, Reading

HEAD_ELEMENTS = 1 << 24
"""Logits that the head computes at a time: enough rows that its weights are read rarely."""
CACHED_ELEMENTS = 1 << 20
"""Logits that a CPU turns into beliefs at a time: they are read several times from its cache."""
GPU_HEAD_ELEMENTS = 1 << 27
"""The same of a GPU's head: with fewer rows its product waits for the weights."""
GPU_ELEMENTS = 1 << 23
"""Logits that a GPU turns into float32 at a time, where kernels do not read them as they are."""
LAST = 1e30
"""Doubt of positions that are committed last; finite, since closed positions have infinity."""


def read_block(now: Pass, rules: Sequence[Rule], draws: Draws | None) -> Reading:
    """The forward pass, and the beliefs at the block's open positions and where else rules need
    them; `state.past` becomes theirs."""
    model, config, state = now.model, now.config, now.state
    B, K = now.open_BK.shape
    table = model.embedding_table
    read_BK = now.open_BK
    for rule in rules:
        more_BK = rule.reads(now)
        read_BK = read_BK if more_BK is None else read_BK | more_BK
    if not state.fixed_shapes:
        rows_N = read_BK.flatten().nonzero()[:, 0]
    elif state.num_open is None:
        rows_N = torch.arange(B * K, device=table.device)
    else:  # The open ones, then as many others as make up the number.
        rows_N = read_BK.flatten().to(torch.int8).argsort(descending=True, stable=True)
        rows_N = rows_N[: state.num_open]

    def zeros(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.zeros(B, K, *shape, dtype=dtype, device=table.device)

    floats = torch.float32
    reading = Reading(
        *(zeros(floats), zeros(floats), zeros(torch.long)),
        *(zeros(floats), zeros(floats), zeros(floats)),
        zeros(floats) if config.mixes else None,
        zeros(table.dtype, table.shape[1]) if config.mixes else None,
        zeros(floats) if config.grows else None,
    )
    seen = visible(now, rules)
    for rows_n, logits_nV in logits_in_chunks(model, config, seen, now.columns, rows_N):
        found = _read(now, rules, rows_n, logits_nV, draws)
        del logits_nV
        for name, value_n in found.items():
            field_BK = getattr(reading, name, None)
            if field_BK is None:
                field_BK = reading.more.get(name)
            if field_BK is None:
                field_BK = reading.more[name] = zeros(value_n.dtype, *value_n.shape[1:])
            field_BK.flatten(0, 1)[rows_n] = value_n
    return reading


def visible(now: Pass, rules: Sequence[Rule]) -> Canvases:
    """The canvases without the columns that rules hide in this pass."""
    seen_BL = now.state.attention_mask_BL
    for rule in rules:
        hidden_BL = rule.hides(now)
        seen_BL = seen_BL if hidden_BL is None else seen_BL.masked_fill(hidden_BL, 0)
    if seen_BL is now.state.attention_mask_BL:
        return now.state
    return replace(now.state, attention_mask_BL=seen_BL, has_padding=True)


def logits_in_chunks(
    model: DiffusionModel,
    config: DecodingConfig,
    state: Canvases,
    column_BK: Tensor,
    rows_N: Tensor,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The forward pass: rows of B·K and their logits [n, V], a chunk at a time."""
    logits_of = forward(model, config, state, column_BK, rows_N)
    num_columns = model.embedding_table.shape[0]
    head, cached = chunk_elements(model, config, state.fixed_shapes)
    place_N = torch.arange(len(rows_N), device=rows_N.device)
    class_N = _classes(state, column_BK, rows_N)
    for place_n in _even_parts(place_N, head // num_columns):
        logits_nV = logits_of(place_n)
        if state.allowed is not None and class_N is not None:
            allowed_nV = state.allowed.allowed_CV[class_N[place_n]]
            logits_nV = logits_nV.masked_fill_(~allowed_nV, -torch.inf)
        if config.logits_eos_inf:
            for index in eos_ids(model):
                logits_nV[:, index] = -torch.inf
        parts = [_even_parts(x, cached // num_columns) for x in (rows_N[place_n], logits_nV)]
        del logits_nV  # Or the next ones are made beside them.
        yield from zip(*parts, strict=True)
        del parts


def _classes(state: Canvases, column_BK: Tensor, rows_N: Tensor) -> Tensor | None:
    """The class of the tokens that each row of B·K may take; positions that may not be committed
    yet take any."""
    if state.class_BG is None:
        return None
    class_BK = state.class_BG.gather(1, column_BK - state.start_B[:, None])
    return class_BK.flatten()[rows_N].clamp(min=0)


def chunk_elements(
    model: DiffusionModel, config: DecodingConfig, fixed_shapes: bool
) -> tuple[int, int]:
    """How many logits the head computes at a time, and how many become beliefs at a time."""
    if model.embedding_table.device.type == "cpu":
        return HEAD_ELEMENTS, HEAD_ELEMENTS if fixed_shapes else CACHED_ELEMENTS
    small = compares_beliefs(config) or not belief_ops.kernels_apply(model.embedding_table)
    return GPU_HEAD_ELEMENTS, GPU_ELEMENTS if small else GPU_HEAD_ELEMENTS


def _even_parts(x: Tensor, size: int) -> tuple[Tensor, ...]:
    """Parts of at most `size` rows, none much smaller than the others: see FEWEST_ROWS."""
    return x.tensor_split(-(-len(x) // max(1, size)) or 1)


def forward(
    model: DiffusionModel,
    config: DecodingConfig,
    state: Canvases,
    column_BK: Tensor,
    rows_N: Tensor,
) -> Callable[[Tensor], Tensor]:
    """The pass itself; returns a function from indices of `rows` to their logits [n, V]."""
    if config.feeds_some:
        assert is_cached(model)  # `Engine` refuses others.
        return _head_of(model, states(model, config, state, rows_N))
    if config.reopen == "shadow":
        assert is_cached(model)
        return _head_of(model, shadow.states(model, state, column_BK, rows_N))
    logits_of = _forward(model, state.embeds_BLD, state, column_BK, rows_N)
    if config.cfg_scale == 0:
        return logits_of
    unprompted_of = _forward(model, without_prompt(model, state), state, column_BK, rows_N)

    def guided_logits_of(place_n: Tensor) -> Tensor:
        """Classifier-free guidance: away from the logits without the prompt."""
        unconditional_nV = unprompted_of(place_n)
        return unconditional_nV + (config.cfg_scale + 1) * (logits_of(place_n) - unconditional_nV)

    return guided_logits_of


def _forward(
    model: DiffusionModel,
    embeds_BLD: Tensor,
    state: Canvases,
    column_BK: Tensor,
    rows_N: Tensor,
) -> Callable[[Tensor], Tensor]:
    if is_split(model):
        B, L, _ = embeds_BLD.shape
        at_BK = torch.arange(B, device=column_BK.device)[:, None] * L + column_BK
        return _head_of(model, hidden(model, embeds_BLD, state, at_BK.flatten()[rows_N]))
    logits_BKV = model.logits(embeds_BLD, state.mask, column_BK)
    return lambda place_n: logits_BKV.flatten(0, 1)[rows_N[place_n]]


def _head_of(model: SplitModel, hidden_ND: Tensor) -> Callable[[Tensor], Tensor]:
    enough = nucleus.enough_rows
    return lambda place_n: model.head(hidden_ND[enough(place_n)])[: len(place_n)]


def hidden(model: SplitModel, embeds_BLD: Tensor, state: Canvases, at_N: Tensor) -> Tensor:
    """States [N, D] at ascending flat positions, unless shapes are fixed a few canvases at a
    time."""
    if state.fixed_shapes:
        return model.hidden(embeds_BLD, state.mask, at_N)
    B, L, _ = embeds_BLD.shape
    parts = []
    for rows in _even_parts(torch.arange(B), CACHED_POSITIONS * torch.get_num_threads() // L):
        first, last = int(rows[0]), int(rows[-1]) + 1
        inside = slice(*torch.searchsorted(at_N, torch.tensor([first * L, last * L])).tolist())
        at_n = at_N[inside] - first * L
        mask = None if state.mask is None else state.mask[first:last]
        states = model.hidden(embeds_BLD[first:last], mask, nucleus.enough_rows(at_n))
        parts.append(states[: len(at_n)])
    return torch.cat(parts)


def without_prompt(model: DiffusionModel, state: Canvases) -> Tensor:
    """The embeddings [B, L, D] with every prompt, and every token that its canvas began with, all
    [MASK]."""
    columns_L = torch.arange(state.embeds_BLD.shape[1], device=state.start_B.device)
    given_BL = columns_L < state.start_B[:, None]
    fixed_BG = (state.canvas_BG != model.mask_id) & (state.commit_step_BG == 0)
    G = fixed_BG.shape[1]
    at_BG = state.start_B[:, None] + torch.arange(G, device=state.start_B.device)
    given_BL = given_BL.scatter(1, at_BG, fixed_BG)
    return torch.where(given_BL[..., None], model.embedding_table[model.mask_id], state.embeds_BLD)


def _read(
    now: Pass,
    rules: Sequence[Rule],
    rows_n: Tensor,
    logits_nV: Tensor,
    draws: Draws | None,
) -> dict[str, Tensor]:
    """The fields of `Reading` for one chunk; may overwrite its logits."""
    model, config, state = now.model, now.config, now.state
    by_kernels = belief_ops.kernels_apply(model.embedding_table, logits_nV)
    before_nV = None
    if compares_beliefs(config):
        before_nV = state.past.log_beliefs_at(rows_n)
    belief: BeliefSummary
    if by_kernels:
        top_p = config.top_p if config.mixes and config.mix == "lrd" else None
        belief, kl_n, nuclei = belief_ops.read(
            logits_nV, model.mask_id, top_p, state.past.rows(), rows_n
        )
        chosen = _chosen_in_parts(now, belief, rows_n, logits_nV, draws)
    else:
        belief = Belief.of_logits(logits_nV, model.mask_id)
        chosen = read_tokens(model, config, belief, logits_nV, rows_n, draws)
        kl_n = state.past.kl_then_keep(belief, rows_n)
    if state.temperature_B is not None:
        chosen = _without_draws(config, belief, rows_n, draws, chosen)
    names = ("token_BK", "doubt_BK", "confidence_BK", "probability_BK")
    found = dict(zip(names, chosen, strict=True))
    found |= {"entropy_BK": belief.entropy_N, "kl_BK": kl_n}
    if config.grows:
        is_eos_n = is_any_of(belief.token_N, eos_ids(model))
        found["eos_BK"] = torch.where(is_eos_n, (-belief.log_z_N).exp(), 0)
    chunk = Chunk(rows_n, logits_nV, model.mask_id, belief, before_nV)
    for rule in rules:
        found |= rule.measure(now, chunk)
    if config.mixes:
        found["weight_BK"], found["expected_BKD"] = mixing.mixture(
            config, chunk, model.embedding_table, nuclei if by_kernels else None, state.fixed_shapes
        )
    return found


def _chosen_in_parts(
    now: Pass, belief: BeliefSummary, rows_n: Tensor, logits_nV: Tensor, draws: Draws | None
) -> tuple[Tensor, ...]:
    """`read_tokens` without a float32 copy of all logits: where tokens need one, a few rows at a
    time."""
    alone = draws is None and now.config.reads_beliefs_alone
    size = len(rows_n) if alone else GPU_ELEMENTS // logits_nV.shape[1]
    parts = [
        read_tokens(now.model, now.config, belief, x_nV, part_n, draws)
        for x_nV, part_n in zip(*(_even_parts(x, size) for x in (logits_nV, rows_n)), strict=True)
    ]
    return tuple(torch.cat(values) for values in zip(*parts, strict=True))


def _of_belief(belief: BeliefSummary) -> tuple[Tensor, ...]:
    """`read_tokens` where `reads_beliefs_alone`."""
    probability_n = (-belief.log_z_N).exp()
    return belief.token_N, belief.entropy_N, probability_n, probability_n


def _without_draws(
    config: DecodingConfig,
    belief: BeliefSummary,
    rows_n: Tensor,
    draws: Draws | None,
    chosen: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """Rows whose own temperature is 0 beside others: to the bit what a run at 0 reads."""
    if draws is None or not config.orders_by_belief:
        return chosen
    cold_n = draws.temperatures(rows_n) == 0
    pairs = zip(_of_belief(belief), chosen, strict=True)
    return tuple(torch.where(cold_n, alone_n, value_n) for alone_n, value_n in pairs)


def read_tokens(
    model: DiffusionModel,
    config: DecodingConfig,
    belief: BeliefSummary,
    logits_nV: Tensor,
    rows_n: Tensor,
    draws: Draws | None,
) -> tuple[Tensor, ...]:
    """Each position's token, the doubt and confidence [n] that order commits, and the token's
    probability. belief: of these logits, needed where `reads_beliefs_alone`; draws: at these rows,
    where tokens are drawn."""
    if draws is None and config.reads_beliefs_alone:
        return _of_belief(belief)
    temperature_n = None if draws is None else draws.temperatures(rows_n)

    def draw(log_p_nV: Tensor) -> Tensor:
        assert draws is not None
        assert temperature_n is not None
        if belief_ops.kernels_apply(model.embedding_table):
            return belief_ops.draw_tokens(log_p_nV, draws.states(rows_n), temperature_n)
        return gumbel_tokens(log_p_nV, temperature_n, draws.uniform(rows_n))

    log_p_nV = log_beliefs(logits_nV, model.mask_id)
    token_n, log_r_nV = choose_tokens(config, log_p_nV, temperature_n, draw)
    probability_n = log_p_nV.gather(-1, token_n[:, None])[:, 0].exp()
    late_ids = [*eos_ids(model)] if config.confidence_eos_eot_inf else []
    if late_ids and model.eot_id is not None:
        late_ids.append(model.eot_id)
    if late_ids:
        log_r_nV = without_tokens(log_r_nV, late_ids)
    doubt_n = entropy(log_r_nV)
    confidence_n = token_confidence(config, log_r_nV, token_n)
    if late_ids:
        late_n = is_any_of(token_n, late_ids)
        doubt_n = doubt_n.masked_fill(late_n, LAST)
        confidence_n = confidence_n.masked_fill(late_n, -LAST)
    return token_n, doubt_n, confidence_n, probability_n
