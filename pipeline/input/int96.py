"""Chooses the unit in which INT96 timestamps keep their values, nanoseconds or microseconds.

Spark and Impala wrote INT96: nanoseconds of any year, which do not always fit into 64 bits, and
pyarrow reads others as wrong dates.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.parquet_batches import batches


class OutOfRangeError(Exception):
    """A value does not fit into nanoseconds: it is not in the years 1678 to 2261."""


def columns(parquet: pq.ParquetFile) -> list[str]:
    """Top-level columns of INT96 values, or with INT96 inside."""
    leaves = [parquet.schema.column(n) for n in range(len(parquet.schema))]
    paths = [f"{leaf.path}." for leaf in leaves if leaf.physical_type == "INT96"]
    return [
        name
        for name in parquet.schema_arrow.names
        if any(path.startswith(f"{name}.") for path in paths)
    ]


def check(where: str, open_file: Callable[[], Any], names: list[str], unit: str) -> None:
    """Check that the columns `names` keep their values when read in `unit`, ns or us.

    Raises OutOfRangeError where nanoseconds do not hold every value, ValueError where
    microseconds do not.
    """
    with open_file() as a, open_file() as b, open_file() as c:
        readers = (
            batches(pq.ParquetFile(source, coerce_int96_timestamp_unit=each), names)
            for source, each in ((a, "s"), (b, "us"), (c, "ns"))
        )
        for seconds, micros, nanos in zip(*readers, strict=True):
            if unit == "ns" and not _fits(seconds, micros, nanos):
                raise OutOfRangeError
            # Both wrap around where they overflow, and so are equal unless digits were cut off.
            if unit == "us" and not (
                _fits(seconds, micros) and micros.cast(nanos.schema, safe=False).equals(nanos)
            ):
                raise ValueError(
                    f"{where}: INT96 timestamps in {', '.join(names)} fit neither nanoseconds "
                    "(years 1678 to 2261) nor, to the digit, microseconds; write them as INT64"
                )


def _fits(*coarse_to_fine: pa.RecordBatch) -> bool:
    try:
        for coarse, fine in pairwise(coarse_to_fine):
            coarse.cast(fine.schema)
    except pa.ArrowInvalid:
        return False
    return True


def unit_of(parquet: pq.ParquetFile, schema: pa.Schema) -> str | None:
    """The unit (ns or us) in which a file's INT96 columns have the types of `schema`; None where
    the file has no such columns."""
    names = [name for name in columns(parquet) if name in schema.names]
    if not names:
        return None
    in_us = any("timestamp[us" in str(schema.field(name).type) for name in names)
    return "us" if in_us else "ns"
