"""Markdown as GitHub reads it → the same for Python-Markdown, which mkdocs renders with.

Python-Markdown nests by four spaces, begins a list or a table at an empty line only, and wants a
bar in code unescaped, in tables too.
"""

from __future__ import annotations

import re

from jobs.docs.sections import marked_lines

INDENT = re.compile(r"^ {2,}")
ITEM = re.compile(r" *([*+-]|1\.) ")
ANY_ITEM = re.compile(r" *([*+-]|\d+\.) ")
CODE = re.compile(r"`[^`]*`")
ROW = re.compile(r" *\|")


def for_python_markdown(text: str) -> str:
    """The text, to be rendered as GitHub renders it."""
    lines: list[str] = []
    before, is_loose = "", False
    for is_code, line in marked_lines(text):
        if not is_code:
            in_list = line.startswith(" ") or ANY_ITEM.match(line) is not None
            if line.strip() and not in_list:
                is_loose = False
            if _begins_block(before, line) or (is_loose and before.strip() and ITEM.match(line)):
                lines.append("\n")
                is_loose = True
            is_loose |= not line.strip()
            if ROW.match(line):
                line = CODE.sub(lambda found: found[0].replace("\\|", "|"), line)
        before = line
        lines.append(line if is_code else INDENT.sub(_four_for_two, line, count=1))
    return "".join(lines)


def _begins_block(before: str, line: str) -> bool:
    """Whether a list or a table begins with this line and needs an empty one in front."""
    if not before.strip():
        return False
    if ROW.match(line):
        return not ROW.match(before)
    if not ITEM.match(line):
        return False
    in_list = before.startswith(" ") or ANY_ITEM.match(before) is not None
    return not in_list or _indent(line) > _indent(before)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _four_for_two(found: re.Match[str]) -> str:
    return "    " * (len(found[0]) // 2)
