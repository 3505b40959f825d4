"""What `jobs.bench.caches` measured, as Markdown blocks of a page and as plots.

A page holds `<!-- measured: NAME -->` … `<!-- end -->`; what stands between them is replaced, all
else is its author's. A page that is not there is made.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.bench.sweep_cases import (
    BASE,
    CACHES,
    DTYPES,
    GROUPS,
    MONITOR,
    PRESETS,
    REFINEMENT,
    TASKS,
    cases,
)
from jobs.tiny.comparison_page import SIGNIFICANT, difference, fill
from pipeline.experiments.frontier import Series, frontier
from pipeline.experiments.paired import Comparison, Outcomes, Z, exact_p
from pipeline.markdown import table

STYLES = {"none": "s1", "prefix": "s2", "dual": "s3"}
HEADS = {
    CACHES: ["kv_cache", "block", "refresh", "suffix"],
    PRESETS: ["decoding", "block"],
    REFINEMENT: ["refinement", "block", "cache"],
    MONITOR: ["decoding", "block", "monitor"],
    DTYPES: ["dtype", "block"],
}
AGAINST = {
    CACHES: "none of that block",
    PRESETS: "`fast` of that form",
    REFINEMENT: "`initial` of that form",
    MONITOR: "`kl` of that form",
    DTYPES: "bfloat16 of that block",
}
TITLES = {
    CACHES: "Caches",
    PRESETS: "Which preset",
    REFINEMENT: "When to refine",
    MONITOR: "Which monitor",
    DTYPES: "Dtypes",
}
EXPLAINED = {
    CACHES: "Caches: preset `{base}`, blocks as far as they divide the canvas. *refresh*: passes "
    "of a block between two full ones, `-` for its first alone; *suffix* pattern: the next block "
    "whole and one position of each later one.",
    REFINEMENT: "Refinement: preset `{base}`, refined in every block (`initial`), in the first "
    "alone (`first`), or not at all (`none`: `max_refine_steps` 0). *cache*: none, `kv_cache` "
    "dual, or dual with `suffix` 1.",
    MONITOR: "Monitors: early stop on; τ is `tau_decode`; *unsure* are rows that an early stop "
    "ended with an open position above 0.5 nats.",
    DTYPES: "Dtypes: preset `{base}`; fp8 and int8_w8a8 by their arithmetic on a CPU.",
}
"""What a table's words mean."""


@dataclass(frozen=True, slots=True)
class Line:
    """A measured setting, as the file has it."""

    facts: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:
        return self.facts[name]

    @property
    def right_of_prompts(self) -> list[int]:
        """Right problems of each prompt."""
        return [one.count("1") for one in self.facts["right"]]

    @property
    def sizes(self) -> list[int]:
        """Problems of each prompt."""
        return [len(one) for one in self.facts["right"]]

    @property
    def num_whole(self) -> int:
        """Prompts of which every problem is right."""
        return sum("0" not in one for one in self.facts["right"])

    def mean(self, name: str) -> float:
        """Of a count, a prompt."""
        values = self.facts[name]
        return float(sum(values) / len(values))

    @property
    def rows_per_second(self) -> float:
        """By the process's own seconds of computing, so that other work does not count."""
        return float(len(self.facts["right"]) / self.facts["cpu_seconds"])

    @property
    def outcomes(self) -> Outcomes:
        """Problem by problem; passes and positions are those of the prompts."""
        problems = tuple(answer == "1" for one in self.facts["right"] for answer in one)
        forwards, positions = (tuple(self.facts[name]) for name in ("forwards", "positions"))
        failed = self.facts["failed"]
        return Outcomes(self.facts["case"], problems, forwards, positions, num_failed=failed)


Section = tuple[str, str]
"""A model's name and a task's key."""


def sections(lines: Iterable[Mapping[str, Any]]) -> dict[Section, dict[str, Line]]:
    """The latest line of every case, by model and task. Lines of another checkpoint, dtype or
    other prompts than a section's last are left out: they cannot be compared. Cases of dtypes
    have their own."""
    found: dict[Section, list[Line]] = {}
    for line in lines:
        found.setdefault((line["model"], line["task"]), []).append(Line(line))
    kept: dict[Section, dict[str, Line]] = {}
    for section, measured in found.items():
        fixed = [line.dtype for line in measured if line.facts.get("group") != DTYPES][-1:]
        kept[section] = {
            line.case: line
            for line in measured
            if all(
                line.facts[name] == measured[-1].facts[name]
                for name in ("model_digest", "prompts_digest")
            )
            and (line.facts.get("group") == DTYPES or [line.dtype] == fixed)
        }
    return kept


def compare(ours: Line, theirs: Line) -> Comparison:
    """Right problems against another setting's, prompt by prompt.

    gained and lost are prompts with more and with fewer right problems, p is the exact sign test
    of these; the difference is a share of problems, its interval Wald's over prompts with one
    problem added to either side. Of prompts with one problem each that is
    `pipeline.experiments.paired.compare`: McNemar's test, Bonett and Price's interval.
    """
    pairs = zip(ours.right_of_prompts, theirs.right_of_prompts, strict=True)
    changes = [a - b for a, b in pairs]
    gained, lost = sum(d > 0 for d in changes), sum(d < 0 for d in changes)
    num_prompts = len(changes)
    size = sum(ours.sizes) / num_prompts
    middle = sum(changes) / (num_prompts + 2)
    squares = (sum(d * d for d in changes) + 2) / (num_prompts + 2)
    half = Z * math.sqrt((squares - middle * middle) / (num_prompts + 2))
    return Comparison(
        gained,
        lost,
        sum(changes) / num_prompts / size,
        max(-1.0, (middle - half) / size),
        min(1.0, (middle + half) / size),
        exact_p(gained, lost),
    )


def new_page(groups: Sequence[str]) -> str:
    """A page without an author's words."""
    blocks = [f"<!-- measured: {name} -->\n<!-- end -->" for name in ("facts", *groups)]
    titles = [f"# {', '.join(map(TITLES.__getitem__, groups))}", *map(TITLES.__getitem__, groups)]
    heads = [titles[0], *(f"## {title}" for title in titles[1:])]
    return "\n\n".join(part for pair in zip(heads, blocks, strict=True) for part in pair) + "\n"


def write_page(page: Path, lines: Sequence[Mapping[str, Any]], groups: Sequence[str]) -> None:
    """The page of these tables, and a plot of the caches for every model and task beside it.
    Raises ValueError where a page that is there lacks a block."""
    groups = [group for group in GROUPS if group in groups]
    found = sections(line for line in lines if line["group"] in groups)
    text = page.read_text() if page.is_file() else new_page(groups)
    made = {group: group_text(found, group, page.stem) for group in groups}
    made["facts"] = facts(found, groups)
    filled = fill(text, made, str(page))
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(filled)
    for section, measured in found.items():
        shown = of_group(measured, CACHES)
        if shown:
            page.with_name(plot_name(page.stem, section)).write_text(as_svg(section, shown))


def plot_name(stem: str, section: Section) -> str:
    """The file of a section's plot."""
    return f"{stem}-{'-'.join(section)}.svg".replace(" ", "-").replace("/", "-")


def of_group(measured: Mapping[str, Line], group: str) -> list[Line]:
    """The lines of one table."""
    return [line for line in measured.values() if line.group == group]


def ordered(lines: Sequence[Line]) -> list[Line]:
    """As `sweep_cases` lists them, blocks from small to large, whatever the order in which they
    were measured."""
    sizes = {line.decoding["gen_length"] for line in lines}
    blocks = sorted({line.decoding["block_length"] for line in lines})
    known = [case.key for size in sizes for case in cases(size, blocks, GROUPS)]
    return sorted(lines, key=lambda line: known.index(line.case) if line.case in known else -1)


def facts(found: Mapping[Section, Mapping[str, Line]], groups: Sequence[str]) -> str:
    """What was decoded, what the columns say, and how many tests are below."""
    num_tests = sum(
        line.case != line.against and line.against in measured
        for measured in found.values()
        for line in measured.values()
    )
    asked = "; ".join(
        f"{model}, {TASKS[task].name}: {len(line.right)} prompts with {sum(line.sizes)} problems"
        + (f", {line.dtype}" if line.group != DTYPES else "")
        for (model, task), measured in found.items()
        for line in [next(iter(measured.values()))]
    )
    words = " ".join(EXPLAINED[group] for group in groups if group in EXPLAINED)
    level = (
        f"; Bonferroni's level for all together is {SIGNIFICANT / num_tests:.1g}"
        if num_tests
        else ""
    )
    return "\n\n".join(
        [
            f"Test problems that share no structure and numbers with training ones: {asked}. "
            + words.format(base=BASE["name"]),
            "*right*: problems with the right final answer, of all, with Wilson's 95 % interval "
            "(which takes the problems of a worksheet as independent). *points*: problems right "
            "against the setting it is held against, with a 95 % interval over prompts; *more, "
            "fewer*: prompts with more and fewer right problems; *p*: the exact sign test of these "
            f"({num_tests} tests, not corrected{level}). *passes*, *full* (passes over prompt and "
            "canvas) and *positions* (columns computed over all passes, without padding) are means "
            "a prompt. *rows/s*: prompts a second of computing of one thread, 16 slots.",
        ]
    )


def group_text(found: Mapping[Section, Mapping[str, Line]], group: str, stem: str) -> str:
    """A table for every model and task, of caches with its plot."""
    parts = []
    for section, measured in found.items():
        lines = ordered(of_group(measured, group))
        if not lines:
            continue
        model, task = section
        parts.append(f"### {model}: {TASKS[task].name}")
        if group == CACHES:
            parts.append(
                f"![right problems against positions computed]({plot_name(stem, section)})"
            )
        parts.append(section_table(lines, measured))
    return "\n\n".join(parts) or "Nothing is measured yet."


def section_table(lines: Sequence[Line], measured: Mapping[str, Line]) -> str:
    """One model and task; settings that are held against one that is not measured have no test."""
    with_sheets = any(size > 1 for size in lines[0].sizes)
    group = lines[0].group
    head = ["", *HEADS[group], "right (95 %)", f"points against {AGAINST[group]} (95 %)"]
    head += ["more, fewer", "p", *(["sheets right"] if with_sheets else [])]
    head += ["unsure"] if group == MONITOR else []
    head += ["passes", "full", "positions", "rows/s"]
    rows = []
    for number, line in enumerate(lines, 1):
        outcomes = line.outcomes
        low, high = outcomes.interval
        tested = line.against in measured and line.case != line.against
        rows.append(
            [
                str(number),
                *line.labels,
                f"{outcomes.num_correct} of {len(outcomes.correct)}: {outcomes.accuracy:.3f} "
                f"({low:.3f} to {high:.3f})",
                *(difference(compare(line, measured[line.against])) if tested else ["", "", ""]),
                *([f"{line.num_whole} of {len(line.right)}"] if with_sheets else []),
                *([str(line.unsure)] if group == MONITOR else []),
                f"{line.mean('forwards'):.2f}",
                f"{line.mean('full_passes'):.2f}",
                f"{line.mean('positions'):,.0f}",
                f"{line.rows_per_second:.1f}",
            ]
        )
    return table(head, rows)


def as_svg(section: Section, lines: Sequence[Line]) -> str:
    """Right problems against positions, a colour a cache; a dot has its number in the table."""
    shown = ordered(lines)
    numbers = {line.case: str(number) for number, line in enumerate(shown, 1)}
    names = {
        line.case: ", ".join(
            f"{head} {label}" for head, label in zip(HEADS[CACHES], line.labels, strict=True)
        )
        for line in shown
    }
    series = [
        Series(
            kind,
            style,
            [line.outcomes for line in shown if line.decoding["kv_cache"] == kind],
            numbers,
            names,
        )
        for kind, style in STYLES.items()
        if any(line.decoding["kv_cache"] == kind for line in shown)
    ]
    model, task = section
    return frontier(series, f"{model}: {TASKS[task].name}", cost="positions")
