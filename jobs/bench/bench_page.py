"""What `lrd bench` shows: a page in Markdown, lines of progress, and a plot.

python -m jobs.bench.bench_page PAGE.md     # fill its measured blocks with the results beside it
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.bench.bench_compare import is_busy
from jobs.output import Parser
from jobs.tiny.comparison_page import BLOCK, fill
from pipeline.markdown import code, table
from pipeline.report.style import PRINT, chart_style
from pipeline.report.svg import HEIGHT, WIDTH, Axis, Chart

STYLES = ("s1", "s2", "s3", "s4", "s6", "s5")
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Files:
    """Where the result and its plot are written, if anywhere."""

    result: Path | None

    @classmethod
    def of(cls, name: str | None) -> Files:
        """Raises ValueError where the file could not be written."""
        if name is None:
            return cls(None)
        path = Path(name)
        if path.suffix != ".json":
            raise ValueError(f"--output {name}: expected a file that ends with .json")
        if path.is_dir():
            raise ValueError(f"--output {name}: is a folder; name a file")
        if not path.parent.is_dir():
            raise ValueError(f"--output {name}: there is no folder {path.parent}; make it first")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ValueError(f"--output {name}: cannot be written; name a file elsewhere")
        return cls(path)

    def write(self, result: Mapping[str, Any]) -> None:
        """The result and, where anything was measured, its plot."""
        if self.result is None:
            return
        self.result.write_text(json.dumps(result) + "\n")
        if result["cells"]:
            self.result.with_suffix(".svg").write_text(as_svg(result))


# Text.


def in_short(cell: Mapping[str, Any]) -> str:
    """A cell on one line."""
    name = f"slots {cell['slots']}, canvas {cell['canvas']}"
    if "reason" in cell:
        return f"{name}: left out: {cell['reason']}"
    rate = f"{shown(cell['rows_per_second']['median'])} rows/s"
    if "pass_ms" in cell:
        rate = f"{shown(cell['pass_ms']['median'])} ms a pass, {rate}"
    return f"{name}: {rate}, {shown(cell['tokens_per_second']['median'])} tokens/s"


def as_markdown(result: Mapping[str, Any]) -> str:
    """The page: what was measured, the table, what is missing in it and why, the comparison."""
    parts = ["\n".join(headings(result))]
    if result["cells"]:
        columns = PROCESS if result["mode"] == "process" else CLUSTER
        rows = [[show(cell) for _, show in columns] for cell in result["cells"]]
        parts.append(table([head for head, _ in columns], rows))
        parts.append("\n".join(f"* {line}" for line in notes(result)))
    if result["left_out"]:
        parts.append("\n".join(f"* {in_short(cell)}" for cell in result["left_out"]))
    if "compared" in result:
        parts.append(compared(result["compared"]))
    return "\n\n".join(parts) + "\n"


def headings(result: Mapping[str, Any]) -> Iterator[str]:
    """Model, machine and prompts, each a line."""
    of, machine, prompts = result["settings"], result["machine"], result["prompts"]
    yield (
        f"**{code(of['model'])}**, {of['dtype']} on {of['device']}, compile {of['compile']}, "
        f"pass_rows {of['pass_rows']}, lrd {of['version']}, torch {machine['torch']}"
    )
    yield ""
    yield f"* machine: {', '.join(_machine(machine))}"
    tokens = prompts["tokens"]
    many = f"{tokens['min']} to {tokens['max']} tokens, mean {tokens['mean']:g}"
    source = {
        "examples": f"{prompts['number']} example problems",
        "input": f"{prompts['number']} prompts of {code(prompts['where'])}",
        "random": f"{prompts['number']} prompts of random tokens",
    }[prompts["source"]]
    left_out = f"; {prompts['left_out']} were left out" if prompts["left_out"] else ""
    yield f"* prompts: {source}, {many}, in {prompts['columns']} columns{left_out}"
    if passes := result["fixed_passes"]:
        each = ", ".join(f"{number} (canvas {canvas})" for canvas, number in passes.items())
        why = (
            "answers to random prompts say nothing of how many a row takes"
            if (prompts["source"] == "random")
            else "as --passes says"
        )
        yield f"* passes a row are fixed at {each}: {why}"
    if result["mode"] == "process":
        yield (
            f"* one replica in this process; loaded in {result['load_seconds']:.2g} s, the very "
            f"first pass took {result['first_pass_seconds']:.2g} s"
        )
    else:
        yield f"* `lrd generate` with {machine['replicas']} replicas, Parquet to Parquet"


def _machine(machine: Mapping[str, Any]) -> Iterator[str]:
    for name in ("device", "processor"):
        if machine.get(name):
            yield str(machine[name])
    for name, unit in (("threads", "thread"), ("nodes", "node"), ("gpus", "GPU"), ("cpus", "CPU")):
        if number := machine.get(name):
            yield f"{number:g} {unit}{'s' if number != 1 else ''}"
    if machine.get("cuda"):
        yield f"CUDA {machine['cuda']}"


def shown(value: float) -> str:
    """Three significant digits, all of those before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(found: Mapping[str, Any] | None) -> str:
    """A median with the least and the largest of the repetitions."""
    if found is None:
        return ""
    return f"{shown(found['median'])} ({shown(found['min'])}–{shown(found['max'])})"


def share(found: Mapping[str, Any] | None) -> str:
    """The same of shares, as percentages."""
    if found is None:
        return ""
    low, middle, high = (f"{100 * found[name]:.3g}" for name in ("min", "median", "max"))
    return f"{middle} % ({low}–{high})"


def _mib(num_bytes: int | None) -> str:
    return "" if num_bytes is None else shown(num_bytes / MIB)


PROCESS = (
    ("slots", lambda cell: cell["slots"]),
    ("canvas", lambda cell: cell["canvas"]),
    ("ms a pass", lambda cell: spread(cell["pass_ms"])),
    ("p90", lambda cell: shown(cell["pass_percentiles_ms"]["p90"])),
    ("rows/s", lambda cell: spread(cell["rows_per_second"])),
    ("tokens/s", lambda cell: spread(cell["tokens_per_second"])),
    ("passes a row", lambda cell: shown(cell["forwards_per_row"])),
    ("MFU", lambda cell: share(cell["mfu"])),
    ("MiB by formula", lambda cell: _mib(cell["memory"]["formula_bytes"])),
    ("measured", lambda cell: _mib(cell["memory"]["measured_bytes"])),
    ("repetitions", lambda cell: cell["repetitions"]),
    ("warm-up, s", lambda cell: shown(cell["warmup"]["seconds"])),
)
CLUSTER = (
    ("slots", lambda cell: cell["slots"]),
    ("canvas", lambda cell: cell["canvas"]),
    ("rows/s", lambda cell: spread(cell["rows_per_second"])),
    ("tokens/s", lambda cell: spread(cell["tokens_per_second"])),
    ("passes a row", lambda cell: shown(cell["forwards_per_row"])),
    ("rows", lambda cell: f"{cell['rows']:,}"),
    ("runs", lambda cell: cell["repetitions"]),
    ("s a run", lambda cell: spread(cell["run_seconds"])),
)
"""Columns of the table: head, and a cell's text."""


def notes(result: Mapping[str, Any]) -> Iterator[str]:
    """What the table's figures are, and what is left out of it."""
    cells = result["cells"]
    yield "medians of the repetitions (least–largest); each decodes the same rows"
    if result["mode"] == "cluster":
        yield (
            "rows/s between a run's first and last finished row: without the replicas' start, with "
            "the tail in which slots are idle; *s a run* is all of it, from settings to summary"
        )
        return
    yield (
        "passes with every slot busy; rows/s = slots ÷ (seconds a pass × passes a row), what a "
        "long run reaches: neither its tail nor its driver is in it (`--cluster` measures these)"
    )
    if is_busy(result["machine"]):
        yield (
            f"the machine did other work when this began (load average "
            f"{result['machine']['load_average']:g}): on a quiet one passes are shorter"
        )
    kind = cells[0]["tokens_are"]
    yield (
        "tokens/s counts effective tokens, those before the EOS"
        if kind == "effective"
        else "tokens/s counts all positions of the canvas"
    )
    for reason in dict.fromkeys(cell["mfu_reason"] for cell in cells if cell["mfu_reason"]):
        yield f"MFU{' left out' if cells[0]['mfu'] is None else ''}: {reason}"
    memory = cells[0]["memory"]
    yield (
        f"memory {'with' if memory['with_weights'] else 'beside'} the weights "
        f"({_mib(memory['weights_bytes'])} MiB); measured: {memory['how']}"
    )


def compared(found: Mapping[str, Any]) -> str:
    """The comparison's table, and what differs beside what was measured."""
    rows = [
        [
            cell["slots"],
            cell["canvas"],
            *(
                text
                for name in ("pass", "row")
                for text in (
                    (ratio(cell[name]), cell[name]["verdict"]) if cell.get(name) else ("", "")
                )
            ),
        ]
        for cell in found["cells"]
    ]
    head = ["slots", "canvas", "a pass: old / new", "", "a row: old / new", ""]
    lines = [f"Against {code(found['with'])}, seconds before ÷ seconds now: above 1 is faster now."]
    lines += [f"* {name}" for name in found["differences"]]
    lines += [f"* {line}" for line in found["missing"]]
    parts = ["\n".join(lines)]
    if rows:
        parts.append(table(head, rows))
        parts.append(
            "(…) is the range that the repetitions allow. A verdict is given where no repetition "
            "of one is within those of the other, and chance alone would do that in less than 1 of "
            "20 cases."
        )
    return "\n\n".join(parts)


def ratio(found: Mapping[str, Any]) -> str:
    """A ratio with its range."""
    return f"{found['ratio']:.3g} ({found['low']:.3g}–{found['high']:.3g})"


# Plot.


def as_svg(result: Mapping[str, Any]) -> str:
    """Rows a second and, where passes were timed, milliseconds a pass, one above the other."""
    cells = result["cells"]
    charts = [chart_of(cells, "rows_per_second", "rows/s")]
    if result["mode"] == "process":
        charts.append(chart_of(cells, "pass_ms", "ms a pass"))
    title = f"{result['settings']['model']}, {result['settings']['dtype']}: throughput"
    drawings = "".join(
        chart.svg(f"bench-{number}", title).replace(
            "<svg ", f'<svg y="{number * HEIGHT}" width="{WIDTH}" height="{HEIGHT}" ', 1
        )
        for number, chart in enumerate(charts)
    )
    height = HEIGHT * len(charts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}">'
        f"<style>{chart_style(PRINT)}</style>"
        f'<rect width="100%" height="100%" fill="#ffffff"/>{drawings}</svg>\n'
    )


def chart_of(cells: Sequence[Mapping[str, Any]], figure: str, label: str) -> Chart:
    """A figure by slots with a line a canvas, or by canvas where there is one number of slots; the
    bands are the repetitions' range."""
    by, of = ("slots", "canvas") if len({c["slots"] for c in cells}) > 1 else ("canvas", "slots")
    xs = sorted({cell[by] for cell in cells})
    marks = tuple((float(n), f"{x:,}") for n, x in enumerate(xs))
    top = max(cell[figure]["max"] for cell in cells)
    name = {"slots": "slots", "canvas": "canvas, tokens"}[by]
    chart = Chart(Axis(name, -0.3, len(xs) - 0.7, marks=marks), Axis(label, 0.0, 1.08 * top))
    for style, value in zip(STYLES * len(cells), sorted({c[of] for c in cells}), strict=False):
        line = sorted((c for c in cells if c[of] == value), key=lambda cell: cell[by])
        at = [float(xs.index(cell[by])) for cell in line]
        low, middle, high = ([c[figure][k] for c in line] for k in ("min", "median", "max"))
        if len(line) > 1:
            chart.band(at, low, high, style)
            chart.line(at, middle, style, f"{of} {value:,}")
        else:
            chart.line(at, middle, style, f"{of} {value:,}")
            chart.line([at[0], at[0]], [low[0], high[0]], style)
    return chart


# A page that cites results.


def cited(page: Path) -> str:
    """A page whose measured blocks are filled: block NAME by NAME.json beside it, and its plot."""
    text, made = page.read_text(), {}
    for _, name, _ in BLOCK.findall(text):
        made[name] = "Not measured yet."
        if (stored := page.with_name(f"{name}.json")).is_file():
            made[name] = f"![{name}]({name}.svg)\n\n" + as_markdown(json.loads(stored.read_text()))
    return fill(text, {name: block.strip() for name, block in made.items()}, str(page))


def main() -> None:
    """Fill a page."""
    parser = Parser(prog="python -m jobs.bench.bench_page")
    parser.add_argument("page", type=Path, metavar="PAGE.md")
    page = parser.parse_args().page
    page.write_text(cited(page))


if __name__ == "__main__":
    main()
