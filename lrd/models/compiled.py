"""A transformer's forward pass through torch.compile, once for every shape.

The shapes are those of a bucket's slots, with and without padding: there are few, and each is
compiled once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lrd.config import Compile
from lrd.models.transformer import Transformer

MODES: dict[Compile, str] = {"compile": "default", "graphs": "reduce-overhead"}
MOST_SHAPES = 64
"""torch gives up compiling after 8 shapes."""

Hidden = Callable[[Tensor, Tensor | None, Tensor], Tensor]
"""`Transformer.hidden` at chosen positions."""


def check_compile(how: str, device: torch.device) -> None:
    """Raises ValueError for an unknown `how`, and for graphs without a CUDA device."""
    if how not in ("none", *MODES):
        raise ValueError(f"compile {how!r} is unknown; choose none, {' or '.join(MODES)}")
    if how == "graphs" and device.type != "cuda":
        raise ValueError("compile graphs needs a CUDA device; choose compile or none")


def hidden_of(
    transformer: Transformer, how: Compile, backend: str | Callable[..., Any] = "inductor"
) -> Hidden:
    """The transformer's `hidden`, compiled as `how` says at the first pass of every shape.

    backend: of torch.compile; others than inductor know no modes.
    """
    if how == "none":
        return transformer.hidden
    mode = MODES[how] if backend == "inductor" else None
    compiled = torch.compile(
        transformer.hidden, fullgraph=True, dynamic=False, mode=mode, backend=backend
    )

    def hidden(embeds_BLD: Tensor, attention_mask_BL: Tensor | None, at_N: Tensor) -> Tensor:
        transformer.prepare(embeds_BLD.shape[1], embeds_BLD.device)
        if how == "graphs":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with torch._dynamo.config.patch(recompile_limit=MOST_SHAPES):
            states_ND: Tensor = compiled(embeds_BLD, attention_mask_BL, at_N)
        # The graph's next run writes to the memory of this one's result.
        return states_ND.clone() if how == "graphs" else states_ND

    return hidden
