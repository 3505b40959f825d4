"""Triton kernels that turn logits into what decoding needs of beliefs, without storing a belief.

Imported where they run alone (`belief_ops.py` has the calls); `lrd` works without Triton. The plain
functions of `beliefs.py`, `previous_beliefs.py` and `nucleus.py` say the same, and tests compare.

Legend: n rows of a chunk, R rows of the past, V columns, D width, k candidates, T edges that are
tried together, M and N rows and columns of a product's tile.
"""

import triton
import triton.language as tl

from lrd.beliefs import LOWEST
from lrd.draws import GOLDEN, ROUNDS, SMALLEST

_INFINITY = tl.constexpr(float("inf"))
_LOWEST = tl.constexpr(LOWEST)
_NUM_EDGES = tl.constexpr(16)
_GOLDEN, _SMALLEST = tl.constexpr(GOLDEN), tl.constexpr(SMALLEST)
_FACTOR_1, _FACTOR_2 = tl.constexpr(ROUNDS[0][1]), tl.constexpr(ROUNDS[1][1])


@triton.jit
def _logits(row, at, num_columns, mask_id):
    """A tile in float32. NaN becomes +inf, so that both leave no belief; [MASK] is excluded."""
    x = tl.load(row + at, mask=at < num_columns, other=-_INFINITY).to(tl.float32)
    x = tl.where(x == x, x, _INFINITY)
    # −0 and 0 are equals.
    return tl.where(at == mask_id, -_INFINITY, x) + 0.0


@triton.jit
def _key(x, shift: tl.constexpr):
    """Integers in the order of the numbers: the bits, those below the sign turned over where it is
    set. shift: the bits of float32 that the logits' own dtype lacks."""
    bits = x.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> shift


@triton.jit
def _value(key, shift: tl.constexpr):
    """The number of a key."""
    bits = key << shift
    bits = tl.where(bits < 0, bits | ((1 << shift) - 1), bits)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _edges(low, high):
    """Keys [T] that cut low … high into equal parts; the last one is high."""
    part = tl.arange(0, _NUM_EDGES).to(tl.int64) + 1
    return (low + (high - low) * part // _NUM_EDGES).to(tl.int32)


@triton.jit
def _narrowed(low, high, above, edge_T, mass_T, goal):
    """The range between the last edge whose mass reaches the goal and the next one, and the mass
    from that one on."""
    reached_T = mass_T >= goal
    low = tl.max(tl.where(reached_T, edge_T.to(tl.int64), low), 0)
    high = tl.min(tl.where(reached_T, high, edge_T.to(tl.int64)), 0)
    return low, high, tl.max(tl.where(reached_T, above, mass_T), 0)


@triton.jit
def read_beliefs_kernel(
    logits_ptr,
    past_ptr,
    past_log_z_ptr,
    rows_ptr,
    token_ptr,
    log_z_ptr,
    entropy_ptr,
    kl_ptr,
    ids_ptr,
    extent_ptr,
    scale_ptr,
    num_columns,
    mask_id,
    top_p,
    reach,
    mixes: tl.constexpr,
    shift: tl.constexpr,
    num_ids: tl.constexpr,
    tile: tl.constexpr,
    wide: tl.constexpr,
    stages: tl.constexpr,
):
    """One program a row. Reads the logits for the maximum; again for all sums, the past and a first
    cut of the nucleus; again for each further cut, and once to write the nucleus' ids.

    reach: log p below which tokens hold less than 1 − top_p together. extent [n, 3]: tokens in the
    nucleus, the key of its least logit, the largest id of those that have it. scale [n, 2]: the
    maximum, and the nucleus' mass as Σ exp(logit − maximum).
    """
    n = tl.program_id(0).to(tl.int64)
    row = logits_ptr + n * num_columns
    best, best_id = tl.full([wide], -_INFINITY, tl.float32), tl.zeros([wide], tl.int32)
    for first in tl.range(0, num_columns, wide, num_stages=stages):
        at = first + tl.arange(0, wide)
        x = _logits(row, at, num_columns, mask_id)
        best_id = tl.where(x > best, at, best_id)
        best = tl.where(x > best, x, best)
    top = tl.max(best, 0)
    token = tl.min(tl.where(best == top, best_id, num_columns - 1), 0)
    low = _key(top + reach, shift).to(tl.int64) - 1
    high = _key(top, shift).to(tl.int64) + 1

    past_row = tl.load(rows_ptr + n).to(tl.int64)
    past = past_ptr + past_row * num_columns
    z, z_s = tl.zeros([tile], tl.float32), tl.zeros([tile], tl.float32)
    z_past, z_rounding = tl.zeros([tile], tl.float32), tl.zeros([tile], tl.float32)
    edge_T = _edges(low, high)
    mass_Tt = tl.zeros([_NUM_EDGES, tile], tl.float32)
    for first in tl.range(0, num_columns, tile, num_stages=stages):
        at = first + tl.arange(0, tile)
        x = _logits(row, at, num_columns, mask_id)
        s = x - top
        # Not a maximum, which would hide NaN.
        s = tl.where(s < _LOWEST, _LOWEST, s)
        e = tl.exp(s)
        before = tl.load(past + at, mask=at < num_columns, other=0.0)
        kept = s.to(before.dtype)
        tl.store(past + at, kept, mask=at < num_columns)
        z += e
        z_s += e * s
        z_past += e * before.to(tl.float32)
        z_rounding += e * (kept.to(tl.float32) - s)
        if mixes:
            inside_Tt = _key(x, shift)[None, :] >= edge_T[:, None]
            mass_Tt += tl.where(inside_Tt, e[None, :], 0.0)
    total = tl.sum(z, 0)
    log_z = tl.log(total)
    entropy = log_z - tl.sum(z_s, 0) / total
    kl = tl.load(past_log_z_ptr + past_row) - tl.sum(z_past, 0) / total - entropy
    tl.store(token_ptr + n, token.to(tl.int64))
    tl.store(log_z_ptr + n, log_z)
    tl.store(entropy_ptr + n, entropy)
    tl.store(kl_ptr + n, tl.where(kl < 0, 0.0, kl))
    # Of a rounded belief: Σ exp(s + ε) is Z·(1 + Σ p·ε) to the first order.
    tl.store(past_log_z_ptr + past_row, log_z + tl.sum(z_rounding, 0) / total)

    if mixes:
        goal = top_p * total
        count, last, mass = 1, token, 1.0
        # Not so where the top token suffices, nor without a belief.
        if goal > 1.0:
            low, high, above = _narrowed(low, high, 0.0, edge_T, tl.sum(mass_Tt, 1), goal)
            while high - low > 1:
                edge_T = _edges(low, high)
                mass_Tt = tl.zeros([_NUM_EDGES, tile], tl.float32)
                for first in tl.range(0, num_columns, tile, num_stages=stages):
                    x = _logits(row, first + tl.arange(0, tile), num_columns, mask_id)
                    inside_Tt = _key(x, shift)[None, :] >= edge_T[:, None]
                    mass_Tt += tl.where(inside_Tt, tl.exp(x - top)[None, :], 0.0)
                low, high, above = _narrowed(low, high, above, edge_T, tl.sum(mass_Tt, 1), goal)

            # Of the tokens at the edge the first ones belong to T, until the mass is reached.
            at_edge = tl.exp(_value(low.to(tl.int32), shift) - top)
            wanted = tl.ceil((goal - above) / at_edge)
            wanted = tl.minimum(tl.maximum(wanted, 1.0), num_columns).to(tl.int32)
            num_above, num_at, last = 0, 0, 0
            for first in tl.range(0, num_columns, wide, num_stages=stages):
                at = first + tl.arange(0, wide)
                key = _key(_logits(row, at, num_columns, mask_id), shift)
                is_above, is_at = key > low, key == low
                # Two counts in one scan: a tile has fewer than 2¹⁵ tokens.
                one = (is_above.to(tl.int32) << 16) + is_at.to(tl.int32)
                before = tl.cumsum(one, 0) - one
                above_before = num_above + (before >> 16)
                at_before = num_at + (before & 0xFFFF)
                is_at = is_at & (at_before < wanted)
                place = above_before + tl.minimum(at_before, wanted)
                tl.store(
                    ids_ptr + n * num_ids + place, at, mask=(is_above | is_at) & (place < num_ids)
                )
                last = tl.maximum(last, tl.max(tl.where(is_at, at, 0), 0))
                found = tl.sum(one, 0)
                num_above += found >> 16
                num_at += found & 0xFFFF
            num_at = tl.minimum(num_at, wanted)
            count = num_above + num_at
            mass = above + num_at * at_edge
        else:
            tl.store(ids_ptr + n * num_ids, token)
        tl.store(extent_ptr + n * 3, count)
        tl.store(extent_ptr + n * 3 + 1, low.to(tl.int32))
        tl.store(extent_ptr + n * 3 + 2, last)
        tl.store(scale_ptr + n * 2 + 1, mass)
    tl.store(scale_ptr + n * 2, top)


@triton.jit
def write_weights_kernel(
    logits_ptr,
    extent_ptr,
    scale_ptr,
    num_columns,
    mask_id,
    shift: tl.constexpr,
    num_ids: tl.constexpr,
    tile: tl.constexpr,
    stages: tl.constexpr,
):
    """One program a row: p̄ in place of the logits, where a nucleus has more than num_ids tokens."""
    n = tl.program_id(0).to(tl.int64)
    if tl.load(extent_ptr + n * 3) <= num_ids:
        return
    edge, last = tl.load(extent_ptr + n * 3 + 1), tl.load(extent_ptr + n * 3 + 2)
    top, mass = tl.load(scale_ptr + n * 2), tl.load(scale_ptr + n * 2 + 1)
    row = logits_ptr + n * num_columns
    for first in tl.range(0, num_columns, tile, num_stages=stages):
        at = first + tl.arange(0, tile)
        x = _logits(row, at, num_columns, mask_id)
        key = _key(x, shift)
        inside = (key > edge) | ((key == edge) & (at <= last))
        weight = tl.where(inside, tl.exp(x - top) / mass, 0.0)
        tl.store(row + at, weight.to(logits_ptr.dtype.element_ty), mask=at < num_columns)


@triton.jit
def mix_few_kernel(
    logits_ptr,
    table_ptr,
    ids_ptr,
    extent_ptr,
    scale_ptr,
    expected_ptr,
    num_columns,
    width,
    num_ids: tl.constexpr,
    tile_ids: tl.constexpr,
    tile: tl.constexpr,
):
    """One program for some of a row's width: Σ p̄·e over the ids of a nucleus of up to num_ids."""
    n = tl.program_id(0).to(tl.int64)
    count = tl.load(extent_ptr + n * 3)
    if count > num_ids:
        return
    top, mass = tl.load(scale_ptr + n * 2), tl.load(scale_ptr + n * 2 + 1)
    d = tl.program_id(1) * tile + tl.arange(0, tile)
    expected = tl.zeros([tile], tl.float32)
    for first in range(0, count, tile_ids):
        place = first + tl.arange(0, tile_ids)
        v = tl.load(ids_ptr + n * num_ids + place, mask=place < count, other=0).to(tl.int64)
        x = tl.load(logits_ptr + n * num_columns + v, mask=place < count, other=-_INFINITY)
        weight = (tl.exp(x.to(tl.float32) - top) / mass).to(table_ptr.dtype.element_ty)
        e = tl.load(
            table_ptr + v[:, None] * width + d[None, :],
            mask=(place < count)[:, None] & (d < width)[None, :],
            other=0.0,
        )
        expected += tl.sum(weight.to(tl.float32)[:, None] * e.to(tl.float32), 0)
    tl.store(expected_ptr + n * width + d, expected, mask=d < width)


@triton.jit
def mix_many_kernel(
    weights_ptr,
    table_ptr,
    order_ptr,
    extent_ptr,
    expected_ptr,
    num_rows,
    num_columns,
    width,
    num_ids: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_width: tl.constexpr,
    tile: tl.constexpr,
):
    """p̄ @ table for the rows of the largest nuclei, which come first in `order`. Programs without
    one of more than num_ids tokens end at once."""
    place = tl.program_id(0) * tile_rows + tl.arange(0, tile_rows)
    n = tl.load(order_ptr + place, mask=place < num_rows, other=0).to(tl.int64)
    many = (place < num_rows) & (tl.load(extent_ptr + n * 3) > num_ids)
    if tl.max(many.to(tl.int32), 0) == 0:
        return
    d = tl.program_id(1) * tile_width + tl.arange(0, tile_width)
    expected_MN = tl.zeros([tile_rows, tile_width], tl.float32)
    for first in range(0, num_columns, tile):
        v = first + tl.arange(0, tile)
        weight = tl.load(
            weights_ptr + n[:, None] * num_columns + v[None, :],
            mask=many[:, None] & (v < num_columns)[None, :],
            other=0.0,
        )
        e = tl.load(
            table_ptr + v.to(tl.int64)[:, None] * width + d[None, :],
            mask=(v < num_columns)[:, None] & (d < width)[None, :],
            other=0.0,
        )
        expected_MN = tl.dot(weight, e, expected_MN, input_precision="ieee")
    tl.store(
        expected_ptr + n[:, None] * width + d[None, :],
        expected_MN.to(expected_ptr.dtype.element_ty),
        mask=many[:, None] & (d < width)[None, :],
    )


@triton.jit
def _uniform(state):
    """As `draws.uniform`, to the bit."""
    state = (state ^ ((state >> 30) & 0x3FFFFFFFF)) * _FACTOR_1
    state = (state ^ ((state >> 27) & 0x1FFFFFFFFF)) * _FACTOR_2
    state = state ^ ((state >> 31) & 0x1FFFFFFFF)
    return tl.maximum(((state >> 11) & 0x1FFFFFFFFFFFFF).to(tl.float64) * 2.0**-53, _SMALLEST)


@triton.jit
def draw_tokens_kernel(
    log_p_ptr,
    state_ptr,
    token_ptr,
    temperature_ptr,
    num_columns,
    tile: tl.constexpr,
):
    """One program a row: argmax of log p − temperature · log(−log u) in float64, each token's u
    made where it is used."""
    n = tl.program_id(0).to(tl.int64)
    state = tl.load(state_ptr + n)
    temperature = tl.load(temperature_ptr + n)
    best, best_id = tl.full([tile], -_INFINITY, tl.float64), tl.zeros([tile], tl.int32)
    for first in range(0, num_columns, tile):
        at = first + tl.arange(0, tile)
        log_p = tl.load(log_p_ptr + n * num_columns + at, mask=at < num_columns, other=-_INFINITY)
        u = _uniform(state + _GOLDEN * (at.to(tl.int64) + 1))
        score = log_p.to(tl.float64) - temperature * tl.log(-tl.log(u))
        best_id = tl.where(score > best, at, best_id)
        best = tl.where(score > best, score, best)
    token = tl.min(tl.where(best == tl.max(best, 0), best_id, num_columns - 1), 0)
    tl.store(token_ptr + n, token.to(tl.int64))
