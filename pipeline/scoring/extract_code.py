"""The code in a model's answer: out of Markdown fences, prose and broken ends.

Chat models write whole functions, mostly fenced, with prose around them; base models continue
the prompt with a function's body and then go on to other things. Runs nothing.
"""

from __future__ import annotations

import ast
import itertools
import re
import symtable
import sys
import textwrap
import warnings

_FENCE = re.compile(
    r"```[ \t]*(?:[\w+.{}-]*[ \t]*\r?\n|(?:py(?:thon)?3?\b)?[ \t]*(?=\S))(.*?)(?:```|\Z)", re.DOTALL
)
# Annotated too, so that `f: Callable = …` is code; prose may begin like any of these.
_CODE_START = re.compile(
    r"^(?:(?:async\s+)?def|class|import|from)\s|^@\w"
    r"|^[A-Za-z_]\w*[ \t]*(?::[ \t]*[\w.]+(?:\[[^\]\n]*\])?[ \t]*)?=[^=]",
    re.MULTILINE,
)
_FUTURE = re.compile(r"^from __future__ import [^\n]*\n?", re.MULTILINE)
_TABS = re.compile(r"^\t+")
INDENT = "    "


def module(text: str, name: str | None = None) -> str:
    """The part of an answer that is a module.

    The first part that defines `name` (anything where None): the code up to the first fence, a
    fenced block, the code with prose around it; where none does, the first block. Its end is cut
    until the rest parses.
    """
    # Code may stand before a fence, or only end one that the prompt opened.
    start, fence, _ = text.partition("```")
    blocks = [parsing_part(textwrap.dedent(block)) for block in _FENCE.findall(text)]
    candidates = [_unfenced(start, name), *blocks, *([_unfenced(text, name)] if fence else [])]
    return next((code for code in candidates if defines(code, name)), (blocks or candidates)[0])


def function(prompt: str, text: str, name: str) -> str:
    """A program that defines `name`: the prompt, then the answer as its body or again whole.

    prompt: code that ends inside the function `name`, after its docstring.
    """
    text = text.lstrip("\r\n")
    if not _is_body(text) and defines(whole := module(text, name), name):
        # The prompt stays in front for its imports and helper functions; nothing may come
        # before imports from __future__.
        future = "".join(_FUTURE.findall(whole))
        return f"{future}{prompt.rstrip()}\n\n\n{_FUTURE.sub('', whole)}"
    fenced = [] if text.startswith(INDENT) else _FENCE.findall(text)
    return prompt.rstrip() + "\n" + parsing_part(body(fenced[0] if fenced else text), prompt)


def _is_body(text: str) -> bool:
    """Whether an answer begins as a function's body: indented, or its first spaces eaten."""
    if text.lstrip().startswith("```"):
        return False
    first, _, rest = text.partition("\n")
    following = next((line for line in rest.splitlines() if line.strip()), "")
    return first.startswith((INDENT, "\t")) or (
        parses(first) and first.strip() != "" and following.startswith((INDENT, "\t"))
    )


def defines(code: str, name: str | None) -> bool:
    """Whether `code` is a module that binds `name`; any function or class where None.

    By a definition, an assignment (lambda, partial, another name) or an import. Code that
    returns outside a function is a body, which may have a variable of its function's name.
    """
    if not parses(code, compiles=True):
        return False
    table = symtable.symtable(code, "answer", "exec")
    names = set(table.get_identifiers())
    if name is None:
        return any(child.get_name() in {*names, "lambda"} for child in table.get_children())
    return name in names and (table.lookup(name).is_assigned() or table.lookup(name).is_imported())


def _unfenced(text: str, name: str | None) -> str:
    """Code between prose: of its parts the first that defines `name`, else the first."""
    parts = []
    position = 0
    while start := _CODE_START.search(text, position):
        part = parsing_part(text[start.start() :])
        position = start.end()
        if parses(part):
            parts.append(part)
            position = start.start() + len(part)
        if defines(part, name):
            return part
    return parts[0] if parts else parsing_part(text)


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
    head = f"{before.rstrip()}\n" if before else ""
    lines = code.splitlines()
    count = len(lines)
    while count > 0:
        part = "\n".join(lines[:count]) + "\n"
        broken = _broken_line(head + part, ast.PyCF_ONLY_AST)
        if broken is None:
            return part
        # What is wrong in a line is wrong in every longer part.
        count = min(count, broken - head.count("\n")) - 1
    return code


def parses(code: str, compiles: bool = False) -> bool:
    """Whether `code` is Python; `compiles`: with nothing that belongs into a function."""
    return _broken_line(code, 0 if compiles else ast.PyCF_ONLY_AST) is None


def _broken_line(code: str, flags: int) -> int | None:
    """The first line, from 1, that is not Python; a large number where it is not known."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(code, "answer", "exec", flags, dont_inherit=True)
    except SyntaxError as error:
        return error.lineno or sys.maxsize
    except (ValueError, RecursionError, MemoryError):
        return sys.maxsize
    return None


def _lines(code: str) -> list[str]:
    return code.strip("\r\n").splitlines()


def _width(line: str) -> int:
    return len(line) - len(line.lstrip(" "))
