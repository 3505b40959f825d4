"""Beliefs by kernels on a GPU: the calls of `belief_kernels.py` as operations of torch.

Shapes depend on no value and nothing waits for the device. The operations are known to torch's fake
tensors and to its compiler, with or without Triton.

Legend: n rows of a chunk, R rows of the past, V columns, D width, k candidates.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from lrd.beliefs import BeliefSummary
from lrd.models.c_compiler import refuse_without_compiler

LOG = logging.getLogger(__name__)

SWITCH = "LRD_KERNELS"
"""Environment variable: `off` computes beliefs on a GPU without Triton, `on` uses the kernels on
every device, as tests do with Triton's interpreter."""
MOST_BYTES = 20
"""Bytes that the kernels move for a bfloat16 logit at most: two readings of it, reading and writing
what is kept of it, four cuts of the search; the test of the kernels counts them. All readings
but the first are of a row that was just read, and come from the GPU's cache."""
MOST_IDS = 1024
"""Tokens of a nucleus that are gathered one by one. Beyond, a row of the dense product costs less
than reading so many embeddings."""
TILE, WIDE, STAGES = 1024, 4096, 3
"""Columns that a program reads at a time: in the loops that search, and in the others; and how many
such reads it has under way."""
MIXED_IDS, MIXED_WIDTH = 16, 512
"""Embeddings, and part of their width, that a program sums at a time."""
LARGE_SHARED_MEMORY = 3 * 2 * (128 + 256) * 64
"""Bytes that the dense product's largest tiles take."""
SHIFTS = {torch.bfloat16: 16, torch.float16: 13, torch.float32: 0}
"""Bits of float32 that the logits' dtype lacks."""


def kernels_apply(table_VD: Tensor, logits_nV: Tensor | None = None) -> bool:
    """Whether kernels compute the beliefs of a model with this embedding table, or of these of its
    logits. A table on `meta` stands for one on a GPU."""
    logits_dtype = table_VD.dtype if logits_nV is None else logits_nV.dtype
    if (
        table_VD.dtype not in SHIFTS
        or logits_dtype != table_VD.dtype
        or not table_VD.is_contiguous()
    ):
        return False
    mode, device = os.environ.get(SWITCH, "auto"), table_VD.device.type
    if mode == "auto":
        return device == "meta" or (device == "cuda" and _can_build())
    return mode == "on"


@cache
def _can_build() -> bool:
    """Whether this machine can build the kernels; where not, one warning says what is missing."""
    try:
        if importlib.util.find_spec("triton") is None:
            raise ValueError("triton is not installed (pip install triton)")
        refuse_without_compiler()
    except ValueError as error:
        LOG.warning(
            "beliefs are computed without kernels, and a step may take twice as long: %s", error
        )
        return False
    return True


@dataclass(slots=True)
class Nuclei:
    """The set T of Eq. 3 for n rows of logits."""

    ids_nk: Tensor
    """Tokens in ascending order, of sets up to MOST_IDS."""
    extent_n3: Tensor
    """Number of tokens, key of the least logit, largest id among the tokens that have it."""
    scale_n2: Tensor
    """The row's maximum, and Σ exp(logit − maximum) over T."""


def read(
    logits_nV: Tensor,
    mask_id: int,
    top_p: float | None,
    past: tuple[Tensor, Tensor],
    rows_n: Tensor,
) -> tuple[BeliefSummary, Tensor, Nuclei]:
    """`Belief.of_logits`, `PastBeliefs.kl_then_keep` and the nuclei of top_p in one reading.

    past: s [R, V] and log Z [R] of the pass before, replaced in place at `rows`.
    top_p: None where nothing is mixed. Returns the beliefs' numbers, KL [n] and the nuclei.
    """
    token_n, log_z_n, entropy_n, kl_n, *nuclei = read_beliefs(
        logits_nV, *past, rows_n, mask_id, -1.0 if top_p is None else top_p
    )
    return BeliefSummary(log_z_n, token_n, entropy_n), kl_n, Nuclei(*nuclei)


def expected_embedding(logits_nV: Tensor, nuclei: Nuclei, table_VD: Tensor, mask_id: int) -> Tensor:
    """Σ_v p̄(v)·e_v [n, D] in the table's dtype. Overwrites logits, which have that dtype too."""
    assert logits_nV.dtype == table_VD.dtype
    expected_nD: Tensor = mix_nuclei(
        logits_nV, table_VD, nuclei.ids_nk, nuclei.extent_n3, nuclei.scale_n2, mask_id
    )
    return expected_nD


@torch.library.custom_op("lrd::read_beliefs", mutates_args=("s_RV", "log_z_R"))
def read_beliefs(
    logits_nV: Tensor,
    s_RV: Tensor,
    log_z_R: Tensor,
    rows_n: Tensor,
    mask_id: int,
    top_p: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Token, log Z, entropy, KL [n]; ids, extent and scale of `Nuclei`. top_p < 0: no nuclei."""
    n, V = logits_nV.shape
    found = _empty_beliefs(logits_nV, s_RV, log_z_R, rows_n, mask_id, top_p)
    if n == 0:
        return found
    *_, extent_n3, scale_n2 = found
    # The whole of a belief needs no search, and a sum may round to 1 before the last token.
    searches = 0 <= top_p < 1
    with _on_device_of(logits_nV):
        _kernels().read_beliefs_kernel[(n,)](
            logits_nV.contiguous(),
            s_RV,
            log_z_R,
            rows_n,
            *found,
            V,
            mask_id,
            max(top_p, 1e-30),
            math.log((1 - top_p) / V) - 1 if searches else 0.0,
            mixes=searches,
            shift=SHIFTS[logits_nV.dtype],
            num_ids=MOST_IDS,
            tile=TILE,
            wide=WIDE,
            stages=STAGES,
            num_warps=8,
        )
    if top_p >= 1:  # More than are gathered.
        extent_n3[:, 0], extent_n3[:, 1], extent_n3[:, 2] = max(V, MOST_IDS + 1), -(2**31), V
        scale_n2[:, 1] = found[1].exp()
    return found


def _empty_beliefs(
    logits_nV: Tensor,
    s_RV: Tensor,
    log_z_R: Tensor,
    rows_n: Tensor,
    mask_id: int,
    top_p: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    n = logits_nV.shape[0]

    def empty(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(n, *shape, dtype=dtype, device=logits_nV.device)

    return (
        empty(torch.long),
        *(empty(torch.float32), empty(torch.float32), empty(torch.float32)),
        *(empty(torch.int32, MOST_IDS), empty(torch.int32, 3), empty(torch.float32, 2)),
    )


@torch.library.custom_op("lrd::mix_nuclei", mutates_args=("logits_nV",))
def mix_nuclei(
    logits_nV: Tensor,
    table_VD: Tensor,
    ids_nk: Tensor,
    extent_n3: Tensor,
    scale_n2: Tensor,
    mask_id: int,
) -> Tensor:
    """Σ_v p̄(v)·e_v [n, D]: small nuclei gather their tokens, and rows of large ones share a dense
    product, whose programs end at once where there is none."""
    (n, V), D = logits_nV.shape, table_VD.shape[1]
    expected_nD = _empty_expected(logits_nV, table_VD, ids_nk, extent_n3, scale_n2, mask_id)
    if n == 0:
        return expected_nD
    kernels, k, logits_nV = _kernels(), ids_nk.shape[1], logits_nV.contiguous()
    with _on_device_of(logits_nV):
        kernels.mix_few_kernel[(n, -(-D // MIXED_WIDTH))](
            *(logits_nV, table_VD, ids_nk, extent_n3, scale_n2, expected_nD, V, D),
            num_ids=k,
            tile_ids=MIXED_IDS,
            tile=MIXED_WIDTH,
            num_warps=4,
        )
        write_weights(logits_nV, Nuclei(ids_nk, extent_n3, scale_n2), mask_id)
        order_n = extent_n3[:, 0].argsort(descending=True)
        shared = _shared_memory(table_VD.device) if table_VD.is_cuda else LARGE_SHARED_MEMORY
        rows, width, tile, stages, warps = product_tiles(table_VD.dtype, shared)
        kernels.mix_many_kernel[(-(-n // rows), -(-D // width))](
            *(logits_nV, table_VD, order_n, extent_n3, expected_nD, n, V, D),
            num_ids=k,
            tile_rows=rows,
            tile_width=width,
            tile=tile,
            num_stages=stages,
            num_warps=warps,
        )
    return expected_nD


def write_weights(logits_nV: Tensor, nuclei: Nuclei, mask_id: int) -> None:
    """p̄ in place of the logits of rows whose nuclei are not gathered."""
    with _on_device_of(logits_nV):
        _kernels().write_weights_kernel[(len(logits_nV),)](
            *(logits_nV, nuclei.extent_n3, nuclei.scale_n2, logits_nV.shape[1], mask_id),
            shift=SHIFTS[logits_nV.dtype],
            num_ids=nuclei.ids_nk.shape[1],
            tile=WIDE,
            stages=STAGES,
            num_warps=8,
        )


def draw_tokens(log_p_nV: Tensor, states_n: Tensor, temperature_n: Tensor) -> Tensor:
    """`commit_rules.gumbel_tokens` [n] with the draws of these states (`draws.Draws`)."""
    token_n: Tensor = draw(log_p_nV, states_n, temperature_n)
    return token_n


@torch.library.custom_op("lrd::draw_tokens", mutates_args=())
def draw(log_p_nV: Tensor, states_n: Tensor, temperature_n: Tensor) -> Tensor:
    """See `draw_tokens`."""
    n, V = log_p_nV.shape
    token_n = _empty_tokens(log_p_nV, states_n, temperature_n)
    if n == 0:
        return token_n
    with _on_device_of(log_p_nV):
        _kernels().draw_tokens_kernel[(n,)](
            *(log_p_nV.contiguous(), states_n.contiguous(), token_n, temperature_n.contiguous(), V),
            tile=TILE,
            num_warps=8,
        )
    return token_n


def _empty_tokens(log_p_nV: Tensor, states_n: Tensor, temperature_n: Tensor) -> Tensor:
    return torch.empty_like(states_n)


def _empty_expected(
    logits_nV: Tensor,
    table_VD: Tensor,
    ids_nk: Tensor,
    extent_n3: Tensor,
    scale_n2: Tensor,
    mask_id: int,
) -> Tensor:
    return table_VD.new_empty(logits_nV.shape[0], table_VD.shape[1])


read_beliefs.register_fake(_empty_beliefs)
mix_nuclei.register_fake(_empty_expected)
draw.register_fake(_empty_tokens)


def _kernels() -> ModuleType:
    from lrd import belief_kernels

    return belief_kernels


def _on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be a tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def product_tiles(dtype: torch.dtype, shared_memory: int) -> tuple[int, int, int, int, int]:
    """Rows, width, columns, stages and warps of the dense product's programs."""
    if dtype == torch.float32:
        return 64, 64, 32, 2, 4
    if shared_memory < LARGE_SHARED_MEMORY:
        return 128, 128, 32, 3, 8
    return 128, 256, 64, 3, 8


@cache
def _shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program may take: 227 KiB on an H100, 163 KiB on an A100."""
    return int(
        getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0)
    )
