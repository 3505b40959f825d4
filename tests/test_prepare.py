"""`lrd prepare`: every cell of a source comes out with its value, or one line says why not."""

from __future__ import annotations

import argparse
import bz2
import csv
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import prepare
from pipeline.preparing import exact_cells, source_file, source_files
from pipeline.preparing.prepare import shard_name

TEXTS = {
    "words for null": ["NA", "N/A", "null", "None", "NULL", "nan", "NaN", "-", "#N/A", "<NA>"],
    "leading zeros": ["00501", "007", "0", "00", "+1", "-0", "1_000"],
    "long ids": ["12345678901234567", "99999999999999999", "18446744073709551616", "9" * 400],
    "dates": ["2024-01-01", "2024-01-01T00:00:00Z", "12:30", "1/2/2024", "Jan 5"],
    "numbers": ["1.0", "1.10", "1e5", "0x1F", "1,5", "٣", "inf", "1.0000000000000001"],
    "truth": ["true", "True", "FALSE", "yes", "0", "1"],
    "spaces": [" a", "a ", "  ", "\t", "\u00a0x\u00a0", "\u2028", "a\u2029b", "\x0b"],
    "newlines": ["a\nb", "a\r\nb", "a\rb", "\n", "x\n\ny", "\r"],
    "quotes": ['"', '""', 'say "hi"', "it's", '",', '"\n"', "`x`", "\\", '\\"', "\\n"],
    "delimiters": ["a,b", "a;b", "a\tb", "a|b", ",", ";;", "a, b; c | d"],
    "unicode": [
        "é",
        "e\u0301",
        "日本語",
        "عربى",
        "\u200b",
        "\ufeff",
        "ﬀ",
        "\U0001f600",
        "👩‍👩‍👧",
        "\U0010ffff",
    ],
    "controls": ["\x00", "a\x00b", "\x1f", "\x7f", "\x85"],
    "markup": ["<|mask|>", "{% raw %}", "=1+1", "@x", "#c", "# c", "[1]", '{"a": 1}', "%s", "$x"],
    "empty": ["", "x", ""],
    "long": ["x" * 1_100_000, "🙂" * 100_000],
}
CELLS = [cell for found in TEXTS.values() for cell in found]


def call(*words: str) -> int:
    parser = argparse.ArgumentParser()
    prepare.add_arguments(parser)
    return prepare.run(parser.parse_args([*words]))


def prepared(tmp_path: Path, source: Path | str, *words: str) -> pa.Table:
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    assert call(str(source), "--output", str(out), *words) == 0
    shards = sorted(out.iterdir())
    assert shards[-1].name.endswith(f"-of-{len(shards):05d}.parquet")
    return pa.concat_tables([pq.read_table(shard) for shard in shards])


def refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: Path | str, *words: str
) -> str:
    """The one line of a call that is refused and leaves nothing."""
    capsys.readouterr()
    before = sorted(tmp_path.rglob("*"))
    assert call(str(source), "--output", str(tmp_path / "out"), *words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("lrd prepare: ")
    assert sorted(tmp_path.rglob("*")) == before, "something was left behind"
    return line


def checksum(rows: list[dict[str, Any]]) -> str:
    """Of every cell: its row, column, Python type and value."""
    digest = hashlib.sha256()
    for number, row in enumerate(rows):
        for name, value in row.items():
            digest.update(f"{number}\0{name}\0{type(value).__name__}\0{value!r}\n".encode())
    return digest.hexdigest()


def type_of(table: pa.Table, column: str) -> str:
    """Parquet has another name for a list's items."""
    return str(table.schema.field(column).type).replace("<element:", "<item:")


def columns_of(texts: list[str]) -> list[dict[str, str]]:
    """Each text as the first cell, between others, and the last of a row."""
    return [{"prompt": text, "id": str(n), "last": text} for n, text in enumerate(texts)]


def write_csv(path: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), **options)
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(text.getvalue().encode())
    return path


def write_jsonl(path: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    path.write_text("".join(json.dumps(row, **options) + "\n" for row in rows))
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("wb") as stream:
        pq.write_table(pa.Table.from_pylist(rows), stream)
    return path


def save(path: Path, rows: list[dict[str, Any]]) -> Path:
    datasets.Dataset.from_list(rows).save_to_disk(str(path))
    return path


def zstd(content: bytes) -> bytes:
    found: bytes = pa.compress(content, codec="zstd", asbytes=True)
    return found


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": zstd,
}
WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], Path]] = {
    "a.csv": write_csv,
    "quoted.CSV": lambda path, rows: write_csv(path, rows, quoting=csv.QUOTE_ALL),
    "unix.csv": lambda path, rows: write_csv(
        path, rows, lineterminator="\n", quoting=csv.QUOTE_ALL
    ),
    "semicolon.csv": lambda path, rows: write_csv(path, rows, delimiter=";"),
    "pipe.csv": lambda path, rows: write_csv(path, rows, delimiter="|"),
    "tab.csv": lambda path, rows: write_csv(path, rows, delimiter="\t"),
    "a.tsv": lambda path, rows: write_csv(path, rows, delimiter="\t"),
    "a.jsonl": write_jsonl,
    "a.NDJSON": lambda path, rows: write_jsonl(path, rows, ensure_ascii=False),
    "lines.json": write_jsonl,
    "list.json": lambda path, rows: (path.write_text(json.dumps(rows)), path)[1],
    "pretty.Json": lambda path, rows: (path.write_text(json.dumps(rows, indent=2)), path)[1],
    "a.parquet": write_parquet,
    "A.PARQUET": write_parquet,
    "saved": save,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("kind", TEXTS)
def test_text_stays_text(tmp_path: Path, kind: str, name: str) -> None:
    rows = columns_of(TEXTS[kind])
    found = prepared(tmp_path, WRITERS[name](tmp_path / name, rows), "--rows-per-shard", "3")
    assert set(map(str, found.schema.types)) == {"string"}
    assert checksum(found.to_pylist()) == checksum(rows)


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.NDJSON", "pretty.Json"])
def test_compressed_text_is_read(tmp_path: Path, name: str, suffix: str) -> None:
    rows = columns_of(CELLS)
    content = WRITERS[name](tmp_path / name, rows).read_bytes()
    half = len(content) // 2
    compress = COMPRESS[suffix]
    packed = tmp_path / f"{name}{suffix.upper()}"
    packed.write_bytes(compress(content[:half]) + compress(content[half:]))
    assert checksum(prepared(tmp_path, packed).to_pylist()) == checksum(rows)


NESTED: dict[str, list[Any]] = {
    "null": [None, None],
    "bool": [True, None, False],
    "int64": [0, -1, 2**63 - 1, -(2**63), 12345678901234567, None],
    "double": [0.1, 1e308, 5e-324, -0.0, 0.1 + 0.2, 1 / 3, 2.0**60, 1e22, None],
    "list<item: int64>": [[1, 2**53 + 1], [], None, [None]],
    "list<item: string>": [["2024-01-01", "NA"], [""]],
    "list<item: list<item: double>>": [[[0.5], []], [[1.25, None]]],
    "struct<a: int64, b: string>": [{"a": 1, "b": "x"}, {"a": None, "b": None}, None],
    "list<item: struct<role: string, content: string>>": [
        [{"role": "user", "content": "é\n"}, {"role": "assistant", "content": "👍"}],
        [],
    ],
}


@pytest.mark.parametrize("name", ["a.jsonl", "list.json", "a.parquet", "saved"])
@pytest.mark.parametrize("kind", NESTED)
def test_values_keep_their_type(tmp_path: Path, kind: str, name: str) -> None:
    rows = [{"prompt": "p", "value": value} for value in NESTED[kind]]
    found = prepared(tmp_path, WRITERS[name](tmp_path / name, rows))
    if name.endswith(("jsonl", "json")):
        assert type_of(found, "value") == kind
    assert checksum(found.to_pylist()) == checksum(rows)


@pytest.mark.parametrize(
    ("lines", "kind", "values"),
    [
        (["1", "2.5", "-3"], "double", [1.0, 2.5, -3.0]),
        (["NaN", "1", "-Infinity"], "double", None),
        (["9007199254740992", "0.5"], "double", [2.0**53, 0.5]),
        (["0.10000000000000001", "1.50", "1E2"], "double", [0.1, 1.5, 100.0]),
        (["0.1000000000000000055511151231257827"], "double", [0.1]),
        (["null", "[]", "[[]]"], "list<item: list<item: null>>", [None, [], [[]]]),
        (['{"a": 1}', '{"b": [0.5]}', "{}"], "struct<a: int64, b: list<item: double>>", None),
        (['"\\ud83d\\ude00"'], "string", ["😀"]),
    ],
)
def test_types_that_json_has(
    tmp_path: Path, lines: list[str], kind: str, values: list[Any] | None
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"x": {line}}}\n\n' for line in lines))
    table = prepared(tmp_path, path)
    assert type_of(table, "x") == kind
    found = table["x"]
    assert values is None or found.to_pylist() == values
    assert len(found) == len(lines)


@pytest.mark.parametrize(
    ("lines", "line", "reason"),
    [
        (["1", "12345678901234567890"], 2, "beyond 64 bits"),
        (["1e400"], 1, "digits"),
        (["0.1", "0.12345678901234567890"], 2, "digits"),
        (["1234567890123456.7"], 1, "digits"),
        (["9007199254740993", "0.5"], 2, "in line 1"),
        (["0.5", "9007199254740993"], 2, "64-bit float"),
        (["1", '"1"'], 2, "holds text, but an integer in line 1"),
        (["true", "1"], 2, "an integer, but true or false"),
        (["[1]", '["a"]'], 2, "'x[]' holds text"),
        (['{"a": {"b": 1}}', '{"a": {"b": "c"}}'], 2, "'x.a.b' holds text"),
        (["{}", "{}"], None, "empty objects"),
        ([json.dumps({str(n): n for n in range(3000)})], 1, "different keys"),
    ],
)
def test_values_that_no_type_holds_are_refused_until_they_are_text(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    lines: list[str],
    line: int | None,
    reason: str,
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"x": {value}}}\n' for value in lines))
    told = refused(tmp_path, capsys, path)
    assert f"{path}{f', line {line}' if line else ''}: " in told
    assert reason in told
    assert "--types x=string" in told
    found = prepared(tmp_path, path, "--types", "x=string")["x"].to_pylist()
    assert found == [json.loads(value) if value[0] == '"' else value for value in lines]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
@pytest.mark.parametrize(
    ("kind", "texts", "values"),
    [
        ("int64", ["00501", "-7", "+9", "9223372036854775807"], [501, -7, 9, 2**63 - 1]),
        ("float64", ["1", "0.5", "1e3", "12345678901234567", ".5"], [1, 0.5, 1e3, None, 0.5]),
        ("bool", ["true", "False", "TRUE"], [True, False, True]),
        ("string", ["00501", ""], ["00501", ""]),
    ],
)
def test_types_are_given_by_column(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    kind: str,
    texts: list[str],
    values: list[Any],
) -> None:
    exact = [text for text, value in zip(texts, values, strict=True) if value is not None]
    rows = [{"id": text, "prompt": "007"} for text in exact]
    found = prepared(tmp_path, WRITERS[name](tmp_path / name, rows), "--types", f"id={kind}")
    assert found["id"].to_pylist() == [value for value in values if value is not None]
    assert found["prompt"].to_pylist() == ["007"] * len(rows)
    for text in set(texts) - set(exact):
        path = WRITERS[name](tmp_path / name, [{"id": "1"}, {"id": text}])
        told = refused_beside(tmp_path, capsys, path, "--types", f"id={kind}")
        assert text in told
        assert f"line {3 if name == 'a.csv' else 2}" in told


def refused_beside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: Path, *words: str
) -> str:
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    return refused(tmp_path, capsys, source, *words)


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("int64", "9223372036854775808", "beyond 64 bits"),
        ("int64", "9" * 5000, "beyond 64 bits"),
        ("int64", "1.0", "not an integer"),
        ("int64", " 1", "not an integer"),
        ("int64", "1_000", "not an integer"),
        ("int64", "٣", "not an integer"),
        ("int64", "NA", "not an integer"),
        ("float64", "1,5", "not a number"),
        ("float64", "nan", "not a number"),
        ("float64", "1e999", "digits"),
        ("float64", "0e99999999999999999999999", "digits"),
        ("float64", "0.12345678901234567891", "digits"),
        ("bool", "1", "not true or false"),
    ],
)
def test_a_cell_that_is_not_of_the_type_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, text: str, reason: str
) -> None:
    path = write_csv(tmp_path / "a.csv", [{"a": "x\ny", "id": ""}, {"a": "x", "id": text}])
    told = refused(tmp_path, capsys, path, "--types", f"id={kind}")
    # The first row takes two lines.
    assert f"{path}, line 4: column 'id': " in told
    assert reason in told
    assert len(told) < 300 + len(str(path))


def test_an_empty_cell_is_empty_text_or_null_by_type(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('a,n\n,\n"",1\n')
    found = prepared(tmp_path, tmp_path / "a.csv", "--types", "n=int64")
    assert found.to_pylist() == [{"a": "", "n": None}, {"a": "", "n": 1}]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a=int64"], {"a": pa.int64()}),
        (["a=int64,b=bool"], {"a": pa.int64(), "b": pa.bool_()}),
        (["a,b=string", "c=d=float64"], {"a,b": pa.string(), "c=d": pa.float64()}),
        ([], {}),
    ],
)
def test_types_are_parsed(words: list[str], expected: dict[str, pa.DataType]) -> None:
    assert exact_cells.parse_types(words) == expected


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (b"\xef\xbb\xbfa,b\n1,2\n", [("1", "2")]),
        (b"a,b\r\n1,2\r\n", [("1", "2")]),
        (b"a,b\r1,2\r", [("1", "2")]),
        (b"a,b\n1,2", [("1", "2")]),
        (b"\n\na,b\n\n1,2\n\n3,4\n\n\n", [("1", "2"), ("3", "4")]),
        (b'"a","b"\n"1\n",2\n', [("1\n", "2")]),
        (b"a;b\n1,5;2,5\n", [("1,5", "2,5")]),
        (b"a;b,c\n1;2\n", [("1", "2")]),
        (b"a\tb\n1,1\t2|2\n", [("1,1", "2|2")]),
        (b'a,b\n"x;y",2\n', [("x;y", "2")]),
        (b"a,b\n'x',2\n", [("'x'", "2")]),
        (b'a,b\n5" pipe,2\n', [('5" pipe', "2")]),
    ],
)
def test_csv_as_people_write_it(
    tmp_path: Path, content: bytes, rows: list[tuple[str, ...]]
) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    found = prepared(tmp_path, tmp_path / "a.csv")
    assert [tuple(row.values()) for row in found.to_pylist()] == rows


@pytest.mark.parametrize(
    ("content", "cells"),
    [
        (b"prompt\nx\n\ny\n\n\n", ["x", "", "y"]),
        (b'prompt\n""\nx\n', ["", "x"]),
        (b'prompt\n"a, b"\nc;d\n', ["a, b", "c;d"]),
    ],
)
def test_csv_of_one_column(tmp_path: Path, content: bytes, cells: list[str]) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    assert prepared(tmp_path, tmp_path / "a.csv")["prompt"].to_pylist() == cells


def test_a_column_without_a_name_is_a_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",prompt\n0,x\n1,y\n")
    found = prepared(tmp_path, tmp_path / "a.csv").to_pydict()
    assert found == {"Unnamed: 0": ["0", "1"], "prompt": ["x", "y"]}


def test_a_delimiter_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a:b\n1:2,3\n")
    assert prepared(tmp_path, tmp_path / "a.csv", "--delimiter", ":").to_pydict() == {
        "a": ["1"],
        "b": ["2,3"],
    }


BAD: dict[str, tuple[str, bytes, str]] = {
    # File name, content, what stands behind the file's name in the one line.
    "csv: row too long": ("a.csv", b"a,b\n1,2\n1,2,3\n", ", line 3: 3 cells where the header"),
    "csv: row too short": ("a.csv", b'a,b\n"1\n1",2\n1\n', ", line 4: 1 cells where the header"),
    "csv: open quote": ("a.csv", b'a,b\n1,2\n1,"2\n3,4\n', ", line 3: not CSV: a quote opens here"),
    "csv: text after quote": (
        "a.csv",
        b'a,b\n1,"2"x\n',
        ", line 2: not CSV: a quoted cell continues",
    ),
    "csv: backslash quote": ("a.csv", b'a,b\n1,"x \\"y\\" z"\n', ", line 2: "),
    "csv: carriage return": ("a.csv", b"a\n1\nx\ry\n", ", line 3: not CSV: a carriage return"),
    "csv: bytes": ("a.csv", b"a,b\n1,2\ncaf\xe9,2\n", ", line 3: byte 0xe9 at position 4"),
    "csv: bytes far behind": ("a.csv", b"a\n" + b"x\n" * 99999 + b"\xff\n", ", line 100001: byte"),
    "csv: one name twice": ("a.csv", b"a,a\n1,2\n", ", line 1: has two columns named 'a'"),
    "csv: two delimiters": ("a.csv", b"a,b;c\nx,y;z\n", ": , and ; may each be its delimiter"),
    "csv: one column, commas": ("a.csv", b"prompt\nHi, you\n", ", line 2: 2 cells"),
    "csv: Excel's sep": ("a.csv", b"sep=;\na;b\n1;2\n", ", line 1: is Excel's"),
    "csv: empty": ("a.csv", b"", ": is empty"),
    "csv: byte order mark": ("a.csv", b"\xef\xbb\xbf", ": is empty"),
    "csv: header alone": ("a.csv", b"a,b\n", ": the source has no rows"),
    "csv: UTF-16": ("a.csv", "a,b\n1,2\n".encode("utf-16"), ": is UTF-16"),
    "csv: cut gzip": ("a.csv.gz", gzip.compress(b"a\n1\n" * 9999)[:-9], ": cannot be decompr"),
    "csv: no gzip": ("a.csv.gz", b"a\n1\n", ": cannot be decompressed"),
    "tsv: bytes": ("a.TSV", b"a\tb\n\xff\t2\n", ", line 2: byte 0xff"),
    "jsonl: no JSON": ("a.jsonl", b'{"a": 1}\n\nnot json\n', ", line 3: not JSON: "),
    "jsonl: cut": ("a.jsonl", b'{"a": 1}\n{"a": "x', ", line 2: not JSON: "),
    "jsonl: two on a line": ("a.jsonl", b'{"a": 1}{"a": 2}\n', ", line 1: not JSON: Extra data"),
    "jsonl: pretty": ("a.jsonl", b'{\n  "a": 1\n}\n', ", line 1: not JSON: "),
    "jsonl: list": ("a.jsonl", b'{"a": 1}\n[1]\n', ", line 2: is a list"),
    "jsonl: number": ("a.jsonl", b"5\n", ", line 1: is '5'"),
    "jsonl: null": ("a.ndjson", b"null\n", ", line 1: is 'null'"),
    "jsonl: bytes": ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', ", line 2: byte 0xff at position 8"),
    "jsonl: key twice": (
        "a.jsonl",
        b'{"a": {"b": 1, "b": 2}}\n',
        ", line 1: the key 'b' is",
    ),
    "jsonl: half character": ("a.jsonl", b'{"a": "\\ud83d"}\n', ", line 1: \\ud83d is half"),
    "jsonl: half in a key": ("a.jsonl", b'{"\\uD83D": 1}\n', ", line 1: \\ud83d is half"),
    "jsonl: too deep": ("a.jsonl", b'{"a": ' + b"[" * 99999 + b"]" * 99999 + b"}\n", ", line 1: "),
    "jsonl: UTF-16": ("a.jsonl", '{"a": 1}\n'.encode("utf-16"), ": is UTF-16"),
    "jsonl: empty": ("a.jsonl", b"", ": the source has no rows"),
    "jsonl: blank": ("a.jsonl", b"\n\n", ": the source has no rows"),
    "jsonl: cut zstd": ("a.jsonl.zst", zstd(b'{"a": 1}\n' * 99)[:-5], ": cannot be decompressed"),
    "json: document": ("a.json", b'{"data": [{"a": 1}], "n": 1}', ": is one JSON object (keys: d"),
    "json: pretty document": ("a.json", b'{\n"data": [\n{"a": 1}]}', ": is one JSON object"),
    "json: one row": ("a.json", b'{"a": "x"}\n', ": is one JSON object"),
    "json: broken list": ("a.json", b'[{"a": 1},\n{"a": }]', ", line 2: not JSON: "),
    "json: list of texts": ("a.json", b'[{"a": 1}, "x"]', ", row 2: is 'x'"),
    "json: mixed list": ("a.json", b'[{"a": 1}, {"a": "x"}]', ", row 2: column 'a' holds text"),
    "json: empty list": ("a.json", b"[]", ": the source has no rows"),
    "prompt: list of texts": (
        *("a.jsonl", b'{"prompt": ["a"]}\n'),
        ", line 1: column 'prompt' holds '[\"a\"]'; a prompt is text, or chats",
    ),
    "parquet: none": ("a.parquet", b"PAR1 no", ": not a whole Parquet file"),
    "parquet: empty": ("a.parquet", b"", ": not a whole Parquet file"),
    "other: text": ("a.txt", b"x\n", ": cannot be read; expected .parquet, .csv"),
    "other: Parquet in gzip": ("a.parquet.gz", b"x\n", ": cannot be read; expected"),
    "other: gzip of what": ("a.gz", b"x\n", ": cannot be read; expected"),
    "other: no suffix": ("csv", b"a\n1\n", ": cannot be read; expected"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_read_is_named_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    file, content, reason = BAD[name]
    (tmp_path / file).write_bytes(content)
    told = refused(tmp_path, capsys, tmp_path / file)
    assert f"{tmp_path / file}{reason}" in told
    assert len(told) < 400 + len(str(tmp_path))


FLAGS: dict[str, tuple[list[str], str]] = {
    "limit 0": (["--limit", "0"], "--limit is 0"),
    "limit -1": (["--limit", "-1"], "--limit is -1"),
    "rows 0": (["--rows-per-shard", "0"], "--rows-per-shard is 0"),
    "types: no type": (["--types", "a"], "NAME=TYPE"),
    "types: other type": (["--types", "a=int"], "NAME=TYPE"),
    "types: twice": (["--types", "a=bool", "--types", "a=int64"], "twice"),
    "types: no column": (["--types", "x=bool"], "no column 'x'; it has a, b"),
    "types: prompt": (["--types", "prompt=int64"], "a prompt is text"),
    "types: named prompt": (["--types", "a=int64", "--prompt-column", "a"], "a prompt is text"),
    "prompt: no column": (["--prompt-column", "x"], "no column 'x'"),
    "delimiter: two": (["--delimiter", ",,"], "one character"),
    "delimiter: none": (["--delimiter", ""], "one character"),
    "delimiter: quote": (["--delimiter", '"'], "one character"),
    "field": (["--field", "x"], "--field is for JSON; this is CSV"),
    "split": (["--split", "test"], "no split 'test'"),
}


@pytest.mark.parametrize("name", FLAGS)
def test_flags_that_cannot_be_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    words, reason = FLAGS[name]
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    assert reason in refused(tmp_path, capsys, tmp_path / "a.csv", *words)


@pytest.mark.parametrize("name", ["a.parquet", "saved"])
@pytest.mark.parametrize("words", [["--types", "a=bool"], ["--delimiter", ";"], ["--field", "a"]])
def test_flags_of_text_are_refused_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, words: list[str]
) -> None:
    path = WRITERS[name](tmp_path / name, [{"a": 1}])
    assert f"{path}: {words[0]} is for" in refused(tmp_path, capsys, path, *words)


def test_an_empty_place_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "source is empty" in refused(tmp_path, capsys, "")
    (tmp_path / "a.csv").write_text("a\n1\n")
    assert call(str(tmp_path / "a.csv"), "--output", "") == 2
    assert "--output is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words", "rows"),
    [
        ("a.json", ["--field", "data"], [{"a": 1}, {"a": 2}]),
        ("a.jsonl", ["--field", "data"], [{"a": 1}, {"a": 2}]),
        ("a.jsonl", [], [{"data": [{"a": 1}, {"a": 2}], "n": 1}]),
    ],
)
def test_a_field_of_a_document_is_read(
    tmp_path: Path, name: str, words: list[str], rows: list[dict[str, Any]]
) -> None:
    (tmp_path / name).write_text('{"data": [{"a": 1}, {"a": 2}], "n": 1}\n')
    assert prepared(tmp_path, tmp_path / name, *words).to_pylist() == rows


def test_a_field_that_holds_no_rows_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.json").write_text('{"data": {"a": 1}}')
    for field in ("data", "x"):
        told = refused(tmp_path, capsys, tmp_path / "a.json", "--field", field)
        assert f"--field {field}: no list of rows under this key; its keys: data" in told


@pytest.mark.parametrize(
    ("column", "lines", "texts"),
    [
        ("prompt", ["5", '"x"', "true", "null"], ["5", "x", "true", None]),
        ("prompt", ["12345678901234567890", "1.50"], ["12345678901234567890", "1.50"]),
        ("q", ["5", "0.10"], ["5", "0.10"]),
    ],
)
def test_the_prompt_column_is_text(
    tmp_path: Path, column: str, lines: list[str], texts: list[str | None]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"{column}": {line}, "n": 1}}\n' for line in lines))
    found = prepared(tmp_path, path, "--prompt-column", column)
    assert found[column].to_pylist() == texts
    assert found["n"].type == pa.int64()


def test_rows_without_a_key_have_null(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_jsonl(tmp_path / "in" / "a.jsonl", [{"x": "a"}, {"y": 1}])
    write_jsonl(tmp_path / "in" / "b.jsonl", [{"z": [0.5]}])
    assert prepared(tmp_path, tmp_path / "in").to_pylist() == [
        {"x": "a", "y": None, "z": None},
        {"x": None, "y": 1, "z": None},
        {"x": None, "y": None, "z": [0.5]},
    ]


# Which files are the source.

FOLDERS: dict[str, tuple[list[str], list[str], list[str] | str]] = {
    # Files, flags, and the files that are read, or why not.
    "shards": (["b.csv", "a.csv"], [], ["a.csv", "b.csv"]),
    "numbered": (["train-00001-of-00002.csv", "train-00000-of-00002.csv"], [],
                 ["train-00000-of-00002.csv", "train-00001-of-00002.csv"]),
    "any case": (["A.CSV", "b.Csv", "c.tsv"], [], ["A.CSV", "b.Csv", "c.tsv"]),
    "hidden": (["a.csv", ".b.csv", "_c.csv", "._a.csv", ".x/d.csv", "_temporary/e.csv"], [],
               ["a.csv"]),
    "other files": (["a.csv", "notes.txt", "README.md", "_SUCCESS", ".DS_Store"], [], ["a.csv"]),
    "snapshot": (["README.md", ".gitattributes", "dataset_infos.json",
                  "data/train-00000-of-00001.jsonl"], [], ["data/train-00000-of-00001.jsonl"]),
    "train alone": (["train.csv"], [], ["train.csv"]),
    "train named": (["train.csv", "test.csv"], ["--split", "train"], ["train.csv"]),
    "test named": (["train.csv", "test.csv"], ["--split", "test"], ["test.csv"]),
    "both named": (["train.csv", "test.csv"], ["--split", "train+test"], ["train.csv", "test.csv"]),
    "other order": (["train.csv", "test.csv"], ["--split", "test+train"],
                    ["test.csv", "train.csv"]),
    "splits": (["train.csv", "test.csv"], [], "several splits: test (test.csv), train (train.csv)"),
    "other words": (["my-training-set.csv", "my_dev_set.csv"], [],
                    "several splits: my_training_set (my-training-set.csv), my_dev_set (my_d"),
    "other words named": (["my-training-set.csv", "my_dev_set.csv"], ["--split", "validation"],
                          ["my_dev_set.csv"]),
    "numbers": (["train1.csv", "train_2.csv"], [], ["train1.csv", "train_2.csv"]),
    "folders": (["train/0.csv", "test/0.csv"], [], "several splits: test (test/0.csv), train"),
    "folder named": (["train/0.csv", "test/0.csv"], ["--split", "test"], ["test/0.csv"]),
    "kinds of train": (["data/train_sft-00000-of-00001.csv", "data/train_gen-00000-of-00001.csv"],
                       ["--split", "train"], "has several splits 'train'; it holds train_gen"),
    "kind of train": (["data/train_sft-00000-of-00001.csv", "data/train_gen-00000-of-00001.csv"],
                      ["--split", "train_gen"], ["data/train_gen-00000-of-00001.csv"]),
    "one without name": (["a.csv", "test.csv"], [], "several splits: no name (a.csv), test"),
    "no such split": (["train.csv"], ["--split", "test"], "no split 'test'; it holds train"),
    "no names": (["a.csv"], ["--split", "train"], ["a.csv"]),
    "no names, test": (["a.csv"], ["--split", "test"], "no split 'test'; it holds no name"),
    "two folders": (["main/train.csv", "other/train.csv"], [], "several folders: main, other"),
    "hive": (["lang=de/a.csv", "lang=en/a.csv"], [], "several folders: lang=de, lang=en"),
    "above and below": (["a.csv", "x/b.csv"], [], "several folders: ., x"),
    "two kinds": (["a.csv", "b.jsonl"], [], "files of CSV and JSON; one kind is needed"),
    "nothing": (["notes.txt"], [], "no files of .parquet, .csv"),
    "metadata alone": (["dataset_infos.json"], [], "no files of"),
    "Delta": (["a.csv", "_delta_log/0.json"], [], "Delta table"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_the_files_of_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    names, words, expected = FOLDERS[name]
    for file in names:
        path = tmp_path / "in" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        json_row = json.dumps({"prompt": file, "n": "1"}) + "\n"
        path.write_text(json_row if file.endswith(("json", "jsonl")) else f"prompt\tn\n{file}\t1\n")
    if isinstance(expected, str):
        told = refused(tmp_path, capsys, tmp_path / "in", *words)
        assert f"{tmp_path / 'in'}: " in told
        assert expected in told
        return
    assert prepared(tmp_path, tmp_path / "in", *words)["prompt"].to_pylist() == expected
    told = capsys.readouterr().out
    assert ("files left out: " in told) == (len(expected) < len(names))
    left_out = source_files.choose("", names, words[1] if words else None).left_out
    assert sorted([*left_out, *expected]) == sorted(names)


@pytest.mark.parametrize(
    "name",
    ["a[1].csv", "a*.csv", "a?.csv", "a::b.csv", "{a}.csv", "a b%20.csv", "é\n.csv", "~.csv"],
)
@pytest.mark.parametrize("form", ["file", "folder", "saved", "parquet"])
def test_paths_are_names(tmp_path: Path, name: str, form: str) -> None:
    rows = [{"prompt": "x"}]
    source = tmp_path / name
    if form == "saved":
        save(tmp_path / "in", rows).rename(source)
    elif form == "parquet":
        source.mkdir()
        write_parquet(source / name.replace("csv", "parquet"), rows)
    else:
        if form == "folder":
            source.mkdir()
        write_csv(source / name if form == "folder" else source, rows)
    assert prepared(tmp_path, source).to_pylist() == rows


def test_a_name_that_is_not_utf8_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, write in (("a\udcff.csv", write_csv), ("b\udcff.parquet", write_parquet)):
        write(folder / name, [{"prompt": "x"}])
        assert prepared(tmp_path, folder).num_rows == 1
        (folder / name).unlink()
    packed = folder / "c\udcff.csv.gz"
    packed.write_bytes(gzip.compress(b"prompt\nx\n"))
    assert prepared(tmp_path, folder).num_rows == 1


def test_a_file_by_uri_is_read(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [{"prompt": "x"}])
    assert prepared(tmp_path, f"file://{path}").num_rows == 1


@pytest.mark.parametrize(
    "name", ["nowhere.csv", "nowhere.jsonl.gz", "./nowhere", "a/b/c", "a/b.csv"]
)
def test_what_is_not_there_is_not_looked_up(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(tmp_path, capsys, name) == f"lrd prepare: {name}: no such file or folder"


@pytest.mark.parametrize(("words", "split"), [([], "train"), (["--split", "test"], "test")])
def test_a_dataset_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], split: str
) -> None:
    rows = columns_of(CELLS)
    asked: list[tuple[str, str]] = []

    def load(name: str, *, split: str) -> datasets.Dataset:
        asked.append((name, split))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(tmp_path)
    found = prepared(tmp_path, "owner/name", *words)
    assert checksum(found.to_pylist()) == checksum(rows)
    assert asked == [("owner/name", split)]


def test_a_dataset_that_the_hub_lacks_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str, *, split: str) -> datasets.Dataset:
        raise datasets.exceptions.DatasetNotFoundError("there is none\nat all")

    monkeypatch.setattr(datasets, "load_dataset", load)
    told = refused(tmp_path, capsys, "owner/name")
    assert told == "lrd prepare: owner/name: cannot be read (there is none)"


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("a.tsv.csv", ".csv"),
        ("a.json.JSONL", ".jsonl"),
        ("a.b.Json.GZ", ".json"),
        ("a", ""),
        ("a.gz", ""),
    ],
)
def test_the_suffix_of_a_file(name: str, suffix: str) -> None:
    assert source_file.SourceFile(Path("/x.csv", name), name).suffix == suffix
    assert source_files.kind_of(name) == source_files.KINDS.get(suffix)


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    """Also where its size and time stamp are equal."""
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        path = tmp_path / name
        for text in ("old", "new"):
            WRITERS[name](path, [{"prompt": text}])
            os.utime(path, (1e9, 1e9))
            assert prepared(tmp_path, path)["prompt"].to_pylist() == [text]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_nothing_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = WRITERS[name](tmp_path / name, [{"prompt": "x"}])
    (tmp_path / "home").mkdir()
    (tmp_path / "scratch").mkdir()
    words = ["-m", "jobs.cli", "prepare", str(path), "--output", str(tmp_path / "out")]
    places = {"HOME": "home", "HF_HOME": "home", "TMPDIR": "scratch"}
    env = os.environ | {key: str(tmp_path / place) for key, place in places.items()}
    root = Path(prepare.__file__).parents[1]
    subprocess.run([sys.executable, *words], env=env, cwd=root, check=True, capture_output=True)
    assert not list((tmp_path / "home").rglob("*"))
    assert not list((tmp_path / "scratch").rglob("*"))


# Folders of save_to_disk, and what datasets keep.


def test_splits_of_a_saved_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = {
        name: datasets.Dataset.from_dict({"prompt": [name], "label": [1]})
        for name in ("train", "t")
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "in"))
    told = refused(tmp_path, capsys, tmp_path / "in")
    assert f"{tmp_path / 'in'}: has several splits: train, t; name one with --split" in told
    assert "no split 'x'" in refused(tmp_path, capsys, tmp_path / "in", "--split", "x")
    for split in ("train", "t", "t+train"):
        found = prepared(tmp_path, tmp_path / "in", "--split", split)
        assert found["prompt"].to_pylist() == split.split("+")
    assert prepared(tmp_path, tmp_path / "in" / "t").num_rows == 1


def test_a_damaged_saved_dataset_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "in", [{"prompt": "x"}])
    (tmp_path / "in" / "state.json").write_text("{")
    assert f"{tmp_path / 'in'}: " in refused(tmp_path, capsys, tmp_path / "in")


@pytest.mark.parametrize("form", ["saved", "parquet"])
@pytest.mark.parametrize("task", [False, True])
def test_features_of_datasets_stay(tmp_path: Path, form: str, task: bool) -> None:
    features = datasets.Features(
        {
            "prompt": datasets.Value("string"),
            "question": datasets.Value("large_string"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "parts": datasets.List(datasets.Value("int32")),
        }
    )
    rows = {"prompt": ["p"], "question": ["q"], "label": [1], "parts": [[1, 2]]}
    made = datasets.Dataset.from_dict(rows, features=features)
    source = tmp_path / "in"
    if form == "saved":
        made.save_to_disk(str(source))
    else:
        source.mkdir()
        made.to_parquet(str(source / "a.parquet"))
    prepared(tmp_path, source, *(["--task", "gsm8k"] if task else []))
    read = datasets.load_dataset(
        "parquet", data_dir=str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache")
    )
    kept = {("source_prompt" if task and name == "prompt" else name): kind
            for name, kind in features.items()}  # fmt: skip
    assert read.features == datasets.Features(
        kept | ({"prompt": datasets.Value("string")} if task else {})
    )
    assert read[0]["label"] == 1


ARROW = {
    "decimal": (pa.decimal128(38, 2), [Decimal("1.10"), Decimal("-9" * 1 + "9" * 30 + ".01")]),
    "date": (pa.date32(), [date(1, 1, 1), date(9999, 12, 31)]),
    "time in ns": (pa.timestamp("ns", "UTC"), [1, 2**62]),
    "time in us": (pa.timestamp("us"), [datetime(1, 1, 1), datetime(9999, 1, 1)]),
    "binary": (pa.binary(), [b"\xff\x00", b""]),
    "uint64": (pa.uint64(), [2**64 - 1, 0]),
    "dictionary": (pa.dictionary(pa.int32(), pa.string()), ["a", "b"]),
    "large string": (pa.large_string(), ["x", ""]),
    "map": (pa.map_(pa.string(), pa.int64()), [[("a", 1)], []]),
    "half": (pa.float16(), [0.5, -2.0]),
    "int8": (pa.int8(), [-128, 127]),
    "fixed list": (pa.list_(pa.int16(), 2), [[1, 2], [3, 4]]),
    "null": (pa.null(), [None, None]),
}


@pytest.mark.parametrize("name", ARROW)
def test_arrow_types_of_parquet_stay(tmp_path: Path, name: str) -> None:
    kind, values = ARROW[name]
    table = pa.table({"prompt": ["p"] * 3, "x": pa.array([*values, None], kind)})
    pq.write_table(table, tmp_path / "a.parquet")
    written = pq.read_table(tmp_path / "a.parquet")
    found = prepared(tmp_path, tmp_path / "a.parquet", "--rows-per-shard", "2")
    assert found.schema.equals(written.schema)
    assert found.combine_chunks().equals(written.combine_chunks())


@pytest.mark.parametrize("year", [1, 1700, 2024, 2262, 3000])
def test_int96_times_stay(tmp_path: Path, year: int) -> None:
    times = [datetime(year, 1, 2, 3, 4, 5, 6), None]
    table = pa.table(
        {
            "t": pa.array(times, pa.timestamp("us")),
            "l": pa.array([times, []], pa.list_(pa.timestamp("us"))),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", use_deprecated_int96_timestamps=True)
    found = prepared(tmp_path, tmp_path / "a.parquet")
    assert found["t"].cast(pa.timestamp("us")).to_pylist() == times
    assert found["l"].cast(pa.list_(pa.timestamp("us"))).to_pylist() == [times, []]


def test_parquet_files_that_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    first = pa.table({"prompt": ["a"], "n": pa.array([None], pa.null())})
    pq.write_table(first, tmp_path / "in" / "a.parquet")
    pq.write_table(pa.table({"n": [1], "prompt": ["b"]}), tmp_path / "in" / "b.parquet")
    assert prepared(tmp_path, tmp_path / "in").to_pydict() == {"prompt": ["a", "b"], "n": [None, 1]}
    for other in (pa.table({"prompt": ["c"], "n": ["x"]}), pa.table({"prompt": ["c"]})):
        pq.write_table(other, tmp_path / "in" / "c.parquet")
        told = refused_beside(tmp_path, capsys, tmp_path / "in")
        assert f"c.parquet: its columns differ from those of {tmp_path / 'in'}/a.parquet: " in told


def test_csv_files_that_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text("prompt,n\na,1\n")
    (tmp_path / "in" / "b.csv").write_text("n;prompt\n2;b\n")
    assert prepared(tmp_path, tmp_path / "in").to_pydict() == {
        "prompt": ["a", "b"],
        "n": ["1", "2"],
    }
    (tmp_path / "in" / "c.csv").write_text("prompt,m\nc,3\n")
    told = refused_beside(tmp_path, capsys, tmp_path / "in")
    assert f"c.csv: its columns differ from those of {tmp_path / 'in'}/a.csv: m, n" in told


def test_parquet_damaged_in_its_middle_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"prompt": [f"{n:>1000}" for n in range(9000)]})
    pq.write_table(table, path, row_group_size=1000, compression="none", write_page_checksum=True)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert f"{path}: not a whole Parquet file" in refused(tmp_path, capsys, path)


# What is written.


@pytest.mark.parametrize(
    ("limit", "shards"), [(1, [1]), (3, [3]), (100, [3] * 33 + [1]), (9999, [3] * 70)]
)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "list.json", "a.parquet", "saved"])
def test_the_first_rows_in_shards(tmp_path: Path, name: str, limit: int, shards: list[int]) -> None:
    path = WRITERS[name](tmp_path / name, [{"prompt": f"{n}"} for n in range(210)])
    found = prepared(tmp_path, path, "--limit", str(limit), "--rows-per-shard", "3")
    assert found["prompt"].to_pylist() == [f"{n}" for n in range(min(limit, 210))]
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    count = len(shards)
    assert names == [f"prompts-{n:05d}-of-{count:05d}.parquet" for n in range(count)]
    assert [pq.read_metadata(tmp_path / "out" / name).num_rows for name in names] == shards


def test_rows_behind_the_limit_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt\nx\na,b\n")
    (tmp_path / "a.jsonl").write_text('{"prompt": "x", "n": 1}\n{"n": "y"}\nno json\n')
    for name in ("a.csv", "a.jsonl"):
        assert prepared(tmp_path, tmp_path / name, "--limit", "1").num_rows == 1


@pytest.mark.parametrize("count", [1, 99_999, 100_000, 1_234_567])
def test_names_of_shards_sort(count: int) -> None:
    numbers = sorted({0, 1, 9, 10, count // 2, 99_999, count - 1} & set(range(count)))
    names = [shard_name(number, count) for number in numbers]
    assert names == sorted(names)
    assert {len(name) for name in names} == {len(names[0])}
    assert shard_name(0, 7) == "prompts-00000-of-00007.parquet"


def test_batches_are_bounded_by_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_file, "BATCH_CHARACTERS", 10)
    batches = list(source_file.in_batches([(n, n) for n in (4, 4, 4, 11, 1, 1)]))
    assert batches == [[4, 4], [4], [11], [1, 1]]
    assert [len(batch) for batch in source_file.in_batches([(0, n) for n in range(2500)])] == [
        1000, 1000, 500
    ]  # fmt: skip


def test_an_interrupted_call_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_csv(tmp_path / "a.csv", [{"prompt": "x"}])

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.preparing.prepare._cut", interrupt)
    assert call(str(path), "--output", str(tmp_path / "out")) == 75
    assert list(tmp_path.iterdir()) == [path]


def test_an_output_that_cannot_be_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_csv(tmp_path / "a.csv", [{"prompt": "x"}])
    for output in (path / "out", tmp_path / ("x" * 300), tmp_path / "a.csv"):
        assert call(str(path), "--output", str(output)) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [path]
