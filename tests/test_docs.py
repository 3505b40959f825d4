"""The documentation site: every README is on it, links and names in it are real, its start page
works word for word. But for the build itself nothing here needs mkdocs."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import struct
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import yaml
from helpers.readme_blocks import ROOT, blocks
from helpers.shards import shorten
from helpers.synthetic_run import write_run
from markdown_it import MarkdownIt

from jobs.docs import build_site, report_picture, sections
from jobs.docs.dialect import for_python_markdown
from jobs.docs.equations import with_pictures
from jobs.docs.settings_tables import TABLES
from jobs.docs.site_pages import (
    PLAN,
    SOURCES,
    Plan,
    gather,
    markdown_sections,
    read_plan,
)
from jobs.docs.source_pages import line_of
from lrd.config import PRESETS, DecodingConfig
from pipeline.config import RunConfig

NEEDS_MKDOCS = pytest.mark.skipif(
    importlib.util.find_spec("material") is None, reason="pip install 'lrd-pipeline[docs]'"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    """The folder of the gathered pages, and their plan."""
    pytest.importorskip("ziamath", reason="pip install 'lrd-pipeline[docs]'")
    folder = tmp_path_factory.mktemp("site") / "pages"
    return folder, gather(folder)


def anchors_of(page: Path) -> set[str]:
    text = page.read_text()
    return {*re.findall(r"\{#([^}]+)\}$", text, re.MULTILINE), *re.findall(r'id="([^"]+)"', text)}


# Every text is there.


def test_every_line_of_every_readme_is_on_a_page(site: tuple[Path, Plan]) -> None:
    """Words alone are compared: links, anchors and indents are the site's."""
    folder, plan = site
    there = set()
    for page in plan.pages:
        there |= set(words_of((folder / page.path).read_text()))
    for file, parts in markdown_sections(ROOT).items():
        for part in parts:
            if f"{file}#{part.anchor}" in plan.left_out:
                continue
            missing = [line for line in words_of(part.text) if line not in there]
            assert not missing, f"{file}#{part.anchor}: {missing[:3]}"


def words_of(text: str) -> list[str]:
    """The lines that are neither code nor equations, as letters and digits without links."""
    plain = [chunk for is_code, chunk in sections.chunks(text) if not is_code]
    cut = re.sub(r"\]\([^)\s]+\)| \{#[^}]+\}$", "", "\n".join(plain), flags=re.MULTILINE)
    cut = re.sub(r"\$`[^`]+`\$|<span class=\"math\">.*?</span>", " ", cut, flags=re.DOTALL)
    lines = (re.sub(r"\W+", " ", line).strip() for line in cut.splitlines())
    return [line for line in lines if line]


def test_every_page_is_in_the_navigation_once(site: tuple[Path, Plan]) -> None:
    folder, plan = site

    def paths(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        found = entry.values() if isinstance(entry, dict) else entry
        return [path for one in found for path in paths(one)]

    planned = [page.path for page in plan.pages]
    assert sorted(paths(plan.nav)) == sorted(planned)
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*.md")}
    assert {path for path in written if not path.startswith(f"{SOURCES}/")} == set(planned)
    assert {next(iter(part)) for part in plan.nav} >= {"Start", "Method", "Datasets", "Benchmarks"}


def test_every_link_leads_to_a_page_and_a_heading_of_it(site: tuple[Path, Plan]) -> None:
    folder, _ = site
    counted = 0
    for page in folder.rglob("*.md"):
        for link in sections.links(page.read_text()):
            if "://" in link.target:
                continue
            path, _, anchor = link.target.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.is_file(), f"{page}: {link.target}"
            assert not anchor or anchor in anchors_of(target), f"{page}: {link.target}"
            counted += 1
    assert counted > 150


def test_anchors_of_a_page_are_unique(site: tuple[Path, Plan]) -> None:
    folder, plan = site
    for page in plan.pages:
        found = re.findall(r"\{#([^}]+)\}$", (folder / page.path).read_text(), re.MULTILINE)
        assert len(found) == len(set(found)), page.path


# The pages that have their home in no README.

NAMED = ["pipeline/FOLLOW_A_ROW.md", "lrd/METHOD.md"]


@pytest.mark.parametrize("file", NAMED)
def test_names_in_code_are_defined_where_their_links_lead(file: str) -> None:
    """A text in code that links to a Python file is a function, class or method of it."""
    found = [
        link
        for link in sections.links((ROOT / file).read_text())
        if link.target.partition("#")[0].endswith(".py")
    ]
    assert len(found) > 10
    for link in found:
        name = link.text.strip("`")
        assert link.text == f"`{name}`", f"{file}: {link.written} is not a name in code"
        path = (ROOT / file).parent / link.target
        line = line_of(path, name)
        assert line is not None, f"{file}: {link.target} has no {name}"
        assert name.rpartition(".")[2] in path.read_text().splitlines()[line - 1]


def test_the_followed_row_passes_every_stage() -> None:
    """The page goes through each folder of the three stages, and through the decoding."""
    linked = {
        ((ROOT / "pipeline") / link.target).resolve().relative_to(ROOT).as_posix()
        for link in sections.links((ROOT / "pipeline/FOLLOW_A_ROW.md").read_text())
        if link.target.endswith(".py")
    }
    for needed in (
        *("pipeline/run.py", "pipeline/driver.py", "pipeline/input/reader.py"),
        *("pipeline/replicas/replica.py", "pipeline/replicas/pass_loop.py", "lrd/engine.py"),
        *("lrd/decoding.py", "pipeline/output/ledger.py", "pipeline/output/open_shard.py"),
    ):
        assert needed in linked


def test_the_method_has_every_equation_and_a_function_for_those_that_are_computed() -> None:
    chapters = re.split(r"^## ", (ROOT / "lrd/METHOD.md").read_text(), flags=re.MULTILINE)
    equations = {part[:5]: part for part in chapters if part.startswith("Eq. ")}
    assert sorted(equations) == [f"Eq. {n}" for n in range(2, 8)]
    for name, text in equations.items():
        if name != "Eq. 5":
            assert "```math" in text, name
            assert any(link.target.endswith(".py") for link in sections.links(text)), name


# What is made from the code.


@pytest.mark.parametrize(
    ("table", "model"), [("decoding-settings", DecodingConfig), ("run-settings", RunConfig)]
)
def test_the_tables_have_every_setting(table: str, model: type) -> None:
    named = re.findall(r"^\| `(\w+)` \|", TABLES[table](), re.MULTILINE)
    fields = [name for name in model.model_fields if name != "decoding"]
    assert named == fields


def test_the_table_of_presets_is_that_of_the_code() -> None:
    header, _, *rows = [line for line in TABLES["presets"]().splitlines() if line.startswith("|")]
    names = re.findall(r"`(\w+)`", header)
    assert names == list(PRESETS)
    for row in rows:
        setting, *values = [cell.strip(" `") for cell in row.strip("|").split("|")]
        for name, value in zip(names, values, strict=True):
            made = getattr(DecodingConfig.preset(name), setting)
            assert value == str(made).lower(), (name, setting)
    shown = {row.split("`")[1] for row in rows}
    assert {"r_f", "entropy_threshold", "kv_cache"} <= shown


def test_every_command_is_on_the_page_of_commands() -> None:
    from jobs.cli import COMMANDS

    text = TABLES["commands"]()
    assert re.findall(r"^## lrd ([\w-]+)$", text, re.MULTILINE) == list(COMMANDS)
    assert text.count("usage: lrd ") == len(COMMANDS)


# What is refused.


def small_site(folder: Path, readme: str, plan: str) -> None:
    (folder / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    (folder / "lrd").mkdir()
    (folder / "lrd" / "code.py").write_text("class Box:\n    def open(self):\n        pass\n")
    (folder / "README.md").write_text(readme)
    (folder / "site.yml").write_text(plan)


ALL = "nav:\n- Home: {page: index.md, of: [README.md]}\n"


@pytest.mark.parametrize(
    ("readme", "plan", "said"),
    [
        ("# A\n\n[b](gone.md)\n", ALL, "README.md: a link leads to gone.md, which does not exist"),
        ("# A\n\n[b](#gone)\n", ALL, "README.md: a link leads to #gone, which has no such heading"),
        ("# A\n\n[b](site.yml)\n[b](README.md#x)\n", ALL, "README.md#x, which has no such"),
        ("# A\n\n![b](gone.png)\n", ALL, "gone.png, which does not exist"),
        ("# A\n\n[`Box.shut`](lrd/code.py)\n", ALL, "links to Box.shut of lrd/code.py, which def"),
        ("# A\n\n```math\n\\nonsense x\n```\n", ALL, r"README.md: equation '\\nonsense x'"),
        ("# A\n\n```math\n\\frac{1}\n```\n", ALL, "README.md: equation"),
        (
            "# A\n\n## New one\n",
            "nav:\n- Home: {page: index.md, of: [README.md#]}\n",
            "add README.md#new-one to a page",
        ),
        ("# A\n", "nav:\n- Home: {page: index.md, of: [README.md#x]}\n", "there is no README.md#x"),
        (
            "# A\n",
            f"{ALL}- Two: {{page: two.md, of: [README.md#]}}\n",
            "README.md# is on index.md and on two.md",
        ),
        (
            "# A\n",
            f"{ALL}- Two: {{page: index.md, of: [README.md#]}}\n",
            "index.md is planned twice",
        ),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(
    readme: str, plan: str, said: str, tmp_path: Path
) -> None:
    small_site(tmp_path, readme, plan)
    with pytest.raises(ValueError, match=re.escape(said)) as refused:
        gather(tmp_path / "pages", tmp_path, tmp_path / "site.yml")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "pages").exists()


def test_links_to_code_lead_to_the_repository_where_it_is_known(tmp_path: Path) -> None:
    readme = "# A\n\n[`Box.open`](lrd/code.py) and [the plan](site.yml)\n"
    small_site(tmp_path, readme, ALL)
    gather(tmp_path / "pages", tmp_path, tmp_path / "site.yml")
    without = (tmp_path / "pages" / "index.md").read_text()
    assert "[`Box.open`](source/lrd/code.py.md#L2) and `the plan`" in without
    assert 'id="L2"' in (tmp_path / "pages" / "source" / "lrd" / "code.py.md").read_text()

    urls = '[project.urls]\nRepository = "https://example.org/lrd/"\n'
    with (tmp_path / "pyproject.toml").open("a") as file:
        file.write(urls)
    gather(tmp_path / "pages", tmp_path, tmp_path / "site.yml")
    known = (tmp_path / "pages" / "index.md").read_text()
    assert "[`Box.open`](https://example.org/lrd/blob/main/lrd/code.py#L2)" in known
    assert "[the plan](https://example.org/lrd/blob/main/site.yml)" in known
    assert not (tmp_path / "pages" / "source").exists()


# As GitHub reads it.


class Seen(HTMLParser):
    """What a reader sees of HTML: lists, tables, code blocks, links and words, in order."""

    KEPT = frozenset(
        [
            "ul",
            "ol",
            "li",
            "table",
            "tr",
            "th",
            "td",
            "pre",
            "strong",
            "em",
            "a",
            "code",
            "img",
            "h1",
            "h2",
            "h3",
            "h4",
        ]
    )

    def __init__(self, text: str) -> None:
        super().__init__()
        self.events: list[str] = []
        self._in_block = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in self.KEPT and not self._in_block:
            self.events.append(tag)
        self._in_block |= tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        self._in_block &= tag != "pre"
        if tag in ("ul", "ol", "table"):
            self.events.append(f"/{tag}")

    def handle_data(self, data: str) -> None:
        if not self._in_block:  # mkdocs cuts code into spans.
            self.events += data.split()


def as_github(text: str) -> list[str]:
    return Seen(MarkdownIt("commonmark").enable("table").render(text)).events


def as_mkdocs(text: str) -> list[str]:
    from markdown import Markdown

    chosen = yaml.safe_load(build_site.CONFIG.read_text())["markdown_extensions"]
    names = [one for one in chosen if isinstance(one, str)]
    return Seen(Markdown(extensions=names).convert(for_python_markdown(text))).events


def without_equations(text: str) -> str:
    return re.sub(r"^```math.*?^```|\$`[^`]*`\$", "x", text, flags=re.MULTILINE | re.DOTALL)


@NEEDS_MKDOCS
@pytest.mark.parametrize("file", markdown_sections(ROOT))
def test_a_readme_reads_on_the_site_as_on_github(file: str) -> None:
    text = without_equations((ROOT / file).read_text())
    assert as_mkdocs(text) == as_github(text)


@NEEDS_MKDOCS
@pytest.mark.parametrize(
    "text",
    [
        "text:\n* a\n* b\n",
        "* a\n  more\n  * inner\n* b\n",
        "* a\n  * inner\n    * third\n* b\n\nend\n",
        "text\n| a |\n|---|\n| b |\n",
        "* a\n\n  | t |\n  |---|\n  | u |\n\n  end\n* b\n",
        "1. one\n   more\n2. two\n",
        "```\nx:\n* a\n  b\n```\n",
        "about 3 * 4\nor so\n",
        "| a | b |\n|---|---|\n| `x\\|y` | c \\| d |\n",
    ],
)
def test_lists_and_tables_read_as_on_github(text: str) -> None:
    assert as_mkdocs(text) == as_github(text)


def test_headings_have_the_anchors_of_github() -> None:
    text = (
        "# A b\n\n## Paper → code\n\n```\n# no heading\n```\n\n### A b\n\n## What's `x_1`, here?\n"
    )
    parts = sections.sections("f.md", text)
    assert [part.anchor for part in parts] == ["", "paper--code", "whats-x_1-here"]
    assert [one.anchor for one in parts[1].headings] == ["paper--code", "a-b-1"]
    assert "".join(part.text for part in parts) == text


def test_code_that_shows_an_equation_stays_code() -> None:
    text = "as `` $`x`$ `` or `$x`, but not\n"
    assert with_pictures(text) == text


def test_equations_are_pictures_and_dollars_stay() -> None:
    text = "It costs $7 and $`x_t`$.\n\n```math\n\\frac{a}{b} < 1\n```\n\n```\n$`x`$\n```\n"
    made = with_pictures(text)
    assert made.startswith('It costs $7 and <span class="math"><svg role="img" aria-label="x_t"')
    assert '<div class="equation"><svg' in made
    assert "\\frac{a}{b} &lt; 1" in unescape(made) or "&lt; 1" in made
    assert made.endswith("```\n$`x`$\n```\n")


# The build.


@NEEDS_MKDOCS
def test_the_site_builds_strictly_and_asks_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = build_site.main(["--output", str(tmp_path)])
    assert code == 0, capsys.readouterr().err
    built = list((tmp_path / "site").rglob("*.html"))
    assert len(built) > len(read_plan(PLAN).pages)
    loaded = (
        r'<(?:script|img|iframe)[^>]* src="?(https?:[^" >]*)|<link[^>]* href="?(https?:[^" >]*)'
    )
    for page in built:
        text = page.read_text()
        assert not re.findall(loaded, text), page
        if SOURCES not in page.parts:
            shown = re.sub(r"<(pre|code|script|style).*?</\1>", "", text, flags=re.DOTALL)
            assert not re.search(r"\]\(|\{#|```|^\|---|\$`", shown, re.MULTILINE), page
    method = (tmp_path / "site" / "method" / "index.html").read_text()
    assert method.count('<div class="equation"><svg') == 5


@NEEDS_MKDOCS
def test_a_warning_of_mkdocs_fails_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def damaged(folder: Path) -> Plan:
        plan = gather(folder)
        with (folder / "start.md").open("a") as page:
            page.write("\n[gone](tour.md#gone)\n")
        return plan

    monkeypatch.setattr(build_site, "gather", damaged)
    assert build_site.main(["--output", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "tour.md#gone" in said
    assert len(said.strip().splitlines()) == 1


# Pictures.


@pytest.mark.skipif(
    shutil.which("chromium") is None and shutil.which("chromium-browser") is None,
    reason="no chromium here (Debian's package `chromium`)",
)
def test_the_picture_of_a_report_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_run(tmp_path / "run", (12, 8)).to_pandas()
    picture = tmp_path / "report.png"
    words = ["--run", str(tmp_path / "run"), "--output", str(picture)]
    assert report_picture.main(words) == 0, capsys.readouterr().err
    content = picture.read_bytes()
    size = struct.unpack(">II", content[16:24])
    assert (content[:4], size) == (b"\x89PNG", (report_picture.WIDTH, report_picture.HEIGHT))
    longest = rows.loc[rows["num_forwards"].idxmax(), "num_forwards"]
    assert f" of {longest}\n" in capsys.readouterr().out


def test_a_folder_without_a_run_gives_no_picture(tmp_path: Path) -> None:
    words = ["--run", str(tmp_path / "none"), "--output", str(tmp_path / "x.png")]
    assert report_picture.main(words) == 2
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("picture", ["jobs/benchmarks/report.png", "jobs/benchmarks/preview.svg"])
def test_pages_show_the_pictures_and_name_the_script_of_each(
    picture: str, site: tuple[Path, Plan]
) -> None:
    folder, plan = site
    name = picture.rpartition("/")[2]
    texts = [(folder / page.path).read_text() for page in plan.pages]
    showing = [text for text in texts if f"/{name})" in text]
    assert len(showing) > 1
    module = {"report.png": "jobs.docs.report_picture", "preview.svg": "jobs.tiny.preview_picture"}
    assert any(f"`python -m {module[name]}`" in text for text in showing)
    assert (folder / picture).read_bytes() == (ROOT / picture).read_bytes()


# The start page.


def clone(folder: Path) -> Path:
    """A checkout as `git clone` makes it, whose `.venv` is the environment of the tests, since
    `make` would download one."""
    copy = folder / "lrd-pipeline"
    unwanted = shutil.ignore_patterns(
        ".git", ".venv", "runs", "__pycache__", ".*_cache", "*.egg-info"
    )
    shutil.copytree(ROOT, copy, ignore=unwanted)
    (copy / ".venv").mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        if (Path(sys.prefix) / name).exists():
            (copy / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    (copy / ".venv" / ".installed").touch()
    return copy


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.skipif(not (Path(sys.prefix) / "bin" / "lrd").exists(), reason="lrd is not installed")
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("no_ray")
def test_the_start_page_word_for_word(tmp_path: Path) -> None:
    copy = clone(tmp_path)
    shorten(copy / "jobs" / "examples", 64)  # The slow tour decodes all 512 (test_tour.py).
    commands = blocks("jobs/START.md", None, "bash")
    assert commands[0].startswith("make demo\n")
    script = "\n".join(["set -euo pipefail", *commands])
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    done = subprocess.run(
        ["bash", "-c", script], cwd=copy, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "final answers right: " in done.stdout
    assert "Traceback" not in done.stderr
    assert len(pd.read_parquet(copy / "runs/demo/data")) == 64
    assert (copy / "runs/demo/report.html").stat().st_size > 100_000
    answers = pd.read_parquet(copy / "runs/answers/data")
    assert answers["id"].tolist() == ["a", "b", "c"]
    assert [text.rpartition("#### ")[2] for text in answers["output_text"]] == ["14", "24", "69"]
    assert done.stdout.rstrip().endswith("#### 69")
    assert answers["num_forwards"].max() < 64
