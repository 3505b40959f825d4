"""Colours of charts: of the page's two themes, and of print."""

from __future__ import annotations

LIGHT = {
    "s1": "#2166ac",
    "s2": "#c2570c",
    "s3": "#1b7f5f",
    "s4": "#b3261e",
    "s5": "#9aa4b1",
    "s6": "#7a4fb5",
    "ink": "#1b2330",
    "soft": "#5a6576",
    "grid": "#e3e7ed",
    "axis": "#9aa4b1",
}
DARK = {
    "s1": "#79b4f2",
    "s2": "#f2a35e",
    "s3": "#5ecba1",
    "s4": "#f28b82",
    "s5": "#667184",
    "s6": "#c3a1f2",
    "ink": "#e8ecf2",
    "soft": "#a3aec0",
    "grid": "#2b3442",
    "axis": "#5c6778",
}
"""Contrast of each against the page's background is at least 3 : 1, of text 4.5 : 1."""
PRINT = LIGHT
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


def variables(colours: dict[str, str]) -> str:
    """A palette as CSS custom properties."""
    return "".join(f"--{name}:{value};" for name, value in colours.items())


def chart_style(colours: dict[str, str] | None = None) -> str:
    """The stylesheet of charts: with these colours, or with custom properties for them."""

    def colour(name: str) -> str:
        return f"var(--{name})" if colours is None else colours[name]

    series = "".join(
        f".line.{s},.rule.{s}{{stroke:{colour(s)}}}"
        f".band.{s},.area.{s},.bar.{s},.dot.{s}{{fill:{colour(s)}}}"
        for s in ("s1", "s2", "s3", "s4", "s5", "s6")
    )
    return (
        f".chart text{{font-family:{FONT};font-size:12px;fill:{colour('soft')}}}"
        f".chart .label{{font-size:13px;fill:{colour('ink')}}}"
        f".chart .key{{fill:{colour('ink')}}}"
        f".chart .note{{font-size:11px}}"
        f".grid{{stroke:{colour('grid')};stroke-width:1}}"
        f".axis{{stroke:{colour('axis')};stroke-width:1}}"
        f".rule{{stroke:{colour('soft')};stroke-width:1.2;stroke-dasharray:5 4}}"
        ".line{fill:none;stroke-width:2;stroke-linejoin:round}"
        ".band{fill-opacity:.2}.area{fill-opacity:.85}" + series
    )
