"""Write a report on a run, or on two beside each other: one HTML file, and its figures for papers.

    lrd report OUT [--output FILE.html] [--export FOLDER] [--rows 200] [--price-per-gpu-hour X]
    lrd report A B …

Reads the files under OUT (A and B) alone, also while a run is going on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from jobs import output
from pipeline.observe.stages import stage
from pipeline.output.money import check_price
from pipeline.report import speed
from pipeline.report.comparison import Comparison, make_comparison
from pipeline.report.export import export, has_png
from pipeline.report.report import Report, make_report
from pipeline.storage import uris
from pipeline.storage.storage import Storage


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("folder", metavar="OUT", help="output folder of `lrd generate`")
    parser.add_argument("other", metavar="B", nargs="?", help="a second run, to compare OUT with")
    parser.add_argument(
        "--output", metavar="FILE.html", help="[OUT/report.html; OUT/comparison.html of two runs]"
    )
    parser.add_argument(
        "--export", metavar="FOLDER", help="also write the figures as SVG, and PNG with the extra"
    )
    parser.add_argument("--rows", type=int, default=200, help="rows in the sample viewer [200]")
    output.add_price(parser)


@output.command("lrd report")
def run(args: argparse.Namespace) -> int:
    """Write the report; the exit code."""
    default = "report.html" if args.other is None else "comparison.html"
    file = uris.child(args.folder, default) if args.output is None else args.output
    if args.rows < 1:
        raise ValueError(f"--rows is {args.rows}; at least 1 is needed")
    check_price(args.price_per_gpu_hour)
    folder, name = uris.parent(file)
    places = [Storage(place) for place in (folder, args.export) if place is not None]
    with stage("reading the run"):
        report = _made(args)
    for place in places:
        place.check_writable()
    places[0].write(name, report.html.encode())
    with stage("writing figures"):
        exported = export(report.figures, places[1]) if places[1:] else []
    for line in _lines(report):
        print(line)
    print(f"report: {file}")
    if exported:
        print(f"figures: {len(exported)} files in {args.export}")
        if not has_png():
            print("no PNG files: pip install 'lrd-pipeline[report]' brings what draws them")
    return output.OK


def _made(args: argparse.Namespace) -> Report | Comparison:
    first, price = Storage(args.folder), args.price_per_gpu_hour
    if args.other is None:
        return make_report(first, args.rows, price)
    return make_comparison((first, Storage(args.other)), args.rows, price)


def _lines(report: Report | Comparison) -> Iterator[str]:
    """What the terminal says."""
    if isinstance(report, Report):
        state = "" if report.is_whole else ", a run that is not finished"
        yield f"{report.counts.num_rows} rows, {report.counts.num_failed} failed{state}"
        yield from speed.lines(report.speed)
        return
    pairs = report.pairs
    yield (
        f"{pairs.num_compared} rows compared: {pairs.num_same} with the same answer, "
        f"{pairs.num_differing} with another, {sum(pairs.ok_alone)} failed in one run, "
        f"{pairs.num_failed} in both"
    )
    if sum(pairs.only) or pairs.num_other_prompts:
        yield (
            f"not compared: {pairs.only[0]} rows only in A, {pairs.only[1]} only in B, "
            f"{pairs.num_other_prompts} with another prompt; rows are paired by row_id, so both "
            "runs need one input, cut into the same shards"
        )
    for task, (_, first, second, _) in pairs.right.items():
        yield f"{task}: {first} rows right in A alone, {second} in B alone"
    for side in report.sides:
        yield from (f"{side.name}: {line}" for line in speed.lines(side.speed))
