"""Converts text to typed values, exactly or with an error; and parses `--types`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from decimal import Decimal

import pyarrow as pa

TYPES = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
}
INT64 = range(-(1 << 63), 1 << 63)
LARGEST_EXACT = 1 << 53
"""Every integer up to this one is exactly a double; above it some are not."""
INTEGER = re.compile(r"[+-]?[0-9]+")
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
NO_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""How JSON writers spell doubles that are not finite."""
SAFE_DIGITS = 15
"""Every decimal number of at most so many digits survives the way to a double and back."""
BOOLS = {"true": True, "false": False}


def parse_types(words: Sequence[str]) -> dict[str, pa.DataType]:
    """Parse `name=type` words, or several in one with commas, to Arrow types by column.

    A name may hold `=` and `,`. Raises ValueError for another type and a column named twice.
    """
    found: dict[str, pa.DataType] = {}
    for word in words:
        name = ""
        for part in word.split(","):
            name += ("," if name else "") + part
            column, equals, kind = name.rpartition("=")
            if not equals or kind not in TYPES:
                continue
            if column in found:
                raise ValueError(f"--types names the column {column!r} twice")
            found[column], name = TYPES[kind], ""
        if name:
            raise ValueError(f"--types {word}: expected NAME=TYPE, a type of {', '.join(TYPES)}")
    return found


def value_of(text: str, kind: pa.DataType) -> str | int | float | bool | None:
    """A cell's text as a value of one of TYPES.

    Empty text is None where the type is not string. Raises ValueError where the text is not
    such a value, or the type cannot hold it exactly.
    """
    if pa.types.is_string(kind):
        return text
    if not text:
        return None
    if pa.types.is_integer(kind):
        return integer(text)
    if pa.types.is_floating(kind):
        return double(text)
    if text.lower() in BOOLS:
        return BOOLS[text.lower()]
    raise ValueError(f"{short(text)} is not true or false")


def integer(text: str) -> int:
    """Decimal digits as an integer. Raises ValueError for anything else and beyond 64 bits."""
    if not INTEGER.fullmatch(text):
        raise ValueError(f"{short(text)} is not an integer")
    # Python refuses to convert thousands of digits.
    if len(text.lstrip("+-0")) > len(str(INT64.stop)) or int(text) not in INT64:
        raise ValueError(f"{short(text)} is an integer beyond 64 bits")
    return int(text)


def double(text: str) -> float:
    """A decimal number as a double.

    Exact means: the double, written with as many digits as the text has, is the text again.
    Raises ValueError where it is not, and for what is not a number.
    """
    if text in NO_NUMBERS:
        return NO_NUMBERS[text]
    if not NUMBER.fullmatch(text):
        raise ValueError(f"{short(text)} is not a number")
    number = float(text)
    if len(text) > SAFE_DIGITS or "e" in text.lower():
        digits = len(re.split("[eE]", text)[0].replace(".", "").strip("+-0")) or 1
        try:
            exact = math.isfinite(number) and Decimal(f"{number:.{digits - 1}e}") == Decimal(text)
        except ArithmeticError:
            exact = False
        if not exact:
            raise ValueError(f"{short(text)} has more digits than a 64-bit float holds")
    return number


def short(text: str) -> str:
    """The text in quotes, cut where it is long."""
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
