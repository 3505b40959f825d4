"""Full passes where shapes are fixed: in how many rows and columns, and when."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.random_model import LIVELY, random_model

import lrd
from lrd.full_passes import powers_of_two


@pytest.mark.parametrize(
    ("num_rows", "most", "sizes"),
    [
        (0, 8, []),
        (1, 8, [1]),
        (5, 8, [4, 1]),
        (7, 8, [4, 2, 1]),
        (8, 8, [8]),
        (21, 8, [8, 8, 4, 1]),
        (21, 14, [8, 8, 4, 1]),
        (3, 1, [1, 1, 1]),
    ],
)
def test_rows_go_in_the_fewest_powers_of_two(num_rows: int, most: int, sizes: list[int]) -> None:
    rows = list(range(10, 10 + num_rows))
    parts = powers_of_two(rows, most)
    assert [len(part) for part in parts] == sizes
    assert [row for part in parts for row in part] == rows


def plans(**settings: Any) -> tuple[lrd.Engine, list[list[tuple[int, int]]]]:
    """Rows and columns of the full passes of every pass; three prompts that come together."""
    config = lrd.DecodingConfig(
        gen_length=16,
        block_length=4,
        kv_cache="dual",
        max_refine_steps=0,
        stop_at_eos=False,
        **settings,
    )
    engine = lrd.Engine(random_model(**LIVELY), config, 3, 9, fixed_shapes=True)
    for index in range(3):
        engine.submit(lrd.Request(index, [3] * 9, index))
    seen = []
    while engine.busy:
        engine.step()
        seen.append([(len(rows), width) for rows, width in engine.canvases.full_passes])
    return engine, seen


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_row_that_enters_a_block_waits_for_no_pass(temperature: float) -> None:
    """All commit one token a pass, so a block takes four."""
    _, seen = plans(temperature=temperature)
    full = [number for number, planned in enumerate(seen) if planned]
    assert full == [0, 4, 8, 12]
    assert len(seen) == 16
    assert all(planned == [(2, 25), (1, 25)] for planned in seen if planned)


def test_a_short_suffix_makes_the_first_full_passes_narrower() -> None:
    """In steps of a quarter of the canvas: 4 positions and three of later blocks are 8 at most."""
    _, seen = plans(suffix=0)
    widths = [planned[0][1] - 9 for planned in seen if planned]
    assert widths == [8, 12, 16, 16]


@pytest.mark.parametrize("refresh", [2, 3])
def test_refreshes_are_planned_too(refresh: int) -> None:
    engine, seen = plans(cache_refresh=refresh)
    of_a_block = len(range(0, 4, refresh))
    assert sum(bool(planned) for planned in seen) == 4 * of_a_block
    assert engine.canvases.full_passes_B.tolist() == [4 * of_a_block] * 3
