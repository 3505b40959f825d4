"""Reads the settings that rows bring along in columns of their own (`--row-settings`).

A column has the setting's name; a null stands for the run's value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from pipeline.config import RowSetting, RunConfig
from pipeline.input.prompt_shards import PromptShards
from pipeline.input.prompt_text import is_text, texts
from pipeline.rows import OF_THE_RUN, RowSettings

MOST_EXACT = 2**53
"""From here on a float64 is not one integer alone."""
SEEDS = range(-(2**63), 2**64)


@dataclass(frozen=True, slots=True)
class OwnSettings:
    """What a row brings along."""

    settings: RowSettings = OF_THE_RUN
    gen_length: int | None = None
    system_prompt: str | None = None
    """Of both, None: the run's."""


def check_columns(inputs: PromptShards, names: Sequence[RowSetting]) -> None:
    """Raises ValueError, naming file and column, where one is missing or can never hold the
    setting."""
    if not inputs.files:
        return
    first = inputs.storage.path(inputs.files[0].name)
    for name in names:
        drop = f"drop {name} from --row-settings"
        if name not in inputs.schema.names:
            there = ", ".join(inputs.schema.names)
            raise ValueError(f"{first}: no column {name!r}; it has {there}. Add it, or {drop}")
        kind = inputs.schema.field(name).type
        expected, fits = COLUMN_KINDS[name]
        if not fits(kind) and not pa.types.is_null(kind):
            raise ValueError(
                f"{_holder(inputs, name, fits)}: column {name!r} holds {kind}; expected "
                f"{expected}. Write it as such, or {drop}"
            )


def _holder(inputs: PromptShards, name: str, fits: Callable[[pa.DataType], bool]) -> str:
    """The path of the first file whose column is of the wrong type."""
    for file in inputs.files:
        with inputs.storage.open(file.name) as source:
            own = pq.read_schema(source)
        kind = own.field(name).type if name in own.names else None
        if kind is not None and not fits(kind) and not pa.types.is_null(kind):
            return inputs.storage.path(file.name)
    return inputs.storage.path(inputs.files[0].name)  # A column of the folders' names.


class RowSettingsReader:
    """Reads the columns of `row_settings`, and checks every value against the run's settings."""

    def __init__(self, config: RunConfig, max_length: int) -> None:
        """max_length: the model's positions."""
        self._config, self._max_length = config, max_length
        self.columns: tuple[RowSetting, ...] = config.row_settings
        self._why_not = cache(self._why_no_canvas)

    def read(self, rows: pa.Table) -> list[OwnSettings | ValueError]:
        """What each row brings along, or why it cannot be decoded so."""
        if not self.columns:
            return [OwnSettings()] * rows.num_rows
        values = [_values(name, rows[name]) for name in self.columns]
        return [self._row(found) for found in zip(*values, strict=True)]

    def rounded(self, gen_length: int) -> int:
        """The canvas for a row that is longer than all that were sampled: few lengths, each a
        multiple of block_length."""
        step = max(16, (1 << (gen_length - 1).bit_length()) // 8)
        step = math.lcm(step, self._config.decoding.block_length or 1)
        canvas = -(-gen_length // step) * step
        return gen_length if self._why_not(canvas) else canvas

    def _row(self, found: Sequence[Any]) -> OwnSettings | ValueError:
        """found: a value for each of the columns."""
        of: dict[str, Any] = dict(zip(self.columns, found, strict=True))
        try:
            for name, value in of.items():
                if isinstance(value, ValueError):
                    raise value
                of[name] = None if value is None else CHECKS[name](value)
            if of.get("gen_length") and (reason := self._why_not(of["gen_length"])):
                raise ValueError(reason)
            self._check_samples(of.get("temperature"))
        except ValueError as error:
            return error
        own = {name: of.pop(name, None) for name in ("gen_length", "system_prompt")}
        return OwnSettings(RowSettings(**of), **own)

    def _check_samples(self, temperature: float | None) -> None:
        if temperature is None:
            temperature = self._config.decoding.temperature
        if self._config.num_samples > 1 and temperature == 0:
            raise ValueError(
                f"temperature 0 would give all {self._config.num_samples} samples the same answer; "
                "set it above 0"
            )

    def _why_no_canvas(self, gen_length: int) -> str | None:
        """Why the model or the run's other settings cannot have a canvas of this length."""
        if gen_length >= self._max_length:
            return (
                f"gen_length {gen_length} leaves no room for a prompt in the model's "
                f"{self._max_length} positions"
            )
        decoding = self._config.decoding
        try:
            type(decoding)(**{**decoding.model_dump(), "gen_length": gen_length})
        except ValidationError as error:
            return str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        return None


def _values(name: RowSetting, column: pa.ChunkedArray) -> Iterator[Any]:
    """A column's values; a ValueError for one that cannot be read."""
    if name != "system_prompt":
        yield from column.to_pylist()
        return
    for text in texts(column):
        is_bad = isinstance(text, ValueError)
        yield ValueError(f"system_prompt cannot be read: {text}") if is_bad else text


def _gen_length(value: Any) -> int:
    length = _whole("gen_length", value)
    if length < 1:
        raise ValueError(f"gen_length is {length}; expected at least 1")
    return length


def _seed(value: Any) -> int:
    seed = _whole("seed", value)
    if seed not in SEEDS:
        raise ValueError(f"seed is {seed}; expected a number of 64 bits")
    return seed


def _whole(name: str, value: Any) -> int:
    if not math.isfinite(value) or value != int(value):
        raise ValueError(f"{name} is {value}; expected a whole number")
    if not isinstance(value, int | Decimal) and abs(value) > MOST_EXACT:
        raise ValueError(
            f"{name} is {value}, a float that has lost digits; write the column as integers"
        )
    return int(value)


def _temperature(value: Any) -> float:
    temperature = float(value)
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; expected a number of at least 0")
    return temperature


def _is_number(kind: pa.DataType) -> bool:
    """Numbers, plain or as a dictionary. Floats may be whole numbers: pandas makes them of integers
    where some are missing."""
    if pa.types.is_dictionary(kind):
        return _is_number(kind.value_type)
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    )


COLUMN_KINDS: dict[RowSetting, tuple[str, Callable[[pa.DataType], bool]]] = {
    "gen_length": ("whole numbers", _is_number),
    "temperature": ("numbers", _is_number),
    "seed": ("whole numbers", _is_number),
    "system_prompt": ("text", is_text),
}
"""What the column of a setting holds, and whether one of a type can."""
CHECKS: dict[str, Callable[[Any], Any]] = {
    "gen_length": _gen_length,
    "temperature": _temperature,
    "seed": _seed,
    "system_prompt": str,
}
"""A value as the setting has it; ValueError for one that cannot be."""
