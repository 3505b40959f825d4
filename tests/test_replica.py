"""A replica without Ray: what it streams, what it hands back, and whose slots are whose."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
import torch
from random_model import LIVELY, random_model
from test_engine import PROMPTS, UNEVEN, Cramped

from pipeline import faults, replica
from pipeline.replica import Replica, ReplicaSettings
from pipeline.rows import HandedBack, Notice, Prompt, Pulse

SETTINGS = ReplicaSettings(
    model="random", revision=None, device="cpu", dtype="float32", decoding=UNEVEN, slots=5,
    threads=1,
)  # fmt: skip
UNIT = [Prompt(0, index, ids, bucket=9) for index, ids in enumerate(PROMPTS)]


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(replica, "load_model", lambda *_: random_model(**LIVELY))
    yield
    faults.load(None)


def started(**settings: Any) -> Replica:
    actor = Replica("it", replace(SETTINGS, **settings))
    actor.load()
    return actor


def rows_of(items: list[Any]) -> list[dict[str, Any]]:
    rows = [row for item in items if isinstance(item, pa.Table) for row in item.to_pylist()]
    return sorted(rows, key=lambda row: str(row["row_id"]))


def test_want_of_memory_is_a_notice_and_costs_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    roomy = list(started().decode(UNIT))
    assert not any(isinstance(item, Notice) for item in roomy)
    cramped = random_model(**LIVELY)
    cramped.__class__ = Cramped
    cramped.error = torch.OutOfMemoryError("no memory")  # type: ignore[attr-defined]
    monkeypatch.setattr(replica, "load_model", lambda *_: cramped)
    actor = started()
    items = list(actor.decode(UNIT))
    ours, theirs = rows_of(items), rows_of(roomy)
    assert [row["row_id"] for row in ours] == [prompt.row_id for prompt in UNIT]
    ids = "output_token_ids"
    assert [row[ids] for row in ours] == [row[ids] for row in theirs]
    notices = [item.text for item in items if isinstance(item, Notice)]
    assert [text.partition(" positions")[0] for text in notices] == [
        "out of memory with 5 slots of 21"
    ]
    # What was learnt is not learnt again by the bucket's next engine.
    actor._orders.put(actor._engines.clear)
    assert not any(isinstance(item, Notice) for item in actor.decode(UNIT))


def test_on_a_device_there_are_as_many_slots_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, float]] = []

    def probe(model: Any, config: Any, prompt_length: int, most: int, share: float) -> int:
        asked.append((most, share))
        return 2

    monkeypatch.setattr(replica, "probe_slots", probe)
    actor = started(device="cuda", memory_share=0.5)
    items = [*actor.decode(UNIT), *actor.decode(UNIT)]
    assert asked == [(5, 0.5)], "a bucket is probed once"
    assert actor._engines[9].num_slots == 2
    notices = [item.text for item in items if isinstance(item, Notice)]
    assert notices == ["memory for 2 of 5 slots in bucket 9"]
    assert len(rows_of(items)) == 2 * len(UNIT)


def test_a_drained_replica_finishes_its_slots_and_hands_back_the_rest() -> None:
    # Passes take so long that the order comes before the last row has its slot.
    rules = [{"at": "replica.pass", "do": "slow", "seconds": 0.05}]
    actor = started(slots=2, faults=json.dumps(rules))
    stream = actor.decode(UNIT)
    items = [next(stream)]
    actor.drain()
    items += list(stream)
    back = [row_id for item in items if isinstance(item, HandedBack) for row_id in item.row_ids]
    done = [row["row_id"] for row in rows_of(items)]
    assert back
    assert len(done) >= 2
    assert sorted(back + done) == [prompt.row_id for prompt in UNIT]
    assert not actor._units


def test_two_buckets_share_the_slots_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    actor = started(slots=3)
    short = [Prompt(1, index, ids[:4], bucket=4) for index, ids in enumerate(PROMPTS)]
    passes: list[tuple[int, int, int]] = []
    run_pass = actor._run_pass

    def watched() -> None:
        run_pass()
        engines = actor._engines
        if len(engines) == 2:
            passes.append((engines[9].num_busy, engines[9].num_waiting, engines[4].num_busy))

    monkeypatch.setattr(actor, "_run_pass", watched)
    streams = [actor.decode(UNIT), actor.decode(short)]
    done: list[pa.Table] = []
    while streams:
        for stream in list(streams):
            item = next(stream, None)
            if item is None:
                streams.remove(stream)
            elif isinstance(item, pa.Table):
                done.append(item)
    row_ids = [row_id for table in done for row_id in table["row_id"].to_pylist()]
    assert sorted(row_ids) == sorted(prompt.row_id for prompt in [*UNIT, *short])
    assert any(first and second for first, _, second in passes), "the tail must be filled"
    # A replica that dies loses what is in its slots, and those were given first.
    assert all(first + second <= 3 for first, _, second in passes)
    assert all(not (waiting and second) for _, waiting, second in passes)


def test_a_pulse_is_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "PULSE_SECONDS", 0.0)
    pulses = [item for item in started().decode(UNIT) if isinstance(item, Pulse)]
    assert pulses
    assert all(pulse.longest_pass > 0 for pulse in pulses)


def test_faults_reach_the_replica(capsys: pytest.CaptureFixture[str]) -> None:
    rules = [{"at": "replica.pass", "do": "raise", "times": 1}]
    actor = started(faults=json.dumps(rules))
    with pytest.raises(OSError, match="asked for"):
        list(actor.decode(UNIT))
    start = [{"at": "replica.start", "match": "it on *", "do": "raise", "error": "EACCES"}]
    with pytest.raises(PermissionError):
        started(faults=json.dumps(start))
