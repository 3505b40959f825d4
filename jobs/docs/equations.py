"""Equations as GitHub reads them in Markdown → MathML, which browsers show without any script.

A block is fenced as ```math, an equation in a line is written $`…`$: neither can be mistaken for
dollars.
"""

from __future__ import annotations

import re

from jobs.docs.sections import chunks

INLINE = re.compile(r"\$`([^`]+)`\$")
ESCAPED = {character: f"&#{ord(character)};" for character in r"*_|\`"}
"""What Markdown would read in the MathML of a line."""


def with_mathml(text: str) -> str:
    """The text with its equations as MathML."""
    return "".join(
        _block(chunk) if is_code else INLINE.sub(lambda found: _inline(found[1]), chunk)
        for is_code, chunk in chunks(text)
    )


def _block(chunk: str) -> str:
    first, _, rest = chunk.partition("\n")
    if first.strip("`~ ") != "math":
        return chunk
    latex = rest.rpartition("\n```")[0]
    return f'<div class="equation">{_mathml(latex, "block")}</div>\n'


def _inline(latex: str) -> str:
    made = _mathml(latex, "inline")
    return re.sub(r"[*_|\\`]", lambda found: ESCAPED[found[0]], made)


def _mathml(latex: str, display: str) -> str:
    """Raises ValueError, with the equation, where it is not LaTeX that can be converted."""
    from latex2mathml.converter import convert

    try:
        return " ".join(str(convert(latex.strip(), display=display)).split())
    except Exception as error:  # The converter has many of its own.
        raise ValueError(f"equation {latex.strip()!r}: {type(error).__name__} {error}") from error
