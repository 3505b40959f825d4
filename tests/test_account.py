"""The account of a GPU's work: what is counted is what the shapes say, and stays within limits."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from helpers.few import spread

from jobs.bench import account
from jobs.bench.account import (
    PassKind,
    Way,
    counted_beliefs,
    counted_pass,
    counted_step,
    counting,
    model_of,
)
from jobs.bench.gpu_models import BASELINE, MODELS, REFINED
from jobs.bench.predict import flops
from lrd.belief_ops import MOST_BYTES
from lrd.models.transformer import EAGER, TransformerConfig, rotary_table

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
    config: TransformerConfig, rows: int, kind: PassKind
) -> None:
    found = Counter(counted_pass(model_of(config), rows, 40, 8, kind).operations)
    fed = 8 + config.logit_shift if kind == "block" else 40
    products, attention = expected_flops(config, rows, fed, 40, 8)
    assert flops(found, "gemm") == products
    assert flops(found, "attention") == attention


def test_weights_are_read_once_a_pass() -> None:
    """With few positions nearly all bytes are the layers' weights."""
    model = model_of(TransformerConfig(2, 512, 8, 8, 1024, 500, 512, 1e4, 1e-5))
    found = Counter(counted_pass(model, 1, 8, 4, "block").operations)
    moved = sum(number * one.moved for one, number in found.items() if one.kind == "gemm")
    weights = sum(
        p.numel() * 2 for n, p in model.transformer.blocks.named_parameters() if p.dim() > 1
    )
    assert weights < moved < 1.05 * weights


def test_beliefs_are_a_step_without_its_layers() -> None:
    model = model_of(SMALL)
    config = REFINED.model_copy(update={"gen_length": 8, "block_length": 8})
    found = counted_beliefs(model, config, 4)
    assert flops(found, "attention") == 0
    # The head, and the expected embeddings: both D x V for each of the slots' positions.
    assert flops(found, "gemm") == pytest.approx(2 * 2 * 4 * 8 * 64 * 500, rel=0.01)
    assert found.total() > 100


def test_expanded_tensors_are_read_once() -> None:
    assert account.touched([torch.empty(4, 1).expand(4, 100), torch.empty(2, 3).half()]) == 16 + 12


SLOTS, LENGTH, BLOCK = 16, 640, 32
FUSED_KERNELS = 11
"""Of a layer: norm, product, rotary, attention, product, sum, norm, product, SwiGLU, product, sum.
With a cache two more, which write keys and values."""


def fused_bytes(config: TransformerConfig) -> float:
    """Bytes a position, layer and unit of width that no way of fusing these functions saves, in
    bfloat16: two norms and two sums, the rotation, and SwiGLU."""
    kv = config.num_kv_heads / config.num_heads
    return 2 * 4 + 2 * 6 + 4 * (1 + kv) + 6 * config.mlp_width / config.width


@pytest.mark.parametrize("kind", ["plain", "full", "block"])
@pytest.mark.parametrize("name", MODELS)
def test_element_wise_work_of_the_layers_is_fused(name: str, kind: PassKind) -> None:
    """At true shapes: 45 bytes a position, layer and unit of width for LLaDA-8B."""
    config, model = MODELS[name], model_of(MODELS[name])
    positions = SLOTS * (BLOCK + model.feeds_before if kind == "block" else LENGTH)
    bytes_of, kernels_of = {}, {}
    ways: tuple[Way, ...] = ("eager", "fused")
    for way in ways:
        found = counted_pass(model, SLOTS, LENGTH, BLOCK, kind, way)
        assert not found.syncs
        moved = sum(one.moved for one in found.operations if one.kind == "other")
        bytes_of[way] = moved / positions / config.num_layers / config.width
        kernels_of[way] = len(found.operations) / config.num_layers
    kept = 0 if kind == "plain" else 4 * 2 * config.num_kv_heads / config.num_heads
    # Beyond: cosines and sines, tables, the last layer's choice of positions.
    assert bytes_of["fused"] <= fused_bytes(config) + kept + 3
    assert bytes_of["fused"] <= bytes_of["eager"] / 2.5
    assert kernels_of["fused"] <= FUSED_KERNELS + (0 if kind == "plain" else 2) + 1
    assert kernels_of["eager"] >= 2.5 * kernels_of["fused"]


@pytest.mark.parametrize(("way", "most"), [("eager", 1010), ("fused", MOST_BYTES + 8)])
@pytest.mark.parametrize("name", MODELS)
def test_beliefs_stay_within_their_bytes(name: str, way: Way, most: float) -> None:
    """All that a step of refinement moves beside the layers and products, by position and column
    of the logits. The plain way's search writes its comparisons; of the kernels' 8, 6 bytes are
    embeddings that are gathered."""
    config = REFINED.model_copy(update={"gen_length": BLOCK, "block_length": BLOCK})
    found = counted_beliefs(model_of(MODELS[name]), config, SLOTS, way)
    moved = sum(number * one.moved for one, number in found.items() if one.kind == "other")
    assert moved <= most * SLOTS * BLOCK * MODELS[name].table_rows


@pytest.mark.parametrize(
    ("name", "decoder", "cache"),
    spread(MODELS, ["baseline", "refined"], ["none", "prefix", "dual"]),
)
def test_a_step_waits_for_nothing(name: str, decoder: str, cache: str) -> None:
    config = (BASELINE if decoder == "baseline" else REFINED).model_copy(
        update={"gen_length": 512, "block_length": BLOCK, "kv_cache": cache}
    )
    found = counted_step(model_of(MODELS[name]), config, 2, 128, "fused")
    assert len(found.operations) > 300
    assert not found.syncs


def test_what_waits_is_noticed() -> None:
    found = account.Account()
    with found:
        torch.equal(torch.ones(2), torch.ones(2))
        torch.ones(2).nonzero()
        torch.ones(1).item()
    assert set(found.syncs) == {"equal", "nonzero", "_local_scalar_dense"}


def test_an_operation_of_ours_moves_what_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    library = torch.library.Library("lrd", "FRAGMENT")
    library.define("account_test(Tensor x) -> Tensor")
    library.impl("account_test", lambda x: x.new_empty(3), "CompositeExplicitAutograd")
    found = account.Account()
    with found:
        torch.ops.lrd.account_test(torch.empty(5, device="meta"))
        monkeypatch.setitem(account.DECLARED, "lrd::account_test", lambda args, out: 7.0)
        torch.ops.lrd.account_test(torch.empty(5, device="meta"))
    assert [one.moved for one in found.operations] == [(5 + 3) * 4, 7]


def test_a_model_is_left_as_it_was() -> None:
    model = model_of(SMALL)
    before = [(block.attend, block.pointwise) for block in model.transformer.blocks]
    with counting(model.transformer, "fused"):
        assert model.transformer.norm.pointwise is not EAGER
    after = [(block.attend, block.pointwise) for block in model.transformer.blocks]
    assert after == before
    assert model.transformer.norm.pointwise is EAGER


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_functions_are_their_operations_to_the_bit(dtype: torch.dtype) -> None:
    """What the eager way counts computes the same as what runs."""
    torch.manual_seed(0)
    for width, scale in ((64, 1.0), (160, 100.0), (4096, 0.01)):
        x, weight = scale * torch.randn(7, width).to(dtype), torch.randn(width).to(dtype)
        for eps in (1e-5, 1e-6):
            assert torch.equal(
                EAGER.norm(x, weight, eps), account.norm_by_operations(x, weight, eps)
            )
    for table_dtype in (torch.float32, dtype):
        cos, sin = rotary_table(torch.arange(9)[None], 16, 1e4)
        cos, sin = (x[0, 0, :, None].to(table_dtype) for x in (cos, sin))
        query, key = torch.randn(9, 4, 16).to(dtype), torch.randn(9, 2, 16).to(dtype)
        for found, expected in zip(
            EAGER.rotate(query, key, cos, sin),
            account.rotate_by_operations(query, key, cos, sin),
            strict=True,
        ):
            assert torch.equal(found, expected)
