"""Which of the measured settings to use, and the settings file for it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from lrd import DecodingConfig
from lrd.config import ALL_PRESETS
from pipeline.experiments.paired import Comparison, Cost, compare
from pipeline.experiments.tuning.trials import Trial

SIGNIFICANT = 0.05
"""Level of the one-sided test that a setting is below the best, so half of a two-sided p. Not
corrected for the number of settings: with more of them more are dropped, none is added."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The recommended setting beside the most accurate one."""

    cost: Cost
    """What settings were compared by."""
    best: Trial
    """The most accurate, of equals the cheapest."""
    chosen: Trial
    """The cheapest of those that are not shown to be worse than `best`."""
    against_best: Comparison
    """chosen against best."""
    num_equal: int
    """Settings that are not shown to be worse, both of these included."""


def cost_of(configs: Iterable[DecodingConfig]) -> Cost:
    """What tells which of these settings is cheaper.

    Forwards, where every pass goes through prompt and canvas. A cache or a suffix pattern leaves
    their number as it is, or raises it, and makes most of them small: then it is positions.
    """
    small = any(config.caches or config.suffix != "all" for config in configs)
    return "positions" if small else "forwards"


def choose(trials: Sequence[Trial], max_loss: float) -> Choice:
    """max_loss: how far below the best measured accuracy a setting may be, in addition to the test,
    which shows little on few problems.

    Raises ValueError where there is nothing to choose from.
    """
    decoded = [trial for trial in trials if trial.is_decoded]
    if not decoded:
        raise ValueError("no setting decoded a single problem; nothing can be recommended")
    cost = cost_of(trial.config for trial in decoded)
    best = min(decoded, key=lambda t: (-t.num_correct, t.mean(cost)))
    equal = [trial for trial in decoded if not is_worse(compare(trial, best), max_loss)]
    chosen = min(equal, key=lambda t: (t.mean(cost), -t.num_correct))
    return Choice(cost, best, chosen, compare(chosen, best), len(equal))


def is_worse(against_best: Comparison, max_loss: float) -> bool:
    """Whether a setting is shown to be below the best, or lies too far below it."""
    return -against_best.difference > max_loss + 1e-12 or is_shown_below(against_best)


def is_shown_below(against_best: Comparison) -> bool:
    """Whether the test alone shows it."""
    return against_best.difference < 0 and against_best.p / 2 < SIGNIFICANT


def settings_file(config: DecodingConfig, run: Mapping[str, Any], comment: str) -> str:
    """TOML for `lrd generate --config`: `run`, then a preset and the fewest changes that give
    `config`."""
    preset, changes = as_preset(config)
    lines = [f"# {line}" for line in comment.splitlines()]
    lines += ["", *_toml({**run, "preset": preset}), "", "[decoding]", *_toml(changes)]
    return "\n".join(lines) + "\n"


def _toml(settings: Mapping[str, Any]) -> list[str]:
    """Texts, numbers and truth values are written as in JSON."""
    return [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in settings.items()]


def as_preset(config: DecodingConfig) -> tuple[str, dict[str, Any]]:
    """The preset with the fewest overrides that give `config`.

    TOML has no null, so a preset cannot be used where one of its values had to be unset, nor where
    one that stays does not go with the others. The preset `baseline` sets nothing that may be null,
    so one is always left.
    """
    options = []
    for preset in ALL_PRESETS:
        start = DecodingConfig.preset(preset).model_dump()
        changes = {k: v for k, v in config.model_dump().items() if v != start[k]}
        # A commit rule that is given drops the preset's own.
        said = {k: v for k, v in changes.items() if v is not None}
        if config.entropy_threshold is None and start["entropy_threshold"] is not None:
            said.setdefault("tokens_per_step", config.tokens_per_step)
        if config.steps is not None:
            said.pop("tokens_per_step", None)
        with suppress(ValidationError):
            if DecodingConfig.preset(preset, **said) == config:
                options.append((len(said), preset, said))
    _, preset, said = min(options, key=lambda option: option[0])
    return preset, said
