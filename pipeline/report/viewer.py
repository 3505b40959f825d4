"""The rows of the sample viewer as data for the page's script.

Numbers are rounded to what a screen shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pipeline.input.prompt_text import PromptValue
from pipeline.report.counting import RowIndex
from pipeline.report.samples import Row
from pipeline.report.tokens import Tokens

MAX_CHARACTERS = 20_000
"""Of a prompt or an answer; longer texts are cut, and say so."""
SHOWN = (
    *("num_forwards", "refine_steps", "decode_steps", "full_passes", "positions_computed"),
    *("blocks", "num_uncommits", "num_output_tokens", "num_prompt_tokens", "bucket"),
    "open_at_stop",
    *("max_entropy_at_stop", "mean_confidence", "min_confidence", "mean_mix_weight"),
    *("seconds", "replica", "attempts"),
    "stop_text",
)


def viewer_data(
    decoding: Mapping[str, Any],
    rows: Mapping[RowIndex, Row],
    why: Mapping[RowIndex, str],
    tokens: Tokens,
) -> dict[str, Any]:
    """All that the viewer shows; why: the reason why each row was chosen."""
    return {
        "rows": [viewer_row(row, why[index]) for index, row in rows.items()],
        "tokens": tokens.texts,
        "block_length": decoding.get("block_length"),
        "tau_refine": decoding.get("tau_refine"),
        "tau_decode": decoding.get("tau_decode") if decoding.get("early_stop") else None,
    }


def viewer_row(row: Row, why: str) -> dict[str, Any]:
    """One row."""
    facts, decoding = row.facts, row.decoding_passes
    return {
        "id": facts["row_id"],
        "status": facts["status"],
        "stop": facts["stop_reason"],
        "why": why,
        "error": facts["error"],
        "prompt": _prompt(facts["prompt"]),
        "text": _cut(facts["output_text"]),
        "ids": row.token_ids.tolist(),
        "commit": row.commit_step.tolist(),
        "fixed": row.fixed,
        "kl": _rounded(row.kl),
        "entropy": _rounded(row.entropy),
        "phases": None if decoding is None else "".join("d" if d else "r" for d in decoding),
        "facts": {name: _number(facts[name]) for name in SHOWN if facts[name] is not None},
    }


def _prompt(prompt: PromptValue | None) -> str | list[tuple[str, str]] | None:
    """A text, or the role and content of each turn of a chat."""
    if not isinstance(prompt, list):
        return _cut(prompt)
    turns: list[tuple[str, str]] = []
    room = MAX_CHARACTERS
    for number, turn in enumerate(prompt):
        if room <= 0:
            turns.append(("…", f"{len(prompt) - number:,} more turns"))
            break
        text = str(turn.get("content") or "")
        turns.append((str(turn.get("role") or "no role"), _cut(text, room) or ""))
        room -= len(text)
    return turns


def _cut(text: str | None, room: int = MAX_CHARACTERS) -> str | None:
    if text is None or len(text) <= room:
        return text
    return f"{text[:room]}… ({len(text) - room:,} more characters)"


def _rounded(values: Iterable[np.float32]) -> list[float | None]:
    return [_number(float(value)) for value in values]


def _number(value: Any) -> Any:
    """Four digits of a float, None for what is not a number; other values as they are."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.4g}") if math.isfinite(value) else None
