"""Canvases computed for each forward that a row needed, through a replica's real thread."""

from __future__ import annotations

import random
from typing import Any

import pytest
from helpers.engine import UNEVEN
from helpers.feeding import FixedShapes, decode_all
from helpers.few import spread
from helpers.random_model import LIVELY, random_model

import lrd
from lrd import DecodingConfig
from pipeline.replicas import replica
from pipeline.replicas.replica import Replica, ReplicaSettings
from pipeline.rows import Bucket, Prompt

SLOTS, ROWS = 16, 256
BUCKETS = (8, 12, 16)
BAR = 1.1
"""Most canvases computed for a forward that a row needed."""
DECODINGS = {
    "few passes": UNEVEN,
    "many passes": UNEVEN.model_copy(
        update={"gen_length": 20, "entropy_threshold": 0.3, "max_refine_steps": 4}
    ),
}


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "load_model", lambda *_: random_model(**LIVELY))


def prompts(seed: int = 5) -> list[Prompt]:
    """Rows of three buckets, in a random order."""
    rng = random.Random(seed)
    found = []
    for index in range(ROWS):
        bucket = rng.choice(BUCKETS)
        ids = [rng.randrange(40) for _ in range(bucket - rng.randrange(4))]
        found.append(Prompt(0, index, ids, bucket=Bucket(bucket, UNEVEN.gen_length)))
    return found


def settings(decoding: DecodingConfig, **changes: Any) -> ReplicaSettings:
    values: dict[str, Any] = {"slots": SLOTS, "threads": 1, **changes}
    return ReplicaSettings("random", None, "cpu", "float32", decoding, **values)


@pytest.mark.parametrize(("passes", "rows_a_shard"), spread(DECODINGS, [64, 1000]))
def test_few_canvases_are_computed_for_nothing(
    passes: str, rows_a_shard: int, record_property: Any
) -> None:
    computed, needed = decode_all(settings(DECODINGS[passes]), prompts(), rows_a_shard)
    record_property("canvases_per_forward", round(computed / needed, 3))
    print(f"{passes}, shards of {rows_a_shard}: {computed / needed:.2f}, {needed / ROWS:.1f} a row")
    assert 1 <= computed / needed <= BAR


def test_on_a_cpu_none_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FixedShapes, "new_engine", Replica.new_engine)
    computed, needed = decode_all(settings(UNEVEN), prompts(), 64)
    assert computed == needed


def test_canvases_of_engines_that_were_dropped_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each engine's own counter ends with it."""
    engines: list[lrd.Engine] = []
    new_engine = FixedShapes.new_engine

    def noted(self: FixedShapes, bucket: Bucket, num_slots: int) -> lrd.Engine:
        engines.append(new_engine(self, bucket, num_slots))
        return engines[-1]

    monkeypatch.setattr(FixedShapes, "new_engine", noted)
    computed, _ = decode_all(settings(UNEVEN), prompts(), 64)
    assert len(engines) > len(BUCKETS)
    # The thread may have made a pass or two since its last report.
    late = SLOTS * 4 * len(BUCKETS)
    assert computed <= sum(engine.num_slot_passes for engine in engines) <= computed + late
