"""Writes Markdown tables, and escapes texts that other people wrote so that they stay text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

LONGEST = 300
"""Characters of a text that are shown; the rest is cut."""


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in GitHub's form. Cells are Markdown; `|` and line breaks in them are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def escaped(text: object) -> str:
    """Any text as one line that reads as itself in a Markdown table and is nothing else.

    Every character that Markdown, HTML or a link finder could act on becomes a numeric entity;
    invisible characters, some of which reverse a line, are dropped.
    """
    line = " ".join(str(text).split())
    seen = "".join(c for c in line if unicodedata.category(c)[0] != "C")
    cut = seen if len(seen) <= LONGEST else seen[: LONGEST - 1] + "…"
    return re.sub(r"[^\w ]|_", lambda found: f"&#{ord(found[0])};", cut)


def code(text: object) -> str:
    """The text as inline code where it is harmless there, else `escaped`."""
    plain = re.fullmatch(r"[\w.,:/+=()-][\w.,:/+=() -]*", str(text), re.ASCII)
    return f"`{text}`" if plain and len(str(text)) <= LONGEST else escaped(text)


def _cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")
