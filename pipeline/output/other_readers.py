"""Warns of columns of a result dataset that pandas or `datasets` cannot open, by their types.

As of datasets 5.2 and pandas 3.1; a test compares with what is installed.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa


def cannot_open(schema: pa.Schema) -> list[str]:
    """A line for each program that cannot open some column."""
    lines = []
    for reader, is_refused, way_out in (
        ("datasets.load_dataset", _datasets_refuses, "pandas and pyarrow do"),
        ("pandas", _pandas_refuses, "pyarrow does"),
    ):
        found = [
            f"{field.name!r} ({kind})"
            for field in schema
            for kind in [next(filter(is_refused, _parts(field.type)), None)]
            if kind is not None
        ]
        if found:
            lines.append(f"{reader} cannot open results with {', '.join(found)}; {way_out}")
    return lines


def _parts(kind: pa.DataType) -> Iterator[pa.DataType]:
    """A type and the types inside."""
    yield kind
    if isinstance(kind, pa.BaseExtensionType):
        return
    if pa.types.is_dictionary(kind):
        yield from _parts(kind.value_type)
    for n in range(kind.num_fields):
        yield from _parts(kind.field(n).type)


def _datasets_refuses(kind: pa.DataType) -> bool:
    types = pa.types
    return (
        types.is_map(kind)
        or types.is_list_view(kind)
        or types.is_large_list_view(kind)
        or types.is_decimal32(kind)
        or types.is_decimal64(kind)
        or (isinstance(kind, pa.BaseExtensionType) and not isinstance(kind, pa.JsonType))
    )


def _pandas_refuses(kind: pa.DataType) -> bool:
    """Times of day become Python's `time`, which has no nanoseconds."""
    return bool(kind == pa.time64("ns"))
