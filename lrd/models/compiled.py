"""Makes a transformer's layers faster on a GPU: kernels fused by torch.compile, CUDA graphs.

Only pure functions of tensors [N, …] are compiled, N the positions of a pass, and only N is
dynamic. So a few graphs serve all layers, rows and lengths, with and without padding or a cache.
Attention, writes to the cache and the rotary table stay outside.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor

from lrd.config import Compile
from lrd.models.kv_cache import Window
from lrd.models.transformer import EAGER, Block, Pointwise, Transformer
from lrd.models.w8a8 import fuse_products

LOG = logging.getLogger(__name__)
CHOICES: tuple[Compile, ...] = ("none", "eager", "compile", "graphs")
MOST_GRAPHS = 64
"""CUDA graphs that are kept, one for each shape of a pass; the oldest goes first."""
WARM_RUNS = 2
"""Runs before a capture, in which kernels are compiled and libraries take their workspaces."""

Backend = str | Callable[..., Any]
Function = TypeVar("Function", bound=Callable[..., Any])


def check_compile(how: str, device: torch.device) -> None:
    """Raises ValueError for an unknown `how`, and for graphs without a CUDA device."""
    if how not in CHOICES:
        raise ValueError(
            f"compile {how!r} is unknown; choose {', '.join(CHOICES[:-1])} or {CHOICES[-1]}"
        )
    if how == "graphs" and device.type != "cuda":
        raise ValueError("compile graphs needs a CUDA device; choose compile or none")


def speed_up(transformer: Transformer, how: Compile) -> None:
    """Set how the transformer runs its layers.

    none: element-wise work is fused on a CUDA device, or runs eagerly, with a warning, where
    torch.compile does not work. eager: nothing is compiled. compile: all of a layer but attention
    is compiled. graphs: the same, and the passes of each shape are replayed as one CUDA graph.
    """
    if how == "none" and transformer.embedding.weight.is_cuda:
        fuse_pointwise(transformer)
    if how in ("compile", "graphs"):
        compile_layers(transformer)
    if how == "graphs":
        transformer.graphs = Graphs()


def fuse_pointwise(transformer: Transformer, backend: Backend = "inductor") -> bool:
    """Compile norm, rotary embedding and SwiGLU: four graphs, made here. Where that fails (no C
    compiler, no Triton) they stay eager, which one warning says; returns whether they are fused.
    Layers that multiply in eight bits have what is around their products fused too."""
    transformer.use(
        Pointwise(
            norm=compiled(EAGER.norm, backend),
            rotate=compiled(EAGER.rotate, backend),
            swiglu=compiled(EAGER.swiglu, backend),
        )
    )
    fuse_products(transformer, lambda function: compiled(function, backend))
    try:
        _try_out(transformer)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        transformer.use(EAGER)
        fuse_products(transformer, lambda function: function)
        lines = [line.strip() for line in str(error).splitlines()]
        told = [line for line in lines if line and not line.endswith("raised:")]
        reason = told[0] if told else type(error).__name__
        LOG.warning(
            "norms, rotary embedding and SwiGLU are not fused, passes take up to 1.3 times as "
            "long: torch.compile failed (%s); install a C compiler, Python's headers and triton, "
            "or choose compile eager",
            reason,
        )
        return False
    return True


def compile_layers(transformer: Transformer, backend: Backend = "inductor") -> None:
    """Compile what a layer does before and after attention, and the final norm: five graphs for
    all layers, made at the first pass."""
    before, after = None, None
    for block in transformer.blocks:
        assert isinstance(block, Block)
        before = before or compiled(block.before, backend)
        after = after or compiled(block.after, backend)
        block.before, block.after = before, after
    transformer.norm.pointwise = replace(EAGER, norm=compiled(EAGER.norm, backend))


def compiled(function: Function, backend: Backend = "inductor") -> Function:
    """A function of tensors [N, …] by torch.compile, where only N is dynamic.

    Inner sizes are constants of the kernels: to divide by a size that is not costs more than the
    arithmetic. Roundings are those of the eager operations.
    """
    assert isinstance(function, FunctionType)
    # torch counts graphs, and the sizes that it has met, for a function's code: a copy is of this
    # model alone.
    code = function.__code__.replace()
    own = FunctionType(code, function.__globals__, function.__name__, function.__defaults__)
    options: dict[str, Any] | None = (
        {"emulate_precision_casts": True} if backend == "inductor" else None
    )
    graph = torch.compile(own, fullgraph=True, backend=backend, options=options)

    def run(*args: Any) -> Any:
        if torch.compiler.is_compiling():  # By a caller: then it is part of that graph.
            return function(*args)
        for x in args:
            if isinstance(x, Tensor) and x.dim() > 1:
                torch._dynamo.maybe_mark_dynamic(x, 0)
        return graph(*args)

    return run  # type: ignore[return-value]


@torch.inference_mode()
def _try_out(transformer: Transformer) -> None:
    """A pass of one layer over a few positions."""
    table = transformer.embedding.weight
    transformer.prepare(4, table.device)
    with torch.inference_mode(False):  # As the canvases' embeddings; torch tells the two apart.
        x = torch.zeros(2, 4, table.shape[1], dtype=table.dtype, device=table.device)
    cos, sin = transformer.rotary(torch.arange(4, device=table.device).expand(2, 4), x.dtype)
    transformer.norm(transformer.blocks[0](x, cos, sin, None, torch.arange(8, device=x.device)))


# CUDA graphs.

Capture = Callable[[Callable[[], Tensor], torch.device, Any], tuple[Tensor, Callable[[], None]]]
"""A function, its device and a pool of memory → the result of the function, in memory that stays
its own, and a call that computes it anew from what is then in the function's inputs."""


def capture(
    function: Callable[[], Tensor], device: torch.device, pool: Any
) -> tuple[Tensor, Callable[[], None]]:
    """A `Capture` by CUDA."""
    with torch.cuda.device(device):
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_RUNS):
                function()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        # Other threads, which may be starting a copy, must not break the capture.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            result = function()
    return result, graph.replay


class Graphs:
    """Replays `Transformer.layers` as one CUDA graph for each shape of a pass.

    Inputs are copied to where the graph reads them. Keys and values are kept where they are: for a
    cache elsewhere there is another graph. All share one pool of memory, since none depends on
    what another has left there.
    """

    def __init__(self, capture: Capture = capture) -> None:
        self._capture = capture
        self._pool: Any = None
        self._made: OrderedDict[Any, tuple[list[Tensor], Tensor, Callable[[], None]]] = (
            OrderedDict()
        )

    def __len__(self) -> int:
        """Graphs that are kept."""
        return len(self._made)

    def __call__(
        self,
        layers: Callable[..., Tensor],
        x_BLD: Tensor,
        cos_N1E: Tensor,
        sin_N1E: Tensor,
        mask: Tensor | None,
        at_N: Tensor | None,
        window: Window | None,
        spans: Sequence[tuple[int, int]] | None = None,
    ) -> Tensor:
        """`layers` of these."""
        assert spans is None  # Shapes are fixed.
        given = [x_BLD, cos_N1E, sin_N1E, mask, at_N]
        if window is not None:
            given += [window.rows_R, window.place_RC]
        key = *(None if x is None else (x.shape, x.dtype) for x in given), _place_of(window)
        tensors = [x for x in given if x is not None]
        if key not in self._made:
            self._made[key] = self._new(layers, given, window)
            if len(self._made) > MOST_GRAPHS:
                self._made.popitem(last=False)
        inputs, result, replay = self._made[key]
        for own, x in zip(inputs, tensors, strict=True):
            own.copy_(x)
        replay()
        return result.clone()

    def _new(
        self, layers: Callable[..., Tensor], given: list[Tensor | None], window: Window | None
    ) -> tuple[list[Tensor], Tensor, Callable[[], None]]:
        own = [None if x is None else x.clone() for x in given]
        device = given[0].device  # type: ignore[union-attr]
        if self._pool is None and device.type == "cuda":
            self._pool = torch.cuda.graph_pool_handle()
        if window is not None:
            rows_R, place_RC = (x for x in own[5:] if x is not None)
            window = replace(window, rows_R=rows_R, place_RC=place_RC)
        result, replay = self._capture(lambda: layers(*own[:5], window), device, self._pool)
        return [x for x in own if x is not None], result, replay


def _place_of(window: Window | None) -> Any:
    """Where a pass keeps keys and values, and which it attends to."""
    if window is None:
        return None
    kept, rows = window.kept_BN2PKE, window.adjacent
    span = None if rows is None else (rows.start, rows.stop)
    return kept.data_ptr(), kept.shape, window.num_keys, span
