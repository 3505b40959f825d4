"""Record `lrd preview` as an animated SVG: the embedded model on one of its worksheets.

    python -m jobs.tiny.preview_picture --output jobs/benchmarks/preview.svg

Every frame is what a terminal of 80 columns shows after a pass. Without animations the last one is
seen.
"""

from __future__ import annotations

import argparse
import io
import re
from pathlib import Path

from rich.console import Console, Group
from rich.terminal_theme import TerminalTheme

from lrd import DecodingConfig
from pipeline.config import RunConfig
from pipeline.preflight import check
from pipeline.preview.canvas_screen import Screen
from pipeline.preview.chosen_rows import ChosenRow, choose_rows, first_shards
from pipeline.preview.frame import Frame
from pipeline.preview.in_process import InProcess, settings_here
from pipeline.preview.row_lines import prompt_line

SHEETS = Path(__file__).parents[1] / "example_sheets"
COLUMNS, LINES = 80, 24
FRAME_SECONDS, LAST_SECONDS = 0.35, 4.0
THEME = TerminalTheme((16, 18, 24), (224, 228, 236), [(0, 0, 0)] * 8)
FRAME = "<g>{backgrounds}{matrix}</g>\n/*{styles}*/\n{width} {height}"
"""rich's template of a frame; its styles and size follow."""
PAGE = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"
 aria-label="lrd preview decodes a worksheet of word problems">
<style>
text {{ font-family: ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace; \
font-size: 20px; white-space: pre }}
.frame {{ visibility: hidden }}
.frame:last-of-type {{ visibility: visible }}
@media (prefers-reduced-motion: no-preference) {{
.frame {{ animation-duration: {seconds}s; animation-iteration-count: infinite; \
animation-timing-function: step-end }}
{keyframes}
}}
{styles}
</style>
<rect width="{width}" height="{height}" rx="10" fill="{background}"/>
{frames}
</svg>
"""


def main() -> None:
    """Decode and write."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.tiny.preview_picture", description=__doc__
    )
    parser.add_argument("--output", default="jobs/benchmarks/preview.svg")
    parser.add_argument("--row", type=int, default=0, help="which worksheet [0]")
    args = parser.parse_args()
    row, frames = decoded(args.row)
    screen = Screen("row 1 of 1: " + row.row_id, prompt_line(row.value), "utf-8")
    Path(args.output).write_text(picture(screen, frames), encoding="utf-8")
    print(f"{args.output}: {len(frames)} passes")


def decoded(number: int) -> tuple[ChosenRow, list[Frame]]:
    """A worksheet's row, and its canvas after each pass."""
    decoding = DecodingConfig.preset("blocks", gen_length=128, tau_refine=0.02)
    config = RunConfig(input=str(SHEETS), output="out", model="tiny_sheets", decoding=decoding)
    checked = check(config, first_shards(config, number + 1))
    row = choose_rows(config, checked, number + 1)[number]
    assert row.prompt is not None
    replica = InProcess(settings_here(config))
    replica.load()
    frames: list[Frame] = []
    replica.decode(row.prompt, frames.append)
    return row, frames


def picture(screen: Screen, frames: list[Frame]) -> str:
    """The animation as one SVG file."""
    drawn = [_drawn(screen, frame, f"f{n}") for n, frame in enumerate(frames)]
    seconds = FRAME_SECONDS * (len(frames) - 1) + LAST_SECONDS
    width, height = drawn[0][2]
    return PAGE.format(
        width=width,
        height=height,
        seconds=f"{seconds:.2f}",
        background=THEME.background_color.hex,
        keyframes="\n".join(_keyframes(n, len(frames), seconds) for n in range(len(frames))),
        styles="\n".join(styles for _, styles, _ in drawn),
        frames="\n".join(f'<g class="frame" id="p{n}">{d[0]}</g>' for n, d in enumerate(drawn)),
    )


def _keyframes(number: int, count: int, seconds: float) -> str:
    """When a frame is seen."""
    begin, end = (100 * FRAME_SECONDS * n / seconds for n in (number, number + 1))
    steps = [f"{begin:.2f}% {{ visibility: visible }}"]
    if number:
        steps.insert(0, "0% { visibility: hidden }")
    if number < count - 1:
        steps.append(f"{end:.2f}% {{ visibility: hidden }}")
    return (
        f"#p{number} {{ animation-name: k{number} }} @keyframes k{number} {{ {' '.join(steps)} }}"
    )


def _drawn(screen: Screen, frame: Frame, name: str) -> tuple[str, str, tuple[str, str]]:
    """A frame as SVG, the styles that it names, and the size of the picture."""
    console = Console(
        record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True,
        color_system="truecolor", legacy_windows=False,
    )  # fmt: skip
    lines = screen.lines(frame, COLUMNS - 1, LINES, waited=0)
    blank = [""] * (LINES - len(lines))
    console.print(Group(*lines, *blank))
    text = console.export_svg(theme=THEME, code_format=FRAME, unique_id=name)
    matrix, styles, size = re.split(r"\n/\*|\*/\n", text)
    # Lines are as long as the terminal is wide: nothing has to be clipped.
    matrix = re.sub(r' clip-path="[^"]*"', "", matrix).replace(
        "<g>", '<g transform="translate(9 9)">', 1
    )
    width, height = size.split()
    return matrix, styles, (width, height)


if __name__ == "__main__":
    main()
