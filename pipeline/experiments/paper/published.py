"""The paper's own results: its Tables 1 to 4 as printed, stored beside this file as CSV.

Figures 2 to 5 are drawings without numbers; what the text says about them is in `figures.py`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files

FILES = {
    "table1": "table1.csv",
    "table2": "table2.csv",
    "table3": "table3_table4.csv",
    "table4": "table3_table4.csv",
}
BENCHMARKS = {"humaneval": "HumanEval", "mbpp": "MBPP", "gsm8k": "GSM8K", "math500": "MATH500"}
"""Task → the paper's column, in its order."""
MODELS = {
    "Dream-v0-Base-7B": "Dream-Base-7B",
    "Dream-v0-Instruct-7B": "Dream-Ins-7B",
    "LLaDA-8B-Base": "LLaDA-Base-8B",
    "LLaDA-8B-Instruct": "LLaDA-Ins-8B",
    "LLaDA-1.5": "LLaDA-1.5-8B",
}
"""A release's name → the paper's."""


@dataclass(frozen=True, slots=True)
class Published:
    """One cell of a table, all its numbers."""

    model: str
    gen_length: int
    method: str
    """A name of `decodings.DECODINGS`."""
    benchmark: str
    accuracy: float
    """Percent."""
    speed: float | None
    """Times the baseline's, by run time; None where the table has none."""
    tokens: float | None
    """Effective tokens; None where the table has none."""


def published(table: str) -> list[Published]:
    """All cells of a table; empty for a figure."""
    if table not in FILES:
        return []
    text = files("pipeline.experiments.paper").joinpath(FILES[table]).read_text(encoding="utf-8")
    return [
        Published(
            model=row["model"],
            gen_length=int(row["gen_length"]),
            method=row["method"],
            benchmark=row["benchmark"],
            accuracy=float(row["accuracy"]),
            speed=_number(row.get("speedup")),
            tokens=_number(row.get("effective_tokens")),
        )
        for row in csv.DictReader(text.splitlines())
    ]


def alike(cells: Iterable[Published], models: Iterable[str], tasks: Iterable[str]) -> bool:
    """Whether the paper has these models and tasks."""
    there = {(cell.model, cell.benchmark) for cell in cells}
    return any((MODELS.get(m), BENCHMARKS.get(t)) in there for m in models for t in tasks)


def _number(text: str | None) -> float | None:
    return float(text) if text else None
