"""Builds the documentation site from the READMEs: `make docs`.

    python -m jobs.docs.build_site [--output runs/docs]

Writes the gathered pages to OUTPUT/pages and the site to OUTPUT/site. A section without a page, a
link that leads nowhere and every warning of mkdocs end it with exit code 2.
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from jobs import output
from jobs.docs.site_pages import SOURCES, Plan, gather

JOB = "python -m jobs.docs.build_site"
CONFIG = Path(__file__).parent / "mkdocs.yml"
STYLE = Path(__file__).parent / "site.css"


class Warnings(logging.Handler):
    """Collects what mkdocs warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(output.as_line(record.getMessage()))


def main(words: list[str] | None = None) -> int:
    """Gather, build; the exit code."""
    made = output.Parser(prog=JOB, description="Build the documentation site.")
    made.add_argument("--output", default="runs/docs", help="folder; what it holds is replaced")
    args = made.parse_args(words)
    folder = Path(args.output).absolute()
    try:
        plan = gather(folder / "pages")
        wrong = build(folder, plan)
    except ImportError as error:
        return output.refuse(JOB, f"{error}; pip install 'lrd-pipeline[docs]'")
    except (ValueError, OSError) as error:
        return output.refuse(JOB, str(error))
    if wrong:
        return output.refuse(JOB, "; ".join(wrong))
    site = folder / "site"
    print(f"{len(plan.pages)} pages: open {site / 'index.html'}")
    print(f"with search: python -m http.server --directory {site}")
    return output.OK


def build(folder: Path, plan: Plan) -> list[str]:
    """Run mkdocs on FOLDER/pages; what it warns of."""
    from mkdocs.commands.build import build as run
    from mkdocs.config import load_config

    import_module("material")  # The theme, which mkdocs looks for by its name.
    (folder / "pages" / STYLE.name).write_text(STYLE.read_text())
    warnings = Warnings()
    log = logging.getLogger("mkdocs")
    log.addHandler(warnings)
    try:
        config: Any = load_config(
            str(CONFIG),
            docs_dir=str(folder / "pages"),
            site_dir=str(folder / "site"),
            nav=plan.nav,
            extra_css=[STYLE.name],
            not_in_nav=f"/{SOURCES}/",
        )
        run(config)
    finally:
        log.removeHandler(warnings)
    return warnings.lines


if __name__ == "__main__":
    sys.exit(main())
