"""What every test shares: one thread, and a small model with random weights."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from random_model import LIVELY, random_model

from lrd.models.checkpoint import LoadedModel

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model() -> LoadedModel:
    """A random model whose samples take very different numbers of passes."""
    return random_model(**LIVELY)
