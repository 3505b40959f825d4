"""Write a report on a run: one HTML file to look at, and its figures for papers.

    lrd report OUT [--output FILE.html] [--export FOLDER] [--rows 200]

Reads OUT's files alone, also while the run is going on. Knows nothing of what is in the report.
"""

from __future__ import annotations

import argparse
import sys

from pipeline.report.export import export, has_png
from pipeline.report.report import make_report
from pipeline.storage import uris
from pipeline.storage.storage import Storage

OK, BAD_INPUT = 0, 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The job's flags."""
    parser.add_argument("folder", metavar="OUT", help="output folder of `lrd generate`")
    parser.add_argument("--output", metavar="FILE.html", help="[OUT/report.html]")
    parser.add_argument(
        "--export", metavar="FOLDER", help="also write the figures as SVG, and PNG with the extra"
    )
    parser.add_argument("--rows", type=int, default=200, help="rows in the sample viewer [200]")


def run(args: argparse.Namespace) -> int:
    """The job; its exit code."""
    file = args.output or uris.child(args.folder, "report.html")
    try:
        if args.rows < 1:
            raise ValueError(f"--rows is {args.rows}; at least 1 is needed")
        report = make_report(Storage(args.folder), args.rows)
        folder, name = uris.parent(file)
        Storage(folder).write(name, report.html.encode())
        exported = export(report.figures, Storage(args.export)) if args.export else []
    except (ValueError, OSError) as error:
        print(f"lrd report: {error}", file=sys.stderr)
        return BAD_INPUT
    state = "" if report.is_whole else ", a run that is not finished"
    print(f"{report.counts.num_rows} rows, {report.counts.num_failed} failed{state}")
    print(f"report: {file}")
    if exported:
        print(f"figures: {len(exported)} files in {args.export}")
        if not has_png():
            print("no PNG files: pip install 'lrd-pipeline[report]' brings what draws them")
    return OK


def main() -> None:
    """`python -m jobs.report`."""
    parser = argparse.ArgumentParser(prog="lrd report", description="Write a report on a run.")
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))


if __name__ == "__main__":
    main()
