"""Rows that were in the slots of a replica when it died, until it is known which of them did it.

Each group is tried by a replica that holds nothing else. A death halves the group; what stays in
a group of one dies alone. Knows nothing of Ray.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from pipeline.rows import Prompt


class Suspects:
    """Groups that wait for a replica of their own."""

    def __init__(self, max_attempts: int) -> None:
        """max_attempts: deaths alone after which a row is given up."""
        self._max_attempts = max_attempts
        self._groups: deque[list[Prompt]] = deque()

    def __len__(self) -> int:
        return sum(map(len, self._groups))

    def add(self, begun: Sequence[Prompt], *, alone: bool) -> list[Prompt]:
        """Rows of one bucket that were in slots at a death; those that are given up now.

        alone: there was one row, and the replica held nothing else.
        """
        if alone:
            (prompt,) = begun
            prompt = replace(prompt, deaths_alone=prompt.deaths_alone + 1)
            if prompt.deaths_alone >= self._max_attempts:
                return [prompt]
            self._groups.append([prompt])
        elif len(begun) == 1:
            self._groups.append(list(begun))
        elif begun:
            half = len(begun) // 2
            self._groups += [list(begun[:half]), list(begun[half:])]
        return []

    def put_back(self, group: Sequence[Prompt]) -> None:
        """A group that was taken and not tried to its end, through no fault of its own."""
        if group:
            self._groups.appendleft(list(group))

    def take(self) -> list[Prompt]:
        """The next group; empty where none waits."""
        return self._groups.popleft() if self._groups else []
