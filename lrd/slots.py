"""Slots: the rows of the canvases, and the prompts that occupy them.

On a CPU there are as many rows as prompts, so that idle slots cost nothing. Where shapes are fixed
all rows always exist, so that kernels and their rounding never change and a pass can be captured as
a CUDA graph; a free row is computed and its result ignored. `engine.py` runs the passes.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal

from lrd.canvases import Canvases, StopReason
from lrd.config import DecodingConfig
from lrd.decoding import step
from lrd.full_passes import FullPasses
from lrd.models.protocol import DiffusionModel
from lrd.sample import Readout, Sample

PaddingSide = Literal["left", "right"]


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt that waits for a slot."""

    key: Any
    prompt: list[int]
    seed: int


@dataclass(slots=True, eq=False)
class OccupiedSlot:
    """A prompt in its slot; compared by identity."""

    request: Request
    placed_at: float


Snapshot = tuple[Readout, list[OccupiedSlot | None]]
"""The state of all rows after one pass, and the prompts that were in them."""


class Slots:
    """Canvases of one shape and the prompts in them."""

    def __init__(
        self,
        model: DiffusionModel,
        config: DecodingConfig,
        num_columns: int,
        padding_side: PaddingSide,
        fixed_rows: int | None,
        padded: bool,
    ) -> None:
        """fixed_rows: number of rows at all times; None: as many as there are prompts. padded:
        whether a prompt may be shorter than the columns for it."""
        self.canvases = Canvases.empty(
            model, config, fixed_rows or 0, num_columns, fixed_rows is not None
        )
        self._model, self._config = model, config
        self._num_columns, self._padding_side = num_columns, padding_side
        self._is_fixed = fixed_rows is not None
        self._padded = padded
        self._full_passes = FullPasses(config) if self._is_fixed and config.caches else None
        self._occupied: list[OccupiedSlot | None] = [None] * (fixed_rows or 0)

    def __len__(self) -> int:
        """Rows that a pass computes."""
        return len(self._occupied)

    @property
    def num_busy(self) -> int:
        return sum(slot is not None for slot in self._occupied)

    def requests(self) -> list[Request]:
        """The prompts that are being decoded."""
        return [slot.request for slot in self._occupied if slot]

    def fill(self, waiting: deque[Request], most: int) -> None:
        """Put waiting prompts into free rows until `most` rows are occupied."""
        if not self._is_fixed:
            num_new = min(most - len(self._occupied), len(waiting) - self._occupied.count(None))
            self._add_rows(max(0, num_new))
        for row, slot in enumerate(self._occupied):
            if slot is None and waiting and self.num_busy < most:
                # Taken from the queue last: where memory runs out here, it still waits.
                self._place(row, waiting[0])
                waiting.popleft()
        if not self._is_fixed:
            self._drop_free_rows()
        if self._is_fixed:
            # A kernel without a mask rounds differently, and one row must not change another's.
            self.canvases.has_padding = self._padded
        else:
            room = self._num_columns - self._config.gen_length
            self.canvases.has_padding = any(len(one.prompt) < room for one in self.requests())

    def _place(self, row: int, request: Request) -> None:
        self.canvases.place(
            row, request.prompt, self._model, self._config, self._padding_side, request.seed
        )
        if self._full_passes is not None:
            self._full_passes.placed(row)
        self._occupied[row] = OccupiedSlot(request, time.monotonic())

    def _add_rows(self, num_new: int) -> None:
        if num_new:
            self.canvases.append(
                Canvases.empty(self._model, self._config, num_new, self._num_columns, False)
            )
            self._occupied += [None] * num_new

    def _drop_free_rows(self) -> None:
        busy = [row for row, slot in enumerate(self._occupied) if slot]
        if len(busy) < len(self._occupied):
            self.canvases.keep(busy)
            self._occupied = [self._occupied[row] for row in busy]

    def advance(self) -> None:
        """One forward pass for all rows."""
        if self._full_passes is not None:
            self._full_passes.plan(self.canvases)
        step(self._model, self._config, self.canvases)
        if self._full_passes is not None:
            self._full_passes.note(self.canvases)

    def snapshot(self) -> Snapshot:
        """The canvases as they are now, and the prompts in them, for `collect`."""
        return Readout(self.canvases, copied=self._is_fixed), list(self._occupied)

    def collect(self, snapshot: Snapshot) -> list[Sample]:
        """The samples that had ended when the snapshot was taken; their rows become free."""
        readout, occupied_then = snapshot
        samples = []
        for row, reason in enumerate(readout.reasons()):
            slot = occupied_then[row]
            # Since then the row may have been collected, and given to another prompt.
            if slot is None or slot is not self._occupied[row] or reason is StopReason.RUNNING:
                continue
            seconds = time.monotonic() - slot.placed_at
            samples.append(readout.sample(row, self._model, slot.request.key, seconds))
            self._occupied[row] = None
        return samples
