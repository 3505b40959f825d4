"""The final number of a worked solution, as an exact fraction.

The number behind the last `####` counts, else the last one in the last box that holds one, else
the last of all. Units, currencies and the percent sign are dropped: 50% is 50.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction

# Thousands, then lakhs and crores (1,00,000).
_GROUPED = r"\d{1,3}(?:,\d{3})+(?!\d)|\d{1,2}(?:,\d{2})+,\d{3}(?!\d)"
_DIGITS = rf"(?:{_GROUPED}|\d+)(?:\.\d+)?|(?<!\.)\.\d+"
_CURRENCY = r"[$€£¥₹]\s*"
# A minus is a sign only where nothing stands before it that it could be taken from.
_NUMBER = re.compile(
    rf"(?:(?<![\w.,)\]}}%])(?P<sign>[-+]))?(?:{_CURRENCY})?(?P<inner>(?<![\w)\]}}])-)?"
    rf"(?<![A-Za-z\d_])(?<!\w\.)(?:"
    rf"(?:(?P<whole>\d+)\s*)?\\frac\s*\{{?\s*(?P<top>-?\d+)\s*\}}?\s*\{{?\s*(?P<bottom>\d+)\s*\}}?"
    rf"|(?P<mixed>\d+)\s+(?P<mixed_top>\d+)\s*/\s*(?P<mixed_bottom>\d+)"
    rf"|(?P<over>{_DIGITS})\s?/\s?(?P<under>{_DIGITS})"
    rf"|(?P<plain>{_DIGITS}))"
)
_BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*\{?|[{}]")
# Without braces, as TeX allows for one token and models write for more: up to the end of the
# formula in its line, else one word.
_BARE = re.compile(r"[^$\n]+?(?=\s*(?:\$|\\\)|\\\]))|[^\s{]\S*")
_REWRITTEN = (
    (re.compile(r"[−–﹣－]"), "-"),
    (re.compile(r"\bRs\.?\s*(?=[\d.])"), "₹"),
    (re.compile(r"\\(?:d|t|c)frac"), r"\\frac"),
    (re.compile(r"\{,\}|(?<=\d)\\[,!;:]?\s?(?=\d{3}(?!\d))"), ","),
    (re.compile(r"\\(?:text|mathrm|mathbf|mbox|textbf)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\\(?:left|right|quad|,|;|!|:| )"), " "),
    (re.compile(r"\\\$"), "$"),
    (re.compile(r"\*\*|__|`"), ""),
    # The exponent of a unit (cm^2, m³) is not a number of its own.
    (re.compile(r"(?<=[A-Za-z}])\s*\^\s*\{?\s*-?\d+\s*\}?|[²³]"), ""),
)


def final_number(text: str) -> str | None:
    """The number that a solution ends in, as written; None where there is none."""
    for candidate in _candidates(_rewritten(text)):
        if _value(candidate) is not None:
            return candidate.group().strip()
    return None


def number_value(text: str) -> Fraction | None:
    """What a written number is; None where `text` holds none."""
    for found in _NUMBER.finditer(_rewritten(text)):
        if (value := _value(found)) is not None:
            return value
    return None


def boxed(text: str) -> list[str]:
    """What `\\boxed{…}`, `\\fbox{…}` and `\\boxed …` hold, in order; not the empty and the open."""
    found: dict[int, str] = {}
    opened: list[tuple[int, bool]] = []
    for token in _BOX_OR_BRACE.finditer(text):
        start, written = token.end(), token.group()
        if written.endswith("{"):
            opened.append((start, written != "{"))
        elif written != "}":
            if bare := _BARE.match(text, start):
                found[start] = bare.group().rstrip(".,")
        elif opened:
            start, is_box = opened.pop()
            if is_box:
                found[start] = text[start : token.start()]
    return [content for _, content in sorted(found.items()) if content.strip()]


def _rewritten(text: str) -> str:
    for pattern, replacement in _REWRITTEN:
        text = pattern.sub(replacement, text)
    return text


def _candidates(text: str) -> Iterator[re.Match[str]]:
    """Numbers, the most trusted first."""
    for tail in reversed(text.split("####")[1:]):
        # "x = 18" and "3 * 6 = 18" end in what they come to.
        yield from _NUMBER.finditer(tail.split("\n")[0].rpartition("=")[2])
    for segment in [*reversed(boxed(text)), text]:
        yield from reversed(list(_NUMBER.finditer(segment)))


def _value(found: re.Match[str]) -> Fraction | None:
    part = found.groupdict()
    try:
        if part["top"]:
            value = Fraction(int(part["top"]), int(part["bottom"])) + int(part["whole"] or 0)
        elif part["mixed"]:
            value = int(part["mixed"]) + Fraction(int(part["mixed_top"]), int(part["mixed_bottom"]))
        elif part["over"]:
            value = _plain(part["over"]) / _plain(part["under"])
        else:
            value = _plain(part["plain"])
    except (ZeroDivisionError, ValueError):
        # ValueError: Python reads no integer of more than 4,300 digits.
        return None
    return -value if "-" in (part["sign"], part["inner"]) else value


def _plain(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))
