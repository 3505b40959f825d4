"""Dataclasses: the settings for reading a source, and the rows that were read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyarrow as pa

PROMPT = "prompt"


@dataclass(frozen=True, slots=True)
class Reading:
    """How to read a source. None: as found in the source."""

    split: str | None = None
    """Split names, joined by `+`."""
    types: Mapping[str, pa.DataType] = field(default_factory=dict)
    """Types of columns of CSV and JSON."""
    delimiter: str | None = None
    """Between the cells of a CSV row."""
    rows_field: str | None = None
    """Key of a JSON document that holds its rows."""
    prompt_column: str | None = None
    """Column of JSON and CSV that is text, or chats; None: `prompt`, where there is one."""
    limit: int | None = None
    """Most rows to read."""

    def check_columns(self, where: str, columns: list[str]) -> None:
        """Raises ValueError for named columns that the source lacks."""
        named = [*self.types, *([self.prompt_column] if self.prompt_column else [])]
        missing = [name for name in named if name not in columns]
        if missing:
            raise ValueError(f"{where}: no column {missing[0]!r}; it has {', '.join(columns)}")


@dataclass(frozen=True, slots=True)
class Rows:
    """A source's rows. `tables` reads them and can be iterated once."""

    schema: pa.Schema
    tables: Iterator[pa.Table]
    """Batches of rows with this schema."""
    left_out: tuple[str, ...] = ()
    """Files of the source that are not read."""


@contextmanager
def naming(source: str) -> Iterator[None]:
    """Puts the source's name before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
