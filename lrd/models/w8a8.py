"""Matrix products of the blocks in eight bits: FP8, or int8, for weights and activations (W8A8).

A weight has a scale for each output row, made when it is loaded; an activation one for each
position, made anew in every pass. Products are summed in float32 (FP8) or exactly in int32, then
scaled and given a bias in float32, and cast to the dtype of the activations. All else of the model
is computed as in bfloat16. CUDA multiplies by `torch._scaled_mm` and `torch._int_mm`; elsewhere the
same numbers are multiplied in a wider type, slowly, which serves tests and measurements.

Legend: N positions (any leading shape), K inputs and M outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MULTIPLE = 16
"""Both sides of a weight are multiples of it: CUDA's kernels take no others."""
LEAST_ROWS = 17
"""`torch._int_mm` on CUDA takes no fewer rows, in most releases of torch; zeros are added."""
SMALLEST = 1e-12
"""Stands for the largest magnitude of a row of zeros, which cannot be divided by."""


@dataclass(frozen=True, slots=True)
class Format:
    """Eight-bit numbers, and the GPUs that multiply them."""

    name: str
    """Of the dtype, as a user writes it."""
    dtype: torch.dtype
    largest: float
    """The magnitude that a row's largest becomes."""
    capability: tuple[int, int]
    """The least compute capability."""
    gpus: str
    """Some that have it."""


FORMATS = {
    one.name: one
    for one in (
        Format("fp8", torch.float8_e4m3fn, 448.0, (8, 9), "L40S, H100 and later"),
        Format("int8_w8a8", torch.int8, 127.0, (8, 0), "A100 and later"),
    )
}


def quantise(x_NK: Tensor, dtype: torch.dtype, largest: float) -> tuple[Tensor, Tensor]:
    """x ≈ q · scale: q [N, K] in eight bits, rounded to the nearest (ties to even), and the scale
    [N, 1] in float32 by which a row's largest magnitude becomes `largest`.

    A row that holds NaN or an infinity has a scale that is none or infinite, so that what is made
    of it is not finite either.
    """
    wide_NK = x_NK.to(torch.float32, copy=True)
    low_N1, high_N1 = torch.aminmax(wide_NK, dim=-1, keepdim=True)
    scale_N1 = torch.maximum(high_N1, -low_N1).clamp(min=SMALLEST) / largest
    wide_NK.div_(scale_N1)
    if not dtype.is_floating_point:
        wide_NK.round_()
    return wide_NK.clamp_(-largest, largest).to(dtype), scale_N1


def rescale(
    sum_NM: Tensor, scale_N1: Tensor, scale_M: Tensor, bias_M: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The sums of products of q, as a layer's output [N, M] in `dtype`."""
    sum_NM = sum_NM.to(torch.float32, copy=True).mul_(scale_N1).mul_(scale_M)
    if bias_M is not None:
        sum_NM.add_(bias_M)
    return sum_NM.to(dtype)


class W8A8Linear(nn.Linear):
    """A linear layer whose weight [M, K] and inputs are multiplied in eight bits.

    Between `__init__` and `pack` its weight is as a checkpoint has it.
    """

    def __init__(self, width_in: int, width_out: int, bias: bool, form: Format) -> None:
        super().__init__(width_in, width_out, bias)
        self.form = form
        self.scale: nn.Parameter | None
        self.register_parameter("scale", None)
        self.quantise, self.rescale = quantise, rescale

    @torch.no_grad()
    def pack(self) -> None:
        """Replace the weight by eight bits an element and a float32 scale [M] a row."""
        weight_MK, scale_M1 = quantise(self.weight, self.form.dtype, self.form.largest)
        self.weight = nn.Parameter(weight_MK, requires_grad=False)
        self.scale = nn.Parameter(scale_M1.squeeze(1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[…, K] to […, M], in the dtype of x."""
        assert self.scale is not None
        x_NK = x.reshape(-1, x.shape[-1])
        q_NK, scale_N1 = self.quantise(x_NK, self.form.dtype, self.form.largest)
        if x.is_cuda and self.form.dtype.is_floating_point:
            out_NM = torch._scaled_mm(
                q_NK,
                self.weight.t(),
                scale_a=scale_N1,
                scale_b=self.scale.unsqueeze(0),
                bias=self.bias,
                out_dtype=x.dtype,
                use_fast_accum=True,  # As vLLM and torchao have it for inference.
            )
        else:
            sum_NM = summed(q_NK, self.weight)
            out_NM = self.rescale(sum_NM, scale_N1, self.scale, self.bias, x.dtype)
        return out_NM.view(*x.shape[:-1], out_NM.shape[-1])


def summed(q_NK: Tensor, weight_MK: Tensor) -> Tensor:
    """Σ_k q · weight [N, M]: in int32 of int8, in float32 of FP8."""
    if q_NK.dtype != torch.int8:
        return q_NK.float() @ weight_MK.float().t()
    num_rows = q_NK.shape[0]
    if q_NK.is_cuda and num_rows < LEAST_ROWS:
        q_NK = F.pad(q_NK, (0, 0, 0, LEAST_ROWS - num_rows))
    return torch._int_mm(q_NK, weight_MK.t()).narrow(0, 0, num_rows)


def use_w8a8(blocks: nn.ModuleList, form: Format) -> None:
    """Replace the linear layers of blocks that have no weights yet.

    Raises ValueError for a layer of sides that no kernel takes.
    """
    for block in blocks:
        for name, layer in list(block.named_children()):
            if not isinstance(layer, nn.Linear):
                continue
            if layer.in_features % MULTIPLE or layer.out_features % MULTIPLE:
                raise ValueError(
                    f"dtype {form.name} needs layers whose widths are multiples of {MULTIPLE}; "
                    f"{name} is {layer.in_features} to {layer.out_features}; choose bfloat16"
                )
            packed = W8A8Linear(layer.in_features, layer.out_features, layer.bias is not None, form)
            setattr(block, name, packed)


def joined(layers: list[W8A8Linear]) -> W8A8Linear:
    """One packed layer with the outputs of several, in their order: equal to theirs, since every
    output has its own scale."""
    first = layers[0]
    biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
    width_out = sum(layer.out_features for layer in layers)
    with torch.device("meta"):
        one = W8A8Linear(first.in_features, width_out, bool(biases), first.form)
    # Bytes are joined: not every device has FP8 in `cat`.
    weight_MK = torch.cat([layer.weight.view(torch.uint8) for layer in layers])
    one.weight = nn.Parameter(weight_MK.view(first.form.dtype), requires_grad=False)
    scales: list[Tensor] = [layer.scale for layer in layers if layer.scale is not None]
    one.scale = nn.Parameter(torch.cat(scales), requires_grad=False)
    if biases:
        one.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return one


Function = TypeVar("Function", bound=Callable[..., object])


def fuse_products(module: nn.Module, fused: Callable[[Function], Function]) -> None:
    """Let `fused` (torch.compile, say) have the element-wise work around every product of a packed
    layer: what is several kernels over float32 copies otherwise is one over eight bits."""
    one_quantise, one_rescale = fused(quantise), fused(rescale)  # type: ignore[arg-type]
    for layer in module.modules():
        if isinstance(layer, W8A8Linear):
            layer.quantise, layer.rescale = one_quantise, one_rescale  # type: ignore[assignment]


def check_device(form: Format, device: torch.device) -> None:
    """Raises ValueError, in one line that names what to choose instead, where a GPU does not
    multiply numbers of this format."""
    if device.type != "cuda":
        return
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    if capability < form.capability:
        others = [one.name for one in FORMATS.values() if one.capability <= capability]
        raise ValueError(
            f"dtype {form.name} needs a GPU of compute capability {_dotted(form.capability)} "
            f"({form.gpus}); {name} has {_dotted(capability)}; choose "
            f"{' or '.join([*others, 'bfloat16'])}"
        )
    try:
        off = _error_on(form, device)
    except RuntimeError as error:
        first = next(iter(str(error).strip().splitlines()), "no reason given")
        raise ValueError(
            f"dtype {form.name}: torch {torch.__version__} does not multiply it on {name} "
            f"({first}); choose bfloat16"
        ) from error
    if not off < 0.01:
        raise ValueError(
            f"dtype {form.name}: torch {torch.__version__} multiplies it wrongly on {name} (a "
            f"product is {off:.2g} of its size off); choose bfloat16"
        )


@torch.no_grad()
def _error_on(form: Format, device: torch.device) -> float:
    """How far a small product on the device is from the one on the CPU, as a share of its size."""
    random = torch.Generator().manual_seed(0)
    layer = W8A8Linear(256, 512, True, form).to(torch.bfloat16)
    for parameter in (layer.weight, layer.bias):
        parameter.normal_(generator=random)
    layer.pack()
    x_NK = torch.randn(48, 256, generator=random).to(torch.bfloat16)
    expected = layer(x_NK).float()
    found = layer.to(device)(x_NK.to(device)).float().cpu()
    return float((found - expected).norm() / expected.norm())


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
