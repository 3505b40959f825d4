"""Write a report on a run: one HTML file, and its figures for papers.

    lrd report OUT [--output FILE.html] [--export FOLDER] [--rows 200]

Reads the files under OUT alone, also while the run is going on.
"""

from __future__ import annotations

import argparse

from jobs import output
from pipeline.observe.stages import stage
from pipeline.report.export import export, has_png
from pipeline.report.report import make_report
from pipeline.storage import uris
from pipeline.storage.storage import Storage


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("folder", metavar="OUT", help="output folder of `lrd generate`")
    parser.add_argument("--output", metavar="FILE.html", help="[OUT/report.html]")
    parser.add_argument(
        "--export", metavar="FOLDER", help="also write the figures as SVG, and PNG with the extra"
    )
    parser.add_argument("--rows", type=int, default=200, help="rows in the sample viewer [200]")


@output.command("lrd report")
def run(args: argparse.Namespace) -> int:
    """Write the report; the exit code."""
    file = uris.child(args.folder, "report.html") if args.output is None else args.output
    if args.rows < 1:
        raise ValueError(f"--rows is {args.rows}; at least 1 is needed")
    folder, name = uris.parent(file)
    places = [Storage(place) for place in (folder, args.export) if place is not None]
    with stage("reading the run"):
        report = make_report(Storage(args.folder), args.rows)
    for place in places:
        place.check_writable()
    places[0].write(name, report.html.encode())
    with stage("writing figures"):
        exported = export(report.figures, places[1]) if places[1:] else []
    state = "" if report.is_whole else ", a run that is not finished"
    print(f"{report.counts.num_rows} rows, {report.counts.num_failed} failed{state}")
    print(f"report: {file}")
    if exported:
        print(f"figures: {len(exported)} files in {args.export}")
        if not has_png():
            print("no PNG files: pip install 'lrd-pipeline[report]' brings what draws them")
    return output.OK
