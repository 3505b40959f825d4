"""The parts of a report → one self-contained HTML file.

Texts of models and users reach the page in two ways only: escaped by
`html.escape`, or inside the JSON that `embedded` makes and the script writes as text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from pipeline.report.figure import Figure
from pipeline.report.style import DARK, FONT, LIGHT, chart_style, variables

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Makes browsers refuse every request by the page."""
SCRIPTS = ("charts.js", "traces.js", "canvas.js", "moving.js", "viewer.js")


@dataclass(frozen=True, slots=True)
class Tile:
    """One number at the top."""

    value: str
    name: str
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page; figures and cards stand beside each other, the body below them."""

    name: str
    title: str
    figures: Sequence[Figure] = ()
    cards: Sequence[str] = ()
    """HTML that is escaped already, as the body is."""
    body: str = ""


def page(
    title: str,
    subtitle: str,
    status: tuple[str, str],
    notices: Iterable[str],
    tiles: Iterable[Tile],
    sections: Sequence[Section],
    data: dict[str, Any],
    names: Sequence[str] = SCRIPTS,
) -> str:
    """The whole file. status: class and text of the mark beside the title. names: its scripts."""
    folder = files("pipeline.report")
    css = folder.joinpath("page.css").read_text(encoding="utf-8")
    scripts = [folder.joinpath(name).read_text(encoding="utf-8") for name in names]
    data = {**data, "charts": _pointers(sections)}
    links = "".join(
        f'<a href="#{escape(section.name)}">{escape(section.title)}</a>' for section in sections
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n:root{{{variables(LIGHT)}--font:{FONT}}}\n"
        f"@media (prefers-color-scheme: dark){{:root{{{variables(DARK)}}}}}\n"
        f"{chart_style()}\n{css}</style>\n</head>\n<body>\n"
        f'<header><div class="head"><h1>{escape(title)}</h1>'
        f'<span class="status {status[0]}">{escape(status[1])}</span></div>'
        f'<p class="subtitle">{escape(subtitle)}</p></header>\n<nav>{links}</nav>\n<main>\n'
        + "".join(f'<p class="notice">{escape(notice)}</p>\n' for notice in notices)
        + f'<div class="tiles">{"".join(map(_tile, tiles))}</div>\n'
        + "".join(map(_section, sections))
        + f'</main>\n<script type="application/json" id="data">{embedded(data)}</script>\n'
        + "".join(f"<script>\n{script}</script>\n" for script in scripts)
        + "</body>\n</html>\n"
    )


def embedded(data: dict[str, Any]) -> str:
    """JSON that cannot end its script element, whatever texts it holds."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    numbers: Sequence[int] = (),
    style: str = "plain",
) -> str:
    """An HTML table; numbers: columns that are aligned right; style: its CSS class."""

    def cells(texts: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=number' if n in numbers else ''}>{escape(text)}</{tag}>"
            for n, text in enumerate(texts)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return (
        f'<div class="wide"><table class={style}><thead><tr>{cells(head, "th")}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def paragraph(text: str) -> str:
    """Text as a paragraph; nothing where there is none."""
    return f"<p>{escape(text)}</p>" if text else ""


def folded(title: str, body: str) -> str:
    """HTML that is hidden until its title is clicked."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def heading(text: str) -> str:
    """A heading inside a section."""
    return f"<h3>{escape(text)}</h3>"


def _pointers(sections: Sequence[Section]) -> dict[str, Any]:
    return {
        figure.name: figure.chart.pointer() for section in sections for figure in section.figures
    }


def _tile(tile: Tile) -> str:
    return (
        f'<div class="tile"><span class="value">{escape(tile.value)}</span>'
        f'<span class="name">{escape(tile.name)}</span>'
        f'<span class="remark">{escape(tile.remark)}</span></div>'
    )


def _section(section: Section) -> str:
    cards = [f'<div class="card">{card}</div>' for card in section.cards]
    beside = "".join([*map(_figure, section.figures), *cards])
    return (
        f'<section id="{escape(section.name)}"><h2>{escape(section.title)}</h2>'
        f'<div class="beside">{beside}</div>{section.body}</section>\n'
    )


def _figure(figure: Figure) -> str:
    return (
        f'<figure id="figure-{escape(figure.name)}"><h3>{escape(figure.title)}</h3>'
        f"{figure.chart.svg(figure.name, figure.title)}"
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
    )
