"""Every combination of a grid's values that decodes differently."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from lrd.config import DecodingConfig
from pipeline.experiments.tuning.monitor import FIELDS, monitor_settings

SWEPT = ("r_f", "top_p", "tau_refine", "tau_decode", "entropy_threshold")
"""Fields that a grid may give several values; the monitor is the other one."""


@dataclass(frozen=True, slots=True)
class Grid:
    """What is swept over what is fixed."""

    preset: str
    """Where the settings start from."""
    fixed: Mapping[str, Any]
    """Fields of DecodingConfig that are the same everywhere."""
    values: Mapping[str, Sequence[Any]]
    """Values of the fields in SWEPT; the preset's where there are none."""
    monitors: Sequence[str]
    """As in `monitor.py`; the preset's early stop where there are none."""
    whole_presets: Sequence[str] = ()
    """Presets that are measured without the grid's values."""

    def configs(self) -> list[DecodingConfig]:
        """Whole presets first, then all combinations, each once.

        All share what is fixed, and `stop_at_eos` of `preset` unless that is fixed: presets differ
        in it, and it would end the samples of some earlier than those of others.

        Raises ValueError (pydantic's among them) for impossible settings.
        """
        names = [name for name in SWEPT if name in self.values]
        fixed = {"stop_at_eos": DecodingConfig.preset(self.preset).stop_at_eos, **self.fixed}
        found = [DecodingConfig.preset(name, **fixed) for name in self.whole_presets]
        for values in product(*(self.values[name] for name in names)):
            swept = dict(zip(names, values, strict=True))
            for monitor in self.monitors or (None,):
                stop = monitor_settings(monitor) if monitor else {}
                found.append(DecodingConfig.preset(self.preset, **{**fixed, **swept, **stop}))
        return list(dict.fromkeys(map(effective, found)))


def effective(config: DecodingConfig) -> DecodingConfig:
    """The same decoding with every field that has no effect at its default."""
    idle: set[str] = set()
    if not config.mixes:
        idle |= {"top_p"}
    if not config.early_stop:
        idle |= {"tau_decode", *FIELDS}
    if not config.refines:
        idle |= {"tau_refine"}
    if isinstance(config.refinement, int):
        idle |= {"tau_refine", "max_refine_steps"}
    if config.num_blocks == 1:
        idle |= {"stop_at_eos"}
    if config.reduction != "mean":
        idle |= {"scope"}
    settings = config.model_dump(exclude=idle)
    if not config.mixes:
        settings["r_f"] = 0.0
    return DecodingConfig(**settings)


def run_name(config: DecodingConfig) -> str:
    """A short name for the config's folder, a digest of all its fields."""
    return hashlib.blake2b(config.model_dump_json().encode(), digest_size=6).hexdigest()


def commit_rule(config: DecodingConfig) -> str:
    """Which positions are committed, in a few words."""
    if config.entropy_threshold is not None:
        return f"entropy < {config.entropy_threshold:g}"
    if config.entropy_bound is not None:
        return f"entropy bound {config.entropy_bound:g}"
    if config.confidence_threshold is not None:
        return f"p >= {config.confidence_threshold:g}"
    return f"{config.steps} steps" if config.steps else f"{config.tokens_per_step} a pass"
