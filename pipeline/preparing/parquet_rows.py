"""Reads Parquet files, whose column types have to agree.

INT96 times are read in nanoseconds; in microseconds where a value is outside the years 1677 to
2262, which pyarrow would silently read as another date.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.input.one_schema import conform, writable
from pipeline.preparing.reading import Rows
from pipeline.preparing.source_file import BATCH_ROWS, SourceFile

FEATURES = b"huggingface"
"""Key of the schema's metadata under which `datasets` stores the features of the columns."""


def read(files: Sequence[SourceFile]) -> Rows:
    """Read files with the same columns, one after another; columns in the order of the first file.

    Raises ValueError naming the file: at once for schemas that disagree, while iterating for
    damaged data.
    """
    unit = "ns" if all(map(_fits_nanoseconds, files)) else "us"
    schema = _schema(files[0], unit)
    for file in files[1:]:
        schema = _agreed(files[0], schema, file, _schema(file, unit))

    def tables() -> Iterator[pa.Table]:
        for file in files:
            with _opened(file, unit) as parquet:
                for batch in parquet.iter_batches(BATCH_ROWS):
                    table = pa.Table.from_batches([batch]).select(schema.names)
                    yield conform(dict(zip(schema.names, table.columns, strict=True)), schema)

    return Rows(schema, tables())


@contextmanager
def _opened(file: SourceFile, unit: str) -> Iterator[pq.ParquetFile]:
    try:
        with (
            pa.OSFile(os.fsencode(file.path)) as stream,
            pq.ParquetFile(
                stream, page_checksum_verification=True, coerce_int96_timestamp_unit=unit
            ) as parquet,
        ):
            yield parquet
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise file.fault(f"not a whole Parquet file ({reason}); write it again") from error


def _fits_nanoseconds(file: SourceFile) -> bool:
    """Whether every INT96 time of a file fits into 64 bits of nanoseconds."""
    fine, coarse = _schema(file, "ns"), _schema(file, "us")
    # Only the type of INT96 columns depends on the unit.
    names = [field.name for field in fine if field.type != coarse.field(field.name).type]
    if not names:
        return True
    target = pa.schema([fine.field(name) for name in names])
    with _opened(file, "us") as parquet:
        for batch in parquet.iter_batches(BATCH_ROWS, columns=names):
            try:
                pa.Table.from_batches([batch]).select(names).cast(target)
            except pa.ArrowInvalid:
                return False
    return True


def _schema(file: SourceFile, unit: str) -> pa.Schema:
    with _opened(file, unit) as parquet:
        found = parquet.schema_arrow
    twice = [name for name in found.names if found.names.count(name) > 1]
    if twice:
        raise file.fault(f"has two columns named {twice[0]!r}; rename one")
    features = (found.metadata or {}).get(FEATURES)
    fields = [field.with_type(writable(field.type)) for field in found]
    return pa.schema(fields, {FEATURES: features} if features else None)


def _agreed(first: SourceFile, ours: pa.Schema, file: SourceFile, theirs: pa.Schema) -> pa.Schema:
    """A schema for both files; a column of type null in one has the other's type."""
    reason = ", ".join(sorted(set(ours.names) ^ set(theirs.names)))
    if not reason:
        try:
            return pa.unify_schemas([ours, theirs])
        except pa.ArrowException as error:
            reason = str(error).splitlines()[0]
    raise file.fault(f"its columns differ from those of {first.shown}: {reason}")
