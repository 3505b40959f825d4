"""Paired comparisons of decodings: the exact test, intervals, the Pareto front, its drawing."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from itertools import product

import numpy as np
import pytest

from pipeline.experiments.frontier import Series, frontier
from pipeline.experiments.paired import Outcomes, compare, difference_interval, exact_p, front


def outcomes(name: str, right: str, forwards: float, num_failed: int = 0) -> Outcomes:
    """right: a 1 for each right problem."""
    each = tuple(int(forwards) for _ in right)
    return Outcomes(name, tuple(mark == "1" for mark in right), each, num_failed=num_failed)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (0, 6), (5, 1), (3, 3), (2, 7)])
def test_the_exact_test_counts_coins(gained: int, lost: int) -> None:
    n = gained + lost
    as_uneven = sum(
        abs(sum(coins) - n / 2) >= abs(gained - n / 2) for coins in product((0, 1), repeat=n)
    )
    assert exact_p(gained, lost) == pytest.approx(as_uneven / 2**n)


def test_the_exact_test_of_thousands_of_problems_is_a_number() -> None:
    assert exact_p(600, 600) == 1.0
    assert 0 <= exact_p(400, 800) < 1e-25


def test_a_comparison_is_of_the_same_problems() -> None:
    a, b = outcomes("a", "1110", 3), outcomes("b", "1001", 3)
    found = compare(a, b)
    assert (found.gained, found.lost, found.difference) == (2, 1, 0.25)
    assert found.low < 0.25 < found.high
    back = compare(b, a)
    assert (back.low, back.high, back.p) == pytest.approx((-found.high, -found.low, found.p))
    with pytest.raises(ValueError, match="a has 4 problems, c has 3"):
        compare(a, outcomes("c", "111", 3))


def test_the_interval_holds_the_difference_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0)
    gains, losses, num_rows = 0.06, 0.03, 300
    held = 0
    for _ in range(2000):
        gained, lost, _ = draws.multinomial(num_rows, [gains, losses, 1 - gains - losses])
        low, high = difference_interval(gained, lost, num_rows)
        held += low <= gains - losses <= high
    assert held / 2000 == pytest.approx(0.95, abs=0.015)


def test_the_front_is_what_nothing_beats_in_both() -> None:
    measured = [
        outcomes("slow", "1111", 9),
        outcomes("dear", "1110", 9),
        outcomes("quick", "1100", 2),
        outcomes("equal", "1100", 3),
        outcomes("middle", "1110", 5),
        outcomes("none", "1111", 0, num_failed=4),
    ]
    assert [one.name for one in front(measured)] == ["quick", "middle", "slow"]


def test_failed_rows_have_no_forwards() -> None:
    half = Outcomes("half", (True, False), (8, 0), num_failed=1)
    assert (half.accuracy, half.mean_forwards) == (0.5, 8.0)
    assert outcomes("none", "00", 0, num_failed=2).mean_forwards == math.inf


def test_the_drawing_places_more_forwards_to_the_right_and_more_accuracy_above() -> None:
    good, poor = outcomes("good <b>", "1" * 90 + "0" * 10, 30), outcomes("poor", "10" * 50, 3)
    failed = outcomes("failed", "0" * 100, 0, num_failed=100)
    series = Series("model", "s1", [good, poor, failed], {"good <b>": "2", "poor": "1"}, {})
    drawing = frontier([series], "title")
    ET.fromstring(drawing)
    dots = re.findall(r'<g><title>(\S+).*?cx="([\d.]+)" cy="([\d.]+)"', drawing)
    places = {name: (float(x), float(y)) for name, x, y in dots}
    assert set(places) == {"good", "poor:"}
    assert places["good"][0] > places["poor:"][0]
    assert places["good"][1] < places["poor:"][1]
    assert "90.0% (82.6% to 94.5%), 30.0 forwards" in drawing
    with pytest.raises(ValueError, match="nothing to draw"):
        frontier([Series("model", "s1", [failed], {}, {})], "title")
