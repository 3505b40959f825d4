"""The GPU benchmark's arithmetic, and its measuring on small shapes without a GPU."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from jobs.bench.gpu import MODELS, measure, num_flops, random_model, table_row
from lrd import DecodingConfig
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
def test_shapes_are_the_true_ones(name: str, billions: float) -> None:
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


@pytest.mark.parametrize("name", SMALL)
def test_a_case_is_measured(name: str) -> None:
    model = random_model(SMALL[name], "cpu", "none")
    assert model.embedding_table.dtype == torch.bfloat16
    config = DecodingConfig(gen_length=32, block_length=16)
    case = measure(name, model, config, slots=2, prompt=8, repeats=1, peak_tflops=1e-3)
    assert case is not None
    assert min(case.forward_ms, case.baseline_ms, case.refined_ms, case.tokens_per_second) > 0
    flops = num_flops(SMALL[name], 2, 40, 32)
    assert case.mfu == pytest.approx(flops / (case.forward_ms / 1e3) / 1e9)
    assert name in table_row(case)
    assert "?" in table_row(dataclasses.replace(case, mfu=None))


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
