"""The forward pass where not every column is computed: a block cache, a suffix pattern, or both.

A block's first pass is a full one: it feeds the prompt and the canvas and keeps every layer's keys
and values. The block's later passes feed its own columns alone (`dual`) or those from its start to
the canvas' end (`prefix`), and attend to the kept keys and values of all others (decoding.md,
'Block cache'). A suffix pattern leaves columns behind the block out of every pass.

Rows of both kinds share a pass of the slots. The fed columns of a row are numbered without gaps,
padding left out; that number is the column's place in the cache.

Legend: B rows of the canvases, K positions of a block, G canvas positions, M blocks, D width;
R rows and C columns that go through the model together; N of the B·K positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lrd import nucleus
from lrd.canvases import Canvases, StopReason
from lrd.config import DecodingConfig
from lrd.models.kv_cache import Window
from lrd.models.protocol import CachedModel, DiffusionModel, is_cached

CACHED_POSITIONS = 896
"""Positions that a CPU takes through all layers together, for each of its threads: activations
between two matrix products stay in its cache."""
FULL_POSITIONS = 1 << 14
"""Positions that full passes take through all layers together where shapes are fixed: enough to
keep a GPU busy, and few enough that their activations do not decide how many slots there are."""


@dataclass(frozen=True, slots=True)
class Feed:
    """Columns of some rows that go through the model together."""

    rows_R: Tensor
    first_R: Tensor
    """Place of each row's first column that is fed."""
    num_columns: int
    num_keys: int | None
    """Places that are attended to at most; None: those that are fed."""
    masked: bool = False
    """Whether rows may attend to different numbers of places, which the host does not know."""
    spans: list[tuple[int, int]] | None = None
    """Where they do and the host knows: each row's fed columns, and places attended to."""
    adjacent: slice | None = None
    """The rows as a slice, where they are neighbours."""


def needs_full_pass(config: DecodingConfig, state: Canvases) -> Tensor:
    """Rows [B] whose next pass is a full one: a block's first, and every `cache_refresh`-th."""
    if not config.caches:
        return torch.ones_like(state.refining_B)
    full_B = state.pass_in_block_B == 0
    if config.cache_refresh:
        full_B = full_B | (state.pass_in_block_B % config.cache_refresh == 0)
    return full_B


def places(config: DecodingConfig, state: Canvases) -> Tensor:
    """Places [B] that each row has in its current block: prompt, and canvas as far as it is fed."""
    return state.prompt_B + state.fed.count(state.block_B, state.length_B)


def spans(
    config: DecodingConfig, state: Canvases, full_B: Tensor, before: int
) -> tuple[Tensor, Tensor]:
    """The first place [B] that each row's next pass feeds, and how many."""
    block_B = state.prompt_B + state.block_B * config.block_tokens
    end_B = places(config, state)
    first_B = torch.where(full_B, 0, block_B - before)
    if config.kv_cache == "dual":
        end_B = torch.where(full_B, end_B, end_B.minimum(block_B + config.block_tokens))
    return first_B, end_B - first_B


def count(
    model: DiffusionModel, config: DecodingConfig, state: Canvases, running_B: Tensor
) -> None:
    """Count a pass's full passes, and the columns that it computes, of the running rows."""
    full_B = needs_full_pass(config, state)
    before = model.feeds_before if config.caches and is_cached(model) else 0
    _, num_B = spans(config, state, full_B, before)
    if config.reopen == "shadow":
        num_B = num_B + config.block_tokens
    state.full_passes_B += running_B & full_B
    state.positions_computed_B += torch.where(running_B, num_B, 0)


def states(model: CachedModel, config: DecodingConfig, state: Canvases, rows_N: Tensor) -> Tensor:
    """The states [N, D] at these of the B·K positions of the blocks."""
    if state.cache is not None:
        state.cache.take_memory()
    table = model.embedding_table
    if state.fixed_shapes:
        # Every feed gives all positions of its rows' blocks.
        found = len(state.stop_B) * config.block_tokens
        feeds = fixed_feeds(config, state, model.feeds_before)
    else:
        found = len(rows_N)
        feeds = host_feeds(config, state, model.feeds_before)
    found_ND = torch.zeros(found, table.shape[1], dtype=table.dtype, device=table.device)
    for feed in feeds:
        feed_one(model, config, state, feed, rows_N, found_ND)
    return found_ND[rows_N] if state.fixed_shapes else found_ND


def feed_one(
    model: CachedModel,
    config: DecodingConfig,
    state: Canvases,
    feed: Feed,
    rows_N: Tensor,
    found_ND: Tensor,
) -> None:
    """Take one feed through the model; write the states of its positions into `found`."""
    rows_R, C, K = feed.rows_R, feed.num_columns, config.block_tokens
    prompt_R, block_R = state.prompt_B[rows_R], state.block_B[rows_R]
    num_places_R = places(config, state)[rows_R]
    place_RC = feed.first_R[:, None] + torch.arange(C, device=rows_R.device)
    # A row of fewer columns feeds its last one again: equal inputs, equal keys.
    place_RC = place_RC.minimum(num_places_R[:, None] - 1).clamp(min=0)
    position_RC = state.fed.positions(place_RC, prompt_R, block_R)
    column_RC = position_RC + (state.start_B[rows_R] - prompt_R)[:, None]
    embeds_RCD = state.embeds_BLD[rows_R[:, None], column_RC]

    window = None
    if state.cache is not None:
        kept = state.cache.kept_BN2PKE
        window = Window(kept, rows_R, place_RC, feed.num_keys, feed.adjacent)
    key_mask_RP = None
    if feed.masked:
        keys_P = torch.arange(feed.num_keys or C, device=rows_R.device)
        key_mask_RP = keys_P < num_places_R[:, None]
    block_place_R = prompt_R + block_R * K - feed.first_R
    at_N, chosen_N = _inside(rows_N, rows_R, C, K, block_place_R, state)
    num_positions = state.embeds_BLD.shape[1]
    enough_N = nucleus.enough_rows(at_N)
    states_ND = model.hidden_kept(
        embeds_RCD, position_RC, num_positions, key_mask_RP, enough_N, window, feed.spans
    )
    found_ND[chosen_N] = states_ND[: len(at_N)]


def _inside(
    rows_N: Tensor, rows_R: Tensor, C: int, K: int, block_place_R: Tensor, state: Canvases
) -> tuple[Tensor, Tensor]:
    """Flat positions r·C + c of the blocks' positions that are asked for, and their index in N."""
    if state.fixed_shapes:  # All B·K are asked for.
        chosen_RK = rows_R[:, None] * K + torch.arange(K, device=rows_R.device)
        r_R1 = torch.arange(len(rows_R), device=rows_R.device)[:, None]
        at_RK = r_R1 * C + block_place_R[:, None] + torch.arange(K, device=rows_R.device)
        return at_RK.flatten(), chosen_RK.flatten()
    number_B = torch.full_like(state.block_B, -1)
    number_B[rows_R] = torch.arange(len(rows_R))
    number_N = number_B[rows_N // K]
    chosen_N = (number_N >= 0).nonzero()[:, 0]
    number_n = number_N[chosen_N]
    return number_n * C + block_place_R[number_n] + rows_N[chosen_N] % K, chosen_N


# A CPU's passes: just the rows and columns that are needed.


def host_feeds(config: DecodingConfig, state: Canvases, before: int) -> Iterator[Feed]:
    """Full passes and block passes of running rows, a few rows at a time."""
    full_B, running_B = needs_full_pass(config, state), state.stop_B == int(StopReason.RUNNING)
    first_B, num_B = spans(config, state, full_B, before)
    num_places_B = places(config, state)
    for full in (True, False):
        rows = (running_B & (full_B == full)).nonzero()[:, 0]
        if not len(rows):
            continue
        # Rows of about equal lengths together, so that few columns are fed twice.
        rows = rows[num_B[rows].argsort(stable=True)]
        together = CACHED_POSITIONS * torch.get_num_threads() // int(num_B[rows[-1]])
        for part in rows.tensor_split(-(-len(rows) // max(1, together))):
            num_fed, num_keys = num_B[part].tolist(), num_places_B[part].tolist()
            alike = len(set(num_keys)) == 1 and len(set(num_fed)) == 1
            yield Feed(
                rows_R=part,
                first_R=first_B[part],
                num_columns=max(num_fed),
                num_keys=None if full else max(num_keys),
                spans=None if alike else list(zip(num_fed, num_keys, strict=True)),
                adjacent=_as_slice(part.tolist()),
            )


def _as_slice(rows: Sequence[int]) -> slice | None:
    """Rows as a slice, where they are neighbours in ascending order."""
    first, end = rows[0], rows[0] + len(rows)
    return slice(first, end) if list(rows) == list(range(first, end)) else None


# Fixed shapes: one block pass of all rows, and full passes of 1, 2, 4, 8 … rows.


def fixed_feeds(config: DecodingConfig, state: Canvases, before: int) -> Iterator[Feed]:
    """The block pass of all rows, then the full passes, whose results replace those of the block
    pass: to leave their rows out of it would take a copy of what all others keep."""
    B, device = len(state.stop_B), state.stop_B.device
    most = state.embeds_BLD.shape[1]
    masked = state.has_padding or config.suffix != "all"
    plans = state.full_passes
    if not config.caches:
        plans = [(torch.arange(B, device=device), most)]
    elif not state.only_full:
        first_B, _ = spans(config, state, torch.zeros_like(state.refining_B), before)
        width = config.block_tokens if config.kv_cache == "dual" else config.gen_length
        yield Feed(
            rows_R=torch.arange(B, device=device),
            first_R=first_B,
            num_columns=width + before,
            num_keys=most,
            masked=masked,
            adjacent=slice(0, B),
        )
    for rows_R, num_columns in plans:
        yield Feed(
            rows_R=rows_R,
            first_R=torch.zeros_like(rows_R),
            num_columns=num_columns,
            num_keys=None,
            masked=masked,
        )
