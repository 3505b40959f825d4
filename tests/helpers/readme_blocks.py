"""The code blocks of a README's section, to be run as readers would."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def blocks(file: str, heading: str | None, language: str) -> list[str]:
    """Code blocks of a language under a heading; None: of the whole file."""
    text = (ROOT / file).read_text()
    if heading is not None:
        text = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
