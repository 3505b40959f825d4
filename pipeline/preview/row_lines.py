"""What a preview prints of a row that has ended: its prompt, its answer, a line of figures."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from pipeline.input.prompt_text import PromptValue
from pipeline.preview.canvas_screen import GREY, Screen, colour, cut, speed
from pipeline.preview.frame import Frame, answer_parts
from pipeline.preview.in_process import Decoded
from pipeline.preview.token_texts import harmless, in_a_line

MANY_NATS = 0.5
"""An early stop that commits a position of so much entropy is told."""


def prompt_line(value: PromptValue | ValueError | None) -> str:
    """A prompt in one line: a text, or the last turn of a chat."""
    if value is None or isinstance(value, ValueError):
        return ""
    if isinstance(value, str):
        return in_a_line(value, " ", " ")
    content = value[-1].get("content") if value else ""
    return in_a_line(str(content or ""), " ", " ")


def refused_lines(screen: Screen, error: str, width: int) -> list[Text]:
    """Of a row that cannot be decoded."""
    return [*_head(screen, width), Text(f"failed: {harmless(error)}")]


def ended_lines(screen: Screen, decoded: Decoded, width: int) -> list[Text]:
    """Of a row that was decoded: the answer has the colours of its passes."""
    row, frame = decoded.row, decoded.frame
    answer = Text()
    for text, step in answer_parts(frame.cells, row["output_text"] or ""):
        answer.append(harmless(text), colour(step, frame.num_passes) if step else "")
    dot = f" {screen.glyphs.dot} "
    return [*_head(screen, width), answer, Text(dot.join(figures(row, frame)), GREY)]


def _head(screen: Screen, width: int) -> list[Text]:
    lines = [Text(screen.title, "bold"), Text(screen.prompt, GREY)]
    return [cut(line, width, screen.glyphs) for line in lines if line]


def figures(row: dict[str, Any], frame: Frame) -> list[str]:
    """What a row took and how it ended."""
    num_passes, num_tokens = row["num_forwards"], row["num_output_tokens"]
    passes = f"{num_passes} passes ({row['refine_steps']} refining, {row['decode_steps']} decoding)"
    if row["status"] != "ok":
        return [f"failed: {row['error']}", passes]
    found = [
        row["stop_reason"],
        passes,
        f"{num_tokens} tokens, {num_tokens / num_passes:.1f} a pass",
        speed(frame, num_tokens),
        f"canvas {len(frame.cells)}",
    ]
    if row["open_at_stop"] and row["max_entropy_at_stop"] > MANY_NATS:
        found.append(f"unsure at the stop: up to {row['max_entropy_at_stop']:.2f} nats")
    if row["num_uncommits"]:
        found.append(f"{row['num_uncommits']} opened again")
    if row["stop_text"] is not None:
        found.append(f"ends before {in_a_line(row['stop_text'], ' ', ' ')!r}")
    if row.get("json_error"):
        found.append(f"not of the schema: {row['json_error']}")
    return [harmless(part) for part in found]
