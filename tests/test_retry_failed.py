"""`lrd retry-failed`: failures are decoded again, successes stay as they are, to the last bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from helpers.commands import parse, wait_for
from helpers.runs import MadeRun
from helpers.shards import OF_THE_RUN, distinct_questions, write_shards

from jobs import generate, plan, retry_failed, verify
from jobs.flags import run_config
from pipeline.faults import VARIABLE
from pipeline.replicas.deaths import RunStoppedError
from pipeline.run import generate as run_generate

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("Quetzal", "Ratatoskr")
FLAGS = ["--gen-length", "32", "--replicas", "1", "--cpus-per-replica", "1", "--slots", "4"]


def write_prompts(folder: Path, num_rows: int = 18, num_shards: int = 3) -> Path:
    """Word problems; two names stand in three of them each, one of each in every shard."""
    questions = distinct_questions(num_rows, seed=8)
    for first in range(0, num_rows, num_rows // num_shards):
        for row, name in zip((first + 1, first + 4), NAMES, strict=True):
            questions[row] = f"{name} has 2 apples. How many is that?"
    return write_shards(folder, questions, num_shards)


def make_nan(*names: str) -> str:
    rules = [{"at": "replica.place", "match": f"*{name}*", "do": "nan"} for name in names]
    return json.dumps(rules)


def read(output: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted((output / "data").iterdir()))


@pytest.mark.usefixtures("ray_session")
@pytest.mark.slow
def test_failures_are_replaced_and_successes_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = write_prompts(tmp_path / "in"), tmp_path / "out"
    words = ["--input", str(source), "--output", str(output), *FLAGS]
    monkeypatch.setenv(VARIABLE, make_nan(*NAMES))
    assert generate.run(parse(generate, *words)) == 3
    before = read(output)
    fine = pc.equal(before["status"], "ok")
    assert before.num_rows - pc.sum(fine).as_py() == 6

    # One name still fails, and the retry is interrupted after its first row.
    monkeypatch.setenv(VARIABLE, make_nan(NAMES[1]))
    drivers: list[Any] = []

    def stop_early(progress: Any) -> None:
        if progress.num_done > progress.num_done_before:
            drivers[0].stop()

    config = retry_failed.run_config(parse(retry_failed, str(output), "--slots", "1"))
    with pytest.raises(RunStoppedError):
        run_generate(config, stop_early, drivers.append, retry_failed=True)
    kept = list((output / ".run" / "segments").rglob("*.parquet"))
    assert kept
    assert verify.run(parse(verify, str(output), "--partial")) == 0

    assert retry_failed.run(parse(retry_failed, str(output))) == 3
    halfway = read(output)
    assert halfway.filter(fine).equals(before.filter(fine))
    names = halfway.filter(pc.equal(halfway["status"], "failed"))["prompt"].to_pylist()
    assert len(names) == 3
    assert all(NAMES[1] in name for name in names)

    monkeypatch.delenv(VARIABLE)
    assert retry_failed.run(parse(retry_failed, str(output), "--replicas", "2")) == 0
    after = read(output)
    done = pc.equal(halfway["status"], "ok")
    assert after.filter(done).equals(halfway.filter(done))
    assert set(after["status"].to_pylist()) == {"ok"}
    assert not list((output / ".run" / "segments").rglob("*.parquet"))

    # As a run without faults decodes them, and by the same settings.
    clean = tmp_path / "clean"
    assert generate.run(parse(generate, *words[:2], "--output", str(clean), *FLAGS)) == 0
    assert read(clean).drop_columns(OF_THE_RUN).equals(after.drop_columns(OF_THE_RUN))
    capsys.readouterr()
    assert verify.run(parse(verify, str(output))) == 0
    assert plan.run(parse(plan, *words)) == 0
    printed = capsys.readouterr().out
    assert "whole: 3 of 3 shards, 18 rows, 0 failed" in printed
    assert "a run with this fingerprint; 18 of 18 rows done" in printed


@pytest.fixture
def made(tmp_path: Path) -> MadeRun:
    """A run with the settings of a real one, and a failed row in each shard."""
    run = MadeRun(tmp_path).begin().whole(failed=[0]).end()
    words = ["--input", str(tmp_path / "in"), "--output", "elsewhere", *FLAGS]
    change_manifest(run, run_config(parse(generate, *words)).model_dump())
    return run


def change_manifest(run: MadeRun, settings: dict[str, Any]) -> None:
    path = run.output / ".run" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["settings"].update(settings)
    manifest["fingerprint"]["dtype"] = "bfloat16"
    path.write_text(json.dumps(manifest))


def test_settings_are_the_manifests_under_the_flags(made: MadeRun) -> None:
    output = str(made.output)
    config = retry_failed.run_config(
        parse(retry_failed, output, "--replicas", "none", "--max-attempts", "5")
    )
    assert config.output == output
    assert (config.replicas, config.slots, config.max_attempts) == (None, 4, 5)
    assert config.decoding.gen_length == 32
    assert config.dtype == "bfloat16", "auto may mean another one here"


@pytest.mark.parametrize("flag", ["--gen-length", "--dtype", "--prompt-column", "--truncation"])
def test_what_results_depend_on_has_no_flag(made: MadeRun, flag: str) -> None:
    with pytest.raises(SystemExit):
        parse(retry_failed, str(made.output), flag, "1")


def test_an_input_that_is_not_there(made: MadeRun, capsys: pytest.CaptureFixture[str]) -> None:
    change_manifest(made, {"input": "prompts/of/then"})
    assert retry_failed.run(parse(retry_failed, str(made.output))) == 2
    line = capsys.readouterr().err
    assert line.startswith("lrd retry-failed: prompts/of/then: the run's prompts are not there")
    assert "--input" in line
    assert len(line.splitlines()) == 1
    words = [str(made.output), "--input", str(made.folder / "in")]
    assert retry_failed.run_config(parse(retry_failed, *words)).input == words[2]


def test_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert retry_failed.run(parse(retry_failed, str(tmp_path))) == 2
    assert "holds no run" in capsys.readouterr().err


def lives(process: psutil.Process) -> bool:
    """Whether it is there and does anything."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
def test_the_second_signal_leaves_at_once_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """While storage hangs, so that the first signal cannot have its effect."""
    source, output, log = write_prompts(tmp_path / "in"), tmp_path / "out", tmp_path / "log"
    here = {"at": "storage.write", "match": ".run/segments/*"}
    rules = [{**here, "do": "log", "path": str(log)}, {**here, "do": "slow", "seconds": 600}]
    environment = {**os.environ, VARIABLE: json.dumps(rules), "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    places = ["--input", str(source), "--output", str(output), "--address", "local"]
    words = [*places, "--flush-seconds", "0.1", *FLAGS]
    with (tmp_path / "stderr").open("wb") as stderr:
        driver = psutil.Popen(
            [sys.executable, "-m", "jobs.generate", *words],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
    try:
        said = tmp_path / "stderr"
        wait_for(log.exists, 120, said.read_text)
        family = driver.children(recursive=True)
        assert any("raylet" in process.name() for process in family)
        driver.send_signal(signal.SIGINT)
        wait_for(lambda: "storing finished rows" in said.read_text(), 20, said.read_text)
        assert driver.poll() is None
        driver.send_signal(signal.SIGTERM)
        assert driver.wait(10) == 75
        assert "ended at once" in said.read_text()
        wait_for(lambda: not any(map(lives, family)), 60, lambda: list(filter(lives, family)))
    finally:
        if driver.poll() is None:
            for process in [*driver.children(recursive=True), driver]:
                process.kill()
