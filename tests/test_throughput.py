"""`lrd bench`: figures follow a simulated clock, refusals are one line, the JSON is what its page
documents."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.engine import PROMPTS, cramped, drain, requests
from helpers.random_model import LIVELY, random_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import lrd
from jobs import cli
from jobs.bench import bench_cells as cells
from jobs.bench import bench_compare, bench_page, cluster_cells, throughput
from jobs.bench.bench_cells import Cell, LeftOutError, Setup, each, grid, measure
from jobs.bench.bench_prompts import Prompts, prompts_for
from jobs.bench.cluster_cells import Cluster
from jobs.bench.peaks import Peak, peak_of
from lrd import DecodingConfig
from lrd.models.registry import TINY
from pipeline.config import RunConfig

ROOT = Path(__file__).parents[1]
CANVAS = 12
UNEVEN: dict[str, Any] = {
    "r_f": 0.3,
    "tau_refine": 0.05,
    "max_refine_steps": 4,
    "entropy_threshold": 0.9,
}


class Clock:
    """Stands still but for what passes take."""

    def __init__(self, patch: pytest.MonkeyPatch, *seconds: float) -> None:
        """seconds: of each pass, the last for all further ones."""
        self.now, self.passes = 100.0, 0
        patch.setattr(cells, "time", self)
        step = lrd.Engine.step

        def slow(engine: lrd.Engine) -> Any:
            self.now += seconds[min(self.passes, len(seconds) - 1)]
            self.passes += 1
            return step(engine)

        patch.setattr(lrd.Engine, "step", slow)

    def perf_counter(self) -> float:
        return self.now

    monotonic = perf_counter


def setup_of(ids: list[list[int]] = PROMPTS, **changes: Any) -> Setup:
    prompts = Prompts("examples", "here", ids, ["text"] * len(ids), max(map(len, ids)))
    given: dict[str, Any] = {
        "model": random_model(**LIVELY),
        "decodings": {CANVAS: DecodingConfig(gen_length=CANVAS, **UNEVEN)},
        "prompts": prompts,
        "pass_rows": "busy",
        "peak": Peak(None, "no peak of a CPU is known"),
        "rows_a_slot": 4,
        "repeat": 3,
        "fixed_passes": False,
        "deadline": math.inf,
    }
    return Setup(**{**given, **changes})


# Figures.


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_rates_are_of_passes_with_every_slot_busy(
    slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, cell = setup_of(), Cell(slots, CANVAS)
    rows = [PROMPTS[n % len(PROMPTS)] for n in range(4 * slots)]
    samples = lrd.decode(setup.model, rows, setup.decodings[CANVAS], batch_size=slots)
    passes = [sample.num_forwards for sample in samples]
    Clock(monkeypatch, 2.0)
    found = measure(setup, cell)
    assert found["forwards_per_row"] == pytest.approx(sum(passes) / len(passes), rel=1e-4)
    assert found["pass_ms"]["all"] == [2000.0] * 3
    expected = slots / (2.0 * sum(passes) / len(passes))
    assert found["rows_per_second"]["median"] == pytest.approx(expected, rel=1e-4)
    tokens = sum(sample.num_output_tokens for sample in samples) / len(samples)
    assert found["tokens_per_row"] == pytest.approx(tokens, rel=1e-4)
    assert found["tokens_per_second"]["median"] == pytest.approx(expected * tokens, rel=1e-3)
    # The tail has passes in which slots are idle; a slot alone has none.
    tail = found["rows_per_second_with_tail"]["median"]
    assert (tail == pytest.approx(expected, rel=1e-3)) == (slots == 1)
    assert tail <= expected * 1.0001
    positions = sum(sample.positions_computed for sample in samples)
    columns = (max(map(len, PROMPTS)) + CANVAS) * sum(passes)
    assert found["padding_share"] == pytest.approx(1 - positions / columns, abs=1e-4)


def test_a_warm_up_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    setup, cell = setup_of(), Cell(2, CANVAS)
    clock = Clock(monkeypatch, 2.0)
    measure(setup_of(repeat=1), cell)
    a_turn = clock.passes // 2
    monkeypatch.undo()
    # The first pass of all compiles; each repetition has a pace of its own.
    paces = [1000.0, *[4.0] * (a_turn - 1), *[1.0] * a_turn, *[5.0] * a_turn, 3.0]
    Clock(monkeypatch, *paces)
    found = measure(setup, cell)
    assert found["pass_ms"] == {
        "median": 3000.0, "min": 1000.0, "max": 5000.0, "all": [1000.0, 5000.0, 3000.0],
    }  # fmt: skip
    assert found["warmup"] == {
        "passes": a_turn, "seconds": 1000.0 + 4.0 * (a_turn - 1), "first_pass_ms": 1e6,
    }  # fmt: skip
    assert found["repetitions"] == 3
    assert found["pass_percentiles_ms"] == {"p50": 3000.0, "p90": 5000.0, "p99": 5000.0}


@pytest.mark.parametrize(
    ("percent", "expected"), [(50, 2.0), (90, 4.0), (99, 4.0), (25, 1.0), (1, 1.0)]
)
def test_a_percentile_is_one_of_the_values(percent: int, expected: float) -> None:
    assert cells.percentile([1.0, 2.0, 3.0, 4.0], percent) == expected


@pytest.mark.parametrize("cache", [{}, {"kv_cache": "dual", "block_length": 4}])
def test_mfu_counts_what_rows_need(cache: dict[str, Any]) -> None:
    """Without padding that is what torch counts; under a cache attention is left out."""
    ids = [[3, 1, 4, 1], [7, 7, 20, 30]]
    config = DecodingConfig(
        gen_length=CANVAS, tokens_per_step=4, max_refine_steps=0, r_f=0.0, **cache
    )
    setup = setup_of(
        ids,
        decodings={CANVAS: config},
        peak=Peak(1e-12 * 5.0),
        rows_a_slot=1,
        model=random_model(seed=3),
    )
    # Of a CPU's attention kernels torch counts none but the plain products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        engine = lrd.Engine(setup.model, config, 2, 4, fixed_shapes=True)  # As on a GPU.
        samples = list(drain(engine, requests(ids)).values())
    assert len({sample.num_forwards for sample in samples}) == 1
    counted = counter.get_flop_counts()["Global"]
    flops = sum(n for name, n in counted.items() if not cache or "bmm" not in str(name))
    turn = cells.Turn(samples=samples)
    found = cells.mfu(setup, Cell(2, CANVAS), turn, [0.5])
    assert found["mfu"]["median"] == pytest.approx(0.5 * flops / 2 / 5.0, rel=1e-4)
    assert bool(found["mfu_reason"]) == bool(cache)


def test_memory_is_the_growth_of_the_process() -> None:
    memory = cells.Memory(torch.device("cpu"))
    memory.begin()
    held = torch.ones(64, 1 << 18)
    del held
    memory.end()
    assert memory.peak is not None
    assert memory.peak / 2**20 == pytest.approx(64, abs=8)


def test_memory_is_left_out_where_no_system_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "RESET", Path("/nowhere"))
    found = measure(setup_of(repeat=1), Cell(1, CANVAS))["memory"]
    assert found["measured_bytes"] is None
    assert "left out" in found["how"]
    assert found["formula_bytes"] > 0


@pytest.mark.parametrize(
    ("name", "dtype", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.5),
        ("NVIDIA H100 80GB HBM3", "fp8", 1979),
        ("NVIDIA H100 PCIe", "bfloat16", 756),
        ("NVIDIA H200", "bfloat16", 989.5),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312),
        ("NVIDIA A100-SXM4-80GB", "int8", 312),
        ("NVIDIA A100-SXM4-80GB", "int8_w8a8", 624),
        ("NVIDIA A100-SXM4-80GB", "fp8", None),
        ("NVIDIA A10", "bfloat16", 125),
        ("NVIDIA A10G", "bfloat16", None),
        ("NVIDIA L4", "bfloat16", 121),
        ("NVIDIA L40", "bfloat16", 181),
        ("NVIDIA L40S", "bfloat16", 362),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bfloat16", None),
        ("NVIDIA GeForce RTX 3090", "bfloat16", None),
    ],
)
def test_a_peak_is_of_the_device_that_is_named(name: str, dtype: str, tflops: float | None) -> None:
    found = peak_of(name, dtype)
    assert found.tflops == tflops
    assert (found.reason is None) == (tflops is not None)
    assert bool(found.source) == (tflops is not None)


# What is left out.


def test_cells_are_measured_from_small_to_large() -> None:
    found = grid([16, 1, 4], [128, 64])
    assert found[0] == Cell(1, 64)
    assert found[-1] == Cell(16, 128)
    sizes = [cell.slots * cell.canvas for cell in found]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize(
    ("seconds", "measured"),
    [
        # A turn of 8 rows takes 16 s, the warm-up likewise.
        (10.0, {1: "not done when the time of --seconds was over", 2: "over before it began"}),
        (30.0, {1: "does not fit the rest of --seconds", 2: "not done when the time"}),
        (40.0, {1: 1, 2: "not done when the time"}),
        (100.0, {1: 3, 2: 1}),
    ],
)
def test_what_does_not_fit_the_budget_is_named(
    seconds: float, measured: dict[int, int | str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = throughput.with_passes(DecodingConfig(gen_length=CANVAS, **UNEVEN), 2)
    clock = Clock(monkeypatch, 1.0)
    deadline = clock.now + seconds
    setup = setup_of(decodings={CANVAS: fixed}, rows_a_slot=8, deadline=deadline)
    found = list(each(grid([1, 2], [CANVAS]), lambda cell: measure(setup, cell), deadline))
    for cell, (slots, expected) in zip(found, measured.items(), strict=True):
        assert cell["slots"] == slots
        if isinstance(expected, int):
            assert cell["repetitions"] == expected
        else:
            assert expected in cell["reason"]


def test_a_cell_without_memory_is_named_and_the_next_is_measured() -> None:
    setup = setup_of(model=cramped(torch.OutOfMemoryError("no memory")), repeat=1)
    found = list(each([Cell(5, CANVAS), Cell(2, CANVAS)], lambda c: measure(setup, c), math.inf))
    assert "out of memory" in found[0]["reason"]
    assert found[1]["repetitions"] == 1


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("where", ["lrd.load_model", "jobs.bench.bench_cells.warm_up"])
def test_a_model_that_does_not_fit_is_one_line(
    where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load = lrd.load_model

    def full(*args: Any) -> Any:
        if "meta" in args:
            return load(*args)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried\nmore")

    monkeypatch.setattr(where, full)
    assert cli.run(QUICK) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines()[-1] == (
        "lrd bench: no memory for the model and one slot of it: CUDA out of memory. Tried"
    )


# Passes and prompts.


@pytest.mark.parametrize("passes", [3, 6, 12])
@pytest.mark.parametrize("preset", ["baseline", "paper", "fast", "blocks"])
def test_fixed_passes_are_what_every_row_takes(preset: str, passes: int) -> None:
    block = 4 if preset == "blocks" else None
    config = DecodingConfig.preset(preset, gen_length=CANVAS, block_length=block)
    fixed = throughput.with_passes(config, passes)
    for seed in (3, 9):
        samples = lrd.decode(random_model(seed, eos_bias=2.5), PROMPTS, fixed, batch_size=3)
        assert {sample.num_forwards for sample in samples} == {passes}
    assert (fixed.r_f, fixed.kv_cache) == (config.r_f, config.kv_cache)


def face_of(model: str | Path = "tiny") -> Any:
    return lrd.load_model(model, "meta")


def config_of(**changes: Any) -> RunConfig:
    return RunConfig(**{"input": "none", "output": "none", **changes})


def test_an_embedded_model_decodes_its_example_problems() -> None:
    for model in ("tiny", str(TINY)):
        found = prompts_for(config_of(model=model), None, face_of(), 600, 400, None)
        assert (found.source, len(found.ids), found.where) == ("examples", 512, "jobs/examples")
        assert found.columns == max(map(len, found.ids))
    short = prompts_for(config_of(), None, face_of(), 20, 400, 30)
    assert short.columns == 30
    assert max(map(len, short.ids)) <= 30
    assert short.num_left_out > 0


@pytest.mark.parametrize("num_tokens", [None, 7])
def test_other_models_without_input_get_random_tokens(
    num_tokens: int | None, tmp_path: Path
) -> None:
    copied = shutil.copytree(TINY, tmp_path / "mine")
    face = face_of(copied)
    found, again = (
        prompts_for(config_of(model=str(copied)), None, face, 5, 400, num_tokens) for _ in range(2)
    )
    assert found.source == "random"
    assert found == again
    assert {len(ids) for ids in found.ids} == {num_tokens or 128}
    special = {face.mask_id, face.eos_id, face.pad_id}
    assert not special & {token for ids in found.ids for token in ids}


def test_an_input_gives_its_prompts(tmp_path: Path) -> None:
    question = "Tom has 3 apples and buys 4. How many apples does he have?"
    texts = [question, None, "", question * 9, question]
    pq.write_table(pa.table({"q": texts}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"q": [question] * 3}), tmp_path / "b.parquet")
    config = config_of(prompt_column="q")
    found = prompts_for(config, str(tmp_path), face_of(), 4, 60, None)
    assert (found.source, found.values) == ("input", [question] * 4)
    assert found.num_left_out == 3
    with pytest.raises(ValueError, match=r"no prompt that can be decoded in 2 tokens"):
        prompts_for(config, str(tmp_path), face_of(), 4, 60, 2)


# Comparison.


@pytest.mark.parametrize(
    ("before", "now", "verdict", "ratio"),
    [
        ([4.0, 4.2, 4.4, 4.6], [2.0, 2.1, 2.2, 2.3], "faster", 2.0),
        ([2.0, 2.1, 2.2, 2.3], [4.0, 4.2, 4.4, 4.6], "slower", 0.5),
        ([2.0, 2.1, 2.2, 4.1], [4.0, 4.2, 4.4, 4.6], "within the spread", 0.5),
        ([2.0] * 5, [2.0] * 5, "within the spread", 1.0),
        # 3 and 3 are separated by chance in 2 of 20 cases.
        ([4.0, 4.2, 4.4], [2.0, 2.1, 2.2], "too few repetitions", 2.0),
        ([4.0], [2.0] * 30, "too few repetitions", 2.0),
        ([4.0], [2.0] * 40, "faster", 2.0),
    ],
)
def test_a_verdict_needs_repetitions_that_are_apart(
    before: Sequence[float], now: Sequence[float], verdict: str, ratio: float
) -> None:
    found = bench_compare.of_times(before, now)
    assert found["verdict"] == verdict
    assert found["ratio"] == pytest.approx(ratio, rel=0.01)
    assert found["low"] == pytest.approx(min(before) / max(now), rel=1e-3)
    assert found["high"] == pytest.approx(max(before) / min(now), rel=1e-3)


def result_of(rates: dict[tuple[int, int], float], **settings: Any) -> dict[str, Any]:
    def spread(*values: float) -> dict[str, Any]:
        return cells.Spread(values).as_json()

    found = [
        {
            "slots": slots, "canvas": canvas, "pass_ms": spread(*[100 / rate] * 5),
            "rows_per_second": spread(*[rate] * 5),
        }
        for (slots, canvas), rate in rates.items()
    ]  # fmt: skip
    settings = {"dtype": "float32", "decoding": {"r_f": 0.1, "kv_cache": None}, **settings}
    return {
        "lrd_bench": 1, "mode": "process", "settings": settings, "fixed_passes": None,
        "machine": {"device": "here", "threads": 2, "load_average": 0.1},
        "prompts": {"source": "examples", "columns": 9, "digest": "a"}, "cells": found,
    }  # fmt: skip


def test_cells_of_both_are_compared_and_what_differs_is_named(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    older = result_of({(1, 64): 1.0})
    before = result_of({(1, 64): 2.0, (4, 64): 3.0})
    file.write_text("a page\n" + "\n".join(map(json.dumps, (older, before, {"other": 1}))) + "\n")
    now = result_of(
        {(1, 64): 8.0, (1, 128): 1.0},
        dtype="bfloat16",
        decoding={"r_f": 0.1, "kv_cache": "dual"},
    )
    now["machine"] = {"device": "here", "threads": 2, "load_average": 4.0}
    found = bench_compare.compare(bench_compare.read(str(file)), now)
    (cell,) = found["cells"]
    assert (cell["slots"], cell["canvas"]) == (1, 64)
    assert cell["row"] == {"ratio": 4.0, "low": 4.0, "high": 4.0, "verdict": "faster"}
    assert found["missing"] == ["slots 4, canvas 64: only before", "slots 1, canvas 128: only now"]
    assert found["differences"] == [
        "dtype was float32, is bfloat16",
        "kv_cache was none, is dual",
        "now the machine did other work: a verdict may be of that",
    ]


# The command.

QUICK = ["bench", "--slots", "1", "2", "--canvas", "16", "--rows-a-slot", "2", "--repeat", "2"]
QUICK += ["--cpus-per-replica", "1"]


@pytest.fixture
def one_thread() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def documented(heading: str) -> list[set[str]]:
    """The keys that the tables under a heading name in their first column."""
    text = (ROOT / "jobs/bench/README.md").read_text().split(f"\n## {heading}\n")[1]
    tables = re.findall(r"(?:^\|.*\n)+", text.split("\n## ")[0], re.MULTILINE)
    return [
        {key for line in table.splitlines() for key in re.findall(r"`(\w+)`", line.split("|")[1])}
        for table in tables
    ]


@pytest.mark.usefixtures("one_thread")
def test_the_last_line_is_the_result_as_it_is_documented(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.json"
    assert cli.run([*QUICK, "--output", str(file)]) == 0
    first = capsys.readouterr().out
    assert cli.run([*QUICK, "--passes", "4", "--compare", str(file)]) == 0
    out = capsys.readouterr().out
    page, _, last = out.rstrip("\n").rpartition("\n")
    result = json.loads(last)
    assert json.loads(file.read_text()) == json.loads(first.splitlines()[-1])
    of_run, of_cell = documented("The JSON line")
    only_cluster = {"run_seconds", "rows_timed"}
    assert set(result) == of_run
    assert {key for cell in result["cells"] for key in cell} == of_cell - only_cluster
    assert set(json.loads(file.read_text())) == of_run - {"compared"}
    # The figures of the page are those of the line.
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    for cell in result["cells"]:
        (row,) = (
            line for line in lines
            if line.startswith(f"| {cell['slots']} | {cell['canvas']} |") and "MFU" not in line
            and line.count("|") > 8
        )  # fmt: skip
        assert bench_page.spread(cell["rows_per_second"]) in row
    assert [cell["forwards_per_row"] for cell in result["cells"]] == [4.0, 4.0]
    assert result["fixed_passes"] == {"16": 4}
    assert {cell["row"]["verdict"] for cell in result["compared"]["cells"]} == {
        "too few repetitions"
    }
    drawing = ElementTree.fromstring(file.with_suffix(".svg").read_text())
    text = " ".join(drawing.itertext())
    assert "rows/s" in text
    assert "ms a pass" in text
    assert "canvas 16" in text


@pytest.mark.usefixtures("one_thread")
def test_settings_come_from_the_run_file_and_its_output_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.table({"q": ["Tom has 3 apples."] * 2}), tmp_path / "in.parquet")
    (tmp_path / "run.toml").write_text(
        f"input = '{tmp_path}/in.parquet'\noutput = '{tmp_path}/out'\nslots = 2\n"
        "prompt_column = 'q'\nnum_samples = 2\ncpus_per_replica = 1\n"
        "row_settings = ['gen_length']\n"
        "[decoding]\ngen_length = 16\ntemperature = 0.5\n"
    )
    words = ["bench", "--config", str(tmp_path / "run.toml"), "--repeat", "1", "--r-f", "0.25"]
    assert cli.run([*words, "--rows-a-slot", "1"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    (cell,) = result["cells"]
    assert (cell["slots"], cell["canvas"], result["prompts"]["source"]) == (2, 16, "input")
    assert result["settings"]["decoding"]["r_f"] == 0.25
    assert result["settings"]["decoding"]["temperature"] == 0.5
    assert not (tmp_path / "out").exists()


def test_a_run_file_with_what_is_not_measured_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A setting that is younger than this command, say."""
    (tmp_path / "run.toml").write_text("truncation = 'keep_last'\n")
    monkeypatch.setattr(throughput, "USED", throughput.USED - {"truncation"})
    assert cli.run(["bench", "--config", str(tmp_path / "run.toml")]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.endswith("truncation cannot be measured by lrd bench; take it out\n")


@pytest.mark.usefixtures("one_thread")
def test_ctrl_c_prints_what_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = cells.measure

    def interrupted(setup: Setup, cell: Cell) -> dict[str, Any]:
        if cell.slots == 2:
            signal.raise_signal(signal.SIGTERM)
        return plain(setup, cell)

    monkeypatch.setattr(cells, "measure", interrupted)
    assert cli.run(QUICK) == 75
    told = capsys.readouterr()
    result = json.loads(told.out.splitlines()[-1])
    assert result["interrupted"]
    assert [cell["slots"] for cell in result["cells"]] == [1]
    assert [(cell["slots"], cell["reason"]) for cell in result["left_out"]] == [
        (2, "interrupted before it was done")
    ]
    assert "| 1 | 16 |" in told.out
    assert told.err.splitlines()[-1].startswith("lrd bench: interrupted")


REFUSED = {
    "--slots 0": "--slots is 0",
    "--slots x": "invalid int value",
    "--slots 99999999": "less than or equal",
    "--canvas 100000": "leaves no room for a prompt",
    "--canvas 64 65 --block-length 32": "--canvas 65: block_length 32 does not divide",
    "--canvas 64 --passes 7 --block-length 32": "--canvas 64: steps 7",
    "--passes 0": "--passes is 0",
    "--repeat 0": "--repeat is 0",
    "--repeat 9999": "at most 1000",
    "--rows-a-slot -1": "--rows-a-slot is -1",
    "--seconds 0": "--seconds is 0",
    "--seconds nan": "--seconds is nan",
    "--prompt-tokens 3": "in 3 tokens (--prompt-tokens)",
    "--prompt-tokens 9000": "leaves room for 384",
    "--compare {tmp}/nothing.json": "cannot be read",
    "--compare {tmp}/other.json": "no result of lrd bench",
    "--output {tmp}/a.txt": "ends with .json",
    "--output {tmp}/nowhere/a.json": "make it first",
    "--model {tmp}/nowhere": "no such checkpoint",
    "--input {tmp}/nowhere": "no such file",
    "--config {tmp}/nowhere.toml": "nowhere.toml",
    "--dtype fp9": "dtype",
    "--columns full": "unrecognized arguments",
    "--compile graphs": "graphs",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_wrong_is_one_line(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.json").write_text('{"rows": 1}\n')
    called = words.format(tmp=tmp_path).split()
    before = set(tmp_path.iterdir())
    try:
        code = cli.run(["bench", *called])
    except SystemExit as ended:
        code = int(str(ended.code))
    told = capsys.readouterr()
    assert (code, told.out) == (2, "")
    (line,) = told.err.splitlines()
    assert line.startswith("lrd bench: ")
    assert REFUSED[words] in line
    assert set(tmp_path.iterdir()) == before


def test_one_replica_needs_no_ray(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules.update(ray=None)\n"
        f"from jobs import cli; sys.exit(cli.run({QUICK[:-2]!r}))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1])["mode"] == "process"


# Through the pipeline.


@pytest.mark.usefixtures("no_ray")
@pytest.mark.slow
def test_a_cluster_is_measured_by_generate(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "--cluster", "--slots", "2", "--canvas", "16", "--repeat", "1"]
    assert (
        cli.run([*words, "--rows-a-slot", "40", "--cpus-per-replica", "1", "--replicas", "1"]) == 0
    )
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    (cell,) = result["cells"]
    assert (cell["rows"], result["machine"]["replicas"]) == (80, 1)
    assert cell["rows_timed"][0] >= 40
    _, of_cell = documented("The JSON line")
    assert set(cell) < of_cell
    assert result["mode"] == "cluster"


def test_a_run_of_which_too_little_is_seen_has_no_rate() -> None:
    watch = cluster_cells.Watch()
    watch.first, watch.last = (1.0, 6), (2.0, 10)
    rows = pa.table({"error": pa.array([None] * 10, pa.string())})
    with pytest.raises(LeftOutError, match="6 of 10 rows were finished"):
        cluster_cells._checked(watch, rows)
    watch.first = (1.0, 4)
    assert cluster_cells._checked(watch, rows) is rows
    assert watch.rows_per_second == 6.0
    failed = pa.table({"error": ["broken", None]})
    with pytest.raises(LeftOutError, match="1 of 2 rows failed: broken"):
        cluster_cells._checked(watch, failed)


def test_a_run_that_is_late_is_stopped_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.replicas.deaths import RunStoppedError

    class Driver:
        stopped = False

        def stop(self) -> None:
            self.stopped = True

    driver = Driver()

    def generate(config: RunConfig, progressed: Any, begun: Any) -> None:
        begun(driver)
        progressed(type("Progress", (), {"num_done": 0})())
        assert driver.stopped
        raise RunStoppedError("stopped")

    monkeypatch.setattr(cluster_cells.run, "generate", generate)
    monkeypatch.setattr(Cluster, "__post_init__", lambda self: None)
    prompts = Prompts("examples", "here", [[1]], ["text"], 1)
    decodings = {16: DecodingConfig(gen_length=16)}
    cluster = Cluster(config_of(), decodings, prompts, 1, 1, False, time.monotonic() - 1)
    cluster.replicas = 1
    with pytest.raises(LeftOutError, match="not done when"):
        cluster.measure(Cell(2, 16))


# The page that cites results.


def test_the_page_says_what_the_results_beside_it_say() -> None:
    page = ROOT / "jobs/benchmarks/throughput.md"
    assert bench_page.cited(page) == page.read_text()


def test_a_page_is_filled_by_the_results_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- measured: mine -->\nold\n<!-- end -->\n<!-- measured: b -->\n<!-- end -->\n"
    )
    assert cli.run([*QUICK, "--output", str(tmp_path / "mine.json")]) == 0
    told = capsys.readouterr().out.rpartition("\n{")[0].strip()
    text = bench_page.cited(page)
    assert told in text
    assert "![mine](mine.svg)" in text
    assert text.count("Not measured yet.") == 1
    assert "old" not in text
