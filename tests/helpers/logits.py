"""Random logits over a small vocabulary, for tests of beliefs and nuclei."""

from __future__ import annotations

import torch
from torch import Tensor

VOCABULARY, MASK = 37, 5


def random_logits(*shape: int, scale: float = 2.0, seed: int = 0) -> Tensor:
    """Normal with this standard deviation, the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale
