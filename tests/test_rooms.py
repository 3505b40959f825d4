"""Which folder of pipeline/ imports which, and that a run's files are read from one place."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from test_layers import ROOT, modules


def imported_modules(path: Path) -> set[str]:
    """Modules that a file imports, wherever in it: the project's by full name, others by their
    first part."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in inner if file_of(name).is_file()}
            # A package that is imported for its modules counts as these.
            found |= modules if len(modules) == len(inner) else {str(node.module), *modules}
    return {name if name.startswith(("lrd", "pipeline")) else name.split(".")[0] for name in found}


def file_of(module: str) -> Path:
    return ROOT / f"{module.replace('.', '/')}.py"


def room_modules(room: str) -> list[Path]:
    """The modules of a folder of pipeline/, or a single one."""
    single = file_of(f"pipeline.{room}")
    return [single] if single.is_file() else modules(f"pipeline/{room}")


def reached_from(path: Path) -> dict[str, list[str]]:
    """Every module that importing a file may bring in, and the way there."""
    ways: dict[str, list[str]] = {}
    ahead = [(name, [name]) for name in sorted(imported_modules(path))]
    while ahead:
        module, way = ahead.pop(0)
        if module not in ways:
            ways[module] = way
            if file_of(module).is_file():
                ahead += [(n, [*way, n]) for n in sorted(imported_modules(file_of(module)))]
    return ways


MAY_IMPORT = {
    # The levels of columns are a setting.
    "rows": ("lrd", "pipeline.config"),
    "config": ("lrd",),
    # The patterns of a checkpoint's files are lrd's.
    "storage": ("pipeline.faults", "pipeline.storage", "lrd.models.hub", "lrd.models.registry"),
    "input": (
        *("pipeline.input", "pipeline.output.open_shard", "pipeline.observe", "pipeline.rows"),
        *("pipeline.config", "pipeline.storage", "pipeline.parquet_batches", "lrd"),
    ),
    "replicas": (
        *("pipeline.replicas", "pipeline.observe", "pipeline.rows", "pipeline.config"),
        *("pipeline.storage", "pipeline.faults", "lrd"),
    ),
    "output": (
        *("pipeline.output", "pipeline.observe", "pipeline.rows", "pipeline.config"),
        *("pipeline.storage", "pipeline.parquet_batches", "lrd"),
    ),
    "parquet_batches": (),
}
"""What a room may import of the project: these modules, and those below them."""


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_what_stands_below_it(room: str) -> None:
    wrong = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in room_modules(room)
        for name in imported_modules(path)
        if name.split(".")[0] in ("lrd", "pipeline", "jobs")
        and not any(f"{name}.".startswith(f"{allowed}.") for allowed in MAY_IMPORT[room])
    }
    assert not wrong


def test_the_stages_meet_in_the_driver_and_the_run() -> None:
    stages = ("pipeline.input.", "pipeline.replicas.", "pipeline.output.")
    meeting = {
        path.relative_to(ROOT).as_posix()
        for path in modules("pipeline")
        if all(any(name.startswith(s) for name in imported_modules(path)) for s in stages)
    }
    assert meeting == {"pipeline/driver.py", "pipeline/run.py"}


@pytest.mark.parametrize(
    "room", ["analysis", "inspection", "publishing", "report", "scoring", "selecting"]
)
def test_readers_of_files_import_no_ray(room: str) -> None:
    for path in room_modules(room):
        for name, way in reached_from(path).items():
            is_forbidden = name in ("ray", "pipeline.driver", "pipeline.run") or name.startswith(
                "pipeline.replicas"
            )
            assert not is_forbidden, f"{path.relative_to(ROOT)} → {' → '.join(way)}"


RUN_NAMES = re.compile(r"(^|.*/)\.run(/.*)?|.*(manifest|driver)\.json|(.*/)?events\.jsonl", re.S)


def spelt_names(tree: ast.AST) -> list[str]:
    """Strings of a module, but for docstrings, that are names of files under .run/."""
    docstrings = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in docstrings
        and RUN_NAMES.fullmatch(node.value)
    ]


@pytest.mark.parametrize("package", ["pipeline", "jobs"])
def test_the_runs_files_are_named_in_one_place(package: str) -> None:
    home = ROOT / "pipeline/output/run_folder.py"
    folder = ROOT / "pipeline/storage/storage.py"
    wrong = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in modules(package)
        if path not in (home, folder)
        for name in spelt_names(ast.parse(path.read_text()))
    }
    assert not wrong
    assert spelt_names(ast.parse(home.read_text())), "the test would pass on nothing"


def test_names_of_the_runs_files_are_found_wherever_they_stand() -> None:
    source = """
'''Reads .run/manifest.json.'''
A = ".run/driver.json"
B = f"{output}/.run/commits/{number}.json"
C = output.names(".run")
D = "events.jsonl names no start"
E = "manifest.json"
"""
    expected = {".run/driver.json", "/.run/commits/", ".run", "manifest.json"}
    assert set(spelt_names(ast.parse(source))) == expected


def test_ways_to_an_import_are_followed() -> None:
    reached = reached_from(ROOT / "pipeline/run.py")
    assert reached["ray"]
    assert "pipeline.output.run_folder" in reached
    assert reached["pipeline.storage.uris"][-1] == "pipeline.storage.uris"
