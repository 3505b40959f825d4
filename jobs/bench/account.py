"""Counts what a GPU would run: kernels, bytes and products of the engine's own code, without a GPU.

The code runs on torch's meta device, where tensors have shapes and no values; a dispatch mode
notes every operation. Attention counts as one kernel, and each function of `transformer.Pointwise`,
if it is fused, as one that reads its inputs and writes its outputs once. An operation `lrd::…` is
one too, which moves what `DECLARED` says, else its inputs and outputs once.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jobs.bench.peers import blocks_of
from lrd import belief_ops, decoding
from lrd.canvases import Canvases
from lrd.config import DecodingConfig
from lrd.models.checkpoint import LoadedModel
from lrd.models.kv_cache import Window
from lrd.models.transformer import EAGER, Pointwise, Transformer, TransformerConfig

Way = Literal["eager", "fused"]
"""How element-wise work of the layers and beliefs run: one kernel an operation, or those that this
project has for a GPU."""
PassKind = Literal["plain", "full", "block"]
"""A pass without a cache, one that fills the cache, and one that feeds a block alone."""

FREE = frozenset(("_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty"))
"""Operations that move nothing, beside views."""
GATHERS = frozenset(("index", "embedding", "gather", "index_select"))
SCATTERS = frozenset(("copy_", "index_put_", "index_put", "scatter_", "scatter"))
SYNCS = frozenset(
    ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2")
)
"""Operations that wait for the device, since the host needs a value or a shape from it."""
GATHERED = 64
"""Tokens of a nucleus whose embeddings are gathered: an assumption, sizes depend on values."""
DECLARED: dict[str, Callable[[Sequence[Any], Any], float]] = {
    "lrd::read_beliefs": lambda args, out: belief_ops.MOST_BYTES / 2 * args[0].nbytes,
    "lrd::mix_nuclei": lambda args, out: (GATHERED + 1) * out.nbytes,
}
"""Name of an operation of ours, `lrd::…` → bytes that it moves, of its arguments and results."""


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


Operations = Counter[Operation]


class Account(TorchDispatchMode):
    """Notes the operations that run inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.syncs: Counter[str] = Counter()
        self._inside = False
        """Whether a kernel runs whose own operations are part of it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        space, name = func._schema.name.split("::")
        if self._inside or func.is_view or name in FREE:
            return out
        if name in SYNCS:
            self.syncs[name] += 1
        if space == "lrd":
            moved = DECLARED.get(func._schema.name, _once)(args, out)
            self.operations.append(Operation("other", 0, moved))
        else:
            self.operations.append(operation(name, args, kwargs or {}, out))
        return out

    def attend(self, query: Tensor, key: Tensor, value: Tensor, _: Tensor | None) -> Tensor:
        """Stands for a layer's attention: one kernel that never writes scores."""
        B, H, C, E = query.shape
        moved = touched([query, query, key, value])
        flops = 4 * B * H * C * key.shape[2] * E
        self.operations.append(Operation("attention", flops, moved))
        # CUDA's kernels write positions before heads, so that the next product needs no copy.
        return torch.empty(B, C, H, E, dtype=query.dtype, device=query.device).transpose(1, 2)

    def fused(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function as one kernel."""

        def run(*args: Any) -> Any:
            self._inside = True
            try:
                out = function(*args)
            finally:
                self._inside = False
            self.operations.append(Operation("other", 0, _once(args, out)))
            return out

        return run

    def pointwise(self, way: Way) -> Pointwise:
        """The layers' element-wise work, for `Transformer.use`."""
        if way == "fused":
            return Pointwise(
                *(self.fused(EAGER.norm), self.fused(EAGER.rotate), self.fused(EAGER.swiglu))
            )
        return replace(EAGER, norm=norm_by_operations, rotate=rotate_by_operations)


def norm_by_operations(x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """`transformer.rms_norm`, to the bit, as it is written in the families' own code."""
    wide = x_ND.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight_D * wide.to(x_ND.dtype)


def rotate_by_operations(
    query_NHE: Tensor, key_NKE: Tensor, cos_N1E: Tensor, sin_N1E: Tensor
) -> tuple[Tensor, Tensor]:
    """`transformer.rotate_both`, to the bit, as it is written there: x's second half is negated,
    not the sine's first."""
    half = sin_N1E.shape[-1] // 2
    sin_N1E = torch.cat([-sin_N1E[..., :half], sin_N1E[..., half:]], dim=-1)

    def rotated(x: Tensor) -> Tensor:
        wide = x.to(cos_N1E.dtype)
        first, second = wide.chunk(2, dim=-1)
        return (wide * cos_N1E + torch.cat([-second, first], dim=-1) * sin_N1E).to(x.dtype)

    return rotated(query_NHE), rotated(key_NKE)


def _once(args: Any, out: Any) -> float:
    """Bytes of inputs and outputs."""
    return touched([x for x in tree_leaves((args, out)) if isinstance(x, Tensor)])


def operation(name: str, args: Any, kwargs: dict[str, Any], out: Any) -> Operation:
    """What one operation computes and moves: inputs read once, outputs written once."""
    given = {key: value for key, value in kwargs.items() if key != "out"}
    ins = [x for x in tree_leaves((args, given)) if isinstance(x, Tensor)]
    outs = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
    if name in ("mm", "addmm", "bmm"):
        left = args[1] if name == "addmm" else args[0]
        return Operation("gemm", 2 * outs[0].numel() * left.shape[-1], touched([*ins, *outs]))
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
def counting(transformer: Transformer, way: Way = "eager") -> Iterator[Account]:
    """An account of what runs inside."""
    account = Account()
    blocks = blocks_of(transformer)
    before = [block.attend for block in blocks], transformer.norm.pointwise
    for block in blocks:
        block.attend = account.attend
    transformer.use(account.pointwise(way))
    kernels = {belief_ops.SWITCH: "on" if way == "fused" else "off"}
    try:
        with mock.patch.dict(os.environ, kernels), torch.no_grad(), account:
            yield account
    finally:
        transformer.use(before[1])
        for block, attend in zip(blocks, before[0], strict=True):
            block.attend = attend


def model_of(config: TransformerConfig) -> LoadedModel:
    """A model of a shape, without weights, as it is on a GPU."""
    with torch.device("meta"):
        transformer = Transformer(config).to(torch.bfloat16).requires_grad_(False).eval()
    transformer.fuse()
    return LoadedModel(transformer, {"mask_token_id": 0, "eos_token_id": 1}, None)


def counted_pass(
    model: LoadedModel, rows: int, length: int, block: int, kind: PassKind, way: Way = "eager"
) -> Account:
    """A forward pass of `rows` rows of `length` columns, up to the final states of a block: what
    the engine runs, without masks."""
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
    with counting(model.transformer, way) as account:
        if kind == "plain":
            model.hidden(embeds, None, at_RK.flatten())
        else:
            model.hidden_kept(embeds, place_RC, length, None, at_RK.flatten(), window)
    return account


def counted_step(
    model: LoadedModel, config: DecodingConfig, slots: int, prompt: int, way: Way = "eager"
) -> Account:
    """A step of `slots` slots with fixed shapes and padding, the second of its block."""
    state = Canvases.empty(model, config, slots, prompt + config.gen_length, True)
    for row in range(slots):
        state.place(row, [2] * prompt, model, config, "left")
    with counting(model.transformer, way):
        decoding.step(model, config, state)  # Allocates what is kept of the beliefs.
    with counting(model.transformer, way) as account:
        decoding.step(model, config, state)
    return account


def counted_beliefs(
    model: LoadedModel, config: DecodingConfig, slots: int, way: Way = "eager"
) -> Operations:
    """Head, beliefs, mixing and commits: a step of one block without its layers.

    config: of one block, whose gen_length is the block's.
    """
    K = config.gen_length
    step = counted_step(model, config, slots, 1, way)
    table_VD = model.embedding_table
    embeds = torch.empty(slots, K + 1, table_VD.shape[1], dtype=table_VD.dtype, device="meta")
    mask = torch.empty(slots, K + 1, dtype=torch.long, device="meta")
    at = (torch.arange(slots)[:, None] * (K + 1) + torch.arange(1, K + 1)).flatten()
    with counting(model.transformer, way) as layers:
        model.hidden(embeds, mask, at.to("meta"))
    return Counter(step.operations) - Counter(layers.operations)
