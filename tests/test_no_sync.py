"""With fixed shapes a pass reads no tensor on the host: on a GPU that would wait for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.few import spread
from helpers.host_reads import NoReads
from helpers.random_model import LIVELY, random_model

import lrd
from lrd import slots
from lrd.config import DECODERS
from lrd.decoding import step
from lrd.models.checkpoint import LoadedModel

CACHES: dict[str, dict[str, Any]] = {
    "none": {},
    "prefix": {"kv_cache": "prefix"},
    "dual": {"kv_cache": "dual"},
    "dual, refreshed": {"kv_cache": "dual", "cache_refresh": 2},
    "dual, short suffix": {"kv_cache": "dual", "suffix": 0},
    "short suffix": {"suffix": 0},
}
PROCEDURES: dict[str, dict[str, Any]] = {
    "fast": {},
    "auto": {"refinement": "auto"},
    "first": {"refinement": "first"},
    "change": {"monitor": "change"},
    "steps": {"steps": 8},
    "drawn": {"temperature": 0.7, "sample_top_p": 0.9},
    "probability": {"confidence_threshold": 0.9},
}


REOPENING: dict[str, dict[str, Any]] = {
    "wino, stop": {"confidence_threshold": 0.5, "reopen": "shadow"},
    "saber, block": {
        "threshold_from_committed": True, "reopen": "drop",
        "reopen_scope": "block", "kv_cache": "dual",
    },
    "rcr, block": {
        "steps": 8, "schedule": "linear", "reopen": "lowest",
        "reopen_scope": "block", "kv_cache": "prefix",
    },
}  # fmt: skip


@pytest.fixture
def watched_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def watched(*args: Any) -> None:
        with NoReads():
            step(*args)

    monkeypatch.setattr(slots, "step", watched)


@pytest.mark.usefixtures("watched_step")
@pytest.mark.parametrize(
    ("procedure", "cache", "logit_shift"), spread(PROCEDURES, CACHES, [False, True])
)
def test_a_pass_of_fixed_shapes_reads_nothing(
    procedure: str, cache: str, logit_shift: bool
) -> None:
    config = lrd.DecodingConfig.preset(
        "fast", gen_length=16, block_length=4, **PROCEDURES[procedure], **CACHES[cache]
    )
    decode(random_model(**{**LIVELY, "logit_shift": logit_shift}), config)


@pytest.mark.usefixtures("watched_step")
@pytest.mark.parametrize("name", REOPENING)
def test_to_open_positions_again_reads_nothing(name: str) -> None:
    config = lrd.DecodingConfig.preset("fast", gen_length=16, block_length=4, **REOPENING[name])
    decode(random_model(**{**LIVELY, "logit_shift": False}), config)


def decode(model: LoadedModel, config: lrd.DecodingConfig) -> None:
    """Four prompts in three slots, as on a GPU."""
    engine = lrd.Engine(model, config, 3, 9, fixed_shapes=True)
    for index, length in enumerate((9, 4, 7, 1)):
        engine.submit(lrd.Request(index, [3] * length, index))
    samples = []
    while engine.busy:
        samples += engine.step()
    assert len(samples) == 4


@pytest.mark.usefixtures("watched_step")
@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("name", DECODERS)
def test_a_pass_of_a_decoder_reads_nothing(name: str, refined: bool) -> None:
    soft = {"r_f": 0.15, "max_refine_steps": 2} if refined else {}
    config = lrd.DecodingConfig.preset(name, gen_length=16, block_length=4, **soft)
    decode(random_model(**{**LIVELY, "logit_shift": False}), config)


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.tolist(),
        lambda x: bool(x[0]),
        lambda x: int(x[0]),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: list(range(x[0])),
    ],
)
def test_a_read_is_noticed(read: Callable[[torch.Tensor], Any]) -> None:
    with pytest.raises(AssertionError), NoReads():
        read(torch.tensor([1, 2]))
