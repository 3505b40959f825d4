"""Says which column types can hold prompts, and decodes a column to one prompt a row: a text, or a
chat's turns."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lrd.chats import UNSUPPORTED_FIELDS
from pipeline.input.one_schema import is_list

_TEXT = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
)
TURN = ("role", "content")
"""Fields of a turn that are read."""
PROMPT_KINDS = "text, or chats: lists of {role, content}, both text"

Turn = dict[str, Any]
PromptValue = str | list[Turn]
"""A text, or a chat's turns. `lrd.prompts` checks them."""


def is_text(kind: pa.DataType) -> bool:
    """Whether text can be read from a column of this type: strings and bytes in every Arrow
    layout, plain or as a dictionary (a pandas category), and JSON."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    if isinstance(kind, pa.JsonType):
        return is_text(kind.storage_type)
    return any(is_kind(kind) for is_kind in _TEXT)


def is_chat(kind: pa.DataType) -> bool:
    """Whether chats can be read from a column of this type: lists of every layout, of structs with
    `role` and `content`, of maps from text to text, or empty ones."""
    if not is_list(kind):
        return False
    turn = kind.value_type
    if pa.types.is_map(turn):
        return is_text(turn.key_type) and is_text(turn.item_type)
    if not pa.types.is_struct(turn):
        return bool(pa.types.is_null(turn))
    where = [turn.get_field_index(name) for name in TURN]  # -1: missing, or twice.
    kinds = [turn.field(index).type for index in where if index >= 0]
    return len(kinds) == len(TURN) and all(is_text(k) or pa.types.is_null(k) for k in kinds)


def unread_fields(kind: pa.DataType) -> list[str]:
    """Fields of a chat column's turns that are neither read nor refused."""
    if not is_chat(kind) or not pa.types.is_struct(kind.value_type):
        return []
    names = [field.name for field in kind.value_type]
    return [name for name in names if name not in (*TURN, *UNSUPPORTED_FIELDS)]


def prompts_of(column: pa.ChunkedArray) -> list[PromptValue | ValueError | None]:
    """Each row's prompt; None where it is null, a ValueError where its bytes are not UTF-8.

    column: of a type that `is_text` or `is_chat`, or of any type with nothing but nulls.
    """
    if not is_chat(column.type) or column.null_count == len(column):
        return list(texts(column))
    return [chat for chunk in column.chunks for chat in _chats(chunk)]


def texts(column: pa.ChunkedArray) -> list[str | ValueError | None]:
    """Each row's text; None where it is null, a ValueError where its bytes are not UTF-8.

    column: of a type that `is_text`, or of any type with nothing but nulls.
    """
    if column.null_count == len(column):
        return [None] * len(column)
    return [
        None if content is None else _decoded(content)
        for content in column.cast(pa.large_binary()).to_pylist()
    ]


def _decoded(content: bytes) -> str | ValueError:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        byte = content[error.start]
        return ValueError(f"the prompt is not UTF-8: byte 0x{byte:02x} at position {error.start}")


def _chats(lists: pa.Array) -> Iterator[list[Turn] | ValueError | None]:
    flat = pc.list_flatten(lists)
    turns = iter(_map_turns(flat) if pa.types.is_map(flat.type) else _turns(flat))
    for length in pc.list_value_length(lists).to_pylist():
        yield None if length is None else _chat(list(islice(turns, length)))


def _chat(turns: list[Turn | ValueError | None]) -> list[Turn] | ValueError:
    found: list[Turn] = []
    for number, turn in enumerate(turns, 1):
        if turn is None:
            return ValueError(f"turn {number} is null")
        if isinstance(turn, ValueError):
            return ValueError(f"turn {number}: {turn}")
        found.append(turn)
    return found


def _turns(flat: pa.Array) -> Iterator[Turn | ValueError | None]:
    """The turns of all chats in a row. flat: structs, or nulls."""
    if pa.types.is_null(flat.type):
        yield from [None] * len(flat)
        return
    roles, contents = (texts(pa.chunked_array([pc.struct_field(flat, name)])) for name in TURN)
    unsupported = {
        name: pc.struct_field(flat, name)
        for name in UNSUPPORTED_FIELDS
        if flat.type.get_field_index(name) >= 0
    }
    fields = [(name, values) for name, values in unsupported.items() if _has_values(values)]
    for number, is_valid in enumerate(flat.is_valid().to_pylist()):
        turn = dict(zip(TURN, (roles[number], contents[number]), strict=True))
        bad = next((part for part in turn.values() if isinstance(part, ValueError)), None)
        more = {name: _value(values[number]) for name, values in fields}
        yield bad or ({**turn, **more} if is_valid else None)


def _has_values(values: pa.Array) -> bool:
    return bool(values.null_count < len(values))


def _value(cell: pa.Scalar) -> Any:
    """A cell of a field whose presence alone matters."""
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return "not UTF-8"


def _map_turns(flat: pa.Array) -> Iterator[Turn | ValueError | None]:
    """The turns of all chats in a row. flat: maps from text to text."""
    for cell in flat:
        if not cell.is_valid:
            yield None
            continue
        pairs = cell.values
        keys, values = (texts(pa.chunked_array([pairs.field(n)])) for n in range(2))
        bad = next((part for part in (*keys, *values) if isinstance(part, ValueError)), None)
        if bad is None and len(set(keys)) < len(keys):
            bad = ValueError("has a key twice")
        yield bad or {str(key): value for key, value in zip(keys, values, strict=True)}
