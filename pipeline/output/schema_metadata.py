"""Extends the schema metadata of `datasets` and pandas from an input to the result columns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa


def with_results(metadata: Mapping[bytes, bytes] | None, results: pa.Schema) -> dict[bytes, bytes]:
    """Schema metadata for the input's columns together with those of `results`; entries that cannot
    be parsed are dropped."""
    found = dict(metadata or {})
    for key, change in ((b"huggingface", _datasets), (b"pandas", _pandas)):
        if key in found:
            try:
                found[key] = change(found[key], results)
            except (ValueError, KeyError, TypeError, AttributeError):
                del found[key]
    return found


def _datasets(content: bytes, results: pa.Schema) -> bytes:
    """Add the features of the result columns: some versions of `datasets` refuse columns that are
    not listed."""
    found = json.loads(content)
    features = {field.name: _feature(field.type) for field in results}
    found["info"]["features"] = {**found["info"]["features"], **features}
    return json.dumps(found).encode()


def _feature(kind: pa.DataType) -> Any:
    if pa.types.is_list(kind):
        return [_feature(kind.value_type)]
    names = {pa.float32(): "float32", pa.bool_(): "bool"}
    return {"dtype": names.get(kind, str(kind)), "_type": "Value"}


def _pandas(content: bytes, results: pa.Schema) -> bytes:
    """Say that column labels are strings, where the input's were integers or tuples: pandas would
    convert the results' names too."""
    found = json.loads(content)
    labels = found.get("column_indexes", [])
    if len(labels) != 1 or labels[0].get("pandas_type") != "unicode":
        found["column_indexes"] = []
    return json.dumps(found).encode()
