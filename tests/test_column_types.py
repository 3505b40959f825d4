"""Columns of every type pass through a run, publishing, pandas and datasets by value, or are
refused in a line; shards that differ in what changes no value come out in one schema.
"""

from __future__ import annotations

import base64
import datetime as dt
import io
import json
import re
import uuid
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as encryption
import pytest
from datasets import Audio, ClassLabel, Dataset, Features, Image, List, Value
from helpers.few import few
from helpers.runs import MadeRun

from pipeline.config import RunConfig
from pipeline.input import prompt_shards
from pipeline.input.input_files import find
from pipeline.input.one_schema import conform, merged
from pipeline.input.prompt_text import is_text, texts
from pipeline.inspection.verify import Verification
from pipeline.output.other_readers import cannot_open
from pipeline.parquet_batches import batches, read_table, rows_at
from pipeline.preflight import check
from pipeline.publishing.dataset_card import About
from pipeline.publishing.publish import publish
from pipeline.rows import Layout
from pipeline.run import generate
from pipeline.storage.storage import Storage

NUM_ROWS = 3


def extension(kind: pa.DataType, values: list[Any]) -> pa.Array:
    return pa.ExtensionArray.from_storage(kind, pa.array(values, kind.storage_type))


def arrays() -> dict[str, pa.Array]:
    """An array of three rows, the last null, of every type that pyarrow can make."""
    made = pa.array
    ids = [uuid.UUID(int=n).bytes for n in (1, 2**127)]
    pairs = [[("a", 1), ("b", None)], []]
    plain = {
        pa.null(): [None, None],
        pa.bool_(): [True, False],
        **{kind: [0, 127] for kind in (pa.int8(), pa.int16(), pa.int32(), pa.int64())},
        **{kind: [0, 255] for kind in (pa.uint8(), pa.uint16(), pa.uint32())},
        pa.uint64(): [0, 2**64 - 1],
        pa.float16(): [1.5, float("-inf")],
        pa.float32(): [1.5, float("nan")],
        pa.float64(): [-0.0, 1e300],
        pa.decimal32(5, 2): [Decimal("1.25"), Decimal("-999.99")],
        pa.decimal64(12, 2): [Decimal("1.25"), Decimal("-999.99")],
        pa.decimal128(38, 2): [Decimal("1.25"), Decimal("9" * 36)],
        pa.decimal256(76, 2): [Decimal("1.25"), Decimal("9" * 28)],
        pa.date32(): [dt.date(1, 1, 1), dt.date(9999, 12, 31)],
        pa.date64(): [dt.date(1, 1, 1), dt.date(9999, 12, 31)],
        **{pa.time32(unit): [0, 5] for unit in ("s", "ms")},
        **{pa.time64(unit): [0, 5] for unit in ("us", "ns")},
        **{
            pa.timestamp(unit, zone): [0, -5]
            for unit in ("s", "ms", "us", "ns")
            for zone in (None, "UTC", "Europe/Berlin", "+05:30")
        },
        **{pa.duration(unit): [0, -5] for unit in ("s", "ms", "us", "ns")},
        **{kind: [b"", b"\xff\x00"] for kind in (pa.binary(), pa.large_binary(), pa.binary_view())},
        pa.binary(2): [b"ab", b"\xff\x00"],
        **{kind: ["", "äöü 🦄"] for kind in (pa.string(), pa.large_string(), pa.string_view())},
        **{
            kind(pa.int32()): [[1, None], []]
            for kind in (pa.list_, pa.large_list, pa.list_view, pa.large_list_view)
        },
        pa.list_(pa.int32(), 2): [[1, 2], [3, None]],
        pa.list_(pa.list_(pa.string())): [[["a"], None], []],
        pa.struct([("a", pa.int64()), ("b", pa.string())]): [
            {"a": 1, "b": None},
            {"a": 2, "b": ""},
        ],
        pa.list_(pa.struct([("a", pa.date32())])): [[{"a": None}], []],
        pa.map_(pa.string(), pa.int32()): pairs,
        pa.list_(pa.map_(pa.string(), pa.int32())): [[pairs[0]], []],
        pa.struct([("m", pa.map_(pa.string(), pa.int32()))]): [{"m": pairs[0]}, {"m": None}],
        pa.dictionary(pa.int8(), pa.string()): ["a", "b"],
        pa.dictionary(pa.int32(), pa.large_string()): ["a", "b"],
        pa.dictionary(pa.int32(), pa.int64()): [7, 8],
        pa.list_(pa.dictionary(pa.int32(), pa.string())): [["a", "b"], []],
    }
    found = {str(kind): made([*values, None], kind) for kind, values in plain.items()}
    indices = made([1, 0, None], pa.int8())
    found["ordered"] = pa.DictionaryArray.from_arrays(indices, ["a", "b"], ordered=True)
    found["json"] = extension(pa.json_(), ['{"a": 1}', "[]", None])
    found["uuid"] = extension(pa.uuid(), [*ids, None])
    found["bool8"] = extension(pa.bool8(), [1, 0, None])
    found["opaque"] = extension(pa.opaque(pa.int64(), "kind", "maker"), [1, 2, None])
    tensor = pa.fixed_shape_tensor(pa.float32(), [2])
    found["tensor"] = extension(tensor, [[1, 2], [3, 4], [5, 6]])
    return found


ARRAYS = arrays()
NOT_IN_PARQUET = {
    "interval": pa.nulls(1, pa.month_day_nano_interval()),
    "run end encoded": pa.RunEndEncodedArray.from_arrays(pa.array([1], pa.int32()), ["a"]),
    "dense union": pa.UnionArray.from_dense(
        pa.array([0], pa.int8()), pa.array([0], pa.int32()), [pa.array([1])]
    ),
    "sparse union": pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])]),
    "empty struct": pa.array([{}], pa.struct([])),
}


def run_over(folder: Path, **shards: pa.Table) -> MadeRun:
    """A whole run over these shards, each with its second row failed."""
    (folder / "in").mkdir(parents=True)
    for name, table in shards.items():
        pq.write_table(table, folder / "in" / f"{name}.parquet")
    run = MadeRun(folder, num_shards=len(shards)).begin()
    for number, table in enumerate(shards.values()):
        run.add(number, range(table.num_rows), failed=[1])
    return run.end()


def with_prompts(columns: Mapping[str, pa.Array]) -> pa.Table:
    return pa.table({"prompt": [f"say {n}" for n in range(NUM_ROWS)], **columns})


def raw(path: Path) -> pa.Table:
    """A file by itself, without its key=value folders."""
    return pq.ParquetFile(path).read()


def findings(run: MadeRun) -> list[str]:
    inputs = Storage(str(run.folder / "in"))
    return [str(finding) for finding in Verification(run.storage, inputs).findings()]


def published(run: MadeRun) -> tuple[pa.Table, pa.Table]:
    """The rows that are ok and those that failed, published."""
    publish(run.storage, run.folder / "published", About("rows"))
    folders = (run.folder / "published" / split for split in ("data", "failed"))
    tables = [pa.concat_tables(map(raw, sorted(folder.iterdir()))) for folder in folders]
    return tables[0], tables[1]


def assert_equal(ours: pa.Table, theirs: pa.Table) -> None:
    """By type and value, NaN being itself."""
    assert ours.schema.remove_metadata() == theirs.schema.remove_metadata()
    for name in theirs.column_names:
        assert repr(ours[name].to_pylist()) == repr(theirs[name].to_pylist()), name
        ours[name].validate(full=True)


@pytest.mark.parametrize("name", few(ARRAYS, lambda name: re.split(r"\W", name)[0]))
def test_a_column_of_any_type_passes_through_unchanged(tmp_path: Path, name: str) -> None:
    run = run_over(tmp_path, a=with_prompts({"cell": ARRAYS[name]}))
    source, results = raw(tmp_path / "in/a.parquet"), raw(run.shard(0))
    assert_equal(results.select(source.column_names), source)
    assert findings(run) == []
    ok, failed = published(run)
    assert_equal(ok.select(source.column_names), rows_at(source, [0, 2]))
    assert_equal(failed.select(source.column_names), rows_at(source, [1]))
    notes = cannot_open(source.schema)
    if not any(note.startswith("pandas") for note in notes):
        frame = pd.read_parquet(run.shard(0))[source.column_names]
        pd.testing.assert_frame_equal(frame, pd.read_parquet(tmp_path / "in/a.parquet"))
    try:
        Features.from_arrow_schema(results.schema)
        opens = True
    except ValueError:
        opens = False
    assert opens is not any(note.startswith("datasets") for note in notes)


@pytest.mark.parametrize("name", NOT_IN_PARQUET)
def test_types_that_parquet_does_not_hold(name: str) -> None:
    """So that the table above holds all that can come."""
    with pytest.raises(pa.ArrowNotImplementedError):
        pq.write_table(pa.table({"cell": NOT_IN_PARQUET[name]}), io.BytesIO())


def test_the_table_of_types_is_whole() -> None:
    """Every factory of a type in pyarrow is in one of the tables."""
    held = {array.type.id for array in [*ARRAYS.values(), *NOT_IN_PARQUET.values()]}
    names = [name for name in dir(pa.lib) if name.startswith("Type_")]
    missing = {name for name in names if getattr(pa.lib, name) not in held}
    assert missing == {"Type_INTERVAL_MONTHS", "Type_INTERVAL_DAY_TIME"}, "no Python makes these"


def test_what_pandas_cannot_open_is_true(tmp_path: Path) -> None:
    array = ARRAYS["time64[ns]"]
    assert "time64[ns]" in cannot_open(pa.schema([("cell", array.type)]))[0]
    pq.write_table(pa.table({"cell": array}), tmp_path / "a.parquet")
    with pytest.raises(pa.ArrowInvalid, match="nanoseconds"):
        pd.read_parquet(tmp_path / "a.parquet")


def test_what_others_cannot_open_is_told_before_a_run(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    names = ["map<string, int32>", "uuid", "int8"]
    table = with_prompts({name: ARRAYS[name] for name in names})
    pq.write_table(table, tmp_path / "in/a.parquet")
    run = check(RunConfig(input=str(tmp_path / "in"), output=str(tmp_path / "out")))
    [line] = run.notes
    assert line.startswith("datasets.load_dataset cannot open results with 'map<string, int32>' (")
    assert "'uuid' (extension<arrow.uuid>)" in line
    assert "int8" not in line


WIDE = [name for name, array in ARRAYS.items() if not cannot_open(pa.schema([("c", array.type)]))]


@pytest.mark.usefixtures("kept_replicas")
def test_all_types_through_generate_publish_and_datasets(tmp_path: Path) -> None:
    table = with_prompts({name: ARRAYS[name] for name in WIDE})
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        pq.write_table(table, tmp_path / "in" / f"{name}.parquet")
    source = raw(tmp_path / "in/a.parquet")
    config = RunConfig(
        input=str(tmp_path / "in"),
        output=str(tmp_path / "out"),
        replicas=1,
        cpus_per_replica=1,
        decoding={"gen_length": 8, "block_length": 8},
    )
    generate(config)
    publish(Storage(config.output), tmp_path / "published", About("rows"))
    shards = [*(tmp_path / "out/data").iterdir(), *(tmp_path / "published/data").iterdir()]
    assert len(shards) == 4
    for path in shards:
        assert_equal(raw(path).select(source.column_names), source)
    cache = str(tmp_path / "cache")
    ours = datasets.load_dataset(str(tmp_path / "published"), split="train", cache_dir=cache)
    theirs = datasets.load_dataset(str(tmp_path / "in"), split="train", cache_dir=cache)
    assert set(ours.column_names) == {*source.column_names, *Layout().schema.names}
    for name in source.column_names:
        assert repr(ours[name][:]) == repr(theirs[name][:]), name


def int96(*values: Any, unit: str = "us") -> pa.Table:
    stamps = pa.array(values, pa.timestamp(unit))
    nested = pa.array([[value] for value in values], pa.list_(stamps.type))
    return pa.table({"prompt": ["say"] * len(values), "when": stamps, "nested": nested})


SOON, LONG_AGO = dt.datetime(2024, 1, 2, 3, 4, 5, 6), dt.datetime(1, 1, 1)
FOR_EVER = dt.datetime(9999, 12, 31, 23, 59, 59, 999999)


@pytest.mark.parametrize(
    ("values", "unit"),
    [
        ([SOON, None], "ns"),
        ([SOON, FOR_EVER], "us"),
        ([LONG_AGO, None], "us"),
        ([None, FOR_EVER, LONG_AGO], "us"),
    ],
)
def test_int96_keeps_its_dates(tmp_path: Path, values: list[Any], unit: str) -> None:
    (tmp_path / "in").mkdir()
    for name, stamps in (("a", [SOON, SOON]), ("b", values)):
        pq.write_table(
            int96(*stamps), tmp_path / f"in/{name}.parquet", use_deprecated_int96_timestamps=True
        )
    run = MadeRun(tmp_path, num_shards=2).begin()
    for number, num_rows in enumerate((2, len(values))):
        run.add(number, range(num_rows))
    run.end()
    assert findings(run) == []
    tables = [raw(run.shard(number)) for number in range(2)]
    assert tables[0].schema.equals(tables[1].schema)
    assert tables[1].schema.field("when").type == pa.timestamp(unit)
    found = tables[1]["when"].cast(pa.timestamp("us"))
    assert found.to_pylist() == values
    nested = tables[1]["nested"].cast(pa.list_(pa.timestamp("us")))
    assert nested.to_pylist() == [[value] for value in values]


def test_int96_that_no_unit_holds_is_refused(tmp_path: Path) -> None:
    for name, table in (("a", int96(1, unit="ns")), ("b", int96(FOR_EVER))):
        pq.write_table(table, tmp_path / f"{name}.parquet", use_deprecated_int96_timestamps=True)
    with pytest.raises(ValueError, match=r"a\.parquet: INT96 timestamps in when, nested fit"):
        prompt_shards.inspect(find(str(tmp_path)), "prompt")


# What `datasets` and pandas know of columns.


def test_features_of_datasets_stay_what_they_are(tmp_path: Path) -> None:
    features = Features(
        {
            "prompt": Value("string"),
            "image": Image(),
            "sound": Audio(),
            "label": ClassLabel(names=["no", "yes"]),
            "labels": List(ClassLabel(names=["a", "b"])),
        }
    )
    media = {"bytes": b"\x89PNG", "path": None}
    row = {"prompt": "what?", "image": media, "sound": media, "label": 1, "labels": [1, 0]}
    (tmp_path / "in").mkdir()
    with_features = pa.Table.from_pylist([row] * 3, features.arrow_schema)
    pq.write_table(with_features, tmp_path / "in/a.parquet")
    pq.write_table(with_features.replace_schema_metadata(None), tmp_path / "in/b.parquet")
    run = MadeRun(tmp_path, num_shards=2, num_rows=3).begin()
    for number in range(2):
        run.add(number, range(3), failed=[1])
    run.end()
    assert findings(run) == []
    publish(run.storage, tmp_path / "published", About("rows"))
    cache = str(tmp_path / "cache")
    folders = [str(run.output / "data"), str(tmp_path / "published")]
    for folder, num_rows in zip(folders, (6, 4), strict=True):
        found = datasets.load_dataset(folder, split="train", cache_dir=cache)
        assert len(found) == num_rows
        assert {name: found.features[name] for name in features} == features
        assert found.features["num_forwards"] == Value("int32")
        assert found.features["kl_trace"] == List(Value("float32"))
        assert found.with_format("arrow")[0]["image"].to_pylist() == [media]
        assert found.features["label"].int2str(found["label"][0]) == "yes"


def test_an_old_reader_finds_every_column_among_the_features(tmp_path: Path) -> None:
    """datasets 2 took the footer's features for all of the file's columns."""
    (tmp_path / "in").mkdir()
    Dataset.from_dict({"prompt": ["a", "b"]}).to_parquet(tmp_path / "in/a.parquet")
    run = MadeRun(tmp_path, num_shards=1, num_rows=2).begin().whole().end()
    table = raw(run.shard(0))
    stored = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert list(stored) == table.column_names
    assert Features.from_dict(stored) == Features.from_arrow_schema(table.schema.remove_metadata())


def test_classes_that_mean_something_else_are_refused(tmp_path: Path) -> None:
    for name, classes in (("a", ["no", "yes"]), ("b", ["yes", "no"])):
        features = Features({"prompt": Value("string"), "label": ClassLabel(names=classes)})
        data = Dataset.from_dict({"prompt": ["a"], "label": [0]}, features)
        data.to_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet: classes of label are .* in .*a\.parquet"):
        prompt_shards.inspect(find(str(tmp_path)), "prompt")


FRAMES = {
    "range": pd.DataFrame({"prompt": ["a", "b", "c"]}),
    "filtered": pd.DataFrame({"prompt": ["a", "b", "c"]}, index=[5, 7, 2]),
    "named": pd.DataFrame({"prompt": ["a", "b", "c"]}, index=pd.Index(list("xyz"), name="id")),
    "levels": pd.DataFrame(
        {"prompt": ["a", "b", "c"]},
        index=pd.MultiIndex.from_tuples([(1, "x"), (1, "y"), (2, "x")], names=["n", None]),
    ),
    "times": pd.DataFrame(
        {"prompt": ["a", "b", "c"]}, index=pd.date_range("2024", periods=3, tz="Europe/Berlin")
    ),
    "types": pd.DataFrame(
        {
            "prompt": pd.Categorical(["a", "b", "a"]),
            "number": pd.array([1, None, 3], "Int64"),
            "flag": pd.array([True, None, False], "boolean"),
            "word": pd.array(["x", None, "z"], "string"),
        }
    ),
}


@pytest.mark.parametrize("name", FRAMES)
def test_an_index_of_pandas_is_an_index_again(tmp_path: Path, name: str) -> None:
    frame = FRAMES[name]
    (tmp_path / "in").mkdir()
    frame.to_parquet(tmp_path / "in/a.parquet")
    run = MadeRun(tmp_path, num_shards=1, num_rows=3).begin().whole([1]).end()
    before = pd.read_parquet(tmp_path / "in/a.parquet")
    after = pd.read_parquet(run.shard(0))
    pd.testing.assert_frame_equal(after[frame.columns], before)
    assert list(after["row_id"]) == [f"00000-{n:08d}" for n in range(3)]
    publish(run.storage, tmp_path / "published", About("rows"))
    ok = pd.read_parquet(next((tmp_path / "published/data").iterdir()))
    if name not in ("range", "types"):  # A counted index is counted anew.
        assert list(ok.index) == [before.index[0], before.index[2]]
    assert list(ok["prompt"]) == [before["prompt"].iloc[0], before["prompt"].iloc[2]]


@pytest.mark.parametrize(
    ("columns", "prompt_column"), [([0, 1], "0"), ([("a", "x"), ("b", "y")], "('a', 'x')")]
)
def test_labels_of_pandas_that_are_no_strings(
    tmp_path: Path, columns: list[Any], prompt_column: str
) -> None:
    frame = pd.DataFrame([["p", 1], ["q", 2]])
    frame.columns = columns if isinstance(columns[0], int) else pd.MultiIndex.from_tuples(columns)
    (tmp_path / "in").mkdir()
    frame.to_parquet(tmp_path / "in/a.parquet")
    made = MadeRun(tmp_path, num_shards=1, num_rows=2, prompt_column=prompt_column)
    found = pd.read_parquet(made.begin().whole().end().shard(0))
    assert list(found[prompt_column]) == ["p", "q"]
    assert list(found["status"]) == ["ok", "ok"]


# Prompts.

TEXT_TYPES = [
    *(pa.string(), pa.large_string(), pa.string_view()),
    *(pa.binary(), pa.large_binary(), pa.binary_view()),
    *(pa.dictionary(pa.int8(), kind) for kind in (pa.string(), pa.large_string(), pa.binary())),
]
WORDS = ["grün", None, ""]


@pytest.mark.parametrize("kind", TEXT_TYPES, ids=str)
def test_text_of_every_layout_is_a_prompt(tmp_path: Path, kind: pa.DataType) -> None:
    is_bytes = "binary" in str(kind)
    words = [word.encode() if is_bytes and word is not None else word for word in WORDS]
    pq.write_table(pa.table({"prompt": pa.array(words, kind)}), tmp_path / "a.parquet")
    inputs = prompt_shards.inspect(find(str(tmp_path)), "prompt")
    assert texts(inputs.read("a.parquet")["prompt"]) == WORDS


def test_json_is_a_prompt(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ARRAYS["json"]}), tmp_path / "a.parquet")
    inputs = prompt_shards.inspect(find(str(tmp_path)), "prompt")
    assert texts(inputs.read("a.parquet")["prompt"]) == ['{"a": 1}', "[]", None]


@pytest.mark.parametrize("name", [n for n, a in ARRAYS.items() if not is_text(a.type)])
def test_what_is_no_text_is_no_prompt(tmp_path: Path, name: str) -> None:
    pq.write_table(pa.table({"prompt": ARRAYS[name]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"column 'prompt' holds|a column results add") as error:
        prompt_shards.inspect(find(str(tmp_path)), "prompt")
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("kept_replicas")
def test_a_prompt_that_is_not_utf8_is_a_failed_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = pa.array([b"say one", b"caf\xe9", b"say two"])
    prompts = pa.Array.from_buffers(pa.string(), 3, content.buffers())
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"prompt": prompts, "other": prompts}), tmp_path / "in/a.parquet")
    config = RunConfig(
        input=str(tmp_path / "in"),
        output=str(tmp_path / "out"),
        replicas=1,
        cpus_per_replica=1,
        decoding={"gen_length": 8, "block_length": 8},
    )
    (tmp_path / "in/_SUCCESS").touch()
    assert generate(config).num_failed == 1
    assert "input: 1 other files or folders are left out: _SUCCESS" in caplog.messages
    [path] = (tmp_path / "out/data").iterdir()
    rows = raw(path)
    assert rows["status"].to_pylist() == ["ok", "failed", "ok"]
    assert rows["error"][1].as_py() == "the prompt is not UTF-8: byte 0xe9 at position 3"
    assert rows["other"].cast(pa.binary()).to_pylist() == content.to_pylist()
    assert [str(found) for found in Verification(Storage(config.output)).findings()] == []


# Shards that differ.

SAME = [
    ("large", pa.array(["a"]), pa.array(["b"], pa.large_string())),
    ("view", pa.array(["a"], pa.string_view()), pa.array(["b"])),
    ("bytes", pa.array([b"a"]), pa.array([b"b"], pa.large_binary())),
    (
        "index width",
        pa.array(["a"], pa.dictionary(pa.int8(), pa.string())),
        pa.array(["b"], pa.dictionary(pa.int32(), pa.string())),
    ),
    ("categories", pa.array(["a"], pa.dictionary(pa.int8(), pa.string())), pa.array(["b"])),
    ("null type", pa.nulls(1), pa.array([7])),
    ("null type last", pa.array([7]), pa.nulls(1)),
    ("only nulls", pa.array([None], pa.float64()), pa.array(["b"])),
    ("only nulls last", pa.array([[1]]), pa.array([None], pa.string())),
    ("lists", pa.array([[1]]), pa.array([[2]], pa.large_list(pa.int64()))),
    ("list views", pa.array([[1]], pa.list_view(pa.int64())), pa.array([[2]])),
    ("fixed lists", pa.array([[1]], pa.list_(pa.int64(), 1)), pa.array([[2, 3]])),
    ("inner text", pa.array([["a"]]), pa.array([["b"]], pa.list_(pa.large_string()))),
    ("order of fields", pa.array([{"a": 1, "b": "x"}]), pa.array([{"b": "y", "a": 2}])),
    ("null fields", pa.array([{"a": None}]), pa.array([{"a": [1]}])),
    ("empty lists", pa.array([[]], pa.list_(pa.null())), pa.array([[1]])),
    (
        "maps",
        pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
        pa.array([[("b", 2)]], pa.map_(pa.large_string(), pa.int64())),
    ),
]


@pytest.mark.parametrize(("name", "one", "other"), SAME, ids=[name for name, *_ in SAME])
def test_shards_that_differ_in_no_value_are_one(
    tmp_path: Path, name: str, one: pa.Array, other: pa.Array
) -> None:
    (tmp_path / "in").mkdir()
    tables = [
        pa.table({"prompt": ["p"], "cell": one}),
        pa.table({"cell": other, "prompt": pa.array(["q"], pa.large_string())}),
    ]
    for number, table in enumerate(tables):
        pq.write_table(table, tmp_path / f"in/{number}.parquet")
    run = MadeRun(tmp_path, num_shards=2, num_rows=1).begin().whole().end()
    assert findings(run) == []
    results = [raw(run.shard(number)) for number in range(2)]
    assert results[0].schema.equals(results[1].schema)
    assert results[0].column_names == ["prompt", "cell", *Layout().schema.names]
    for result, array, prompt in zip(results, (one, other), ("p", "q"), strict=True):
        assert result["prompt"].to_pylist() == [prompt]
        assert result["cell"].to_pylist() == array.to_pylist()


@pytest.mark.parametrize("plain", [pa.list_, pa.large_list])
@pytest.mark.parametrize("view", [pa.list_view, pa.large_list_view])
@pytest.mark.parametrize("rows", [[[1], None, [], [3, 4]], [[], None, [4, 5]], [[1], None]])
def test_list_views_become_lists_of_the_same_values(view: Any, plain: Any, rows: list[Any]) -> None:
    """Arrow's own cast leaves an offset unset."""
    array = pa.array(rows, view(pa.int32()))
    column = pa.chunked_array([array, array.slice(1), array.slice(0, 0)])
    schema = pa.schema([("cell", plain(pa.int64()))])
    found = conform({"cell": column}, schema)
    found.validate(full=True)
    assert found["cell"].to_pylist() == [*rows, *rows[1:]]


def test_nullability_and_rows_that_are_not_there_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    strict = pa.schema([pa.field("prompt", pa.string(), False), pa.field("n", pa.int64(), False)])
    shards = [
        pa.table({"prompt": pa.nulls(0), "n": pa.array([], pa.string())}),
        pa.table({"prompt": ["p"], "n": [1]}, schema=strict),
        pa.table({"prompt": ["q"], "n": pa.array([None], pa.int64())}),
    ]
    for number, table in enumerate(shards):
        pq.write_table(table, tmp_path / f"in/{number}.parquet")
    inputs = prompt_shards.inspect(find(str(tmp_path / "in")), "prompt")
    assert inputs.schema == pa.schema([("prompt", pa.string()), ("n", pa.int64())])
    assert [inputs.read(file.name).schema for file in inputs.files] == [inputs.schema] * 3


DIFFERENT = [
    (pa.array([1]), pa.array(["b"])),
    (pa.array([1]), pa.array([1], pa.int32())),
    (pa.array(["a"]), pa.array([b"b"])),
    (pa.array([0], pa.timestamp("us")), pa.array([0], pa.timestamp("us", "UTC"))),
    (pa.array([0], pa.timestamp("us")), pa.array([0], pa.timestamp("ms"))),
    (pa.array([{"a": 1}]), pa.array([{"a": 1, "b": 2}])),
    (pa.array([{"a": 1}]), pa.array([{"a": "x"}])),
    (pa.array([[1]]), pa.array([["x"]])),
    (pa.array([[1]]), pa.array([1])),
    (pa.array(["{}"]), extension(pa.json_(), ["{}"])),
    (pa.array([b"ab"], pa.binary(2)), pa.array([b"abc"], pa.binary(3))),
    (pa.array(["a"], pa.dictionary(pa.int8(), pa.string())), pa.array([1])),
    (
        pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
        pa.array([[("a", "b")]], pa.map_(pa.string(), pa.string())),
    ),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT, ids=lambda array: str(array.type))
def test_values_of_another_kind_name_both_files_and_types(
    tmp_path: Path, one: pa.Array, other: pa.Array
) -> None:
    for name, array in (("x", one), ("y", other)):
        pq.write_table(pa.table({"prompt": ["p"], "cell": array}), tmp_path / f"{name}.parquet")
    types = [str(raw(tmp_path / f"{name}.parquet")["cell"].type) for name in ("x", "y")]
    with pytest.raises(ValueError, match=r"y\.parquet: column 'cell' holds") as error:
        prompt_shards.inspect(find(str(tmp_path)), "prompt")
    assert f"holds {types[1]}, in {tmp_path}/x.parquet {types[0]};" in str(error.value)
    assert "\n" not in str(error.value)


def test_columns_that_only_one_shard_has(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["p"], "a": [1]}), tmp_path / "x.parquet")
    pq.write_table(pa.table({"prompt": ["p"], "b": [1]}), tmp_path / "y.parquet")
    with pytest.raises(
        ValueError, match=r"y\.parquet: .*no column 'a' and the further 'b', unlike "
    ):
        prompt_shards.inspect(find(str(tmp_path)), "prompt")


@pytest.mark.parametrize("name", ARRAYS)
def test_a_type_is_one_with_itself_and_with_null(name: str) -> None:
    kind = ARRAYS[name].type
    assert merged(kind, kind) == merged(kind, pa.null()) == merged(pa.null(), kind) == kind


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"])] * 2, names=["prompt", "prompt"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="has two columns of one name, 'prompt'; rename one"):
        prompt_shards.inspect(find(str(tmp_path)), "prompt")


class NoKeys(encryption.KmsClient):
    """Keys that protect nothing."""

    def __init__(self) -> None:
        super().__init__()

    def wrap_key(self, key: bytes, name: str) -> bytes:
        return base64.b64encode(key)


@pytest.mark.parametrize("plain_footer", [True, False])
def test_encrypted_shards_are_called_so(tmp_path: Path, plain_footer: bool) -> None:
    keys = encryption.EncryptionConfiguration(
        footer_key="f", column_keys={"c": ["prompt"]}, plaintext_footer=plain_footer
    )
    factory = encryption.CryptoFactory(lambda settings: NoKeys())
    properties = factory.file_encryption_properties(encryption.KmsConnectionConfig(), keys)
    table = pa.table({"prompt": ["a"]})
    path = tmp_path / "a.parquet"
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    with pytest.raises(ValueError, match=r"a\.parquet: is encrypted; write it without"):
        prompt_shards.inspect(find(str(tmp_path)), "prompt")


def test_names_with_dots_are_names(tmp_path: Path) -> None:
    stamps = pa.array([FOR_EVER], pa.timestamp("us"))
    columns = {"prompt": ["p"], "a": [{"b": 1}], "a.b": stamps, "c.d": [[2]]}
    (tmp_path / "in").mkdir()
    path = tmp_path / "in/0.parquet"
    pq.write_table(pa.table(columns), path, use_deprecated_int96_timestamps=True)
    run = MadeRun(tmp_path, num_shards=1, num_rows=1).begin().whole().end()
    row = raw(run.shard(0)).to_pylist()[0]
    assert (row["a"], row["a.b"], row["c.d"]) == ({"b": 1}, FOR_EVER, [2])


@pytest.mark.parametrize("rows", [[], [0], [2], [0, 2], [1, 2], [0, 1, 2]])
def test_rows_are_picked(rows: list[int]) -> None:
    table = with_prompts({"cell": ARRAYS["int64"]})
    assert rows_at(table, rows).equals(table.take(pa.array(rows, pa.int64())))


def test_large_cells_come_a_batch_at_a_time(tmp_path: Path) -> None:
    """Also where a few cells are far larger than the mean, and batches are too large at first."""
    sizes = [1, 1 << 20, 3, 1 << 20, 1 << 20, 2]
    cells = pa.array([{"bytes": bytes(size)} for size in sizes])
    pq.write_table(pa.table({"n": range(6), "cell": cells}), tmp_path / "a.parquet")
    parquet = pq.ParquetFile(tmp_path / "a.parquet")
    assert [batch.num_rows for batch in batches(parquet)] == [6]
    assert [batch.num_rows for batch in batches(parquet, most_rows=4)] == [4, 2]

    class Narrow:
        """A reader that, like Arrow's, refuses nested cells beyond a limit, of 2.5 MB here."""

        metadata, schema_arrow, num_row_groups = parquet.metadata, parquet.schema_arrow, 1

        def iter_batches(self, size: int, **how: Any) -> Any:
            for batch in parquet.iter_batches(size, **how):
                if batch.nbytes > 2.5e6:
                    raise pa.ArrowNotImplementedError("Nested data conversions")
                yield batch

    assert read_table(Narrow()).equals(parquet.read())
    assert max(batch.nbytes for batch in batches(Narrow(), most_rows=3)) < 2.5e6


@pytest.mark.parametrize("kind", [pa.null(), pa.float64(), pa.list_(pa.string())], ids=str)
def test_only_nulls_of_another_type_are_no_prompts(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"prompt": pa.nulls(2, kind)}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"column 'prompt' holds .*; a prompt column holds text"):
        prompt_shards.inspect(find(str(tmp_path)), "prompt")
    pq.write_table(pa.table({"prompt": ["p"]}), tmp_path / "b.parquet")
    inputs = prompt_shards.inspect(find(str(tmp_path)), "prompt")
    assert texts(inputs.read("a.parquet")["prompt"]) == [None, None]


@pytest.mark.parametrize("kind", [pa.null(), pa.float64(), pa.string()], ids=str)
def test_no_rows_are_prompts_of_any_type(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"prompt": pa.nulls(0, kind)}), tmp_path / "a.parquet")
    inputs = prompt_shards.inspect(find(str(tmp_path)), "prompt")
    assert texts(inputs.read("a.parquet", ["prompt"], 5)["prompt"]) == []


@pytest.mark.parametrize(
    "content", [{"prompt": ["a"]}, {"other": ["a"]}, {"prompt": ["a"], "n": ["x"]}, None]
)
def test_a_shard_that_has_changed_is_named(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": ["a"], "n": [1]}), path)
    inputs = prompt_shards.inspect(find(str(tmp_path)), "prompt")
    if content is None:
        path.write_bytes(path.read_bytes()[:50])
    else:
        pq.write_table(pa.table(content), path)
    with pytest.raises(ValueError, match=r"a\.parquet: is not what it was when the run began"):
        inputs.read("a.parquet")


@pytest.mark.parametrize("key", ["pandas", "huggingface"])
@pytest.mark.parametrize("words", ["{", "[]", "null", '{"info": 1, "column_indexes": [1]}'])
def test_footers_that_are_broken_are_dropped(tmp_path: Path, key: str, words: str) -> None:
    (tmp_path / "in").mkdir()
    table = pa.table({"prompt": ["p"]}).replace_schema_metadata({key: words, "org.spark": "{}"})
    pq.write_table(table, tmp_path / "in/a.parquet")
    run = MadeRun(tmp_path, num_shards=1, num_rows=1).begin().whole().end()
    assert set(raw(run.shard(0)).schema.metadata) == {b"lrd.fingerprint", b"lrd.input"}
