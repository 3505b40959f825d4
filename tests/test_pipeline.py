"""The whole pipeline over a real Ray session: the embedded model, prompts in, results out."""

from __future__ import annotations

import json
import os
import re
import signal
import time
import urllib.request
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow.parquet as pq
import pytest
import ray
from helpers import plugs, s3
from helpers.shards import OF_THE_RUN, events, write_shards

from jobs.tiny.problems import problems
from lrd import DecodingConfig
from pipeline import faults
from pipeline.config import RunConfig
from pipeline.driver import Driver
from pipeline.observe.eta import Progress
from pipeline.output.lease import Lease
from pipeline.output.statistics import Summary
from pipeline.preparing.prepare import prepare
from pipeline.preparing.reading import Reading
from pipeline.replicas.deaths import MAX_FAILED_STARTS, RunStoppedError
from pipeline.replicas.fleet import Actors
from pipeline.replicas.replica import Replica
from pipeline.rows import Layout
from pipeline.run import generate
from pipeline.storage.storage import Storage

pytestmark = pytest.mark.usefixtures("kept_replicas")

SHARED = Path(os.environ.get("LRD_SHARED") or Path(__file__).parents[2] / "shared")
DECODING = DecodingConfig.preset("fast", gen_length=32)


QUESTIONS = [problem.question for problem in islice(problems("test", seed=5), 40)]
QUESTIONS = [question for question in QUESTIONS if plugs.POISON not in question]
QUESTIONS.insert(
    3, f"{plugs.POISON} has 12 apples. {plugs.POISON} buys 7 more. How many apples are there?"
)


def write_prompts(folder: Path, questions: list[Any], num_shards: int = 3) -> Path:
    return write_shards(folder, questions, num_shards, number=range(len(questions)))


def run(source: Path | str, output: Path | str, **settings: Any) -> Summary:
    names = ("on_progress", "on_driver", "retry_failed", "actors")
    hooks = {name: settings.pop(name) for name in names if name in settings}
    settings = {"decoding": DECODING, "cpus_per_replica": 1.0, **settings}
    return generate(RunConfig(input=str(source), output=str(output), **settings), **hooks)


def kinds(output: Path) -> set[str]:
    """What has happened in a run, as words."""
    return {event["event"] for event in events(output)}


def read(output: Path) -> pd.DataFrame:
    return pd.read_parquet(output / "data")


def assert_same(ours: pd.DataFrame, theirs: pd.DataFrame, but: Sequence[str] = ()) -> None:
    """Equal to the last bit, in all columns but those that tell of the run."""
    assert ours.columns.tolist() == theirs.columns.tolist()
    for column in ours.columns.drop([*OF_THE_RUN, *but]):
        left, right = ours[column].tolist(), theirs[column].tolist()
        for row, (a, b) in enumerate(zip(left, right, strict=True)):
            a, b = (v.tolist() if hasattr(v, "tolist") else v for v in (a, b))
            assert a == b or str(a) == str(b) or (pd.isna(a) and pd.isna(b)), (column, row)


@pytest.fixture(scope="module")
def undisturbed(
    kept_replicas: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, pd.DataFrame]:
    """Prompts, and their results from one replica with one slot."""
    folder = tmp_path_factory.mktemp("undisturbed")
    source = write_prompts(folder / "in", QUESTIONS)
    summary = run(source, folder / "out", replicas=1, slots=1)
    assert (summary.num_rows, summary.num_failed) == (len(QUESTIONS), 0)
    return source, read(folder / "out")


def test_results_do_not_depend_on_slots_and_replicas(
    undisturbed: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    source, alone = undisturbed
    up: set[str] = set()
    gate = tmp_path / "gate"

    class Gated(Replica):
        """Begins when all are up, so that all take part."""

        def load(self) -> None:
            super().load()
            (tmp_path / self._name).touch()
            while not gate.exists():
                time.sleep(0.05)

    def watch(progress: Progress) -> None:
        up.update(path.name for path in tmp_path.glob("replica-*"))
        if len(up) == 3:
            gate.touch()

    gated = Actors(Gated)
    run(source, tmp_path / "out", replicas=3, slots=7, on_progress=watch, actors=gated)
    together = read(tmp_path / "out")
    assert_same(together, alone)
    assert together["row_id"].tolist() == alone["row_id"].tolist()
    assert together["replica"].nunique() == 3
    assert alone["num_forwards"].nunique() > 3, "samples must stop at different passes"


def test_results_do_not_depend_on_order(
    undisturbed: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    _, alone = undisturbed
    source = write_prompts(tmp_path / "in", QUESTIONS[::-1], num_shards=1)
    run(source, tmp_path / "out", replicas=2, slots=8)
    assert_same(read(tmp_path / "out").iloc[::-1], alone, but=["row_id", "number"])


def test_shards_keep_the_inputs_order_columns_and_one_schema(
    undisturbed: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    source, _ = undisturbed
    run(source, tmp_path / "out", replicas=2)
    names = sorted(path.name for path in (tmp_path / "out" / "data").iterdir())
    assert names == [f"train-{n:05d}-of-00003.parquet" for n in range(3)]
    for number, name in enumerate(names):
        shard = pq.read_table(tmp_path / "out" / "data" / name)
        prompts = pq.read_table(source / f"part-{number:05d}.parquet")
        assert shard.select(prompts.column_names).equals(prompts)
        assert [f.name for f in shard.schema] == [*prompts.column_names, *Layout().schema.names]
        assert all(shard.schema.field(f.name).type == f.type for f in Layout().schema)
        assert b"lrd.fingerprint" in pq.read_metadata(tmp_path / "out" / "data" / name).metadata
        passes = shard["num_forwards"].to_pylist()
        assert [len(t) for t in shard["kl_trace"].to_pylist()] == passes
        assert [len(t) for t in shard["entropy_trace"].to_pylist()] == passes
        assert all(trace[0] is None for trace in shard["kl_trace"].to_pylist())
    frame = read(tmp_path / "out")
    rows = datasets.load_dataset(
        "parquet",
        data_dir=str(tmp_path / "out" / "data"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert frame["prompt"].tolist() == rows["prompt"] == QUESTIONS
    assert not list((tmp_path / "out" / ".run").glob("segments/*"))


def test_a_bad_row_costs_itself(tmp_path: Path) -> None:
    long = "How many? " * 300
    source = write_prompts(tmp_path / "in", [None, QUESTIONS[0], "", "   ", long, QUESTIONS[1]], 1)
    summary = run(source, tmp_path / "out", replicas=1)
    frame = read(tmp_path / "out")
    assert frame["status"].tolist() == ["failed", "ok", "failed", "failed", "failed", "ok"]
    reasons = frame["error"].tolist()
    assert "null" in reasons[0]
    assert "empty" in reasons[2]
    assert "empty" in reasons[3]
    assert "tokens" in reasons[4]
    assert "keep_last" in reasons[4]
    assert summary.num_failed == 4
    assert set(frame["stop_reason"][frame["status"] == "failed"]) == {"failed"}
    run(source, tmp_path / "kept", replicas=1, truncation="keep_last")
    assert read(tmp_path / "kept")["status"].tolist()[4] == "ok"


def test_a_shard_of_nothing_but_failures_has_the_schema(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "in", [None, None, QUESTIONS[0], QUESTIONS[1]], num_shards=2)
    run(source, tmp_path / "out", replicas=1)
    assert read(tmp_path / "out")["status"].tolist() == ["failed", "failed", "ok", "ok"]
    rows = datasets.load_dataset(
        "parquet",
        data_dir=str(tmp_path / "out" / "data"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert rows.num_rows == 4


def test_an_interrupted_run_continues(
    undisturbed: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    source, alone = undisturbed
    drivers: list[Driver] = []
    seen: list[Progress] = []

    def stop_early(progress: Progress) -> None:
        if progress.num_done >= 5:
            drivers[0].stop()

    settings: dict[str, Any] = {"replicas": 1, "slots": 3, "lookahead_shards": 1}
    output = tmp_path / "out"
    with pytest.raises(RunStoppedError):
        run(source, output, on_progress=stop_early, on_driver=drivers.append, **settings)
    kept = len(list((output / ".run" / "segments").rglob("*.parquet")))
    assert kept or list((output / "data").iterdir())
    run(source, output, on_progress=seen.append, **settings)
    assert_same(read(output), alone)
    assert read(output)["bucket"].tolist() == alone["bucket"].tolist()
    assert seen[-1].num_done == len(QUESTIONS)
    assert seen[-1].num_done_before >= 5, "finished rows must not be decoded again"


@pytest.mark.slow
def test_with_a_block_cache_slots_replicas_and_an_interruption_change_nothing(
    tmp_path: Path,
) -> None:
    """Several blocks a row, so that rows are in mid-block when the driver stops."""
    source = write_prompts(tmp_path / "in", QUESTIONS[:24])
    blocks = DecodingConfig.preset("blocks", gen_length=32, block_length=8)
    drivers: list[Driver] = []

    def stop_early(progress: Progress) -> None:
        if progress.num_done >= 4:
            drivers[0].stop()

    run(source, tmp_path / "alone", replicas=1, slots=1, decoding=blocks)
    settings: dict[str, Any] = {"replicas": 2, "slots": 5, "decoding": blocks}
    with pytest.raises(RunStoppedError):
        run(
            source,
            tmp_path / "out",
            on_progress=stop_early,
            on_driver=drivers.append,
            lookahead_shards=1,
            **settings,
        )
    run(source, tmp_path / "out", **settings)
    alone = read(tmp_path / "alone")
    assert_same(read(tmp_path / "out"), alone)
    assert (alone["full_passes"] < alone["num_forwards"]).all()
    assert (alone["blocks"] > 1).any()


def test_a_finished_run_is_left_alone(
    undisturbed: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    source, _ = undisturbed
    run(source, tmp_path / "out", replicas=1)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "data").iterdir()}
    summary = run(source, tmp_path / "out", replicas=2)
    assert summary.num_rows == len(QUESTIONS)
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "data").iterdir()}


def test_a_lost_shard_is_decoded_again(
    undisturbed: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    source, alone = undisturbed
    run(source, tmp_path / "out", replicas=1)
    (tmp_path / "out" / "data" / "train-00001-of-00003.parquet").unlink()
    run(source, tmp_path / "out", replicas=1)
    assert_same(read(tmp_path / "out"), alone)


def test_another_runs_output_is_refused_and_kept(
    undisturbed: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    source, _ = undisturbed
    run(source, tmp_path / "out", replicas=1)
    manifest = (tmp_path / "out" / ".run" / "manifest.json").read_text()
    other = DECODING.model_copy(update={"r_f": 0.3})
    with pytest.raises(ValueError, match=r"decoding\.r_f was 0\.15, is 0\.3"):
        run(source, tmp_path / "out", replicas=1, decoding=other)
    changed = write_prompts(tmp_path / "in2", QUESTIONS[1:] + QUESTIONS[:1])
    with pytest.raises(ValueError, match=r"input\.part-00000\.parquet"):
        run(changed, tmp_path / "out", replicas=1)
    assert (tmp_path / "out" / ".run" / "manifest.json").read_text() == manifest
    assert json.loads(manifest)["settings"]["decoding"]["gen_length"] == 32


@pytest.mark.slow
def test_a_killed_replica_is_replaced(
    undisturbed: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    source, alone = undisturbed
    drivers: list[Driver] = []
    killed: list[int] = []

    def kill_one(progress: Progress) -> None:
        if progress.num_done >= 3 and not killed:
            killed.append(progress.num_done)
            ray.kill(drivers[0].fleet.replicas[0].actor)

    run(
        source,
        tmp_path / "out",
        replicas=2,
        slots=3,
        on_progress=kill_one,
        on_driver=drivers.append,
        actors=Actors(),
    )
    assert killed
    assert_same(read(tmp_path / "out"), alone)
    assert "replica died" in kinds(tmp_path / "out")


@pytest.mark.slow  # The three poison rows of test_chaos.py do it in every run.
def test_a_row_that_kills_its_replica_is_quarantined(
    undisturbed: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    _, alone = undisturbed
    source = write_prompts(tmp_path / "in", QUESTIONS[:12], num_shards=2)
    poisoned = [plugs.POISON in question for question in QUESTIONS[:12]]
    assert sum(poisoned) == 1
    run(
        source, tmp_path / "out", model="helpers.plugs:killing", replicas=1, slots=4, max_attempts=2
    )
    frame = read(tmp_path / "out")
    assert (frame["status"] == "failed").tolist() == poisoned
    assert "2 of them with this row alone" in frame["error"][poisoned.index(True)]
    fine = [not sick for sick in poisoned]
    # Other prompts make other buckets, whose sums round otherwise.
    rounded = [
        *("kl_trace", "entropy_trace", "max_entropy_at_stop", "mean_mix_weight"),
        *("token_confidence", "mean_confidence", "min_confidence"),
    ]
    assert_same(frame[fine], alone.iloc[:12][fine], but=["row_id", "bucket", *rounded])


@pytest.mark.slow  # The three poison rows of test_chaos.py do it in every run.
def test_a_hanging_row_is_found_and_quarantined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_prompts(tmp_path / "in", QUESTIONS[:12], num_shards=1)
    rule = {"at": "replica.place", "match": f"*{plugs.POISON}*", "do": "hang"}
    monkeypatch.setenv("LRD_FAULTS", json.dumps([rule]))
    settings: dict[str, Any] = {"replicas": 1, "slots": 4, "max_attempts": 1, "hang_seconds": 2.0}
    run(source, tmp_path / "out", **settings)
    frame = read(tmp_path / "out")
    sick = frame["prompt"].str.contains(plugs.POISON)
    assert sick.sum() == 1
    assert (frame["status"] == "failed").tolist() == sick.tolist()
    assert "no pass ended within" in frame["error"][sick].item()


@pytest.mark.slow
def test_starts_that_fail_are_tried_again(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "in", QUESTIONS[:6], num_shards=1)
    starts = tmp_path / "starts"

    class Refused(Replica):
        """Loads at the last start that the driver tries; every start is a process of its own."""

        def load(self) -> None:
            with starts.open("a") as log:
                log.write(f"{self._name}\n")
            if len(starts.read_text().splitlines()) < MAX_FAILED_STARTS:
                raise PermissionError("the weights are not readable yet")
            super().load()

    summary = run(source, tmp_path / "out", replicas=1, actors=Actors(Refused))
    assert (summary.num_rows, summary.num_failed) == (6, 0)
    assert starts.read_text().splitlines() == ["replica-0"] * MAX_FAILED_STARTS
    reported = [e for e in events(tmp_path / "out") if e["event"].startswith("replica ")]
    failed = ["replica died"] * (MAX_FAILED_STARTS - 1)
    assert [event["event"] for event in reported] == [*failed, "replica up"]
    assert all("the weights are not readable yet" in event["error"] for event in reported[:-1])


def test_a_replica_kill_costs_its_slots_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_prompts(tmp_path / "in", QUESTIONS, num_shards=2)
    log = tmp_path / "placed"
    rules = [
        {"at": "replica.place", "do": "log", "path": str(log)},
        {"at": "replica.pass", "do": "slow", "seconds": 0.1},
    ]
    monkeypatch.setenv("LRD_FAULTS", json.dumps(rules))
    drivers: list[Driver] = []
    killed: list[int] = []

    def kill_one(progress: Progress) -> None:
        replica = drivers[0].fleet.replicas[0]
        if progress.num_done >= 8 and not killed and replica.pid is not None:
            killed.append(replica.pid)
            time.sleep(0.15)  # In the midst of later passes.
            os.kill(replica.pid, signal.SIGKILL)

    run(
        source,
        tmp_path / "out",
        replicas=1,
        slots=3,
        on_progress=kill_one,
        on_driver=drivers.append,
    )
    assert killed
    placed = log.read_text().splitlines()
    assert len(set(placed)) == len(QUESTIONS)
    assert len(placed) - len(QUESTIONS) <= 3
    assert "replica died" in kinds(tmp_path / "out")


def test_rows_that_failed_are_retried_and_successes_kept(
    undisturbed: tuple[Path, pd.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, alone = undisturbed
    rule = {"at": "replica.place", "match": f"*{plugs.POISON}*", "do": "nan"}
    monkeypatch.setenv("LRD_FAULTS", json.dumps([rule]))
    assert run(source, tmp_path / "out", replicas=1, slots=4).num_failed == 1
    first = read(tmp_path / "out")
    assert run(source, tmp_path / "out", replicas=1).num_failed == 1, "a rerun retries nothing"
    monkeypatch.delenv("LRD_FAULTS")
    assert run(source, tmp_path / "out", replicas=1, slots=4, retry_failed=True).num_failed == 0
    second = read(tmp_path / "out")
    assert_same(second, alone)
    fine = first["status"] == "ok"
    assert first[fine]["seconds"].tolist() == second[fine]["seconds"].tolist()


def test_a_second_driver_is_refused(undisturbed: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    source, _ = undisturbed
    refused: list[str] = []

    def intrude(progress: Progress) -> None:
        if not refused:
            with pytest.raises(ValueError, match="another driver writes it") as error:
                run(source, tmp_path / "out", replicas=1)
            refused.append(str(error.value))

    assert run(source, tmp_path / "out", replicas=1, on_progress=intrude).num_failed == 0
    assert refused


def test_storage_that_fails_now_and_then_costs_nothing(
    undisturbed: tuple[Path, pd.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, alone = undisturbed
    rules = [{"at": f"storage.{what}", "do": "raise", "chance": 0.3} for what in ("read", "write")]
    faults.load(json.dumps(rules))
    monkeypatch.setattr("pipeline.storage.retry.LONGEST_PAUSE", 0.1)
    try:
        run(source, tmp_path / "out", replicas=1, flush_seconds=0.2)
    finally:
        faults.load(None)
    assert_same(read(tmp_path / "out"), alone)
    assert "storage retry" in kinds(tmp_path / "out")


def test_a_full_disk_stops_the_run_and_a_rerun_continues(
    undisturbed: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    source, alone = undisturbed
    output = tmp_path / "out"
    rule = {"at": "storage.partial", "match": "data/*", "do": "raise", "error": "ENOSPC"}
    faults.load(json.dumps([rule]))
    try:
        with pytest.raises(OSError, match="No space left"):
            run(source, output, replicas=1, slots=4)
    finally:
        faults.load(None)
    assert not list(output.rglob("*.part"))
    assert list((output / ".run" / "segments").rglob("*.parquet")), "finished rows must be safe"
    run(source, output, replicas=1, slots=4)
    assert_same(read(output), alone)


def test_logits_that_are_not_numbers_fail_the_row(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "in", QUESTIONS[:12], num_shards=1)
    run(source, tmp_path / "out", model="helpers.plugs:half_nan", replicas=1, slots=4)
    frame = read(tmp_path / "out")
    sick = frame["prompt"].str.contains(plugs.POISON)
    assert sick.any()
    assert (frame["status"] == "failed").tolist() == sick.tolist()
    assert set(frame["error"][sick]) == {"non-finite logits in pass 1"}


def test_replicas_that_cannot_start_end_the_run(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "in", QUESTIONS[:2], num_shards=1)
    with pytest.raises(RunStoppedError, match="no weights here"):
        run(source, tmp_path / "out", model="helpers.plugs:raising", replicas=1)


def test_prompts_are_tokenised_while_replicas_load(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "in", QUESTIONS)
    gate = tmp_path / "gate"

    class Gated(Replica):
        """Loads nothing before the gate is open."""

        def load(self) -> None:
            while not gate.exists():
                time.sleep(0.05)
            super().load()

    def watch(progress: Progress) -> None:
        num_read = sum(bucket.read for bucket in progress.buckets.values())
        loading = set(progress.replicas.values()) == {"starting"}
        if loading and num_read == len(QUESTIONS):
            assert progress.num_done == 0
            gate.touch()

    # Two replicas' slots, twice over, hold all prompts: so many are read ahead.
    summary = run(source, tmp_path / "out", replicas=2, on_progress=watch, actors=Actors(Gated))
    assert (summary.num_rows, summary.num_failed) == (len(QUESTIONS), 0)


def test_a_run_without_room_anywhere_stops_and_can_be_continued(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "in", QUESTIONS[:2], num_shards=1)
    wants = {"cpus_per_replica": 64.0, "replicas": 1, "autoscale": True, "start_seconds": 0.5}
    with pytest.raises(RunStoppedError, match=r"no machine had room for a replica for 0\.5 s"):
        run(source, tmp_path / "out", device="cpu", actors=Actors(), **wants)
    assert run(source, tmp_path / "out", replicas=1).num_failed == 0
    started = [e for e in events(tmp_path / "out") if e["event"] == "driver started"]
    assert [(e["replicas"], e["num_cpus"]) for e in started] == [(1, 64.0), (1, 1.0)]


def test_more_replicas_than_the_cluster_holds_are_refused(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "in", QUESTIONS[:2], num_shards=1)
    with pytest.raises(ValueError, match="5 replicas with 1 CPUs each need 5, the cluster has 4"):
        run(source, tmp_path / "out", replicas=5)
    with pytest.raises(ValueError, match="the cluster has 0"):
        run(source, tmp_path / "out", replicas=1, device="cuda")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(
    not (SHARED / "data" / "gsm8k.parquet").is_file(), reason="no shared/data/gsm8k.parquet"
)
@pytest.mark.slow
def test_gsm8k_comes_out_once_and_in_order(tmp_path: Path) -> None:
    source = str(SHARED / "data" / "gsm8k.parquet")
    assert prepare(source, str(tmp_path / "in"), 300, Reading()).num_shards == 5
    decoding = DecodingConfig.preset("baseline", gen_length=8, tokens_per_step=8)
    summary = run(
        tmp_path / "in",
        tmp_path / "out",
        prompt_column="question",
        replicas=2,
        slots=32,
        decoding=decoding,
    )
    frame = read(tmp_path / "out")
    assert summary.num_rows == len(frame) == 1319
    assert frame["id"].tolist() == pq.read_table(source)["id"].to_pylist()
    assert frame["row_id"].is_unique
    assert frame["row_id"].is_monotonic_increasing
    # The tiny model holds 512 positions; its tokenizer makes some questions longer.
    assert set(frame["error"].dropna().str.contains("tokens")) <= {True}
    assert (frame["status"] == "ok").mean() > 0.9


@s3.needs_server
@pytest.mark.slow
def test_a_run_from_and_to_an_object_store_continues(
    undisturbed: tuple[Path, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, alone = undisturbed
    monkeypatch.setattr("pipeline.output.ledger.Lease", partial(Lease, beat_seconds=1.0))
    drivers: list[Driver] = []
    faults = s3.Faults(share=0.05, seed=1)

    def stop_early(progress: Progress) -> None:
        if progress.num_done >= 5:
            drivers[0].stop()

    with (
        s3.server() as upstream,
        s3.proxy(upstream, faults) as address,
        s3.as_environment(s3.environment(address)),
    ):
        s3.make_bucket(upstream, "bucket")
        for file in source.iterdir():
            Storage("s3://bucket/in").write(file.name, file.read_bytes())
        places = ("s3://bucket/in", "s3://bucket/out")
        settings: dict[str, Any] = {"replicas": 1, "slots": 3, "flush_seconds": 0.2}
        with pytest.raises(RunStoppedError):
            run(*places, **settings, on_progress=stop_early, on_driver=drivers.append)
        output = Storage("s3://bucket/out")
        assert output.files(".run/segments", recursive=True) or output.names("data")
        summary = run(*places, **{**settings, "slots": 8})
        assert (summary.num_rows, summary.num_failed) == (len(QUESTIONS), 0)
        assert_same(pd.read_parquet("s3://bucket/out/data"), alone)
        assert not output.files(".run/segments", recursive=True)
        with urllib.request.urlopen(f"http://{upstream}/bucket?prefix=out/data") as listing:
            keys = re.findall(r"<Key>(.*?)</Key>", listing.read().decode())
        names = [f"out/data/train-{number:05d}-of-00003.parquet" for number in range(3)]
        assert keys == names, "nothing else may lie there, markers of folders included"
        manifest = output.read(".run/manifest.json").decode()
    assert not any(secret in manifest for secret in s3.CREDENTIALS.values() if secret != "true")
