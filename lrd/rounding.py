"""What the last bits of a result depend on beside its settings: the device and the versions whose
kernels computed it.

On a GPU a kernel is chosen by the GPU's type, by the version of CUDA's libraries and by the shapes
of a pass; another kernel adds in another order.
"""

from __future__ import annotations

from typing import Any

import torch


def computed_by(device: torch.device) -> dict[str, Any]:
    """The device's name and the versions of the libraries that compute on it."""
    if device.type != "cuda":
        vectors = torch.backends.cpu.get_cpu_capability()
        return {"device": f"{device.type} ({vectors})", "torch": torch.__version__}
    return {
        "device": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }
