"""WINO, Saber and RCR against what their authors' own code computed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from helpers.golden_decoders import Case, cases, compare, decode_all, parity, ways

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
ROUGH = [
    one for one in CASES if one[1].name.endswith(("tiny.b16", "llada_a.b16", "llada_a.b16_s8"))
]
"""In blocks; on the random checkpoint dozens of positions are opened again."""
TIED = {
    "tiny.b64_s16_entropy.p30": "commit steps of some EOS: their entropies differ by less than "
    "float32 can tell, and the earlier one is opened here",
}
assert CASES


def config_of(decoder: str, case: Case) -> DecodingConfig:
    given = case.settings
    return parity(
        gen_length=given["gen_length"],
        block_length=given["block_length"],
        **OURS[decoder](given),
    )


@pytest.mark.parametrize(("case", "side"), [way for decoder in OURS for way in ways(decoder)])
def test_records_are_repeated(
    case: Case, side: PaddingSide, request: pytest.FixtureRequest
) -> None:
    config = config_of(case.folder.name, case)
    compare(case, config, side, request, listed=lambda record: TIED.get(record.name))
    tied = tuple(record for record in case.records if record.name in TIED)
    if tied:
        compare(replace(case, records=tied), config, side, request, compare_steps=False)


@pytest.mark.parametrize(("decoder", "case"), ROUGH, ids=lambda one: str(one))
def test_as_many_positions_are_opened_again_with_shapes_of_a_gpu(
    decoder: str, case: Case, request: pytest.FixtureRequest
) -> None:
    """Rows of all slots together, positions that are committed or not."""
    config = config_of(decoder, case)
    compare(case, config, "right", request, fixed_shapes=True)
    samples = decode_all(case, config, "left", list(case.records))
    found = {name: sample.num_uncommits for name, sample in samples.items()}
    assert found == {record.name: record.entry["uncommits"] for record in case.records}
