"""The code in a model's answer: out of Markdown fences, prose and broken ends.

Chat models write whole functions, mostly fenced, with prose around them; base models continue
the prompt with a function's body and then go on to other things. Knows nothing of tasks and
runs nothing.
"""

from __future__ import annotations

import ast
import itertools
import re
import textwrap
import warnings

_FENCE = re.compile(r"```[ \t]*[\w+.-]*[ \t]*\r?\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_CODE_START = re.compile(
    r"^(?:(?:async\s+)?def|class|import|from)\s|^@\w|^[A-Za-z_]\w*[ \t]*=[^=]", re.MULTILINE
)
_TABS = re.compile(r"^\t+")
INDENT = "    "


def module(text: str, name: str | None = None) -> str:
    """The part of an answer that is a module.

    Of several fenced blocks the first that defines `name` (any function where None) is taken,
    else the first; unfenced code starts at its first definition, import or assignment. The end
    is cut until the rest parses.
    """
    blocks = [textwrap.dedent(block) for block in _FENCE.findall(text)]
    defining = [block for block in blocks if defines(block, name)]
    if blocks:
        return parsing_part((defining or blocks)[0])
    start = _CODE_START.search(text)
    return parsing_part(text[start.start() :] if start else text)


def function(prompt: str, text: str, name: str) -> str:
    """A program that defines `name`: the prompt, then the answer as its body or again whole.

    prompt: code that ends inside the function `name`, after its docstring.
    """
    text = text.lstrip("\r\n")
    continues = text.startswith((INDENT, "\t")) and not text.lstrip().startswith("```")
    fenced = [] if continues else _FENCE.findall(text)
    if defines(text, name) and not continues:
        # The prompt stays in front for its imports and helper functions.
        return f"{prompt.rstrip()}\n\n\n{module(text, name)}"
    return prompt.rstrip() + "\n" + parsing_part(body(fenced[0] if fenced else text), prompt)


def defines(code: str, name: str | None) -> bool:
    """Whether a line of `code` starts a function `name`, or any function."""
    wanted = re.escape(name) if name else r"\w+"
    return bool(re.search(rf"^[ \t]*(?:async[ \t]+)?def[ \t]+{wanted}[ \t]*\(", code, re.M))


def body(code: str) -> str:
    """A function's body, indented: it ends before the first line that is not.

    Tokenizers eat the spaces an answer starts with, so a first line that is not indented is the
    body's; where what follows it is not indented either, or is that line's own block, the whole
    body moves.
    """
    lines = [_TABS.sub(lambda tabs: INDENT * len(tabs[0]), line) for line in _lines(code)]
    if not lines:
        return ""
    missing = len(INDENT) - _width(lines[0])
    if missing > 0:
        following = next((_width(line) for line in lines[1:] if line.strip()), 0)
        opens_block = lines[0].rstrip().endswith(":")
        if following >= len(INDENT) * (2 if opens_block else 1):
            lines[0] = " " * missing + lines[0]
        else:
            lines = [" " * missing + line for line in lines]
    kept = itertools.takewhile(lambda line: not line.strip() or line.startswith(" "), lines)
    return "\n".join(kept) + "\n"


def parsing_part(code: str, before: str = "") -> str:
    """The longest run of lines from the start that parses behind `before`; all where none does.

    An answer that ran out of tokens ends in half a statement, an unfenced one in prose.
    """
    lines = code.splitlines()
    for count in range(len(lines), 0, -1):
        part = "\n".join(lines[:count]) + "\n"
        if parses(f"{before.rstrip()}\n{part}" if before else part):
            return part
    return code


def parses(code: str) -> bool:
    """Whether `code` is a Python module."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _lines(code: str) -> list[str]:
    return code.strip("\r\n").splitlines()


def _width(line: str) -> int:
    return len(line) - len(line.lstrip(" "))
