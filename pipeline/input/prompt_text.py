"""Says which column types can hold prompts, and decodes a column to one text a row."""

from __future__ import annotations

import pyarrow as pa

_TEXT = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
)


def is_text(kind: pa.DataType) -> bool:
    """Whether prompts can be read from a column of this type: strings and bytes in every Arrow
    layout, plain or as a dictionary (a pandas category), and JSON."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    if isinstance(kind, pa.JsonType):
        return is_text(kind.storage_type)
    return any(is_kind(kind) for is_kind in _TEXT)


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
