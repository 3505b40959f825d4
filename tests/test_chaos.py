"""The chaos run, short, and the three kinds of poison in one run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from chaos import Run
from helpers import s3
from helpers.shards import distinct_questions, write_shards

ROOT = Path(__file__).resolve().parents[1]
SLOTS_AT_RISK = {"replica": 4, "node": 8, "driver": 8}
"""Rows in slots when one of the kind dies; a driver also loses what it had not flushed."""


def chaos(*words: str, script: str = "chaos.py") -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / script), *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def judge(found: dict[str, object], num_kills: int) -> None:
    kills = found["kills"]
    assert isinstance(kills, dict)
    assert sum(kills.values()) >= num_kills
    assert (found["lost"], found["duplicated"], found["identical"]) == (0, 0, True)
    # Beside the slots, what a driver decoded since its last flush, a second or so before.
    at_risk = sum(SLOTS_AT_RISK[kind] * count for kind, count in kills.items())
    assert found["rows_recomputed"] <= at_risk + 120 * kills["driver"]


def test_a_last_driver_that_kills_itself_is_counted(tmp_path: Path) -> None:
    """Rows that it had not flushed are decoded again, as after any other kill."""
    run = Run(tmp_path / "in", tmp_path / "out", "nowhere", tmp_path / "log")
    run._command = [
        "bash",
        "-c",
        f"test -e {tmp_path}/died || {{ touch {tmp_path}/died; kill -9 $$; }}",
    ]
    assert run.finish([]) == 1
    run.process = None
    assert run.finish([]) == 0


@pytest.mark.timeout(400)
def test_a_few_kills_change_no_bit() -> None:
    """Among four samples a prompt, with settings and templates of the prompt's own."""
    words = ("--kills", "4", "--rows", "50", "--shards", "5", "--num-samples", "4", "--seed", "3")
    found = chaos(*words, "--row-settings")
    judge(found, 3)
    assert found["rows"] == 200


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("preset", ["wino", "saber"])
def test_a_few_kills_change_no_bit_where_positions_open_again(preset: str) -> None:
    words = ("--kills", "4", "--rows", "120", "--shards", "5", "--seed", "5", "--preset", preset)
    judge(chaos(*words), 3)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_dozen_kills_change_no_bit() -> None:
    judge(chaos("--kills", "12", "--rows", "600", "--shards", "12", "--seed", "3"), 10)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_kills_change_no_bit() -> None:
    judge(chaos("--kills", "100"), 100)


@s3.needs_server
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kills_and_failing_requests_on_an_object_store_change_no_bit() -> None:
    found = chaos("--kills", "10", script="chaos_s3.py")
    judge(found, 10)
    assert found["verified"]
    failed, requests = found["failed"], found["requests"]
    assert isinstance(failed, dict)
    assert set(failed) == set(s3.FAILURES)
    assert isinstance(requests, int)
    assert 0.03 < sum(failed.values()) / requests < 0.07


def poisoned(tmp_path: Path, num_rows: int) -> tuple[int, pd.DataFrame, str]:
    """A run over rows of which three are poison: exit code, results, what was printed."""
    questions = distinct_questions(num_rows, seed=21)
    poison = {num_rows // 5: ("kill", "Zarathustra"), num_rows // 2: ("hang", "Yggdrasil")}
    poison[num_rows - 7] = ("nan", "Xanthippe")
    for row, (_, name) in poison.items():
        questions[row] = f"{name} has 12 apples and buys 7 more. How many apples does {name} have?"
    write_shards(tmp_path / "in", questions, num_shards=4)
    rules = [
        {"at": "replica.place", "match": f"*{name}*", "do": what} for what, name in poison.values()
    ]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [
            *(sys.executable, "-m", "jobs.generate", "--gen-length", "32"),
            *("--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")),
            *("--replicas", "2", "--cpus-per-replica", "1", "--slots", "8"),
            *("--hang-seconds", "3", "--max-attempts", "2"),
        ],
        env={**os.environ, "LRD_FAULTS": json.dumps(rules), "PYTHONPATH": path},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    frame = pd.read_parquet(tmp_path / "out" / "data")
    assert frame["prompt"].tolist() == questions
    assert (frame["status"] == "failed").to_numpy().nonzero()[0].tolist() == sorted(poison)
    reasons = frame["error"].dropna().tolist()
    assert "2 of them with this row alone" in reasons[0]
    assert "no pass ended within" in reasons[1]
    assert reasons[2] == "non-finite logits in pass 1"
    return done.returncode, frame, done.stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_three_poison_rows_cost_themselves(tmp_path: Path) -> None:
    code, frame, printed = poisoned(tmp_path, 200)
    assert code == 3
    assert "200 rows, 3 failed" in printed
    assert frame["output_text"].notna().sum() == 197


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_poison_rows_in_two_thousand(tmp_path: Path) -> None:
    code, frame, _ = poisoned(tmp_path, 2000)
    assert code == 3
    assert frame["output_text"].notna().sum() == 1997
