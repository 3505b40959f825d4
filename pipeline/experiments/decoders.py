"""The decoders that `jobs.tiny.compare_models` compares, by name.

Each is a preset with changes, and is compared with the decoder that it differs from in one setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from lrd import DecodingConfig

COMMON: Mapping[str, Any] = MappingProxyType({"stop_at_eos": False})
"""Settings of every decoding that is compared with another, here and in `paper/decodings.py`,
unless the user gives them. Presets differ in `stop_at_eos`, which ends a sample early where blocks
are decoded one after another: on in one row of a table and off in another, it would count as a
gain of that row. Off, as in the paper: its baseline commits one token a pass until the whole
sequence is written, and only the early stop (Eq. 6) ends a sample before that (section 3.2)."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """One way to decode."""

    key: str
    """Its name on the command line, and of the file of its outcomes."""
    name: str
    """As the page's tables have it."""
    against: str | None
    """Key of the decoder that it is compared with; None: it is only compared with."""
    preset: str
    changes: dict[str, Any] = field(default_factory=dict)

    def config(self, gen_length: int) -> DecodingConfig:
        """Its settings."""
        settings = {**COMMON, **self.changes, "gen_length": gen_length}
        return DecodingConfig.preset(self.preset, **settings)


ONE = {"tokens_per_step": 1}
"""`fast` with it: r_f 0.15, refinement, and a stop where D_t < 0.1 and all entropies < 0.2."""
EIGHT = {"tokens_per_step": 8, "early_stop": False}
NO_GATE = {"stop_max_entropy": None}
LONG_CALM = {"tau_refine": 0.001, "tau_decode": 0.001}

DECODERS = (
    Decoder("baseline-1", "baseline, one a pass", None, "baseline"),
    Decoder("lrd-1", "LRD, one a pass", "baseline-1", "fast", ONE),
    Decoder("lrd-1-no-refine", "… w/o refinement", "lrd-1", "fast", {**ONE, "max_refine_steps": 0}),
    Decoder("lrd-1-no-mix", "… w/o mixing", "lrd-1", "fast", {**ONE, "r_f": 0.0}),
    Decoder("lrd-1-no-stop", "… w/o early stop", "lrd-1", "fast", {**ONE, "early_stop": False}),
    Decoder("paper", "Eq. 6 to the letter (`paper`)", "lrd-1-no-stop", "paper"),
    Decoder("paper-0.001", "… with both τ = 0.001", "lrd-1-no-stop", "paper", LONG_CALM),
    Decoder("baseline-8", "baseline, 8 a pass", "baseline-1", "baseline", {"tokens_per_step": 8}),
    Decoder("lrd-8", "LRD, 8 a pass", "baseline-8", "fast", EIGHT),
    Decoder(
        "baseline-h0.1", "baseline, H < 0.1", "baseline-1", "baseline", {"entropy_threshold": 0.1}
    ),
    Decoder(
        "baseline-h0.2", "baseline, H < 0.2", "baseline-1", "baseline", {"entropy_threshold": 0.2}
    ),
    Decoder(
        "baseline-h0.4", "baseline, H < 0.4", "baseline-1", "baseline", {"entropy_threshold": 0.4}
    ),
    Decoder(
        "baseline-p0.9", "baseline, p ≥ 0.9", "baseline-1", "baseline",
        {"confidence_threshold": 0.9},
    ),
    Decoder("lrd-h0.1", "LRD, H < 0.1", "baseline-h0.1", "fast", {"entropy_threshold": 0.1}),
    Decoder("fast", "LRD, H < 0.2 (`fast`)", "baseline-h0.2", "fast"),
    Decoder("lrd-h0.4", "LRD, H < 0.4", "baseline-h0.4", "fast", {"entropy_threshold": 0.4}),
    Decoder("lrd-p0.9", "LRD, p ≥ 0.9", "baseline-p0.9", "fast", {"confidence_threshold": 0.9}),
    Decoder("fast-no-refine", "`fast` w/o refinement", "fast", "fast", {"max_refine_steps": 0}),
    Decoder("fast-no-mix", "`fast` w/o mixing", "fast", "fast", {"r_f": 0.0}),
    Decoder("fast-rf0.3", "`fast`, r_f 0.3", "fast", "fast", {"r_f": 0.3}),
    Decoder("fast-rf0.5", "`fast`, r_f 0.5", "fast", "fast", {"r_f": 0.5}),
    Decoder("fast-eq6", "`fast`, stop without a gate", "fast", "fast", NO_GATE),
    Decoder(
        "fast-max", "`fast`, stop without a gate, by max", "fast", "fast",
        {**NO_GATE, "reduction": "max"},
    ),
)  # fmt: skip


def decoders_named(keys: list[str] | None) -> list[Decoder]:
    """Those decoders in the order above, all where `keys` is None."""
    return [decoder for decoder in DECODERS if keys is None or decoder.key in keys]
