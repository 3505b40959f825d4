"""Take the picture of a report that the README shows: `make demo` first.

    python -m jobs.docs.report_picture [--run runs/demo] [--output jobs/benchmarks/report.png]

Writes the run's report and opens it in a headless Chromium (Debian's package `chromium`), at the
row with the most passes, in the pass in the middle of these.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from jobs import cli, output

JOB = "python -m jobs.docs.report_picture"
WIDTH, HEIGHT = 1200, 1310
"""Of the picture, in pixels: totals, and the viewer below them."""


def main(words: list[str] | None = None) -> int:
    """Report, open, take; the exit code."""
    made = output.Parser(prog=JOB, description="Take the picture of a run's report.")
    made.add_argument("--run", default="runs/demo", help="folder of a run [runs/demo]")
    made.add_argument("--output", default="jobs/benchmarks/report.png")
    args = made.parse_args(words)
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        return output.refuse(JOB, "no chromium is installed; on Debian: apt install chromium")
    if code := cli.run(["report", args.run]):
        return code

    import pyarrow.dataset

    rows = pyarrow.dataset.dataset(f"{args.run}/data").to_table(["row_id", "num_forwards"])
    longest = rows.sort_by([("num_forwards", "descending"), ("row_id", "ascending")]).slice(0, 1)
    row, passes = longest["row_id"][0].as_py(), longest["num_forwards"][0].as_py()
    address = f"{Path(args.run).absolute().as_uri()}/report.html#row={row}&pass={passes // 2 + 1}"
    with tempfile.TemporaryDirectory() as profile:
        flags = [
            *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *(f"--user-data-dir={profile}", f"--window-size={WIDTH},{HEIGHT}"),
            *("--virtual-time-budget=8000", f"--screenshot={Path(args.output).absolute()}"),
        ]
        subprocess.run([browser, *flags, address], check=True, capture_output=True)
    print(f"{args.output}: row {row} in pass {passes // 2 + 1} of {passes}")
    return output.OK


if __name__ == "__main__":
    sys.exit(main())
