"""`lrd plan`: what is foretold of prompts, memory and time, and that nothing is done about it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from helpers import checkpoints
from helpers.commands import parse
from helpers.runs import MadeRun, good

import lrd
from jobs import plan
from jobs.flags import run_config
from lrd import DecodingConfig
from lrd.memory import memory_need, weight_bytes
from lrd.models.checkpoint import LoadedModel
from lrd.models.families import family_of
from lrd.models.registry import TINY
from lrd.models.transformer import Transformer
from lrd.prompts import encode_prompt
from pipeline.input.buckets import choose_lengths, fitting
from pipeline.inspection.pace import Pace, pace_of, seconds_for
from pipeline.inspection.plan import check_output, forecast, rows_left
from pipeline.observe.eta import ProgressTracker
from pipeline.output.ledger import Ledger, Plan
from pipeline.output.open_shard import OpenShard
from pipeline.preflight import Checked, check, fingerprint_of
from pipeline.rows import Bucket, Prompt, results_batch
from pipeline.storage.storage import Storage

QUESTIONS: list[Any] = [f"How many apples are there? {'One more. ' * (n % 5)}" for n in range(40)]
QUESTIONS[3], QUESTIONS[4], QUESTIONS[30] = None, "  ", "How many? " * 400
FLAGS = ("--gen-length", "64")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two shards of 20 prompts: one null, one blank, one too long for the embedded model."""
    (tmp_path / "in").mkdir()
    for number in range(2):
        part = QUESTIONS[number * 20 : number * 20 + 20]
        table = pa.table({"prompt": pa.array(part, pa.string()), "id": range(20)})
        pq.write_table(table, tmp_path / "in" / f"{number}.parquet")
    return tmp_path / "in"


def args(source: Path, *words: str) -> argparse.Namespace:
    output = str(source.parent / "out")
    return parse(plan, "--input", str(source), "--output", output, *FLAGS, *words)


def checked(source: Path, *words: str) -> tuple[Checked, Any]:
    config = run_config(args(source, *words))
    return check(config), config


def begin(source: Path, *words: str) -> Ledger:
    """The run that these settings make, with nothing done yet."""
    run, config = checked(source, *words)
    fingerprint = fingerprint_of(config, run.files, "float32")
    ledger = Ledger(run.output, Plan(run.files, fingerprint, config.model_dump()))
    ledger.begin()
    return ledger


def test_prompts_are_foretold(source: Path) -> None:
    run, config = checked(source)
    found = forecast(run, config)
    assert (found.num_rows, found.num_seen) == (40, 40)
    assert found.refused["the prompt is null"] == 1
    assert found.refused["the prompt is empty"] == 1
    assert found.refused.total() == 3
    assert any("N tokens, N fit" in reason for reason in found.refused)
    assert found.lengths.total() == 37
    model = lrd.load_model("tiny")
    lengths = [len(encode_prompt(model, q)) for q in QUESTIONS if q and q.strip()]
    fitted = [n for n in lengths if n + 64 <= model.max_length]
    assert sorted(found.lengths.elements()) == sorted(fitted)
    buckets = choose_lengths([min(n, model.max_length - 64) for n in lengths], 6)
    held = [fitting(n, buckets) for n in fitted]
    assert {bucket: rows.rows for bucket, rows in found.buckets.items()} == {
        (length, 64): held.count(length) for length in set(held)
    }
    columns = sum(h or 0 for h in held)
    assert found.padding() == pytest.approx(1 - sum(fitted) / columns)
    wide = columns + 64 * 37
    assert found.padding(canvases=True) == pytest.approx(1 - (sum(fitted) + 64 * 37) / wide)


def test_a_sample_stands_for_the_rest(source: Path) -> None:
    run, config = checked(source)
    found = forecast(run, config, sample=2)
    assert (found.num_rows, found.num_seen, found.lengths.total()) == (40, 4, 4)
    assert sum(rows_left(found, None).values()) == pytest.approx(40)


@pytest.mark.usefixtures("no_ray")
def test_the_report(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.run(args(source)) == 0
    text = capsys.readouterr().out
    assert "40 rows in 2 shards" in text
    assert "refused   3 rows" in text
    assert "nothing there yet" in text
    assert "time      unknown" in text
    assert "weights in bfloat16" in text
    assert not ray.is_initialized()
    assert not (source.parent / "out").exists()
    assert plan.run(args(source, "--sample", "1")) == 0
    assert "sampled   2 rows (5.0%)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--sample", "0"], "--sample is 0"),
        (["--gen-length", "600"], "gen_length 600"),
        (["--like", "nowhere"], "nowhere: no such folder"),
        (["--prompt-column", "question"], "'question'"),
    ],
)
def test_bad_calls(
    source: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    assert plan.run(args(source, *words)) == 2
    line = capsys.readouterr().err
    assert expected in line
    assert len(line.strip().splitlines()) == 1


def test_what_is_there_already(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = begin(source)
    ledger.open(OpenShard(1, checked(source)[0].inputs.read("1.parquet")))
    rows = [good(1, n, kl_trace=[None], entropy_trace=[1.0], bucket=24) for n in range(10)]
    ledger.add(1, results_batch(rows))
    ledger.end()
    assert plan.run(args(source)) == 0
    text = capsys.readouterr().out
    assert "a run with this fingerprint; 10 of 40 rows done, 0 failed, 0 of 2 shards" in text
    assert "weights in float32" in text, "as the run that is there has it"
    assert "has decoded no row yet" in text
    run, config = checked(source)
    found = forecast(run, config)
    left = rows_left(found, check_output(run, config, "float32"))
    # All 18 of shard 0 that can be decoded, half of the 19 of shard 1.
    assert sum(left.values()) == pytest.approx(18 + 19 / 2)


def test_another_runs_output_is_named(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(source).end()
    assert plan.run(args(source, "--r-f", "0.31", "--slots", "3")) == 2
    printed = capsys.readouterr()
    assert "decoding.r_f was 0.15, is 0.31" in printed.err
    assert "slots" not in printed.err
    assert "40 rows in 2 shards" in printed.out


def test_a_run_to_be_like_that_is_not_there(
    source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pipeline.inspection.plan.forecast", lambda *_: pytest.fail("the input was tokenised")
    )
    assert plan.run(args(source, "--like", str(source.parent / "nowhere"))) == 2
    printed = capsys.readouterr()
    assert "nowhere: no such folder" in printed.err
    assert printed.out == ""


def test_an_output_that_is_no_run(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source.parent / "out").mkdir()
    (source.parent / "out" / "notes.txt").write_text("mine")
    assert plan.run(args(source)) == 2
    assert "is not empty and holds no run" in capsys.readouterr().err


def test_time_is_reckoned_bucket_by_bucket() -> None:
    pace = Pace({16: 1.0, 48: 4.0}, busy_slots=8, num_replicas=2, source="")
    assert seconds_for({16: 10, 48: 5}, pace, None) == pytest.approx(30 / 8)
    assert seconds_for({20: 10, 64: 5}, pace, None) == pytest.approx(30 / 8)
    assert seconds_for({16: 10, 48: 5}, pace, 4) == pytest.approx(30 / 16)


def test_the_pace_of_a_finished_run(tmp_path: Path) -> None:
    run = MadeRun(tmp_path).begin().whole(failed=[2]).end()
    pace = pace_of(run.storage)
    assert pace is not None
    # Rows of half a second, on one replica with the two slots of its settings.
    assert (pace.seconds, pace.busy_slots, pace.num_replicas) == ({8: 0.5}, 2.0, 1)
    assert "result shards" in pace.source


def test_the_pace_that_a_driver_told(tmp_path: Path) -> None:
    run = MadeRun(tmp_path).begin()
    run.add(0, [0])
    meter = ProgressTracker(12, 0)
    meter.shard_read(4, 0, [Prompt(0, n, [1], Bucket(8, 64)) for n in range(4)])
    meter.rows_done(results_batch([good(0, 0), good(0, 1, seconds=1.5)]))
    told = meter.progress({"replica-0": "decoding"}).to_json()
    run.ledger.lease.publish(lambda: {**told, "seconds": 0.5})
    run.end()
    pace = pace_of(Storage(str(run.output)))
    assert pace is not None
    assert (pace.seconds, pace.busy_slots, pace.num_replicas) == ({8: 1.0}, 4.0, 1)


@pytest.mark.parametrize("kv_cache", ["none", "prefix", "dual"])
def test_a_caches_memory_has_a_line_of_its_own(
    source: Path, capsys: pytest.CaptureFixture[str], kv_cache: str
) -> None:
    words = ["--block-length", "16", "--kv-cache", kv_cache, "--slots", "8", "--dtype", "bfloat16"]
    assert plan.run(args(source, *words)) == 0
    lines = capsys.readouterr().out.splitlines()
    found = [line for line in lines if line.startswith("cache ")]
    if kv_cache == "none":
        assert not found
        return
    stored = json.loads((TINY / "config.json").read_text())
    (slot,) = [line for line in lines if line.startswith("memory ")]
    longest = int(slot.partition("slots of ")[2].split()[0])
    width = stored["d_model"] // stored["n_heads"] * stored["n_kv_heads"]
    num_bytes = (longest + 64) * stored["n_layers"] * 2 * width * 2
    assert found == [
        f"cache     keys and values of kv_cache {kv_cache}, within the memory of slots: "
        f"1 has {num_bytes / 1e6:.2f} MB, 8 have {8 * num_bytes / 1e6:.2f} MB"
    ]


def test_like_another_run(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = MadeRun(tmp_path / "other").begin().whole().end()
    assert plan.run(args(source, "--like", str(other.output), "--replicas", "2")) == 0
    # 37 rows of half a second on twice two slots.
    printed = capsys.readouterr().out
    assert "about 5 s for 37 rows on 2 replicas" in printed
    # That run's settings name no other field.
    assert "rows take another time here, since gen_length was 3, is 64\n" in printed


def on_meta(config: dict[str, Any]) -> LoadedModel:
    family = family_of(config)
    with torch.device("meta"):
        transformer = Transformer(family.transformer_config(config))
    return LoadedModel(transformer, config, None)


def test_weights_are_those_of_the_files() -> None:
    model = lrd.load_model("tiny", "meta")
    assert isinstance(model, LoadedModel)
    stored = json.loads((TINY / "config.json").read_text())
    shapes = checkpoints.stored_shapes(stored)
    num_elements = sum(torch.Size(shape).numel() for shape in shapes.values())
    assert weight_bytes(model, "float32") == 4 * num_elements
    assert weight_bytes(model, "bfloat16") == 2 * num_elements


def test_memory_of_the_published_models() -> None:
    decoding = DecodingConfig.preset("fast", gen_length=256, block_length=32)
    need = memory_need(on_meta(checkpoints.LLADA_8B), "bfloat16", decoding, 200)
    assert need is not None
    assert need.weights == pytest.approx(16.03e9, rel=0.01)
    assert need.slots_in(16e9) == 0
    assert need.slots_in(141e9) > need.slots_in(80e9) > need.slots_in(24e9) > 0
    packed = memory_need(on_meta(checkpoints.LLADA_8B), "int8", decoding, 200)
    assert packed is not None
    assert need.weights * 0.5 < packed.weights < need.weights * 0.6
    longer = memory_need(on_meta(checkpoints.LLADA_8B), "bfloat16", decoding, 2000)
    assert longer is not None
    assert longer.beside_weights(8) > need.beside_weights(8) > need.beside_weights(1)
    assert memory_need(object(), "bfloat16", decoding, 200) is None


def test_the_first_rows_do_not_make_the_rest_look_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """They come together, a slot's whole time after they began."""
    now = 100.0
    monkeypatch.setattr("pipeline.observe.eta.time.monotonic", lambda: now)
    meter = ProgressTracker(12, 0)
    meter.shard_read(12, 0, [Prompt(0, n, [1], Bucket(8, 64)) for n in range(12)])
    assert meter.progress({}).seconds_left is None
    now += 15.0  # Five of them for the model to load.
    meter.rows_done(results_batch([good(0, n, seconds=10.0) for n in range(2)]))
    assert meter.progress({}).seconds_left == pytest.approx(50.0), "two slots, ten rows"
    now += 10.0
    meter.rows_done(results_batch([good(0, n, seconds=10.0) for n in range(2, 4)]))
    assert meter.progress({}).seconds_left == pytest.approx(40.0)
