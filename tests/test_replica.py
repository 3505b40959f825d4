"""A replica without Ray: what it streams, what it returns, and how slots are divided."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.engine import PROMPTS, UNEVEN, cramped
from helpers.random_model import LIVELY, random_model

import lrd
from pipeline import faults
from pipeline.replicas import replica
from pipeline.replicas.replica import Replica, ReplicaSettings
from pipeline.rows import Bucket, Prompt, Report
from pipeline.storage import uris

pytestmark = pytest.mark.usefixtures("no_pass_goes_on")

SETTINGS = ReplicaSettings(
    model="random", revision=None, device="cpu", dtype="float32", decoding=UNEVEN, slots=5,
    threads=1,
)  # fmt: skip
LONG, SHORT = (Bucket(length, UNEVEN.gen_length) for length in (9, 4))
BATCH = [Prompt(0, index, ids, bucket=LONG) for index, ids in enumerate(PROMPTS)]


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(replica, "load_model", lambda *_: random_model(**LIVELY))
    yield
    faults.load(None)


def started(threaded: bool = True, **settings: Any) -> Replica:
    actor = Replica("it", replace(SETTINGS, **settings), threaded)
    actor.load()
    return actor


def decode(actor: Replica, number: int, prompts: list[Prompt]) -> Iterator[Report]:
    """The reports of one batch, to its end."""
    actor.submit(number, prompts)
    left = len(prompts)
    while left:
        report = actor.collect()
        left -= len(report.finished) + len(report.returned)
        yield report


def all_in_one(actor: Replica, *more: Exception) -> Report:
    """The first report of a batch that has ended; more: what came in behind its rows."""
    actor.submit(0, BATCH)
    items: list[Any] = []
    while sum(isinstance(item, lrd.Sample) for item in items) < len(BATCH):
        items += actor.take(actor._outbox)
    for item in [*items, *more]:
        actor.put(item)
    return actor.collect()


def events_of(reports: list[Report]) -> list[str]:
    return [text for report in reports for text in report.events]


def rows_of(reports: list[Report]) -> list[dict[str, Any]]:
    tables = [report.rows() for report in reports if report.finished]
    rows = [row for table in tables for row in table.to_pylist()]
    return sorted(rows, key=lambda row: str(row["row_id"]))


def test_every_row_is_its_own_prompts() -> None:
    rows = rows_of(list(decode(started(slots=len(BATCH)), 0, BATCH)))
    alone = lrd.decode(random_model(**LIVELY), [prompt.token_ids for prompt in BATCH], UNEVEN)
    assert [row["row_id"] for row in rows] == [prompt.row_id for prompt in BATCH]
    assert [row["output_token_ids"] for row in rows] == [sample.canvas for sample in alone]
    assert [row["num_prompt_tokens"] for row in rows] == [len(p.token_ids) for p in BATCH]
    assert len({tuple(row["output_token_ids"]) for row in rows}) > 1
    assert len({row["num_forwards"] for row in rows}) < len(rows), "some end together"


def test_want_of_memory_is_a_notice_and_costs_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    roomy = list(decode(started(), 0, BATCH))
    assert not events_of(roomy)
    tight = cramped(torch.OutOfMemoryError("no memory"))
    monkeypatch.setattr(replica, "load_model", lambda *_: tight)
    actor = started()
    items = list(decode(actor, 0, BATCH))
    ours, theirs = rows_of(items), rows_of(roomy)
    assert [row["row_id"] for row in ours] == [prompt.row_id for prompt in BATCH]
    ids = "output_token_ids"
    assert [row[ids] for row in ours] == [row[ids] for row in theirs]
    notices = events_of(items)
    assert [text.partition(" positions")[0] for text in notices] == [
        "out of memory with 5 slots of 21"
    ]
    # What was learnt is not learnt again by the bucket's next engine.
    passes = actor._loop
    passes._orders.put(passes._engines.clear)
    assert not events_of(list(decode(actor, 1, BATCH)))


def test_on_a_device_there_are_as_many_slots_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, float]] = []

    def probe(model: Any, config: Any, prompt_length: int, most: int, share: float) -> int:
        asked.append((most, share))
        return 2

    monkeypatch.setattr(replica, "probe_slots", probe)
    actor = started(device="cuda", memory_share=0.5)
    items = [*decode(actor, 0, BATCH), *decode(actor, 1, BATCH)]
    assert asked == [(5, 0.5)], "a bucket is probed once"
    assert actor._loop._engines[0][1].num_slots == 2
    notices = events_of(items)
    assert notices == [f"memory for 2 of 5 slots in bucket 9+{UNEVEN.gen_length}"]
    assert len(rows_of(items)) == 2 * len(BATCH)


def test_a_drained_replica_finishes_its_slots_and_returns_the_rest() -> None:
    # Passes run here, so that the order comes while both slots hold a row on any machine.
    actor = started(threaded=False, slots=2)
    actor.submit(0, BATCH)
    while actor._outbox.empty():
        actor.step()
    # The next pass gives the slots that have become free to two more rows.
    actor.step()
    reports = [actor.collect()]
    num_decoding = sum(engine.num_busy for _, engine in actor._loop._engines)
    assert num_decoding
    actor.drain()
    while sum(len(report.finished) + len(report.returned) for report in reports) < len(BATCH):
        actor.step()
        if not actor._outbox.empty():
            reports.append(actor.collect())
    back = [BATCH[index].row_id for report in reports for _, index in report.returned]
    before, *after = ([row["row_id"] for row in rows_of([report])] for report in reports)
    done = [row_id for report in after for row_id in report]
    assert back
    assert len(done) == num_decoding
    assert sorted(back + before + done) == [prompt.row_id for prompt in BATCH]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_slots_are_filled_in_the_order_in_which_batches_were_given(
    order: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever their buckets, and in whatever order the calls come: of a replica that dies the
    driver takes the first rows that are not back for those in slots."""
    short = [Prompt(1, index, ids[:4], bucket=SHORT) for index, ids in enumerate(PROMPTS)]
    again = [Prompt(2, index, ids, bucket=LONG) for index, ids in enumerate(PROMPTS)]
    actor = started(slots=3)
    given: dict[int, Any] = {}
    monkeypatch.setattr(actor._loop, "give", lambda *batch: given.update({batch[0]: batch}))
    batches = [BATCH, short, again]
    for number, prompts in enumerate(batches):
        actor.submit(number, prompts)
    passes = actor._loop
    for number in order:
        passes._arrive(*given[number])
    shared = 0
    while any(engine.busy for _, engine in passes._engines):
        passes._run_pass()
        in_slots = [
            request.key for _, engine in passes._engines for request in engine._slots.requests()
        ]
        waiting = [request.key for _, engine in passes._engines for request in engine._waiting]
        assert len(in_slots) <= 3
        assert sorted(in_slots) + waiting == sorted(in_slots + waiting)
        shared += len({number for number, _ in in_slots}) > 1
    assert shared, "a batch's tail leaves slots to the next"
    found = actor.take(actor._outbox)
    keys = sorted(item.key for item in found if isinstance(item, lrd.Sample))
    assert keys == [(n, index) for n, batch in enumerate(batches) for index in range(len(batch))]


def test_a_replica_reports_that_its_passes_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "HEARTBEAT_SECONDS", 0.001)
    reports = list(decode(started(), 0, BATCH))
    passes = [report.num_passes for report in reports]
    assert any(not report.finished for report in reports), "some come between rows"
    assert passes == sorted(passes)
    assert passes[-1] >= max(row["num_forwards"] for row in rows_of(reports))
    assert all(report.longest_pass > 0 for report in reports if report.num_passes)


def test_what_came_in_meanwhile_is_one_report() -> None:
    assert len(all_in_one(started(slots=len(BATCH))).finished) == len(BATCH)


def test_a_report_names_its_rows_in_their_order() -> None:
    """The driver puts rows into shards by these keys alone."""
    report = all_in_one(started(slots=len(BATCH)))
    rows = report.rows().to_pylist()
    assert [BATCH[index].row_id for _, index in report.finished] == [row["row_id"] for row in rows]
    assert len(rows) == len(BATCH)


def test_rows_finished_before_a_pass_fails_are_reported_first() -> None:
    actor = started(slots=len(BATCH))
    assert len(all_in_one(actor, OSError("a pass failed")).finished) == len(BATCH)
    for _ in range(2):
        with pytest.raises(OSError, match="a pass failed"):
            actor.collect()


def test_faults_reach_the_replica(capsys: pytest.CaptureFixture[str]) -> None:
    rules = [{"at": "replica.pass", "do": "raise", "times": 1}]
    actor = started(faults=json.dumps(rules))
    with pytest.raises(OSError, match="asked for"):
        list(decode(actor, 0, BATCH))
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
