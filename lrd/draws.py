"""Uniform numbers for sampling, each a hash of what it is for: counter-based, without a generator.

A number depends on the row's seed, the row's own pass, the canvas position and the token alone. So
a row draws the same in any slot, beside any others, computed in any chunk, on a CPU and on a GPU.
The hash is SplitMix64 (Steele, Lea, Flood 2014), whose state goes up by a constant for each token.

Legend: B samples, K positions of the current block, N of the B·K positions, V columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def signed(number: int) -> int:
    """The int64 that has an integer's lowest 64 bits."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


GOLDEN = signed(0x9E3779B97F4A7C15)
"""What SplitMix64 adds from one number to the next: 2⁶⁴ over the golden ratio, odd."""
ROUNDS = ((30, signed(0xBF58476D1CE4E5B9)), (27, signed(0x94D049BB133111EB)), (31, 1))
"""Shifts and factors of its finalizer, Stafford's variant 13."""
SMALLEST = 2.0**-54
"""In place of a 0, whose logarithm would make a token certain."""


@dataclass(frozen=True, slots=True)
class Draws:
    """The uniform numbers of one pass."""

    state_BK: Tensor
    """SplitMix64's state at each position, int64."""
    temperature_BK: Tensor
    """float64."""
    num_columns: int

    @classmethod
    def of(
        cls,
        seed_B: Tensor,
        pass_B: Tensor,
        position_BK: Tensor,
        temperature_B: Tensor,
        num_columns: int,
    ) -> Draws:
        """seed: the rows' own, int64. pass: how many passes the row has had. position: in the
        canvas. temperature: the rows' own, float64."""
        state_B = hashed(hashed(seed_B) + GOLDEN * (pass_B + 1))
        state_BK = hashed(state_B[:, None] + GOLDEN * (position_BK + 1))
        return cls(state_BK, temperature_B[:, None].expand_as(position_BK), num_columns)

    def temperatures(self, rows_N: Tensor) -> Tensor:
        """The temperature [N] of rows of B·K, float64."""
        return self.temperature_BK.flatten()[rows_N]

    def states(self, rows_N: Tensor) -> Tensor:
        """SplitMix64's state [N] before the first token, for rows of B·K."""
        return self.state_BK.flatten()[rows_N]

    def uniform(self, rows_N: Tensor) -> Tensor:
        """[N, V] in (0, 1), float64 of 53 bits, for rows of B·K."""
        token_V = torch.arange(1, self.num_columns + 1, device=rows_N.device)
        return uniform(self.states(rows_N)[:, None] + GOLDEN * token_V)


def hashed(state: Tensor) -> Tensor:
    """SplitMix64's finalizer of every int64; products and sums are modulo 2⁶⁴."""
    state, spare = state.clone(), torch.empty_like(state)
    _hash(state, spare)
    return state


def uniform(state: Tensor) -> Tensor:
    """The hash's upper 53 bits as float64 in (0, 1); overwrites the state."""
    spare = torch.empty_like(state)
    _hash(state, spare)
    _shift_right(state, 11, spare)
    del state  # A chunk of them may be most of a pass's memory.
    return spare.double().mul_(2.0**-53).clamp_(min=SMALLEST)


def _hash(state: Tensor, spare: Tensor) -> None:
    for shift, factor in ROUNDS:
        _shift_right(state, shift, spare)
        state.bitwise_xor_(spare)
        if factor != 1:
            state.mul_(factor)


def _shift_right(state: Tensor, by: int, out: Tensor) -> None:
    """As of unsigned integers, which torch does not shift."""
    torch.bitwise_right_shift(state, by, out=out)
    out.bitwise_and_((1 << (64 - by)) - 1)
