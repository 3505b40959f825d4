"""Tables in Markdown, and other people's texts as text in it. Knows nothing of what they mean."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

LONGEST = 300
"""Characters of one text that is not ours."""


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in GitHub's form. Cells are Markdown already; a bar or a line break in one does not
    end it."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def escaped(text: object) -> str:
    """Any text as one line that reads as itself in a Markdown table and is nothing else.

    Whatever could mean something to Markdown, HTML or a link finder is written by number;
    characters that no reader sees, which can turn a line around, are dropped.
    """
    line = " ".join(str(text).split())
    seen = "".join(c for c in line if unicodedata.category(c)[0] != "C")
    cut = seen if len(seen) <= LONGEST else seen[: LONGEST - 1] + "…"
    return re.sub(r"[^\w ]|_", lambda found: f"&#{ord(found[0])};", cut)


def code(text: object) -> str:
    """The same as inline code where the text is harmless there."""
    plain = re.fullmatch(r"[\w.,:/+=()-][\w.,:/+=() -]*", str(text), re.ASCII)
    return f"`{text}`" if plain and len(str(text)) <= LONGEST else escaped(text)


def _cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")
