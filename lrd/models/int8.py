"""Weight-only int8 by torchao: half the memory of bfloat16 for the blocks' linear layers.

Slower on a GPU, which widens weights anew in every pass; `w8a8.py` multiplies in eight bits.

`weights.py` passes one linear layer at a time.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def int8_packer() -> Callable[[nn.Linear], None]:
    """A function that replaces a linear layer's weight by int8 and a scale per output row.

    Raises ValueError where torchao is not installed or too old.
    """
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise ValueError(
            f"dtype int8 needs torchao ({error}); install it with `pip install torchao`, "
            "or choose bfloat16"
        ) from error
    # Leave torch.compile's process-wide settings as they are.
    config = Int8WeightOnlyConfig(set_inductor_config=False)

    def pack(linear: nn.Linear) -> None:
        quantize_(linear, config)

    return pack
