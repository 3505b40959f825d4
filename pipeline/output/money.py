"""What GPU-hours cost: in all, for a thousand rows, for a million effective tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cost:
    """What rows cost, in the currency of the price."""

    gpu_hours: float
    price: float
    """Of a GPU-hour."""
    num_rows: float
    num_tokens: float
    """Effective tokens of these rows."""

    @property
    def total(self) -> float:
        return self.gpu_hours * self.price

    @property
    def thousand_rows(self) -> float:
        return 1000 * self.total / self.num_rows

    @property
    def million_tokens(self) -> float | None:
        """None where the rows have no token."""
        return 1e6 * self.total / self.num_tokens if self.num_tokens else None


def money(amount: float) -> str:
    """Two decimals; `below 0.01` for what they would show as nothing."""
    return "below 0.01" if 0 < amount < 0.005 else f"{amount:,.2f}"


def check_price(price: float | None) -> None:
    """Raises ValueError for a price of a GPU-hour that is none."""
    if price is not None and not (math.isfinite(price) and price > 0):
        raise ValueError(f"--price-per-gpu-hour is {price:g}; expected a number above 0")
