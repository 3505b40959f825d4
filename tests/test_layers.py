"""jobs → pipeline → lrd, and nothing points back: the imports of every module, read not run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

COMMAND_LINE = {"argparse", "click", "typer"}
FORBIDDEN = {
    "lrd": {"pipeline", "jobs", "ray", "pyarrow", "datasets", "pandas", *COMMAND_LINE},
    "pipeline": {"jobs", *COMMAND_LINE},
}


def imported(tree: ast.AST) -> Iterator[str]:
    """Top-level packages, wherever in the module they are imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module).partition(".")[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield ast.unparse(node.args[0]).strip("'\"").partition(".")[0]


def printing_lines(tree: ast.AST) -> list[int]:
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "builtins.print")
    ]


def modules(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert len(found) > 1, f"no modules in {package}; the test would pass on nothing"
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_point_one_way(package: str) -> None:
    wrong = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in modules(package)
        for name in set(imported(ast.parse(path.read_text()))) & FORBIDDEN[package]
    }
    assert not wrong


@pytest.mark.parametrize("package", FORBIDDEN)
def test_only_jobs_print(package: str) -> None:
    printing = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in modules(package)
        for line in printing_lines(ast.parse(path.read_text()))
    }
    assert not printing


def test_the_reader_of_imports_sees_them_all() -> None:
    source = """
import ray.data
from pyarrow import parquet
from . import jobs
def late():
    import pandas as pd
    importlib.import_module("datasets.load")
    print(pd)
    table.print()
"""
    tree = ast.parse(source)
    assert sorted(imported(tree)) == ["datasets", "pandas", "pyarrow", "ray"]
    assert printing_lines(tree) == [8]
