"""`lrd evaluate` and `lrd prepare --task`: from a dataset to prompts, from results to scores."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.runs import begun

from jobs import evaluate, prepare
from pipeline.output.open_shard import OpenShard
from pipeline.rows import Result, results_batch, row_id
from pipeline.scoring import math500, workers
from pipeline.scoring.summary import wilson
from pipeline.scoring.tasks import TASKS
from pipeline.scoring.workers import Answer, score_answers
from pipeline.storage.storage import Storage

EXAMPLES = Path(prepare.__file__).parent / "examples"


def result(shard: int, index: int, text: str | None) -> Result:
    """A decoded row, or a failed one where there is no text."""
    row = Result.failed(row_id(shard, index), "the prompt has 900 tokens")
    if text is None:
        return row
    return replace(
        row,
        status="ok",
        error=None,
        output_text=text,
        num_output_tokens=10 + index,
        num_forwards=20 + index,
        positions_computed=500 + 2 * index,
        stop_reason="converged" if index else "complete",
    )


def finished_run(
    folder: Path, shards: list[dict[str, list[Any]]], texts: list[list[str | None]], planned: int
) -> Path:
    """A result dataset as the pipeline leaves it; shards beyond those given are not decoded."""
    prompts = [pa.table(columns) for columns in shards]
    empty = pa.table({"prompt": ["not decoded"]}) if not prompts else prompts[0]
    source = Path(f"{folder}-prompts")
    decoding = {"gen_length": 3}
    ledger, inputs = begun(
        Storage(str(folder)),
        source,
        prompts + [empty] * (planned - len(prompts)),
        "prompt",
        lambda files: {"model": "m", "dtype": "float32", "decoding": decoding},
        {"model": "m", "input": str(source), "decoding": decoding},
    )
    for number, answers in enumerate(texts):
        ledger.open(OpenShard(number, inputs.read(ledger.plan.files[number].name)))
        rows = [result(number, index, text) for index, text in enumerate(answers)]
        ledger.add(number, results_batch(rows))
        ledger.commit_complete()
    ledger.end()
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Two shards of GSM8K: two right, one wrong, one without a number, one not decoded."""
    shards = [
        {"prompt": ["a", "b", "c"], "final_answer": ["18", "1,000", "7"]},
        {"prompt": ["d", "e"], "final_answer": ["5", "6"]},
    ]
    texts = [["#### 18", "\\boxed{1000.0}", "It is 8."], ["I do not know", None]]
    return finished_run(tmp_path / "out", shards, texts, planned=2)


def call(*words: str) -> int:
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    return evaluate.run(parser.parse_args([*words, "--workers", "1"]))


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert call(*words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1, printed.err
    return printed.err


def test_scores_and_summary(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in (out / "data").iterdir()}
    assert call(str(out), "--task", "gsm8k") == 0
    printed = capsys.readouterr().out.strip().splitlines()
    low, high = wilson(2, 5)
    assert json.loads(printed[-1]) == {
        "task": "gsm8k",
        "num_rows": 5,
        "num_failed": 1,
        "num_correct": 2,
        "accuracy": 0.4,
        "accuracy_low": low,
        "accuracy_high": high,
        "mean_output_tokens": 10.75,
        "mean_forwards": 20.75,
        "mean_positions": 501.5,
        "stop_reasons": {"complete": 2, "converged": 2, "failed": 1},
        "wrong": {"wrong answer": 1, "no answer found": 1, "not decoded": 1},
        "num_shards": 2,
        "num_shards_planned": 2,
        "scores": str(out / ".scores/gsm8k.parquet"),
    }
    assert "2 of 5 right, 40.0% (95 %: 11.8% to 76.9%)" in printed[0]
    assert "1 failed rows, counted as wrong" in printed
    kept = pq.read_metadata(out / ".scores/gsm8k.parquet").metadata[b"lrd.evaluation"]
    assert json.loads(kept) == json.loads(printed[-1])
    rows = pq.read_table(out / ".scores/gsm8k.parquet").to_pylist()
    assert [row["row_id"] for row in rows] == [row_id(0, n) for n in range(3)] + [
        row_id(1, n) for n in range(2)
    ]
    assert [row["correct"] for row in rows] == [True, True, False, False, False]
    assert [row["extracted"] for row in rows] == ["18", "1000.0", "8", None, None]
    assert rows[4]["reason"] == "not decoded: the prompt has 900 tokens"
    assert rows[1]["reference"] == "1,000"
    assert {path: path.read_bytes() for path in (out / "data").iterdir()} == before


def test_scores_are_not_taken_for_results(out: Path) -> None:
    """A second Parquet folder beside data/ would be read as data; a dot folder is not."""
    assert call(str(out), "--task", "gsm8k") == 0
    assert len(pd.read_parquet(out)) == len(pd.read_parquet(out / "data")) == 5
    datasets.disable_progress_bars()
    assert datasets.load_dataset(str(out), split="train", keep_in_memory=True).num_rows == 5


def test_again_and_elsewhere(out: Path, tmp_path: Path) -> None:
    assert call(str(out), "--task", "gsm8k") == 0
    first = (out / ".scores/gsm8k.parquet").read_bytes()
    assert call(str(out), "--task", "gsm8k") == 0
    assert (out / ".scores/gsm8k.parquet").read_bytes() == first
    place = tmp_path / "elsewhere" / "s.parquet"
    assert call(str(out), "--task", "gsm8k", "--output", str(place)) == 0
    assert pq.read_table(place).equals(pq.read_table(out / ".scores/gsm8k.parquet"))


def test_a_row_without_reference_costs_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = {"prompt": ["a", "b"], "answer": [None, "2"]}
    out = finished_run(tmp_path / "out", [shard], [["#### 1", "#### 2"]], planned=1)
    assert call(str(out), "--task", "gsm8k") == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["num_correct"], found["wrong"]) == (1, {"no reference": 1})


def test_results_without_their_run(out: Path) -> None:
    (out / ".run/manifest.json").unlink()
    assert call(str(out), "--task", "gsm8k") == 0


def test_another_reference_column(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(str(out), "--task", "gsm8k", "--reference-column", "prompt") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["num_correct"] == 0
    line = refused(capsys, str(out), "--task", "gsm8k", "--reference-column", "solution")
    assert "no column solution" in line
    assert "prompt, final_answer" in line


@pytest.mark.parametrize("with_manifest", [True, False])
def test_unfinished_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], with_manifest: bool
) -> None:
    shard = {"prompt": ["a"], "answer": ["1"]}
    out = finished_run(tmp_path / "out", [shard], [["#### 1"]], planned=3)
    if not with_manifest:
        (out / ".run/manifest.json").unlink()
    line = refused(capsys, str(out), "--task", "gsm8k")
    assert "1 of 3 shards" in line
    assert "--partial" in line
    assert call(str(out), "--task", "gsm8k", "--partial") == 0
    printed = capsys.readouterr().out
    assert "partial: 1 of 3 shards" in printed
    assert json.loads(printed.splitlines()[-1])["num_shards_planned"] == 3


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["{tmp}/nowhere", "--task", "gsm8k"], "nowhere: no such folder"),
        (["{tmp}/empty", "--task", "gsm8k"], "holds no run"),
        (["{tmp}/none", "--task", "gsm8k", "--partial"], "0 of 2 shards"),
        (["{out}", "--task", "chess"], "choose gsm8k, math500, humaneval, mbpp, word-problems"),
        (["{out}", "--task", "math500"], "no column answer for the references"),
        (["{out}", "--task", "humaneval"], "lrd prepare --task humaneval"),
        (["{out}", "--task", "gsm8k", "--output", "{out}/scores.parquet"], "read as results"),
        (["{out}", "--task", "gsm8k", "--output", "{out}/data/s.parquet"], "read as results"),
        (["{out}", "--task", "gsm8k", "--output", "{tmp}/s.csv"], ".parquet"),
    ],
)
def test_refusals(
    tmp_path: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    expected: str,
) -> None:
    monkeypatch.setattr(evaluate, "_requirements", lambda task: [])
    (tmp_path / "empty").mkdir()
    finished_run(tmp_path / "none", [], [], planned=2)
    words = [word.format(tmp=tmp_path, out=out) for word in words]
    assert expected in refused(capsys, *words)


def test_a_broken_shard_is_named(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (out / "data/train-00001-of-00002.parquet").write_bytes(b"PAR1 no")
    line = refused(capsys, str(out), "--task", "gsm8k")
    assert "train-00001-of-00002.parquet" in line
    assert not (out / ".scores").exists()


def test_negative_workers(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    words = [str(out), "--task", "gsm8k", "--workers", "-1"]
    assert evaluate.run(parser.parse_args(words)) == 2
    assert "--workers" in capsys.readouterr().err


def test_code_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = {
        "source_prompt": ['def one():\n    """One."""\n'] * 3,
        "prompt": ["Complete"] * 3,
        "entry_point": ["one"] * 3,
        "test": ["def check(f):\n    assert f() == 1\n"] * 3,
    }
    texts: list[str | None] = ["    return 1", "    return 2", "    import os; os._exit(0)"]
    out = finished_run(tmp_path / "out", [shard], [texts], planned=1)
    assert call(str(out), "--task", "humaneval") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("programs run confined by: ")
    found = json.loads(printed[-1])
    assert found["num_correct"] == 1
    assert found["wrong"] == {"AssertionError": 1, "ended before its tests": 1}


def test_a_row_that_hangs_or_kills_its_worker_costs_itself() -> None:
    """9^9^9^9 as an integer takes its process all there is, where no signal reaches it."""
    pytest.importorskip("math_verify", reason="math-verify is not installed (extra eval)")
    texts = ["\\boxed{\\frac12}", "\\boxed{9^{9^{9^{9}}}}", "\\boxed{\\frac12}"]
    answers = [Answer(index, text, "0.5", {}) for index, text in enumerate(texts)]
    scores = dict(score_answers("math500", answers, 1, row_seconds=3))
    assert str(scores[1].reason).startswith(("scoring took too long", "scoring died"))
    assert scores[0].correct
    assert scores[2].correct


def test_an_error_of_a_scorer_costs_its_row() -> None:
    answers = [Answer(0, "text", "check", {}), Answer(1, "text", "check", {"entry_point": None})]
    scores = dict(score_answers("humaneval", answers, 2))
    assert all("scoring failed" in str(score.reason) for score in scores.values())


def test_workers_end_with_the_pool() -> None:
    answers = (Answer(index, "#### 1", "1", {}) for index in range(10))
    # Other tests may have left children of their own in this process.
    before = set(psutil.Process().children(recursive=True))
    scores = score_answers("word-problems", answers, 2)
    assert next(scores)[1].correct
    workers = set(psutil.Process().children(recursive=True)) - before
    assert len(workers) >= 2
    scores.close()
    assert not [process for process in workers if process.is_running()]


SHADOWS = [
    "random", "pipeline", "numpy", "json", "lrd", "jobs", "pickle", "socket", "typing", "enum",
    "types", "tempfile", "subprocess", "signal", "resource", "ctypes", "struct", "sitecustomize",
]  # fmt: skip
"""Names of modules that a worker or a sandbox imports, or that Python looks for at its start."""


@pytest.mark.parametrize("name", SHADOWS)
def test_workers_import_nothing_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Neither as `python -m` nor a PYTHONPATH of the user's would have it."""
    (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong file')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ((_, score),) = score_answers("word-problems", [Answer(0, "#### 1", "1", {})], 1)
    assert score.correct, score


@pytest.mark.parametrize("task", ["gsm8k", "humaneval"])
def test_the_command_in_a_folder_of_modules(tmp_path: Path, task: str) -> None:
    for name in SHADOWS:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong file')")
    shard = {
        "prompt": ['def one():\n    """One."""\n'] * 2,
        "answer": ["1"] * 2,
        "entry_point": ["one"] * 2,
        "test": ["def check(f):\n    assert f() == 1\n"] * 2,
    }
    out = finished_run(tmp_path / "out", [shard], [["    return 1", "    return 2"]], planned=1)
    # As the installed command: its own folder, not the working directory, is searched first.
    words = [sys.executable, "-P", "-m", "jobs.cli", "evaluate", str(out), "--task", task]
    environment = {**os.environ, "PYTHONPATH": str(Path(workers.__file__).parents[2])}
    ended = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1])["num_correct"] == 1


WORKER = """
import dataclasses, os, signal, sys, time
from pathlib import Path
{early}
from pipeline.scoring import tasks, workers
real = tasks.TASKS["gsm8k"]
def score(text, reference, example):
    dead = Path("{marks}", text.strip("# "))
    {late}
    return real.score(text, reference, example)
def check():
    {check}
tasks.TASKS["gsm8k"] = dataclasses.replace(real, score=score, check=check)
workers.main()
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has the pool start workers in which something goes wrong: before, in or after the check."""

    def write(early: str = "", check: str = "pass", late: str = "") -> None:
        folder = tmp_path / "modules"
        folder.mkdir()
        text = WORKER.format(early=early, check=check, late=late, marks=folder)
        (folder / "other_worker.py").write_text(text)
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setattr(workers, "MODULE", "other_worker")

    return write


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"early": "import no_such_module"}, "exit code 1, ModuleNotFoundError: No module named"),
        ({"early": "sys.exit('no licence')"}, "exit code 1, no licence"),
        ({"early": "os._exit(3)"}, "before its first row: exit code 3"),
        ({"early": "os.kill(os.getpid(), signal.SIGKILL)"}, "signal 9"),
        ({"early": "import ctypes; ctypes.string_at(0)"}, "signal 11"),
        ({"check": "raise ValueError('no sandbox')"}, "exit code 1, ValueError: no sandbox"),
        ({"check": "print('shared memory is full', file=sys.stderr); os.abort()"}, "signal 6, sha"),
        ({"late": "raise OSError(28, 'No space left on device')"}, "here: OSError: [Errno 28]"),
        ({"late": "import no_such_module"}, "here: ModuleNotFoundError: No module named"),
        ({"early": "print('waits', file=sys.stderr, flush=True); time.sleep(99)"}, "5 s, waits"),
    ],
)
def test_a_scorer_that_dies_is_an_error_of_the_run(
    out: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    worker: Callable[..., None],
    fault: dict[str, str],
    reason: str,
) -> None:
    if "sleep" in fault.get("early", ""):
        monkeypatch.setattr(workers, "START_SECONDS", 5.0)
    worker(**fault)
    assert reason in refused(capsys, str(out), "--task", "gsm8k")
    assert not (out / ".scores").exists()


def test_a_row_that_loses_its_worker_once_is_scored(worker: Callable[..., None]) -> None:
    worker(late="if not dead.exists(): dead.touch(); os.kill(os.getpid(), signal.SIGKILL)")
    answers = [Answer(index, f"#### {index}", str(index), {}) for index in range(3)]
    assert all(score.correct for _, score in score_answers("gsm8k", answers, 2))


@pytest.mark.parametrize("death", ["os._exit(0)", "os.abort()", "sys.exit(4)"])
def test_a_row_that_kills_two_workers_costs_itself(worker: Callable[..., None], death: str) -> None:
    worker(late=f"if dead.name == '1': {death}")
    answers = [Answer(index, f"#### {index}", str(index), {}) for index in range(3)]
    scores = dict(score_answers("gsm8k", answers, 1))
    assert [scores[index].correct for index in range(3)] == [True, False, True]
    assert str(scores[1].reason).startswith("scoring died: ")


def test_a_run_of_no_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard: dict[str, list[Any]] = {"prompt": [], "answer": []}
    out = finished_run(tmp_path / "empty", [shard], [[]], planned=1)
    assert "has no rows to score" in refused(capsys, str(out), "--task", "gsm8k")


def test_an_empty_shard_beside_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards: list[dict[str, list[Any]]] = [
        {"prompt": [], "answer": []},
        {"prompt": ["a"], "answer": ["1"]},
    ]
    out = finished_run(tmp_path / "out", shards, [[], ["#### 1"]], planned=2)
    assert call(str(out), "--task", "gsm8k") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["num_correct"] == 1


@pytest.mark.parametrize("column", ["answer", "entry_point", "test_list"])
def test_a_cell_that_is_no_text_costs_its_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], column: str
) -> None:
    task = {"answer": "gsm8k", "entry_point": "humaneval", "test_list": "mbpp"}[column]
    shard: dict[str, Any] = {
        "prompt": ['def one():\n    """One."""\n'] * 2,
        "answer": ["1", "1"],
        "entry_point": ["one", "one"],
        "test": ["def check(f):\n    assert f() == 1\n"] * 2,
        "test_list": [["assert one() == 1"]] * 2,
    }
    if column == "test_list":
        asserts = pa.array([b"\xff", b"assert one() == 1"]).cast(pa.string(), safe=False)
        shard[column] = pa.ListArray.from_arrays([0, 1, 2], asserts)
    else:
        right = b"1" if column == "answer" else b"one"
        shard[column] = pa.array([b"\xff\xfe", right]).cast(pa.string(), safe=False)
    text = "#### 1" if task == "gsm8k" else "def one():\n    return 1"
    out = finished_run(tmp_path / "out", [shard], [[text, text]], planned=1)
    assert call(str(out), "--task", task) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["num_correct"], found["wrong"]) == (1, {"not UTF-8": 1})
    rows = pq.read_table(out / f".scores/{task}.parquet").to_pylist()
    assert rows[0]["reason"] == f"not UTF-8: column {column}"


def test_missing_math_verify_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "math_verify", None)
    with pytest.raises(ValueError, match=r"lrd-pipeline\[eval\]"):
        math500.require()


def test_wilson() -> None:
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson(80, 100) == pytest.approx((0.711, 0.867), abs=1e-3)
    assert wilson(263, 500) == pytest.approx((0.4822, 0.5694), abs=1e-4)


def test_references_of_the_examples() -> None:
    task = TASKS["word-problems"]
    for row in pq.read_table(EXAMPLES).to_pylist()[:50]:
        score = task.score(row["reference"], row["answer"], row)
        assert (score.correct, score.extracted) == (True, row["answer"])


def prepared(tmp_path: Path, rows: list[dict[str, Any]], *words: str) -> list[dict[str, Any]]:
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "source.parquet")
    assert prepare_call(tmp_path, *words) == 0
    found: list[dict[str, Any]] = pq.read_table(tmp_path / "prompts").to_pylist()
    return found


def prepare_call(tmp_path: Path, *words: str) -> int:
    parser = argparse.ArgumentParser()
    prepare.add_arguments(parser)
    source, output = str(tmp_path / "source.parquet"), str(tmp_path / "prompts")
    return prepare.run(parser.parse_args([*words, source, "--output", output]))


SOLVED = [
    {"question": "What is 1 + 1?", "answer": "1+1=2\n#### 2"},
    {"question": "What is 2 + 2?", "answer": "2+2=4\n#### 4"},
]


def test_prompts_for_chat_models(tmp_path: Path) -> None:
    rows = prepared(tmp_path, [*SOLVED, {"question": None, "answer": "0"}], "--task", "gsm8k")
    assert [list(row) for row in rows] == [["question", "answer", "prompt"]] * 3
    assert rows[0]["prompt"].startswith("What is 1 + 1?\n\nReason step by step.")
    assert rows[0]["answer"] == SOLVED[0]["answer"]
    # The run fails this row alone, by name.
    assert rows[2]["prompt"] is None


def test_prompts_for_base_models(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(SOLVED), tmp_path / "train.parquet")
    words = ["--task", "gsm8k", "--shots", "2", "--exemplars", str(tmp_path / "train.parquet")]
    (row,) = prepared(tmp_path, [{"question": "How?", "answer": "#### 1"}], *words)
    assert row["prompt"] == (
        "Question: What is 1 + 1?\nAnswer: 1+1=2\n#### 2\n\n"
        "Question: What is 2 + 2?\nAnswer: 2+2=4\n#### 4\n\n"
        "Question: How?\nAnswer:"
    )


def test_a_prompt_that_is_there_is_kept(tmp_path: Path) -> None:
    source = {"prompt": "def f():\n    '''F.'''\n", "entry_point": "f", "test": "t"}
    (row,) = prepared(tmp_path, [source], "--task", "humaneval")
    assert row["source_prompt"] == source["prompt"]
    assert "```python\ndef f():" in row["prompt"]


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_task_makes_both_prompts(task: Any) -> None:
    names = {*task.prompt_columns, *task.exemplar_columns}
    row = {name: ["assert f()"] if name == "test_list" else f"<{name}>" for name in names}
    shown = task.open_prompt(row) + task.exemplar_answer(row)
    for name in task.exemplar_columns:
        assert (f"<{name}>" if name != "test_list" else "assert f()") in shown
    assert all("<" in text for text in (task.chat_prompt(row), task.open_prompt(row)))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--task", "chess"], "choose gsm8k"),
        (["--task", "mbpp"], "no column text, test_list for task mbpp"),
        (["--task", "gsm8k", "--shots", "2"], "--exemplars"),
        (["--task", "gsm8k", "--shots", "-1"], "--shots"),
        (["--task", "gsm8k", "--exemplars", "x.parquet"], "--shots"),
        (["--task", "gsm8k", "--shots", "9", "--exemplars", "{source}"], "has 2 rows"),
        (["--task", "gsm8k", "--shots", "1", "--exemplars", "/none.parquet"], "/none.parquet"),
        (["--shots", "1"], "--task"),
    ],
)
def test_prepare_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    pq.write_table(pa.Table.from_pylist(SOLVED), tmp_path / "source.parquet")
    words = [word.format(source=tmp_path / "source.parquet") for word in words]
    assert prepare_call(tmp_path, *words) == 2
    line = capsys.readouterr().err
    assert expected in line
    assert len(line.strip().splitlines()) == 1
    assert not (tmp_path / "prompts").exists()
