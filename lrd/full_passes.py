"""Which rows' full passes are part of a pass, where shapes are fixed.

They go through the model as 1, 2, 4, 8 … rows, and in few numbers of columns, so that there are few
shapes.
"""

from __future__ import annotations

from torch import Tensor

from lrd.block_cache import FULL_POSITIONS
from lrd.canvases import Canvases, sent
from lrd.config import DecodingConfig

WIDTHS = 4
"""Different numbers of columns that full passes may have, where a suffix pattern makes them
shorter."""


def full_passes(
    config: DecodingConfig, state: Canvases, block_of: dict[int, int]
) -> list[tuple[Tensor, int]]:
    """Rows [R] on the device, and how many columns they feed. block_of: each row that needs a full
    pass, and its block."""
    device = state.stop_B.device
    found = []
    for num_columns, rows in _by_width(config, state, block_of).items():
        for part in powers_of_two(rows, max(1, FULL_POSITIONS // num_columns)):
            found.append((sent(part, device), num_columns))
    return found


def _by_width(
    config: DecodingConfig, state: Canvases, block_of: dict[int, int]
) -> dict[int, list[int]]:
    """Columns of a full pass → its rows."""
    G = config.gen_length
    room = state.embeds_BLD.shape[1] - G
    step = -(-G // WIDTHS)
    found: dict[int, list[int]] = {}
    for row, block in sorted(block_of.items()):
        width = min(G, -(-state.fed.counts[block] // step) * step)
        found.setdefault(room + width, []).append(row)
    return found


def powers_of_two(rows: list[int], most: int) -> list[list[int]]:
    """Rows in parts of 2^k, each of at most `most` rows."""
    parts = []
    while rows:
        size = 1 << (min(len(rows), most).bit_length() - 1)
        parts.append(rows[:size])
        rows = rows[size:]
    return parts
