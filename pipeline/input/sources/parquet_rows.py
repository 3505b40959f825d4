"""Reads Parquet: the files' own types, which have to agree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.input.sources.reading import Rows
from pipeline.input.sources.source_file import BATCH_ROWS, SourceFile

FEATURES = b"huggingface"
"""Key of the schema's metadata that says what `datasets` makes of the columns."""


def read(files: Sequence[SourceFile]) -> Rows:
    """Files with the same columns, one after another; columns in the first one's order.

    Raises ValueError naming the file: here for schemas that disagree, while iterating for
    damaged data.
    """
    schema = _schema(files[0])
    for file in files[1:]:
        schema = _agreed(files[0], schema, file, _schema(file))

    def tables() -> Iterator[pa.Table]:
        for file in files:
            with _opened(file) as parquet:
                for batch in parquet.iter_batches(BATCH_ROWS):
                    table = pa.Table.from_batches([batch]).select(schema.names)
                    yield table.cast(schema)

    return Rows(schema, tables())


@contextmanager
def _opened(file: SourceFile) -> Iterator[pq.ParquetFile]:
    try:
        with (
            pa.OSFile(str(file.path)) as stream,
            pq.ParquetFile(stream, page_checksum_verification=True) as parquet,
        ):
            yield parquet
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise file.fault(f"not a whole Parquet file ({reason}); write it again") from error


def _schema(file: SourceFile) -> pa.Schema:
    with _opened(file) as parquet:
        found = parquet.schema_arrow
    twice = [name for name in found.names if found.names.count(name) > 1]
    if twice:
        raise file.fault(f"has two columns named {twice[0]!r}; rename one")
    features = (found.metadata or {}).get(FEATURES)
    return found.with_metadata({FEATURES: features} if features else None)


def _agreed(first: SourceFile, ours: pa.Schema, file: SourceFile, theirs: pa.Schema) -> pa.Schema:
    """The schema of both; a column that is all null in one has the other's type."""
    reason = ", ".join(sorted(set(ours.names) ^ set(theirs.names)))
    if not reason:
        try:
            return pa.unify_schemas([ours, theirs])
        except pa.ArrowException as error:
            reason = str(error).splitlines()[0]
    raise file.fault(f"its columns differ from those of {first.shown}: {reason}")
