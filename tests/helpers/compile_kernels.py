"""Compiles the kernels of beliefs for a GPU that need not be there; prints shared memory by kernel.

    python tests/helpers/compile_kernels.py 90 bfloat16     # compute capability 9.0

Calls the operations with a recorder in place of the kernels, and compiles what they would launch.
"""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lrd import belief_kernels, belief_ops
from lrd.config import DecodingConfig

OPTIONS = ("num_warps", "num_stages")
SHARED_MEMORY = {80: 163 << 10, 86: 99 << 10, 90: 227 << 10, 100: 227 << 10}
"""Bytes that a program may take, by compute capability: A100, A10, H100, B200."""
TYPES = dict(
    [
        *((torch.bfloat16, "*bf16"), (torch.float16, "*fp16"), (torch.float32, "*fp32")),
        (torch.float64, "*fp64"),
        *((torch.int64, "*i64"), (torch.int32, "*i32"), (torch.bool, "*i1")),
        *((int, "i32"), (float, "fp32")),
    ]
)


class Recorder:
    """A kernel that notes what it is launched with."""

    def __init__(self, kernel: Any, launches: list[tuple[Any, ...]]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args, **constants: self.launches.append((self.kernel, args, constants))


def launches(dtype: torch.dtype, shared_memory: int) -> list[tuple[Any, ...]]:
    """Kernels, arguments and constants of a Dream-7B's chunk, with every option in use."""
    n, V, D = 4, 152_064, 3584
    found: list[tuple[Any, ...]] = []
    names = [name for name in vars(belief_kernels) if name.endswith("_kernel")]
    recorders = {name: Recorder(getattr(belief_kernels, name), found) for name in names}
    belief_ops._kernels = lambda: SimpleNamespace(**recorders)
    tiles = belief_ops.product_tiles
    belief_ops.product_tiles = lambda dtype, _: tiles(dtype, shared_memory)
    logits, past = torch.zeros(n, V, dtype=dtype), torch.zeros(n, V, dtype=torch.float16)
    rows, top_p = torch.arange(n), DecodingConfig().top_p
    *_, nuclei = belief_ops.read(logits, 0, top_p, (past, torch.zeros(n)), rows)
    belief_ops.expected_embedding(logits, nuclei, torch.zeros(V, D, dtype=dtype), 0)
    belief_ops.draw_tokens(torch.zeros(n, V), rows, torch.full((n,), 0.7, dtype=torch.float64))
    assert {kernel.__name__ for kernel, *_ in found} == set(names)
    return found


def compiled(kernel: Any, args: tuple[Any, ...], constants: dict[str, Any], arch: int) -> Any:
    """A kernel for these arguments; integers and addresses are multiples of 16 as launched."""
    options = {name: constants.pop(name) for name in OPTIONS if name in constants}
    signature = dict.fromkeys(kernel.arg_names, "constexpr")
    divisible = {}
    for place, (name, value) in enumerate(zip(kernel.arg_names, args, strict=False)):
        is_tensor = isinstance(value, torch.Tensor)
        signature[name] = TYPES[value.dtype if is_tensor else type(value)]
        if is_tensor or (isinstance(value, int) and value and value % 16 == 0):
            divisible[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=divisible)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def main() -> None:
    arch, shared = int(sys.argv[1]), {}
    for kernel, args, constants in launches(getattr(torch, sys.argv[2]), SHARED_MEMORY[arch]):
        found = compiled(kernel, args, constants, arch)
        assert len(found.asm["cubin"]) > 1000
        shared[kernel.__name__] = found.metadata.shared
    assert max(shared.values()) <= SHARED_MEMORY[arch], shared
    print(json.dumps(shared))


if __name__ == "__main__":
    main()
