"""Predicts a GPU's milliseconds a pass, with and without a block cache, from counted operations.

    python -m jobs.bench.predict                # Markdown tables; a minute of one core, no GPU
    python -m jobs.bench.predict --page jobs/benchmarks/predicted-gpu.md

Nothing is measured. The passes of LLaDA-8B and Dream-7B are run at true shapes on torch's meta
device, where a dispatch mode notes every operation's FLOPs and bytes; an operation takes the longer
of its FLOPs over the device's rate and its bytes over its bandwidth. Two bounds: *eager* counts
every operation and at least LAUNCH a kernel; *limit* counts matrix products, attention and the
head alone, as if all else were fused into them and the pass were one graph.

Legend: S slots, R rows of a pass, C columns that it feeds, L columns of a row, K of them a block.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jobs.bench.gpu import MODELS
from jobs.bench.peers import blocks_of
from jobs.bench.step import REFINED
from jobs.output import OK, Parser, command
from jobs.tiny.comparison_page import fill
from lrd import decoding
from lrd.block_cache import FULL_POSITIONS
from lrd.canvases import Canvases
from lrd.full_passes import powers_of_two
from lrd.models.checkpoint import LoadedModel
from lrd.models.kv_cache import Window
from lrd.models.transformer import Transformer, TransformerConfig
from pipeline.markdown import table

PROMPT, BLOCK, PASSES = 128, 32, 10
WAITED = 1
"""Passes that a row sits out before its full one: the host learns of it a pass late."""
Bound = Literal["eager", "limit"]
BOUNDS: tuple[Bound, ...] = ("eager", "limit")
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


@dataclass(frozen=True, slots=True)
class Operation:
    """One kernel."""

    kind: str
    """gemm, attention or other."""
    flops: float
    moved: float
    """Bytes read and written."""

    @property
    def is_dense(self) -> bool:
        """Whether it stays where all else is fused into it."""
        return self.kind != "other"

    def seconds(self, device: Device) -> float:
        rates = {"gemm": device.gemm, "attention": device.attention}
        return max(self.flops / rates.get(self.kind, math.inf), self.moved / device.copy)


BELIEF_BYTES = 20
"""What the kernels of `lrd/belief_kernels.py` move a logit at most, in bfloat16."""
NUCLEUS = 128
"""Tokens of a nucleus, as assumed: most beliefs of trained models have fewer."""
FREE = frozenset(("_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty"))
"""Operations that move nothing, beside views."""
GATHERS = frozenset(("index", "embedding", "gather", "index_select"))
SCATTERS = frozenset(("copy_", "index_put_", "index_put", "scatter_", "scatter"))


class Account(TorchDispatchMode):
    """Notes the operations that run inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        if not (func.is_view or name in FREE):
            self.operations.append(operation(name, args, kwargs or {}, out))
        return out

    def attend(self, query: Tensor, key: Tensor, value: Tensor, _: Tensor | None) -> Tensor:
        """Stands for a layer's attention: one kernel that never writes scores."""
        B, H, C, E = query.shape
        moved = sum(x.numel() * x.element_size() for x in (query, query, key, value))
        flops = 4 * B * H * C * key.shape[2] * E
        self.operations.append(Operation("attention", flops, moved))
        return torch.empty(B, H, C, E, dtype=query.dtype, device=query.device)


def operation(name: str, args: Any, kwargs: dict[str, Any], out: Any) -> Operation:
    """What one operation computes and moves: inputs read once, outputs written once."""
    given = {key: value for key, value in kwargs.items() if key != "out"}
    ins = [x for x in tree_leaves((args, given)) if isinstance(x, Tensor)]
    outs = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
    if name in ("mm", "addmm", "bmm"):
        left = args[1] if name == "addmm" else args[0]
        return Operation("gemm", 2 * outs[0].numel() * left.shape[-1], touched([*ins, *outs]))
    if name == "read_beliefs":
        return Operation("other", 0, BELIEF_BYTES * args[0].numel())
    if name == "mix_nuclei":
        embedding = args[1].shape[1] * args[1].element_size()
        return Operation("other", 0, args[0].shape[0] * embedding * (NUCLEUS + 1))
    if name in GATHERS:
        return Operation("other", 0, 2 * touched(outs) + touched(ins[1:]))
    if name in SCATTERS:
        return Operation("other", 0, 2 * touched(ins[-1:]))
    return Operation("other", 0, touched([*ins, *outs]))


def touched(tensors: Sequence[Tensor]) -> int:
    """Bytes of the tensors; what is expanded is read once."""
    total = 0
    for x in tensors:
        sizes = (
            size for size, stride in zip(x.shape, x.stride(), strict=True) if stride or not size
        )
        total += math.prod(sizes) * x.element_size()
    return total


@contextmanager
def counting(transformer: Transformer) -> Iterator[Account]:
    """An account of what runs inside; attention is one operation."""
    account = Account()
    before = [block.attend for block in blocks_of(transformer)]
    for block in blocks_of(transformer):
        block.attend = account.attend
    try:
        with torch.no_grad(), account:
            yield account
    finally:
        for block, attend in zip(blocks_of(transformer), before, strict=True):
            block.attend = attend


@cache
def shaped(name: str) -> LoadedModel:
    """A model of that shape without weights."""
    return model_of(MODELS[name])


def model_of(config: TransformerConfig) -> LoadedModel:
    """The same of any shape."""
    with torch.device("meta"):
        transformer = Transformer(config).to(torch.bfloat16).requires_grad_(False).eval()
    transformer.fuse()
    return LoadedModel(transformer, {"mask_token_id": 0, "eos_token_id": 1}, None)


Operations = Counter[Operation]


Kind = Literal["plain", "full", "block"]
"""A pass without a cache, one that fills the cache, and one that feeds a block alone."""


@cache
def pass_of(name: str, rows: int, length: int, kind: Kind) -> Operations:
    """A forward pass of `rows` rows of `length` columns, up to the final states of a block."""
    return counted_pass(shaped(name), rows, length, BLOCK, kind)


def counted_pass(model: LoadedModel, rows: int, length: int, block: int, kind: Kind) -> Operations:
    """The same of any model: what the engine runs, without masks."""
    columns = block + model.feeds_before if kind == "block" else length
    table_VD = model.embedding_table
    embeds = torch.empty(rows, columns, table_VD.shape[1], dtype=table_VD.dtype, device="meta")
    row_R = torch.arange(rows, device="meta")
    place_RC = torch.arange(length - columns, length, device="meta").expand(rows, -1)
    at_RK = row_R[:, None] * columns + torch.arange(columns - block, columns, device="meta")
    cache = model.new_cache(rows, length)
    cache.take_memory()
    num_keys = length if kind == "block" else None
    window = Window(cache.kept_BN2PKE, row_R, place_RC, num_keys, slice(0, rows))
    model.transformer.prepare(length, table_VD.device)
    with counting(model.transformer) as account:
        if kind == "plain":
            model.hidden(embeds, None, at_RK.flatten())
        else:
            model.hidden_kept(embeds, place_RC, length, None, at_RK.flatten(), window)
    return Counter(account.operations)


@cache
def beliefs_of(name: str, slots: int) -> Operations:
    """What a step of latent refinement does beside the layers."""
    return counted_beliefs(shaped(name), slots, BLOCK)


def counted_beliefs(model: LoadedModel, slots: int, block: int) -> Operations:
    """Head, beliefs, mixing and commits: a step of one block without its layers."""
    config = REFINED.model_copy(update={"gen_length": block, "block_length": block})
    state = Canvases.empty(model, config, slots, block + 1, True)
    for row in range(slots):
        state.place(row, [2], model, config, "left")
    with torch.no_grad():
        decoding.step(model, config, state)  # Allocates what is kept of the beliefs.
    with counting(model.transformer) as step:
        decoding.step(model, config, state)
    at = (torch.arange(slots)[:, None] * (block + 1) + torch.arange(1, block + 1)).flatten()
    with counting(model.transformer) as layers:
        model.hidden(state.embeds_BLD, state.mask, at.to("meta"))
    return Counter(step.operations) - Counter(layers.operations)


# Milliseconds.


def milliseconds(operations: Operations, device: Device, bound: Bound) -> float:
    """Of one after the other."""
    if bound == "limit":
        fused = (number * one.seconds(device) for one, number in operations.items() if one.is_dense)
        return 1e3 * sum(fused)
    busy = sum(number * one.seconds(device) for one, number in operations.items())
    return 1e3 * max(busy, device.launch * operations.total())


def plain_pass(name: str, slots: int, length: int, device: Device, bound: Bound) -> float:
    """Milliseconds of a pass of all slots without a cache."""
    operations = pass_of(name, slots, length, "plain") + beliefs_of(name, slots)
    return milliseconds(operations, device, bound)


def cached_pass(name: str, slots: int, length: int, device: Device, bound: Bound) -> float:
    """The same with the dual cache, for as many decoding passes of every slot.

    In a step all slots feed their block; each is with probability 1 / (PASSES + WAITED) one that
    enters a block, and its full pass is computed too, in groups of 1, 2, 4, 8 … rows. WAITED of
    PASSES + WAITED steps advance a slot by nothing.
    """
    short = pass_of(name, slots, length, "block") + beliefs_of(name, slots)
    share = 1 / (PASSES + WAITED)
    step = 0.0
    for entering in range(slots + 1):
        chance = math.comb(slots, entering) * share**entering * (1 - share) ** (slots - entering)
        if chance > 1e-6:
            parts = powers_of_two(list(range(entering)), max(1, FULL_POSITIONS // length))
            whole = sum((pass_of(name, len(part), length, "full") for part in parts), Counter())
            step += chance * milliseconds(short + whole, device, bound)
    return step * (PASSES + WAITED) / PASSES


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
