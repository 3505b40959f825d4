"""jobs → pipeline → lrd, and nothing points back: the imports of every module, read not run.

Which libraries a command loads is seen by running it.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from helpers.synthetic_run import write_run

from jobs.cli import COMMANDS

ROOT = Path(__file__).parents[1]

DOOR = ROOT / "lrd/analysis.py"
"""Names of `pipeline.analysis` for users of the library; the one module of lrd that looks up."""
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
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).endswith("import_module")
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value).partition(".")[0]


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
        if path != DOOR
    }
    assert not wrong


def test_the_door_of_the_library_holds_names_alone_and_nothing_goes_through_it() -> None:
    body = ast.parse(DOOR.read_text()).body[1:]
    assert {type(node) for node in body} == {ast.ImportFrom, ast.Assign}
    found = {name for node in body for name in imported_modules(node)}
    assert all(name.startswith(("pipeline.analysis", "__future__")) for name in found)
    users = {
        path.relative_to(ROOT).as_posix()
        for package in ("lrd", "pipeline", "jobs")
        for path in modules(package)
        if "lrd.analysis" in imported_modules(outside_functions(ast.parse(path.read_text())))
    }
    assert not users


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


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Full names of what is imported: `a.b` and `a.b.c` for `from a.b import c`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_under(path: Path, *places: str) -> bool:
    """Whether a module is one of these files, or under one of these folders."""
    name = path.relative_to(ROOT).as_posix()
    return any(name == place or name.startswith(f"{place}/") for place in places)


def test_only_jobs_imports_experiments() -> None:
    wrong = {
        path.relative_to(ROOT).as_posix()
        for path in modules("pipeline")
        if not is_under(path, "pipeline/experiments")
        for name in imported_modules(ast.parse(path.read_text()))
        if name.startswith("pipeline.experiments")
    }
    assert not wrong


def test_ray_is_imported_where_runs_are_made_alone() -> None:
    allowed = (
        *("pipeline/run.py", "pipeline/cluster.py", "pipeline/driver.py", "pipeline/ray_jobs.py"),
        "pipeline/replicas",
        *("pipeline/observe/metrics.py", "pipeline/experiments/paper", "jobs/bench"),
    )
    found = {
        path
        for package in ("pipeline", "jobs")
        for path in modules(package)
        if "ray" in imported(ast.parse(path.read_text()))
    }
    assert len(found) > 5
    assert not {path for path in found if not is_under(path, *allowed)}


def test_no_two_modules_have_one_name() -> None:
    """But `config` of library and pipeline, and a command and the one module that it calls."""
    places = defaultdict(set)
    for package in ("lrd", "pipeline", "jobs"):
        for path in modules(package):
            places[path.stem].add(path.relative_to(ROOT))
    commands = {Path("jobs", f"{name.replace('-', '_')}.py") for name in COMMANDS}
    for stem in ("__init__", "config"):
        del places[stem]
    assert not {stem: paths for stem, paths in places.items() if len(paths - commands) > 1}


# What is loaded.

HEAVY = {"torch", "ray"}
LOADED = "import sys\ntry:\n    {}\nfinally:\n    print(*sys.modules, file=open({!r}, 'w'))\n"


def loaded(statement: str, folder: Path, *words: str) -> tuple[int, set[str]]:
    """A fresh interpreter's exit code after a statement, and the modules that it has then."""
    names = folder / "modules.txt"
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format(statement, str(names)), *words],
        capture_output=True, cwd=ROOT,
    )  # fmt: skip
    return done.returncode, set(names.read_text().split())


def run_command(folder: Path, *words: str) -> tuple[int, set[str]]:
    return loaded("from jobs import cli; cli.main()", folder, *words)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("--help", 0),
        ("nonsense", 2),
        ("--colour", 2),
        ("models", 0),
        ("generate --help", 0),
        *((f"{name} --colour", 2) for name in COMMANDS),
    ],
)
def test_help_and_refusals_load_neither_torch_nor_ray(
    words: str, code: int, tmp_path: Path
) -> None:
    ended, names = run_command(tmp_path, *words.split())
    assert ended == code
    assert not names & HEAVY
    others = {f"jobs.{name.replace('-', '_')}" for name in COMMANDS}
    assert len(names & others) <= 1, "only the command that was named is imported"


@pytest.mark.parametrize(
    "words", ["status", "verify --no-input", "report", "select --to {tmp}/new --max-per-prompt 1"]
)
def test_looking_at_a_run_loads_neither_torch_nor_ray(words: str, tmp_path: Path) -> None:
    write_run(tmp_path / "run", (8,))
    words = words.format(tmp=tmp_path)
    ended, names = run_command(tmp_path, *words.split(), str(tmp_path / "run"))
    assert ended == 0
    assert "pyarrow" in names
    assert not names & HEAVY


@pytest.mark.parametrize(
    "statement",
    [
        "import lrd; lrd.DecodingConfig",
        "from lrd import DecodingConfig",
        *("import pipeline.config", "import pipeline.rows", "import pipeline.faults"),
        *("import pipeline.input.prompt_shards", "import pipeline.output.ledger"),
        "import lrd; lrd.analysis.load",
    ],
)
def test_settings_and_files_load_neither_torch_nor_ray(statement: str, tmp_path: Path) -> None:
    code, names = loaded(statement, tmp_path)
    assert code == 0
    assert not names & HEAVY


def test_the_library_without_its_door_loads_neither_pipeline_nor_pandas(tmp_path: Path) -> None:
    code, names = loaded("import lrd; lrd.DecodingConfig; dir(lrd)", tmp_path)
    assert code == 0
    assert not names & {"pipeline", "pandas", "pyarrow", "matplotlib"}


# What is declared.


def project() -> dict[str, set[str]]:
    """Names of the distributions that are declared: `main`, and each extra."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"main": table["dependencies"], **table["optional-dependencies"]}
    return {
        group: {normal(re.split(r"[\[<>=!~; ]", line)[0]) for line in lines}
        for group, lines in groups.items()
    }


def normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def third_party(tree: ast.AST) -> set[str]:
    own = {"lrd", "pipeline", "jobs", "__future__"}
    return {name for name in imported(tree) if name not in {*own, *sys.stdlib_module_names}}


def outside_functions(tree: ast.Module) -> ast.Module:
    """What is run when a module is imported."""

    class Cut(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)

    cut = Cut().visit(tree)
    assert isinstance(cut, ast.Module)
    return cut


NEEDS_EXTRA = Path("lrd/belief_kernels.py")
"""Consists of an extra's functions; itself imported inside of functions only."""


def test_what_is_imported_is_declared() -> None:
    """Main dependencies for what modules import; an extra's only inside of functions."""
    declared, made_of = project(), packages_distributions()
    extras = set().union(*(names for group, names in declared.items() if group != "dev"))
    undeclared, unguarded, used = set(), set(), set()
    for path in [path for package in ("lrd", "pipeline", "jobs") for path in modules(package)]:
        for name in third_party(ast.parse(path.read_text())):
            owners = {normal(owner) for owner in made_of.get(name, [name])}
            used |= owners
            if not owners & extras:
                undeclared.add(f"{path.relative_to(ROOT)}: {name}")
        outside = outside_functions(ast.parse(path.read_text()))
        assert f"lrd.{NEEDS_EXTRA.stem}" not in imported_modules(outside), path
        if path == ROOT / NEEDS_EXTRA:
            continue
        for name in third_party(outside):
            owners = {normal(owner) for owner in made_of.get(name, [name])}
            if not owners & declared["main"]:
                unguarded.add(f"{path.relative_to(ROOT)}: {name}")
    assert not undeclared
    assert not unguarded
    assert not extras - used, "declared, and imported nowhere"


TOP = {
    *("lrd", "pipeline", "jobs", "cluster", "tests", "pyproject.toml", "constraints.txt"),
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile"),
    *(".ci", ".dockerignore", ".gitignore", ".pre-commit-config.yaml"),
}


def test_nothing_else_lies_at_the_top() -> None:
    """A download or an output that was committed by accident does."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert {name.partition("/")[0] for name in listed.stdout.splitlines()} == TOP
