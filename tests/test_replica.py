"""A replica without Ray: what it streams where memory is short."""

from __future__ import annotations

import pytest
import torch
from random_model import LIVELY, random_model
from test_engine import PROMPTS, UNEVEN, Cramped

from pipeline import replica
from pipeline.replica import Replica, ReplicaSettings
from pipeline.rows import Notice, Prompt, Result

SETTINGS = ReplicaSettings(
    model="random", revision=None, device="cpu", dtype="float32", decoding=UNEVEN, slots=5,
    threads=1,
)  # fmt: skip
UNIT = [Prompt(0, index, ids, bucket=9) for index, ids in enumerate(PROMPTS)]


def stream(name: str) -> tuple[list[Result], list[Notice], Replica]:
    actor = Replica(name, SETTINGS)
    results, notices = [], []
    for item in actor.decode(UNIT):
        if isinstance(item, Notice):
            notices.append(item)
        else:
            results += item
    return sorted(results, key=lambda result: result.row_id), notices, actor


def test_want_of_memory_is_a_notice_and_costs_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "load_model", lambda *_: random_model(**LIVELY))
    expected, notices, _ = stream("roomy")
    assert not notices
    cramped = random_model(**LIVELY)
    cramped.__class__ = Cramped
    cramped.error = torch.OutOfMemoryError("no memory")  # type: ignore[attr-defined]
    monkeypatch.setattr(replica, "load_model", lambda *_: cramped)
    results, notices, actor = stream("cramped")
    assert [r.row_id for r in results] == [prompt.row_id for prompt in UNIT]
    assert [r.output_token_ids for r in results] == [r.output_token_ids for r in expected]
    assert [n.text.partition(" positions")[0] for n in notices] == [
        "out of memory with 5 slots of 21"
    ]
    # What was learnt is not learnt again by the bucket's next engine.
    actor._engines.clear()
    assert not any(isinstance(item, Notice) for item in actor.decode(UNIT))
