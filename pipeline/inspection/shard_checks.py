"""Checks the bytes of one result shard: its rows, columns, footer and values."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.output.result_shards import repeated
from pipeline.output.run_records import own_lengths, run_canvases
from pipeline.rows import Layout

ROWS_NAMED = 3
"""Rows of a shard that are named for the same finding; the others are counted."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a shard was planned to hold."""

    number: int
    num_prompts: int
    input_name: str
    fingerprint: dict[str, Any]
    prompts: pa.Table | None
    """The input's rows; None where they cannot be read or have changed."""

    @property
    def layout(self) -> Layout:
        """Which rows and columns it has."""
        return Layout.of(self.fingerprint)

    @property
    def num_rows(self) -> int:
        return self.num_prompts * self.layout.num_samples

    def row_id(self, row: int) -> str:
        """The id of one of its rows."""
        return self.layout.row_id(self.number, row)

    @property
    def canvases(self) -> tuple[int, ...] | None:
        return run_canvases(self.fingerprint)

    @property
    def stops(self) -> list[str]:
        """Texts that answers end before."""
        return list(self.fingerprint.get("stop", ()))


@dataclass(slots=True)
class ShardCheck:
    """The findings in one shard: pairs of a row (None: the whole file) and what is wrong."""

    expected: Expected
    schema: pa.Schema | None = None
    """The file's schema; None where it cannot be read or is wrong."""
    num_rows: int = 0
    num_failed: int = 0
    findings: list[tuple[str | None, str]] = field(default_factory=list)

    def read(self, content: bytes) -> None:
        """Check a whole file, a row group at a time."""
        try:
            file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            self._found(f"is not a whole Parquet file ({_first_line(error)})")
            return
        self.num_rows = file.metadata.num_rows
        if self.num_rows != self.expected.num_rows:
            self._found(f"has {self.num_rows} rows, {self.expected.num_rows} were planned")
        self._check_footer(file.metadata.metadata or {})
        if not self._check_schema(file.schema_arrow.remove_metadata()):
            return
        try:
            self._check_row_ids(file.read(columns=["row_id"])["row_id"].to_pylist())
        except (pa.ArrowException, OSError) as error:
            self._found(f"its row ids cannot be read ({_first_line(error)})")
        self._check_groups(file)

    def _found(self, what: str, row: int | None = None) -> None:
        name = None if row is None else self.expected.row_id(row)
        self.findings.append((name, what))

    def _check_footer(self, footer: dict[bytes, bytes]) -> None:
        try:
            found = json.loads(footer.get(b"lrd.fingerprint", b"null"))
        except ValueError:
            found = None
        if found is None:
            self._found("its footer has no fingerprint")
        elif found != self.expected.fingerprint:
            self._found("the fingerprint in its footer is not the manifest's: another run wrote it")
        name = footer.get(b"lrd.input", b"").decode(errors="replace")
        if name != self.expected.input_name:
            self._found(f"its footer names {name!r} as its input, not {self.expected.input_name!r}")

    def _check_schema(self, schema: pa.Schema) -> bool:
        """Whether the file has the input's columns, then the results', each with its type."""
        results = self.expected.layout.schema
        before = len(schema) - len(results)
        fields = list(schema)
        wanted = list(results)
        if self.expected.prompts is not None:
            wanted = [*self.expected.prompts.schema, *wanted]
            before = 0
        # By Arrow's equality: the items of a list have another name in a file.
        ours, theirs = _pairs(wanted), _pairs(fields[max(0, before) :])
        if ours == theirs:
            self.schema = schema
            return True
        parts = [f"lacks {pair[0]}: {pair[1]}" for pair in ours if pair not in theirs]
        parts += [f"also has {pair[0]}: {pair[1]}" for pair in theirs if pair not in ours]
        self._found(f"its columns are wrong: {'; '.join(parts) or 'in another order'}")
        return False

    def _check_row_ids(self, found: list[str | None]) -> None:
        expected = list(map(self.expected.row_id, range(self.expected.num_rows)))
        if found == expected:
            return
        counts = Counter(found)
        missing = [n for n, name in enumerate(expected) if name not in counts]
        self._name_rows(missing, "is missing")
        numbers = {name: n for n, name in enumerate(expected)}
        twice = [numbers[name] for name, n in counts.items() if n > 1 and name in numbers]
        self._name_rows(twice, "is there more than once")
        foreign = [name for name in counts if name not in numbers]
        if foreign:
            self._found(f"holds row ids that are not its own, {len(foreign)} in all: {foreign[0]}")
        if not missing and not twice and not foreign:
            moved = [n for n, name in enumerate(found) if name != expected[n]]
            self._name_rows(moved, "is not in its place: the rows are not in the input's order")

    def _check_groups(self, file: pq.ParquetFile) -> None:
        wrong: dict[str, list[int]] = {}
        first = 0
        for number in range(file.num_row_groups):
            num_rows = file.metadata.row_group(number).num_rows
            try:
                rows = file.read_row_group(number)
            except (pa.ArrowException, OSError) as error:
                reason = _first_line(error)
                last = first + num_rows - 1
                self._found(f"rows {first} to {last} cannot be read ({reason})", first)
            else:
                for what, indices in self._wrong_rows(rows, first):
                    wrong.setdefault(what, []).extend(first + index for index in indices)
                failed = pc.sum(pc.equal(rows["status"], "failed")).as_py()
                self.num_failed += failed or 0
            first += num_rows
        for what, numbers in wrong.items():
            self._name_rows(numbers, what)

    def _wrong_rows(self, rows: pa.Table, first: int) -> Iterator[tuple[str, list[int]]]:
        yield from contradictions(
            rows,
            self.expected.canvases,
            self.expected.stops,
            has_schema="json_schema" in self.expected.fingerprint,
        )
        if own_lengths(self.expected.fingerprint):
            yield from _other_canvases(rows, self.expected.fingerprint["decoding"]["gen_length"])
        num_samples = self.expected.layout.num_samples
        samples = [row % num_samples for row in range(first, first + rows.num_rows)]
        wrong = pc.not_equal(rows["sample"].fill_null(-1), pa.array(samples, pa.int32()))
        yield "its sample is not that of its row", pc.indices_nonzero(wrong).to_pylist()
        prompts = self.expected.prompts
        if prompts is not None and first + rows.num_rows <= self.expected.num_rows:
            part = repeated(prompts, first, rows.num_rows, num_samples)
            found = list(_differing(part, rows.select(prompts.column_names)))
            yield "its input columns are not the input's row", found

    def _name_rows(self, rows: list[int], what: str) -> None:
        for row in rows[:ROWS_NAMED]:
            self._found(what, row)
        if len(rows) > ROWS_NAMED:
            self._found(f"{len(rows) - ROWS_NAMED} more rows: {what}")


def contradictions(
    rows: pa.Table,
    canvases: Sequence[int] | None,
    stops: Sequence[str] = (),
    *,
    has_schema: bool = False,
) -> Iterator[tuple[str, list[int]]]:
    """Values in result rows that contradict each other or the settings, and the indices of those
    rows. Columns that the run does not keep are not checked.

    canvases: as `run_canvases` has them. has_schema: whether answers are JSON of a form.
    """
    there = set(rows.column_names)
    failed, ok = (pc.equal(rows["status"], word).fill_null(False) for word in ("failed", "ok"))
    no_error = pc.is_null(rows["error"])
    no_output = pc.is_null(rows["output_text"])
    if "output_token_ids" in there:
        no_output = pc.or_(no_output, pc.is_null(rows["output_token_ids"]))
    passes = rows["num_forwards"].fill_null(0)
    rules = {
        "its status is neither ok nor failed": pc.invert(pc.or_(failed, ok)),
        "is failed without an error": pc.and_(failed, no_error),
        "is ok with an error": pc.and_(ok, pc.invert(no_error)),
        "is ok without an output": pc.and_(ok, no_output),
        "is failed with an output": pc.and_(failed, pc.is_valid(rows["output_text"])),
    }
    if "full_passes" in there:
        more = pc.greater(rows["full_passes"].fill_null(0), passes)
        rules["its full_passes are more than its num_forwards"] = pc.and_(ok, more)
    if "num_uncommits" in there:
        wrong = pc.less(rows["num_uncommits"].fill_null(-1), 0)
        rules["its num_uncommits is missing or below 0"] = pc.and_(ok, wrong)
    for name in there & {"mean_confidence", "min_confidence"}:
        outside = pc.or_(pc.less(rows[name], 0), pc.greater(rows[name], 1)).fill_null(False)
        rules[f"its {name} is not between 0 and 1"] = pc.and_(ok, outside)
    lengths: dict[str, tuple[str, Any]] = dict.fromkeys(
        ("kl_trace", "entropy_trace"), ("num_forwards", passes)
    )
    if "canvas_length" in there:
        canvas = rows["canvas_length"].fill_null(0)
        lengths |= dict.fromkeys(
            ("commit_step", "token_confidence", "output_token_ids"), ("canvas_length", canvas)
        )
        known = pc.greater(canvas, 0)
        if canvases is not None:
            known = pc.is_in(canvas, pa.array(canvases, pa.int32()))
        rules["its canvas_length is none that the run has"] = pc.and_(ok, pc.invert(known))
    for name in [name for name in lengths if name in there]:
        of, length = lengths[name]
        differs = pc.not_equal(_lengths(rows[name]), length)
        rules[f"its {name} has not {of} values"] = pc.and_(ok, differs)
    if "stop_text" in there:
        given = pc.is_valid(rows["stop_text"])
        known = pc.is_in(rows["stop_text"], pa.array(stops, pa.string()))
        rules["its stop_text is not one of the stops of the run"] = pc.and_(given, pc.invert(known))
        rules["is failed with a stop_text"] = pc.and_(failed, given)
    if "output_json" in there:
        given, reason = pc.is_valid(rows["output_json"]), pc.is_valid(rows["json_error"])
        wanted = ok if has_schema else pc.and_(ok, failed)  # None is both.
        wrong = pc.or_(pc.and_(given, reason), pc.xor(pc.or_(given, reason), wanted))
        rules["its output_json or json_error is missing or not expected"] = wrong
    for stop in stops:
        holds = pc.match_substring(rows["output_text"], stop).fill_null(False)
        rules[f"its output_text holds the stop {stop!r}"] = holds
    for what, mask in rules.items():
        indices = pc.indices_nonzero(mask).to_pylist()
        if indices:
            yield what, indices


def _other_canvases(rows: pa.Table, of_the_run: int) -> Iterator[tuple[str, list[int]]]:
    """Decoded rows whose canvas is not as long as their column `gen_length` says."""
    if not {"canvas_length", "gen_length"} <= set(rows.column_names):
        return
    columns = (rows[name].to_pylist() for name in ("status", "gen_length", "canvas_length"))
    wrong = [
        index
        for index, (status, own, canvas) in enumerate(zip(*columns, strict=True))
        if status == "ok" and canvas != (of_the_run if own is None else own)
    ]
    if wrong:
        yield "its canvas_length is not its own gen_length", wrong


def _lengths(lists: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.list_value_length(lists).fill_null(-1)


def _differing(ours: pa.Table, theirs: pa.Table) -> Iterator[int]:
    """Indices of rows that differ. For Arrow NaN differs from itself, so columns that it calls
    different are compared value by value."""
    unequal = [name for name in ours.column_names if not ours[name].equals(theirs[name])]
    pairs = [zip(ours[name].to_pylist(), theirs[name].to_pylist(), strict=True) for name in unequal]
    for index, values in enumerate(zip(*pairs, strict=True)):
        if any(repr(a) != repr(b) for a, b in values):
            yield index


def _pairs(fields: list[pa.Field]) -> list[tuple[str, pa.DataType]]:
    return [(f.name, f.type) for f in fields]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
