"""Decoders that change beliefs, what is mixed, what is fed or when a sample ends, by their authors'
code: CreditDecoding, Prophet, ReMix, DPad."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.golden_decoders import SIDES, Case, Record, cases, compare, parity
from test_golden_templates import scaffold_of

from lrd.engine import PaddingSide


def lengths(case: Case) -> dict[str, Any]:
    return {name: case.settings[name] for name in ("gen_length", "block_length")}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("case", cases("credit"), ids=str)
def test_credit(case: Case, side: PaddingSide, request: pytest.FixtureRequest) -> None:
    call = case.settings
    config = parity(
        **lengths(case),
        confidence_threshold=call["threshold"],
        credit_alpha=call["credit_alpha"],
        credit_gamma=call["boost_gamma"],
        credit_decay=call["decay_beta"],
        eos_ends_block=call["early_stop"],
    )
    compare(case, config, side, request)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("case", cases("prophet"), ids=str)
def test_prophet(case: Case, side: PaddingSide, request: pytest.FixtureRequest) -> None:
    call = case.settings
    gaps = call["thresholds"] or {"early": 7.5, "mid": 5.0, "late": 2.5}
    config = parity(
        **lengths(case),
        steps=call["steps"],
        confidence="probability",
        stop_gap_early=gaps["early"],
        stop_gap_middle=gaps["mid"],
        stop_gap_late=gaps["late"],
        stop_gap_start=call["answer_start"],
    )
    mask_id, fixed = case.model.mask_id, call["constraints"]
    scaffold = None
    if fixed is not None:
        canvas = [fixed.get(str(at), mask_id) for at in range(call["gen_length"])]
        scaffold = scaffold_of(canvas, mask_id)
    compare(case, config, side, request, scaffold=scaffold)


def needs_history(record: Record) -> str | None:
    if record.entry.get("same_if_past_reset_at_block", True):
        return None
    return (
        "the original compares a block's first pass with the last pass of the block before; "
        "here a block's first pass has none before it"
    )


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("case", cases("remix"), ids=str)
def test_remix(case: Case, side: PaddingSide, request: pytest.FixtureRequest) -> None:
    call = case.settings
    config = parity(
        **lengths(case),
        mix="remix",
        mix_share=call["beta_mix"],
        reject_js=call["js_threshold"],
        confidence_threshold=call["threshold"],
        commit_share=0.7,
        commit_floor=5,
        commit_ceiling=20,
    )
    compare(case, config, side, request, listed=needs_history)


def drawn_list(record: Record) -> str | None:
    if "kept_positions_per_block" not in record.entry:
        return None
    return "the original draws another list of positions for each block; here the list is a setting"


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("case", cases("dpad"), ids=str)
def test_dpad(case: Case, side: PaddingSide, request: pytest.FixtureRequest) -> None:
    call = case.settings
    config = parity(
        **lengths(case),
        suffix=call["kept_distances"] or (),
        confidence_threshold=call["threshold"],
        eos_ends_block=call["early_termination"],
    )
    compare(case, config, side, request, listed=drawn_list)
