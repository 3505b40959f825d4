"""Makes the input's words to `datasets` and pandas, in a footer, true of the result columns too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline.rows import RESULT_SCHEMA


def with_results(metadata: Mapping[bytes, bytes] | None) -> dict[bytes, bytes]:
    """The metadata of a schema to which the columns of `RESULT_SCHEMA` were added; what cannot be
    understood is dropped."""
    found = dict(metadata or {})
    for key, change in ((b"huggingface", _datasets), (b"pandas", _pandas)):
        if key in found:
            try:
                found[key] = change(found[key])
            except (ValueError, KeyError, TypeError, AttributeError):
                del found[key]
    return found


def _datasets(content: bytes) -> bytes:
    """Add the features of the result columns: some versions know no column beside the listed."""
    found = json.loads(content)
    results = {field.name: _feature(field.type) for field in RESULT_SCHEMA}
    found["info"]["features"] = {**found["info"]["features"], **results}
    return json.dumps(found).encode()


def _feature(kind: pa.DataType) -> Any:
    if pa.types.is_list(kind):
        return [_feature(kind.value_type)]
    names = {pa.float32(): "float32", pa.bool_(): "bool"}
    return {"dtype": names.get(kind, str(kind)), "_type": "Value"}


def _pandas(content: bytes) -> bytes:
    """Column labels are strings: pandas would turn the results' names into integers or tuples."""
    found = json.loads(content)
    labels = found.get("column_indexes", [])
    if len(labels) != 1 or labels[0].get("pandas_type") != "unicode":
        found["column_indexes"] = []
    return json.dumps(found).encode()
