"""Keys and values of every layer, kept from pass to pass, by row and place.

A place is a column's number among those of its row that are fed at all: the prompt's columns, then
the canvas as far as `lrd.block_cache` feeds it. Keys are kept after rotation, since positions never
change; so a place's position does not matter here.

Legend: B rows of the canvases, N layers, P places, K kv heads, E width of a head; R rows and C
columns of one pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Window:
    """The places that one pass renews, and what it attends to."""

    kept_BN2PKE: Tensor
    rows_R: Tensor
    place_RC: Tensor
    num_keys: int | None
    """Places that are attended to, from the first on; None where all that is attended to is fed."""
    adjacent: slice | None = None
    """The rows as a slice, where they are neighbours: then nothing is copied to be read."""

    def renew(self, layer: int, key_RKCE: Tensor, value_RKCE: Tensor) -> tuple[Tensor, Tensor]:
        """Keep a layer's fresh keys and values, in place; returns those that are attended to."""
        for kind, fresh_RKCE in enumerate((key_RKCE, value_RKCE)):
            kept_BPKE = self.kept_BN2PKE[:, layer, kind]
            kept_BPKE[self.rows_R[:, None], self.place_RC] = fresh_RKCE.transpose(1, 2)
        if self.num_keys is None:
            return key_RKCE, value_RKCE
        rows = self.rows_R if self.adjacent is None else self.adjacent
        return self._read(layer, 0, rows), self._read(layer, 1, rows)

    def _read(self, layer: int, kind: int, rows: Tensor | slice) -> Tensor:
        return self.kept_BN2PKE[rows, layer, kind, : self.num_keys].transpose(1, 2)


class KVCache:
    """Keys and values of B rows, those of the canvases."""

    def __init__(
        self,
        num_rows: int,
        shape: tuple[int, int, int, int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """shape: layers, places, kv heads, width of a head. Memory is taken by `take_memory`."""
        layers, places, heads, width = shape
        self._num_rows = num_rows
        self.kept_BN2PKE = torch.zeros(
            0, layers, 2, places, heads, width, dtype=dtype, device=device
        )

    @property
    def num_bytes(self) -> int:
        """Memory that is taken."""
        return self.kept_BN2PKE.nbytes

    @property
    def row_bytes(self) -> int:
        """Memory that each row takes."""
        kept = self.kept_BN2PKE
        return math.prod(kept.shape[1:]) * kept.element_size()

    def take_memory(self) -> None:
        """Memory for all rows, at the first pass."""
        if not len(self.kept_BN2PKE):
            kept = self.kept_BN2PKE
            self.kept_BN2PKE = kept.new_zeros(self._num_rows, *kept.shape[1:])

    def move(self, old: int, new: int) -> None:
        """Put what is kept of a row into another row."""
        if len(self.kept_BN2PKE):
            self.kept_BN2PKE[new] = self.kept_BN2PKE[old]
