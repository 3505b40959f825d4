"""Decoders that change beliefs, what is mixed, what is fed or when a sample ends, by their authors'
code: CreditDecoding, Prophet, ReMix, DPad."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.golden_decoders import Case, Record, cases, compare, parity, ways
from test_golden_templates import scaffold_of

from lrd import DecodingConfig
from lrd.engine import PaddingSide
from lrd.templates import Scaffold

DECODERS = ("credit", "prophet", "remix", "dpad")


def config_of(case: Case) -> DecodingConfig:
    """The original's call as settings."""
    call, own = case.settings, OWN[case.folder.name](case.settings)
    return parity(gen_length=call["gen_length"], block_length=call["block_length"], **own)


def credit(call: dict[str, Any]) -> dict[str, Any]:
    return {
        "confidence_threshold": call["threshold"],
        "credit_alpha": call["credit_alpha"],
        "credit_gamma": call["boost_gamma"],
        "credit_decay": call["decay_beta"],
        "eos_ends_block": call["early_stop"],
    }


def prophet(call: dict[str, Any]) -> dict[str, Any]:
    gaps = call["thresholds"] or {"early": 7.5, "mid": 5.0, "late": 2.5}
    return {
        "steps": call["steps"],
        "confidence": "probability",
        "stop_gap_early": gaps["early"],
        "stop_gap_middle": gaps["mid"],
        "stop_gap_late": gaps["late"],
        "stop_gap_start": call["answer_start"],
    }


def remix(call: dict[str, Any]) -> dict[str, Any]:
    return {
        "mix": "remix",
        "mix_share": call["beta_mix"],
        "reject_js": call["js_threshold"],
        "confidence_threshold": call["threshold"],
        "commit_share": 0.7,
        "commit_floor": 5,
        "commit_ceiling": 20,
    }


def dpad(call: dict[str, Any]) -> dict[str, Any]:
    return {
        "suffix": call["kept_distances"] or (),
        "confidence_threshold": call["threshold"],
        "eos_ends_block": call["early_termination"],
    }


OWN = {"credit": credit, "prophet": prophet, "remix": remix, "dpad": dpad}


def fixed_tokens(case: Case) -> Scaffold | None:
    """Prophet's constraints."""
    fixed, mask_id = case.settings.get("constraints"), case.model.mask_id
    if fixed is None:
        return None
    canvas = [fixed.get(str(at), mask_id) for at in range(case.settings["gen_length"])]
    return scaffold_of(canvas, mask_id)


def not_compared(record: Record) -> str | None:
    """Where this procedure differs on purpose."""
    if not record.entry.get("same_if_past_reset_at_block", True):
        return (
            "the original compares a block's first pass with the last pass of the block before; "
            "here a block's first pass has none before it"
        )
    if "kept_positions_per_block" in record.entry:
        return "the original draws a list of positions for each block; here the list is a setting"
    return None


@pytest.mark.parametrize(("case", "side"), [way for name in DECODERS for way in ways(name)])
def test_decodes_as_the_original(
    case: Case, side: PaddingSide, request: pytest.FixtureRequest
) -> None:
    scaffold = fixed_tokens(case)
    compare(case, config_of(case), side, request, listed=not_compared, scaffold=scaffold)


@pytest.mark.parametrize("decoder", DECODERS)
def test_with_fixed_shapes(decoder: str, request: pytest.FixtureRequest) -> None:
    """As on a GPU: the first case of each."""
    case = cases(decoder)[0]
    compare(case, config_of(case), "left", request, listed=not_compared, fixed_shapes=True)
