"""How many products a GPU can do a second at most, by its name: what MFU is a share of.

Dense rates of the makers' data sheets, in 10¹² floating point operations a second; data sheets
print twice as much where they count sparse products. A rate holds for the form factor that the
name says: an H100 for PCIe has three quarters of an SXM's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Device:
    """Peak rates of one GPU, TFLOP/s; None where the data sheet has none."""

    name: str
    """A regular expression that a part of torch's name of the device matches."""
    bfloat16: float
    float32: float | None
    """Outside of tensor cores: torch uses none for float32 unless it is told to."""
    fp8: float | None
    int8: float | None
    source: str


DGX_B200 = "NVIDIA DGX B200 data sheet, an eighth"
H200 = "NVIDIA H200 Tensor Core GPU data sheet"
H100 = "NVIDIA H100 Tensor Core GPU data sheet"
A100 = "NVIDIA A100 Tensor Core GPU data sheet"
DEVICES = (
    Device("B200", 2250, None, 4500, 4500, DGX_B200),
    Device("H200 NVL", 835.5, 60, 1670.5, 1670.5, H200),
    Device("H200", 989.5, 67, 1979, 1979, H200),
    Device("H100 NVL", 835.5, 60, 1670.5, 1670.5, H100),
    Device("H100 PCIe", 756, 51, 1513, 1513, H100),
    Device("H100", 989.5, 67, 1979, 1979, H100),
    Device("A100", 312, 19.5, None, 624, A100),
    Device("A10", 125, 31.2, None, 250, "NVIDIA A10 Tensor Core GPU data sheet"),
    Device("L40S", 362, 91.6, 733, 733, "NVIDIA L40S data sheet"),
    Device("L40", 181, 90.5, 362, 362, "NVIDIA L40 data sheet"),
    Device("L4", 121, 30.3, 242.5, 242.5, "NVIDIA L4 Tensor Core GPU data sheet"),
)
"""The first one whose name is found is meant."""
RATES = {"int8": "bfloat16", "int8_w8a8": "int8"}
"""dtype of a model → the rate of its products, where that has another name. `int8` keeps weights
in eight bits and multiplies in bfloat16."""


@dataclass(frozen=True, slots=True)
class Peak:
    """A device's peak rate for a dtype, or why none is known."""

    tflops: float | None
    reason: str | None = None
    source: str | None = None


def peak_of(device_name: str, dtype: str) -> Peak:
    """The peak of a CUDA device by torch's name of it."""
    if "MIG" in device_name:
        return Peak(None, f"{device_name} is a part of a GPU, whose share of the peak is not known")
    found = next((d for d in DEVICES if re.search(rf"\b{d.name}\b", device_name)), None)
    if found is None:
        return Peak(None, f"the peak of {device_name} is not known here")
    rate: float | None = getattr(found, RATES.get(dtype, dtype))
    if rate is None:
        return Peak(None, f"no data sheet has a peak of {device_name} in {dtype}")
    return Peak(rate, source=found.source)
