"""Fused projections, compiled functions and CUDA graphs decode what plain passes do."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoints import SMALL, logits_of, random_tensors, write
from helpers.engine import UNEVEN, assert_same, drain, requests, run
from helpers.few import few
from helpers.random_model import LIVELY, random_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import lrd
from jobs.tiny.problems import problems
from lrd.canvases import Canvases
from lrd.decoding import step
from lrd.models.compiled import Graphs as CudaGraphs
from lrd.models.compiled import compile_layers, fuse_pointwise
from lrd.models.transformer import (
    Transformer,
    TransformerConfig,
    attention,
    attention_mask,
    attention_of_groups,
)
from lrd.prompts import encode_prompt


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SMALL)
def test_fused_projections_say_the_same(name: str, dtype: str, tmp_path: Path) -> None:
    """Shared kv heads and biases (Dream) included."""
    folder = write(tmp_path, SMALL[name], random_tensors(SMALL[name]))
    plain, fused = lrd.load_model(folder, dtype=dtype), lrd.load_model(folder, dtype=dtype)
    size = sum(p.numel() for p in plain.transformer.parameters())
    fused.transformer.fuse()
    assert sum(p.numel() for p in fused.transformer.parameters()) == size
    names = [n for n, _ in fused.transformer.blocks[0].named_parameters() if "bias" not in n]
    assert len(names) == 6, "norms, one product before attention, one before down, and two more"
    atol = 1e-4 if dtype == "float32" else 0.1
    assert torch.allclose(logits_of(plain), logits_of(fused), atol=atol)


def test_a_fused_model_decodes_the_same() -> None:
    plain, fused = random_model(**LIVELY), random_model(**LIVELY)
    fused.transformer.fuse()
    assert_same(run(fused, UNEVEN, requests())[0], run(plain, UNEVEN, requests())[0])


def test_heads_that_share_keys_may_be_more_queries() -> None:
    """What CUDA's kernel for masks is given, on the meta device and on one where both ways run."""
    query, key, value = (torch.randn(2, heads, 5, 8) for heads in (6, 2, 2))
    real = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]]).bool()
    expected = attention(query, key, value, attention_mask(real, torch.float32))
    elsewhere = attention_mask(real.to("meta"), torch.float32)
    assert elsewhere is not None
    assert elsewhere.dtype == torch.float32
    additive = torch.zeros(2, 1, 1, 5).masked_fill(~real[:, None, None], -torch.inf)
    assert torch.allclose(attention_of_groups(query, key, value, additive), expected, atol=1e-6)
    of_queries = torch.rand(2, 5, 5) < 0.7
    of_queries[:, :, 2] = True
    own = attention_mask(of_queries, torch.float32)
    repeated = (x.repeat_interleave(3, dim=1) for x in (key, value))
    assert torch.allclose(
        attention(query, *repeated, own), attention(query, key, value, own), atol=1e-6
    )
    shapes: list[tuple[int, ...]] = []

    class Shapes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            shapes.extend(x.shape for x in args if isinstance(x, Tensor))
            return func(*args, **(kwargs or {}))

    on_meta = [x.to("meta") for x in (query, key, value)]
    assert attention(*on_meta, attention_mask(of_queries.to("meta"), torch.float32)).shape == (
        query.shape
    )
    with Shapes():
        found = attention(*on_meta, elsewhere)
    assert found.shape == query.shape
    assert max(math.prod(shape) for shape in shapes) <= query.numel(), "no keys were repeated"


class Graphs:
    """A backend of torch.compile that runs graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.inputs: list[list[Any]] = []

    def __call__(self, graph: Any, inputs: list[Any]) -> Any:
        self.inputs.append([tuple(x.shape) for x in inputs if isinstance(x, Tensor)])
        return graph.forward

    def __len__(self) -> int:
        return len(self.inputs)


CACHED = lrd.DecodingConfig(
    gen_length=12, block_length=4, kv_cache="dual", suffix=0, max_refine_steps=2
)
SHADOWED = UNEVEN.model_copy(
    update={
        "entropy_threshold": None,
        "confidence_threshold": 0.3,
        "reopen": "shadow",
        "block_length": 4,
    }
)
ALIGNED = {**LIVELY, "logit_shift": False}
ROOMS = [(9, 3), (12, 1), (30, 2), (20, 5), (40, 4), (9, 3)]
"""Lengths of the longest prompt, and slots: two seen before, ascending ones, one slot."""


@pytest.mark.parametrize(
    ("speed_up", "most", "logit_shift"),
    [
        pytest.param(fuse_pointwise, 4, False, id="fused, LLaDA"),
        pytest.param(fuse_pointwise, 4, True, id="fused, Dream", marks=pytest.mark.slow),
        pytest.param(compile_layers, 5, False, id="layers, LLaDA", marks=pytest.mark.slow),
        pytest.param(compile_layers, 5, True, id="layers, Dream", marks=pytest.mark.slow),
    ],
)
def test_a_few_graphs_serve_all_shapes_and_layers(
    speed_up: Callable[..., Any], most: int, logit_shift: bool
) -> None:
    """Rows, lengths, padding, block caches; and a second model has its own. What sees embeddings
    that were made outside inference mode has a graph for these."""
    for _ in range(2):
        graphs = Graphs()
        plain, fast = (random_model(**{**LIVELY, "logit_shift": logit_shift}) for _ in range(2))
        fast.compiled = True
        speed_up(fast.transformer, graphs)
        for prompt_length, slots in ROOMS:
            for config in (UNEVEN, CACHED):
                samples, engine = run(fast, config, requests(), slots, prompt_length)
                assert engine.fixed_shapes, "a compiled model has few shapes, on a CPU too"
                assert_same(samples, run(plain, config, requests(), slots, prompt_length)[0])
        assert len(graphs) == most, graphs.inputs


def test_many_models_in_one_process_stay_within_torchs_limit() -> None:
    """Which is for a function's code, over all models."""
    for number in range(torch._dynamo.config.recompile_limit + 2):
        graphs = Graphs()
        model = random_model(number)
        assert fuse_pointwise(model.transformer, graphs)
        assert len(graphs) == 4


def test_a_layer_number_is_no_graph_of_its_own() -> None:
    """32 layers, as 2."""
    config = TransformerConfig(32, 16, 2, 1, 24, 40, 64, 100.0, 1e-5)
    for speed_up, most in ((fuse_pointwise, 4), (compile_layers, 5)):
        transformer, graphs = Transformer(config).requires_grad_(False), Graphs()
        speed_up(transformer, graphs)
        with torch.inference_mode():
            for rows in (1, 3):
                transformer.hidden(torch.zeros(rows, 7, 16), None, torch.arange(5))
        assert len(graphs) <= most


def test_without_a_compiler_passes_run_eagerly_and_one_line_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def no_compiler(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("Failed to find C compiler.\nPlease specify one via CC.")

    plain, model = random_model(**LIVELY), random_model(**LIVELY)
    assert not fuse_pointwise(model.transformer, no_compiler)
    [line] = [record.getMessage() for record in caplog.records if "lrd" in record.name]
    assert "\n" not in line
    for words in ("Failed to find C compiler.", "install a C compiler", "compile eager"):
        assert words in line
    assert_same(run(model, UNEVEN, requests())[0], run(plain, UNEVEN, requests())[0])


def test_want_of_memory_is_no_want_of_a_compiler() -> None:
    def full(graph: Any, inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

        return run

    with pytest.raises(torch.OutOfMemoryError):
        fuse_pointwise(random_model(3).transformer, full)


@pytest.mark.parametrize("preset", few(["fast", "wino", "baseline", "saber", "rcr"], of_each=2))
def test_a_whole_step_is_one_graph(preset: str) -> None:
    """Forward pass, beliefs and state, without a break."""
    config = lrd.DecodingConfig.preset(preset, gen_length=8, block_length=4)
    states = []
    for compiled in (False, True):
        graphs, model = Graphs(), random_model(**ALIGNED)
        state = Canvases.empty(model, config, 2, 12, True)
        for row in range(2):
            state.place(row, [3] * (4 - row), model, config, "left")
        one = torch.compile(step, fullgraph=True, backend=graphs) if compiled else step
        with torch.no_grad():
            step(model, config, state)  # Takes the memory of past beliefs.
            one(model, config, state)
        assert len(graphs) == compiled
        states.append(state)
    for name, value in states[0].outcomes():
        assert torch.allclose(value, getattr(states[1], name), equal_nan=True, atol=1e-5), name


class Recorded:
    """Stands for CUDA: a graph runs the function again, and writes to the same result."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(
        self, function: Callable[[], Tensor], device: torch.device, pool: Any
    ) -> tuple[Tensor, Callable[[], None]]:
        result = function().clone()
        self.captures += 1

        def replay() -> None:
            self.replays += 1
            result.copy_(function())

        # What a capture computes is not there before a replay.
        result.fill_(torch.nan)
        return result, replay


@pytest.mark.parametrize(
    "config", [UNEVEN, CACHED, SHADOWED], ids=["whole", "cached", "with shadows"]
)
def test_a_shape_is_captured_once_and_replayed(config: lrd.DecodingConfig) -> None:
    plain, model = random_model(**ALIGNED), random_model(**ALIGNED)
    recorded = Recorded()
    model.transformer.graphs = CudaGraphs(recorded)
    model.compiled = True
    for number in range(2):
        for prompt_length, slots in ((9, 3), (12, 2)):
            engine = lrd.Engine(model, config, slots, prompt_length)
            expected = run(plain, config, requests(), slots, prompt_length)[0]
            assert_same(drain(engine, requests()), expected)
            if config is UNEVEN:
                # Of as many rows as there are slots, or fewer.
                assert recorded.captures == (3 if (number, slots) == (0, 3) else 3 + 2)
    if config.caches:  # Of each engine's own cache: block passes, and full ones of 1 and 2 rows,
        assert recorded.captures <= 2 * (3 + 4 + 2 + 4)  # of two widths.
    assert recorded.replays > 3 * recorded.captures


def test_old_graphs_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrd.models.compiled.MOST_GRAPHS", 2)
    model, recorded = random_model(3), Recorded()
    model.transformer.graphs = graphs = CudaGraphs(recorded)
    with torch.inference_mode():
        for length in (5, 6, 7, 7, 5):
            model.logits(torch.zeros(1, length, 32))
    assert len(graphs) == 2
    assert recorded.captures == 4


@pytest.mark.slow
def test_the_embedded_model_compiled_writes_the_same() -> None:
    plain, compiled = lrd.load_model("tiny"), lrd.load_model("tiny", compile="compile")
    texts = [problem.question for problem in islice(problems("test", seed=3), 6)]
    prompts = [encode_prompt(plain, text) for text in texts]
    config = lrd.DecodingConfig.preset("fast", gen_length=32)
    samples = lrd.decode(compiled, prompts, config, batch_size=4)
    expected = lrd.decode(plain, prompts, config, batch_size=4)
    assert [s.canvas for s in samples] == [s.canvas for s in expected]


def test_what_cannot_be_compiled_is_one_line() -> None:
    with pytest.raises(ValueError, match="graphs needs a CUDA device; choose compile or none"):
        lrd.load_model("tiny", compile="graphs")
    with pytest.raises(ValueError, match="'fast' is unknown; choose none, eager, compile or"):
        lrd.load_model("tiny", compile="fast")
    with pytest.raises(ValueError, match="plugs:counter compiles itself"):
        lrd.load_model("plugs:counter", compile="compile")
