"""Gathers the READMEs into the pages of the documentation site.

`site.yml` says which sections make up which page; their texts have their one home in the READMEs.
Links between files become links between pages, images are copied, equations become pictures, and
links to code lead to the repository, or to pages that show the code.
"""

from __future__ import annotations

import os
import re
import shutil
import tomllib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from jobs.docs import sections
from jobs.docs.dialect import for_python_markdown
from jobs.docs.equations import with_pictures
from jobs.docs.sections import Link, Section
from jobs.docs.settings_tables import TABLES
from jobs.docs.source_pages import line_of, source_page

ROOT = Path(__file__).parents[2]
PLAN = Path(__file__).parent / "site.yml"
IMAGES = {".png", ".svg", ".gif", ".jpg", ".webp"}
FOLDERS = ("cluster", "jobs", "lrd", "pipeline")
"""Folders whose Markdown files, and those beside them, are on the site."""
SOURCES = "source"
"""Folder of the pages that show code."""
TABLE = "table:"
"""Before the name of a table of `settings_tables.py`, in place of a section."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of the site, as planned."""

    title: str
    """In the navigation; the page's own where no part brings a title along."""
    path: str
    """Below the site's root, `.md`."""
    parts: tuple[str, ...]
    """`FILE`: all of it; `FILE#`: what is before its first section; `FILE#anchor`: a section;
    `table:NAME`: a table that is made from the code."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`site.yml`."""

    pages: list[Page]
    nav: list[Any]
    """As mkdocs reads it."""
    left_out: dict[str, str]
    """Parts that are on no page, and why."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A section on a page."""

    section: Section
    deeper: int
    """Levels by which its headings go down; below 0: up."""
    anchors: list[str]
    """Of its headings, on the page."""


@dataclass(slots=True)
class Site:
    """The pages while they are written."""

    root: Path
    repository: str | None
    """Address of the repository's files, if pyproject.toml names one."""
    places: dict[tuple[str, str], str] = field(default_factory=dict)
    """(file, anchor) → page and anchor there; the anchor is empty for a file as a whole."""
    images: set[str] = field(default_factory=set)
    sources: set[str] = field(default_factory=set)
    """Files that are linked to, and shown as pages."""


def gather(out: Path, root: Path = ROOT, plan_file: Path = PLAN) -> Plan:
    """Write all pages and images into a folder, which is made anew; returns the plan.

    Raises ValueError, in one line, where a section is on no page or on two, and where a link leads
    nowhere.
    """
    plan = read_plan(plan_file)
    chosen = choose(plan, markdown_sections(root))
    site = Site(root, repository_of(root))
    pieces = {page.path: _placed(site, page, chosen[page.path]) for page in plan.pages}
    texts = {page.path: _written(site, page, pieces[page.path]) for page in plan.pages}
    shutil.rmtree(out, ignore_errors=True)
    for path, text in texts.items():
        _write(out / path, text)
    for image in sorted(site.images):
        (out / image).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / image, out / image)
    for file in sorted(site.sources):
        _write(out / SOURCES / f"{file}.md", source_page(file, (root / file).read_text()))
    return plan


def read_plan(path: Path) -> Plan:
    """The plan of a file. Raises ValueError where a page stands in it twice."""
    given = yaml.safe_load(path.read_text())
    pages: list[Page] = []

    def entry(title: str, content: Any) -> dict[str, Any]:
        if isinstance(content, list):
            return {title: [entry(*pair) for part in content for pair in part.items()]}
        pages.append(Page(title, content["page"], tuple(content["of"])))
        return {title: content["page"]}

    nav = [entry(*pair) for part in given["nav"] for pair in part.items()]
    paths = [page.path for page in pages]
    if twice := sorted({name for name in paths if paths.count(name) > 1}):
        raise ValueError(f"{path}: {', '.join(twice)} is planned twice")
    return Plan(pages, nav, given.get("left_out") or {})


def repository_of(root: Path) -> str | None:
    """Address of the repository's files on its host, from `project.urls` of pyproject.toml."""
    urls = tomllib.loads((root / "pyproject.toml").read_text())["project"].get("urls", {})
    found = next(
        (urls[name] for name in ("Repository", "Source", "Homepage") if name in urls), None
    )
    return f"{found.rstrip('/')}/blob/main" if found else None


def markdown_sections(root: Path) -> dict[str, list[Section]]:
    """The sections of every Markdown file of the repository, by path below its root."""
    below = (path for folder in FOLDERS for path in (root / folder).rglob("*.md"))
    files = sorted([*root.glob("*.md"), *below])
    names = [path.relative_to(root).as_posix() for path in files]
    return {name: sections.sections(name, (root / name).read_text()) for name in names}


# Which section is on which page.


def choose(plan: Plan, found: dict[str, list[Section]]) -> dict[str, list[list[Section]]]:
    """The sections of each page, by its parts.

    Raises ValueError where a section is on two pages, or on none and not left out.
    """
    chosen: dict[str, list[list[Section]]] = {}
    homes: dict[tuple[str, str], str] = {}
    for page, parts in [
        *((page.path, page.parts) for page in plan.pages),
        ("left_out", tuple(plan.left_out)),
    ]:
        chosen[page] = [_sections_of(part, found) for part in parts]
        for section in (one for part in chosen[page] for one in part):
            before = homes.setdefault((section.file, section.anchor), page)
            if before != page:
                name = f"{section.file}#{section.anchor}"
                raise ValueError(f"jobs/docs/site.yml: {name} is on {before} and on {page}")
    for section in (one for file in found.values() for one in file):
        if (section.file, section.anchor) not in homes:
            raise ValueError(
                f"{section.file}: no page of the documentation has its section "
                f"#{section.anchor}; add {section.file}#{section.anchor} to a page of "
                "jobs/docs/site.yml"
            )
    return chosen


def _sections_of(part: str, found: dict[str, list[Section]]) -> list[Section]:
    """What a part of the plan names."""
    if part.startswith(TABLE):
        text = TABLES[part.removeprefix(TABLE)]()
        (lead, *rest) = sections.sections(part, text)
        return [lead, *rest] if lead.text.strip() else rest
    file, is_one, anchor = part.partition("#")
    named = [one for one in found.get(file, []) if not is_one or one.anchor == anchor]
    if not named:
        raise ValueError(f"jobs/docs/site.yml: there is no {part}")
    return named


# Pages.


def _placed(site: Site, page: Page, parts: list[list[Section]]) -> list[Piece]:
    """The page's sections in order, with anchors that are unique on it; notes where each is."""
    pieces: list[Piece] = []
    taken: set[str] = set()
    is_one = sum(map(len, parts)) == 1 and parts[0][0].anchor != ""
    for part in parts:
        lead = part[0]
        # The page's title is its first file's, or the heading of its only section.
        deeper = -1 if is_one else int(bool(pieces) and not lead.anchor)
        if not lead.anchor:
            site.places[lead.file, ""] = page.path
        for section in part:
            anchors = [_free(heading.anchor, taken) for heading in section.headings]
            for heading, anchor in zip(section.headings, anchors, strict=True):
                site.places[section.file, heading.anchor] = f"{page.path}#{anchor}"
            pieces.append(Piece(section, deeper, anchors))
    return pieces


def _free(wanted: str, taken: set[str]) -> str:
    """The anchor, with a number where the page has it already; it is taken from then on."""
    number, name = 1, wanted
    while name in taken:
        number += 1
        name = f"{wanted}-{number}"
    taken.add(name)
    return name


def _written(site: Site, page: Page, pieces: list[Piece]) -> str:
    first = pieces[0].section.headings
    has_title = bool(first) and first[0].level + pieces[0].deeper == 1
    title = "" if has_title else f"# {page.title}\n\n"
    return title + "\n".join(_piece(site, page, piece) for piece in pieces)


def _piece(site: Site, page: Page, piece: Piece) -> str:
    """A section's text with `{#anchor}` at its headings, links of the site, and drawn equations."""
    anchors = iter(piece.anchors)
    lines: list[str] = []
    for is_code, line in sections.marked_lines(piece.section.text):
        found = None if is_code else sections.HEADING.match(line.rstrip("\n"))
        if found:
            marks = "#" * (len(found[1]) + piece.deeper)
            line = f"{marks} {found[2]} {{#{next(anchors)}}}\n"
        lines.append(line)
    text = "".join(lines).strip("\n") + "\n"
    linked = sections.with_links(
        text, lambda link: _link(site, page.path, piece.section.file, link)
    )
    try:
        return with_pictures(for_python_markdown(linked))
    except ValueError as error:
        raise ValueError(f"{piece.section.file}: {error}") from error


# Links.


def _link(site: Site, page: str, file: str, link: Link) -> str:
    """A link of a file as the page has it."""
    if "://" in link.target or link.target.startswith("mailto:"):
        return link.written
    path, _, anchor = link.target.partition("#")
    target = os.path.normpath(PurePosixPath(file).parent / path) if path else file
    if not file.startswith(TABLE) and not (site.root / target).exists():
        raise ValueError(f"{file}: a link leads to {link.target}, which does not exist")
    if PurePosixPath(target).suffix in IMAGES:
        site.images.add(target)
        return f"{'!' * link.is_image}[{link.text}]({_relative(page, target)})"
    if (target, anchor) in site.places:
        return f"[{link.text}]({_relative(page, site.places[target, anchor])})"
    if target.endswith(".md") or file.startswith(TABLE):
        raise ValueError(f"{file}: a link leads to {link.target}, which has no such heading")
    return _source_link(site, page, file, target, link.text)


def _source_link(site: Site, page: str, file: str, target: str, text: str) -> str:
    """A link to a file that is not a page: to the repository, else to a page that shows its code. A
    text that is a name in code leads to its definition."""
    path = site.root / target
    named = re.fullmatch(r"`([A-Za-z_][\w.]*)(\(.*\))?`", text)
    line = None
    if named and path.suffix == ".py" and not named[1].endswith(".py"):
        line = line_of(path, named[1])
        if line is None:
            raise ValueError(f"{file}: links to {named[1]} of {target}, which defines no such name")
    anchor = f"#L{line}" if line else ""
    if site.repository:
        return f"[{text}]({site.repository}/{target}{anchor})"
    if path.suffix != ".py":
        return text if "`" in text else f"`{text}`"
    site.sources.add(target)
    return f"[{text}]({_relative(page, f'{SOURCES}/{target}.md')}{anchor})"


def _relative(page: str, target: str) -> str:
    return os.path.relpath(target, PurePosixPath(page).parent)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
