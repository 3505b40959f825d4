"""Decoders that only name commits, by their authors' code: KLASS, SlowFast, EOSER and ASS."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from helpers.golden_decoders import Case, Record, compare, parity, ways

from lrd.engine import PaddingSide

PAST = "its first pass of a block is compared with the last of the block before; here none is"
GIVES_UP = "the original leaves [MASK] where a block's steps are spent; here it goes on"
UNEQUAL = "ASS in blocks of unequal lengths, which no setting describes"


@pytest.mark.parametrize(("case", "side"), ways("klass"))
def test_klass(case: Case, side: PaddingSide, request: pytest.FixtureRequest) -> None:
    given = case.settings
    config = parity(
        gen_length=given["gen_length"],
        block_length=given["block_length"],
        confidence_threshold=given["conf_threshold"],
        stable_kl=given["kl_threshold"],
        stable_passes=given["kl_history_length"],
        steps=given["steps"],
    )

    def listed(record: Record) -> str | None:
        if record.entry.get("masks_left"):
            return GIVES_UP
        return None if record.entry.get("same_if_past_reset_at_block", True) else PAST

    compare(case, config, side, request, listed=listed, fixed_shapes=side == "right")


@pytest.mark.parametrize(("case", "side"), ways("eoser_ass"))
def test_eoser_and_ass(case: Case, side: PaddingSide, request: pytest.FixtureRequest) -> None:
    given = case.settings
    settings = {"gen_length": given["gen_length"], "confidence": "probability"}
    if "block_length" in given:
        settings |= {"block_length": given["block_length"], "steps": given["steps"]}
    else:
        settings |= {"schedule": "doubling"}
    if "eos_min_gamma" in given:
        settings |= {"eos_confidence_start": given["eos_min_gamma"]}
    several = given.get("block_num", 1) > 1
    compare(
        case,
        parity(**settings),
        side,
        request,
        listed=lambda record: UNEQUAL if several else None,
        fixed_shapes=side == "right",
    )


@dataclass(frozen=True)
class WithoutIdle(Record):
    """A record as it is without the passes that found nothing open: those that no commit names."""

    @property
    def _passes(self) -> list[int]:
        return sorted(set(self.ids("commit_step")) - {0})

    @property
    def num_forwards(self) -> int:
        return len(self._passes)

    @property
    def stable_steps(self) -> list[tuple[int, int]]:
        return [(at, self._passes.index(step) + 1) for at, step in super().stable_steps]


@pytest.mark.parametrize(("case", "side"), ways("slowfast"))
def test_slow_fast(case: Case, side: PaddingSide, request: pytest.FixtureRequest) -> None:
    given = case.settings
    config = parity(
        gen_length=given["gen_length"],
        block_length=given["block_length"],
        confidence_threshold=given["high_confidence_threshold"],
        span_confidence=given["cycle_len_confidence_threshold"],
        span_explore=given["k_exploration_steps"],
        span_window=given["cycle_length_stability_window"],
        span_std=given["cycle_length_stability_std_dev_threshold"],
    )
    records = tuple(WithoutIdle(one.folder, one.entry) for one in case.records)
    compare(replace(case, records=records), config, side, request, fixed_shapes=side == "right")
