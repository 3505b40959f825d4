"""Buckets, storage, Parquet and the ledger, without Ray: what a driver's death leaves behind."""

from __future__ import annotations

import json
import random
from dataclasses import fields, replace
from itertools import combinations
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lrd import DecodingConfig, load_model
from pipeline.config import RunConfig
from pipeline.input import prompt_shards
from pipeline.input.buckets import Buckets, bucket_of, choose_lengths, fitting
from pipeline.input.input_files import find
from pipeline.input.prompt_shards import PromptShards
from pipeline.input.reader import Reader
from pipeline.output import result_shards
from pipeline.output.lease import Lease, LeaseLostError
from pipeline.output.ledger import Ledger, Plan
from pipeline.output.open_shard import OpenShard
from pipeline.output.run_folder import DRIVER, EVENTS, SEGMENTS, commit_name, shard_name
from pipeline.rows import RESULT_SCHEMA, Bucket, Layout, Prompt, Result, results_batch, row_id
from pipeline.storage.storage import Storage


def result(shard: int, index: int, text: str = "four") -> Result:
    failed = Result.failed(row_id(shard, index), "none")
    return replace(
        failed,
        status="ok",
        error=None,
        output_text=text,
        output_token_ids=[4, 5, 6],
        num_forwards=3,
        kl_trace=[None, 0.5, 0.25],
        entropy_trace=[1.0, 0.5, 0.25],
        commit_step=[1, 2, 3],
        seconds=0.5,
        refine_converged=True,
        stop_reason="complete",
    )


Place = tuple[Storage, PromptShards, Plan]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Two input shards of three rows, an empty output, their plan."""
    (tmp_path / "in").mkdir()
    for number in range(2):
        table = pa.table({"prompt": [f"{number} {index}" for index in range(3)]})
        pq.write_table(table, tmp_path / "in" / f"{number}.parquet")
    inputs = prompt_shards.inspect(find(str(tmp_path / "in")), "prompt")
    fingerprint = {"model": "m", "dtype": "float32", "decoding": {"r_f": 0.1}}
    settings = {"model": "m", "input": "in", "decoding": {"r_f": 0.1}}
    plan = Plan(inputs.files, fingerprint, settings)
    return Storage(str(tmp_path / "out")), inputs, plan


def begin(place: Place) -> Ledger:
    """The next driver, the last one having ended in whatever way."""
    ledger = Ledger(place[0], place[2])
    ledger.lease = Lease(place[0], beat_seconds=60)
    # Its owner's process is this one, and alive.
    place[0].delete_file(DRIVER)
    ledger.begin()
    return ledger


def opened(place: Place, ledger: Ledger, number: int) -> OpenShard:
    shard = OpenShard(number, place[1].read(place[2].files[number].name))
    ledger.restore(shard)
    ledger.open(shard)
    return shard


def add(ledger: Ledger, *results: Result) -> int:
    """How many of the rows were new."""
    number = int(results[0].row_id[:5])
    return int(ledger.add(number, results_batch(results)).num_rows)


def rows_of(shard: OpenShard) -> list[int]:
    return [index for index in range(shard.prompts.num_rows) if not shard.missing(index)]


def finish(place: Place, ledger: Ledger, number: int = 0, text: str = "four") -> None:
    shard = opened(place, ledger, number)
    for index in range(3):
        if shard.missing(index):
            add(ledger, result(number, index, text))
    assert ledger.commit_complete() == 1


def test_flushed_rows_survive_the_driver(place: Place) -> None:
    ledger = begin(place)
    opened(place, ledger, 0)
    add(ledger, result(0, 2))
    ledger.flush()
    add(ledger, result(0, 0))
    # The driver dies here: row 2 was flushed, row 0 was not.
    again = begin(place)
    assert again.owed() == [0, 1]
    assert rows_of(opened(place, again, 0)) == [2]
    add(again, result(0, 0), result(0, 1))
    again.flush()
    third = begin(place)
    assert rows_of(opened(place, third, 0)) == [0, 1, 2]
    assert third.commit_complete() == 1
    assert third.owed() == [1]
    table = pq.read_table(place[0].path(shard_name(0, 2)))
    assert table["row_id"].to_pylist() == [row_id(0, n) for n in range(3)]
    assert table["prompt"].to_pylist() == ["0 0", "0 1", "0 2"]
    assert place[0].names(".run/segments/00000") == []


def test_a_row_is_taken_once(place: Place) -> None:
    ledger = begin(place)
    opened(place, ledger, 0)
    assert add(ledger, result(0, 1, "first")) == 1
    assert add(ledger, result(0, 1, "second"), result(0, 0)) == 1
    ledger.flush()
    assert add(ledger, result(0, 1, "third")) == 0
    add(ledger, result(0, 2))
    ledger.commit_complete()
    table = pq.read_table(place[0].path(shard_name(0, 2)))
    assert table["output_text"].to_pylist() == ["four", "first", "four"]


def test_a_damaged_segment_costs_its_rows_alone(place: Place) -> None:
    ledger = begin(place)
    opened(place, ledger, 0)
    for index in (0, 1):
        add(ledger, result(0, index))
        ledger.flush()
    output = place[0]
    first, second = output.names(".run/segments/00000")
    output.write(f".run/segments/00000/{first}", b"PAR1 broken")
    again = begin(place)
    assert rows_of(opened(place, again, 0)) == [1]
    add(again, result(0, 0))
    again.flush()
    assert "segment damaged" in output.read(".run/events.jsonl").decode()
    names = output.names(".run/segments/00000")
    assert names[:2] == [first, second], "no segment may be overwritten"
    assert names[2].startswith("000003-")


@pytest.mark.parametrize("place_in_file", [0.1, 0.5, 0.98])
def test_a_flipped_bit_is_found_and_the_shard_owed(place: Place, place_in_file: float) -> None:
    ledger = begin(place)
    finish(place, ledger)
    output, name = place[0], shard_name(0, 2)
    assert begin(place).owed() == [1]
    content = bytearray(output.read(name))
    content[int(len(content) * place_in_file)] ^= 1
    output.write(name, bytes(content))
    again = begin(place)
    assert again.owed() == [0, 1]
    again.flush()
    assert "its bytes are not those that were written" in output.read(EVENTS).decode()
    finish(place, again, text="anew")
    assert begin(place).owed() == [1]
    assert pq.read_table(output.path(name))["output_text"].to_pylist() == ["anew"] * 3


def test_a_shard_without_its_record_and_a_record_without_its_shard_are_owed(
    place: Place,
) -> None:
    finish(place, begin(place))
    output = place[0]
    content = output.read(shard_name(0, 2))
    output.delete_file(shard_name(0, 2))
    assert begin(place).owed() == [0, 1]
    output.write(shard_name(0, 2), content)
    assert begin(place).owed() == [1]
    output.write(commit_name(0), b"{")
    assert begin(place).owed() == [0, 1]


def test_a_stored_success_beats_a_failure(place: Place) -> None:
    ledger = begin(place)
    opened(place, ledger, 0)
    bad = Result.failed(row_id(0, 1), "no numbers")
    add(ledger, result(0, 0, "kept"), bad, result(0, 2, "kept"))
    ledger.commit_complete()
    assert begin(place).owed() == [1], "a plain rerun does not retry"

    retry = begin(place)
    retry.retry_failed = True
    assert retry.owed() == [0, 1]
    assert rows_of(opened(place, retry, 0)) == [0, 2]
    add(retry, result(0, 1, "now"))
    retry.flush()
    # The driver dies here; the row that succeeded is not decoded a third time.
    again = begin(place)
    again.retry_failed = True
    assert again.owed() == [0, 1]
    assert rows_of(opened(place, again, 0)) == [0, 1, 2]
    assert again.commit_complete() == 1
    table = pq.read_table(place[0].path(shard_name(0, 2)))
    assert table["output_text"].to_pylist() == ["kept", "now", "kept"]
    assert begin(place).owed() == [1]


def test_a_retried_row_that_fails_again_can_be_retried(
    place: Place,
) -> None:
    ledger = begin(place)
    opened(place, ledger, 0)
    bad = Result.failed(row_id(0, 1), "no numbers")
    add(ledger, result(0, 0), bad, result(0, 2))
    ledger.commit_complete()
    for _ in range(2):
        retry = begin(place)
        retry.retry_failed = True
        retry.owed()
        assert rows_of(opened(place, retry, 0)) == [0, 2]
        add(retry, bad)
        retry.flush()
    assert retry.commit_complete() == 1
    table = pq.read_table(place[0].path(shard_name(0, 2)))
    assert table["status"].to_pylist() == ["ok", "failed", "ok"]


def test_a_replacement_that_was_not_written_leaves_the_old_shard_good(
    place: Place,
) -> None:
    ledger = begin(place)
    opened(place, ledger, 0)
    bad = Result.failed(row_id(0, 1), "no numbers")
    add(ledger, result(0, 0, "kept"), bad, result(0, 2, "kept"))
    ledger.commit_complete()
    retry = begin(place)
    retry.retry_failed = True
    retry.owed()
    opened(place, retry, 0)
    add(retry, result(0, 1, "now"))
    retry.flush()
    old = place[0].read(shard_name(0, 2))
    segments = {
        n: place[0].read(f"{SEGMENTS}/00000/{n}") for n in place[0].names(f"{SEGMENTS}/00000")
    }
    retry.commit_complete()
    # As if it had died between the record and the shard.
    place[0].write(shard_name(0, 2), old)
    for name, content in segments.items():
        place[0].write(f"{SEGMENTS}/00000/{name}", content)
    again = begin(place)
    assert again.owed() == [0, 1]
    assert rows_of(opened(place, again, 0)) == [0, 1, 2]
    again.commit_complete()
    table = pq.read_table(place[0].path(shard_name(0, 2)))
    assert table["output_text"].to_pylist() == ["kept", "now", "kept"]


def test_a_partial_file_is_never_read(place: Place) -> None:
    ledger = begin(place)
    opened(place, ledger, 0)
    add(ledger, result(0, 0))
    ledger.flush()
    for folder, name in (("data", shard_name(0, 2)), ("", ".run/segments/00000/000002-x")):
        path = Path(place[0].path(name if folder else f"{name}.parquet"))
        path.parent.mkdir(exist_ok=True)
        path.with_name(path.name + ".77.part").write_bytes(b"half")
    again = begin(place)
    assert again.owed() == [0, 1]
    assert rows_of(opened(place, again, 0)) == [0]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write("a/b.json", b"old")
    (tmp_path / "a" / "c.json").mkdir()
    with pytest.raises(OSError, match="directory"):
        storage.write("a/c.json", b"new")
    assert storage.read("a/b.json") == b"old"
    assert storage.names("a") == ["b.json"]


def test_memory_filesystem_works_through_fsspec(tmp_path: Path) -> None:
    storage = Storage("memory://bucket/run")
    assert storage.kind() == "missing"
    storage.write("data/x.parquet", b"whole")
    assert storage.names("data") == ["x.parquet"]
    assert storage.read("data/x.parquet") == b"whole"
    storage.delete_folder("data")
    assert storage.names("data") == []
    with pytest.raises(ValueError, match="nothing"):
        Storage("nothing://bucket")


def test_every_difference_of_a_fingerprint_is_named(
    place: Place,
) -> None:
    begin(place)
    output, _, plan = place
    other = replace(plan, fingerprint={"model": "n", "decoding": {"r_f": 0.2, "top_p": 1}})
    with pytest.raises(ValueError, match="model was") as error:
        Ledger(output, other)
    assert "decoding.r_f was 0.1, is 0.2" in str(error.value)
    assert "decoding.top_p was null, is 1" in str(error.value)


def test_a_changed_input_is_noticed(place: Place) -> None:
    _, inputs, plan = place
    config = RunConfig(
        input=inputs.storage.uri, output="out", decoding=DecodingConfig(gen_length=8)
    )
    reader = Reader(config, inputs, plan.files, load_model("tiny", "meta"), 64)
    pq.write_table(pa.table({"prompt": ["one"]}), place[1].storage.path("0.parquet"))
    with pytest.raises(ValueError, match=r"0\.parquet: has 1 rows, 3 when the run began"):
        reader.read(0)


def test_a_shard_without_rows_is_a_shard(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "a.parquet")
    inputs = prompt_shards.inspect(find(str(tmp_path / "a.parquet")), "prompt")
    run = Storage(str(tmp_path / "out")), inputs, Plan(inputs.files, {}, {})
    ledger = begin(run)
    opened(run, ledger, 0)
    assert ledger.commit_complete() == 1
    written = pq.read_table(tmp_path / "out" / shard_name(0, 1))
    assert written.schema.names == ["prompt", *Layout().schema.names]


def test_events_are_kept_by_later_drivers(place: Place) -> None:
    for what in ("one", "two"):
        ledger = begin(place)
        ledger.event(what, row="00000-00000001")
        ledger.flush()
    lines = place[0].read(EVENTS).decode().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["one", "two"]


def test_results_survive_parquet() -> None:
    results = [result(0, 0), Result.failed("00000-00000001", "why", attempts=2)]
    table = pa.Table.from_batches([results_batch(results)])
    assert table.schema == RESULT_SCHEMA
    assert [f.name for f in fields(Result)] == RESULT_SCHEMA.names
    buffer = result_shards.parquet_bytes(table)
    back = result_shards.results_in(buffer.to_pybytes(), RESULT_SCHEMA)
    assert [Result(**row) for row in back.to_pylist()] == results
    assert results_batch([]).schema == RESULT_SCHEMA


def test_a_lost_lease_stops_every_write(place: Place) -> None:
    ledger = begin(place)
    opened(place, ledger, 0)
    add(ledger, *(result(0, index) for index in range(3)))
    other = begin(place)
    ledger.lease._beaten_at -= 3600  # It stood still for an hour.
    for write in (ledger.flush, ledger.commit_complete, ledger.end):
        with pytest.raises(LeaseLostError, match="another driver"):
            write()
    assert place[0].names("data") == place[0].names(f"{SEGMENTS}/00000") == []
    other.end()


@pytest.mark.parametrize("max_tokens", [17, 200, 4000])
def test_buckets_hold_their_prompts_with_little_padding(max_tokens: int) -> None:
    buckets = [bucket_of(n, max_tokens) for n in range(1, max_tokens + 1)]
    assert all(n <= bucket <= max_tokens for n, bucket in enumerate(buckets, start=1))
    assert buckets == sorted(buckets)
    assert all(b - n < max(16, n / 4 + 1) for n, b in enumerate(buckets, start=1))
    assert len(set(buckets)) <= 40


@pytest.mark.parametrize("max_shapes", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_chosen_lengths_leave_the_least_padding(max_shapes: int, seed: int) -> None:
    rng = random.Random(seed)
    found = [rng.choice((5, 6, 7, 30, 31, 60, 61, 90)) for _ in range(40)]

    def held(lengths: tuple[int, ...] | list[int]) -> int:
        return sum(fitting(n, lengths) or 10**9 for n in found)

    chosen = choose_lengths(found, max_shapes)
    assert len(chosen) <= max_shapes
    assert max(chosen) == max(found)
    options = combinations(sorted(set(found)), max_shapes)
    assert held(chosen) == min(held(option) for option in options)


def test_lengths_of_nothing_and_of_very_many() -> None:
    assert choose_lengths([], 3) == []
    found = list(range(1, 2001))
    chosen = choose_lengths(found, 4)
    assert len(chosen) == 4
    assert max(chosen) == 2000
    # Four equal steps are best; lengths are told apart to an 128th.
    assert sum((fitting(n, chosen) or 0) - n for n in found) < 1.1 * 2000 * 250
    assert fitting(2001, chosen) is None


def prompt(shard: int, index: int, bucket: int) -> Prompt:
    return Prompt(shard, index, [1] * bucket, Bucket(bucket, 32))


def test_batches_hold_one_bucket_and_every_prompt_once() -> None:
    buckets = Buckets(batch_size=4)
    prompts = [prompt(0, n, 16 if n % 3 else 48) for n in range(20)]
    buckets.add(prompts)
    assert len(buckets) == 20
    taken: list[Prompt] = []
    last = None
    while batch := buckets.take(last, partial=True):
        assert len({p.bucket for p in batch}) == 1
        assert len(batch) <= 4
        last = batch[0].bucket
        taken += batch
    assert sorted(p.index for p in taken) == list(range(20))
    assert len(buckets) == 0


def test_long_buckets_first_then_the_replicas_own_then_the_oldest_row() -> None:
    buckets = Buckets(batch_size=2)
    buckets.add([prompt(0, 0, 16), prompt(0, 1, 16), prompt(0, 2, 48), prompt(0, 3, 48)])
    buckets.add([prompt(1, 0, 16), prompt(1, 1, 16), prompt(1, 2, 32)])
    assert [p.bucket.prompt for p in buckets.take(None, partial=False)] == [48, 48]
    assert [p.bucket.prompt for p in buckets.take(Bucket(16, 32), partial=False)] == [16, 16]
    buckets.add([prompt(0, 9, 64)])
    assert [p.shard for p in buckets.take(None, partial=False)] == [1, 1]
    assert buckets.take(None, partial=False) == []
    assert [p.bucket.prompt for p in buckets.take(None, partial=True)] == [64], (
        "the oldest shard's row"
    )
    assert [p.bucket.prompt for p in buckets.take(None, partial=True)] == [32]
    assert buckets.take(None, partial=True) == []
