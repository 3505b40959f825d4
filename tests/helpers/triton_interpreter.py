"""Triton's interpreter on a CPU, mended where it computes bfloat16 otherwise than a GPU.

`tests/conftest.py` turns the interpreter on where there is no GPU. It keeps bfloat16 as bit
patterns, which it truncates to and multiplies as they are (triton issues 11584, 11604); here they
are rounded and multiplied as numbers. Counts the bytes that programs load and store.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

needs_interpreter = pytest.mark.skipif(
    not (HAS_TRITON and INTERPRETED),
    reason="Triton is not installed (pip install .[kernels], on Linux)"
    if not HAS_TRITON
    else "kernels run on the GPU here, not in Triton's interpreter",
)


def number_of(bits: np.ndarray) -> np.ndarray:
    """float32 of bfloat16's bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def bits_of(number: np.ndarray) -> np.ndarray:
    """bfloat16's bits of float32, rounded to the nearest."""
    rounded = torch.from_numpy(np.ascontiguousarray(number)).bfloat16()
    return rounded.view(torch.int16).numpy().view(np.uint16)


def mend() -> None:
    """Change the interpreter of this process; once is enough."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder as Builder
    from triton.runtime.interpreter import TensorHandle

    if getattr(Builder, "mended", False):
        return
    plain_cast, plain_dot = Builder.cast_impl, Builder.create_dot

    def cast(self: Any, source: Any, to: Any) -> Any:
        kinds = (source.dtype.scalar, to.scalar)
        if kinds == (tl.bfloat16, tl.float32):
            return TensorHandle(number_of(source.data), tl.float32)
        if kinds == (tl.float32, tl.bfloat16):
            return TensorHandle(bits_of(source.data), tl.bfloat16)
        return plain_cast(self, source, to)

    def dot(self: Any, a: Any, b: Any, *more: Any) -> Any:
        a, b = (
            TensorHandle(number_of(x.data), tl.float32) if x.dtype.scalar == tl.bfloat16 else x
            for x in (a, b)
        )
        return plain_dot(self, a, b, *more)

    Builder.cast_impl, Builder.create_dot, Builder.mended = cast, dot, True
    for name in ("create_fp_ext", "create_fp_trunc"):
        setattr(Builder, name, lambda self, source, to: self.cast_impl(source, to))
    _patch_once()
    np.seterr(all="ignore")  # Infinities and NaN are what some tests are about.


def _patch_once() -> None:
    """A function that a kernel calls replaces all of Triton's language again, which takes longer
    than what it computes."""
    from types import SimpleNamespace

    from triton.runtime import interpreter

    plain, patched = interpreter._patch_lang, set()
    nothing = SimpleNamespace(restore=lambda: None)

    def patch(function: Any) -> Any:
        languages = {interpreter.tl, interpreter.tl.core}
        values = [value for value in function.__globals__.values() if inspect.ismodule(value)]
        key = frozenset(value.__name__ for value in values if value in languages)
        if key in patched:
            return nothing
        scope = plain(function)
        patched.add(key)
        restore = scope.restore

        def undo() -> None:
            patched.discard(key)
            restore()

        return SimpleNamespace(restore=undo)

    interpreter._patch_lang = patch


@contextmanager
def counted_bytes() -> Iterator[dict[str, int]]:
    """The bytes that programs load and store inside, masked ones left out."""
    from triton.runtime.interpreter import InterpreterBuilder as Builder

    counts = {"loaded": 0, "stored": 0}
    plain = {"loaded": Builder.create_masked_load, "stored": Builder.create_masked_store}

    def counting(kind: str) -> Any:
        def call(self: Any, pointers: Any, *more: Any) -> Any:
            mask = more[0] if kind == "loaded" else more[1]
            element = pointers.get_element_ty().primitive_bitwidth // 8
            counts[kind] += int(np.count_nonzero(mask.data)) * element
            return plain[kind](self, pointers, *more)

        return call

    Builder.create_masked_load, Builder.create_masked_store = counting("loaded"), counting("stored")
    try:
        yield counts
    finally:
        Builder.create_masked_load = plain["loaded"]
        Builder.create_masked_store = plain["stored"]
