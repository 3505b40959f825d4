"""Large families of near-equal cases: some of every kind in each run, the others slow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from itertools import product
from typing import Any

import pytest


def few(
    members: Iterable[Any], kind: Callable[[Any], Hashable] = lambda member: None, of_each: int = 1
) -> list[Any]:
    """For `parametrize`: the first `of_each` members of each kind, and the others as slow."""
    seen: Counter[Hashable] = Counter()
    found = []
    for member in members:
        seen[kind(member)] += 1
        found.append(_case((member,), slow=seen[kind(member)] > of_each))
    return found


def spread(*axes: Iterable[Any], every: int = 2) -> list[Any]:
    """For `parametrize` of several arguments: all combinations, one of `every` in each run and the
    others as slow. Every value of every axis is in each run, beside many of the other axes'."""
    places = product(*(list(enumerate(axis)) for axis in axes))
    return [
        _case([value for _, value in combination], slow=sum(n for n, _ in combination) % every != 0)
        for combination in places
    ]


def _case(values: Iterable[Any], slow: bool) -> Any:
    values = tuple(values)
    marks = [pytest.mark.slow] if slow else []
    return pytest.param(*values, id="-".join(map(str, values)), marks=marks)
