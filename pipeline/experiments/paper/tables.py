"""Measured runs → the paper's Tables 1 to 4, with the paper's own numbers beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.experiments.paper.cells import NONE, change, number, span, times
from pipeline.experiments.paper.decodings import DECODINGS, NEEDED
from pipeline.experiments.paper.measure import Measured, fewer_forwards, speed
from pipeline.experiments.paper.published import BENCHMARKS, MODELS, Published, alike, published
from pipeline.experiments.paper.study import Group, model_name
from pipeline.markdown import table

TITLES = {
    "table1": "Performance by model, length and method; changes against the baseline",
    "table2": "Decoding variants; changes against the baseline",
    "table3": "Ablations, accuracy; changes of ablations against LRD, of LRD against the baseline",
    "table4": "Ablations, speed and effective tokens; the same changes",
}
COLUMNS = {
    "table1": ("accuracy", "time", "forwards", "tokens"),
    "table2": ("accuracy", "time", "forwards"),
    "table3": ("accuracy",),
    "table4": ("time", "forwards", "passes", "pass_ms", "tokens"),
}
"""What a table shows of each task. The paper's Speed is `time`."""
PAPER_COLUMNS = {
    "table1": ("accuracy", "time"),
    "table2": ("accuracy",),
    "table3": ("accuracy",),
    "table4": ("time", "tokens"),
}
PUBLISHED_AS = {"accuracy": "accuracy", "time": "speed", "tokens": "tokens"}
"""Column → field of `Published`."""
HEADS = {
    "accuracy": "Acc % (95 %)",
    "time": "Speed, time",
    "forwards": "Speed, forwards",
    "passes": "forwards a row",
    "pass_ms": "ms a pass",
    "tokens": "F_token",
}
Results = Mapping[Group, Mapping[str, Measured]]
"""Group → decoding → its run's numbers; decodings that were not run are missing."""


@dataclass(frozen=True, slots=True)
class TableRow:
    """A line of a table: one model, length and method, with a cell for each task."""

    model: str
    gen_length: int
    method: str
    cells: Mapping[str, tuple[Group, Measured | None]]


def document(item: str, results: Results) -> str:
    """A table in Markdown, with the paper's and how the changes compare."""
    tasks = list(dict.fromkeys(group.task for group in results))
    theirs = [cell for cell in published(item) if _belongs(cell, item, results)]
    heading = f"# Table {item[-1]}: {TITLES[item]}"
    parts = [heading, _ours(item, results, tasks), _definitions(item), *_remarks(item, results)]
    parts += ["## The paper's own", _papers(item, theirs)]
    parts += ["## Changes beside the paper's", _beside(item, results, theirs)]
    return "\n\n".join(parts) + "\n"


def _belongs(cell: Published, item: str, results: Results) -> bool:
    """All of the paper's table, or the models and tasks that were run where it has them."""
    models = {model_name(group.model) for group in results}
    tasks = {group.task for group in results}
    if not alike(published(item), models, tasks):
        return True
    return cell.model in {MODELS.get(m) for m in models} and cell.benchmark in {
        BENCHMARKS.get(task) for task in tasks
    }


def rows_of(item: str, results: Results) -> list[TableRow]:
    """The lines of a table; a method that is another one under these settings is left out."""
    rows = []
    for model, length in dict.fromkeys((group.model, group.gen_length) for group in results):
        seen: list[dict[str, Measured | None]] = []
        for name in NEEDED[item]:
            groups = [g for g in results if (g.model, g.gen_length) == (model, length)]
            cells = {group.task: (group, results[group].get(name)) for group in groups}
            numbers = {task: measured for task, (_, measured) in cells.items()}
            if any(numbers.values()) and numbers in seen:
                continue
            seen.append(numbers)
            rows.append(TableRow(model, length, name, cells))
    return rows


def reference_of(item: str, name: str) -> str | None:
    """What a method's change is against, as the paper has it; None for the baseline."""
    if name == "baseline":
        return None
    against_lrd = item in ("table3", "table4") and name != "lrd"
    return "lrd" if against_lrd else "baseline"


def _ours(item: str, results: Results, tasks: Sequence[str]) -> str:
    heads = [f"{task}: {HEADS[column]}" for task in tasks for column in COLUMNS[item]]
    lines = []
    for row in rows_of(item, results):
        line = [model_name(row.model), str(row.gen_length), DECODINGS[row.method].label]
        for task in tasks:
            found = row.cells.get(task)
            for column in COLUMNS[item]:
                line.append(_cell(item, column, row.method, found, results))
        lines.append(line)
    return table(["Model", "Len", "Method", *heads], lines)


def _cell(
    item: str,
    column: str,
    method: str,
    found: tuple[Group, Measured | None] | None,
    results: Results,
) -> str:
    if found is None or found[1] is None:
        return NONE
    group, measured = found[0], found[1]
    reference = results[group].get(reference_of(item, method) or "")
    baseline = results[group].get("baseline")
    if column == "accuracy":
        text = f"{100 * measured.accuracy:.1f} ({100 * measured.low:.1f}–{100 * measured.high:.1f})"
        before = 100 * reference.accuracy if reference is not None else None
        return _with_change(text, change(100 * measured.accuracy, before))
    if column == "tokens":
        before = reference.tokens if reference is not None else None
        return _with_change(number(measured.tokens), change(measured.tokens, before))
    if column in ("passes", "pass_ms"):
        return number(measured.forwards if column == "passes" else measured.pass_ms)
    if column == "time":
        return times(speed(baseline, measured))
    return times(fewer_forwards(baseline, measured))


def _with_change(text: str, changed: str) -> str:
    return text if changed == NONE else f"{text}, {changed}"


def _definitions(item: str) -> str:
    parts = {
        "accuracy": "**Acc**: right answers of all rows, with Wilson's 95 % interval.",
        "time": "**Speed, time**: the baseline's decoding time over this run's, from the first "
        "replica that was up to the last row on storage, all slots at work. It is throughput of "
        "two runs, one after the other, each measured once; not the latency of a sample alone, "
        "which the paper's Speed is. On a machine that does other work too it is noisy.",
        "forwards": "**Speed, forwards**: the baseline's mean forwards a row over these; exact, "
        "and the same on every machine.",
        "pass_ms": "**ms a pass**: of all slots together, by the rows' time in their slots. Passes "
        "with fewer open positions and less mixing are cheaper; what differs beyond that is the "
        "machine, busier during one run, and is as much of the speed in time. Beyond 2× that is "
        "left out.",
        "tokens": "**F_token**: tokens before the first EOS, mean of decoded rows.",
    }
    return "\n\n".join(parts[column] for column in COLUMNS[item] if column in parts)


def _remarks(item: str, results: Results) -> list[str]:
    """What has to be said of single cells, as one list; empty where there is nothing."""
    lines = []
    for row in rows_of(item, results):
        for group, measured in row.cells.values():
            where = f"{group.name}, {DECODINGS[row.method].label}"
            if measured is None:
                lines.append(f"* {where}: not decoded.")
                continue
            rate = speed(results[group].get("baseline"), measured)
            if "time" in COLUMNS[item] and isinstance(rate, str):
                lines.append(f"* {where}: no speed in time; {rate}.")
            if measured.num_failed:
                lines.append(f"* {where}: {measured.num_failed} failed rows, counted as wrong.")
            if measured.num_unsure:
                lines.append(
                    f"* {where}: {measured.num_unsure} of {measured.num_rows} rows stopped early "
                    "with a position above 0.5 nats."
                )
    return ["\n".join(lines)] if lines else []


def _papers(item: str, cells: Sequence[Published]) -> str:
    benchmarks = [name for name in BENCHMARKS.values() if name in {c.benchmark for c in cells}]
    by_cell = {(c.model, c.gen_length, c.method, c.benchmark): c for c in cells}
    lines = []
    for model, length, method in dict.fromkeys((c.model, c.gen_length, c.method) for c in cells):
        line = [model, str(length), DECODINGS[method].label]
        for benchmark in benchmarks:
            cell = by_cell.get((model, length, method, benchmark))
            for column in PAPER_COLUMNS[item]:
                value = None if cell is None else getattr(cell, PUBLISHED_AS[column])
                line.append(number(value, suffix="" if column != "time" or value is None else "×"))
        lines.append(line)
    words = {"accuracy": "Acc %", "time": "Speed", "tokens": "F_token"}
    heads = [f"{name}: {words[column]}" for name in benchmarks for column in PAPER_COLUMNS[item]]
    return table(["Model", "Len", "Method", *heads], lines)


def _beside(item: str, results: Results, cells: Sequence[Published]) -> str:
    """Each method's changes, here and there, from the least to the largest."""
    accuracies = {(c.model, c.gen_length, c.method, c.benchmark): c for c in cells}
    lines = []
    for name in NEEDED[item]:
        against = reference_of(item, name)
        if against is None:
            continue
        pairs = [
            (group, measured, results[group].get(against), results[group].get("baseline"))
            for group in results
            if (measured := results[group].get(name)) is not None
        ]
        theirs = [
            (c, accuracies[c.model, c.gen_length, against, c.benchmark])
            for c in cells
            if c.method == name
        ]
        gains = [100 * (m.accuracy - r.accuracy) for _, m, r, _ in pairs if r is not None]
        rates = [speed(b, m) for _, m, _, b in pairs]
        passes = [fewer_forwards(b, m) for _, m, _, b in pairs]
        lines.append(
            [
                DECODINGS[name].label,
                DECODINGS[against].label,
                span(gains, signed=True),
                span([a.accuracy - b.accuracy for a, b in theirs], signed=True),
                span([rate for rate in rates if isinstance(rate, float)], 2),
                span([rate for rate in passes if rate is not None], 2),
                span([a.speed for a, _ in theirs if a.speed is not None]),
                span(_token_changes(pairs), signed=True),
                span([a.tokens - b.tokens for a, b in theirs if a.tokens and b.tokens], 1, True),
            ]
        )
    heads = ["Method", "against", "Δ Acc here", "Δ Acc paper", "× time here", "× forwards here"]
    return table([*heads, "× time paper", "Δ F_token here", "Δ F_token paper"], lines)


def _token_changes(
    pairs: Sequence[tuple[Group, Measured, Measured | None, Measured | None]],
) -> list[float]:
    found = [(m.tokens, r.tokens) for _, m, r, _ in pairs if r is not None]
    return [ours - before for ours, before in found if ours is not None and before is not None]
