"""Slots: the rows of the canvases, and the prompts that occupy them.

Busy rows are always the first ones: where a sample ends and no prompt waits, the last busy row
moves into its place. So a pass computes the first rows alone; where shapes are fixed a few more, up
to one of few numbers of rows. `engine.py` runs the passes.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lrd.block_cache import needs_full_pass
from lrd.canvases import Canvases, StopReason, first_block, sent
from lrd.config import DecodingConfig, PassRows
from lrd.decoding import step
from lrd.full_passes import full_passes
from lrd.models.protocol import DiffusionModel, replays_graphs
from lrd.sample import Readout, Sample, on_host
from lrd.templates import Scaffold

PaddingSide = Literal["left", "right"]
OPEN_STEP = 32
"""Where shapes are fixed the head runs for a multiple of so many positions."""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt that waits for a slot."""

    key: Any
    prompt: list[int]
    seed: int
    scaffold: Scaffold | None = None
    """Its canvas; None: all positions are open."""
    temperature: float | None = None
    """Its own, where the engine has `row_temperatures`; None: that of the settings."""


@dataclass(slots=True, eq=False)
class OccupiedSlot:
    """A prompt in its slot, and what its next pass needs."""

    request: Request
    placed_at: float
    num_open: int
    """Open positions of its block."""
    block: int = 0
    needs_full_pass: bool = True


class Slots:
    """Canvases of one shape and the prompts in them."""

    def __init__(
        self,
        model: DiffusionModel,
        config: DecodingConfig,
        num_slots: int,
        num_columns: int,
        padding_side: PaddingSide,
        fixed_shapes: bool,
        padded: bool,
        pass_rows: PassRows,
        allowed: Tensor | None,
        row_temperatures: bool,
    ) -> None:
        """padded: whether prompt or canvas may be shorter than the columns for it."""
        self.canvases = Canvases.empty(
            model, config, num_slots, num_columns, fixed_shapes, allowed, row_temperatures
        )
        self._model, self._config = model, config
        self._num_slots, self._num_columns = num_slots, num_columns
        self._padding_side = padding_side
        self._is_fixed, self._padded = fixed_shapes, padded
        self._all_rows = fixed_shapes and pass_rows == "all"
        # There is a graph for every number of positions that the model is asked for.
        graphs = self._all_rows or replays_graphs(model)
        self._open_alone = fixed_shapes and not graphs and not config.reads_more
        self._occupied: list[OccupiedSlot | None] = []
        """Of the first rows; None where a sample has ended since the last pass."""

    @property
    def num_busy(self) -> int:
        return sum(slot is not None for slot in self._occupied)

    def requests(self) -> list[Request]:
        """The prompts that are being decoded."""
        return [slot.request for slot in self._occupied if slot]

    def fill(self, waiting: deque[Request], most: int) -> None:
        """Put waiting prompts into free rows until `most` rows are occupied."""
        free = [row for row, slot in enumerate(self._occupied) if slot is None]
        while waiting and self.num_busy < most:
            # Taken from the queue last: where memory runs out here, it still waits.
            self._place(free.pop(0) if free else len(self._occupied), waiting[0])
            waiting.popleft()
        for row in reversed(free):
            self._close(row)
        if self._is_fixed:
            # A kernel without a mask rounds differently, and one row must not change another's.
            self.canvases.has_padding = self._padded
        else:
            used = (len(one.prompt) + self._length(one) for one in self.requests())
            self.canvases.has_padding = any(n < self._num_columns for n in used)

    def _length(self, request: Request) -> int:
        return len(request.scaffold.ids) if request.scaffold else self._config.gen_length

    def _place(self, row: int, request: Request) -> None:
        self.canvases.place(
            row,
            request.prompt,
            self._model,
            self._config,
            self._padding_side,
            request.seed,
            request.scaffold,
            request.temperature,
        )
        K, mask_id = self._config.block_tokens, self._model.mask_id
        canvas = request.scaffold.ids if request.scaffold else (mask_id,) * self._config.gen_length
        block = first_block(self._config, canvas, mask_id)
        num_open = canvas[block * K : (block + 1) * K].count(mask_id)
        slot = OccupiedSlot(request, time.monotonic(), num_open, block)
        self._occupied[row : row + 1] = [slot]

    def _close(self, row: int) -> None:
        """Put the last busy row into a free one, unless that is the last one itself."""
        last = self._occupied.pop()
        if row < len(self._occupied):
            self.canvases.move(len(self._occupied), row)
            self._occupied[row] = last

    def advance(self) -> int:
        """One forward pass for all busy rows; returns how many canvases it computed."""
        num_rows = self._rows_of_pass()
        part = self.canvases.first(num_rows)
        if self._is_fixed:
            self._plan(part)
        step(self._model, self._config, part)
        self.canvases.take(part)
        return num_rows

    def _rows_of_pass(self) -> int:
        num_busy = len(self._occupied)
        if self._all_rows:
            return self._num_slots
        if not self._is_fixed:
            return num_busy
        return few_numbers(num_busy, self._num_slots, replays_graphs(self._model))

    def _plan(self, part: Canvases) -> None:
        """Set what the host decides of the next pass, from what it has read after the last one."""
        busy = [(row, slot) for row, slot in enumerate(self._occupied) if slot]
        part.num_open = None
        if self._open_alone:
            num_open = sum(slot.num_open for _, slot in busy)
            most = len(part.stop_B) * self._config.block_tokens
            part.num_open = min(most, -(-num_open // OPEN_STEP) * OPEN_STEP)
        if self._config.caches:
            entering = {row: slot.block for row, slot in busy if slot.needs_full_pass}
            part.full_passes = full_passes(self._config, part, entering)
            part.only_full = len(entering) == len(busy)

    def collect(self) -> list[Sample]:
        """Wait for the pass; returns the samples that it has ended. Their rows become free."""
        ended = []
        for row, (slot, (stop, *found)) in enumerate(
            zip(self._occupied, self._look(), strict=True)
        ):
            assert slot is not None  # `fill` leaves no free row among the busy ones.
            if stop != StopReason.RUNNING:
                ended.append(row)
            elif found:
                slot.num_open, slot.block = found[:2]
                slot.needs_full_pass = bool(found[2])
        self._choose_classes(set(ended))
        if not ended:
            return []
        readout = Readout(self.canvases, ended)
        samples = []
        for number, row in enumerate(ended):
            slot, self._occupied[row] = self._occupied[row], None
            assert slot is not None
            seconds = time.monotonic() - slot.placed_at
            request = slot.request
            samples.append(
                readout.sample(number, self._model, request.key, seconds, request.scaffold)
            )
        return samples

    def _choose_classes(self, ended: set[int]) -> None:
        """Which tokens may come next where what has been committed decides: in choices. Waits for
        the device where there are any."""
        waiting = {
            row: slot.request.scaffold
            for row, slot in enumerate(self._occupied)
            if slot and slot.request.scaffold and slot.request.scaffold.has_choices
        }
        rows = [row for row in waiting if row not in ended]
        if not rows or self.canvases.class_BG is None:
            return
        device = self.canvases.class_BG.device
        (canvases,) = on_host(self.canvases.canvas_BG[sent(rows, device)])
        for row, canvas in zip(rows, canvases.tolist(), strict=True):
            classes = waiting[row].next_classes(canvas, self._model.mask_id)
            self.canvases.class_BG[row, : len(classes)] = sent(classes, device)

    def _look(self) -> list[list[int]]:
        """Of each busy row after the pass: its StopReason, and where shapes are fixed its open
        positions, its block, and whether its next pass is a full one."""
        state = self.canvases.first(len(self._occupied))
        found = [state.stop_B]
        if self._is_fixed:
            K = self._config.block_tokens
            position_BK = state.block_B[:, None] * K + torch.arange(K, device=state.stop_B.device)
            open_BK = state.canvas_BG.gather(1, position_BK) == self._model.mask_id
            found += [open_BK.sum(-1), state.block_B, needs_full_pass(self._config, state).long()]
        rows: list[list[int]] = on_host(torch.stack(found, dim=1))[0].tolist()
        return rows


def few_numbers(num_busy: int, num_slots: int, graphs: bool) -> int:
    """Rows of a pass for so many busy ones: one of few numbers, so that there are few shapes. With
    graphs fewer, since each is captured."""
    if graphs:
        step = 1 if num_busy <= 2 else 2 if num_busy <= 4 else 4 if num_busy <= 16 else 8
    else:
        step = 1 if num_busy <= 8 else 2 if num_busy <= 32 else 4
    return min(num_slots, -(-num_busy // step) * step)
