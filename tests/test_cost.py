"""`lrd plan --price-per-gpu-hour`: the estimate and its range, by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import MadeRun, with_column
from helpers.synthetic_run import DECODING
from test_plan import args, source

from jobs import plan
from pipeline.config import RunConfig
from pipeline.inspection.cost import PastRows, cost_of, past_rows, relative_paces
from pipeline.inspection.plan import Duration
from pipeline.output.run_folder import EVENTS
from pipeline.output.statistics import Bucket, SlotCounts, Spread

__all__ = ["source"]


def shard(**buckets: tuple[int, float]) -> SlotCounts:
    """Rows and seconds of each bucket."""
    found = {int(name[1:]): Bucket(n, 0, seconds) for name, (n, seconds) in buckets.items()}
    return SlotCounts(found)


@pytest.mark.parametrize(
    ("shards", "paces"),
    [
        ([shard(b8=(4, 8.0)), shard(b8=(4, 12.0))], [0.8, 1.2]),
        # A shard of slow buckets is not slower: 2 s and 10 s a row in both.
        ([shard(b8=(9, 18.0), b64=(1, 10.0)), shard(b8=(1, 2.0), b64=(9, 90.0))], [1.0, 1.0]),
        # 2.5 s a row in bucket 8: 4 rows of it should take 10 s and took 12.
        ([shard(b8=(4, 12.0)), shard(b8=(4, 8.0)), shard()], [1.2, 0.8]),
        ([], []),
    ],
)
def test_paces_of_shards_by_hand(shards: list[SlotCounts], paces: list[float]) -> None:
    assert relative_paces(shards) == pytest.approx(paces)


def made(tmp_path: Path, device: str | None = "cuda", num_shards: int = 2) -> MadeRun:
    """Shards of four rows of 3 passes and 3 tokens: of 0.5 s each in the first, 1.5 s in the
    second."""
    run = MadeRun(tmp_path / "past", num_shards=num_shards).begin().whole().end()
    if num_shards > 1:
        run.rewrite(1, lambda table: with_column(table, "seconds", [1.5] * 4))
    began = {"time": "2026-01-02T03:04:05Z", "event": "driver started", "device": device}
    (run.output / EVENTS).write_text(json.dumps(began) + "\n")
    return run


def test_the_rows_of_a_past_run(tmp_path: Path) -> None:
    found = past_rows(made(tmp_path).storage)
    assert found.passes == {3: 8}
    assert found.seconds == {0.5: 4, 1.5: 4}
    assert (found.num_ok, found.num_tokens) == (8, 24)
    assert found.paces == pytest.approx([0.5, 1.5])
    assert dict(found.spreads) == {"passes": Spread(3, 3, 3), "seconds": Spread(0.5, 1.5, 1.5)}


def config(**changes: Any) -> RunConfig:
    values = {"input": "i", "output": "o", "decoding": DECODING, "gpus_per_replica": 0.5}
    return RunConfig(**{**values, **changes})


def test_an_estimate_by_hand(tmp_path: Path) -> None:
    """2,000 rows in 3,600 s on 4 half GPUs: 2 GPU-hours at 3.00 are 6.00; 3 tokens a row."""
    run = made(tmp_path)
    duration = Duration(3600.0, 2000.0, 4, "it", [])
    found = cost_of(config(), duration, str(run.output), past_rows(run.storage), 3.0)
    assert not isinstance(found, str)
    assert found.cost.gpu_hours == 2.0
    assert found.cost.total == 6.0
    assert found.cost.thousand_rows == 3.0
    assert found.cost.million_tokens == pytest.approx(1e6 * 6 / 6000)
    assert (found.low, found.high) == pytest.approx((0.5, 1.5))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c, d: (config(device="cpu"), d), "--device cpu uses no GPU"),
        (lambda c, d: (c, "unknown: nothing was decoded"), "unknown, as the time is"),
    ],
)
def test_why_there_is_no_estimate(
    change: Callable[[Any, Any], Any], reason: str, tmp_path: Path
) -> None:
    run = made(tmp_path)
    changed, duration = change(config(), Duration(1.0, 1.0, 1, "it", []))
    assert reason in str(cost_of(changed, duration, str(run.output), PastRows(), 1.0))


@pytest.mark.parametrize("device", ["cpu", None])
def test_the_pace_of_cpus_says_nothing_of_gpus(device: str | None, tmp_path: Path) -> None:
    run = made(tmp_path, device)
    found = cost_of(config(), Duration(1.0, 1.0, 1, "it", []), str(run.output), PastRows(), 1.0)
    assert "was not decoded on GPUs" in str(found)


def test_the_plan_says_what_rows_will_cost(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """37 rows of 1 s in 2 slots that are busy, of one replica: 18.5 s, 0.51 GPU-hours at 100."""
    run = made(tmp_path)
    words = ("--like", str(run.output), "--replicas", "1")
    assert plan.run(args(source, *words, "--price-per-gpu-hour", "100")) == 0
    printed = capsys.readouterr().out
    assert "about 18 s for 37 rows on 1 replicas" in printed
    assert "rows      there, each: passes p50 3, p90 3, p99 3; seconds p50 0.5, p90 1.5" in printed
    total = 18.5 / 3600 * 100
    assert (
        f"cost      about {total:.2f} for 0.01 GPU-hours at 100.00; a thousand rows "
        f"{1000 * total / 37:.2f}, a million effective tokens {1e6 * total / 111:,.2f}\n"
    ) in printed
    assert f"          {total * 0.5:.2f} to {total * 1.5:.2f} if all shards are like" in printed
    assert plan.run(args(source, *words)) == 0
    assert "cost" not in capsys.readouterr().out
    assert plan.run(args(source, *words, "--price-per-gpu-hour", "0")) == 2
    assert "--price-per-gpu-hour is 0" in capsys.readouterr().err


def test_one_shard_gives_no_range(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = made(tmp_path, num_shards=1)
    words = ("--like", str(run.output), "--price-per-gpu-hour", "100")
    assert plan.run(args(source, *words)) == 0
    assert "no range: it takes two written shards" in capsys.readouterr().out
