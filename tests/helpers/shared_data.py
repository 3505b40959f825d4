"""Benchmark questions in a folder beside the project; tests that need them skip without it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

FOLDER = Path(os.environ.get("LRD_SHARED") or Path(__file__).parents[3] / "shared") / "data"


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of one file; skips the test, with the reason, where it is absent."""
    file = FOLDER / f"{name}.parquet"
    if not file.is_file():
        pytest.skip(f"{file} is absent; LRD_SHARED names the folder that has data/")
    found: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    return found
