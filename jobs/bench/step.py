"""What latent refinement costs beside the model: one step's time, and the beliefs' memory.

Random weights at the shapes of real vocabularies; used by `jobs.bench.decode`.
"""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import dataclass
from statistics import median

import torch

from jobs.bench.bench_cells import Memory
from jobs.bench.gpu_models import BASELINE, REFINED
from lrd import DecodingConfig, Engine, Request
from lrd.models.checkpoint import LoadedModel
from lrd.models.protocol import DiffusionModel
from lrd.models.transformer import Transformer, TransformerConfig


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model with random weights, and the canvases that it decodes."""

    num_columns: int
    width: int
    num_layers: int
    mlp_width: int
    slots: int
    prompt: int
    block: int
    sharpness: float = 5.0
    """Standard deviation of the logits: 5 gives beliefs of one to three nats, as trained models
    have between their first pass and their last; 3 gives vague ones of about seven."""


def real_shape(num_columns: int, sharpness: float = 5.0) -> ModelShape:
    """Width 1024, 4 layers, 8 slots, blocks of 32."""
    return ModelShape(num_columns, 1024, 4, 2816, 8, 48, 32, sharpness)


def random_model(shape: ModelShape) -> LoadedModel:
    """A model of this shape; its head is scaled to the sharpness."""
    generator = torch.Generator().manual_seed(0)
    config = TransformerConfig(
        num_layers=shape.num_layers,
        width=shape.width,
        num_heads=max(1, shape.width // 64),
        num_kv_heads=max(1, shape.width // 64),
        mlp_width=shape.mlp_width,
        table_rows=shape.num_columns,
        max_length=4096,
        rope_theta=10_000.0,
        rms_norm_eps=1e-5,
    )
    with torch.device("meta"):
        transformer = Transformer(config)
    transformer = transformer.to_empty(device="cpu").requires_grad_(False).eval()
    for name, weight in transformer.named_parameters():
        if weight.dim() == 1:
            weight.fill_(1)
            continue
        weight.normal_(generator=generator)
        if not name.startswith("embedding"):
            weight.mul_(weight.shape[1] ** -0.5 * (shape.sharpness if "head" in name else 1))
    ids = {"mask_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return LoadedModel(transformer, ids, None)


def time_passes(
    model: DiffusionModel,
    config: DecodingConfig,
    prompts: list[list[int]],
    num_passes: int,
) -> tuple[float, float]:
    """Seconds a pass after the first, which allocates; the first one's mean entropy, in nats."""
    engine = Engine(model, config, len(prompts), max(map(len, prompts)))
    for index, prompt in enumerate(prompts):
        engine.submit(Request(index, prompt, index))
    samples = engine.step()
    began, passes = time.perf_counter(), 0
    while engine.busy and passes < num_passes:
        samples += engine.step()
        passes += 1
    seconds = (time.perf_counter() - began) / passes
    if samples:
        return seconds, sum(s.entropy_trace[0] for s in samples) / len(samples)
    return seconds, float(engine.canvases.entropy_trace_BT[:, 0].mean())


@dataclass(frozen=True, slots=True)
class StepCost:
    """Medians of alternating runs."""

    baseline_seconds: float
    refined_seconds: float
    entropy: float

    @property
    def ratio(self) -> float:
        return self.refined_seconds / self.baseline_seconds


def step_cost(
    model: DiffusionModel,
    prompts: list[list[int]],
    gen_length: int,
    block: int,
    num_passes: int,
    repeats: int,
) -> StepCost:
    """LRD step ÷ baseline step on the same canvases."""
    sizes = {"gen_length": gen_length, "block_length": block}
    seconds: dict[DecodingConfig, list[float]] = {BASELINE: [], REFINED: []}
    entropy = 0.0
    for _ in range(repeats):
        for config, taken in seconds.items():
            spent, entropy = time_passes(
                model, config.model_copy(update=sizes), prompts, num_passes
            )
            taken.append(spent)
    return StepCost(median(seconds[BASELINE]), median(seconds[REFINED]), entropy)


def random_step_cost(shape: ModelShape, num_passes: int, repeats: int) -> StepCost:
    """The same with random weights and random prompts."""
    model = random_model(shape)
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(2, shape.num_columns, (shape.slots, shape.prompt), generator=generator)
    return step_cost(model, prompts.tolist(), 2 * shape.block, shape.block, num_passes, repeats)


def belief_peak_bytes(shape: ModelShape) -> int | None:
    """Peak memory of two LRD passes beside the weights, in a process of its own; None where the
    system does not tell a process its peak."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak, (shape, torch.get_num_threads()))


def _peak(shape: ModelShape, num_threads: int) -> int | None:
    torch.set_num_threads(num_threads)
    model = random_model(shape)
    config = REFINED.model_copy(update={"gen_length": shape.block})
    engine = Engine(model, config, shape.slots, shape.prompt)
    for index in range(shape.slots):
        engine.submit(Request(index, [2 + index] * shape.prompt, index))
    memory = Memory(torch.device("cpu"))
    memory.begin()
    for _ in range(2):
        engine.step()
    memory.end()
    return memory.peak
