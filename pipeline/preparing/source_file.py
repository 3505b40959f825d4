"""Opens one file of a source: its bytes, decompressed, and its lines as text."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import pyarrow as pa

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
"""Suffix, in lower case → pyarrow's name of the codec."""
BOM = b"\xef\xbb\xbf"
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
BATCH_ROWS = 1000
BATCH_CHARACTERS = 1 << 26
"""Most rows and most characters of a batch; a longer row is a batch of its own."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A local file, and its name in messages."""

    path: Path
    shown: str

    @property
    def suffix(self) -> str:
        """The suffix in lower case, without the suffix of a compression."""
        suffixes = [suffix.lower() for suffix in self.path.suffixes]
        if suffixes and suffixes[-1] in COMPRESSIONS:
            suffixes.pop()
        return suffixes[-1] if suffixes else ""

    def fault(self, message: str, line: int | None = None) -> ValueError:
        """The error to raise: the file, the line if there is one, and what is wrong."""
        return ValueError(f"{self.shown}{f', line {line}' if line else ''}: {message}")

    def utf8_fault(self, line: bytes, number: int, error: UnicodeDecodeError) -> ValueError:
        """The error for a line that is not UTF-8."""
        return self.fault(
            f"byte 0x{line[error.start]:02x} at position {error.start + 1} is not UTF-8; "
            "save the file as UTF-8",
            number,
        )

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open the file; its bytes are decompressed as its suffix says.

        Raises ValueError naming the file where it is UTF-16 or cannot be decompressed, OSError
        where it cannot be read.
        """
        codec = COMPRESSIONS.get(self.path.suffix.lower())
        if codec is None:
            with self.path.open("rb") as stream:
                yield self._checked(stream)
            return
        try:
            with pa.CompressedInputStream(pa.OSFile(os.fsencode(self.path)), codec) as stream:
                yield self._checked(io.BufferedReader(stream, 1 << 20))
        except OSError as error:
            raise self.fault(f"cannot be decompressed ({error})") from error

    def _checked(self, stream: Any) -> IO[bytes]:
        if stream.peek(2)[:2] in UTF_16:
            raise self.fault("is UTF-16; save it as UTF-8")
        return stream  # type: ignore[no-any-return]

    def lines(self) -> Iterator[tuple[int, str]]:
        """Numbered lines, from 1, split at newlines alone; a byte order mark is dropped.

        Raises ValueError naming file and line for bytes that are not UTF-8.
        """
        with self.open() as stream:
            for number, line in enumerate(stream, 1):
                if number == 1:
                    line = line.removeprefix(BOM)
                try:
                    text = line.decode()
                except UnicodeDecodeError as error:
                    raise self.utf8_fault(line, number, error) from error
                yield number, text


def in_batches(rows: Iterable[tuple[int, T]]) -> Iterator[list[T]]:
    """Groups rows, given with their length in characters, into batches."""
    batch: list[T] = []
    characters = 0
    for length, row in rows:
        if batch and (len(batch) == BATCH_ROWS or characters + length > BATCH_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(row)
        characters += length
    if batch:
        yield batch
