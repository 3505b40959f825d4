"""`--num-samples N`: N rows for every prompt row, in order, through every part of a run."""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.commands import parse
from helpers.runs import FINGERPRINT, MadeRun, good, with_column
from helpers.shards import OF_THE_RUN, distinct_questions, events, write_shards
from helpers.synthetic_run import write_run

from jobs import cli, generate, plan, reproduce, retry_failed, status, tune
from jobs.flags import run_config
from lrd import DecodingConfig
from lrd.engine import row_seed
from pipeline.config import MAX_SAMPLES, RunConfig
from pipeline.driver import Driver
from pipeline.input import reader as reader_module
from pipeline.input.reader import Reader
from pipeline.inspection.plan import forecast, rows_left
from pipeline.inspection.status import Inspector
from pipeline.inspection.verify import Verification
from pipeline.output import result_shards
from pipeline.output.ledger import Ledger, Plan
from pipeline.output.open_shard import OpenShard
from pipeline.output.run_folder import MANIFEST, UnreadableError, read_manifest
from pipeline.output.statistics import summarize
from pipeline.preflight import MANY_ROWS, check, fingerprint_of
from pipeline.replicas.deaths import Death, RunStoppedError, Suspects
from pipeline.report.report import make_report
from pipeline.rows import Bucket, Layout, Prompt, prompt_id, results_batch, row_id, split_id
from pipeline.run import generate as run_generate
from pipeline.storage.storage import Storage

DRAWN = DecodingConfig.preset("fast", gen_length=32, temperature=2.0)
SETTINGS = {"model": "m", "input": "in", "decoding": {}}
QUESTIONS = distinct_questions(8, seed=12)


# Ids.


@pytest.mark.parametrize("num_samples", [2, 4, 10, 11, 100, 101, 1001, MAX_SAMPLES])
def test_ids_sort_in_the_order_of_the_rows_and_come_apart(num_samples: int) -> None:
    layout = Layout(num_samples)
    rows = [
        (shard, index, sample)
        for shard in (0, 99_999, 100_000)
        for index in (0, 9, 99_999_999, 100_000_000)
        for sample in layout.samples
    ]
    names = [row_id(*row) for row in rows]
    assert names == sorted(names)
    assert len(set(names)) == len(names)
    assert [split_id(name) for name in names] == rows
    assert [prompt_id(name) for name in names] == [row_id(*row[:2]) for row in rows]
    numbers = [layout.position(index, sample) for _, index, sample in rows]
    assert [layout.row_id(row[0], n) for row, n in zip(rows, numbers, strict=True)] == names


def test_one_sample_has_the_names_and_the_fingerprint_of_before() -> None:
    assert row_id(3, 42, 2) == "00003-00000042-2"
    assert row_id(3, 42) == Layout().row_id(3, 42) == "00003-00000042"
    assert Layout().facts == {}
    assert Layout.of({"model": "m"}) == Layout()
    assert Layout.of(Layout(4, "minimal").facts) == Layout(4, "minimal")
    one, four = (RunConfig(input="i", output="o", num_samples=n, decoding=DRAWN) for n in (1, 4))
    found = fingerprint_of(one, [], "float32")
    assert fingerprint_of(four, [], "float32") == {**found, "num_samples": 4}


@pytest.mark.parametrize("entry", [{"num_samples": 0}, {"num_samples": "4"}, {"num_samples": True}])
def test_a_manifest_with_an_impossible_number_is_refused(
    entry: dict[str, Any], tmp_path: Path
) -> None:
    output = Storage(str(tmp_path))
    made = {"created": "today", "files": [], "settings": SETTINGS}
    output.write(MANIFEST, json.dumps({**made, "fingerprint": {**FINGERPRINT, **entry}}).encode())
    with pytest.raises(
        UnreadableError, match=r"num_samples is .*; expected a number of at least 1"
    ):
        read_manifest(output)


def test_a_sample_draws_what_its_id_says_however_many_there_are() -> None:
    seeds = {row_seed(7, Prompt(0, 5, [1], Bucket(8, 32), sample).row_id) for sample in range(1000)}
    assert len(seeds) == 1000
    assert row_seed(7, row_id(0, 5, 3)) in seeds
    assert row_seed(7, row_id(0, 5)) not in seeds


# Settings.


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--num-samples", "4"], "num_samples 4 at temperature 0 would give every prompt the same"),
        (["--num-samples", "0", "--temperature", "1"], "num_samples: Input should be greater"),
        (["--num-samples", "10001", "--temperature", "1"], "num_samples: Input should be less"),
        (["--num-samples", "many", "--temperature", "1"], "num_samples: Input should be a valid"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "plan"])
def test_impossible_numbers_are_one_line(
    command: str, words: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_shards(tmp_path / "in", QUESTIONS[:2])
    code = cli.run([command, "--input", str(source), "--output", str(tmp_path / "out"), *words])
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert reason in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("job", [retry_failed, tune, reproduce])
def test_commands_that_decide_it_themselves_have_no_such_flag(job: Any) -> None:
    assert not {"RunConfig.num_samples", "RunConfig.columns"} & {
        action.dest for action in parser_of(job)._actions
    }


def parser_of(job: Any) -> Any:
    parser = argparse.ArgumentParser()
    job.add_arguments(parser)
    return parser


def test_another_number_is_another_run(tmp_path: Path) -> None:
    made = MadeRun(tmp_path, layout=Layout(4)).begin().whole().end()
    for layout, was in ((Layout(3), "num_samples was 4, is 3"), (Layout(), "was 4, is 1")):
        fingerprint = {**MadeRun(tmp_path, layout=layout).fingerprint}
        with pytest.raises(ValueError, match=was):
            Ledger(made.storage, Plan(made.ledger.plan.files, fingerprint, {}))


# Reading.


def reader_of(folder: Path, questions: list[Any], num_samples: int) -> tuple[Reader, RunConfig]:
    source = write_shards(folder / "in", questions)
    config = RunConfig(
        input=str(source), output=str(folder / "out"), num_samples=num_samples, decoding=DRAWN
    )
    run = check(config)
    return Reader(config, run.inputs, run.files, run.face, run.face.max_length), config


def test_a_prompt_is_tokenised_once_for_all_its_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, _ = reader_of(tmp_path, QUESTIONS, 5)
    texts: list[str] = []
    encode = reader_module.encode_prompts

    def counted(model: Any, prompts: list[str], *settings: Any) -> Any:
        texts.extend(prompts)
        return encode(model, prompts, *settings)

    monkeypatch.setattr(reader_module, "encode_prompts", counted)
    found = reader.read(0)
    assert texts == QUESTIONS
    assert [(p.index, p.sample) for p in found.prompts] == [
        (index, sample) for index in range(len(QUESTIONS)) for sample in range(5)
    ]
    lists = {id(prompt.token_ids) for prompt in found.prompts}
    assert len(lists) == len(QUESTIONS), "samples share one list of tokens"


def test_a_prompt_that_cannot_be_decoded_fails_once_a_sample(tmp_path: Path) -> None:
    reader, _ = reader_of(tmp_path, [QUESTIONS[0], None, " ", QUESTIONS[1]], 3)
    found = reader.read(0)
    failed = found.failed.to_pylist()
    assert [row["row_id"] for row in failed] == [row_id(0, n, s) for n in (1, 2) for s in range(3)]
    assert [row["sample"] for row in failed] == [0, 1, 2, 0, 1, 2]
    assert len(found.prompts) == 6


def test_what_is_on_storage_is_not_read_again(tmp_path: Path) -> None:
    reader, config = reader_of(tmp_path, QUESTIONS[:3], 3)
    shard = OpenShard(0, pa.table({"prompt": QUESTIONS[:3]}), Layout(3))
    shard.add(results_batch([good(0, 0, s) for s in range(3)] + [good(0, 2, 1)]), stored=True)
    found = reader.encode(shard)
    assert [(p.index, p.sample) for p in found.prompts] == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 2)]
    assert config.num_samples == 3


# Shards.

KINDS: dict[str, pa.Array] = {
    "text": pa.array([f"text {n}" for n in range(7)]),
    "view": pa.array([f"a view of text {n}" for n in range(7)], pa.string_view()),
    "words": pa.array([["a"] * n for n in range(7)], pa.list_view(pa.string())),
    "dictionary": pa.array(["x", "y", None, "x", "z", "y", "x"]).dictionary_encode(),
    "nested": pa.array([{"a": [n, None], "b": {"c": str(n)}} for n in range(7)]),
    "empty": pa.nulls(7),
    "bytes": pa.array([bytes([n]) * n for n in range(7)], pa.large_binary()),
    "fixed": pa.array([[n, n] for n in range(7)], pa.list_(pa.int8(), 2)),
}


@pytest.mark.parametrize("num_samples", [1, 2, 3, 16])
@pytest.mark.parametrize("group_rows", [1, 4, 5, 1000])
def test_a_shard_has_each_prompt_for_all_its_samples(
    num_samples: int, group_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result_shards, "ROW_GROUP_ROWS", group_rows)
    layout, prompts = Layout(num_samples), pa.table(KINDS)
    rows = [good(0, n, s) for n in range(7) for s in layout.samples]
    arrived = rows[:]
    random.Random(group_rows).shuffle(arrived)
    parts = [results_batch(arrived[n : n + 5], layout.schema) for n in range(0, len(arrived), 5)]
    content = result_shards.shard_bytes(prompts, pa.Table.from_batches(parts), {}, layout)
    file = pq.ParquetFile(pa.BufferReader(content))
    table = file.read()
    assert table["row_id"].to_pylist() == [row.row_id for row in rows]
    assert table["output_text"].to_pylist() == [row.output_text for row in rows]
    assert table["sample"].to_pylist() == [*range(num_samples)] * 7
    for name, column in KINDS.items():
        expected = [value for value in column.to_pylist() for _ in range(num_samples)]
        assert table[name].to_pylist() == expected, name
    sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    assert max(sizes) <= group_rows
    assert sum(sizes) == 7 * num_samples


PEAK = """
import pyarrow as pa
from helpers.runs import good
from pipeline.output import result_shards
from pipeline.rows import Layout, results_batch
result_shards.ROW_GROUP_ROWS = 16
layout = Layout(64)
prompts = pa.table({"prompt": [f"{n % 10}" * (1 << 20) for n in range(64)]})
rows = [good(0, n, s) for n in range(64) for s in layout.samples]
results = pa.Table.from_batches([results_batch(rows, layout.schema)])
result_shards.shard_bytes(prompts, results, {}, layout)
print(prompts.nbytes, pa.default_memory_pool().max_memory())
"""


@pytest.mark.slow
def test_a_commit_has_the_prompts_once() -> None:
    """64 samples of 64 MB of prompts: repeated in memory, they would be 4 GB."""
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", PEAK],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    num_bytes, peak = map(int, done.stdout.split())
    assert num_bytes > 1 << 26
    assert peak < 4 * num_bytes


# Storage: once, whatever happens.


def test_every_sample_is_taken_once_and_survives_the_driver(tmp_path: Path) -> None:
    made = MadeRun(tmp_path, num_shards=2, num_rows=3, layout=Layout(4)).begin()
    made.add(0, [11, 3, 0])
    made.add(0, [3, 4])
    assert made.ledger.shards[0].num_done == 4
    state = Inspector(made.storage).snapshot()
    assert [(s.num_rows, s.num_done) for s in state.shards] == [(12, 4), (12, 0)]
    made.end()
    again = MadeRun(tmp_path, num_shards=2, num_rows=3, layout=Layout(4)).begin()
    shard = again.open_shard(0)
    assert [shard.missing(n) for n in range(3)] == [[1, 2], [1, 2, 3], [0, 1, 2]]
    assert not shard.complete
    again.ledger.open(shard)
    again.whole()
    again.end()
    table = pq.read_table(again.shard(0))
    assert table["row_id"].to_pylist() == [Layout(4).row_id(0, n) for n in range(12)]
    assert table["prompt"].to_pylist() == [f"prompt 0 {n}" for n in range(3) for _ in range(4)]
    assert (summarize(again.storage).num_rows, again.ledger.plan.num_rows) == (24, 24)


def test_failed_samples_alone_are_retried(tmp_path: Path) -> None:
    made = MadeRun(tmp_path, num_shards=1, num_rows=2, layout=Layout(3)).begin()
    made.whole(failed=[1, 5]).end()
    assert summarize(made.storage).num_failed == 2
    retry = MadeRun(tmp_path, num_shards=1, num_rows=2, layout=Layout(3)).begin()
    retry.ledger.retry_failed = True
    assert retry.ledger.owed() == [0]
    shard = retry.open_shard(0)
    assert [shard.missing(n) for n in range(2)] == [[1], [2]]
    retry.ledger.open(shard)
    retry.add(0, [1, 5])
    retry.end()
    assert pq.read_table(retry.shard(0))["status"].to_pylist() == ["ok"] * 6


# What looks at a run.


@pytest.fixture
def whole(tmp_path: Path) -> MadeRun:
    """Three shards of four prompts with three samples each, one of them failed."""
    return MadeRun(tmp_path, layout=Layout(3)).begin().whole(failed=[7]).end()


def findings(made: MadeRun) -> list[str]:
    return [str(f) for f in Verification(made.storage, Storage(str(made.folder / "in"))).findings()]


def test_a_whole_run_verifies(whole: MadeRun) -> None:
    assert findings(whole) == []
    verification = Verification(whole.storage)
    list(verification.findings())
    assert (verification.num_rows, verification.num_failed) == (36, 3)


def repeated_id(table: pa.Table) -> pa.Table:
    ids = table["row_id"].to_pylist()
    return with_column(table, "row_id", [*ids[:4], ids[3], *ids[5:]])


def repeated_sample(table: pa.Table) -> pa.Table:
    return with_column(table, "sample", [*[0, 1, 2] * 3, 0, 2, 2])


def another_prompt(table: pa.Table) -> pa.Table:
    texts = table["prompt"].to_pylist()
    return with_column(table, "prompt", [*texts[:2], texts[3], *texts[3:]])


WRONG = {
    "sample lost": (lambda table: table.slice(0, 11), "00001-00000003-2: is missing"),
    "sample twice": (repeated_id, "00001-00000001-1: is missing"),
    "order": (lambda table: table.take([0, 2, 1, *range(3, 12)]), "not in its place"),
    "number": (repeated_sample, "00000003-1: its sample is not that of its row"),
    "prompt": (another_prompt, "00000000-2: its input columns are not the input's row"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_by_its_sample(name: str, whole: MadeRun) -> None:
    change, expected = WRONG[name]
    whole.rewrite(1, change)
    assert any(expected in finding for finding in findings(whole)), findings(whole)


def test_status_counts_samples_and_says_of_how_many_prompts(
    whole: MadeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status.run(parse(status, str(whole.output))) == 0
    printed = capsys.readouterr().out
    assert "36 of 36 done (100.0%), 3 failed, 0 left" in printed
    assert "12 prompts × 3 samples" in printed


def test_the_report_counts_samples(tmp_path: Path) -> None:
    rows = write_run(tmp_path / "run", (5, 4), failed_every=7, decoding=drawn(), layout=Layout(3))
    report = make_report(Storage(str(tmp_path / "run")))
    assert (report.counts.num_rows, rows.num_rows) == (27, 27)
    assert "3 samples a prompt" in report.html
    assert "00000-00000004-2" in report.html


def drawn() -> DecodingConfig:
    return DecodingConfig.preset("fast", gen_length=64, block_length=32, temperature=1.0)


def test_the_plan_is_of_rows_times_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_shards(tmp_path / "in", [*QUESTIONS, None], num_shards=2)
    words = ["--input", str(source), "--output", str(tmp_path / "out"), "--gen-length", "32"]
    words += ["--num-samples", "3", "--temperature", "1"]
    args = parse(plan, *words)
    assert plan.run(args) == 0
    printed = capsys.readouterr().out
    assert "9 rows in 2 shards × 3 samples = 27 rows to decode" in printed
    assert "refused   1 rows cannot be decoded and will be failed rows, 3 each" in printed
    config = run_config(args)
    run = check(config)
    found = forecast(run, config)
    assert sum(rows_left(found, None).values()) == pytest.approx(3 * len(QUESTIONS))


def test_a_shard_that_its_samples_make_large_is_worth_a_note(tmp_path: Path) -> None:
    source = write_shards(tmp_path / "in", ["How many?"] * 60)
    for num_samples, expected in ((1, 0), (MANY_ROWS // 60, 0), (MANY_ROWS // 60 + 1, 1)):
        config = RunConfig(
            input=str(source), output=str(tmp_path / "out"), num_samples=num_samples, decoding=DRAWN
        )
        notes = [note for note in check(config).notes if "samples make a shard of" in note]
        assert len(notes) == expected


# Poison.


def hunt(num_prompts: int, num_samples: int, poison: int, slots: int) -> tuple[Counter[int], int]:
    """Rows given up of each prompt, and deaths, where one prompt kills every replica."""
    bucket = Bucket(8, 32)
    waiting = [Prompt(0, n, [1], bucket, s) for n in range(num_prompts) for s in range(num_samples)]
    suspects, deaths, given_up = Suspects(3), 0, Counter[int]()
    while waiting or len(suspects):
        batch = suspects.take() or [waiting.pop(0) for _ in range(min(slots, len(waiting)))]
        if all(prompt.index != poison for prompt in batch):
            continue
        deaths += 1
        alone = len({prompt.row for prompt in batch}) == 1
        suspects.died(Death("killed", batch, [], alone, "node", False, 0.0))
        given_up.update(p.index for p, _ in suspects.decide(1.0, lambda node: False).given_up)
    return given_up, deaths


@pytest.mark.parametrize("num_samples", [1, 4, 16, 64])
def test_a_prompt_that_kills_does_not_kill_three_times_a_sample(num_samples: int) -> None:
    given_up, deaths = hunt(12, num_samples, poison=5, slots=16)
    assert given_up == {5: num_samples}
    # The prompt is found by halving; of the samples that come later each slotful costs one death.
    assert deaths <= 1 + 4 + 3 + -(-num_samples // 16)


# A run.


def run(source: Path, output: Path, num_samples: int, **settings: Any) -> pa.Table:
    settings = {"cpus_per_replica": 1.0, "decoding": DRAWN, "flush_seconds": 0.2, **settings}
    hooks = {n: settings.pop(n) for n in ("on_driver", "on_progress") if n in settings}
    config = RunConfig(input=str(source), output=str(output), num_samples=num_samples, **settings)
    run_generate(config, **hooks)
    return read(output)


def read(output: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted((output / "data").iterdir()))


@pytest.fixture(scope="module")
def four(kept_replicas: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pa.Table]:
    """Prompts, and four samples of each by one replica with one slot."""
    folder = tmp_path_factory.mktemp("four")
    source = write_shards(folder / "in", QUESTIONS, 2, number=range(len(QUESTIONS)))
    return source, run(source, folder / "out", 4, replicas=1, slots=1)


def test_a_run_has_every_sample_in_order(four: tuple[Path, pa.Table]) -> None:
    source, rows = four
    assert rows["number"].to_pylist() == [n for n in range(8) for _ in range(4)]
    assert rows["sample"].to_pylist() == [0, 1, 2, 3] * 8
    ids = rows["row_id"].to_pylist()
    assert ids == sorted(ids) == [row_id(n // 4, n % 4, s) for n in range(8) for s in range(4)]
    answers = [rows["output_token_ids"].to_pylist()[n : n + 4] for n in range(0, 32, 4)]
    assert sum(len({tuple(canvas) for canvas in some}) for some in answers) > 16, "drawn apart"
    found = datasets.load_dataset(
        "parquet",
        data_dir=str(source.parent / "out" / "data"),
        split="train",
        cache_dir=str(source.parent / "cache"),
    )
    assert found["sample"][:] == rows["sample"].to_pylist()
    assert findings_of(source, source.parent / "out") == []


def findings_of(source: Path, output: Path) -> list[str]:
    return list(map(str, Verification(Storage(str(output)), Storage(str(source))).findings()))


@pytest.mark.usefixtures("kept_replicas")
def test_a_sample_depends_neither_on_slots_nor_on_how_many_there_are(
    four: tuple[Path, pa.Table], tmp_path: Path
) -> None:
    source, rows = four
    two = run(source, tmp_path / "out", 2, replicas=2, slots=5)
    kept = [n for n in range(32) if n % 4 < 2]
    assert two.drop_columns(OF_THE_RUN).equals(rows.take(kept).drop_columns(OF_THE_RUN))


@pytest.mark.usefixtures("kept_replicas")
def test_an_interrupted_run_continues_in_the_middle_of_a_prompt(
    four: tuple[Path, pa.Table], tmp_path: Path
) -> None:
    source, rows = four
    driver: list[Driver] = []

    def stop(progress: Any) -> None:
        if 5 <= progress.num_done < 32:
            driver[0].stop()

    settings = {"replicas": 1, "slots": 3, "on_driver": driver.append}
    with pytest.raises(RunStoppedError):
        run(source, tmp_path / "out", 4, on_progress=stop, **settings)
    state = Inspector(Storage(str(tmp_path / "out"))).snapshot()
    assert 0 < state.num_done < state.num_rows == 32
    found = run(source, tmp_path / "out", 4, replicas=1, slots=3)
    assert found.drop_columns(OF_THE_RUN).equals(rows.drop_columns(OF_THE_RUN))


@pytest.mark.usefixtures("kept_replicas")
def test_the_command_retries_the_samples_of_a_prompt_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = [*QUESTIONS[:2], "Xanthippe has 2 apples. How many is that?"]
    source, output = write_shards(tmp_path / "in", questions), tmp_path / "out"
    rule = '[{"at": "replica.place", "match": "*Xanthippe*", "do": "nan"}]'
    words = ["--gen-length", "32", "--replicas", "1", "--cpus-per-replica", "1", "--slots", "4"]
    words += ["--num-samples", "3", "--temperature", "0.8"]
    monkeypatch.setenv("LRD_FAULTS", rule)
    code = generate.run(parse(generate, "--input", str(source), "--output", str(output), *words))
    before = read(output)
    assert code == 3
    assert before["status"].to_pylist() == ["ok"] * 6 + ["failed"] * 3
    monkeypatch.delenv("LRD_FAULTS")
    assert retry_failed.run(parse(retry_failed, str(output))) == 0
    after = read(output)
    assert after["status"].to_pylist() == ["ok"] * 9
    assert after.slice(0, 6).equals(before.slice(0, 6))
    assert "driver finished" in {event["event"] for event in events(output)}
