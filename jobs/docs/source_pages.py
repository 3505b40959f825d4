"""Python files as pages, to which the other pages link: each line has its number as an anchor.

Where pyproject.toml names the repository's address, links lead there and no such page is made.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path


def line_of(path: Path, name: str) -> int | None:
    """The line that defines `function`, `Class`, `Class.method`, `Class.field` or `CONSTANT`; None
    where the file defines no such name."""
    names = defined(ast.parse(path.read_text()))
    return next((line for found, line in names if found == name), None)


def defined(tree: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[tuple[str, int]]:
    """(name, line) of what a module defines, and its classes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}{node.name}", node.lineno
        elif isinstance(node, ast.ClassDef):
            yield f"{prefix}{node.name}", node.lineno
            yield from defined(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    yield f"{prefix}{target.id}", node.lineno


def source_page(file: str, code: str) -> str:
    """The page of a Python file, as Markdown with HTML in it."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    formatter = HtmlFormatter(cssclass="highlight", linespans="L")
    lines = highlight(code, PythonLexer(), formatter).strip()
    lines = re.sub(r'id="L-(\d+)"', r'id="L\1"', lines)
    return f"---\nsearch:\n  exclude: true\nhide:\n  - navigation\n---\n\n# {file}\n\n{lines}\n"
