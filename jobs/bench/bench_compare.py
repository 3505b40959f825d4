"""Compares a result of `lrd bench` with an earlier one, cell by cell."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from pipeline.output.session_facts import differences

CHANCE = 0.05
"""A verdict is given where chance alone would separate the repetitions less often than this."""
BUSY = 0.3
"""Load average a thread above which a machine did other work."""
SAME = "within the spread"
FEW = "too few repetitions"


def read(name: str) -> dict[str, Any]:
    """An earlier result: a JSON file, or the last one in a file of JSON lines, whose other lines
    (a page, say) do not matter. Raises ValueError where there is none."""
    try:
        text = Path(name).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--compare {name}: cannot be read ({error})") from error
    for line in [text, *reversed(text.splitlines())]:
        try:
            found = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(found, dict) and found.get("lrd_bench") == 1:
            return {**found, "file": name}
    raise ValueError(f"--compare {name}: holds no result of lrd bench; expected its JSON line")


def compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Ratios of seconds, before ÷ now, of all cells that both have."""
    old, new = (
        {(cell["slots"], cell["canvas"]): cell for cell in one["cells"]} for one in (before, now)
    )
    cells = []
    for slots, canvas in [key for key in new if key in old]:
        pair = old[slots, canvas], new[slots, canvas]
        found: dict[str, Any] = {"slots": slots, "canvas": canvas}
        if all("pass_ms" in one for one in pair):
            found["pass"] = of_times(*(one["pass_ms"]["all"] for one in pair))
        if before["mode"] == now["mode"]:
            times = ([1 / rate for rate in one["rows_per_second"]["all"]] for one in pair)
            found["row"] = of_times(*times)
        cells.append(found)
    missing = [f"slots {s}, canvas {c}: only before" for s, c in old if (s, c) not in new]
    missing += [f"slots {s}, canvas {c}: only now" for s, c in new if (s, c) not in old]
    return {
        "with": before["file"],
        "differences": [*_differences(before, now)],
        "missing": missing,
        "cells": cells,
    }


def of_times(before: Sequence[float], now: Sequence[float]) -> dict[str, Any]:
    """The ratio of the medians of two lists of seconds, its range, and a verdict.

    If both came from one distribution, each order of the n + m repetitions would be as likely: that
    all of one are below all of the other has a chance of 2 / C(n + m, n).
    """
    verdict = SAME
    if min(before) > max(now):
        verdict = "faster"
    elif max(before) < min(now):
        verdict = "slower"
    if 2 / math.comb(len(before) + len(now), len(now)) >= CHANCE:
        verdict = FEW
    return {
        "ratio": _rounded(median(before) / median(now)),
        "low": _rounded(min(before) / max(now)),
        "high": _rounded(max(before) / min(now)),
        "verdict": verdict,
    }


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Settings, machine and prompts that are not the same."""
    parts = ("settings", "machine", "prompts", "fixed_passes")
    flat = [
        {"mode": one["mode"]}
        | {
            name: "none" if value is None else value
            for part in parts
            for name, value in _flat(part, one.get(part))
        }
        for one in (before, now)
    ]
    yield from differences(*flat)
    for name, one in (("before", before), ("now", now)):
        if is_busy(one["machine"]):
            yield f"{name} the machine did other work: a verdict may be of that"


def is_busy(machine: Mapping[str, Any]) -> bool:
    """Whether other work ran on the machine's processors when the measurement began."""
    return bool(machine.get("load_average", 0.0) > BUSY * machine.get("threads", 1))


def _flat(part: str, facts: Any) -> Iterator[tuple[str, Any]]:
    if part == "fixed_passes":
        yield "passes a row", facts
        return
    for name, value in facts.items():
        if name == "decoding":
            yield from value.items()
        elif part != "prompts":
            if name != "load_average":
                yield name, value
        elif name in ("source", "columns", "digest"):
            yield f"prompts' {name}", value


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
