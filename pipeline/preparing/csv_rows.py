"""Reads CSV: every cell is text, as written, unless a type is named for its column.

An empty cell is empty text, or null in a column of another type. Blank lines are skipped; in a file
of one column, those between rows are rows with an empty cell.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa

from pipeline.preparing.exact_cells import value_of
from pipeline.preparing.reading import Reading, Rows
from pipeline.preparing.source_file import SourceFile, in_batches

DELIMITERS = ",;\t|"
NAMES = {"\t": "tab"}
REASONS = {
    "unexpected end": "a quote opens here and is never closed",
    "expected after": "a quoted cell continues after its closing quote; double quotes inside cells",
    "new-line character": "a carriage return is in a cell without quotes; quote the cell",
}
"""Part of an error message of Python's csv → the reason to show."""
SAMPLE_LINES = 1000
"""Lines that are read to find a file's delimiter."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the first row says."""

    delimiter: str
    columns: list[str]


def read(files: Sequence[SourceFile], reading: Reading) -> Rows:
    """Read files with the same columns, one after another; columns in the order of the first file.

    Raises ValueError naming file and line: at once for headers, while iterating for rows.
    """
    csv.field_size_limit(sys.maxsize)
    headers = [_header(file, reading.delimiter) for file in files]
    columns = headers[0].columns
    for file, header in zip(files, headers, strict=True):
        if set(header.columns) != set(columns):
            differ = ", ".join(sorted(set(columns) ^ set(header.columns)))
            raise file.fault(f"its columns differ from those of {files[0].shown}: {differ}")
    schema = pa.schema([(name, reading.types.get(name, pa.string())) for name in columns])

    def tables() -> Iterator[pa.Table]:
        for file, header in zip(files, headers, strict=True):
            for rows in in_batches(islice(_rows(file, header), reading.limit)):
                yield _table(file, header, rows, schema)

    return Rows(schema, tables())


Row = tuple[int, list[str]]
"""The line where it begins, and its cells."""


def _table(file: SourceFile, header: Header, rows: list[Row], schema: pa.Schema) -> pa.Table:
    arrays = []
    for field in schema:
        index = header.columns.index(field.name)
        if pa.types.is_string(field.type):
            arrays.append(pa.array([cells[index] for _, cells in rows], field.type))
            continue
        values = []
        for line, cells in rows:
            try:
                values.append(value_of(cells[index], field.type))
            except ValueError as error:
                raise file.fault(
                    f"column {field.name!r}: {error}; --types asks for {field.type}", line
                ) from error
        arrays.append(pa.array(values, field.type))
    return pa.table(arrays, schema)


def _rows(file: SourceFile, header: Header) -> Iterator[tuple[int, Row]]:
    """The rows below the header, each with its length in characters."""
    width, blank = len(header.columns), []
    for line, cells in islice(_records(file, header.delimiter), 1, None):
        if not cells:
            # In a file of one column a blank line is an empty cell if a row follows it.
            if width == 1:
                blank.append(line)
            continue
        yield from ((0, (number, [""])) for number in blank)
        blank.clear()
        if len(cells) != width:
            raise file.fault(
                f"{len(cells)} cells where the header has {width}; quote cells that hold the "
                f"delimiter ({_name(header.delimiter)}), or name another with --delimiter",
                line,
            )
        yield sum(map(len, cells)), (line, cells)


def _records(file: SourceFile, delimiter: str) -> Iterator[Row]:
    """Every record with the line where it begins; blank lines before the first are skipped."""
    with _text(file) as text:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        begins, started = 1, False
        try:
            for cells in reader:
                started = started or bool(cells)
                if started:
                    yield begins, cells
                begins = reader.line_num + 1
        except csv.Error as error:
            reason = next((ours for theirs, ours in REASONS.items() if theirs in str(error)), error)
            raise file.fault(f"not CSV: {reason}", begins) from error


@contextmanager
def _text(file: SourceFile) -> Iterator[io.TextIOWrapper]:
    try:
        with file.open() as stream, io.TextIOWrapper(stream, "utf-8-sig", newline="") as text:
            # A carriage return alone ends lines only in a file whose first line it ends.
            newline = "\r" if text.readline().endswith("\r") else "\n"
        with file.open() as stream, io.TextIOWrapper(stream, "utf-8-sig", newline=newline) as text:
            yield text
    except UnicodeDecodeError as error:
        for _ in file.lines():
            pass  # Raises with the line.
        raise file.fault(str(error)) from error


def _header(file: SourceFile, delimiter: str | None) -> Header:
    delimiter = delimiter or _delimiter(file)
    _, cells = next(_records(file, delimiter), (0, None))
    if cells is None:
        raise file.fault("is empty; expected a header and rows")
    if cells[0].startswith("sep="):
        raise file.fault("is Excel's note of a delimiter; remove it and give --delimiter", 1)
    columns = [name or f"Unnamed: {number}" for number, name in enumerate(cells)]
    twice = [name for name in columns if columns.count(name) > 1]
    if twice:
        raise file.fault(f"has two columns named {twice[0]!r}; rename one", 1)
    return Header(delimiter, columns)


def _delimiter(file: SourceFile) -> str:
    """The delimiter that splits the header; of several, the one that gives all rows the same number
    of cells. A comma where none does.

    Raises ValueError where several remain.
    """
    if file.suffix == ".tsv":
        return "\t"
    with _text(file) as text:
        sample = list(islice(text, SAMPLE_LINES))
    counts = {sign: _counts(sample, sign) for sign in DELIMITERS}
    cutting = [sign for sign, found in counts.items() if found and found[0] > 1]
    if len(cutting) > 1:
        even = [sign for sign in cutting if len(set(counts[sign])) == 1]
        if len(even) != 1:
            names = " and ".join(map(_name, cutting))
            raise file.fault(f"{names} may each be its delimiter; name it with --delimiter")
        return even[0]
    return cutting[0] if cutting else ","


def _counts(sample: list[str], delimiter: str) -> list[int]:
    """Number of cells of each row, up to one that is not CSV; without the last row where the sample
    may have cut it."""
    found: list[int] = []
    with suppress(csv.Error):
        found.extend(len(cells) for cells in csv.reader(sample, delimiter=delimiter) if cells)
    return found[:-1] if len(sample) == SAMPLE_LINES else found


def _name(delimiter: str) -> str:
    return NAMES.get(delimiter, delimiter)
