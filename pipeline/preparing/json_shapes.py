"""Finds an Arrow type for JSON values that holds every one of them exactly; else raises an error.

    null            null; any type with other values   [..]  list<…>
    true, 5, 0.5    bool, int64, float64               {..}  struct<…>, absent keys null
    "…"             string, also where it looks like a number

Integers and fractions in one column are float64 where every integer is exactly a double.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.preparing.exact_cells import LARGEST_EXACT, double, integer

MAX_KEYS = 2000
"""Most different keys of a column's objects. An object with more is a mapping, not a record."""
KINDS: dict[type, str] = {bool: "true or false", str: "text", list: "a list", dict: "an object"}


class Number(str):
    """A number in the spelling of the source."""

    __slots__ = ()

    @property
    def is_integer(self) -> bool:
        return self.lstrip("-").isdecimal()


@dataclass(slots=True)
class Shape:
    """The kind of the values that were seen so far at one place in the rows."""

    path: str
    """The column, then `.key` for each key, `[]` for a list's items."""
    kind: str | None = None
    """One of KINDS, `an integer` or `a fraction`; None: only nulls."""
    where: str = ""
    """The first row with this kind."""
    widest: tuple[int, str] = (0, "")
    """The largest absolute integer, and its row."""
    item: Shape | None = None
    fields: dict[str, Shape] = field(default_factory=dict)

    def see(self, value: Any, where: str) -> None:
        """Take in a value. where: names its row.

        Raises ValueError where no type holds it and the earlier ones exactly.
        """
        if value is None:
            return
        kind = self._kind_of(value)
        if self.kind is None:
            self.kind, self.where = kind, where
        elif kind != self.kind:
            if {kind, self.kind} != {"an integer", "a fraction"}:
                raise self._fault(f"holds {kind}, but {self.kind} in {self.where}")
            self.kind = "a fraction"
        if isinstance(value, Number):
            self._see_number(value, where)
        elif isinstance(value, list):
            self.item = self.item or Shape(f"{self.path}[]")
            for item in value:
                self.item.see(item, where)
        elif isinstance(value, dict):
            self._see_object(value, where)

    def _kind_of(self, value: Any) -> str:
        if isinstance(value, Number):
            return "an integer" if value.is_integer else "a fraction"
        return KINDS[type(value)]

    def _see_number(self, value: Number, where: str) -> None:
        try:
            if value.is_integer:
                self.widest = max(self.widest, (abs(integer(value)), where))
            else:
                double(value)
        except ValueError as error:
            raise ValueError(f"{self.path!r}: {error}") from error
        if self.kind == "a fraction" and self.widest[0] > LARGEST_EXACT:
            raise self._fault(
                f"has fractions and, in {self.widest[1]}, an integer that a 64-bit float "
                "does not hold"
            )

    def _see_object(self, value: dict[str, Any], where: str) -> None:
        for key, part in value.items():
            if key not in self.fields:
                self.fields[key] = Shape(f"{self.path}.{key}")
            self.fields[key].see(part, where)
        if len(self.fields) > MAX_KEYS:
            raise self._fault(f"has more than {MAX_KEYS} different keys")

    def _fault(self, message: str) -> ValueError:
        return ValueError(f"{self.path!r} {message}")

    def convert(self, value: Any) -> Any:
        """A value that was seen, with Python numbers. Raises KeyError for a key that was not
        seen."""
        if isinstance(value, Number):
            return int(value) if self.kind == "an integer" else float(value)
        if isinstance(value, list) and self.item:
            return [self.item.convert(item) for item in value]
        if isinstance(value, dict):
            return {key: self.fields[key].convert(part) for key, part in value.items()}
        return value

    def arrow(self) -> pa.DataType:
        """The Arrow type. Raises ValueError for objects that are all empty: Parquet has no
        such type."""
        match self.kind:
            case None:
                return pa.null()
            case "an integer":
                return pa.int64()
            case "a fraction":
                return pa.float64()
            case "a list":
                return pa.list_(self.item.arrow() if self.item else pa.null())
            case "an object":
                if not self.fields:
                    raise self._fault("holds only empty objects, which Parquet cannot")
                return pa.struct([(name, shape.arrow()) for name, shape in self.fields.items()])
            case "text":
                return pa.string()
        return pa.bool_()


def as_text(value: Any) -> str:
    """A text unchanged; any other value as JSON, with its numbers as the source spells them."""
    return str(value) if isinstance(value, str) else _json(value)


def _json(value: Any) -> str:
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, dict):
        pairs = (f"{_json(key)}: {_json(part)}" for key, part in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_json, value))}]"
    return json.dumps(value, ensure_ascii=False)
