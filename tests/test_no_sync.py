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
from lrd.decoding import step

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
    model = random_model(**{**LIVELY, "logit_shift": logit_shift})
    engine = lrd.Engine(model, config, 3, 9, fixed_shapes=True)
    for index, length in enumerate((9, 4, 7, 1)):
        engine.submit(lrd.Request(index, [3] * length, index))
    samples = []
    while engine.busy:
        samples += engine.step()
    assert len(samples) == 4


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
