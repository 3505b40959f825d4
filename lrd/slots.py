"""Slots: the rows of the canvases, and the prompts that hold them.

On a CPU there are as many rows as prompts: what is not computed costs nothing. Where shapes are
fixed there are always all rows, so that kernels and their rounding never change and a pass can
be captured as a graph; a row that nobody holds is computed and forgotten. Knows nothing of
passes: `engine.py` runs them.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lrd.canvases import Canvases, StopReason
from lrd.config import DecodingConfig
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
class Held:
    """A prompt in its slot; compared by identity."""

    request: Request
    placed_at: float
    generator: torch.Generator | None
    """Draws for this sample alone, where sampling needs them."""


class Slots:
    """Canvases of one shape and who holds them."""

    def __init__(
        self,
        model: DiffusionModel,
        config: DecodingConfig,
        num_columns: int,
        padding_side: PaddingSide,
        fixed_rows: int | None,
        padded: bool,
    ) -> None:
        """fixed_rows: how many there always are; None: as many as there are prompts. padded:
        whether a prompt may be shorter than its room."""
        self.canvases = Canvases.empty(
            model, config, fixed_rows or 0, num_columns, fixed_rows is not None
        )
        self._model, self._config = model, config
        self._num_columns, self._padding_side = num_columns, padding_side
        self._is_fixed = fixed_rows is not None
        self._padded = padded
        self._held: list[Held | None] = [None] * (fixed_rows or 0)

    def __len__(self) -> int:
        """Rows that a pass computes."""
        return len(self._held)

    @property
    def num_busy(self) -> int:
        return sum(held is not None for held in self._held)

    def requests(self) -> list[Request]:
        """Whose prompts are being decoded."""
        return [held.request for held in self._held if held]

    def fill(self, waiting: deque[Request], most: int) -> None:
        """Waiting prompts into free rows while fewer than `most` are held."""
        if not self._is_fixed:
            num_new = min(most - len(self._held), len(waiting) - self._held.count(None))
            self._add_rows(max(0, num_new))
        for row, held in enumerate(self._held):
            if held is None and waiting and self.num_busy < most:
                # Taken from the queue last: where memory runs out here, it still waits.
                self._place(row, waiting[0])
                waiting.popleft()
        if not self._is_fixed:
            self._drop_free_rows()
        if self._is_fixed:
            # A kernel without a mask rounds otherwise, and a row must not tell its neighbours.
            self.canvases.has_padding = self._padded
        else:
            room = self._num_columns - self._config.gen_length
            self.canvases.has_padding = any(len(asked.prompt) < room for asked in self.requests())

    def _place(self, row: int, request: Request) -> None:
        self.canvases.place(row, request.prompt, self._model, self._config, self._padding_side)
        generator = None
        if self._config.temperature > 0:
            device = self._model.embedding_table.device
            generator = torch.Generator(device=device).manual_seed(request.seed)
        self._held[row] = Held(request, time.monotonic(), generator)

    def _add_rows(self, num_new: int) -> None:
        if num_new:
            self.canvases.append(
                Canvases.empty(self._model, self._config, num_new, self._num_columns, False)
            )
            self._held += [None] * num_new

    def _drop_free_rows(self) -> None:
        busy = [row for row, held in enumerate(self._held) if held]
        if len(busy) < len(self._held):
            self.canvases.keep(busy)
            self._held = [self._held[row] for row in busy]

    def draw(self) -> Tensor | None:
        """Each row's own uniform numbers [B, K, V] in (0, 1), where sampling needs them."""
        if self._config.temperature == 0:
            return None
        table = self._model.embedding_table
        shape = (len(self), self._config.block_tokens, table.shape[0])
        uniform_BKV = torch.full(shape, 0.5, device=table.device, dtype=torch.float64)
        for uniform_KV, held in zip(uniform_BKV, self._held, strict=True):
            if held:
                uniform_KV.uniform_(generator=held.generator)
        # A draw may be 0, whose logarithm would make a token certain.
        return uniform_BKV.clamp_(min=torch.finfo(torch.float64).tiny)

    def look(self) -> tuple[Readout, list[Held | None]]:
        """What `take` needs: the canvases as they are now, and who holds them."""
        return Readout(self.canvases, copied=self._is_fixed), list(self._held)

    def take(self, look: tuple[Readout, list[Held | None]]) -> list[Sample]:
        """The samples that had ended at that look; their rows are free."""
        readout, held_then = look
        samples = []
        for row, reason in enumerate(readout.reasons()):
            held = held_then[row]
            # Since then the row may have been taken, and given to another.
            if held is None or held is not self._held[row] or reason is StopReason.RUNNING:
                continue
            seconds = time.monotonic() - held.placed_at
            samples.append(readout.sample(row, self._model, held.request.key, seconds))
            self._held[row] = None
        return samples
