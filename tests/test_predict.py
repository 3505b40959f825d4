"""Predicted milliseconds: what is counted is what the shapes say, and how counts become time."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from jobs.bench import predict
from jobs.bench.gpu import MODELS
from jobs.bench.predict import (
    DEVICES,
    Device,
    Kind,
    Operation,
    counted_beliefs,
    counted_pass,
    flops,
    lockstep,
    milliseconds,
    model_of,
)
from lrd.models.transformer import TransformerConfig

SMALL = TransformerConfig(3, 64, 4, 2, 96, 500, 512, 1e4, 1e-5)
SHIFTED = TransformerConfig(3, 64, 4, 2, 96, 500, 512, 1e4, 1e-5, logit_shift=True)


def expected_flops(config: TransformerConfig, rows: int, columns: int, length: int, block: int):
    """Products and attention of a pass: its last layer's MLP runs for the block alone."""
    D, kv = config.width, config.width // config.num_heads * config.num_kv_heads
    last = config.num_layers - 1
    fed, read = rows * columns, rows * block
    products = config.num_layers * 2 * fed * D * (D + 2 * kv)
    products += 2 * (last * fed + read) * (D * D + 3 * D * config.mlp_width)
    return products, 4 * D * length * config.num_layers * fed


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("kind", ["plain", "full", "block"])
@pytest.mark.parametrize("config", [SMALL, SHIFTED], ids=["llada", "dream"])
def test_products_and_attention_are_counted(
    config: TransformerConfig, rows: int, kind: Kind
) -> None:
    found = counted_pass(model_of(config), rows, 40, 8, kind)
    fed = 8 + config.logit_shift if kind == "block" else 40
    products, attention = expected_flops(config, rows, fed, 40, 8)
    assert flops(found, "gemm") == products
    assert flops(found, "attention") == attention


def test_weights_are_read_once_a_pass() -> None:
    """With few positions nearly all bytes are the layers' weights."""
    model = model_of(TransformerConfig(2, 512, 8, 8, 1024, 500, 512, 1e4, 1e-5))
    found = counted_pass(model, 1, 8, 4, "block")
    moved = sum(number * one.moved for one, number in found.items() if one.kind == "gemm")
    weights = sum(
        p.numel() * 2 for n, p in model.transformer.blocks.named_parameters() if p.dim() > 1
    )
    assert weights < moved < 1.05 * weights


def test_beliefs_are_a_step_without_its_layers() -> None:
    model = model_of(SMALL)
    found = counted_beliefs(model, 4, 8)
    assert flops(found, "attention") == 0
    # The head: D x V for each of the slots' positions. Expected embeddings are gathered.
    assert flops(found, "gemm") == pytest.approx(2 * 4 * 8 * 64 * 500, rel=0.01)
    moved = [20 * 4 * 8 * 500, 4 * 8 * 64 * 2 * 129]
    assert all(any(one.moved == size for one in found) for size in moved)
    assert found.total() > 50


def test_an_operation_takes_the_longer_of_products_and_bytes() -> None:
    device = Device("toy", gemm=1e3, attention=1e2, copy=1e1, memory=1.0, launch=1.0)
    assert Operation("gemm", 5000, 10).seconds(device) == 5
    assert Operation("gemm", 10, 50).seconds(device) == 5
    assert Operation("attention", 500, 10).seconds(device) == 5
    assert Operation("other", 0, 20).seconds(device) == 2
    work = Counter({Operation("gemm", 5000, 10): 2, Operation("other", 0, 20): 1})
    assert milliseconds(work, device, "limit") == 10_000
    assert milliseconds(work, device, "eager") == 12_000
    idle = Counter({Operation("other", 0, 1): 20})
    assert milliseconds(idle, device, "eager") == 20_000, "no kernel is shorter than its launch"


def test_expanded_tensors_are_read_once() -> None:
    assert predict.touched([torch.empty(4, 1).expand(4, 100), torch.empty(2, 3).half()]) == 16 + 12


def test_a_cached_pass_is_the_mean_over_rows_that_enter_a_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Costs that are linear in the rows give the mean exactly."""
    device = Device("toy", 1.0, 1.0, 1.0, 1.0, launch=0.0)

    def costs(name: str, rows: int, length: int, kind: Kind) -> Counter[Operation]:
        columns = predict.BLOCK if kind == "block" else length
        return Counter({Operation("gemm", float(rows * columns), 0): 1})

    monkeypatch.setattr(predict, "pass_of", costs)
    monkeypatch.setattr(predict, "beliefs_of", lambda name, slots: Counter())
    for slots in (1, 5, 16):
        found = predict.cached_pass("", slots, 640, device, "limit")
        step = slots * predict.BLOCK + slots * 640 / (predict.PASSES + predict.WAITED)
        share = predict.PASSES / (predict.PASSES + predict.WAITED)
        assert found == pytest.approx(1e3 * step / share, rel=1e-4)


def test_a_batch_in_lockstep_waits_for_its_slowest() -> None:
    rows = {6: 1, 2: 3}
    assert lockstep(1, rows) == pytest.approx(1.0)
    assert lockstep(2, rows) == pytest.approx((2 * 9 / 16 + 6 * 7 / 16) / 3)
    assert lockstep(1000, rows) == pytest.approx(2.0)


def test_kept_bytes_are_those_of_the_models() -> None:
    assert predict.shaped("llada-8b").new_cache(0, 1).row_bytes == 512 * 1024
    assert predict.shaped("dream-7b").new_cache(0, 1).row_bytes == 56 * 1024


def test_the_gain_grows_with_the_slots() -> None:
    """At full shapes, on an H100: what the page's answer rests on."""
    gains = [
        predict.plain_pass("llada-8b", slots, 640, DEVICES[0], "limit")
        / predict.cached_pass("llada-8b", slots, 640, DEVICES[0], "limit")
        for slots in (1, 8)
    ]
    assert gains[0] < 2.5
    assert gains[1] > 2 * gains[0]
    assert set(MODELS) == {"llada-8b", "dream-7b"}


@pytest.mark.parametrize("words", [["--slots", "0"], ["--page", "none/such.md"]])
def test_bad_input_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    made = ["--devices", "H100", "--slots", "1", "--gen-lengths", "32", *words]
    assert predict.run(predict.parser().parse_args(made)) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
