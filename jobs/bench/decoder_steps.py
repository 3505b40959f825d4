"""What a step of each preset costs: its seconds over those of the baseline's step.

    python -m jobs.bench.decoder_steps            # two columns: one block, and blocks
    python -m jobs.bench.decoder_steps --quick    # a smoke test on a small model

Random weights at a real vocabulary (V = 126,464), as `make bench` measures a step: every preset and
the baseline in turn in one process, medians of the turns. Commit rules are held back, so that every
step reads about as many open positions: what is compared is a step, not how many there are.
Prints a table, then as its last line one JSON object. The machine should do nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch

from jobs.bench.gpu_models import BASELINE
from jobs.bench.step import ModelShape, random_model, real_shape, time_passes
from lrd.config import ALL_PRESETS, DecodingConfig

VOCABULARY = 126_464
HELD_BACK: dict[str, Any] = {
    "confidence_threshold": 1.0,
    "entropy_threshold": 0.0,
    "early_stop": False,
    "stop_gap_early": 1e6,
    "stop_gap_middle": 1e6,
    "stop_gap_late": 1e6,
}
"""Values with which a preset that sets these commits as little in a pass as its rule can."""


@dataclass(frozen=True, slots=True)
class Canvas:
    """A canvas of one or more blocks of the same length."""

    name: str
    gen_length: int
    block_length: int


def canvases(block: int) -> list[Canvas]:
    """One block, where all read what the baseline reads; and two, as `make bench` has."""
    return [Canvas("one block", block, block), Canvas("two blocks", 2 * block, block)]


def held_back(name: str, canvas: Canvas) -> DecodingConfig:
    """A preset on this canvas, its commit rule held back."""
    settings = dict(ALL_PRESETS[name])
    settings |= {key: value for key, value in HELD_BACK.items() if settings.get(key) is not None}
    if settings.get("steps") is not None or settings.get("schedule") == "doubling":
        settings["steps"] = canvas.gen_length
    if settings.get("schedule") == "doubling":
        settings["schedule"] = "even"  # Or four passes commit fifteen positions.
    sizes = {"gen_length": canvas.gen_length, "block_length": canvas.block_length}
    return DecodingConfig(**{**settings, **sizes, "stop_at_eos": False})


def seconds_of_steps(
    shape: ModelShape, canvas: Canvas, names: list[str], num_passes: int, repeats: int
) -> dict[str, float]:
    """Seconds of a step by preset, the median of alternating turns."""
    model = random_model(shape)
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(2, shape.num_columns, (shape.slots, shape.prompt), generator=generator)
    sizes = {"gen_length": canvas.gen_length, "block_length": canvas.block_length}
    configs = {name: held_back(name, canvas) for name in names}
    configs["baseline"] = BASELINE.model_copy(update=sizes)
    seconds: dict[str, list[float]] = {name: [] for name in configs}
    for turn in range(1, repeats + 1):
        for name, config in configs.items():
            spent, _ = time_passes(model, config, prompts.tolist(), num_passes)
            seconds[name].append(spent)
        print(f"{canvas.name}: turn {turn} of {repeats}", file=sys.stderr, flush=True)
    return {name: median(taken) for name, taken in seconds.items()}


def table(seconds: dict[str, dict[str, float]]) -> str:
    """Milliseconds and ratio of each preset, the columns side by side."""
    head = "".join(f"{f'{canvas}, ms':>18}{'ratio':>8}" for canvas in seconds)
    lines = [f"{'preset':16}{head}"]
    for name in next(iter(seconds.values())):
        cells = ""
        for found in seconds.values():
            cells += f"{1e3 * found[name]:18.1f}{found[name] / found['baseline']:8.3f}"
        lines.append(f"{name:16}{cells}")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m jobs.bench.decoder_steps", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--passes", type=int, default=3, help="steps of a turn, after the first")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--presets", nargs="+", choices=list(ALL_PRESETS), help="[all]")
    names = [canvas.name for canvas in canvases(1)]
    parser.add_argument("--canvas", nargs="+", choices=names, default=names, help="[both]")
    parser.add_argument("--layers", type=int, help="layers of the model, 32 in an 8B one [4]")
    parser.add_argument("--quick", action="store_true", help="one turn, a small model")
    args = parser.parse_args()
    shape = real_shape(VOCABULARY)
    if args.quick:
        args.repeats, shape = 1, ModelShape(20_480, 64, 1, 64, 2, 8, 8)
    if args.layers:
        shape = replace(shape, num_layers=args.layers)
    torch.set_num_threads(args.threads)
    names = [name for name in args.presets or ALL_PRESETS if name != "baseline"]
    seconds = {
        canvas.name: seconds_of_steps(shape, canvas, names, args.passes, args.repeats)
        for canvas in canvases(shape.block)
        if canvas.name in args.canvas
    }
    print(table(seconds))
    ratios = {
        canvas: {name: round(spent / found["baseline"], 4) for name, spent in found.items()}
        for canvas, found in seconds.items()
    }
    facts = {"columns": shape.num_columns, "layers": shape.num_layers}
    print(json.dumps({**facts, "step_over_baseline": ratios}))


if __name__ == "__main__":
    main()
