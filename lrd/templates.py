"""Templates: the canvas of an answer whose form is given, fixed text with holes to be decoded.

`{"name": "[[12]]", "age": [[3]]}` has a hole of 12 positions and one of 3; `[[*]]` takes what
gen_length leaves. A `Scaffold` is the canvas that a template makes, and reads its text afterwards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from lrd.choices import Choices
from lrd.models.protocol import DiffusionModel
from lrd.prompts import encode_texts

HOLE = re.compile(r"\[\[([0-9]+|\*)\]\]")
MAX_DIGITS = 9
"""Of a hole's size; longer numbers are slips of the hand."""

ReadsAs = Literal["text", "string", "integer", "digits"]
"""How the text of a hole is written into the answer. text: as it is; string: as the inside of a
JSON string; integer: its digits without leading zeros, at least one; digits: its digits."""


@dataclass(frozen=True, slots=True)
class Hole:
    """Canvas positions that are decoded; their text ends before the first EOS or pad."""

    start: int
    end: int
    reads_as: ReadsAs = "text"
    max_chars: int | None = None
    """The text is cut there."""
    choices: Choices | None = None
    """The texts that it may have; None: any."""
    min_chars: int = 0
    """Where there are any, no filler stands for an empty text."""


@dataclass(frozen=True, slots=True)
class Scaffold:
    """A canvas before it is decoded: fixed tokens, and [MASK] where it is open."""

    ids: tuple[int, ...]
    parts: tuple[str | Hole, ...]
    """Fixed texts and holes, in order; the answer's text is made of these."""
    classes: tuple[int, ...] | None = None
    """Class of the tokens that each position may take in the first pass (`allowed_tokens`); None:
    all may take any."""
    filler: str | None = None
    """A hole with exactly this text, but for space around it, reads as empty."""

    @classmethod
    def open(cls, length: int, mask_id: int) -> Scaffold:
        """A canvas that is one hole."""
        return cls((mask_id,) * length, (Hole(0, length),))

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
        return self.classes is not None and min(self.classes, default=0) < 0

    @property
    def eos_from(self) -> int:
        """First position from which on an EOS may end the sample: the start of a hole that reaches
        the canvas' end, and behind the canvas where none does."""
        last = self.parts[-1]
        return last.start if isinstance(last, Hole) else len(self.ids)

    def next_classes(self, canvas: Sequence[int], mask_id: int) -> list[int]:
        """Class of the tokens that each position may take in the next pass; `choices.NOT_YET` where
        it must not be committed. canvas: the token ids so far, [MASK] where open."""
        found = list(self.classes or [0] * len(self.ids))
        for hole in self.holes:
            if hole.choices is not None:
                ids = canvas[hole.start : hole.end]
                found[hole.start : hole.end] = hole.choices.next_classes(ids, mask_id)
        return found

    def kept(self, canvas: Sequence[int], ends: Collection[int]) -> list[bool]:
        """Which positions belong to the answer: fixed ones, and those of each hole before its first
        EOS or pad. ends: their ids."""
        found = [True] * len(self.ids)
        for hole in self.holes:
            size = len(_before_end(canvas[hole.start : hole.end], ends))
            found[hole.start + size : hole.end] = [False] * (hole.end - hole.start - size)
        return found

    def text(self, canvas: Sequence[int], tokenizer: Any, ends: Collection[int]) -> str:
        """The answer: fixed texts as they are, with the holes' texts between them."""
        return "".join(
            part if isinstance(part, str) else self._text_of(part, canvas, tokenizer, ends)
            for part in self.parts
        )

    def _text_of(
        self, hole: Hole, canvas: Sequence[int], tokenizer: Any, ends: Collection[int]
    ) -> str:
        whole = canvas[hole.start : hole.end]
        chosen = hole.choices.text(whole) if hole.choices else None
        if chosen is not None:
            return chosen
        how: dict[str, bool] = {"skip_special_tokens": True}
        if hole.reads_as != "text":
            how["clean_up_tokenization_spaces"] = False
        text: str = tokenizer.decode(list(_before_end(whole, ends)), **how)
        if hole.reads_as in ("integer", "digits"):
            text = "".join(char for char in text if char in "0123456789")
            return text if hole.reads_as == "digits" else text.lstrip("0") or "0"
        if self.filler is not None and not hole.min_chars and text.strip() == self.filler:
            text = ""
        text = text[: hole.max_chars]
        return json.dumps(text, ensure_ascii=False)[1:-1] if hole.reads_as == "string" else text


@dataclass(frozen=True, slots=True)
class Blank:
    """A hole that has no place on the canvas yet."""

    size: int | None
    """Positions; None: a share of what gen_length leaves."""
    hole: Hole = Hole(0, 0)
    """How its text is read."""
    classes: tuple[int, ...] | None = None
    """Class of the tokens that each position may take; None: all may take any."""


def blanks_of(template: str) -> list[str | Blank]:
    """The fixed texts and holes of a template, in order.

    Raises ValueError where it has no hole, and for a hole of no positions.
    """
    parts: list[str | Blank] = []
    for number, piece in enumerate(HOLE.split(template)):
        if number % 2 == 0:
            parts += [piece] if piece else []
        elif piece == "*":
            parts.append(Blank(None))
        elif not piece.strip("0"):
            raise ValueError(f"the hole [[{piece}]] has no positions; give it 1 or more")
        elif len(piece.lstrip("0")) > MAX_DIGITS:
            raise ValueError(f"the hole [[{piece}]] is longer than any canvas; make it smaller")
        else:
            parts.append(Blank(int(piece)))
    if all(isinstance(part, str) for part in parts):
        raise ValueError(
            "the template has no hole; write [[12]] for 12 positions, [[*]] for what is left"
        )
    return parts


@dataclass(frozen=True, slots=True)
class TemplateReader:
    """Makes scaffolds for one model and canvas."""

    model: DiffusionModel
    gen_length: int
    """Positions that a scaffold may take."""
    allow_special_tokens: bool = False
    """Whether `<|im_end|>` and the like in fixed texts are special tokens; else they are text."""
    filler: str | None = None

    def read(self, template: str) -> Scaffold:
        """The scaffold of a template.

        Raises ValueError where the template has no hole or a hole of no positions, does not fit
        gen_length, or holds text that the tokenizer cannot represent.
        """
        return self.lay_out(blanks_of(template))

    def lay_out(self, parts: Iterable[str | Blank]) -> Scaffold:
        """The scaffold of fixed texts and holes; neighbouring texts are tokenised as one.

        Raises ValueError as `read` does.
        """
        parts = _joined(parts)
        ids_of = self.encode([part for part in parts if isinstance(part, str)])
        num_fixed = sum(len(ids_of[part]) for part in parts if isinstance(part, str))
        mask_id = self.model.mask_id
        ids: list[int] = []
        classes: list[int] = []
        placed: list[str | Hole] = []
        for part in _sized(parts, num_fixed, self.gen_length):
            if isinstance(part, str):
                placed.append(part)
                ids += ids_of[part]
                classes += [0] * len(ids_of[part])
                continue
            size = part.size or 0
            placed.append(replace(part.hole, start=len(ids), end=len(ids) + size))
            ids += [mask_id] * size
            classes += part.classes or (0,) * size
        found = tuple(classes) if any(classes) else None
        return Scaffold(tuple(ids), tuple(placed), found, self.filler)

    def encode(self, texts: Sequence[str]) -> dict[str, list[int]]:
        """Token ids of fixed texts, each read apart from the others.

        Raises ValueError where the tokenizer cannot represent one.
        """
        texts = list(dict.fromkeys(texts))
        found = encode_texts(self.model, texts, self.allow_special_tokens)
        return {text: self._checked(text, ids) for text, ids in zip(texts, found, strict=True)}

    def _checked(self, text: str, ids: list[int] | ValueError) -> list[int]:
        if isinstance(ids, ValueError):
            raise ValueError(f"the template {str(ids).removeprefix('the prompt ')}") from ids
        unknown = getattr(self.model.tokenizer, "unk_token_id", None)
        if self.model.mask_id in ids:
            raise ValueError(
                f"the template spells the mask token in {_short(text)}; write [[1]] for a hole of "
                "one position"
            )
        # Where EOS serves as the unknown token (GPT-2), no text is unknown.
        if unknown in ids and unknown != getattr(self.model, "eos_id", None):
            raise ValueError(
                f"the template holds {_short(text)}, which this tokenizer has no tokens for; take "
                "the unknown characters out"
            )
        return ids


def _joined(parts: Iterable[str | Blank]) -> list[str | Blank]:
    found: list[str | Blank] = []
    for part in parts:
        last = found[-1] if found else None
        if isinstance(part, str) and isinstance(last, str):
            found[-1] = last + part
        elif part != "":
            found.append(part)
    return found


def _sized(parts: Sequence[str | Blank], num_fixed: int, gen_length: int) -> list[str | Blank]:
    """The parts, each hole with its number of positions."""
    holes = [part for part in parts if isinstance(part, Blank)]
    num_shares = sum(hole.size is None for hole in holes)
    num_taken = num_fixed + sum(hole.size or 0 for hole in holes)
    left = gen_length - num_taken
    if left < num_shares:
        least = f", and {num_shares} more for [[*]]" if num_shares else ""
        raise ValueError(
            f"the template takes {num_taken} positions ({num_fixed} of them fixed text{least}) and "
            f"gen_length is {gen_length}; raise gen_length or shorten it"
        )
    shares = iter(
        [left // num_shares + (number < left % num_shares) for number in range(num_shares)]
    )
    return [
        replace(part, size=next(shares)) if isinstance(part, Blank) and part.size is None else part
        for part in parts
    ]


def _before_end(ids: Sequence[int], ends: Collection[int]) -> Sequence[int]:
    return ids[: next((n for n, index in enumerate(ids) if index in ends), len(ids))]


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
