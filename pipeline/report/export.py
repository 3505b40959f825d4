"""Figures as files for papers: SVG, and PNG where the `report` extra is installed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from pipeline.report.figure import Figure
from pipeline.report.style import PRINT, chart_style
from pipeline.storage.storage import Storage

PNG_SCALE = 3
"""Pixels of a PNG per pixel of the drawing: 1,680 wide."""


def export(figures: Sequence[Figure], folder: Storage) -> list[str]:
    """Write every figure; the names of the files."""
    names = []
    for figure in figures:
        svg = standalone(figure)
        folder.write(f"{figure.name}.svg", svg.encode())
        names.append(f"{figure.name}.svg")
        if has_png():
            folder.write(f"{figure.name}.png", _png(svg))
            names.append(f"{figure.name}.png")
    return names


def has_png() -> bool:
    """Whether PNG files can be made."""
    return find_spec("resvg_py") is not None


def standalone(figure: Figure) -> str:
    """A figure's SVG with its colours in it, on white."""
    drawing = figure.chart.svg(figure.name, figure.title)
    head, _, rest = drawing.partition(">")
    style = f"<style>{chart_style(PRINT)}</style>"
    return f'{head}>{style}<rect width="100%" height="100%" fill="#ffffff"/>{rest}\n'


def _png(svg: str) -> bytes:
    import resvg_py

    return bytes(resvg_py.svg_to_bytes(svg_string=svg, zoom=PNG_SCALE))
