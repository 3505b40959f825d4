"""Fused projections and compiled passes decode what plain ones do."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoints import SMALL, logits_of, random_tensors, write
from helpers.engine import UNEVEN, assert_same, requests, run
from helpers.random_model import LIVELY, random_model
from torch import Tensor

import lrd
from jobs.tiny.problems import problems
from lrd.models.compiled import hidden_of
from lrd.models.transformer import attention
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


def test_kv_heads_may_be_repeated_for_a_mask() -> None:
    """What CUDA's masked kernel is given, on a device where both ways run."""
    query, key, value = (torch.randn(2, heads, 5, 8) for heads in (6, 2, 2))
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]]).bool()[:, None, None, :]
    repeated = (x.repeat_interleave(3, dim=1) for x in (key, value))
    assert torch.allclose(
        attention(query, key, value, mask), attention(query, *repeated, mask), atol=1e-6
    )
    on_meta = (x.to("meta") for x in (query, key, value, mask))
    assert attention(*on_meta).shape == query.shape


def test_every_shape_is_compiled_once_and_decodes_the_same() -> None:
    shapes: list[list[Any]] = []

    def noted(graph: Any, inputs: list[Any]) -> Any:
        shapes.append([tuple(x.shape) for x in inputs if isinstance(x, Tensor)])
        return graph.forward

    plain, compiled = random_model(**LIVELY), random_model(**LIVELY)
    compiled.compiled = True
    compiled._hidden, _ = hidden_of(compiled.transformer, "compile", backend=noted)
    for prompt_length, asked in ((9, requests()), (12, requests()), (1, requests([[3], [5]]))):
        for _ in range(2):
            samples, engine = run(compiled, UNEVEN, asked, prompt_length=prompt_length)
            assert engine.fixed_shapes, "a compiled model has few shapes, on a CPU too"
            expected, _ = run(plain, UNEVEN, asked, prompt_length=prompt_length)
            assert_same(samples, expected)
    # The longest prompt alone has no padding in the first; the last never has any.
    assert 3 <= len(shapes) <= 4


@pytest.mark.parametrize("kv_cache", ["prefix", "dual"])
def test_cached_passes_are_compiled_for_few_shapes(kv_cache: str) -> None:
    """One for the block pass, one for full passes of 1, 2, 4 … rows each; keys stay in place."""
    batches: list[int] = []

    def noted(graph: Any, inputs: list[Any]) -> Any:
        batches.append(max(len(x) for x in inputs if isinstance(x, Tensor) and x.dim() == 3))
        return graph.forward

    plain, compiled = random_model(**LIVELY), random_model(**LIVELY)
    compiled.compiled = True
    _, compiled._hidden_kept = hidden_of(compiled.transformer, "compile", backend=noted)
    config = lrd.DecodingConfig(
        gen_length=12, block_length=4, kv_cache=kv_cache, suffix=0, max_refine_steps=2
    )
    for _ in range(2):
        samples, engine = run(compiled, config, requests(), num_slots=3)
        assert engine.fixed_shapes
        assert_same(samples, run(plain, config, requests())[0])
    assert len(batches) <= 6, batches
    assert set(batches) <= {1, 2, 3}, "full passes of 1 and 2 rows, the block's of all 3"


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
    with pytest.raises(ValueError, match="'fast' is unknown; choose none, compile or graphs"):
        lrd.load_model("tiny", compile="fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="plugs:counter compiles itself"):
        lrd.load_model("plugs:counter", compile="compile")
