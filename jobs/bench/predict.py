"""Predicts a GPU's milliseconds a pass, with and without a block cache, from counted operations.

    python -m jobs.bench.predict                # Markdown tables; a minute of one core, no GPU
    python -m jobs.bench.predict --page jobs/benchmarks/predicted-gpu.md

Nothing is measured. The passes of LLaDA-8B and Dream-7B are run at true shapes on torch's meta
device, where every operation's FLOPs and bytes are noted (`account.py`); an operation takes the
longer of its FLOPs over the device's rate and its bytes over its bandwidth. *eager* counts every
operation and at least LAUNCH a kernel; *fused* the same where the layers' element-wise functions
and the beliefs are kernels of their own; *limit* counts matrix products, attention and the head
alone, as if all else were fused into them and the pass were one graph.

Legend: S slots, R rows of a pass, C columns that it feeds, L columns of a row, K of them a block.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from jobs.bench.account import (
    GATHERED,
    Operation,
    Operations,
    PassKind,
    Way,
    counted_beliefs,
    counted_pass,
    model_of,
)
from jobs.bench.gpu_models import MODELS, REFINED
from jobs.output import OK, Parser, command
from jobs.tiny.comparison_page import fill
from lrd.belief_ops import MOST_BYTES
from lrd.block_cache import FULL_POSITIONS
from lrd.full_passes import powers_of_two
from lrd.models.checkpoint import LoadedModel
from pipeline.markdown import table

PROMPT, BLOCK, PASSES = 128, 32, 10
Bound = Literal["eager", "fused", "limit"]
BOUNDS: tuple[Bound, ...] = ("eager", "limit")
GOALS = {"llada-8b": (240.0, 45.0), "dream-7b": (250.0, 45.0)}
"""Milliseconds a pass of 16 slots and 512 positions on an H100, without and with the dual cache."""
WHOLE_CANVAS = {"llada-8b": False, "dream-7b": True}
"""Whether the model decodes its canvas as one block, as published, where nothing is cached."""
MEASURED_PASSES = {1: 78, 2: 92, 3: 60, 4: 27, 5: 17, 6: 8, 7: 6, 8: 7, 9: 2, 10: 1, 17: 2}
"""Passes that 300 problems took `tiny` in blocks of 32, entropy threshold 0.2 with a gated stop and
no refinement (2026-11-28, `jobs.tiny.accuracy.distinct(300, 15)`); nearly all in one block."""


@dataclass(frozen=True, slots=True)
class Device:
    """Rates that good kernels reach, not peaks."""

    name: str
    gemm: float
    """FLOP/s of bfloat16 matrix products."""
    attention: float
    """FLOP/s of attention with a mask."""
    copy: float
    """Bytes/s."""
    memory: float
    launch: float = 5e-6
    """Seconds a kernel takes to be launched."""


DEVICES = (
    Device("H100", 0.70e15, 0.25e15, 3.0e12, 80e9),
    Device("A100", 0.25e15, 0.12e15, 1.7e12, 80e9),
)


@cache
def shaped(name: str) -> LoadedModel:
    """A model of that shape without weights."""
    return model_of(MODELS[name])


@cache
def pass_of(name: str, rows: int, length: int, kind: PassKind, way: Way = "eager") -> Operations:
    """A forward pass of `rows` rows of `length` columns, up to the final states of a block."""
    return Counter(counted_pass(shaped(name), rows, length, BLOCK, kind, way).operations)


@cache
def beliefs_of(name: str, slots: int, block: int = BLOCK, way: Way = "eager") -> Operations:
    """What a step of latent refinement does beside the layers."""
    config = REFINED.model_copy(update={"gen_length": block, "block_length": block})
    return counted_beliefs(shaped(name), config, slots, way)


# Milliseconds.


def seconds(one: Operation, device: Device) -> float:
    """The longer of its products and its bytes."""
    rates = {"gemm": device.gemm, "attention": device.attention}
    return max(one.flops / rates.get(one.kind, math.inf), one.moved / device.copy)


def milliseconds(operations: Operations, device: Device, bound: Bound) -> float:
    """Of one after the other."""
    if bound == "limit":
        dense = (
            number * seconds(one, device) for one, number in operations.items() if one.is_dense
        )
        return 1e3 * sum(dense)
    busy = sum(number * seconds(one, device) for one, number in operations.items())
    return 1e3 * max(busy, device.launch * operations.total())


def plain_pass(
    name: str,
    slots: int,
    length: int,
    device: Device,
    bound: Bound,
    block: int = BLOCK,
) -> float:
    """Milliseconds of a pass of all slots without a cache."""
    beliefs = beliefs_of(name, slots, block, _way(bound))
    return milliseconds(pass_of(name, slots, length, "plain", _way(bound)) + beliefs, device, bound)


def cached_pass(
    name: str,
    slots: int,
    length: int,
    device: Device,
    bound: Bound,
) -> float:
    """The same with the dual cache, for as many decoding passes of every slot.

    In a step all slots feed their block; each is with probability 1 / PASSES one that enters a
    block, and its full pass is computed too, in groups of 1, 2, 4, 8 … rows.
    """
    way = _way(bound)
    short = pass_of(name, slots, length, "block", way)
    short = short + beliefs_of(name, slots, BLOCK, way)
    share = 1 / PASSES
    step = 0.0
    for entering in range(slots + 1):
        chance = math.comb(slots, entering) * share**entering * (1 - share) ** (slots - entering)
        if chance > 1e-6:
            parts = powers_of_two(list(range(entering)), max(1, FULL_POSITIONS // length))
            whole = sum((pass_of(name, len(p), length, "full", way) for p in parts), Counter())
            step += chance * milliseconds(short + whole, device, bound)
    return step


def _way(bound: Bound) -> Way:
    return "eager" if bound == "eager" else "fused"


def fits(name: str, slots: int, length: int, device: Device) -> bool:
    """Whether weights and kept keys and values take at most 0.9 of the memory."""
    weights = sum(p.numel() * p.element_size() for p in shaped(name).transformer.parameters())
    return weights + slots * shaped(name).new_cache(0, length).row_bytes <= 0.9 * device.memory


def lockstep(slots: int, rows_of_passes: Mapping[int, int] = MEASURED_PASSES) -> float:
    """Passes of a batch that waits for its slowest row, by passes of a mean row, where rows take
    independently so many passes as those that were measured."""
    total, below, slowest = sum(rows_of_passes.values()), 0, 0.0
    for passes, rows in sorted(rows_of_passes.items()):
        chance = ((below + rows) / total) ** slots - (below / total) ** slots
        slowest += passes * chance
        below += rows
    return slowest * total / sum(passes * rows for passes, rows in rows_of_passes.items())


# The page.


def fused_table(device: Device, slots: int = 16, gen_length: int = 512) -> str:
    """Milliseconds of a pass before and after fusing, beside the goals."""
    head = ["model", "cache", "block", "eager", "fused", "goal", "products", "attention"]
    head += ["element-wise", "kernels: eager", "fused"]
    rows = []
    length = PROMPT + gen_length
    for name, (plain_goal, dual_goal) in GOALS.items():
        block = gen_length if WHOLE_CANVAS[name] else BLOCK
        both: list[Bound] = ["eager", "fused"]
        counted = [
            pass_of(name, slots, length, "plain", _way(bound))
            + beliefs_of(name, slots, block, _way(bound))
            for bound in both
        ]
        parts = {
            kind: Counter({one: n for one, n in counted[1].items() if one.kind == kind})
            for kind in ("gemm", "attention", "other")
        }
        plain = [milliseconds(one, device, "eager") for one in counted]
        rows.append(
            [name, "none", str(block), *(f"{ms:.0f}" for ms in plain), f"≤ {plain_goal:.0f}"]
            + [
                f"{1e3 * sum(n * seconds(o, device) for o, n in p.items()):.0f}"
                for p in parts.values()
            ]
            + [f"{one.total():,}" for one in counted]
        )
        dual = [cached_pass(name, slots, length, device, bound) for bound in both]
        rows.append(
            [name, "dual", str(BLOCK), *(f"{ms:.0f}" for ms in dual), f"≤ {dual_goal:.0f}"]
            + [""] * 5
        )
    return table(head, rows)


def gain_table(device: Device, slots: Sequence[int], gen_lengths: Sequence[int]) -> str:
    """Milliseconds of both, and their ratio, by model, canvas and slots."""
    head = ["model", "gen_length", "slots", "none: eager", "limit", "dual: eager", "limit",
            "gain: eager", "limit"]  # fmt: skip
    rows = []
    for name in MODELS:
        for gen_length in gen_lengths:
            for number in slots:
                length = PROMPT + gen_length
                start = [name, str(gen_length), str(number)]
                plain = [plain_pass(name, number, length, device, bound) for bound in BOUNDS]
                cells = [f"{ms:.1f}" for ms in plain]
                if not fits(name, number, length, device):
                    rows.append([*start, *cells, "does not fit", "", "", ""])
                    continue
                dual = [cached_pass(name, number, length, device, bound) for bound in BOUNDS]
                cells += [f"{ms:.1f}" for ms in dual]
                rows.append(
                    [*start, *cells, *(f"{a / b:.1f}" for a, b in zip(plain, dual, strict=True))]
                )
    return table(head, rows)


def why_table(device: Device, name: str, gen_length: int, slots: Sequence[int]) -> str:
    """What bounds one pass over blocks, and one over all columns: milliseconds by cause."""
    length = PROMPT + gen_length
    head = ["slots", "weights read", "block: products", "block: kept read", "block: attention"]
    head += ["all: products", "all: attention", "positions all / block", "slowest row / mean row"]
    rows = []
    for number in slots:
        short = pass_of(name, number, length, "block")
        whole = pass_of(name, number, length, "plain")
        kept = number * shaped(name).new_cache(0, length).row_bytes
        weights = sum(
            p.numel() * p.element_size() for p in shaped(name).transformer.blocks.parameters()
        )
        rows.append(
            [
                str(number),
                f"{1e3 * weights / device.copy:.1f}",
                f"{1e3 * flops(short, 'gemm') / device.gemm:.1f}",
                f"{1e3 * kept / device.copy:.1f}",
                f"{1e3 * flops(short, 'attention') / device.attention:.1f}",
                f"{1e3 * flops(whole, 'gemm') / device.gemm:.1f}",
                f"{1e3 * flops(whole, 'attention') / device.attention:.1f}",
                f"{length / BLOCK:.0f}",
                f"{lockstep(number):.2f}",
            ]
        )
    return table(head, rows)


def flops(operations: Operations, kind: str) -> float:
    """Of one kind."""
    return sum(number * one.flops for one, number in operations.items() if one.kind == kind)


def blocks(args: argparse.Namespace) -> dict[str, str]:
    """The measured blocks of the page; here they are predicted."""
    devices = [device for device in DEVICES if device.name in args.devices]
    rates = "; ".join(
        f"{d.name}: products {d.gemm / 1e15:.2f} PFLOP/s, attention {d.attention / 1e15:.2f}, "
        f"memory {d.copy / 1e12:.1f} TB/s, {d.launch * 1e6:.0f} µs a launch"
        for d in devices
    )
    found = {
        "rates": f"**Predicted, not measured.** {rates}. Prompt {PROMPT}, blocks of {BLOCK}, "
        f"{PASSES} passes a block, bfloat16, latent refinement (r_f 0.15)."
    }
    found["fused"] = (
        f"{devices[0].name}; the beliefs' kernel moves {MOST_BYTES} bytes for each position and "
        f"column of the logits, its bound, and a nucleus is counted as {GATHERED} tokens."
        f"\n\n{fused_table(devices[0])}"
    )
    parts = [f"### {d.name}\n\n{gain_table(d, args.slots, args.gen_lengths)}" for d in devices]
    found["gain"] = "\n\n".join(parts)
    middle = args.gen_lengths[len(args.gen_lengths) // 2]
    parts = [
        f"### {name}, gen_length {middle}, {devices[0].name}, milliseconds a pass\n\n"
        f"{why_table(devices[0], name, middle, args.slots)}"
        for name in MODELS
    ]
    found["why"] = "\n\n".join(parts)
    return found


@command("bench.predict")
def run(args: argparse.Namespace) -> int:
    """Predict and print, or fill the page."""
    if min(*args.slots, *args.gen_lengths) < 1:
        raise ValueError("--slots and --gen-lengths are numbers of at least 1")
    page = Path(args.page) if args.page else None
    text = page.read_text() if page else ""
    made = blocks(args)
    if page:
        page.write_text(fill(text, made, str(page)))
    else:
        print("\n\n".join(made.values()))
    return OK


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = Parser(prog="python -m jobs.bench.predict")
    names = [device.name for device in DEVICES]
    made.add_argument("--devices", nargs="+", choices=names, default=names)
    made.add_argument("--slots", nargs="+", type=int, default=[1, 8, 32, 64])
    made.add_argument("--gen-lengths", nargs="+", type=int, default=[256, 512, 1024])
    made.add_argument("--page", metavar="PAGE.md", help="whose marked blocks are filled [stdout]")
    return made


if __name__ == "__main__":
    sys.exit(run(parser().parse_args()))
