"""Raises where a tensor's value is read on the host: on a GPU that waits for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

READS = {
    *(Tensor.tolist, Tensor.item, Tensor.numpy, Tensor.cpu),
    *(Tensor.__bool__, Tensor.__int__, Tensor.__float__),
    *(Tensor.__index__, Tensor.__contains__),
    *(Tensor.nonzero, torch.nonzero, torch.masked_select, Tensor.masked_select),
}
INDEXING = {Tensor.__getitem__, Tensor.__setitem__}


def refuse_reads(function: Any, args: Any) -> None:
    """Raises AssertionError for a call that reads a value, or a shape that depends on values."""
    if function in READS:
        raise AssertionError(f"{function} reads a tensor on the host")
    if function in INDEXING:
        parts = args[1] if isinstance(args[1], tuple) else (args[1],)
        for part in parts:
            if isinstance(part, Tensor) and part.dtype == torch.bool:
                raise AssertionError("a boolean index has a shape that depends on values")


class NoReads(TorchFunctionMode):
    """Refuses reads of all that runs inside it."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        refuse_reads(function, args)
        return function(*args, **(kwargs or {}))
