"""`--columns`: which result columns are written, and what a run's tools do without the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.commands import parse
from helpers.runs import MadeRun, bad, good, with_column
from helpers.shards import OF_THE_RUN, distinct_questions, write_shards
from helpers.synthetic_run import DECODING, write_run

from jobs import evaluate, publish, status, verify
from lrd import DecodingConfig
from pipeline.config import Columns, RunConfig
from pipeline.inspection.pace import pace_of
from pipeline.inspection.plan import duration_of
from pipeline.inspection.status import Inspector
from pipeline.inspection.verify import Verification
from pipeline.output.ledger import Ledger, Plan
from pipeline.output.result_shards import batches
from pipeline.output.run_folder import DRIVER, shard_name
from pipeline.output.statistics import COUNTED, count_rows, summarize
from pipeline.preflight import fingerprint_of
from pipeline.report.report import make_report
from pipeline.rows import (
    COLUMNS,
    COUNTED_LIVE,
    LEVELS,
    OF_REOPENING,
    RESULT_SCHEMA,
    Layout,
    Report,
    kept_schema,
    reported_schema,
    results_batch,
)
from pipeline.run import generate
from pipeline.storage.storage import Storage

FEWER: tuple[Columns, ...] = ("minimal", "standard")
MINIMAL = (
    *("row_id", "sample", "status", "error", "output_text", "num_output_tokens", "num_forwards"),
    "stop_reason",
)


def absent(level: Columns) -> list[str]:
    return Layout(columns=level).absent


def test_every_column_names_its_level() -> None:
    assert LEVELS == get_args(Columns) == ("minimal", "standard", "full")
    assert {column.metadata["level"] for column in COLUMNS} == set(LEVELS)
    assert set(MINIMAL) <= set(kept_schema("minimal").names)
    assert kept_schema("full", reopens=True) == RESULT_SCHEMA
    assert set(RESULT_SCHEMA.names) - set(kept_schema("full").names) == {*OF_REOPENING}
    for level in FEWER:
        kept = kept_schema(level)
        assert not [field.name for field in kept if pa.types.is_list(field.type)]
        assert kept.names == [name for name in RESULT_SCHEMA.names if name in kept.names]
    scalars = [field.name for field in RESULT_SCHEMA if not pa.types.is_list(field.type)]
    assert kept_schema("standard", reopens=True).names == scalars


@pytest.mark.parametrize("level", LEVELS)
def test_a_report_carries_what_is_kept_and_what_the_driver_counts(level: Columns) -> None:
    rows = [good(0, n) for n in range(40)]
    report = Report.of(
        rows, level, finished=[], returned=[], events=[], num_passes=0, longest_pass=0.0
    )
    assert report.rows().schema == reported_schema(level)
    kept = kept_schema(level, reopens=True).names
    assert set(report.rows().schema.names) == {*kept, *COUNTED_LIVE}
    full = results_batch(rows).serialize().size
    assert len(report.content) == full if level == "full" else len(report.content) < 0.8 * full


def made(folder: Path, level: Columns) -> MadeRun:
    return MadeRun(folder, layout=Layout(columns=level))


@pytest.mark.parametrize("level", LEVELS)
def test_segments_and_shards_hold_what_is_kept(level: Columns, tmp_path: Path) -> None:
    run = made(tmp_path, level).begin()
    run.add(0, [2, 0])
    (segment,) = (run.output / ".run" / "segments" / "00000").iterdir()
    assert pq.read_schema(segment).names == kept_schema(level).names
    run.end()
    again = made(tmp_path, level).begin()
    assert [again.open_shard(0).missing(n) for n in range(4)] == [[], [None], [], [None]]
    again.whole(failed=[1]).end()
    shards = [pq.read_table(again.shard(n)) for n in range(3)]
    assert all(s.column_names == ["prompt", "weight", *kept_schema(level).names] for s in shards)
    complete = made(tmp_path / "full", "full").begin().whole(failed=[1]).end()
    names = kept_schema(level).names
    assert shards[0].select(names).equals(pq.read_table(complete.shard(0)).select(names))


@pytest.mark.parametrize("level", FEWER)
def test_a_retry_keeps_the_columns(level: Columns, tmp_path: Path) -> None:
    made(tmp_path, level).begin().whole(failed=[2]).end()
    retry = made(tmp_path, level).begin()
    retry.ledger.retry_failed = True
    assert retry.ledger.owed() == [0, 1, 2]
    for number in range(3):
        shard = retry.open_shard(number)
        assert [shard.missing(n) for n in range(4)] == [[], [], [None], []]
        retry.ledger.open(shard)
        retry.add(number, [2])
    retry.end()
    assert summarize(retry.storage).num_failed == 0
    assert not any(finding.wrong for finding in Verification(retry.storage).findings())


def test_another_level_is_another_run(tmp_path: Path) -> None:
    run = made(tmp_path, "standard").begin().whole().end()
    for level, said in (("minimal", "standard.*minimal"), ("full", "standard.*full")):
        fingerprint = made(tmp_path, level).fingerprint
        with pytest.raises(ValueError, match=f"columns was .*{said}"):
            Ledger(run.storage, Plan(run.ledger.plan.files, fingerprint, {}))
    config = RunConfig(input="i", output="o", decoding=DECODING)
    fewer = config.model_copy(update={"columns": "minimal"})
    found = fingerprint_of(config, [], "float32")
    assert fingerprint_of(fewer, [], "float32") == {**found, "columns": "minimal"}


# The tools.


@pytest.fixture(params=FEWER)
def level(request: pytest.FixtureRequest) -> Columns:
    found: Columns = request.param
    return found


@pytest.fixture
def pair(level: Columns, tmp_path: Path) -> tuple[Path, Path]:
    """The same run with fewer columns and with all."""
    for name, columns in (("fewer", level), ("all", "full")):
        write_run(
            tmp_path / name, (30, 30), layout=Layout(columns=columns), answer=lambda n: str(n)
        )
    return tmp_path / "fewer", tmp_path / "all"


def test_counts_are_those_of_all_columns_or_said_to_be_absent(
    pair: tuple[Path, Path], level: Columns
) -> None:
    fewer, full = (count_rows(Storage(str(folder))) for folder in pair)
    of = {
        "num_full_passes": "full_passes",
        "num_positions": "positions_computed",
        "num_unsure_stops": "max_entropy_at_stop",
        "seconds": "seconds",
    }
    for name in ("num_rows", "num_failed", "errors", "all_stops", "num_forwards", "most_forwards"):
        assert getattr(fewer, name) == getattr(full, name)
    assert fewer.num_output_tokens == full.num_output_tokens
    for name, column in of.items():
        expected = None if column in absent(level) else getattr(full, name)
        assert getattr(fewer, name) == expected, name
        assert getattr(full, name)


def test_status_and_verify(
    pair: tuple[Path, Path], level: Columns, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status.run(parse(status, str(pair[0]))) == 0
    assert "60 of 60 done" in capsys.readouterr().out
    assert verify.run(parse(verify, str(pair[0]))) == 0
    note, whole = capsys.readouterr().out.strip().splitlines()
    assert note.startswith(f"note: .run/manifest.json: the run keeps {level} columns alone; not")
    assert note.endswith(f"checked: {', '.join(absent(level))}")
    assert whole.startswith("whole: 2 of 2 shards, 60 rows")


def test_verify_still_finds_what_is_wrong(level: Columns, tmp_path: Path) -> None:
    run = made(tmp_path, level).begin().whole(failed=[2]).end()
    run.rewrite(0, lambda table: with_column(table, "error", ["why", None, None, None]))
    run.rewrite(1, lambda table: table.drop_columns("output_text"))
    found = [str(finding) for finding in Verification(run.storage).findings()]
    for expected in (
        "00000-00000000: is ok with an error",
        "00000-00000002: is failed without an error",
        "its columns are wrong: lacks output_text: string",
    ):
        assert any(expected in finding for finding in found), found


def test_a_shard_without_a_column_that_its_level_keeps_is_refused(
    level: Columns, tmp_path: Path
) -> None:
    run = made(tmp_path, level).begin().whole().end()
    path = run.shard(0)
    metadata = pq.read_metadata(path).metadata
    assert metadata[b"lrd.columns"] == level.encode()
    footer = {key.decode(): value.decode() for key, value in metadata.items()}
    run.rewrite(0, lambda table: table.drop_columns("num_forwards"), footer)
    with pytest.raises(ValueError, match="has no column num_forwards"):
        list(batches(run.storage, shard_name(0, 3), COUNTED))
    assert list(batches(run.storage, shard_name(1, 3), COUNTED))


def test_the_report_says_what_it_leaves_out(pair: tuple[Path, Path], level: Columns) -> None:
    fewer, full = (make_report(Storage(str(folder))) for folder in pair)
    assert f"This run keeps {level} columns." in fewer.html
    assert f"left out: {', '.join(absent(level))}." in fewer.html
    assert "This run keeps" not in full.html
    drawn = {figure.name for figure in fewer.figures}
    everything = {figure.name for figure in full.figures}
    without_traces = everything - {"kl", "entropy", "committed", "refined"}
    assert drawn == (without_traces if level == "standard" else without_traces - {"padding"})
    assert ("positions computed a row" in fewer.html) is (level == "standard")
    assert "nan" not in fewer.html.split("<main>")[1].split("<script")[0].lower().split()
    rows = viewer(fewer.html)
    assert [row["id"] for row in rows] == [row["id"] for row in viewer(full.html)]
    assert not any(row["ids"] or row["kl"] for row in rows)
    assert sum(row["text"] is not None for row in rows) > 50


def viewer(html: str) -> list[dict[str, Any]]:
    text = html.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    found: list[dict[str, Any]] = json.loads(text)["viewer"]["rows"]
    return found


def test_a_dataset_is_published(pair: tuple[Path, Path], level: Columns, tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    assert publish.run(parse(publish, str(pair[0]), "--to", str(folder))) == 0
    rows = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.column_names == ["question", "answer", *kept_schema(level).names]
    card = (folder / "README.md").read_text()
    assert ("positions computed a row" in card) is (level == "standard")
    assert f"| `columns` | `{level}` |" in card
    assert "`kl_trace`" not in card


def test_scores_are_those_of_all_columns(
    pair: tuple[Path, Path], level: Columns, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for folder in pair:
        words = [str(folder), "--task", "word-problems", "--workers", "1"]
        assert evaluate.run(parse(evaluate, *words)) == 0
        found.append(json.loads(capsys.readouterr().out.strip().splitlines()[-1]))
    fewer, full = found
    assert fewer.pop("mean_positions") == (
        None if level == "minimal" else pytest.approx(full["mean_positions"])
    )
    del full["mean_positions"], full["scores"], fewer["scores"]
    assert fewer == full


def test_the_time_is_known_or_said_to_be_unknown(pair: tuple[Path, Path], level: Columns) -> None:
    (pair[0] / DRIVER).unlink()
    config = RunConfig(input="i", output=str(pair[0]), decoding=DECODING)
    duration = duration_of(config, {32: 10.0}, Inspector(Storage(str(pair[0]))), None)
    if level == "standard":
        assert pace_of(Storage(str(pair[0]))) is not None
        assert not isinstance(duration, str)
    else:
        assert duration == f"unknown: {pair[0]} keeps minimal columns, without seconds"


# A run.


@pytest.mark.usefixtures("kept_replicas")
def test_a_run_writes_the_same_values_at_every_level(tmp_path: Path) -> None:
    questions = [*distinct_questions(10, seed=3), None]
    source = write_shards(tmp_path / "in", questions, 2)
    tables: dict[str, pa.Table] = {}
    for level in LEVELS:
        output, seen = tmp_path / level, []
        config = RunConfig(
            input=str(source),
            output=str(output),
            columns=level,
            cpus_per_replica=1.0,
            replicas=1,
            slots=4,
            flush_seconds=0.2,
            decoding=DecodingConfig.preset("fast", gen_length=32),
        )
        summary = generate(config, seen.append)
        assert (summary.num_rows, summary.num_failed) == (11, 1)
        assert (summary.num_positions is None) == (level == "minimal")
        # Progress and metrics are those of a full run.
        last = seen[-1]
        assert sum(bucket.done for bucket in last.buckets.values()) == 10
        assert all(bucket.seconds > 0 for bucket in last.buckets.values() if bucket.done)
        parts = [pq.read_table(path) for path in sorted((output / "data").iterdir())]
        tables[level] = pa.concat_tables(parts)
        assert not any(f.wrong for f in Verification(Storage(str(output))).findings())
    for level in FEWER:
        names = ["prompt", *kept_schema(level).names]
        assert tables[level].column_names == names
        same = [name for name in names if name not in OF_THE_RUN]
        assert tables[level].select(same).equals(tables["full"].select(same))


def test_a_quarantined_row_is_stored_at_every_level(level: Columns, tmp_path: Path) -> None:
    run = made(tmp_path, level).begin()
    run.ledger.open(run.open_shard(0))
    run.ledger.add(0, results_batch([bad(0, 1)], reported_schema(level)))
    run.add(0, [0, 2, 3])
    run.end()
    assert pq.read_table(run.shard(0))["status"].to_pylist() == ["ok", "failed", "ok", "ok"]
