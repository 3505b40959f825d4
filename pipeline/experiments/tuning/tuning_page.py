"""A sweep as files: every setting in a CSV and in a Markdown page, the front as SVG, the choice
as TOML.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lrd import DecodingConfig
from lrd.decoder_settings import DecoderSettings
from pipeline.experiments.frontier import Series, frontier
from pipeline.experiments.paired import Comparison, Cost, compare, front
from pipeline.experiments.tuning.choice import Choice, is_shown_below, settings_file
from pipeline.experiments.tuning.grid import commit_rule
from pipeline.experiments.tuning.monitor import FIELDS, monitor_name
from pipeline.experiments.tuning.trials import Trial
from pipeline.markdown import table

SHOWN = ("r_f", "top_p", "tau_refine", "tau_decode")
"""Fields that every table has; others where they differ between settings."""
IN_WORDS = (
    "entropy_threshold", "entropy_bound", "confidence_threshold", "tokens_per_step", "steps",
    *FIELDS, *DecoderSettings.model_fields,
)  # fmt: skip
"""Fields that the columns `commit` and `monitor` say."""
MEASURED = [
    "correct", "problems", "accuracy", "accuracy_low", "accuracy_high", "mean_forwards",
    "mean_positions", "mean_seconds", "unsure_stops", "failed", "below_best", "p", "front", "run",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sweep:
    """Everything that the files show."""

    run: Mapping[str, Any]
    """Settings beside the decoding that the sweep was made with: model, prompts."""
    task: str
    trials: Sequence[Trial]
    choice: Choice

    def ranked(self) -> list[Trial]:
        """Most accurate first, of equals the cheapest."""
        return sorted(self.trials, key=lambda t: (-t.num_correct, t.mean(self.choice.cost)))

    def front(self) -> list[Trial]:
        """The Pareto front, the cheapest first."""
        return front(self.trials, self.choice.cost)


def columns(configs: Sequence[DecodingConfig]) -> list[str]:
    """Columns for settings: those shown always, those that differ, the two in words."""
    dumps = [config.model_dump() for config in configs]
    differing = [
        name
        for name in DecodingConfig.model_fields
        if name not in (*SHOWN, *IN_WORDS) and len({str(dump[name]) for dump in dumps}) > 1
    ]
    return [*SHOWN, *differing, "commit", "monitor"]


def settings(config: DecodingConfig, names: Sequence[str]) -> dict[str, str]:
    """A setting's texts for these columns; `-` where a field has no effect."""
    words = {name: _value(value) for name, value in config.model_dump().items()}
    words |= {"commit": commit_rule(config), "monitor": monitor_name(config)}
    if not config.mixes:
        words["top_p"] = "-"
    if not config.early_stop:
        words["tau_decode"] = "-"
    if not config.refines:
        words["tau_refine"] = "-"
    if config.block_length is None:
        words["block_length"] = "whole"
    if not config.caches:
        words["cache_refresh"] = "-"
    return {name: words[name] for name in names}


def as_csv(sweep: Sweep) -> str:
    """A line a setting, numbers in full."""
    names = columns([trial.config for trial in sweep.trials])
    sink = io.StringIO()
    writer = csv.DictWriter(sink, [*names, *MEASURED], lineterminator="\n")
    writer.writeheader()
    best = {trial.name for trial in sweep.front()}
    for trial in sweep.ranked():
        found = compare(trial, sweep.choice.best)
        low, high = trial.interval
        measured = {
            "correct": trial.num_correct,
            "problems": len(trial.correct),
            "accuracy": f"{trial.accuracy:.4f}",
            "accuracy_low": f"{low:.4f}",
            "accuracy_high": f"{high:.4f}",
            "mean_forwards": f"{trial.mean_forwards:.3f}",
            "mean_positions": f"{trial.mean_positions:.1f}",
            "mean_seconds": _seconds(trial),
            "unsure_stops": trial.num_unsure,
            "failed": trial.num_failed,
            "below_best": f"{(found.lost - found.gained) / len(trial.correct):.4f}",
            "p": f"{found.p:.4f}",
            "front": int(trial.name in best),
            "run": trial.name,
        }
        writer.writerow({**settings(trial.config, names), **measured})
    return sink.getvalue()


def as_markdown(sweep: Sweep) -> str:
    """The recommendation, the front and every setting."""
    choice = sweep.choice
    title = f"{sweep.run['model']}, {sweep.task}"
    numbers = f"{len(sweep.trials)} settings on {len(choice.best.correct)} problems"
    parts = [
        f"# {title}: {numbers}",
        f"![accuracy against {choice.cost}](pareto.svg)",
        "![the same near the front](pareto-near.svg)",
        "## Recommended",
        recommendation(sweep),
        _table(sweep, _distinct([choice.chosen, choice.best])),
        "## Pareto front",
        _table(sweep, sweep.front()),
        "## Every setting, the most accurate first",
        "Accuracy with Wilson's 95 % interval. Forwards, positions that went through the model and "
        "seconds in a slot are means a row; these seconds are shared with the rows in the other "
        "slots, and depend on the machine and its load. *unsure*: early stops with a position open "
        "above 0.5 nats. *below best*: points, and p of McNemar's exact test, two-sided, on the "
        "same problems, not corrected for the number of settings; bold where the one-sided test "
        "shows at 5 % that a setting is below the best.",
        _table(sweep, sweep.ranked()),
    ]
    return "\n\n".join(parts) + "\n"


def recommendation(sweep: Sweep) -> str:
    """What is recommended and why, in a few sentences."""
    choice = sweep.choice
    names = columns([trial.config for trial in sweep.trials])
    chosen, best = (
        ", ".join(f"{k} {v}" for k, v in settings(t.config, names).items())
        for t in (choice.chosen, choice.best)
    )
    unsure = ""
    if choice.chosen.num_unsure:
        unsure = (
            f" {choice.chosen.num_unsure} of its stops committed positions above 0.5 nats: see "
            "whether that holds on other problems."
        )
    if choice.chosen == choice.best:
        return (
            f"{chosen}: the most accurate setting; no other that is not shown to be worse needs "
            f"fewer {choice.cost}.{unsure}"
        )
    return (
        f"{chosen}: {choice.chosen.accuracy:.1%} in {_mean(choice.chosen, choice.cost)} "
        f"{choice.cost}, the fewest among the {choice.num_equal} settings that are not shown to be "
        f"worse than the most accurate. That one ({best}) has {choice.best.accuracy:.1%} in "
        f"{_mean(choice.best, choice.cost)}: {_difference(choice.against_best)}.{unsure}"
    )


def as_toml(sweep: Sweep) -> str:
    """The recommended setting for `lrd generate --config`."""
    return settings_file(sweep.choice.chosen.config, sweep.run, recommendation(sweep))


def as_svg(sweep: Sweep, near: float = math.inf) -> str:
    """Every setting as a dot; those of the Pareto front are numbered as in its table.

    near: leave out settings of more than so many times the cost of the front's last.
    """
    names = columns([trial.config for trial in sweep.trials])
    tooltips = {
        trial.name: ", ".join(f"{k} {v}" for k, v in settings(trial.config, names).items())
        for trial in sweep.trials
    }
    best, cost = sweep.front(), sweep.choice.cost
    labels = {trial.name: str(number) for number, trial in enumerate(best, 1)}
    most = near * best[-1].mean(cost)
    shown = [trial for trial in sweep.trials if trial.mean(cost) <= most]
    title = f"{sweep.run['model']}, {sweep.task}"
    return frontier([Series(title, "s1", shown, labels, tooltips)], title, cost)


def _difference(found: Comparison) -> str:
    return (
        f"{found.difference * 100:+.1f} points, 95 % {found.low * 100:+.1f} to "
        f"{found.high * 100:+.1f}, {found.gained} problems gained and {found.lost} lost, "
        f"p = {found.p:.2g}"
    )


def _table(sweep: Sweep, trials: Sequence[Trial]) -> str:
    names = columns([trial.config for trial in sweep.trials])
    numbers = {trial.name: str(n) for n, trial in enumerate(sweep.front(), 1)}
    head = ["front", *names, "accuracy (95 %)", "forwards", "positions", "seconds"]
    head += ["unsure", "below best", "p"]
    rows = []
    for trial in trials:
        found = compare(trial, sweep.choice.best)
        low, high = trial.interval
        rows.append(
            [
                numbers.get(trial.name, ""),
                *settings(trial.config, names).values(),
                f"{trial.accuracy:.3f} ({low:.3f} to {high:.3f})",
                _mean(trial, "forwards"),
                _mean(trial, "positions"),
                _seconds(trial),
                str(trial.num_unsure),
                f"{(found.lost - found.gained) * 100 / len(trial.correct):.1f}",
                f"**{found.p:.2g}**" if is_shown_below(found) else f"{found.p:.2g}",
            ]
        )
    return table(head, rows)


def _mean(trial: Trial, cost: Cost) -> str:
    return f"{trial.mean(cost):.2f}" if cost == "forwards" else f"{trial.mean(cost):,.0f}"


def _seconds(trial: Trial) -> str:
    return "" if trial.mean_seconds is None else f"{trial.mean_seconds:.3g}"


def _distinct(trials: Sequence[Trial]) -> list[Trial]:
    return list(dict.fromkeys(trials))


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
