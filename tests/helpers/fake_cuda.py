"""Tensors that say they are on `cuda`, on a machine without a GPU.

They have shapes, dtypes and devices, and no values: an operation that mixes devices raises, and so
does one that reads a value on the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from helpers.host_reads import refuse_reads

aten = torch.ops.aten
CUDA = torch.device("cuda")


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Inside it `device="cuda"` works, without gradients."""
    with FakeTensorMode(allow_non_fake_inputs=False), _OnCuda(), torch.no_grad():
        yield


class _OnCuda(TorchFunctionMode):
    """Does what a torch without CUDA cannot: copy a tensor there, and index it."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        refuse_reads(function, args)
        if function is torch.tensor:
            kwargs.pop("pin_memory", None)
        elif function is Tensor.__getitem__:
            return indexed(args[0], args[1])
        elif function is Tensor.__setitem__:
            return assign(*args)
        elif function is Tensor.__invert__:
            return aten.bitwise_not(args[0])
        elif function is Tensor.to and len(args) > 1 and args[1] == CUDA:
            return aten._to_copy(args[0], device=CUDA)
        found = function(*args, **kwargs)
        if function is Tensor.to and args[0].is_cuda and not found.is_cuda:
            assert kwargs.get("non_blocking"), "a copy to the host waits for the device"
        return found


def indexed(x: Tensor, index: Any) -> Tensor:
    """`x[index]` by operations that need no device."""
    view, tensors = basic(x, index)
    found: Tensor = aten.index(view, tensors) if tensors else view
    return found


def assign(x: Tensor, index: Any, value: Any) -> None:
    """`x[index] = value`."""
    view, tensors = basic(x, index)
    if tensors:
        if not isinstance(value, Tensor):
            value = torch.full((), value, dtype=x.dtype, device=x.device)
        aten.index_put_(view, tensors, value)
    elif isinstance(value, Tensor):
        aten.copy_(view, value)
    else:
        aten.fill_(view, value)


def basic(x: Tensor, index: Any) -> tuple[Tensor, list[Tensor | None]]:
    """The view by numbers, slices, None and `...`, and the tensors that index its dimensions."""
    parts = index if isinstance(index, tuple) else (index,)
    num_used = sum(part is not None and part is not Ellipsis for part in parts)
    tensors: list[Tensor | None] = []
    num_left_out, dim = x.dim() - num_used, 0
    for part in parts:
        if part is Ellipsis:
            dim += num_left_out
            continue
        if isinstance(part, int):
            x = aten.select(x, dim, part)
            continue
        if part is None:
            x = aten.unsqueeze(x, dim)
        elif isinstance(part, slice):
            x = aten.slice(x, dim, part.start, part.stop, part.step or 1)
        else:
            assert isinstance(part, Tensor), f"an index of type {type(part).__name__}"
            tensors += [None] * (dim - len(tensors)) + [part]
        dim += 1
    return x, tensors
