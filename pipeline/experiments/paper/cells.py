"""Numbers → their texts in the tables."""

from __future__ import annotations

from collections.abc import Sequence

NONE = "–"


def number(value: float | None, digits: int = 1, suffix: str = "") -> str:
    """A number, or a dash where there is none."""
    return NONE if value is None else f"{value:.{digits}f}{suffix}"


def times(value: float | str | None) -> str:
    """A ratio as `2.3×`; a dash where it is not known."""
    return NONE if value is None or isinstance(value, str) else f"{value:.2f}×"


def change(value: float | None, reference: float | None) -> str:
    """`+1.2`, against a reference."""
    return NONE if value is None or reference is None else f"{value - reference:+z.1f}"


def span(values: Sequence[float], digits: int = 1, signed: bool = False) -> str:
    """`+1.0 to +4.8`, from the smallest to the largest."""
    if not values:
        return NONE
    sign = "+" if signed else ""
    low, high = (f"{value:{sign}z.{digits}f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
