"""Plans on the host which rows' full passes are part of each pass, where shapes are fixed.

Which rows need one is known to the device alone. The host reads it a pass late, so that neither
waits for the other: a row that enters a block (or is renewed) sits out one pass, which is a short
one, and its full pass is part of the pass after that. Full passes go through the model as 1, 2, 4,
8 … rows, so that there are few shapes.

Legend: B rows of the canvases.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from lrd.block_cache import FULL_POSITIONS, needs_full_pass
from lrd.canvases import Canvases, StopReason, sent
from lrd.config import DecodingConfig

WIDTHS = 4
"""Different numbers of columns that full passes may have, where a suffix pattern makes them
shorter."""


@dataclass(slots=True)
class _Noted:
    """Copies of the device's state after one pass, on their way to the host."""

    full_B: Tensor
    block_B: Tensor
    arrived: torch.cuda.Event | None

    def rows(self) -> dict[int, int]:
        """Row → block of the rows that needed a full pass; waits for that pass alone."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return {row: int(self.block_B[row]) for row in self.full_B.nonzero()[:, 0].tolist()}


class FullPasses:
    """Of one engine's slots."""

    def __init__(self, config: DecodingConfig) -> None:
        self._config = config
        self._lag = 1 if config.temperature == 0 else 0
        """Passes that the host is behind. Where tokens are drawn it waits for each pass: a row that
        sat out a pass would have drawn numbers for it."""
        self._new: dict[int, int] = {}
        self._noted: deque[_Noted] = deque()
        self._planned: set[int] = set()
        """Rows of the last plan."""

    def placed(self, row: int) -> None:
        """A prompt was put into a row: its first pass is a full one."""
        self._new[row] = 0

    def plan(self, state: Canvases) -> None:
        """Set the full passes that are part of the next pass."""
        rows: dict[int, int] = {}
        if len(self._noted) > self._lag:
            rows = self._noted.popleft().rows()
        if self._lag:  # Since then these have had their full passes.
            rows = {row: block for row, block in rows.items() if row not in self._planned}
        rows |= self._new
        self._new = {}
        self._planned = set(rows)
        state.full_passes = []
        for num_columns, together in self._by_width(state, rows).items():
            for part in powers_of_two(together, max(1, FULL_POSITIONS // num_columns)):
                state.full_passes.append((sent(part, state.stop_B.device), num_columns))

    def note(self, state: Canvases) -> None:
        """Ask for what the plan after the next needs; called behind each pass."""
        full_B = needs_full_pass(self._config, state) & (state.stop_B == int(StopReason.RUNNING))
        on_cuda = full_B.is_cuda
        noted = _Noted(
            full_B.to("cpu", non_blocking=on_cuda, copy=True),
            state.block_B.to("cpu", non_blocking=on_cuda, copy=True),
            torch.cuda.Event() if on_cuda else None,  # type: ignore[no-untyped-call]
        )
        if noted.arrived is not None:
            noted.arrived.record(torch.cuda.current_stream(full_B.device))
        self._noted.append(noted)

    def _by_width(self, state: Canvases, rows: dict[int, int]) -> dict[int, list[int]]:
        """Columns of a full pass → its rows."""
        G = self._config.gen_length
        room = state.embeds_BLD.shape[1] - G
        step = -(-G // WIDTHS)
        found: dict[int, list[int]] = {}
        for row, block in sorted(rows.items()):
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
