"""Speed and memory of a GPU at the shapes of LLaDA-8B and Dream-7B, with random weights.

    python -m jobs.bench.gpu        # a CUDA device of 40 GB or more; no checkpoint is read

For every model, canvas and number of slots: a forward pass and its share of the device's peak,
an LRD step against a baseline step, a step that feeds its block of 32 alone under a dual cache,
tokens a second at one token a pass without a cache, peak memory beside the formula's. Prints a
table, then as its last line one JSON object.

Legend: S slots, L positions of a slot, N positions that the head is asked for, V columns,
D width, M the MLP's width.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from statistics import median

import torch

from jobs.bench.step import BASELINE, REFINED
from lrd import DecodingConfig, Engine, Request
from lrd.config import Compile
from lrd.memory import memory_of
from lrd.models.checkpoint import LoadedModel
from lrd.models.compiled import CHOICES
from lrd.models.transformer import Transformer, TransformerConfig

MODELS = {
    "llada-8b": TransformerConfig(32, 4096, 32, 32, 12_288, 126_464, 4096, 5e5, 1e-5),
    "dream-7b": TransformerConfig(
        *(28, 3584, 28, 4, 18_944, 152_064, 131_072, 1e6, 1e-6),
        qkv_bias=True,
        rope_in_float32=False,
        logit_shift=True,
    ),
}
BLOCKS = {"llada-8b": 32, "dream-7b": None}
"""Tokens of a block as published: LLaDA Instruct decodes in blocks, Dream the whole canvas."""
PEAK_TFLOPS = {"H100": 989, "H200": 989, "A100": 312, "L40S": 362, "B200": 2250}
"""Dense bfloat16, by what the device's name holds."""
WARM_PASSES, TIMED_PASSES = 3, 8
CACHED_BLOCK = 32
PASSES_A_BLOCK = 10


def num_flops(config: TransformerConfig, slots: int, length: int, num_read: int) -> int:
    """Floating point operations of one forward pass, two for a multiply-add: matrix products
    alone. The last block's output and MLP run for the positions that are read, as the head."""
    D, kv = config.width, config.width // config.num_heads * config.num_kv_heads
    positions = slots * length
    into = 2 * positions * D * (D + 2 * kv) + 4 * slots * length * length * D
    out_of_one = 2 * D * D + 6 * D * config.mlp_width
    through = ((config.num_layers - 1) * positions + num_read) * out_of_one
    return config.num_layers * into + through + 2 * num_read * D * config.table_rows


def random_model(config: TransformerConfig, device: str, compile: Compile) -> LoadedModel:
    """Random weights, made on the device in bfloat16; logits have a deviation of 5."""
    with torch.device("meta"):
        transformer = Transformer(config).to(torch.bfloat16).requires_grad_(False).eval()
    transformer.fuse()
    transformer.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for name, weight in transformer.named_parameters():
        if weight.dim() == 1:
            weight.fill_(0 if name.endswith("bias") else 1)
            continue
        scale = 1 if name.startswith("embedding") else weight.shape[1] ** -0.5
        weight.normal_(std=5 * scale if name.startswith("head") else scale, generator=generator)
    ids = {"mask_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return LoadedModel(transformer, ids, None, compile=compile)


@dataclass(frozen=True, slots=True)
class Case:
    """Measurements of one model, canvas and number of slots."""

    model: str
    gen_length: int
    slots: int
    forward_ms: float
    mfu: float | None
    """Model FLOP utilisation of the forward pass; None where the device's peak is unknown."""
    baseline_ms: float
    refined_ms: float
    lrd_over_baseline: float
    dual_ms: float
    """A block pass of LRD under a dual cache; the full pass before it takes about `refined_ms`."""
    dual_gain: float
    """LRD's time without a cache over that with it, at `PASSES_A_BLOCK` passes a block."""
    tokens_per_second: float
    """LRD's, at one token a pass in every slot."""
    peak_bytes: int
    formula_bytes: int


def measure(
    name: str,
    model: LoadedModel,
    config: DecodingConfig,
    slots: int,
    prompt: int,
    repeats: int,
    peak_tflops: float | None,
) -> Case | None:
    """Measure one case, medians of alternating turns; None where memory runs out."""
    device = model.embedding_table.device
    sizes = {"gen_length": config.gen_length, "block_length": config.block_length}
    refined = REFINED.model_copy(update=sizes)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    dual = refined.model_copy(update={"block_length": CACHED_BLOCK, "kv_cache": "dual"})
    seconds: dict[str, list[float]] = {"forward": [], "baseline": [], "refined": [], "dual": []}
    try:
        for _ in range(repeats):
            seconds["forward"].append(time_forward(model, config, slots, prompt))
            seconds["baseline"].append(
                time_steps(model, BASELINE.model_copy(update=sizes), slots, prompt)
            )
            seconds["refined"].append(time_steps(model, refined, slots, prompt))
            seconds["dual"].append(time_steps(model, dual, slots, prompt))
    except torch.OutOfMemoryError:
        return None
    forward, base, lrd, cached = (median(taken) for taken in seconds.values())
    length, num_read = prompt + config.gen_length, slots * config.block_tokens
    flops = num_flops(model.transformer.config, slots, length, num_read)
    return Case(
        model=name,
        gen_length=config.gen_length,
        slots=slots,
        forward_ms=1e3 * forward,
        mfu=flops / forward / (peak_tflops * 1e12) if peak_tflops else None,
        baseline_ms=1e3 * base,
        refined_ms=1e3 * lrd,
        lrd_over_baseline=lrd / base,
        dual_ms=1e3 * cached,
        dual_gain=PASSES_A_BLOCK * lrd / (lrd + (PASSES_A_BLOCK - 1) * cached),
        tokens_per_second=slots / lrd,
        peak_bytes=torch.cuda.max_memory_allocated() if device.type == "cuda" else 0,
        formula_bytes=max(
            memory_of(model, config, prompt, slots).total for config in (refined, dual)
        ),
    )


@torch.inference_mode()
def time_forward(model: LoadedModel, config: DecodingConfig, slots: int, prompt: int) -> float:
    """Seconds of a forward pass with the block's logits, without padding."""
    device = model.embedding_table.device
    length = prompt + config.gen_length
    embeds = model.embed(torch.full((slots, length), 2, device=device))
    columns = torch.arange(prompt, prompt + config.block_tokens, device=device)
    at = (torch.arange(slots, device=device)[:, None] * length + columns).flatten()
    num_rows = max(1, (1 << 24) // model.embedding_table.shape[0])
    for number in range(WARM_PASSES + TIMED_PASSES):
        if number == WARM_PASSES:
            began = now(device)
        # Logits a chunk at a time, as in decoding: whole ones may not fit.
        for states in model.hidden(embeds, None, at).split(num_rows):
            model.head(states)
    return (now(device) - began) / TIMED_PASSES


def time_steps(model: LoadedModel, config: DecodingConfig, slots: int, prompt: int) -> float:
    """Seconds of a decoding step, all slots busy; raises torch.OutOfMemoryError for too many."""
    device = model.embedding_table.device
    engine = Engine(model, config, slots, prompt, fixed_shapes=True)
    for index in range(slots):
        engine.submit(Request(index, [2 + index] * prompt, index))
    for number in range(WARM_PASSES + TIMED_PASSES):
        if number == WARM_PASSES:
            began = now(device)
        engine.step()
        if engine.oom_events:
            raise torch.OutOfMemoryError(engine.oom_events[0])
    return (now(device) - began) / TIMED_PASSES


def now(device: torch.device) -> float:
    """The time, after the device has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def table_row(case: Case) -> str:
    """A case as a line of the table."""
    share = "    ?" if case.mfu is None else f"{case.mfu:5.1%}"
    return (
        f"{case.model:9} {case.gen_length:5} {case.slots:5} {case.forward_ms:9.1f} {share:>6} "
        f"{case.baseline_ms:9.1f} {case.refined_ms:9.1f} {case.lrd_over_baseline:6.3f} "
        f"{case.dual_ms:8.1f} {case.dual_gain:5.2f} "
        f"{case.tokens_per_second:9.1f} {case.peak_bytes / 2**30:8.2f} "
        f"{case.formula_bytes / 2**30:8.2f}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m jobs.bench.gpu", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--gen-lengths", nargs="+", type=int, default=[256, 512, 1024])
    parser.add_argument("--slots", nargs="+", type=int, default=[1, 8, 16, 32, 64])
    parser.add_argument("--prompt", type=int, default=128, help="tokens of every prompt")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", choices=CHOICES, default="none")
    parser.add_argument("--peak-tflops", type=float, help="dense bfloat16 peak of the device")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("jobs.bench.gpu: torch finds no CUDA device here; run it on one", file=sys.stderr)
        raise SystemExit(2)
    device = torch.cuda.get_device_name()
    known = next((peak for name, peak in PEAK_TFLOPS.items() if name in device), None)
    peak = args.peak_tflops or known
    print(f"{device}, torch {torch.__version__}, peak {peak} TFLOP/s, compile {args.compile}")
    print(
        f"{'model':9} {'canv.':>5} {'slots':>5} {'fwd ms':>9} {'MFU':>6} {'base ms':>9} "
        f"{'LRD ms':>9} {'ratio':>6} {'dual ms':>8} {'gain':>5} "
        f"{'tokens/s':>9} {'peak GiB':>8} {'formula':>8}"
    )
    cases = []
    for name in args.models:
        model = random_model(MODELS[name], "cuda", args.compile)
        for gen_length in args.gen_lengths:
            config = DecodingConfig(gen_length=gen_length, block_length=BLOCKS[name])
            for slots in args.slots:
                case = measure(name, model, config, slots, args.prompt, args.repeats, peak)
                if case is None:
                    print(f"{name:9} {gen_length:5} {slots:5}   out of memory", flush=True)
                    continue
                print(table_row(case), flush=True)
                cases.append(asdict(case))
        del model
    settings = {"device": device, "torch": torch.__version__, "peak_tflops": peak, **vars(args)}
    print(json.dumps({**settings, "cases": cases}))


if __name__ == "__main__":
    main()
