"""The decodings that the paper compares, as settings, and which of them each table and figure
shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from lrd.config import COMMIT_RULES, PRESETS, DecodingConfig
from pipeline.experiments.decoders import COMMON

METHOD = "paper"
"""The preset that `lrd` and its ablations start from, unless another is asked for."""
SHARES = tuple(round(0.1 * n, 1) for n in range(11))
"""Values of r_f in Figure 4 and of top_p in Figure 5."""
FIXED_STEPS = 20
"""Refinement passes of Figure 2, where no threshold ends the phase."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """One row of a table, or one point of a sweep."""

    label: str
    """As the paper writes it."""
    preset: str | None = None
    """None: the preset of the method (`METHOD`, or `--preset`)."""
    changes: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Its own settings; the user's do not replace them."""


def _sweep(setting: str) -> dict[str, Decoding]:
    return {
        point(setting, share): Decoding(f"{setting} {share:g}", changes={setting: share})
        for share in SHARES
    }


def point(setting: str, share: float) -> str:
    """The name of a sweep's decoding."""
    return f"{setting}={share:g}"


_COMMIT_SETTINGS = ("tokens_per_step", "steps", "schedule", "schedule_eps", *COMMIT_RULES)
_MANY_A_PASS = {"entropy_threshold": PRESETS["fast"]["entropy_threshold"]}

DECODINGS: dict[str, Decoding] = {
    "baseline": Decoding("baseline", "baseline"),
    "lrd": Decoding("LRD"),
    "fast": Decoding("preset fast (not the paper's)", "fast", _MANY_A_PASS),
    "baseline_parallel": Decoding(
        "baseline, many a pass (not the paper's)", "baseline", _MANY_A_PASS
    ),
    "no_refinement": Decoding("w/o latent refinement", changes={"max_refine_steps": 0}),
    "no_mixing": Decoding("w/o mix embed", changes={"r_f": 0.0}),
    "no_early_stop": Decoding("w/o early stop", changes={"early_stop": False}),
    "auto": Decoding("Auto", changes={"refinement": "auto"}),
    **{f"lf{k}": Decoding(f"LF×{k}", changes={"refinement": k}) for k in range(1, 6)},
    "fixed": Decoding(
        f"{FIXED_STEPS} refinement passes, no early stop",
        changes={"tau_refine": 0.0, "max_refine_steps": FIXED_STEPS, "early_stop": False},
    ),
    **_sweep("r_f"),
    **_sweep("top_p"),
}
"""By the names of the paper's figures in table*.csv, where these have them."""

_ABLATIONS = ("baseline", "lrd", "no_refinement", "no_mixing", "no_early_stop")
NEEDED: dict[str, tuple[str, ...]] = {
    "table1": ("baseline", "lrd", "baseline_parallel", "fast"),
    "table2": ("baseline", "lrd", "auto", *(f"lf{k}" for k in range(1, 6))),
    "table3": _ABLATIONS,
    "table4": _ABLATIONS,
    "figure2": ("fixed",),
    "figure3": ("lrd",),
    "figure4": ("baseline", *(point("r_f", share) for share in SHARES)),
    "figure5": ("baseline", *(point("top_p", share) for share in SHARES)),
}
"""Table or figure → names of the decodings that it shows."""


def items_named(names: Sequence[str]) -> list[str]:
    """Tables and figures in the paper's order, `all` for every one; ValueError for others."""
    unknown = [name for name in names if name not in NEEDED and name != "all"]
    if unknown:
        raise ValueError(
            f"{unknown[0]!r} is not a table or figure; choose {', '.join(NEEDED)} or all"
        )
    return [item for item in NEEDED if item in names or "all" in names]


def config_of(
    name: str, gen_length: int, given: Mapping[str, Any] | None = None, method: str = METHOD
) -> DecodingConfig:
    """A decoding's settings.

    All decodings of a table start from `COMMON` and from what the user gave, so that they differ
    in the method alone.

    given: settings that the user gave for all decodings; a decoding's own replace them.
    Raises pydantic's ValidationError (a ValueError) for impossible settings.
    """
    decoding = DECODINGS[name]
    own: dict[str, Any] = dict(decoding.changes)
    if decoding.preset == "baseline":
        own = {**PRESETS["baseline"], **own}
    shared = {**COMMON, **(given or {})}
    if "entropy_threshold" in decoding.changes:
        shared = {name: value for name, value in shared.items() if name not in _COMMIT_SETTINGS}
    settings = {**shared, **own, "gen_length": gen_length}
    return DecodingConfig.preset(decoding.preset or method, **settings)


def first_alike(
    name: str, gen_length: int, given: Mapping[str, Any] | None = None, method: str = METHOD
) -> str:
    """The first decoding whose settings are the same, so that it is decoded once."""
    config = config_of(name, gen_length, given, method)
    return next(n for n in DECODINGS if config_of(n, gen_length, given, method) == config)
