"""WINO, Saber and RCR against what their authors' own code computed."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.golden_decoders import SIDES, Case, Record, cases, compare, decode_all, parity

from lrd import DecodingConfig
from lrd.engine import PaddingSide


def wino(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "confidence_threshold": settings["threshold"],
        "commit_share": 0.7,
        "commit_floor": 5,
        "commit_ceiling": 20,
        "reopen": "shadow",
        "reopen_threshold": settings["threshold_back"],
    }


def saber(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "threshold_from_committed": True,
        "min_commits": settings["n"],
        "reopen": "drop",
    }


MEASURES = {"low_confidence": "probability", "entropy": "entropy", "topk_margin": "margin"}


def rcr(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "steps": settings["steps"],
        "schedule": settings["mode"],
        "confidence": MEASURES[settings["conf_alg"]],
        "reopen": "lowest",
    }


OURS = {"wino": wino, "saber": saber, "rcr": rcr}
CASES = [(decoder, case) for decoder in OURS for case in cases(decoder)]
assert CASES


def config_of(decoder: str, case: Case) -> DecodingConfig:
    given = case.settings
    return parity(
        gen_length=given["gen_length"],
        block_length=given["block_length"],
        **OURS[decoder](given),
    )


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("decoder", "case"), CASES, ids=lambda one: str(one))
def test_records_are_repeated(
    decoder: str, case: Case, side: PaddingSide, request: pytest.FixtureRequest
) -> None:
    compare(case, config_of(decoder, case), side, request)
