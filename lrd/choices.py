"""Holes that take one of a few texts: the alternatives as a tree of their tokens.

Which token a position may take depends on the ones before it, so positions are decoded in order
wherever alternatives part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

NOT_YET = -1
"""Class of a position that waits until others before it are committed."""


@dataclass(frozen=True, slots=True)
class Choices:
    """The alternatives of one hole; node 0 of the tree is its root."""

    texts: tuple[str, ...]
    children: tuple[dict[int, int], ...] = field(hash=False)
    """Of each node: the tokens that may follow, and the node behind each."""
    classes: tuple[int, ...]
    """Of each node: the class of the tokens that may follow."""
    ends: dict[int, int] = field(hash=False)
    """Last node of each alternative → its number."""

    @classmethod
    def of(
        cls, alternatives: dict[str, list[int]], eos_id: int, class_of: Callable[[set[int]], int]
    ) -> Choices:
        """The tree of alternatives, text → token ids; shorter ones end with EOS.

        class_of: the class of positions that take one of these tokens.
        Raises ValueError where two alternatives have the same tokens.
        """
        size = max(map(len, alternatives.values()))
        children: list[dict[int, int]] = [{}]
        ends: dict[int, int] = {}
        texts = tuple(alternatives)
        for number, (text, ids) in enumerate(alternatives.items()):
            node = 0
            for index in [*ids, *[eos_id] * (size - len(ids))]:
                if index not in children[node]:
                    children[node][index] = len(children)
                    children.append({})
                node = children[node][index]
            if node in ends:
                raise ValueError(
                    f"{texts[ends[node]]!r} and {text!r} are the same tokens for this tokenizer; "
                    "drop one of them"
                )
            ends[node] = number
        classes = tuple(class_of(set(after)) if after else 0 for after in children)
        return cls(texts, tuple(children), classes, ends)

    @property
    def size(self) -> int:
        """Positions that the longest alternative takes."""
        node, found = 0, 0
        while self.children[node]:
            node, found = next(iter(self.children[node].values())), found + 1
        return found

    def next_classes(self, ids: Sequence[int], mask_id: int) -> list[int]:
        """Classes of the hole's positions for the next pass. ids: its tokens, [MASK] where open.

        An open position has a class as soon as the tokens before it leave one way to it.
        """
        node: int | None = 0
        found = []
        for index in ids:
            if node is None:
                found.append(NOT_YET)
                continue
            found.append(self.classes[node])
            after = self.children[node]
            if index != mask_id:
                node = after[index]
            else:
                node = next(iter(after.values())) if len(after) == 1 else None
        return found

    def text(self, ids: Sequence[int]) -> str | None:
        """The alternative with these tokens; None where they are none, as in a failed sample."""
        node = 0
        for index in ids:
            if index not in self.children[node]:
                return None
            node = self.children[node][index]
        return self.texts[self.ends[node]] if node in self.ends else None
