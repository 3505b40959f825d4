"""Finds one schema for all prompt shards, and casts a shard's columns to it.

Shards may differ in what changes no value: the order of columns, nullability, the layout of text,
bytes and lists (plain, large, view, fixed), dictionaries and the width of their indices, and the
type of a column that holds nothing but nulls.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

STRINGS = (pa.string(), pa.large_string(), pa.string_view())
BYTES = (pa.binary(), pa.large_binary(), pa.binary_view())


def merged(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """A type that holds the values of both unchanged; None where there is none."""
    types = pa.types
    if one.equals(other) or types.is_null(other):
        return one
    if types.is_null(one):
        return other
    for layouts in (STRINGS, BYTES):
        if one in layouts and other in layouts:
            return layouts[1]
    if types.is_dictionary(one) or types.is_dictionary(other):
        return _merged_dictionaries(one, other)
    if is_list(one) and is_list(other):
        return _merged_lists(one, other)
    if types.is_map(one) and types.is_map(other):
        key, item = merged(one.key_type, other.key_type), merged(one.item_type, other.item_type)
        return None if key is None or item is None else pa.map_(key, item)
    if types.is_struct(one) and types.is_struct(other):
        fields = _merged_fields(one, other)
        return None if fields is None else pa.struct(fields)
    return None


def _merged_dictionaries(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    both = [kind for kind in (one, other) if pa.types.is_dictionary(kind)]
    values = merged(*(kind.value_type if kind in both else kind for kind in (one, other)))
    if values is None or len(both) == 1:
        return values
    narrow = all(k.index_type == pa.int32() or k.index_type.bit_width < 32 for k in both)
    ordered = all(kind.ordered for kind in both)
    return pa.dictionary(pa.int32() if narrow else pa.int64(), values, ordered)


def is_list(kind: pa.DataType) -> bool:
    """Whether it is a list of any layout."""
    types = pa.types
    kinds = (
        types.is_list,
        types.is_large_list,
        types.is_fixed_size_list,
        types.is_list_view,
        types.is_large_list_view,
    )
    return any(is_kind(kind) for is_kind in kinds)


def _merged_lists(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    items = merged(one.value_type, other.value_type)
    if items is None:
        return None
    field = one.value_field.with_type(items)
    sizes = [k.list_size for k in (one, other) if pa.types.is_fixed_size_list(k)]
    if len(sizes) == 2 and sizes[0] == sizes[1]:
        return pa.list_(field, sizes[0])
    plain = pa.types.is_list(one) and pa.types.is_list(other)
    return pa.list_(field) if plain else pa.large_list(field)


def _merged_fields(one: pa.StructType, other: pa.StructType) -> list[pa.Field] | None:
    theirs = {field.name: field for field in other}
    if sorted(theirs) != sorted(field.name for field in one):
        return None
    fields = []
    for field in one:
        kind = merged(field.type, theirs[field.name].type)
        if kind is None:
            return None
        nullable = field.nullable or theirs[field.name].nullable
        fields.append(field.with_type(kind).with_nullable(nullable))
    return fields


def writable(kind: pa.DataType) -> pa.DataType:
    """The type itself; or, for views of text or bytes in structs in lists, which pyarrow reads (as
    Polars writes them) but cannot write, one that holds the values unchanged."""
    if is_list(kind):
        is_record = pa.types.is_struct(kind.value_type)
        item = _without_views(kind.value_type) if is_record else writable(kind.value_type)
        return kind if item.equals(kind.value_type) else merged(kind, pa.list_(item))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(writable(field.type)) for field in kind])
    return kind


def _without_views(kind: pa.DataType) -> pa.DataType:
    for view, plain in ((STRINGS[2], STRINGS[1]), (BYTES[2], BYTES[1])):
        if kind.equals(view):
            return plain
    if is_list(kind):
        return merged(kind, pa.list_(_without_views(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_views(field.type)) for field in kind])
    return kind


@dataclass(slots=True)
class _Column:
    field: pa.Field
    only_nulls: bool
    shard: str
    """The first shard with values in this column, which determines the type."""


class OneSchema:
    """The schema of the shards that were added so far."""

    def __init__(self) -> None:
        self._columns: dict[str, _Column] = {}
        self._first = ""

    def add(self, shard: str, schema: pa.Schema, only_nulls: Collection[str]) -> None:
        """Take in a shard's schema. only_nulls: its columns without a value.

        Raises ValueError, naming both shards and their types, where values are of another kind.
        """
        if not self._columns:
            self._first = shard
            for field in schema:
                self._columns[field.name] = _Column(field, field.name in only_nulls, shard)
            return
        self._check_names(shard, schema)
        for name, column in self._columns.items():
            self._add(column, schema.field(name), name in only_nulls, shard)

    def _check_names(self, shard: str, schema: pa.Schema) -> None:
        lacking = [name for name in self._columns if name not in schema.names]
        more = [name for name in schema.names if name not in self._columns]
        if lacking or more:
            parts = [f"no column {', '.join(map(repr, lacking))}"] if lacking else []
            parts += [f"the further {', '.join(map(repr, more))}"] if more else []
            raise ValueError(
                f"{shard}: has {' and '.join(parts)}, unlike {self._first}; all shards need the "
                "same columns"
            )

    def _add(self, column: _Column, field: pa.Field, only_nulls: bool, shard: str) -> None:
        before = column.field
        kind = merged(before.type, field.type)
        if kind is None and not only_nulls and not column.only_nulls:
            raise ValueError(
                f"{shard}: column {field.name!r} holds {field.type}, in {column.shard} "
                f"{before.type}; write both as one type"
            )
        if kind is None:
            kind = before.type if only_nulls else field.type
        if column.only_nulls and not only_nulls:
            column.shard = shard
        column.only_nulls = column.only_nulls and only_nulls
        nullable = before.nullable or field.nullable
        column.field = before.with_type(kind).with_nullable(nullable)

    @property
    def schema(self) -> pa.Schema:
        """Columns in the order of the first shard, of types that can be written."""
        fields = [column.field for column in self._columns.values()]
        return pa.schema([field.with_type(writable(field.type)) for field in fields])


def conform(columns: Mapping[str, pa.ChunkedArray], schema: pa.Schema) -> pa.Table:
    """A table of `schema` from columns that may be of other types and in another order.

    Raises pa.ArrowException where values are of another kind.
    """
    return pa.Table.from_arrays(
        [_conformed(columns[field.name], field.type) for field in schema], schema=schema
    )


def _conformed(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if column.type.equals(kind):
        return column
    if column.null_count == len(column):
        return pa.chunked_array([pa.nulls(len(column), kind)])
    if pa.types.is_list_view(column.type) or pa.types.is_large_list_view(column.type):
        column = pa.chunked_array(map(_as_list, column.chunks))
    return column.cast(kind)


def _as_list(views: pa.Array) -> pa.Array:
    """A list view as a large list, whose last offset Arrow's own cast leaves unset (26.0)."""
    lengths = pc.list_value_length(views).fill_null(0).cast(pa.int64())
    offsets = pa.concat_arrays([pa.array([0], pa.int64()), pc.cumulative_sum(lengths)])
    return pa.LargeListArray.from_arrays(offsets, pc.list_flatten(views), mask=views.is_null())
