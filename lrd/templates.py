"""The canvas of a row that is not empty at the start: fixed tokens, and holes to be decoded."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Hole:
    """Canvas positions that are decoded, one after the other; their text may end before the last
    of them, at an EOS or a pad."""

    start: int
    end: int
    reads_as: Literal["text", "integer"] = "text"
    max_chars: int | None = None
    choices: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Scaffold:
    """A canvas: fixed tokens, and [MASK] where it is open."""

    ids: tuple[int, ...]
    parts: tuple[str | Hole, ...]
    """Fixed texts and holes, in order."""
    classes: tuple[int, ...] | None = None
    """Class of the tokens that each position may take; None: any."""

    @property
    def holes(self) -> list[Hole]:
        return [part for part in self.parts if isinstance(part, Hole)]

    @property
    def is_open(self) -> bool:
        """Whether it is one hole and nothing else."""
        return len(self.parts) == 1 and not isinstance(self.parts[0], str)

    @property
    def has_choices(self) -> bool:
        """Whether classes change while the canvas is decoded."""
        return any(hole.choices for hole in self.holes)

    @property
    def eos_from(self) -> int:
        """First position from which on an EOS may end the sample: the start of a hole that reaches
        the canvas' end, and behind the canvas where none does."""
        last = self.parts[-1]
        return last.start if isinstance(last, Hole) else len(self.ids)

    def next_classes(self, canvas: Sequence[int], mask_id: int) -> list[int]:
        """Classes for the next pass of a canvas."""
        return list(self.classes or [0] * len(self.ids))

    def kept(self, canvas: Sequence[int], ends: Collection[int]) -> list[bool]:
        """Which positions belong to the answer: fixed ones, and those of each hole before its first
        EOS or pad."""
        found = [True] * len(self.ids)
        for hole in self.holes:
            ended = False
            for at in range(hole.start, hole.end):
                ended = ended or canvas[at] in ends
                found[at] = not ended
        return found

    def text(self, canvas: Sequence[int], tokenizer: Any, ends: Collection[int]) -> str:
        """Fixed texts as they are, with the holes' texts between them."""
        kept = self.kept(canvas, ends)
        pieces = []
        for part in self.parts:
            if isinstance(part, Hole):
                ids = [canvas[at] for at in range(part.start, part.end) if kept[at]]
                part = tokenizer.decode(ids, skip_special_tokens=True)
            pieces.append(part)
        return "".join(pieces)

    @classmethod
    def open(cls, length: int, mask_id: int) -> Scaffold:
        """A canvas of one hole."""
        return cls((mask_id,) * length, (Hole(0, length),))
