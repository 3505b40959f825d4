"""`lrd verify`: every way in which a result dataset can be wrong is named with its file and row."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.runs import MadeRun, with_column

from jobs import verify
from pipeline.rows import row_id

AGAIN = "the same lrd generate command decodes it again"


@pytest.fixture
def run(tmp_path: Path) -> MadeRun:
    """Three shards, one failed row in each, nobody at work."""
    return MadeRun(tmp_path).begin().whole(failed=[2]).end()


@pytest.fixture
def verified(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[str]]]:
    """Exit code and lines of the command."""

    def call(run: MadeRun | Path | str, *flags: str) -> tuple[int, list[str]]:
        parser = argparse.ArgumentParser()
        verify.add_arguments(parser)
        output = getattr(run, "output", run)
        code = verify.run(parser.parse_args([str(output), *flags]))
        printed = capsys.readouterr()
        return code, (printed.out + printed.err).strip().splitlines()

    return call


def test_a_whole_run(run: MadeRun, verified: Any) -> None:
    assert verified(run) == (0, ["whole: 3 of 3 shards, 12 rows, 3 failed"])


def test_no_run(tmp_path: Path, verified: Any) -> None:
    code, lines = verified(tmp_path)
    assert code == 2
    assert "holds no run" in lines[0]
    code, _ = verified(tmp_path / "nowhere")
    assert code == 2


def test_an_unreadable_manifest(run: MadeRun, verified: Any) -> None:
    (run.output / ".run" / "manifest.json").write_text("{")
    code, lines = verified(run)
    assert code == 1
    assert "manifest.json: is not JSON" in lines[0]
    (run.output / ".run" / "manifest.json").write_text('{"settings": {}, "fingerprint": {}}')
    code, lines = verified(run)
    assert code == 1
    assert "restore it" in lines[-1]


def test_an_unfinished_run(tmp_path: Path, verified: Any) -> None:
    run = MadeRun(tmp_path).begin()
    run.add(0, range(4))
    run.add(2, [0, 3])
    run.end()
    code, lines = verified(run)
    assert code == 1
    assert lines[0].startswith("2 of 3 shards are not committed yet; the same lrd generate command")
    assert lines[1] == "not finished, nothing wrong so far: 1 of 3 shards, 4 rows, 0 failed"
    assert verified(run, "--partial")[0] == 0


def test_a_driver_killed_between_record_and_shard(tmp_path: Path, verified: Any) -> None:
    run = MadeRun(tmp_path).begin().whole()
    segment = run.output / ".run" / "segments" / "00001" / "000001-x.parquet"
    segment.parent.mkdir(parents=True)
    rows = pq.read_table(run.shard(1)).drop_columns(["prompt", "weight"])
    pq.write_table(rows, segment)
    run.shard(1).unlink()
    code, lines = verified(run.end())
    assert code == 1
    assert lines[0].startswith("1 of 3 shards are not committed yet"), lines


def test_a_driver_at_work_between_record_and_shard(tmp_path: Path, verified: Any) -> None:
    run = MadeRun(tmp_path).begin().whole()
    run.shard(1).unlink()
    assert verified(run, "--partial")[0] == 0
    code, lines = verified(run.end(), "--partial")
    assert code == 1
    assert "is missing" in lines[0]


def test_a_flipped_byte(run: MadeRun, verified: Any) -> None:
    content = bytearray(run.shard(1).read_bytes())
    place = content.index(b"answer") if b"answer" in content else 200
    content[place] ^= 0xFF
    run.shard(1).write_bytes(content)
    code, lines = verified(run)
    assert code == 1
    name = "data/train-00001-of-00003.parquet"
    assert lines[0] == f"{name}: its bytes are not those that were written; {AGAIN}"
    assert any("cannot be read" in line and row_id(1, 0) in line for line in lines[1:-1]), lines
    assert lines[-1].startswith("WRONG: ")


def test_a_truncated_shard(run: MadeRun, verified: Any) -> None:
    run.shard(2).write_bytes(run.shard(2).read_bytes()[:-30])
    code, lines = verified(run)
    assert code == 1
    assert "train-00002-of-00003.parquet: its bytes are not those" in lines[0]
    assert "train-00002-of-00003.parquet: is not a whole Parquet file" in lines[1]
    assert lines[1].endswith(AGAIN)


def test_a_missing_shard(run: MadeRun, verified: Any) -> None:
    run.shard(0).unlink()
    code, lines = verified(run)
    assert code == 1
    assert lines[0] == f"data/train-00000-of-00003.parquet: is missing; {AGAIN}"
    assert lines[-1] == "WRONG: 1 findings in 1 files; 3 of 3 shards, 8 rows, 2 failed"


def test_a_missing_record(run: MadeRun, verified: Any) -> None:
    (run.output / ".run" / "commits" / "00001.json").write_text("{}")
    code, lines = verified(run)
    assert code == 1
    assert lines[0].startswith("data/train-00001-of-00003.parquet: has no record")


def test_a_row_that_stands_twice(run: MadeRun, verified: Any) -> None:
    run.rewrite(0, lambda table: table.take([0, 1, 1, 3]))
    code, lines = verified(run)
    assert code == 1
    assert any(row_id(0, 2) in line and "is missing" in line for line in lines), lines
    assert any(row_id(0, 1) in line and "more than once" in line for line in lines)
    assert all("delete it" in line for line in lines[:-1])


def test_a_lost_row_and_a_foreign_one(run: MadeRun, verified: Any) -> None:
    run.rewrite(0, lambda table: table.take([0, 1, 2]))
    _, lines = verified(run)
    assert any("has 3 rows, 4 were planned" in line for line in lines)
    assert any(row_id(0, 3) in line and "is missing" in line for line in lines)
    ids = [row_id(1, n) for n in range(3)] + [row_id(0, 0)]
    run.rewrite(1, lambda table: with_column(table, "row_id", ids))
    _, lines = verified(run)
    assert any(f"not its own, 1 in all: {row_id(0, 0)}" in line for line in lines), lines


def test_rows_that_changed_places(run: MadeRun, verified: Any) -> None:
    run.rewrite(1, lambda table: table.take([1, 0, 2, 3]))
    code, lines = verified(run)
    assert code == 1
    for index in (0, 1):
        assert any(row_id(1, index) in line and "not in its place" in line for line in lines)
        assert any(row_id(1, index) in line and "not the input's row" in line for line in lines)
    _, lines = verified(run, "--no-input")
    assert not any("input's row;" in line for line in lines)


def test_results_beside_another_prompt(run: MadeRun, verified: Any) -> None:
    texts = ["prompt 1 0", "prompt 1 2", "prompt 1 1", "prompt 1 3"]
    run.rewrite(1, lambda table: with_column(table, "prompt", texts))
    code, lines = verified(run)
    assert code == 1
    assert len(lines) == 3
    assert all("its input columns are not the input's row" in line for line in lines[:-1])
    assert verified(run, "--no-input")[0] == 0


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda table: table.drop_columns(["bucket"]), "lacks bucket: int32"),
        (lambda table: table.append_column("more", pa.array(range(4))), "also has more: int64"),
        (lambda table: table.select([1, 0, *range(2, table.num_columns)]), "in another order"),
        (
            lambda table: table.set_column(
                table.schema.get_field_index("seconds"),
                "seconds",
                table["seconds"].cast(pa.float64()),
            ),
            "lacks seconds: float",
        ),
    ],
)
def test_another_schema(run: MadeRun, verified: Any, change: Any, expected: str) -> None:
    run.rewrite(0, change)
    code, lines = verified(run)
    assert code == 1
    assert expected in lines[0]
    assert len(lines) == 2, "the other shards are right"


def test_shards_of_two_schemas_without_the_input(run: MadeRun, verified: Any) -> None:
    run.rewrite(2, lambda table: table.drop_columns(["weight"]))
    code, lines = verified(run, "--no-input")
    assert code == 1
    assert "not those of the shards before" in lines[0]


def test_another_runs_shard(run: MadeRun, verified: Any) -> None:
    run.rewrite(1, lambda table: table, {"lrd.fingerprint": '{"model": "other"}'})
    run.rewrite(2, lambda table: table, {"lrd.input": "else.parquet"})
    code, lines = verified(run)
    assert code == 1
    assert "train-00001-of-00003.parquet: the fingerprint in its footer" in lines[0]
    assert "names 'else.parquet' as its input, not '2.parquet'" in lines[1]


@pytest.mark.parametrize(
    ("name", "values", "row", "expected"),
    [
        ("status", ["ok", "ok", "failed", "done"], 3, "neither ok nor failed"),
        ("status", ["ok", "ok", "failed", "failed"], 3, "failed without an error"),
        ("error", [None, "why", "why", None], 1, "ok with an error"),
        ("error", [None, None, None, None], 2, "failed without an error"),
        ("full_passes", [3, 4, None, 1], 1, "its full_passes are more than its num_forwards"),
        ("output_text", ["a", None, None, "b"], 1, "ok without an output"),
        ("output_text", ["a", "b", "c", "d"], 2, "failed with an output"),
        ("kl_trace", [[None, 1, 1], [None, 1, 1], None, [1]], 3, "its kl_trace"),
        ("entropy_trace", [None, [1, 1, 1], None, [1, 1, 1]], 0, "its entropy_trace"),
        ("commit_step", [[1, 1, 1], [1, 1], None, [1, 1, 1]], 1, "its commit_step"),
        ("output_token_ids", [[1, 1, 1], [1, 1, 1], None, [1]], 3, "its output_token_ids"),
        ("token_confidence", [[1, 1, 1], [1], None, [1, 1, 1]], 1, "its token_confidence"),
        ("mean_confidence", [0.5, None, None, 1.5], 3, "its mean_confidence is not between"),
        ("min_confidence", [-0.5, None, None, 0.5], 0, "its min_confidence is not between"),
    ],
)
def test_rows_that_contradict_themselves(
    run: MadeRun, verified: Any, name: str, values: list[Any], row: int, expected: str
) -> None:
    run.rewrite(0, lambda table: with_column(table, name, values))
    code, lines = verified(run)
    assert code == 1
    assert f"row {row_id(0, row)}: " in lines[0]
    assert expected in lines[0]


def test_many_wrong_rows_are_counted(tmp_path: Path, verified: Any) -> None:
    run = MadeRun(tmp_path, num_shards=1, num_rows=3000).begin().whole().end()
    run.rewrite(0, lambda table: with_column(table, "error", ["why"] * 3000))
    code, lines = verified(run)
    assert code == 1
    assert len(lines) == 5
    assert "2997 more rows: is ok with an error" in lines[3]


def test_a_record_that_counts_wrongly(run: MadeRun, verified: Any) -> None:
    record = run.output / ".run" / "commits" / "00000.json"
    record.write_text(record.read_text().replace('"failed": 1', '"failed": 2'))
    code, lines = verified(run)
    assert code == 1
    assert lines[0].startswith(".run/commits/00000.json: counts 4 rows, 2 failed")


def test_an_input_that_changed(run: MadeRun, verified: Any) -> None:
    where = run.folder / "in" / "1.parquet"
    pq.write_table(pq.read_table(where).take([1, 0, 2, 3]), where)
    code, lines = verified(run)
    assert code == 1
    assert lines[0] == f"{where}: this input has changed since the run began; restore it"
    assert len(lines) == 2
    assert verified(run, "--no-input")[0] == 0


def test_an_input_that_is_gone_is_a_note(run: MadeRun, verified: Any) -> None:
    (run.folder / "in" / "1.parquet").unlink()
    code, lines = verified(run)
    assert code == 0
    assert lines[0].startswith(f"note: {run.folder}/in/1.parquet: this input cannot be read")
    (run.folder / "in").rename(run.folder / "moved")
    code, lines = verified(run)
    assert code == 0
    assert "not compared" in lines[0]
    assert "--input" in lines[0]
    code, lines = verified(run, "--input", str(run.folder / "moved"))
    assert (code, len(lines)) == (0, 2)
    code, lines = verified(run, "--input", str(run.folder / "nowhere"))
    assert (code, len(lines)) == (1, 1)


def test_segments_that_cannot_be_read_or_are_foreign(tmp_path: Path, verified: Any) -> None:
    run = MadeRun(tmp_path).begin()
    for rows in ([0], [1]):
        run.add(0, rows)
    run.add(1, [2])
    run.end()
    segments = run.output / ".run" / "segments"
    first, second = sorted((segments / "00000").iterdir())
    first.write_bytes(b"PAR1 broken")
    (own,) = (segments / "00001").iterdir()
    second.write_bytes(own.read_bytes())
    code, lines = verified(run, "--partial")
    assert code == 1
    assert f"{first.name}: cannot be read" in lines[0]
    assert "decodes its rows again" in lines[0]
    assert f"{second.name} row {row_id(1, 2)}: is not of this shard; delete it" in lines[1]


def test_strays(run: MadeRun, verified: Any) -> None:
    (run.output / "data" / "notes.txt").write_text("mine")
    (run.output / "data" / "train-00000-of-00003.parquet.77.part").write_bytes(b"half")
    code, lines = verified(run)
    assert code == 1
    assert lines[0].startswith("data/notes.txt: is not a shard of this run; move it away")
    assert "a partial file" in lines[1]
    (run.output / "data" / "notes.txt").unlink()
    run.begin()
    code, lines = verified(run)
    run.end()
    assert code == 0, "a driver at work is writing it"
    assert lines[0].startswith("note: data/train-00000-of-00003.parquet.77.part")


def test_a_retry_under_way(tmp_path: Path, verified: Any) -> None:
    run = MadeRun(tmp_path).begin().whole(failed=[2]).end()
    before = run.shard(1).read_bytes()
    run.begin()
    run.ledger.retry_failed = True
    assert run.ledger.owed() == [0, 1, 2]
    run.add(1, [2])
    # The driver was killed when the record was written and the shard was not.
    run.shard(1).write_bytes(before)
    run.end()
    code, lines = verified(run)
    assert code == 1
    assert lines[0].startswith("1 of 3 shards are not committed yet")
    assert "retry-failed" in lines[0]
    assert verified(run, "--partial")[0] == 0


def test_an_object_store(run: MadeRun, verified: Any) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(run.output), "/bucket/verify", recursive=True)
    memory.pipe("/bucket/verify/data/notes.txt", b"mine")
    code, lines = verified("memory://bucket/verify")
    assert code == 1
    assert [line.partition(":")[0] for line in lines] == ["data/notes.txt", "WRONG"]
