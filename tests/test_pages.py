"""The READMEs are true: files, columns, tests, settings and links that they name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.config import RunConfig
from pipeline.rows import LEVELS, MEANINGS, RESULT_SCHEMA, kept_schema

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for folder in (".", "cluster", "jobs", "lrd", "pipeline")
    for path in ((ROOT / folder).glob("*.md") if folder == "." else (ROOT / folder).rglob("*.md"))
)
PIPELINE = (ROOT / "pipeline" / "README.md").read_text()
PAGES_OF_THEIR_OWN = ("analysis", "experiments", "preview", "report", "scoring", "selecting")
"""Folders that the table of files names as a whole."""


def chapter(heading: str) -> str:
    return PIPELINE.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """The cells of a table's rows, without header and rule."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def shown(kind: pa.DataType) -> str:
    return re.sub("item: |element: ", "", str(kind)).replace("float", "float32")


def test_the_table_of_columns_is_that_of_the_code() -> None:
    expected = [
        [f"`{field.name}`", f"`{shown(field.type)}`", MEANINGS[field.name]]
        for field in RESULT_SCHEMA
    ]
    assert rows(chapter("Columns")) == expected


def test_the_levels_of_columns_are_those_of_the_code() -> None:
    items = re.findall(r"^\* `(\w+)`[^:]*: ((?:.+\n)(?:  .+\n)*)", chapter("Columns"), re.MULTILINE)
    named = {level: re.findall(r"`(\w+)`", text) for level, text in items}
    lists = [field.name for field in RESULT_SCHEMA if pa.types.is_list(field.type)]
    assert list(named) == list(LEVELS)
    assert named["minimal"] == kept_schema("minimal").names
    assert named["standard"] == lists
    assert [name for name in RESULT_SCHEMA.names if name not in lists] == kept_schema(
        "standard", reopens=True
    ).names


def test_the_table_of_files_names_every_file_once() -> None:
    cells = [cell for cell, _ in rows(chapter("A row's way through the files"))]
    named = [name for cell in cells for name in re.findall(r"`([\w/]+\.py)`", cell)]
    folder = ROOT / "pipeline"
    there = {str(path.relative_to(folder)) for path in folder.rglob("*.py") if path.stat().st_size}
    alone = {name for name in there if name.partition("/")[0] not in PAGES_OF_THEIR_OWN}
    assert sorted(named) == sorted(alone)
    assert {f"`{name}/`" for name in PAGES_OF_THEIR_OWN} <= set(cells)


def test_the_tests_that_are_named_exist() -> None:
    named = {
        name for page in PAGES for name in re.findall(r"`(test_\w+)`", (ROOT / page).read_text())
    }
    columns = {"test_list", "test_setup_code"}
    code = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    missing = [name for name in sorted(named - columns) if f"def {name}(" not in code]
    assert len(named) > 20
    assert not missing


def test_the_settings_of_placement_exist() -> None:
    named = {cell[0].strip("`") for cell in rows(chapter("Placement"))}
    assert len(named) > 5
    assert named <= set(RunConfig.model_fields)


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_are_named_exist(page: str) -> None:
    from jobs.cli import COMMANDS

    text = (ROOT / page).read_text()
    code = re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    named = re.findall(r"`lrd ([a-z][\w-]*)[^`]*`", text)
    named += [name for block in code for name in re.findall(r"^lrd ([\w-]+)", block, re.MULTILINE)]
    assert set(named) <= set(COMMANDS)
