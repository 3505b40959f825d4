"""Several samples a prompt: pass@k, the majority vote, and their intervals over prompts."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.commands import parse
from helpers.sampled_run import Columns, write_sampled_run

from jobs import evaluate, publish, report
from pipeline.rows import prompt_id, row_id
from pipeline.scoring.summary import share_over_prompts, share_samples, wilson
from pipeline.scoring.tasks import TASKS
from pipeline.scoring.votes import majority, pass_at_k


@pytest.mark.parametrize("n", range(1, 7))
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(n: int) -> None:
    for correct in range(n + 1):
        samples = [True] * correct + [False] * (n - correct)
        for k in range(1, n + 1):
            draws = list(combinations(samples, k))
            share = Fraction(sum(map(any, draws)), len(draws))
            assert pass_at_k(n, correct, k) == pytest.approx(float(share), abs=1e-12)
        for k in (0, n + 1):
            with pytest.raises(ValueError, match=f"pass@{k} of {n} samples"):
                pass_at_k(n, correct, k)


@pytest.mark.parametrize(
    ("task", "answers", "wins"),
    [
        ("word-problems", ["1", "2", "2"], [0, 1, 1]),
        ("word-problems", ["1", "2"], [1, 0]),
        ("word-problems", [None, None, "3"], [0, 0, 1]),
        ("word-problems", [None, None], [0, 0]),
        ("word-problems", ["7", "07"], [1, 0]),
        ("gsm8k", ["5", "1,000", "1000.0"], [0, 1, 1]),
        ("gsm8k", ["1/2", "0.5", "3"], [1, 1, 0]),
        ("math500", [r"\frac12", r"\dfrac{1}{2}", "3", "3", r"\tfrac12"], [1, 1, 0, 0, 1]),
        ("math500", ["x = 1", "x=1", "2"], [1, 1, 0]),
        ("word-sheets", ["40 12", "40 12", "40 -"], [1, 1, 0]),
    ],
)
def test_the_majority(task: str, answers: list[str | None], wins: list[int]) -> None:
    comparable = TASKS[task].comparable
    assert comparable is not None
    assert majority(answers, comparable) == list(map(bool, wins))


def test_programs_cannot_be_compared() -> None:
    found = {name for name, task in TASKS.items() if task.comparable is None}
    assert found == {"humaneval", "mbpp"}


def test_the_interval_is_wilsons_where_a_prompt_is_one_trial() -> None:
    for right, n in ((0, 7), (3, 7), (7, 7), (40, 100)):
        share = share_over_prompts([1.0] * right + [0.0] * (n - right), 1)
        assert (share.low, share.high) == pytest.approx(wilson(right, n))
        assert share.share == right / n


def test_samples_of_a_prompt_are_no_independent_trials() -> None:
    """Prompts that are all right or all wrong: 4 samples say no more than one."""
    alike = share_over_prompts([1.0] * 20 + [0.0] * 30, 4)
    assert (alike.low, alike.high) == pytest.approx(wilson(20, 50))
    same = share_over_prompts([0.5] * 50, 4)
    assert (same.low, same.high) == pytest.approx(wilson(100, 200)), "no more than all rows"


@pytest.mark.parametrize("spread", [0.3, 1.0, 10.0])
@pytest.mark.parametrize("mean", [0.2, 0.7])
def test_the_interval_covers_the_truth(mean: float, spread: float) -> None:
    """Prompts of different difficulty (beta), 8 samples each: 95 % of intervals hold the mean."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        difficulty = rng.beta(mean * spread, (1 - mean) * spread, 60)
        values = rng.binomial(8, difficulty) / 8
        share = share_over_prompts(values.tolist(), 8)
        held += share.low <= mean <= share.high
    assert 0.925 <= held / 1000 <= 0.98


def test_a_prompts_id() -> None:
    assert prompt_id("00003-00000042-2") == "00003-00000042" == prompt_id("00003-00000042")
    large = row_id(1234567, 1 << 40)
    assert prompt_id(large) == large == prompt_id(f"{large}-a10")


# The command.


def run(out: Path, task: str = "word-problems", *flags: str) -> int:
    return evaluate.run(parse(evaluate, str(out), "--task", task, "--workers", "1", *flags))


def test_samples_are_summed_up_by_prompt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = write_sampled_run(tmp_path / "out", num_samples=5)
    assert run(out) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    scores = pd.read_parquet(out / ".scores/word-problems.parquet")
    prompts = scores.groupby(scores["row_id"].map(prompt_id), sort=False)
    samples = found["samples"]
    assert (samples["num_samples"], samples["num_prompts"]) == (5, 18)
    assert list(samples["pass_at"]) == ["1", "2", "4"]
    for k, share in samples["pass_at"].items():
        expected = [
            1 - math.comb(5 - c, int(k)) / math.comb(5, int(k)) for c in prompts["correct"].sum()
        ]
        assert share["share"] == pytest.approx(np.mean(expected))
        assert share["low"] < share["share"] <= share["high"]
    one = samples["pass_at"]["1"]
    assert found["accuracy"] == pytest.approx(one["share"])
    assert (found["accuracy_low"], found["accuracy_high"]) == (one["low"], one["high"])
    votes = []
    for _, group in prompts:
        answers = group["extracted"].dropna()
        winner = answers.map(answers.value_counts(sort=False)).idxmax() if len(answers) else None
        votes.append(winner is not None and bool(group["correct"][winner]))
    assert samples["majority"]["share"] == pytest.approx(np.mean(votes))
    assert samples["no_majority"] is None
    assert "5 samples of each of 18 prompts:" in lines
    assert sum(line.startswith("  pass@") for line in lines) == 3
    assert any(line.startswith("  majority of 5: ") for line in lines)


def test_one_sample_a_prompt_has_no_such_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = write_sampled_run(tmp_path / "out", num_samples=1)
    assert run(out) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert "samples" not in json.loads(last)
    assert not [line for line in lines if "pass@" in line]


def test_code_has_pass_at_k_and_no_majority(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(shard: int, columns: Columns) -> Columns:
        programs = ["def one(): return 1", "def one(): return 2"] * 2
        return {
            **columns,
            "status": pa.array(["ok"] * 4),
            "error": pa.nulls(4, pa.string()),
            "output_text": pa.array(programs),
            "test_list": pa.array([["assert one() == 1"]] * 4),
        }

    out = write_sampled_run(tmp_path / "out", 2, 1, 2, change=change)
    assert run(out, "mbpp") == 0
    *lines, last = capsys.readouterr().out.splitlines()
    samples = json.loads(last)["samples"]
    assert [share["share"] for share in samples["pass_at"].values()] == [0.5, 1.0]
    assert samples["majority"] is None
    assert "programs, which cannot be compared" in samples["no_majority"]
    assert any("no majority vote: answers of mbpp are programs" in line for line in lines)


def test_prompts_of_unequal_samples_use_the_fewest() -> None:
    ids = ["00000-00000000-0", "00000-00000000-1", "00000-00000000-2", "00000-00000001-0"]
    columns = {"row_id": ids, "correct": [True, False, False, True], "extracted": list("1221")}
    found = share_samples(TASKS["word-problems"], pa.table(columns))
    assert found is not None
    assert (found.num_samples, list(found.pass_at)) == (1, [1])
    assert found.pass_at[1].share == pytest.approx((1 / 3 + 1) / 2)


def with_passes(shard: int, columns: Columns) -> Columns:
    """Two passes a row, for the report's curves."""
    n = len(columns["row_id"])
    return {
        **columns,
        "num_forwards": pa.array([2] * n, pa.int32()),
        "kl_trace": pa.array([[None, 0.5]] * n, pa.list_(pa.float32())),
        "entropy_trace": pa.array([[1.0, 0.5]] * n, pa.list_(pa.float32())),
        "commit_step": pa.array([[1, 2] * 4] * n, pa.list_(pa.int32())),
    }


def test_card_and_report_show_them(tmp_path: Path) -> None:
    out = write_sampled_run(tmp_path / "out", num_samples=4, change=with_passes)
    assert run(out) == 0
    found = json.loads(
        pq.read_metadata(out / ".scores/word-problems.parquet").metadata[b"lrd.evaluation"]
    )
    shares = [*found["samples"]["pass_at"].values(), found["samples"]["majority"]]
    assert publish.run(parse(publish, str(out), "--to", str(tmp_path / "published"))) == 0
    card = (tmp_path / "published/README.md").read_text()
    page = tmp_path / "report.html"
    assert report.run(parse(report, str(out), "--output", str(page))) == 0
    html = page.read_text()
    for name, share in zip(["pass@1", "pass@2", "pass@4", "majority of 4"], shares, strict=True):
        shown = f"{share['share']:.1%}", f"{share['low']:.1%} to {share['high']:.1%}"
        assert f"| `word-problems` | {name} | {shown[0]} | {shown[1]} |" in card
        assert f"<td>{name}</td><td class=number>{shown[0]}</td><td>{shown[1]}</td>" in html
