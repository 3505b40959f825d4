"""`lrd reproduce`: wrong calls are one line; what is whole is decoded once."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.commands import parse
from helpers.shards import events

from jobs import reproduce
from pipeline.experiments.paper.paper_prompts import OWN_TASK, Prompts, prompts_of, write


def prompts(words: list[str], limit: int | None, output: str) -> dict[str, Prompts]:
    return prompts_of(words, limit, output, reproduce.test_problems)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("table7", "choose table1"),
        ("table1 --task trivia", "task 'trivia' is unknown"),
        ("table1 --task gsm8k", "lrd prepare --task gsm8k"),
        ("table1 --task gsm8k=NOWHERE", "NOWHERE: no such file"),
        ("table1 --task word_problems --task word-problems", "given twice"),
        ("table1 --limit 0", "--limit is 0"),
        ("figure2 --replay-rows 0", "--replay-rows is 0"),
        ("figure5 --temperature 0.5", "--temperature is 0.5"),
        ("table1 --preset baseline", "LRD is paper or fast"),
        ("table1 --r-f 2", "r_f"),
        ("table1 --gen-length 64 --block-length 48", "does not divide gen_length 64"),
        ("table1 --limit 2 --gen-length 4096", "leaves no room"),
        ("table1 --limit 2 --model NOMODEL/", "NOMODEL"),
        ("table1 --tables-only", "nothing of table1 is decoded yet"),
    ],
)
def test_a_wrong_call_is_one_line(
    words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert reproduce.run(parse(reproduce, *words.split(), "--output", str(output))) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1, printed.err
    assert message in printed.err
    assert not output.exists()


def test_given_prompts_have_what_their_task_is_scored_by(tmp_path: Path) -> None:
    pq.write_table(pa.table({"question": ["a"], "answer": ["1"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="no column 'prompt'"):
        prompts([f"gsm8k={tmp_path}"], None, "out")
    pq.write_table(pa.table({"prompt": ["a"], "id": ["1"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="no column final_answer or answer"):
        prompts([f"gsm8k={tmp_path}"], None, "out")


def test_own_problems_are_distinct_and_the_same_every_time(tmp_path: Path) -> None:
    made = prompts([OWN_TASK.name], 30, str(tmp_path))
    write(made)
    write(prompts(["word_problems"], 30, str(tmp_path)))
    table = pq.read_table(f"{tmp_path}/prompts/word-problems-30")
    assert len(set(table["prompt"].to_pylist())) == table.num_rows == 30
    folder = tmp_path / "prompts/word-problems-30"
    pq.write_table(table.slice(1), folder / "prompts-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="holds other prompts"):
        write(made)


def test_given_prompts_are_cut_to_the_first_rows(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for number in range(2):
        rows = [f"{number}-{n}" for n in range(3)]
        table = pa.table({"prompt": rows, "answer": rows})
        pq.write_table(table, source / f"part-{number}.parquet")
    out = str(tmp_path / "out")
    assert prompts([f"gsm8k={source}"], None, out)["gsm8k"].uri == str(source)
    assert prompts([f"gsm8k={source}"], 6, out)["gsm8k"].table is None
    cut = prompts([f"gsm8k={source}"], 4, out)["gsm8k"]
    assert cut.uri == f"{out}/prompts/gsm8k-4"
    assert cut.table["prompt"].to_pylist() == ["0-0", "0-1", "0-2", "1-0"]


@pytest.mark.usefixtures("ray_session")
@pytest.mark.slow
def test_a_figure_is_decoded_replayed_and_drawn_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "figure2 --limit 4 --gen-length 8 --replay-rows 3 --replicas 1 --cpus-per-replica 1"
    args = parse(reproduce, *words.split(), "--output", str(tmp_path))
    assert reproduce.run(args) == 0
    (run,) = (tmp_path / "runs").iterdir()
    before = {path: path.stat().st_mtime_ns for path in (run / "data").iterdir()}
    before |= {path: path.stat().st_mtime_ns for path in (run / ".replays").iterdir()}
    page = (tmp_path / "figure2.md").read_bytes()
    assert reproduce.run(args) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (tmp_path / "figure2.md").read_bytes() == page
    assert [e["owed_shards"] for e in events(run) if e["event"] == "driver started"] == [1, 0]
    points = list(csv.DictReader((tmp_path / "figure2.csv").read_text().splitlines()))
    assert len(points) == 20 + 8
    replays = pq.read_table(run / ".replays/3-rows.parquet").to_pylist()
    assert [row["is_same"] for row in replays] == [True] * 3
    means = [sum(row["kl_to_final"][n] for row in replays) / 3 for n in (0, 27)]
    assert [float(points[n]["kl"]) for n in (0, 27)] == pytest.approx(means, rel=1e-4)
    assert "figure2.svg" in capsys.readouterr().out
