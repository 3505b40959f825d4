"""Which files of a folder are the input, what their folders' names say, and in what order."""

from __future__ import annotations

import argparse
import os
import socket
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from helpers.runs import MadeRun

from jobs import plan, verify
from lrd import DecodingConfig
from lrd.config import YOUNGER
from pipeline.config import RunConfig
from pipeline.input import prompt_shards
from pipeline.input.input_files import find
from pipeline.inspection.verify import Verification
from pipeline.output.run_folder import Commit, commit_name, read_commits, shard_name, shard_stem
from pipeline.preflight import check, fingerprint_of
from pipeline.rows import row_id, split_id
from pipeline.storage.storage import Storage


def put(folder: Path, *names: str, **columns: Any) -> None:
    """Parquet files of one row each, whose prompt is their own path."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"prompt": [name], **columns}), path)


def inspect(folder: Path, prompt_column: str = "prompt") -> prompt_shards.PromptShards:
    return prompt_shards.inspect(find(str(folder)), prompt_column)


def command(job: Any, *words: str) -> int:
    """A job's exit code."""
    parser = argparse.ArgumentParser()
    job.add_arguments(parser)
    return int(job.run(parser.parse_args(words)))


MIXED = (
    "b.parquet",
    "a.PARQUET",
    "deep/down/c.Parquet",
    "spark.parquet/part-0.snappy.parquet",
    ".hidden.parquet",
    "_hidden.parquet",
    "._mac.parquet",
    "_temporary/0/t.parquet",
    ".ipynb_checkpoints/b.parquet",
)


def test_the_input_is_what_pyarrow_reads(tmp_path: Path) -> None:
    put(tmp_path, *MIXED)
    inputs = inspect(tmp_path)
    prompts = [inputs.read(file.name)["prompt"][0].as_py() for file in inputs.files]
    assert prompts == [file.name for file in inputs.files] == sorted(prompts)
    assert sorted(prompts) == sorted(
        ds.dataset(tmp_path, format="parquet").to_table()["prompt"].to_pylist()
    )
    assert len(prompts) == 4


def test_what_is_left_out_is_printed_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "in", *MIXED)
    for name in ("README.md", "_SUCCESS", "x.parquet.part"):
        (tmp_path / "in" / name).write_text("words")
    inputs = inspect(tmp_path / "in")
    assert set(inputs.left_out) == {
        *(".hidden.parquet", "_hidden.parquet", "._mac.parquet", "_temporary/"),
        *(".ipynb_checkpoints/", "README.md", "_SUCCESS", "x.parquet.part"),
    }
    [line] = inputs.notes()
    assert "8 other files or folders are left out: ._mac.parquet, " in line
    assert line.endswith("and 5 more")
    assert command(plan, "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")) == 0
    assert line in capsys.readouterr().out


def test_nothing_is_printed_where_nothing_is_left_out(tmp_path: Path) -> None:
    put(tmp_path, "a.parquet")
    assert inspect(tmp_path).notes() == []


def test_one_file_is_an_input_whatever_its_name(tmp_path: Path) -> None:
    put(tmp_path, "_rows.pq", "other.parquet")
    assert [file.name for file in inspect(tmp_path / "_rows.pq").files] == ["_rows.pq"]


def test_a_flat_folder_keeps_its_fingerprint(tmp_path: Path) -> None:
    put(tmp_path / "in", "b.parquet", "a.parquet")
    config = RunConfig(input=str(tmp_path / "in"), output=str(tmp_path / "out"))
    files = check(config).files
    assert list(fingerprint_of(config, files, "float32")["input"]) == ["a.parquet", "b.parquet"]


def test_a_setting_enters_the_fingerprint_where_it_is_not_the_default(tmp_path: Path) -> None:
    """Settings of `YOUNGER` were added after runs were recorded without them: they go on."""
    put(tmp_path / "in", "a.parquet")
    for decoding, recorded in (
        (DecodingConfig(), {}),
        (DecodingConfig(refinement="first"), {}),
        (DecodingConfig(monitor="change"), {"monitor": "change"}),
        (DecodingConfig(max_gen_length=256), {"max_gen_length": 256}),
    ):
        config = RunConfig(input=str(tmp_path / "in"), output=str(tmp_path / "out"))
        config = config.model_copy(update={"decoding": decoding})
        found = fingerprint_of(config, check(config).files, "float32")["decoding"]
        assert {name: found[name] for name in YOUNGER if name in found} == recorded
        assert found == {**decoding.model_dump(exclude=set(YOUNGER)), **recorded}


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    put(tmp_path / "blobs", "one.parquet")
    put(tmp_path / "real", "two.parquet")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/file.parquet").symlink_to("../blobs/one.parquet")
    (tmp_path / "in/folder").symlink_to("../real")
    (tmp_path / "in/self").symlink_to(".")
    (tmp_path / "real/loop").symlink_to("../in")
    found = find(str(tmp_path / "in"))
    assert found.names == ["file.parquet", "folder/two.parquet"]
    assert found.left_out == ["folder/loop/", "self/"]


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    put(tmp_path, "a.parquet")
    os.mkfifo(tmp_path / "pipe.parquet")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.parquet"))
        assert find(str(tmp_path)).names == ["a.parquet"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["_delta_log/00000000000000000000.json"], "a Delta Lake table"),
        (["sub/_delta_log/0.json"], "a Delta Lake table"),
        (["metadata/v1.metadata.json", "metadata/snap-1.avro"], "an Apache Iceberg table"),
        (["metadata/00001-abc.gz.metadata.json"], "an Apache Iceberg table"),
        ([".hoodie/hoodie.properties"], "an Apache Hudi table"),
        (["data/0.lance", "_versions/1.manifest"], "a Lance dataset"),
        (["x.lance/data/0.bin"], "a Lance dataset"),
    ],
)
def test_a_table_formats_folder_is_refused(tmp_path: Path, names: list[str], expected: str) -> None:
    put(tmp_path, "data/part-0.parquet")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=expected) as error:
        find(str(tmp_path))
    assert "plain Parquet" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_that_only_looks_like_a_table_is_read(tmp_path: Path) -> None:
    put(tmp_path, "metadata/rows.parquet", "delta_log/x.parquet")
    (tmp_path / "metadata.json").write_text("{}")
    assert len(find(str(tmp_path)).names) == 2


@pytest.mark.parametrize(
    ("prepare", "expected"),
    [
        (
            lambda folder: (folder / "a.jsonl").write_text(""),
            r"no \.parquet files in it \(a\.jsonl\)",
        ),
        (lambda folder: None, r"no \.parquet files in it; make some"),
        (
            lambda folder: (folder / "x.parquet").symlink_to("nowhere"),
            r"x\.parquet: .*No such file",
        ),
        (lambda folder: put(folder, "k=1/k=2/x.parquet"), "two folders k="),
        (lambda folder: put(folder, "k=%ff/x.parquet"), "not valid UTF-8"),
        (
            lambda folder: put(folder, "k=1/x.parquet", k=[2]),
            "'k' holds other values than its folder",
        ),
        (lambda folder: put(folder, "row_id=1/x.parquet"), "columns that results add: row_id"),
        (
            lambda folder: (folder / os.fsdecode(b"\xff.parquet")).write_bytes(b""),
            r"\\xff\.parquet is not UTF-8; rename",
        ),
    ],
)
def test_a_folder_that_cannot_be_an_input(tmp_path: Path, prepare: Any, expected: str) -> None:
    (tmp_path / "in").mkdir()
    prepare(tmp_path / "in")
    with pytest.raises(ValueError, match=expected) as error:
        inspect(tmp_path / "in")
    assert "\n" not in str(error.value)
    config = RunConfig(input=str(tmp_path / "in"), output=str(tmp_path / "out"))
    with pytest.raises(ValueError, match=expected):
        check(config)
    assert not (tmp_path / "out").exists()


def test_other_names_need_not_be_utf8(tmp_path: Path) -> None:
    put(tmp_path, "a.parquet")
    (tmp_path / os.fsdecode(b"\xff.txt")).write_text("")
    assert "left out: \\xff.txt" in inspect(tmp_path).notes()[0]


FOLDERS = (
    "lang=en/year=2024/a.parquet",
    "lang=d%20e/year=7/b.parquet",
    "lang=caf%C3%A9/year=-1/c.parquet",
    "lang=__HIVE_DEFAULT_PARTITION__/year=__HIVE_DEFAULT_PARTITION__/d.parquet",
    "zip=00501/e.parquet",
    "day=2024-01-02/big=3000000000/f.parquet",
    "share=1.5/g.parquet",
    "plain/h.parquet",
    "i.parquet",
)


def test_folders_are_columns_as_in_pyarrow(tmp_path: Path) -> None:
    put(tmp_path, *FOLDERS)
    inputs = inspect(tmp_path)
    ours = pa.concat_tables([inputs.read(file.name) for file in inputs.files])
    theirs = ds.dataset(tmp_path, format="parquet", partitioning="hive").to_table()
    order = [("prompt", "ascending")]
    assert ours.select(theirs.column_names).sort_by(order).equals(theirs.sort_by(order))


def test_a_folder_may_say_what_its_file_says(tmp_path: Path) -> None:
    for lang in ("en", "de"):
        put(tmp_path, f"lang={lang}/n=1/x.parquet", lang=[lang], n=pa.array([1], pa.int64()))
    inputs = inspect(tmp_path)
    assert inputs.schema.field("n").type == pa.int64()
    assert inputs.read("lang=de/n=1/x.parquet")["lang"].to_pylist() == ["de"]


def test_a_run_over_folders_is_whole(tmp_path: Path) -> None:
    put(tmp_path / "in", "x=1/a.parquet", "x=2/b.parquet", "b.parquet")
    run = MadeRun(tmp_path, num_rows=1).begin().whole().end()
    verification = Verification(run.storage, Storage(str(tmp_path / "in")))
    assert [str(finding) for finding in verification.findings()] == []
    rows = [pq.ParquetFile(run.shard(n)).read().to_pylist()[0] for n in range(3)]
    assert [(row["prompt"], row["x"]) for row in rows] == [
        ("b.parquet", None),
        ("x=1/a.parquet", 1),
        ("x=2/b.parquet", 2),
    ]
    assert command(verify, str(run.output)) == 0


def test_results_in_the_inputs_folder_are_not_input(tmp_path: Path) -> None:
    put(tmp_path / "in", "a.parquet")
    before = find(str(tmp_path / "in")).names
    put(tmp_path / "in", "out/data/train-00000-of-00001.parquet", "out/.run/segments/0.parquet")
    found = find(str(tmp_path / "in"))
    assert found.names == before
    assert found.left_out == ["out/"]


def test_an_output_that_holds_its_input_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "data", "a.parquet")
    config = RunConfig(input=str(tmp_path / "data"), output=str(tmp_path))
    with pytest.raises(ValueError, match="would write into the input"):
        check(config)


def test_shards_sort_as_their_numbers_do() -> None:
    assert shard_name(3, 12) == "data/train-00003-of-00012.parquet"
    assert shard_name(3, 99_999) == "data/train-00003-of-99999.parquet"
    assert shard_stem("failed", 3, 1_234_567) == "failed-0000003-of-1234567"
    for num_shards in (100_000, 100_001, 2_000_000):
        numbers = [0, 9, 99_998, 99_999, num_shards - 1]
        names = [shard_name(number, num_shards) for number in numbers]
        assert names == sorted(names)


def test_rows_sort_as_their_numbers_do() -> None:
    places = [
        (shard, index)
        for shard in (0, 1, 99_999, 100_000, 123_456, 1_000_000, 12_345_678)
        for index in (0, 1, 99_999_999, 100_000_000, 1_234_567_890)
    ]
    names = [row_id(*place) for place in places]
    assert names == sorted(names)
    assert len(set(names)) == len(names)
    assert [split_id(name) for name in names] == [(*place, None) for place in places]
    assert row_id(7, 42) == "00007-00000042"


def test_records_beyond_five_digits_are_found(tmp_path: Path) -> None:
    output = Storage(str(tmp_path))
    commit = Commit("a", None, 1, 0, 1, 1)
    for number in (7, 99_999, 123_456, 1_234_567):
        output.write(
            commit_name(number),
            b'{"sha256": "a", "replaces": null, "rows": 1, '
            b'"failed": 0, "num_forwards": 1, "num_output_tokens": 1}',
        )
    assert read_commits(output) == dict.fromkeys((7, 99_999, 123_456, 1_234_567), commit)


def test_a_store_is_listed_as_a_disk_is(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    put(tmp_path, *MIXED, "x=1/a.parquet", "old/.run/segments/0.parquet", "old/data/0.parquet")
    (tmp_path / "README.md").touch()
    memory.put(str(tmp_path), "/input-files/rows", recursive=True)
    try:
        ours, theirs = find("memory://input-files/rows"), find(str(tmp_path))
        assert (ours.names, ours.left_out) == (theirs.names, theirs.left_out)
        inputs = prompt_shards.inspect(ours, "prompt")
        assert inputs.files == inspect(tmp_path).files
        assert inputs.read("x=1/a.parquet")["x"].to_pylist() == [1]
        memory.pipe("/input-files/rows/_delta_log/0.json", b"{}")
        with pytest.raises(ValueError, match="a Delta Lake table"):
            find("memory://input-files/rows")
    finally:
        memory.rm("/input-files", recursive=True)
