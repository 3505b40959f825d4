"""The formula for the memory of slots against the tensors' real size, and the probe."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.engine import cramped
from helpers.few import spread
from helpers.live_bytes import LiveBytes

import lrd
from jobs.bench.gpu_models import MODELS
from lrd import memory
from lrd.belief_ops import SWITCH
from lrd.canvases import Canvases
from lrd.decoding import step
from lrd.models.checkpoint import LoadedModel
from lrd.models.compiled import Graphs
from lrd.models.transformer import Transformer, TransformerConfig

BELIEFS = {"num_columns": 4000, "gen_length": 64, "block_length": 32, "prompt": 16}
PASSES = {"num_columns": 60, "gen_length": 8, "block_length": 8, "prompt": 200}
CASES: dict[str, dict[str, Any]] = {
    "beliefs": BELIEFS,
    "a whole canvas": {**BELIEFS, "block_length": 64},
    "many columns": {**BELIEFS, "num_columns": 20_000, "block_length": 8},
    "warm": {**BELIEFS, "temperature": 0.7},
    "drawn from a part": {**BELIEFS, "temperature": 0.7, "sample_top_p": 0.9},
    "guided": {**PASSES, "cfg_scale": 1.0},
    "activations": PASSES,
    "a block cache": {**PASSES, "gen_length": 64, "kv_cache": "dual"},
    "a block cache: shared kv heads": {
        **PASSES,
        "gen_length": 64,
        "kv_cache": "prefix",
        "num_kv_heads": 1,
    },
    "a suffix pattern": {**PASSES, "gen_length": 64, "kv_cache": "dual", "suffix": 1},
    "activations: shared kv heads": {**PASSES, "num_kv_heads": 1, "rope_in_float32": False},
    "activations: a narrow MLP": {**PASSES, "mlp_width": 64},
    # Nothing is mixed, or little of each row is asked for: the formula has room to spare.
    "what ReMix keeps": {**BELIEFS, "preset": "remix", "slack": 2.5},
    "what CreditDecoding keeps": {**BELIEFS, "preset": "credit", "slack": 2.0},
    "what Saber keeps": {**BELIEFS, "preset": "saber", "slack": 2.0},
    "shadow columns": {**PASSES, "preset": "wino", "slack": 2.0},
}


def model_of(case: dict[str, Any], dtype: torch.dtype) -> LoadedModel:
    config = TransformerConfig(
        num_layers=3,
        width=64,
        num_heads=4,
        num_kv_heads=case.get("num_kv_heads", 4),
        mlp_width=case.get("mlp_width", 200),
        table_rows=case["num_columns"],
        max_length=512,
        rope_theta=1e4,
        rms_norm_eps=1e-5,
        rope_in_float32=case.get("rope_in_float32", True),
    )
    torch.manual_seed(0)
    transformer = Transformer(config).requires_grad_(False).eval().to(dtype)
    return LoadedModel(transformer, {"mask_token_id": 0, "eos_token_id": 1}, None)


def settings_of(case: dict[str, Any]) -> lrd.DecodingConfig:
    names = (
        *("gen_length", "block_length", "temperature", "sample_top_p", "cfg_scale"),
        *("kv_cache", "suffix"),
    )
    settings = {name: case[name] for name in names if name in case}
    if "preset" in case:
        return lrd.DecodingConfig.preset(case["preset"], **settings)
    return lrd.DecodingConfig(early_stop=True, **settings)


FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.fixture(scope="module")
def findings() -> dict[str, str]:
    """What each case gets wrong, or nothing; measured in a process of its own, since what other
    tests have left in this one may keep a tensor alive for longer."""
    folder = Path(__file__).parent
    path = os.pathsep.join([str(folder.parent), str(folder), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", "import test_memory; test_memory.print_findings()"],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", CASES)
def test_a_pass_takes_what_the_formula_says(
    name: str, dtype: str, findings: dict[str, str]
) -> None:
    assert findings[f"{name}, {dtype}"] == ""


def print_findings() -> None:
    found = {}
    for name in CASES:
        for dtype in FLOATS:
            try:
                check_a_pass(name, FLOATS[dtype])
                found[f"{name}, {dtype}"] = ""
            except AssertionError as error:
                found[f"{name}, {dtype}"] = f"{error!r}"
    print(json.dumps(found))


def check_a_pass(name: str, dtype: torch.dtype) -> None:
    case, num_slots = CASES[name], 4
    model, config = model_of(case, dtype), settings_of(case)
    need = memory.memory_of(model, config, case["prompt"], num_slots, fixed_shapes=True)
    assert need.weights == sum(p.nbytes for p in model.transformer.parameters()), need
    model.transformer.prepare(512, torch.device("cpu"))
    with LiveBytes() as live:
        engine = lrd.Engine(model, config, num_slots, case["prompt"], fixed_shapes=True)
        # What is made of lists is not seen.
        fed = engine.canvases.fed
        made = live.now + fed.position_MG.nbytes
        assert made == need.state, (need, made)
        for index in range(num_slots):
            engine.submit(lrd.Request(index, [3] * (case["prompt"] - index % 2), index))
        for _ in range(3):
            engine.step()
    assert engine.canvases.past.num_bytes == need.past, need
    cache = engine.canvases.cache
    assert (cache.num_bytes if cache else 0) == need.cache, need
    slack = case.get("slack", 1.35)
    assert live.peak <= need.beside_weights <= slack * live.peak, (need, live.peak)


@pytest.mark.parametrize(
    ("cache", "fixed_shapes", "num_kv_heads"),
    spread(
        [{"kv_cache": "dual"}, {"kv_cache": "prefix"}, {"kv_cache": "dual", "suffix": 1}],
        [True, False],
        [8, 2],
    ),
)
def test_with_a_cache_the_formula_is_within_a_tenth(
    cache: dict[str, Any], fixed_shapes: bool, num_kv_heads: int
) -> None:
    """At shapes in the proportions of an 8B model's, in bfloat16."""
    shape = TransformerConfig(
        num_layers=6,
        width=256,
        num_heads=8,
        num_kv_heads=num_kv_heads,
        mlp_width=704,
        table_rows=4000,
        max_length=512,
        rope_theta=1e4,
        rms_norm_eps=1e-5,
    )
    transformer = Transformer(shape).requires_grad_(False).eval().to(torch.bfloat16)
    model = LoadedModel(transformer, {"mask_token_id": 0, "eos_token_id": 1}, None)
    config = lrd.DecodingConfig(gen_length=256, block_length=32, **cache)
    need = memory.memory_of(model, config, 128, 8, fixed_shapes)
    model.transformer.prepare(512, torch.device("cpu"))
    with LiveBytes() as live:
        engine = lrd.Engine(model, config, 8, 128, fixed_shapes=fixed_shapes)
        for index in range(8):
            engine.submit(lrd.Request(index, [3] * (128 - index), index))
        for _ in range(3):
            engine.step()
    assert 0.9 <= live.peak / need.beside_weights <= 1.1, (live.peak, need)


GPU_SETTINGS: list[dict[str, Any]] = [
    *({}, {"temperature": 0.7}, {"temperature": 0.7, "sample_top_p": 0.9}),
    *({"confidence": "margin"}, {"cfg_scale": 1.0}, {"r_f": 0.0}),
    *({"credit_alpha": 0.7}, {"mix": "topk"}, {"mix": "remix", "reject_js": 0.3}),
    *({"stop_gap_early": 7.5}, {"mix": "remix"}),
]


@pytest.mark.parametrize(
    ("name", "settings", "mode"),
    [
        # Models take turns; the other one of each setting is slow.
        *spread(["llada-8b", "dream-7b"], GPU_SETTINGS, ["auto"], every=3),
        *spread(["dream-7b"], GPU_SETTINGS[:2], ["off"]),
    ],
)
def test_on_a_gpu_a_pass_takes_what_the_formula_says(
    name: str, settings: dict[str, Any], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the true vocabulary, on the meta device, where a pass has a GPU's chunks."""
    monkeypatch.setenv(SWITCH, mode)
    narrow = {"num_layers": 1, "width": 512, "num_heads": 4, "num_kv_heads": 4, "mlp_width": 64}
    shape = dataclasses.replace(MODELS[name], **narrow)
    with torch.device("meta"):
        transformer = Transformer(shape).requires_grad_(False).eval().to(torch.bfloat16)
    model = LoadedModel(transformer, {"mask_token_id": 0, "eos_token_id": 1}, None)
    config = lrd.DecodingConfig(gen_length=128, **settings)
    need = memory.memory_of(model, config, 8, 16)
    model.transformer.prepare(512, torch.device("meta"))
    with LiveBytes() as live:
        state = Canvases.empty(model, config, 16, 136)
        for row in range(16):
            state.place(row, [3] * 8, model, config, "left")
        for _ in range(2):
            step(model, config, state)
    assert live.peak <= need.beside_weights <= 1.35 * live.peak, (live.peak, need)


def test_of_a_foreign_model_the_table_is_known() -> None:
    class Foreign:
        embedding_table = torch.zeros(100, 8)

    config = lrd.DecodingConfig(gen_length=8)
    need = memory.memory_of(Foreign(), config, 4, 2)
    assert need.weights == 100 * 8 * 4
    assert need.beside_weights > 0


def test_the_most_slots_that_fit(model: LoadedModel) -> None:
    config = lrd.DecodingConfig(gen_length=12)

    def need(num_slots: int) -> int:
        return memory.memory_of(model, config, 9, num_slots).beside_weights

    assert need(1) < need(2) < need(7) < need(8)
    for num_bytes, expected in (
        *((need(7), 7), (need(8) - 1, 7), (need(1) - 1, 1), (0, 1)),
        *((math.inf, 50), (need(50), 50)),
    ):
        assert memory.fitting_slots(model, config, 9, 50, num_bytes) == expected


def test_a_probe_runs_a_pass_and_halves(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = lrd.DecodingConfig(gen_length=12, temperature=0.5)
    assert memory.probe_slots(model, config, 9, 16) == 16
    tight = cramped(torch.OutOfMemoryError("CUDA out of memory"))
    assert memory.probe_slots(tight, config, 9, 16) == 2, "16, 8 and 4 were too many"
    assert memory.probe_slots(tight, config, 9, 3) == 3
    spare = memory.memory_of(model, config, 9, 5).beside_weights / memory.MARGIN + 1
    monkeypatch.setattr(memory, "free_bytes", lambda device: spare)
    assert memory.probe_slots(model, config, 9, 16) == 5
    assert memory.probe_slots(model, config, 9, 16, share=0.5) < 5
    with pytest.raises(ValueError, match="64 positions"):
        memory.probe_slots(model, config, 60, 4)


def test_a_probe_without_memory_for_one_slot_raises(model: LoadedModel) -> None:
    none = cramped(torch.OutOfMemoryError("not even one"))
    none.__class__ = type(
        "Full", (type(none),), {"hidden": lambda self, *inputs: (_ for _ in ()).throw(self.error)}
    )
    with pytest.raises(torch.OutOfMemoryError, match="not even one"):
        memory.probe_slots(none, lrd.DecodingConfig(gen_length=12), 9, 8)


def test_free_memory_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.free_bytes(torch.device("cpu")) > 1 << 20
    (tmp_path / "meminfo").write_text("MemFree:  1 kB\nMemAvailable:     3 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    assert memory.free_bytes(torch.device("cpu")) == 3072
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "none")
    assert memory.free_bytes(torch.device("cpu")) == sys.maxsize


def test_cuda_graphs_keep_their_activations() -> None:
    """So they are there beside a chunk's logits and beliefs."""
    case = CASES["activations"]
    model, config = model_of(case, torch.float32), settings_of(case)
    plain = memory.memory_of(model, config, case["prompt"], 4, fixed_shapes=True)
    model.transformer.graphs = Graphs()
    replayed = memory.memory_of(model, config, case["prompt"], 4, fixed_shapes=True)
    assert min(plain.activations, plain.chunk) > 0
    assert replayed.beside_weights - plain.beside_weights == min(
        plain.activations, max(plain.chunk, plain.inputs)
    )


class FakeAllocator:
    """A device of 100 bytes, of which torch holds segments of (pool, bytes, bytes in use)."""

    def __init__(self, segments: list[tuple[tuple[int, int], int, int]]) -> None:
        self._segments = segments

    def memory_snapshot(self) -> list[dict[str, Any]]:
        return [
            {"segment_pool_id": pool, "total_size": size, "allocated_size": used}
            for pool, size, used in self._segments
        ]

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        return 100 - sum(size for _, size, _ in self._segments), 100


@pytest.mark.parametrize(
    ("segments", "free"),
    [
        ([], 100),
        ([((0, 0), 40, 40)], 60),
        ([((0, 0), 40, 10)], 90),
        ([((0, 0), 40, 10), ((0, 1), 30, 5)], 60),
        ([((0, 1), 30, 0), ((3, 0), 20, 20)], 50),
    ],
)
def test_a_graphs_pool_is_not_free(
    segments: list[tuple[tuple[int, int], int, int]],
    free: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = FakeAllocator(segments)
    monkeypatch.setattr(torch.cuda, "memory_snapshot", device.memory_snapshot)
    monkeypatch.setattr(torch.cuda, "mem_get_info", device.mem_get_info)
    assert memory.free_bytes(torch.device("cuda")) == free
