"""Charts as SVG text: two axes, and bands, lines, areas and bars over them.

Colours are CSS classes (s1 … s6) that a stylesheet
defines: the page's follows its theme, `export.py` has one for print. Coordinates: `px` are those
of the drawing, all others are the data's.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 560, 310
LEFT, RIGHT, TOP, BOTTOM = 66, 16, 34, 50
"""Margins in px; the legend stands in the top one."""
CHARACTER = 6.6
"""A mean character's width in px at the legend's size; SVG text cannot be measured here."""
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True, slots=True)
class Axis:
    """What one direction of a chart shows."""

    label: str
    low: float
    high: float
    log: bool = False
    percent: bool = False
    """Values are shares; ticks show them as percentages."""
    whole: bool = False
    """Only whole numbers mean something."""
    marks: tuple[tuple[float, str], ...] = ()
    """Ticks with their names, for categories; computed where there are none."""

    def ticks(self) -> list[tuple[float, str]]:
        """Values and their texts, about five."""
        if self.marks:
            return list(self.marks)
        if self.log:
            first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            stride = max(1, (last - first + 5) // 6)
            powers = range(first, last + 1, stride)
            return [(10.0**power, "10" + str(power).translate(SUPERSCRIPTS)) for power in powers]
        step = nice_step((self.high - self.low) / 5)
        step = max(1.0, step) if self.whole else step
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [(n * step, self._text(n * step)) for n in range(first, last + 1)]

    def _text(self, value: float) -> str:
        if self.percent:
            return f"{100 * value:.0f}%"
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"

    def position(self, value: float, start: float, end: float) -> float:
        """A value's px between the axis's ends; values outside stand at its ends."""
        low, high = self.low, self.high
        value = min(max(value, low), high)
        if self.log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return start + (value - low) / (high - low) * (end - start)


def nice_step(rough: float) -> float:
    """The smallest of 1, 2, 5 · 10ⁿ that is not below `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))


@dataclass(slots=True)
class Chart:
    """Two axes and what has been drawn over them, in order."""

    x: Axis
    y: Axis
    marks: list[str] = field(default_factory=list)
    legend: list[tuple[str, str, str]] = field(default_factory=list)
    """Class, kind (line, dash, box) and text."""
    readings: list[tuple[str, list[str]]] = field(default_factory=list)
    """A name and a text for every point of `reading_xs`: what a pointer over it shows."""
    reading_xs: list[tuple[float, str]] = field(default_factory=list)
    """x and its name."""

    def px(self, x: float) -> float:
        return self.x.position(x, LEFT, WIDTH - RIGHT)

    def py(self, y: float) -> float:
        return self.y.position(y, HEIGHT - BOTTOM, TOP)

    def line(self, xs: Sequence[float], ys: Sequence[float], style: str, name: str = "") -> None:
        """A line through the points; NaN breaks it, a point between breaks is a dot."""
        for run in _runs(xs, ys):
            if len(run) == 1:
                x, y = run[0]
                center = f'cx="{self.px(x):.1f}" cy="{self.py(y):.1f}"'
                self.marks.append(f'<circle class="dot {style}" {center} r="3"/>')
            else:
                points = " ".join(f"{self.px(x):.1f},{self.py(y):.1f}" for x, y in run)
                self.marks.append(f'<polyline class="line {style}" points="{points}"/>')
        if name:
            self.legend.append((style, "line", name))

    def band(
        self,
        xs: Sequence[float],
        lows: Sequence[float],
        highs: Sequence[float],
        style: str,
        kind: str = "band",
        name: str = "",
    ) -> None:
        """The area between two lines; kind `area` is opaque, `band` lets lines through."""
        for above, below in zip(_runs(xs, highs), _runs(xs, lows), strict=True):
            outline = [*above, *reversed(below)]
            points = " ".join(f"{self.px(x):.1f},{self.py(y):.1f}" for x, y in outline)
            self.marks.append(f'<polygon class="{kind} {style}" points="{points}"/>')
        if name:
            self.legend.append((style, "box", name))

    def bar(self, x_low: float, x_high: float, y_low: float, y_high: float, style: str) -> None:
        """A rectangle, with a hair of air to its neighbours."""
        left, right = self.px(x_low), self.px(x_high)
        top, bottom = self.py(y_high), self.py(y_low)
        air = min(1.0, (right - left) / 6)
        self.marks.append(
            f'<rect class="bar {style}" x="{left + air:.1f}" y="{top:.1f}" '
            f'width="{right - left - 2 * air:.1f}" height="{bottom - top:.1f}"/>'
        )

    def level(self, y: float, text: str) -> None:
        """A dashed horizontal line with its name at the right end."""
        at = self.py(y)
        self.marks.append(
            f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            + _text(WIDTH - RIGHT - 4, at - 4, text, "note", "end")
        )

    def moment(self, x: float, style: str) -> None:
        """A dashed vertical line."""
        at = self.px(x)
        self.marks.append(
            f'<line class="rule {style}" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" '
            f'y2="{HEIGHT - BOTTOM}"/>'
        )

    def svg(self, name: str, title: str) -> str:
        """The drawing, without a stylesheet."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" data-chart="{name}" '
            f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">'
            f"<title>{html.escape(title)}</title>"
            + self._grid()
            + "".join(self.marks)
            + self._frame()
            + self._legend()
            + "</svg>"
        )

    def pointer(self) -> dict[str, object]:
        """What the page's script shows at the pointer; x coordinates in px."""
        return {
            "frame": [LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM],
            "places": [round(self.px(x), 1) for x, _ in self.reading_xs],
            "names": [name for _, name in self.reading_xs],
            "readings": [[name, texts] for name, texts in self.readings],
        }

    def _grid(self) -> str:
        lines = [
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{self.py(y):.1f}" '
            f'y2="{self.py(y):.1f}"/>' + _text(LEFT - 8, self.py(y) + 4, text, "tick", "end")
            for y, text in self.y.ticks()
        ]
        return "".join(lines)

    def _frame(self) -> str:
        base = HEIGHT - BOTTOM
        ticks = "".join(
            f'<line class="axis" x1="{self.px(x):.1f}" x2="{self.px(x):.1f}" y1="{base}" '
            f'y2="{base + 4}"/>' + _text(self.px(x), base + 18, text, "tick", "middle")
            for x, text in self.x.ticks()
        )
        middle = (TOP + base) / 2
        return (
            f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>'
            + ticks
            + _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, self.x.label, "label", "middle")
            + f'<text class="label" text-anchor="middle" transform="translate(15 {middle:.1f}) '
            f'rotate(-90)">{html.escape(self.y.label)}</text>'
        )

    def _legend(self) -> str:
        parts, at = [], float(LEFT)
        for style, kind, text in self.legend:
            if kind == "box":
                parts.append(
                    f'<rect class="bar {style}" x="{at:.1f}" y="9" width="12" height="12"/>'
                )
            else:
                css = "rule" if kind == "dash" else "line"
                parts.append(
                    f'<line class="{css} {style}" x1="{at:.1f}" x2="{at + 16:.1f}" y1="15" '
                    'y2="15"/>'
                )
            parts.append(_text(at + 21, 19, text, "key", "start"))
            at += 21 + CHARACTER * len(text) + 18
        return "".join(parts)


def _runs(xs: Sequence[float], ys: Sequence[float]) -> list[list[tuple[float, float]]]:
    """The points, cut where y is NaN."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(xs, ys, strict=True):
        if math.isnan(y):
            runs.append([])
        else:
            runs[-1].append((x, y))
    return [run for run in runs if run]


def _text(x: float, y: float, text: str, style: str, anchor: str) -> str:
    return (
        f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"{html.escape(text)}</text>"
    )
