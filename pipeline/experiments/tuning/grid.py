"""Every combination of a grid's values that decodes differently."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from pydantic import ValidationError

from lrd.config import DecodingConfig
from lrd.decoder_settings import DecoderSettings
from pipeline.experiments.tuning.monitor import FIELDS, monitor_settings

SWEPT = (
    *("r_f", "top_p", "tau_refine", "tau_decode", "entropy_threshold"),
    *("refinement", "block_length", "kv_cache", "cache_refresh", "suffix"),
)
"""Fields that a grid may give several values; the monitor is the other one."""
MONITOR = "monitor"


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
    decoders: Sequence[str] = ()
    """The same of published decoders; those that cannot be with what is fixed are left out."""

    def configs(self) -> list[DecodingConfig]:
        """Whole presets first, then all combinations, each once.

        All share what is fixed, and `stop_at_eos` of `preset` unless that is fixed: presets differ
        in it, and it would end the samples of some earlier than those of others.

        A combination that is impossible, such as a refresh without a cache, is left out.
        Raises ValueError (pydantic's among them) for a value that no possible combination has.
        """
        fixed = self._fixed()
        found = [DecodingConfig.preset(name, **fixed) for name in self.whole_presets]
        decoders = self._decoders().values()
        found += [one for one in decoders if isinstance(one, DecodingConfig)]
        reasons: dict[tuple[str, Any], ValidationError] = {}
        possible: set[tuple[str, Any]] = set()
        for combination in self._combinations():
            stop = monitor_settings(combination[MONITOR]) if MONITOR in combination else {}
            swept = {name: value for name, value in combination.items() if name != MONITOR}
            try:
                found.append(DecodingConfig.preset(self.preset, **{**fixed, **swept, **stop}))
                possible.update(combination.items())
            except ValidationError as error:
                reasons = {**dict.fromkeys(combination.items(), error), **reasons}
        for value, reason in reasons.items():
            if value not in possible:
                raise reason
        return list(dict.fromkeys(map(effective, found)))

    @property
    def left_out(self) -> dict[str, str]:
        """Published decoders that cannot be with what is fixed, and why, in a line."""
        found = self._decoders()
        return {name: one for name, one in found.items() if isinstance(one, str)}

    def _decoders(self) -> dict[str, DecodingConfig | str]:
        """The settings of published decoders by name, or why they cannot be."""
        found: dict[str, DecodingConfig | str] = {}
        for name in self.decoders:
            try:
                found[name] = DecodingConfig.preset(name, **self._fixed())
            except ValidationError as error:
                found[name] = error.errors()[0]["msg"].removeprefix("Value error, ")
        return found

    def _fixed(self) -> dict[str, Any]:
        return {"stop_at_eos": DecodingConfig.preset(self.preset).stop_at_eos, **self.fixed}

    def _combinations(self) -> Iterator[dict[str, Any]]:
        values = {name: self.values[name] for name in SWEPT if name in self.values}
        if self.monitors:
            values[MONITOR] = self.monitors
        for combination in product(*values.values()):
            yield dict(zip(values, combination, strict=True))


def effective(config: DecodingConfig) -> DecodingConfig:
    """The same decoding with every field that has no effect at its default, and of settings that
    are the same decoding one for all."""
    idle: set[str] = set()
    if not config.mixes:
        idle |= {"top_p"}
    refines_by_threshold = config.refines and not isinstance(config.refinement, int)
    if not config.early_stop:
        idle |= {"tau_decode", *FIELDS}
        if refines_by_threshold:
            idle -= {"monitor"}
    if not config.refines:
        idle |= {"tau_refine", "refinement"}
    if isinstance(config.refinement, int):
        idle |= {"tau_refine", "max_refine_steps"}
    if config.num_blocks == 1:
        idle |= {"block_length", "stop_at_eos", "eos_ends_block", "soft_suffix", "suffix"}
        if config.refinement == "first":
            idle |= {"refinement"}
    if config.cache_refresh == 1:  # Every pass is full.
        idle |= {"kv_cache", "cache_refresh"}
    if isinstance(config.suffix, int) and config.suffix >= config.num_blocks - 1:
        idle |= {"suffix"}
    longest = config.gen_length - config.block_tokens
    if isinstance(config.suffix, tuple) and set(config.suffix).issuperset(range(longest)):
        idle |= {"suffix"}
    if config.reduction != "mean":
        idle |= {"scope"}
    settings = config.model_dump(exclude=idle)
    if not config.mixes:
        settings["r_f"] = 0.0
    if config.num_blocks == 1 and settings.get("kv_cache") == "dual":
        settings["kv_cache"] = "prefix"  # Nothing lies behind the block.
    return DecodingConfig(**settings)


def run_name(config: DecodingConfig) -> str:
    """A short name for the config's folder, a digest of all its fields."""
    text = config.model_dump_json(exclude=config.unrecorded)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def commit_rule(config: DecodingConfig) -> str:
    """Which positions are committed, in a few words, and what a published decoder adds to it."""
    named = config.model_dump(include=set(DecoderSettings.model_fields), exclude_defaults=True)
    return ", ".join([_rule(config), *(f"{name} {value}" for name, value in named.items())])


def _rule(config: DecodingConfig) -> str:
    if config.entropy_threshold is not None:
        return f"entropy < {config.entropy_threshold:g}"
    if config.entropy_bound is not None:
        return f"entropy bound {config.entropy_bound:g}"
    if config.confidence_threshold is not None:
        return f"p >= {config.confidence_threshold:g}"
    return f"{config.steps} steps" if config.steps else f"{config.tokens_per_step} a pass"
