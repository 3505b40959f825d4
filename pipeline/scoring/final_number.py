"""The final number of a worked solution, as an exact fraction.

Knows nothing of tasks. Where an answer is marked (`#### x`, `\\boxed{x}`, "the answer is x")
the mark counts, in this order, and the last mark of its kind; else the last number does.
Units, currencies and the percent sign are dropped: 50% is 50.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_CURRENCY = r"[$€£¥₹]\s*"
# A minus is a sign only where nothing stands before it that it could be taken from.
_NUMBER = re.compile(
    rf"(?:(?<![\w.,)\]}}%])(?P<sign>[-+]))?(?:{_CURRENCY})?(?P<inner>(?<![\w)\]}}])-)?"
    rf"(?<![A-Za-z\d_.])(?:"
    rf"(?:(?P<whole>\d+)\s*)?\\frac\s*\{{?\s*(?P<top>-?\d+)\s*\}}?\s*\{{?\s*(?P<bottom>\d+)\s*\}}?"
    rf"|(?P<mixed>\d+)\s+(?P<mixed_top>\d+)\s*/\s*(?P<mixed_bottom>\d+)"
    rf"|(?P<over>{_DIGITS})\s?/\s?(?P<under>{_DIGITS})"
    rf"|(?P<plain>{_DIGITS}))"
)
_MARK = re.compile(r"\banswer\b(?:\s+\w+){0,4}?\s*(?:\bis\b|[:=])\s*:?(?P<tail>[^\n]*)", re.I)
_SENTENCE_END = re.compile(r"[.!?](?:\s|$)")
_REWRITTEN = (
    (re.compile(r"[−–﹣－]"), "-"),
    (re.compile(r"\\(?:d|t|c)frac"), r"\\frac"),
    (re.compile(r"\{,\}|(?<=\d)\\[,!;:]?\s?(?=\d{3}(?!\d))"), ","),
    (re.compile(r"\\(?:text|mathrm|mathbf|mbox|textbf)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\\(?:left|right|quad|,|;|!|:| )"), " "),
    (re.compile(r"\\\$"), "$"),
    (re.compile(r"\*\*|__|`"), ""),
    # The exponent of a unit (cm^2, m³) is no number of its own.
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
    """The contents of each closed `\\boxed{…}` or `\\fbox{…}`, braces balanced, in order."""
    found = []
    for opening in re.finditer(r"\\f?boxed?\s*\{", text):
        depth = 1
        for place in range(opening.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if not depth:
                found.append(text[opening.end() : place])
                break
    return found


def _rewritten(text: str) -> str:
    for pattern, replacement in _REWRITTEN:
        text = pattern.sub(replacement, text)
    return text


def _candidates(text: str) -> Iterator[re.Match[str]]:
    """Numbers, the most trusted first."""
    hashes = [tail.split("\n")[0] for tail in text.split("####")[1:]]
    phrases = [_first_sentence(found["tail"]) for found in _MARK.finditer(text)]
    for marked in (hashes, boxed(text), phrases):
        for segment in reversed(marked):
            # "x = 18" and "3 * 6 = 18" end in what they come to.
            yield from _NUMBER.finditer(segment.rpartition("=")[2])
    yield from reversed(list(_NUMBER.finditer(text)))


def _first_sentence(text: str) -> str:
    end = _SENTENCE_END.search(text)
    return text[: end.start()] if end else text


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
