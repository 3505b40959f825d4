"""The GPU benchmark's arithmetic, and its measuring on small shapes without a GPU."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import lrd
from jobs.bench import gpu
from jobs.bench.gpu import MODELS, measure, num_flops, random_model, table_row
from lrd import DecodingConfig
from lrd.memory import memory_of
from lrd.models.checkpoint import LoadedModel
from lrd.models.transformer import Transformer, TransformerConfig

SMALL = {
    name: dataclasses.replace(
        config, num_layers=3, width=64, num_heads=4, mlp_width=96, table_rows=200,
        num_kv_heads=2 if config.num_kv_heads < config.num_heads else 4,
    )
    for name, config in MODELS.items()
}  # fmt: skip


@pytest.mark.parametrize(("name", "billions"), [("llada-8b", 8.02), ("dream-7b", 7.62)])
def test_shapes_are_those_of_the_models(name: str, billions: float) -> None:
    with torch.device("meta"):
        transformer = Transformer(MODELS[name])
    count = sum(p.numel() for p in transformer.parameters())
    assert count / 1e9 == pytest.approx(billions, abs=0.005)


@pytest.mark.parametrize("config", [*SMALL.values(), *MODELS.values()])
def test_flops_are_those_that_torch_counts(config: TransformerConfig) -> None:
    slots, length, read = 3, 40, 8
    with torch.device("meta"):
        ids = {"mask_token_id": 0, "eos_token_id": 1}
        model = LoadedModel(Transformer(config).requires_grad_(False), ids, None)
        embeds = torch.zeros(slots, length, config.width)
        at = torch.zeros(slots * read, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model.head(model.hidden(embeds, None, at))
    assert num_flops(config, slots, length, slots * read) == counter.get_total_flops()


CONFIG = DecodingConfig(gen_length=32, block_length=16)


@pytest.mark.parametrize("name", SMALL)
def test_passes_are_timed_after_the_warm_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that each pass through the blocks moves on: 100 s while warm, 3 s after."""
    clock, hidden = [0.0, 0.0], LoadedModel.hidden

    def slow(*args: Any) -> torch.Tensor:
        clock[0] += 100.0 if clock[1] < gpu.WARM_PASSES else 3.0
        clock[1] += 1
        return hidden(*args)

    monkeypatch.setattr(LoadedModel, "hidden", slow)
    monkeypatch.setattr(gpu, "now", lambda device: clock[0])
    model = random_model(SMALL[name], "cpu", "none")
    assert gpu.time_forward(model, CONFIG, slots=2, prompt=8) == pytest.approx(3.0)
    clock[1] = 0.0
    refined = gpu.REFINED.model_copy(update={"gen_length": 32, "block_length": 16})
    assert gpu.time_steps(model, refined, slots=2, prompt=8) == pytest.approx(3.0)


@pytest.mark.parametrize("name", SMALL)
def test_a_cases_numbers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(SMALL[name], "cpu", "none")
    assert model.embedding_table.dtype == torch.bfloat16
    forward, baseline, refined = iter([0.5, 0.002, 0.004]), iter([9.0, 0.01, 0.02]), iter([3.0] * 3)
    dual = iter([0.2, 0.9, 0.1])
    monkeypatch.setattr(gpu, "time_forward", lambda *_: next(forward))

    def time_steps(_: Any, config: lrd.DecodingConfig, *__: Any) -> float:
        if config.caches:
            assert (config.kv_cache, config.block_length) == ("dual", 32)
            return next(dual)
        return next(refined if config.mixes else baseline)

    monkeypatch.setattr(gpu, "time_steps", time_steps)
    case = measure(name, model, CONFIG, slots=6, prompt=8, repeats=3, peak_tflops=1e-3)
    assert case is not None
    found = (case.forward_ms, case.baseline_ms, case.refined_ms)
    assert found == pytest.approx((4.0, 20.0, 3000.0))
    assert case.lrd_over_baseline == pytest.approx(150.0)
    assert case.dual_ms == pytest.approx(200.0)
    assert case.dual_gain == pytest.approx(30 / 4.8), "a full pass of 3 s, nine of 0.2 s"
    assert case.tokens_per_second == pytest.approx(2.0), "a token a pass in each of six slots"
    assert case.mfu == pytest.approx(num_flops(SMALL[name], 6, 40, 6 * 16) / 0.004 / 1e9)
    sizes = {"gen_length": 32, "block_length": 16}
    plain = gpu.REFINED.model_copy(update=sizes)
    cached = plain.model_copy(update={"block_length": 32, "kv_cache": "dual"})
    totals = [memory_of(model, config, 8, 6).total for config in (plain, cached)]
    assert case.formula_bytes == max(totals)
    row = table_row(dataclasses.replace(case, mfu=0.25, peak_bytes=3 << 29, formula_bytes=1 << 30))
    assert row.split() == [
        *(name, "32", "6", "4.0", "25.0%", "20.0", "3000.0", "150.000", "200.0", "6.25"),
        *("2.0", "1.50", "1.00"),
    ]
    assert table_row(dataclasses.replace(case, mfu=None)).split()[4] == "?"


@pytest.mark.parametrize("name", SMALL)
def test_a_case_is_measured(name: str) -> None:
    model = random_model(SMALL[name], "cpu", "none")
    case = measure(name, model, CONFIG, slots=2, prompt=8, repeats=1, peak_tflops=1e-3)
    assert case is not None
    assert case.lrd_over_baseline == pytest.approx(case.refined_ms / case.baseline_ms)
    assert case.tokens_per_second == pytest.approx(2e3 / case.refined_ms)
    flops = num_flops(SMALL[name], 2, 40, 32)
    assert case.mfu == pytest.approx(flops / (case.forward_ms / 1e3) / 1e9)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "jobs.bench.gpu"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert len(ran.stderr.splitlines()) == 1
    assert "no CUDA device" in ran.stderr
