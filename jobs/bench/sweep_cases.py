"""What `jobs.bench.caches` measures: tasks, and settings of the decoding with what each is held
against.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.tiny.accuracy import distinct, distinct_sheets
from jobs.tiny.worksheets import MAX_PROBLEMS
from lrd import DecodingConfig

BLOCKS = (16, 32, 64)
REFRESHES = (0, 4)
PATTERN = 1
"""`suffix` of the pattern: the next block whole, and of each later one its last position."""
BASE: dict[str, Any] = {"name": "fast"}
"""Every cache setting's other settings."""
CACHES, PRESETS, REFINEMENT, MONITOR, DTYPES = GROUPS = (
    *("caches", "presets", "refinement", "monitor", "dtypes"),
)
"""The tables, each with its settings."""


@dataclass(frozen=True, slots=True)
class Task:
    """Prompts with one or more problems each, and a canvas."""

    key: str
    name: str
    gen_length: int
    sizes: tuple[int, ...]
    """Problems a prompt; several are mixed."""

    def asked(self, count: int, seed: int) -> list[tuple[str, str]]:
        """Questions, and the answers of their problems with a space between."""
        if self.sizes == (1,):
            return [(one.question, str(one.answer)) for one in distinct(count, seed)]
        found = distinct_sheets(count, seed, self.sizes)
        return [(sheet.question, " ".join(map(str, sheet.answers))) for sheet in found]


TASKS = {
    task.key: task
    for task in (
        Task("singles-64", "single problems, canvas 64", 64, (1,)),
        Task("singles-128", "single problems, canvas 128", 128, (1,)),
        Task("sheets-256", "worksheets, canvas 256", 256, tuple(range(1, MAX_PROBLEMS + 1))),
    )
}


@dataclass(frozen=True, slots=True)
class Case:
    """One setting of the decoding."""

    group: str
    """The table that it stands in."""
    key: str
    labels: tuple[str, ...]
    """Its first cells in the table."""
    against: str
    """Key of the case that it is compared with; its own for those."""
    settings: dict[str, Any] = field(hash=False)
    dtype: str | None = None
    """The dtype it is measured in; None: the command's."""

    def config(self, gen_length: int) -> DecodingConfig:
        """The whole setting."""
        return DecodingConfig.preset(**self.settings, gen_length=gen_length)


def cases(
    gen_length: int, blocks: Sequence[int] = BLOCKS, groups: Sequence[str] = (CACHES, PRESETS)
) -> list[Case]:
    """The cases of a canvas in these tables, in the tables' order."""
    found = {
        CACHES: cache_cases(gen_length, blocks),
        PRESETS: preset_cases(gen_length),
        REFINEMENT: refinement_cases(gen_length, blocks),
        MONITOR: monitor_cases(gen_length, blocks),
        DTYPES: dtype_cases(gen_length, blocks),
    }
    return [case for group in GROUPS if group in groups for case in found[group]]


def cache_cases(gen_length: int, blocks: Sequence[int] = BLOCKS) -> list[Case]:
    """kv_cache × block × refresh × suffix, without those that equal another: a lone block has no
    difference between prefix and dual, and a pattern needs a block behind the next one."""
    found = []
    for block in (block for block in blocks if gen_length % block == 0):
        num_blocks = gen_length // block
        against = f"none-b{block}"
        for kv_cache in ("none", "prefix", "dual") if num_blocks > 1 else ("none", "dual"):
            for refresh in REFRESHES if kv_cache != "none" else (0,):
                for suffix in ("all", PATTERN) if num_blocks > 1 + PATTERN else ("all",):
                    key = f"{kv_cache}-b{block}"
                    key += f"-r{refresh}" if refresh else ""
                    key += "" if suffix == "all" else f"-s{suffix}"
                    cache = {"kv_cache": kv_cache, "cache_refresh": refresh, "suffix": suffix}
                    shown = "all" if suffix == "all" else "pattern"
                    found.append(
                        Case(
                            CACHES,
                            key,
                            (kv_cache, str(block), str(refresh) if refresh else "-", shown),
                            against,
                            {**BASE, "block_length": block, **cache},
                        )
                    )
    return found


GATED = {"early_stop": True, "stop_max_entropy": 0.2}
PLAIN = {"name": "baseline"}
SOFT = {"name": "fast", "max_refine_steps": 0, "early_stop": False}
RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "fast": ("`fast`: H < 0.2, r_f 0.15, refinement, gated stop", {"name": "fast"}),
    "fast-no-stop": ("… without the stop", {"name": "fast", "early_stop": False}),
    "fast-no-refine": ("… without refinement", {"name": "fast", "max_refine_steps": 0}),
    "soft": ("H < 0.2, r_f 0.15", {**SOFT}),
    "plain-gated": ("H < 0.2, r_f 0, gated stop", {**PLAIN, "entropy_threshold": 0.2, **GATED}),
    "plain": ("H < 0.2, r_f 0", {**PLAIN, "entropy_threshold": 0.2}),
    "p0.9": ("p ≥ 0.9, r_f 0: Fast-dLLM's rule", {**PLAIN, "confidence_threshold": 0.9}),
    "p0.9-soft": ("p ≥ 0.9, r_f 0.15", {**SOFT, "confidence_threshold": 0.9}),
    "p0.9-soft-gated": (
        "p ≥ 0.9, r_f 0.15, gated stop",
        {**SOFT, **GATED, "confidence_threshold": 0.9},
    ),
}
"""Key → name and settings. H: entropy, nats; p: probability; the stop is `fast`'s."""


def preset_cases(gen_length: int) -> list[Case]:
    """Candidates for the presets, on the whole canvas and in blocks of 32, each held against
    today's `fast` of the same form."""
    forms = {"32": 32, "whole": gen_length}
    return [
        Case(
            PRESETS,
            f"{key}-{form}",
            (name, form),
            f"fast-{form}",
            {**settings, "block_length": block},
        )
        for form, block in forms.items()
        for key, (name, settings) in RULES.items()
    ]


WHEN: dict[str, dict[str, Any]] = {
    "initial": {"refinement": "initial"},
    "first": {"refinement": "first"},
    "none": {"max_refine_steps": 0},
}


def refinement_cases(gen_length: int, blocks: Sequence[int] = BLOCKS) -> list[Case]:
    """When `fast` refines: in every block, in the first alone or not at all; without a cache, with
    a dual one, and with the suffix pattern too."""
    found = []
    for block in (block for block in blocks if gen_length % block == 0 and block < gen_length):
        forms: dict[str, dict[str, Any]] = {"none": {}, "dual": {"kv_cache": "dual"}}
        if gen_length // block > 1 + PATTERN:
            forms["dual, pattern"] = {"kv_cache": "dual", "suffix": PATTERN}
        for form, cache in forms.items():
            for when, settings in WHEN.items():
                found.append(
                    Case(
                        REFINEMENT,
                        f"refine-{when}-b{block}-{form}",
                        (when, str(block), form),
                        f"refine-initial-b{block}-{form}",
                        {**BASE, "block_length": block, **cache, **settings},
                    )
                )
    return found


GATE = 0.2
"""Of `fast`, nats."""
MONITORED: dict[str, dict[str, Any]] = {
    "`paper`, τ 0.1": {"name": "paper"},
    "`paper`, τ 0.01": {"name": "paper", "tau_decode": 0.01},
    "`paper`, τ 0.001": {"name": "paper", "tau_decode": 0.001},
    f"`paper`, τ 0.1, gate {GATE}": {"name": "paper", "stop_max_entropy": GATE},
    "`fast`": {"name": "fast"},
}
LONG = 128
"""Canvases above it are decoded with the cache of `blocks`: one position a pass and without it, a
setting takes an hour of computing."""


def monitor_cases(gen_length: int, blocks: Sequence[int] = BLOCKS) -> list[Case]:
    """Eq. 6 against the difference of two D_t, early stop on; τ is tau_decode."""
    found = []
    for block in (block for block in blocks if gen_length % block == 0):
        cache = {"kv_cache": "dual", "suffix": PATTERN} if gen_length > LONG else {}
        for name, settings in MONITORED.items():
            for monitor in ("kl", "change"):
                found.append(
                    Case(
                        MONITOR,
                        f"{name}-{monitor}-b{block}",
                        (name, str(block), monitor),
                        f"{name}-kl-b{block}",
                        {**settings, "block_length": block, **cache, "monitor": monitor},
                    )
                )
    return found


MEASURED_DTYPES = ("bfloat16", "float32", "fp8", "int8_w8a8")


def dtype_cases(gen_length: int, blocks: Sequence[int] = BLOCKS) -> list[Case]:
    """`fast` in each dtype, against bfloat16."""
    return [
        Case(
            DTYPES,
            f"{dtype}-b{block}",
            (dtype, str(block)),
            f"bfloat16-b{block}",
            {**BASE, "block_length": block},
            dtype,
        )
        for block in blocks
        if gen_length % block == 0
        for dtype in MEASURED_DTYPES
    ]
