"""What `jobs.tiny.compare_models` measured, as Markdown blocks of a page and as a plot.

A page holds `<!-- measured: NAME -->` … `<!-- end -->`; what stands between them is replaced, all
else is its author's.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.experiments.decoders import Decoder
from pipeline.experiments.frontier import Series, frontier
from pipeline.experiments.paired import Comparison, Outcomes, compare
from pipeline.markdown import table

STYLES = ("s2", "s1")
BLOCK = re.compile(r"(<!-- measured: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
SIGNIFICANT = 0.05


@dataclass(frozen=True, slots=True)
class ModelOutcomes:
    """One model's outcomes."""

    label: str
    outcomes: Mapping[str, Outcomes]
    """By decoder key."""


def fill(page: str, made: Mapping[str, str], where: str) -> str:
    """The page with its blocks replaced. Raises ValueError where a block is missing or unknown."""
    names = [found.group(2) for found in BLOCK.finditer(page)]
    if sorted(names) != sorted(made):
        raise ValueError(
            f"{where}: has the measured blocks {', '.join(names) or 'none'}; "
            f"{', '.join(made)} are expected, each as <!-- measured: NAME --> and <!-- end -->"
        )
    return BLOCK.sub(lambda found: f"{found[1]}\n{made[found[2]]}\n\n{found[3]}", page)


def blocks(
    measured: Sequence[ModelOutcomes], decoders: Sequence[Decoder], args: argparse.Namespace
) -> dict[str, str]:
    """The blocks by name."""
    return {
        "facts": facts(measured, decoders, args),
        "accuracy": accuracy_table(measured, decoders),
        "within": within_table(measured, decoders),
        "between": between_table(measured, decoders),
    }


def facts(
    measured: Sequence[ModelOutcomes], decoders: Sequence[Decoder], args: argparse.Namespace
) -> str:
    """What was decoded, and how many tests are below."""
    first = next(iter(measured[0].outcomes.values()))
    within = sum(decoder.against in measured[0].outcomes for decoder in decoders)
    num_tests = within * len(measured) + len(decoders)
    return (
        f"{len(first.correct)} test problems (`jobs/tiny/problems.py`, seed {args.seed}; none "
        "shares structure and numbers with a training problem), canvas "
        f"{args.gen_length}, one block, float32, {len(decoders)} decoders. The tables below hold "
        f"{num_tests} tests whose p is not corrected; Bonferroni's level for all of them together "
        f"is {SIGNIFICANT / num_tests:.1g}."
    )


def accuracy_table(measured: Sequence[ModelOutcomes], decoders: Sequence[Decoder]) -> str:
    """Accuracy with Wilson's 95 % interval, mean forwards and unsure stops, by model."""
    head = ["", "decoder"]
    for one in measured:
        head += [f"{one.label}: accuracy (95 %)", "forwards", "unsure"]
    rows = []
    for number, decoder in enumerate(decoders, 1):
        cells = [str(number), decoder.name]
        for one in measured:
            found = one.outcomes[decoder.key]
            low, high = found.interval
            cells += [
                f"{found.accuracy:.3f} ({low:.3f} to {high:.3f})",
                f"{found.mean_forwards:.2f}",
                str(found.num_unsure),
            ]
        rows.append(cells)
    return table(head, rows)


def within_table(measured: Sequence[ModelOutcomes], decoders: Sequence[Decoder]) -> str:
    """Each decoder against the one that it differs from, within each model."""
    names = {decoder.key: decoder.name for decoder in decoders}
    numbers = {decoder.key: number for number, decoder in enumerate(decoders, 1)}
    head = ["", "decoder", "against"]
    for one in measured:
        head += [f"{one.label}: points (95 %)", "won, lost", "p", "forwards"]
    rows = []
    for decoder in decoders:
        if decoder.against not in names:
            continue
        cells = [str(numbers[decoder.key]), decoder.name]
        cells.append(f"{numbers[decoder.against]} {names[decoder.against].removeprefix('… ')}")
        for one in measured:
            ours, theirs = one.outcomes[decoder.key], one.outcomes[decoder.against]
            cells += difference(compare(ours, theirs))
            cells.append(f"x {ours.mean_forwards / theirs.mean_forwards:.2f}")
        rows.append(cells)
    return table(head, rows)


def between_table(measured: Sequence[ModelOutcomes], decoders: Sequence[Decoder]) -> str:
    """The second model against the first, decoder by decoder."""
    first, second = measured
    head = ["", "decoder", f"{second.label} less {first.label}: points (95 %)"]
    head += ["won, lost", "p", "forwards"]
    rows = []
    for number, decoder in enumerate(decoders, 1):
        ours, theirs = second.outcomes[decoder.key], first.outcomes[decoder.key]
        ratio = f"x {ours.mean_forwards / theirs.mean_forwards:.2f}"
        rows.append([str(number), decoder.name, *difference(compare(ours, theirs)), ratio])
    return table(head, rows)


def difference(found: Comparison) -> list[str]:
    """Points with their interval, problems won and lost, p (bold below 0.05)."""
    p = f"{found.p:.2g}"
    return [
        f"{100 * found.difference:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})",
        f"{found.gained}, {found.lost}",
        f"**{p}**" if found.p < SIGNIFICANT else p,
    ]


def as_svg(
    measured: Sequence[ModelOutcomes], decoders: Sequence[Decoder], most_forwards: float = math.inf
) -> str:
    """The frontier, one colour a model; a dot has its decoder's number in the tables.

    most_forwards: decoders with more, in the mean of a model, are left out.
    """
    labels = {decoder.key: str(number) for number, decoder in enumerate(decoders, 1)}
    tooltips = {decoder.key: decoder.name for decoder in decoders}
    series = [
        Series(
            one.label,
            style,
            [found for found in one.outcomes.values() if found.mean_forwards <= most_forwards],
            labels,
            tooltips,
        )
        for one, style in zip(measured, STYLES, strict=True)
    ]
    return frontier(series, f"{measured[0].label} and {measured[1].label} under every decoder")
