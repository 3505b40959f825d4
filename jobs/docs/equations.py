"""Equations as GitHub reads them in Markdown → SVG, which needs neither scripts nor fonts.

A block is fenced as ```math, an equation in a line is written $`…`$: neither can be mistaken for
dollars.
"""

from __future__ import annotations

import html
import re

from jobs.docs.sections import chunks

INLINE = re.compile(r"(?P<code>(`{2,}).+?\2)|\$`(?P<latex>[^`]+)`\$", re.DOTALL)
"""Code that shows how equations are written is none itself."""
SIZE = 17
"""Of a letter, in pixels: that of the text around it."""


def with_pictures(text: str) -> str:
    """The text with its equations as SVG. Raises ValueError, with the equation, where one is not
    LaTeX that can be drawn."""
    return "".join(
        _block(chunk)
        if is_code
        else INLINE.sub(lambda found: found["code"] or _inline(found["latex"]), chunk)
        for is_code, chunk in chunks(text)
    )


def _block(chunk: str) -> str:
    first, _, rest = chunk.partition("\n")
    if first.strip("`~ ") != "math":
        return chunk
    latex = rest.rpartition("\n```")[0]
    return f'<div class="equation">{_svg(latex, inline=False)}</div>\n'


def _inline(latex: str) -> str:
    return f'<span class="math">{_svg(latex, inline=True)}</span>'


def _svg(latex: str, *, inline: bool) -> str:
    from latex2mathml.converter import convert
    from ziamath import zmath
    from ziamath.config import config

    latex = latex.strip()
    # Each picture has its own glyphs: shared ones would have the size of the page's first.
    config.svg2 = False
    try:
        unknown = re.findall(r"\\\w+", convert(latex))
        drawn = zmath.Latex(latex, size=SIZE, color="currentColor", inline=inline)
        svg = str(drawn.svg())
    except Exception as error:  # Both have many of their own.
        raise ValueError(f"equation {latex!r}: {type(error).__name__} {error}") from error
    if unknown:
        raise ValueError(f"equation {latex!r}: {unknown[0]} is not known")
    spoken = html.escape(latex, quote=True).replace("|", "&#124;").replace("\n", " ")
    style = f'style="vertical-align:{drawn.getyofst():.2f}px"'
    return svg.replace("<svg ", f'<svg role="img" aria-label="{spoken}" {style} ', 1)
