"""Draws a frame of a canvas as lines of text for a terminal of any size.

Open positions are blocks, shaded by their entropy; tokens have the colour of the pass that
committed them. Nothing here writes: rich renders the lines.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from pipeline.preview.frame import Cell, Frame
from pipeline.preview.token_texts import harmless, in_a_line

NATS = (0.2, 1.0, 2.5)
"""Entropies at which the shade of an open position changes."""
COLOURS = (
    *("#486fe5", "#1c7cc1", "#168298", "#13876a", "#148a3b", "#438713"),
    *("#827913", "#a06d17", "#c1581c", "#e03525", "#e02674", "#d51eb7"),
)
"""From the first pass to the last: contrast of at least 4.4 : 1 against black and against white."""
GREY = "#767676"
LEAST_NATS = 1e-4
"""D_t and entropies are drawn on a logarithmic scale from here on."""
SPARK_WIDTH = 24
PROMPT_LINES = 2
LINES_BEFORE_FOCUS = 0.3
"""Share of the canvas' lines that stay before the first open one, where it is longer than the
screen."""


@dataclass(frozen=True, slots=True)
class Glyphs:
    """The characters that stand for something."""

    shades: str
    """Of open positions, from sure to unsure."""
    unread: str
    """An open position that the last pass has not read."""
    end: str
    line_end: str
    tab: str
    block: str
    """Between two blocks."""
    sparks: str
    rule: str
    swatch: str
    more: str
    dot: str
    cross: str


UNICODE = Glyphs("░▒▓█", "·", "∎", "⏎", "⇥", "│", "▁▂▃▄▅▆▇█", "─", "■", "…", "·", "×")
ASCII = Glyphs(".:*#", "-", "$", "\\n", "\\t", "|", "_.:-=+*#", "-", "#", "...", "-", "x")


def glyphs_of(encoding: str) -> Glyphs:
    """The glyphs that a stream of this encoding can show."""
    try:
        "".join(getattr(UNICODE, name) for name in UNICODE.__slots__).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return UNICODE


@dataclass(frozen=True, slots=True)
class Screen:
    """What a screen of one row shows beside its canvas."""

    title: str
    prompt: str
    """Of one line."""
    encoding: str

    @property
    def glyphs(self) -> Glyphs:
        return glyphs_of(self.encoding)

    def lines(self, frame: Frame | None, width: int, height: int, waited: float) -> list[Text]:
        """The whole screen, at most so many lines of at most so many columns.

        frame: None before the first pass. waited: seconds since the last pass ended.
        """
        glyphs = self.glyphs
        rule = Text(glyphs.rule * width, GREY)
        above = [cut(Text(self.title, "bold"), width, glyphs)]
        prompt = encodable(self.prompt, self.encoding)
        above += [Text(line, GREY) for line in _wrapped(prompt, width, PROMPT_LINES, glyphs)]
        if frame is None:
            waiting = cut(Text(f"first pass{glyphs.more} {waited:.0f} s"), width, glyphs)
            return [*above, rule, waiting][:height]
        below = [*_state(frame, width, waited, glyphs), *_legend(frame, width, glyphs)]
        above, below = [*above, rule], [rule, *below]
        if len(above) + len(below) > height - 3:  # Small: the canvas and where it stands.
            above, below = above[:1], _state(frame, width, waited, glyphs)[:1]
        room = max(1, height - len(above) - len(below))
        canvas = canvas_lines(frame, width, room, glyphs, self.encoding)
        return [*above, *canvas, *below][:height]


def canvas_lines(
    frame: Frame, width: int, height: int, glyphs: Glyphs = UNICODE, encoding: str = "utf-8"
) -> list[Text]:
    """The canvas in at most `height` lines: all, or the part around its first open position."""
    lines, focus = _flow(frame, width, glyphs, encoding)
    if len(lines) <= height:
        return lines
    if height < 4:
        return lines[focus : focus + height]
    first = max(0, min(focus - int(height * LINES_BEFORE_FOCUS), len(lines) - height))
    shown = lines[first : first + height]
    above, below = first + 1, len(lines) - first - height + 1
    if above > 1:
        shown[0] = cut(Text(f"{glyphs.more} {above} lines above", GREY), width, glyphs)
    if below > 1:
        shown[-1] = cut(Text(f"{glyphs.more} {below} lines below", GREY), width, glyphs)
    return shown


def _flow(frame: Frame, width: int, glyphs: Glyphs, encoding: str) -> tuple[list[Text], int]:
    """The canvas as text, broken at line ends and at the width; and the line of its first open
    position, of the last line where it has none."""
    lines, focus = [Text()], None
    for position, cell in enumerate(frame.cells):
        if position and position % frame.block_tokens == 0:
            _put(lines, glyphs.block, GREY, width)
        if cell.text is None and focus is None:
            focus = len(lines) - 1
        text, style = _drawn(cell, frame.num_passes, glyphs)
        _put(lines, encodable(text, encoding), style, width)
        if cell.text and not cell.is_end and "\n" in harmless(cell.text):
            lines.append(Text())
    return lines, len(lines) - 1 if focus is None else focus


def _drawn(cell: Cell, num_passes: int, glyphs: Glyphs) -> tuple[str, str]:
    """A cell's characters and style."""
    if cell.text is None:
        if cell.entropy is None:
            return glyphs.unread, GREY
        return glyphs.shades[sum(cell.entropy >= nats for nats in NATS)], GREY
    if cell.is_end:
        return glyphs.end, GREY
    text = in_a_line(cell.text, glyphs.line_end, glyphs.tab)
    if not cell.step:
        return text, ""
    new = "bold " if cell.step == num_passes else ""
    return text, new + colour(cell.step, num_passes)


def colour(step: int, num_passes: int) -> str:
    """The colour of a pass among so many."""
    return COLOURS[(step - 1) * (len(COLOURS) - 1) // max(1, num_passes - 1)]


def _put(lines: list[Text], text: str, style: str, width: int) -> None:
    """Write behind the last line, or into new ones where that is full."""
    if lines[-1].cell_len + cell_len(text) <= width:
        lines[-1].append(text, style)
        return
    if cell_len(text) <= width // 2:
        lines.append(Text(text, style))
        return
    for char in text:  # Longer than half a line: broken where it has to be.
        if lines[-1].cell_len + cell_len(char) > width:
            lines.append(Text())
        lines[-1].append(char, style)


def encodable(text: str, encoding: str) -> str:
    """The text with escapes for what the stream's encoding lacks."""
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _state(frame: Frame, width: int, waited: float, glyphs: Glyphs) -> list[Text]:
    """Phase, progress, D_t, speed."""
    parts = [Text.assemble((_phase(frame), "bold"))]
    if frame.num_blocks > 1:
        parts.append(Text(f"block {frame.block + 1} of {frame.num_blocks}"))
    counts = f"pass {frame.num_passes} ({frame.refine_steps} refining)"
    length = len(frame.cells)
    parts += [Text(counts), Text(f"{length - frame.num_open} of {length} committed")]
    parts += [
        Text.assemble(f"{name} ", (spark(trace, glyphs), COLOURS[1]), f" {_last(trace)}")
        for name, trace in (("D_t", frame.kl_trace), ("entropy", frame.entropy_trace))
    ]
    parts.append(Text(speed(frame, frame.num_tokens)))
    if waited >= 1:
        parts.append(Text(f"next pass: {waited:.0f} s"))
    return packed(parts, width, glyphs)


def _phase(frame: Frame) -> str:
    if frame.stop == "grow":
        return "too short: moves to a longer canvas"
    if frame.stop is not None:
        return frame.stop
    return "looks whether the canvas is long enough" if frame.phase == "looking" else frame.phase


def speed(frame: Frame, num_tokens: int) -> str:
    """Tokens a second, and seconds, of the passes alone."""
    rate = num_tokens / frame.seconds if frame.seconds else 0.0
    return f"{rate:.1f} tokens/s, {frame.seconds:.1f} s"


def _legend(frame: Frame, width: int, glyphs: Glyphs) -> list[Text]:
    bounds = (*(f"<{nats:g}" for nats in NATS), "more")
    shades = " ".join(f"{glyph} {nats}" for glyph, nats in zip(glyphs.shades, bounds, strict=True))
    passes = Text("pass 1 ", GREY)
    for step in COLOURS:
        passes.append(glyphs.swatch, step)
    passes.append(f" {max(1, frame.num_passes)}", GREY)
    return packed([passes, Text(f"open, nats: {shades}", GREY)], width, glyphs)


def spark(values: Sequence[float], glyphs: Glyphs = UNICODE, width: int = SPARK_WIDTH) -> str:
    """The last values as a line of bars, on a logarithmic scale; a blank where there is none."""
    some = [_log(value) for value in values[-width:]]
    known = [value for value in some if value is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    top = len(glyphs.sparks) - 1
    scale = top / (high - low) if high > low else 0.0
    return "".join(
        " " if value is None else glyphs.sparks[round((value - low) * scale)] for value in some
    )


def _log(value: float) -> float | None:
    return math.log(max(value, LEAST_NATS)) if math.isfinite(value) else None


def _last(trace: Sequence[float]) -> str:
    last = trace[-1] if trace else math.nan
    return f"{last:.3g}" if math.isfinite(last) else "-"


def packed(parts: Iterable[Text], width: int, glyphs: Glyphs = UNICODE) -> list[Text]:
    """The parts in as few lines as hold them, a dot between two."""
    lines: list[Text] = []
    between = f" {glyphs.dot} "
    for part in parts:
        if lines and lines[-1].cell_len + len(between) + part.cell_len <= width:
            lines[-1].append(between, GREY).append_text(part)
        else:
            lines.append(cut(part.copy(), width, glyphs))
    return lines


def cut(text: Text, width: int, glyphs: Glyphs = UNICODE) -> Text:
    """The text in one line of at most so many columns."""
    if text.cell_len <= width:
        return text
    room = max(0, width - cell_len(glyphs.more))
    plain = text.plain
    while cell_len(plain) > room:
        plain = plain[:-1]
    return text[: len(plain)].append(glyphs.more)


def _wrapped(text: str, width: int, most: int, glyphs: Glyphs) -> list[str]:
    """A text of one line in at most so many lines."""
    lines = [""]
    for char in text:
        if cell_len(lines[-1]) + cell_len(char) > width:
            lines.append("")
        lines[-1] += char
    if len(lines) > most:
        lines = lines[:most]
        lines[-1] = set_cell_size(lines[-1], width - cell_len(glyphs.more)) + glyphs.more
    return lines
