"""The text of each token of a canvas, and texts as a terminal may show them.

A token may be part of a word, or of a character's bytes. What it adds is what the text of the
tokens before it grows by.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

TOKENS_BEFORE = 4
"""Tokens that a token's text may depend on: a character has at most four bytes."""
PARTIAL = "\N{REPLACEMENT CHARACTER}"
LINE_ENDS = "\n\x85\u2028\u2029"
SKIN_TONES = range(0x1F3FB, 0x1F400)


def token_texts(tokenizer: Any, ids: Sequence[int | None]) -> list[str | None]:
    """The text of each token, special ones too; of a character's bytes all is its last token's.

    None: a position without a token, where no text goes on. Without a tokenizer a token is shown as
    its number.
    """
    texts: list[str | None] = []
    run: tuple[int, ...] = ()
    for index in ids:
        if index is None:
            run = ()
            texts.append(None)
            continue
        run = (*run[-TOKENS_BEFORE:], index)
        texts.append(f"[{index}]" if tokenizer is None else _added(tokenizer, run))
    return texts


@lru_cache(1 << 14)
def _added(tokenizer: Any, run: tuple[int, ...]) -> str:
    """What the last token adds to the text of those before it."""
    whole: str = tokenizer.decode(run)
    if whole.endswith(PARTIAL):
        return ""
    before: str = tokenizer.decode(run[:-1]).rstrip(PARTIAL) if run[1:] else ""
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(run[-1:])


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
