"""Takes Markdown files apart: sections, headings with GitHub's anchors, links, code.

Everything here reads text alone; `site_pages.py` puts the parts together again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

SECTION = 2
"""Level of the headings that begin one."""
FENCE = re.compile(r"^(`{3,}|~{3,})", re.MULTILINE)
HEADING = re.compile(r"^(#{1,6}) +(.+?) *#*$")
LINK_OR_CODE = re.compile(
    r"(?P<code>(?P<ticks>`+).+?(?<!`)(?P=ticks)(?!`))"
    r"|(?P<image>!?)\[(?P<text>(?:[^\[\]`]|`[^`]*`)*)\]\((?P<target>[^)\s]+)\)",
    re.DOTALL,
)
"""A code span, in which nothing is a link, or a link or image; its text may hold code spans."""


@dataclass(frozen=True, slots=True)
class Heading:
    """One heading of a file."""

    level: int
    text: str
    anchor: str
    """As GitHub makes it: `#anchor` of a link."""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a file: the text before its first `##` heading, or that from one to the next."""

    file: str
    """Path below the repository's root."""
    anchor: str
    """Of its heading; empty for the text before the first."""
    text: str
    headings: list[Heading]
    """In it, its own first."""


@dataclass(frozen=True, slots=True)
class Link:
    """A link or an image as it stands in a text."""

    text: str
    target: str
    is_image: bool
    written: str


def chunks(text: str) -> Iterator[tuple[bool, str]]:
    """(whether it is a fenced code block, text) in order; together they are the whole text."""
    lines: list[str] = []
    fence = ""
    for line in text.splitlines(keepends=True):
        found = FENCE.match(line)
        if fence:
            lines.append(line)
            if found and found[1].startswith(fence) and line.strip() == found[1]:
                yield True, "".join(lines)
                lines, fence = [], ""
        elif found:
            yield False, "".join(lines)
            lines, fence = [line], found[1]
        else:
            lines.append(line)
    yield bool(fence), "".join(lines)


def slug(text: str) -> str:
    """What GitHub makes of a heading's text, before it numbers those that are alike."""
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


def sections(file: str, text: str) -> list[Section]:
    """A file's sections in order. Their anchors are those of the whole file."""
    found = [Section(file, "", "", [])]
    lines: list[str] = []
    seen: Counter[str] = Counter()

    def end() -> None:
        found[-1] = replace(found[-1], text="".join(lines))
        lines.clear()

    for is_code, line in marked_lines(text):
        heading = None if is_code else HEADING.match(line.rstrip("\n"))
        if heading:
            anchor = slug(heading[2])
            name = f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor
            seen[anchor] += 1
            if len(heading[1]) == SECTION:
                end()
                found.append(Section(file, name, "", []))
            found[-1].headings.append(Heading(len(heading[1]), heading[2], name))
        lines.append(line)
    end()
    return found


def marked_lines(text: str) -> Iterator[tuple[bool, str]]:
    """(whether it is in a fenced code block, line) for every line."""
    for is_code, chunk in chunks(text):
        yield from ((is_code, line) for line in chunk.splitlines(keepends=True))


def links(text: str) -> list[Link]:
    """The links and images outside code."""
    return [
        _link(found)
        for is_code, chunk in chunks(text)
        if not is_code
        for found in LINK_OR_CODE.finditer(chunk)
        if not found["code"]
    ]


def with_links(text: str, rewrite: Callable[[Link], str]) -> str:
    """The text with each link as `rewrite` writes it."""

    def one(found: re.Match[str]) -> str:
        return found[0] if found["code"] else rewrite(_link(found))

    return "".join(
        chunk if is_code else LINK_OR_CODE.sub(one, chunk) for is_code, chunk in chunks(text)
    )


def _link(found: re.Match[str]) -> Link:
    return Link(found["text"], found["target"], bool(found["image"]), found[0])
