"""The text of each token of a canvas, and texts as a terminal may show them.

A token may be part of a word, or of a character's bytes. Its text is what the text of the tokens
before it grows by.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

MOST_BYTES = 4
"""Of a character in UTF-8, and so tokens that may make one."""
PARTIAL = "\N{REPLACEMENT CHARACTER}"
LINE_ENDS = "\n\x85\u2028\u2029"
SKIN_TONES = range(0x1F3FB, 0x1F400)


def token_texts(tokenizer: Any, ids: Sequence[int | None]) -> list[str | None]:
    """The text of each token, special ones too; of a character's bytes all is its last token's.

    None: a position without a token, where no text goes on. Without a tokenizer a token is shown as
    its number.
    """
    texts: list[str | None] = []
    before: tuple[int, ...] = ()  # The last tokens whose text is whole.
    pending: tuple[int, ...] = ()
    for index in ids:
        if index is None:
            before = pending = ()
            texts.append(None)
            continue
        if tokenizer is None:
            texts.append(f"[{index}]")
            continue
        pending = (*pending, index)
        text = _added(tokenizer, before, pending)
        if text.endswith(PARTIAL) and len(pending) < MOST_BYTES:
            texts.append("")
        else:
            texts.append(text)
            before, pending = pending, ()
    return texts


@lru_cache(1 << 14)
def _added(tokenizer: Any, before: tuple[int, ...], tokens: tuple[int, ...]) -> str:
    """What the tokens add to the text of those before them."""
    told: str = tokenizer.decode(before) if before else ""
    whole: str = tokenizer.decode((*before, *tokens))
    return whole[len(told) :] if whole.startswith(told) else str(tokenizer.decode(tokens))


def harmless(text: str) -> str:
    """The text with line ends and tabs, and with no character that changes a terminal's state, the
    direction or the width of text: control characters are shown by their symbols, joiners and
    variants of emoji are dropped."""
    return "".join(char if char in "\n\t" else _seen(char) for char in text.replace("\r\n", "\n"))


def in_a_line(text: str, line_end: str, tab: str) -> str:
    """The same in one line, with these in place of each line end and tab."""
    return harmless(text).replace("\n", line_end).replace("\t", tab)


def _seen(char: str) -> str:
    code, kind = ord(char), unicodedata.category(char)
    if char in LINE_ENDS:
        return "\n"
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\N{SYMBOL FOR DELETE}"
    if kind in ("Cc", "Cs", "Co", "Cn"):
        return PARTIAL
    is_variant = 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF
    return "" if kind == "Cf" or is_variant or code in SKIN_TONES else char
