"""What a table or figure shows, as CSV for programs: measured cells and the paper's own."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.experiments.paper.measure import Measured, fewer_forwards, speed
from pipeline.experiments.paper.published import BENCHMARKS, published
from pipeline.experiments.paper.study import model_name
from pipeline.experiments.paper.tables import Results, rows_of

COLUMNS = (
    *("source", "model", "task", "gen_length", "method", "num_rows", "num_failed", "accuracy"),
    *("accuracy_low", "accuracy_high", "speed_time", "speed_forwards", "seconds", "pass_ms"),
    *("forwards", "tokens", "num_unsure", "note"),
)


def table_csv(item: str, results: Results) -> str:
    """A table's cells: `here` as measured, `paper` as printed. Accuracies are percentages."""
    return text([*_ours(item, results), *_papers(item)], COLUMNS)


def text(lines: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Lines as CSV; what a line lacks is empty."""
    sink = io.StringIO()
    writer = csv.DictWriter(sink, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({name: _written(line.get(name)) for name in columns})
    return sink.getvalue()


def _ours(item: str, results: Results) -> Iterable[dict[str, Any]]:
    for row in rows_of(item, results):
        for group, measured in row.cells.values():
            if measured is not None:
                baseline = results[group].get("baseline")
                yield {
                    "source": "here",
                    "model": model_name(group.model),
                    "task": group.task,
                    "gen_length": group.gen_length,
                    "method": row.method,
                    **_numbers(measured, baseline),
                }


def _numbers(measured: Measured, baseline: Measured | None) -> dict[str, Any]:
    rate = speed(baseline, measured)
    return {
        "num_rows": measured.num_rows,
        "num_failed": measured.num_failed,
        "accuracy": 100 * measured.accuracy,
        "accuracy_low": 100 * measured.low,
        "accuracy_high": 100 * measured.high,
        "speed_time": None if isinstance(rate, str) else rate,
        "speed_forwards": fewer_forwards(baseline, measured),
        "seconds": measured.seconds,
        "pass_ms": measured.pass_ms,
        "forwards": measured.forwards,
        "tokens": measured.tokens,
        "num_unsure": measured.num_unsure,
        "note": rate if isinstance(rate, str) else None,
    }


def _papers(item: str) -> Iterable[dict[str, Any]]:
    tasks = {benchmark: task for task, benchmark in BENCHMARKS.items()}
    for cell in published(item):
        yield {
            "source": "paper",
            "model": cell.model,
            "task": tasks[cell.benchmark],
            "gen_length": cell.gen_length,
            "method": cell.method,
            "accuracy": cell.accuracy,
            "speed_time": cell.speed,
            "tokens": cell.tokens,
        }


def _written(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
