"""A replica without Ray: what it streams, what it hands back, and whose slots are whose."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.engine import PROMPTS, UNEVEN, cramped
from helpers.random_model import LIVELY, random_model

import lrd
from pipeline import faults
from pipeline.replicas import replica
from pipeline.replicas.pass_loop import Batch
from pipeline.replicas.replica import Replica, ReplicaSettings
from pipeline.rows import Finished, Heartbeat, Prompt, ReplicaEvent, Returned
from pipeline.storage import uris

SETTINGS = ReplicaSettings(
    model="random", revision=None, device="cpu", dtype="float32", decoding=UNEVEN, slots=5,
    threads=1,
)  # fmt: skip
BATCH = [Prompt(0, index, ids, bucket=9) for index, ids in enumerate(PROMPTS)]


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
    tables = [item.rows() for item in items if isinstance(item, Finished)]
    rows = [row for table in tables for row in table.to_pylist()]
    return sorted(rows, key=lambda row: str(row["row_id"]))


def test_every_row_is_its_own_prompts() -> None:
    rows = rows_of(list(started(slots=len(BATCH)).decode(0, BATCH)))
    alone = lrd.decode(random_model(**LIVELY), [prompt.token_ids for prompt in BATCH], UNEVEN)
    assert [row["row_id"] for row in rows] == [prompt.row_id for prompt in BATCH]
    assert [row["output_token_ids"] for row in rows] == [sample.canvas for sample in alone]
    assert [row["num_prompt_tokens"] for row in rows] == [len(p.token_ids) for p in BATCH]
    assert len({tuple(row["output_token_ids"]) for row in rows}) > 1
    assert len({row["num_forwards"] for row in rows}) < len(rows), "some end together"


def test_want_of_memory_is_a_notice_and_costs_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    roomy = list(started().decode(0, BATCH))
    assert not any(isinstance(item, ReplicaEvent) for item in roomy)
    tight = cramped(torch.OutOfMemoryError("no memory"))
    monkeypatch.setattr(replica, "load_model", lambda *_: tight)
    actor = started()
    items = list(actor.decode(0, BATCH))
    ours, theirs = rows_of(items), rows_of(roomy)
    assert [row["row_id"] for row in ours] == [prompt.row_id for prompt in BATCH]
    ids = "output_token_ids"
    assert [row[ids] for row in ours] == [row[ids] for row in theirs]
    notices = [item.text for item in items if isinstance(item, ReplicaEvent)]
    assert [text.partition(" positions")[0] for text in notices] == [
        "out of memory with 5 slots of 21"
    ]
    # What was learnt is not learnt again by the bucket's next engine.
    passes = actor._loop
    passes._orders.put(passes._engines.clear)
    assert not any(isinstance(item, ReplicaEvent) for item in actor.decode(1, BATCH))


def test_on_a_device_there_are_as_many_slots_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, float]] = []

    def probe(model: Any, config: Any, prompt_length: int, most: int, share: float) -> int:
        asked.append((most, share))
        return 2

    monkeypatch.setattr(replica, "probe_slots", probe)
    actor = started(device="cuda", memory_share=0.5)
    items = [*actor.decode(0, BATCH), *actor.decode(1, BATCH)]
    assert asked == [(5, 0.5)], "a bucket is probed once"
    assert actor._loop._engines[0][1].num_slots == 2
    notices = [item.text for item in items if isinstance(item, ReplicaEvent)]
    assert notices == ["memory for 2 of 5 slots in bucket 9"]
    assert len(rows_of(items)) == 2 * len(BATCH)


def test_a_drained_replica_finishes_its_slots_and_returns_the_rest() -> None:
    # Passes take so long that the order comes before the last row has its slot.
    rules = [{"at": "replica.pass", "do": "slow", "seconds": 0.05}]
    actor = started(slots=2, faults=json.dumps(rules))
    stream = actor.decode(0, BATCH)
    items = [next(stream)]
    actor.drain()
    items += list(stream)
    back = [
        BATCH[index].row_id
        for item in items
        if isinstance(item, Returned)
        for index in item.indices
    ]
    done = [row["row_id"] for row in rows_of(items)]
    assert back
    assert len(done) >= 2
    assert sorted(back + done) == [prompt.row_id for prompt in BATCH]
    assert not actor._loop._batches


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_slots_are_filled_in_the_order_in_which_batches_were_given(order: tuple[int, ...]) -> None:
    """Whatever their buckets, and in whatever order the calls come: of a replica that dies the
    driver takes the first rows that are not back for those in slots."""
    short = [Prompt(1, index, ids[:4], bucket=4) for index, ids in enumerate(PROMPTS)]
    again = [Prompt(2, index, ids, bucket=9) for index, ids in enumerate(PROMPTS)]
    actor = started(slots=3)
    batches = [
        actor._batch(number, prompts) for number, prompts in enumerate((BATCH, short, again))
    ]
    passes = actor._loop
    for number in order:
        passes._arrive(batches[number])
    shared = 0
    while passes._batches:
        passes._run_pass()
        in_slots = [
            request.key for _, engine in passes._engines for request in engine._slots.requests()
        ]
        waiting = [request.key for _, engine in passes._engines for request in engine._waiting]
        assert len(in_slots) <= 3
        assert sorted(in_slots) + waiting == sorted(in_slots + waiting)
        shared += len({number for number, _ in in_slots}) > 1
    assert shared, "a batch's tail leaves slots to the next"
    for batch in batches:
        *finished, end = drained(batch)
        assert end is None
        places = [sample.key[1] for samples in finished for sample in samples]
        assert sorted(places) == list(range(len(batch.requests)))


def drained(batch: Batch) -> list[Any]:
    return [batch.inbox.get_nowait() for _ in range(batch.inbox.qsize())]


def test_a_pulse_is_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "HEARTBEAT_SECONDS", 0.001)
    pulses = [item for item in started().decode(0, BATCH) if isinstance(item, Heartbeat)]
    assert pulses
    assert all(pulse.longest_pass > 0 for pulse in pulses)


def test_calls_share_one_pulse(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter((100.0, 100.5, 101.0, 101.9, 102.0))
    monkeypatch.setattr(replica, "time", SimpleNamespace(monotonic=lambda: next(moments)))
    actor = started()
    assert [actor._heartbeat_wanted() for _ in range(5)] == [True, False, True, False, True]


def test_faults_reach_the_replica(capsys: pytest.CaptureFixture[str]) -> None:
    rules = [{"at": "replica.pass", "do": "raise", "times": 1}]
    actor = started(faults=json.dumps(rules))
    with pytest.raises(OSError, match="asked for"):
        list(actor.decode(0, BATCH))
    start = [{"at": "replica.start", "match": "it on *", "do": "raise", "error": "EACCES"}]
    with pytest.raises(PermissionError):
        started(faults=json.dumps(start))


def test_the_drivers_servers_are_a_replicas_where_its_node_names_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    servers = {"AWS_ENDPOINT_URL": "http://minio:9000", "AWS_REGION": "us-east-1"}
    started(servers=servers)
    assert uris.servers() == {"AWS_ENDPOINT_URL": "http://minio:9000", "AWS_REGION": "eu-west-1"}
