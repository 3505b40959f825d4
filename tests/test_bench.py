"""The benchmark runs, and what it compares with decodes as the real thing does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.engine import PROMPTS
from helpers.random_model import LIVELY, random_model

import lrd
from jobs.bench.plain_loop import check, decode_plain
from jobs.bench.rows_per_second import decisions

LRD = {"gen_length": 12, "r_f": 0.3, "tau_refine": 0.05, "max_refine_steps": 4}
SETTINGS: dict[str, dict[str, Any]] = {
    "one a pass": LRD,
    "baseline": {"gen_length": 12, "r_f": 0.0, "max_refine_steps": 0},
    "sure ones": {**LRD, "entropy_threshold": 0.9},
    "stop": {**LRD, "early_stop": True, "tau_decode": 0.3, "entropy_threshold": 0.5},
    "gated": {**LRD, "early_stop": True, "tau_decode": 0.3, "stop_max_entropy": 2.0},
    "stop: sum": {**LRD, "early_stop": True, "tau_decode": 2.0, "reduction": "sum"},
    "stop: max": {**LRD, "early_stop": True, "tau_decode": 0.3, "reduction": "max"},
    "stop: open": {**LRD, "early_stop": True, "tau_decode": 0.3, "scope": "open"},
    "blocks": {**LRD, "block_length": 4, "tokens_per_step": 2},
    "blocks, stop": {**LRD, "block_length": 4, "early_stop": True, "tau_decode": 0.3},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_plain_loop_decides_as_the_engine_does(setting: str) -> None:
    config = lrd.DecodingConfig(**SETTINGS[setting])
    check(config)
    model = random_model(**LIVELY)
    plain = [decode_plain(model, prompt, config) for prompt in PROMPTS]
    samples = lrd.decode(model, PROMPTS, config, batch_size=3)
    assert [decisions(sample) for sample in samples] == [decisions(sample) for sample in plain]


def test_the_plain_loop_refuses_what_it_does_not_do() -> None:
    for settings in ({"confidence_threshold": 0.5}, {"refinement": "auto"}, {"temperature": 1.0}):
        with pytest.raises(ValueError, match="plain loop"):
            check(lrd.DecodingConfig(**settings))  # type: ignore[arg-type]


def test_the_benchmark_ends_in_one_json_object() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "jobs.bench.decode", "--quick", "--threads", "1", "--prompts", "6"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(process.stdout.splitlines()[-1])
    assert found["rows_per_second"].keys() == {"plain", "static_wait", "static_drop", "slots"}
    assert min(found["rows_per_second"].values()) > 0
    assert found["identical"] == found["rows"] > 0
    assert 0 < found["occupancy"] <= 1
    assert 0 <= found["padding_share"] < 1
    assert found["forwards_per_row"] >= 1
    assert found["lrd_over_baseline"]["752"] > 0
    assert sum(found["shares"].values()) == pytest.approx(1, abs=0.01)
    # What is kept of the pass before alone: 2 slots x 64 positions x 20480 columns in float16.
    assert found["belief_peak_bytes"] > 2 * 64 * 20_480 * 2
