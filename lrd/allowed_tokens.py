"""Classes of tokens: which ones a position of an answer may take where its form is given.

Legend: C classes, V rows of the embedding table. Class 0 takes any token and is never asked for
here; the others are numbered as they are first used, so the same schema gives the same numbers.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lrd.models.protocol import DiffusionModel, eos_ids
from lrd.special_text import special_ids

TokenClass = Literal["string", "character", "digit", "first digit"] | frozenset[int]
"""string: inside of a JSON string, or the hole's end; character: the same, whole characters and no
end; digit: digits, or the hole's end; first digit: digits; a set: these tokens."""

MAX_CLASSES = 2048
"""A table of 152,000 tokens then takes 0.3 GB."""
MAX_DIGITS = 3
"""Digits of one token, as vocabularies have them for numbers; longer runs are rare tokens."""


class TokenClasses:
    """The classes of tokens that one schema uses, for one model."""

    def __init__(self, model: DiffusionModel) -> None:
        """Reads no tokens yet: `table` does."""
        self._model = model
        self._numbers: dict[TokenClass, int] = {}
        self.ends = frozenset({*eos_ids(model), model.pad_id})
        """Tokens that end a hole."""

    def number(self, kind: TokenClass) -> int:
        """The class' number, from 1.

        Raises ValueError where there would be more than MAX_CLASSES.
        """
        found = self._numbers.setdefault(kind, len(self._numbers) + 1)
        if found >= MAX_CLASSES:
            raise ValueError(
                f"its alternatives need more than {MAX_CLASSES:,} sets of tokens; give fewer or "
                "shorter ones, or a string"
            )
        return found

    def table(self) -> Tensor:
        """bool [C, V], on the CPU: which tokens each class may take.

        Raises ValueError where the tokenizer has no token for a class.
        """
        table_CV = torch.zeros(
            len(self._numbers) + 1, len(self._model.embedding_table), dtype=torch.bool
        )
        table_CV[0] = True
        named = self._named() if any(isinstance(kind, str) for kind in self._numbers) else {}
        for kind, number in self._numbers.items():
            ids = named[kind] if isinstance(kind, str) else sorted(kind)
            if isinstance(kind, str) and self.ends.issuperset(ids):
                raise ValueError(f"the tokenizer has no token for a {kind} of JSON; use another")
            table_CV[number, ids] = True
        return table_CV

    def _named(self) -> dict[str, list[int]]:
        """Token ids of the classes that are told by their text."""
        alone, after = self._texts()
        ends = sorted(self.ends)
        inside = [n for n, text in enumerate(after) if text and is_inside_string(text)]
        digits = [
            n
            for n, text in enumerate(after)
            if text and len(text) <= MAX_DIGITS and text.isascii() and text.isdigit()
        ]
        return {
            "string": [*inside, *ends],
            # A decoder may drop the space at a hole's start.
            "character": [n for n in inside if alone[n] and "\ufffd" not in after[n]],
            "digit": [*digits, *ends],
            "first digit": digits,
        }

    def _texts(self) -> tuple[list[str], list[str]]:
        """Each token's text, alone and behind a letter, which keeps its leading space; empty for
        special tokens and rows of the table that are not tokens."""
        tokenizer = self._model.tokenizer
        number = min(len(tokenizer), len(self._model.embedding_table))

        def decoded(ids: list[list[int]]) -> list[str]:
            texts: list[str] = tokenizer.batch_decode(
                ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            return texts

        special = special_ids(self._model) | self.ends | {self._model.mask_id}
        alone = decoded([[index] for index in range(number)])
        alone = ["" if index in special else text for index, text in enumerate(alone)]
        letters = (n for n, text in enumerate(alone) if len(text) == 1 and text.isalpha())
        letter = next((n for n in letters if alone[n].isascii()), None)
        if letter is None:
            return alone, alone
        start = alone[letter]
        after = decoded([[letter, index] for index in range(number)])
        after = [
            text.removeprefix(start) if index not in special and text.startswith(start) else ""
            for index, text in enumerate(after)
        ]
        return alone, after


def is_inside_string(text: str) -> bool:
    """Whether a text may stand between the quotes of a JSON string as it is."""
    return not any(char in '"\\' or char < " " for char in text)
