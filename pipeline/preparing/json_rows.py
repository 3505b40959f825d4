"""Reads JSON: one object a line, a list of objects, or such a list under a key of a document.

Files are read twice: first to find types that hold every value exactly, then for the rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa

from pipeline.input.prompt_text import PROMPT_KINDS, is_chat, is_text
from pipeline.preparing.exact_cells import short, value_of
from pipeline.preparing.json_shapes import Number, Shape, as_text
from pipeline.preparing.reading import PROMPT, Reading, Rows
from pipeline.preparing.source_file import SourceFile, in_batches

Row = tuple[SourceFile, str, dict[str, Any]]
"""A row's file, its place there (`line 3`), and its object."""


def read(files: Sequence[SourceFile], reading: Reading) -> Rows:
    """Read files one after another; a column for each key, null where a row lacks it.

    Raises ValueError naming file and line: at once for what is not JSON and for columns that no
    type holds exactly, while iterating where `--types` asks for another type.
    """
    columns = _columns(files, reading)
    shown = files[0].shown if len(files) == 1 else f"{files[0].shown} and the other files"
    schema = pa.schema([_field(name, shape, reading, shown) for name, shape in columns.items()])

    def tables() -> Iterator[pa.Table]:
        for batch in in_batches(_rows(files, reading)):
            arrays = [_array(field, columns[field.name], batch, reading) for field in schema]
            yield pa.table(arrays, schema)

    return Rows(schema, tables())


def _columns(files: Sequence[SourceFile], reading: Reading) -> dict[str, Shape]:
    """The shape of every column; columns whose type is given stay without a kind."""
    columns: dict[str, Shape] = {}
    for _, (file, where, row) in _rows(files, reading):
        place = f"{where} of {file.shown}"
        for name, value in row.items():
            if name not in columns:
                columns[name] = Shape(name)
            if name in reading.types:
                continue
            try:
                columns[name].see(_kept(name, value, reading), place)
            except ValueError as error:
                raise _fault(file, where, f"column {error}; {_way_out(name)}") from error
    return columns


def _field(name: str, shape: Shape, reading: Reading, shown: str) -> pa.Field:
    if name in reading.types:
        return pa.field(name, reading.types[name])
    try:
        kind = shape.arrow()
    except ValueError as error:
        raise ValueError(f"{shown}: column {error}; {_way_out(name)}") from error
    if name == _prompt_column(reading):
        if pa.types.is_null(kind):
            kind = pa.string()
        if not is_text(kind) and not is_chat(kind):
            message = f"column {name!r} holds {kind}; a prompt column holds {PROMPT_KINDS}"
            raise ValueError(f"{shown}: {message}; {_way_out(name)}")
    return pa.field(name, kind)


def _array(field: pa.Field, shape: Shape, batch: list[Row], reading: Reading) -> pa.Array:
    values = []
    for file, where, row in batch:
        try:
            values.append(_value(row.get(field.name), field, shape, reading))
        except ValueError as error:
            raise _fault(file, where, f"column {field.name!r}: {error}") from error
        except KeyError as error:
            raise _fault(file, where, "has changed while it was read; try again") from error
    return pa.array(values, field.type)


def _value(value: Any, field: pa.Field, shape: Shape, reading: Reading) -> Any:
    if field.name in reading.types:
        return _typed(value, field.type)
    return shape.convert(_kept(field.name, value, reading))


def _typed(value: Any, kind: pa.DataType) -> Any:
    """A value converted to a type of `--types`."""
    if value is None:
        return None
    if isinstance(value, list | dict) and not pa.types.is_string(kind):
        raise ValueError(f"{short(as_text(value))} is not {kind}, as --types asks")
    try:
        return value_of(as_text(value), kind)
    except ValueError as error:
        raise ValueError(f"{error}; --types asks for {kind}") from error


def _kept(name: str, value: Any, reading: Reading) -> Any:
    """A value as its column keeps it: prompts that are not chats become text."""
    if name != _prompt_column(reading) or value is None:
        return value
    if not isinstance(value, list | dict):
        return as_text(value)
    if isinstance(value, dict) or not all(isinstance(turn, dict | None) for turn in value):
        raise ValueError(f"{name!r} holds {short(as_text(value))}; a prompt is {PROMPT_KINDS}")
    return value


def _prompt_column(reading: Reading) -> str:
    return reading.prompt_column or PROMPT


def _way_out(column: str) -> str:
    return f"--types {column}=string keeps it as JSON text"


def _fault(file: SourceFile, where: str, message: str) -> ValueError:
    return ValueError(f"{file.shown}, {where}: {message}")


def _rows(files: Sequence[SourceFile], reading: Reading) -> Iterator[tuple[int, Row]]:
    """All rows, each with its length in characters."""
    rows = (row for file in files for row in _rows_of(file, reading))
    for length, file, where, value in islice(rows, reading.limit):
        if not isinstance(value, dict):
            found = "a list" if isinstance(value, list) else short(as_text(value))
            raise _fault(file, where, f"is {found}; each row is a JSON object")
        yield length, (file, where, value)


def _rows_of(file: SourceFile, reading: Reading) -> Iterator[tuple[int, SourceFile, str, Any]]:
    if reading.rows_field is None and not _is_document(file):
        for number, line in file.lines():
            if line.strip():
                yield len(line), file, f"line {number}", _parsed(file, line.rstrip("\r\n"), number)
        return
    text = "".join(line for _, line in file.lines())
    document = _parsed(file, text, 1)
    rows = _rows_field(file, document, reading.rows_field)
    length = len(text) // (len(rows) or 1)
    yield from ((length, file, f"row {number}", row) for number, row in enumerate(rows, 1))


def _is_document(file: SourceFile) -> bool:
    """Whether a file is one JSON value, not one a line; by its first line that is not blank."""
    if file.suffix != ".json":
        return False
    lines = (line for _, line in file.lines() if line.strip())
    first = next(lines, "").lstrip()
    if not first.startswith("{"):
        return first.startswith("[")
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return True
    return next(lines, None) is None


def _rows_field(file: SourceFile, document: Any, name: str | None) -> list[Any]:
    """The list of rows in a document. name: its key; None: the document is the list."""
    if isinstance(document, list) and name is None:
        return document
    if not isinstance(document, dict):
        raise file.fault(f"is not a JSON object with a key {name!r}; leave --field out")
    keys = ", ".join(list(document)[:10])
    if name is None:
        raise file.fault(
            f"is one JSON object (keys: {keys}), not rows; name the key of its rows with "
            "--field, or call the file .jsonl if each line is a row"
        )
    if not isinstance(document.get(name), list):
        raise file.fault(f"--field {name}: no list of rows under this key; its keys: {keys}")
    found: list[Any] = document[name]
    return found


def _parsed(file: SourceFile, text: str, line: int) -> Any:
    """Parse a JSON text; numbers keep their spelling. line: where the text begins."""
    try:
        value = EXACT.decode(text)
        if "\\ud" in text.lower():
            as_text(value).encode()
    except json.JSONDecodeError as error:
        at = line + error.lineno - 1
        raise file.fault(f"not JSON: {error.msg} at position {error.colno}", at) from error
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise file.fault(f"{half} is half of a character; write its other half", line) from error
    except (ValueError, RecursionError) as error:
        raise file.fault(str(error), line) from error
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {short(twice)} is twice in one object")
    return found


EXACT = json.JSONDecoder(
    parse_int=Number, parse_float=Number, parse_constant=Number, object_pairs_hook=_object
)
"""Keeps the spelling of numbers, and refuses a key that an object has twice."""
