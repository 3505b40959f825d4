"""A transformer's forward pass through torch.compile, once for every shape.

The shapes are those of a bucket's slots, with and without padding, and with a block cache those of
block passes and of full passes of 1, 2, 4 … rows: there are few, and each is compiled once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lrd.config import Compile
from lrd.models.kv_cache import Window
from lrd.models.transformer import Transformer

MODES: dict[Compile, str] = {"compile": "default", "graphs": "reduce-overhead"}
MOST_SHAPES = 64
"""torch gives up compiling after 8 shapes."""

Hidden = Callable[..., Tensor]
"""`Transformer.hidden` at chosen positions, or `Transformer.hidden_kept`."""


def check_compile(how: str, device: torch.device) -> None:
    """Raises ValueError for an unknown `how`, and for graphs without a CUDA device."""
    if how not in ("none", *MODES):
        raise ValueError(f"compile {how!r} is unknown; choose none, {' or '.join(MODES)}")
    if how == "graphs" and device.type != "cuda":
        raise ValueError("compile graphs needs a CUDA device; choose compile or none")


def hidden_of(
    transformer: Transformer, how: Compile, backend: str | Callable[..., Any] = "inductor"
) -> tuple[Hidden, Hidden]:
    """The transformer's `hidden` and `hidden_kept`, compiled as `how` says at the first pass of
    every shape.

    backend: of torch.compile; others than inductor know no modes.
    """
    if how == "none":
        return transformer.hidden, transformer.hidden_kept
    mode = MODES[how] if backend == "inductor" else None

    def compiled_of(function: Hidden) -> Hidden:
        return torch.compile(function, fullgraph=True, dynamic=False, mode=mode, backend=backend)

    def run(compiled: Hidden, num_positions: int, embeds: Tensor, *rest: Any) -> Tensor:
        transformer.prepare(num_positions, embeds.device)
        if how == "graphs":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with torch._dynamo.config.patch(recompile_limit=MOST_SHAPES):
            states_ND = compiled(embeds, *rest)
        # The graph's next run writes to the memory of this one's result.
        return states_ND.clone() if how == "graphs" else states_ND

    whole, kept = compiled_of(transformer.hidden), compiled_of(transformer.hidden_kept)

    def hidden(embeds_BLD: Tensor, attention_mask_BL: Tensor | None, at_N: Tensor) -> Tensor:
        return run(whole, embeds_BLD.shape[1], embeds_BLD, attention_mask_BL, at_N)

    def hidden_kept(
        embeds_RCD: Tensor,
        positions_RC: Tensor,
        num_positions: int,
        key_mask_RP: Tensor | None,
        at_N: Tensor,
        window: Window | None,
        spans: Sequence[tuple[int, int]] | None = None,
    ) -> Tensor:
        assert spans is None  # Shapes are fixed.
        if how == "graphs" and window is not None:
            # A graph may write in place only to memory that does not move.
            torch._dynamo.mark_static_address(window.kept_BN2PKE)
        rest = positions_RC, num_positions, key_mask_RP, at_N, window
        return run(kept, num_positions, embeds_RCD, *rest)

    return hidden, hidden_kept
