"""`--gen-length auto`: rows that move to longer canvases, through every part of a run."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.commands import parse
from helpers.few import few
from helpers.shards import OF_THE_RUN, distinct_questions, events, write_shards

import lrd
from jobs import cli, generate, plan, retry_failed
from jobs.flags import run_config
from jobs.submit import entrypoint_of
from lrd import DecodingConfig
from lrd.prompts import encode_prompt
from lrd.sample import Spent
from pipeline.config import RunConfig
from pipeline.driver import Driver
from pipeline.input.reader import Reader
from pipeline.inspection.verify import Verification
from pipeline.preflight import check
from pipeline.replicas.deaths import Death, RunStoppedError, Suspects
from pipeline.report.report import make_report
from pipeline.rows import Bucket, Prompt
from pipeline.run import generate as run_generate
from pipeline.storage.storage import Storage

QUESTIONS = distinct_questions(24, seed=41)
FAST = DecodingConfig.preset("fast", gen_length=12, max_gen_length=48, eos_window=4)
BLOCKS = DecodingConfig.preset(
    "blocks", gen_length=16, max_gen_length=64, block_length=8, eos_window=8
)
DECODINGS = {
    "whole canvas": FAST,
    "blocks": BLOCKS,
    "one a pass": DecodingConfig.preset("baseline", gen_length=12, max_gen_length=48, eos_window=4),
}


def run(source: Path, output: Path, decoding: DecodingConfig, **more: Any) -> pa.Table:
    hooks = {n: more.pop(n) for n in ("on_driver", "on_progress") if n in more}
    settings = {"cpus_per_replica": 1.0, "replicas": 1, "slots": 5, "flush_seconds": 0.2, **more}
    config = RunConfig(input=str(source), output=str(output), decoding=decoding, **settings)
    run_generate(config, **hooks)
    return read(output)


def read(output: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted((output / "data").iterdir()))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("moves") / "in", QUESTIONS, 3)


@pytest.fixture(scope="module")
def whole(kept_replicas: None, source: Path) -> pa.Table:
    """By one replica with one slot."""
    return run(source, source.parent / "whole", FAST, slots=1)


def same(found: pa.Table, expected: pa.Table) -> bool:
    return bool(found.drop_columns(OF_THE_RUN).equals(expected.drop_columns(OF_THE_RUN)))


# Runs.


@pytest.mark.parametrize("name", few(DECODINGS))
@pytest.mark.usefixtures("kept_replicas")
def test_rows_are_those_of_the_library(name: str, source: Path, tmp_path: Path) -> None:
    """With all passes of all canvases."""
    config = DECODINGS[name]
    rows = run(source, tmp_path / "out", config).to_pylist()
    model = lrd.load_model("tiny")
    samples = lrd.decode(model, [encode_prompt(model, text) for text in QUESTIONS], config)
    lengths = Counter(row["canvas_length"] for row in rows)
    assert len(lengths) > 1, "some rows move"
    assert set(lengths) <= set(config.canvases)
    for row, sample in zip(rows, samples, strict=True):
        assert row["output_token_ids"] == sample.canvas
        assert row["canvas_length"] == len(sample.canvas)
        assert row["commit_step"] == sample.commit_step
        for count in ("num_forwards", "refine_steps", "decode_steps", "full_passes"):
            assert row[count] == getattr(sample, count)
        assert row["positions_computed"] == sample.positions_computed
        assert len(row["kl_trace"]) == len(row["entropy_trace"]) == sample.num_forwards
        assert row["stop_reason"] == sample.stop_reason != "grow"
        assert row["attempts"] == 1
    assert findings(source, tmp_path / "out") == []


def findings(source: Path, output: Path) -> list[str]:
    return list(map(str, Verification(Storage(str(output)), Storage(str(source))).findings()))


def test_the_report_says_how_long_canvases_get(source: Path, whole: pa.Table) -> None:
    report = make_report(Storage(str(source.parent / "whole")))
    assert "of a canvas of 12 to 48: mean" in report.html
    assert report.counts.num_rows == whole.num_rows


@pytest.mark.usefixtures("kept_replicas")
def test_a_row_depends_neither_on_slots_nor_on_its_neighbours(
    source: Path, whole: pa.Table, tmp_path: Path
) -> None:
    found = run(source, tmp_path / "out", FAST, replicas=2, slots=7)
    assert same(found, whole)


@pytest.mark.usefixtures("kept_replicas")
def test_an_interrupted_run_continues(source: Path, whole: pa.Table, tmp_path: Path) -> None:
    driver: list[Driver] = []

    def stop(progress: Any) -> None:
        if 4 <= progress.num_done < 24:
            driver[0].stop()

    more = {"slots": 3, "on_driver": driver.append, "on_progress": stop}
    with pytest.raises(RunStoppedError):
        run(source, tmp_path / "out", FAST, **more)
    assert same(run(source, tmp_path / "out", FAST, slots=4), whole)


@pytest.mark.usefixtures("kept_replicas")
@pytest.mark.slow
def test_replicas_that_die_change_no_row(
    source: Path, whole: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attempts count deaths and not moves."""
    rule = [{"at": "replica.pass", "do": "kill", "chance": 0.06}]
    monkeypatch.setenv("LRD_FAULTS", json.dumps(rule))
    more = {"replicas": 2, "slots": 4, "max_attempts": 50, "max_restarts": 1000}
    found = run(source, tmp_path / "out", FAST, **more)
    died = [event for event in events(tmp_path / "out") if event["event"] == "replica died"]
    assert died
    assert same(found, whole)
    assert max(found["attempts"].to_pylist()) <= 1 + len(died)


@pytest.mark.usefixtures("kept_replicas")
@pytest.mark.slow
def test_a_row_that_kills_its_replica_is_quarantined_and_others_move(
    source: Path, whole: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = next(n for n, row in enumerate(whole.to_pylist()) if row["canvas_length"] > 12)
    words = QUESTIONS[poison][:40].replace("[", "?").replace("?", "*")
    rule = [{"at": "replica.place", "match": f"*{words}*", "do": "kill"}]
    monkeypatch.setenv("LRD_FAULTS", json.dumps(rule))
    found = run(source, tmp_path / "out", FAST, replicas=2, slots=4, max_attempts=2)
    failed = [n for n, status in enumerate(found["status"].to_pylist()) if status == "failed"]
    assert failed == [poison]
    others = [n for n in range(24) if n != poison]
    assert same(found.take(others), whole.take(others))


@pytest.mark.usefixtures("kept_replicas")
@pytest.mark.slow
def test_samples_of_a_prompt_move_one_by_one(source: Path, tmp_path: Path) -> None:
    drawn = FAST.model_copy(update={"temperature": 4.0, "eos_enough": 0.0})
    one, two = (
        run(source, tmp_path / str(n), drawn, num_samples=3, slots=n, replicas=1) for n in (1, 8)
    )
    assert same(one, two)
    lengths = one["canvas_length"].to_pylist()
    assert any(len(set(lengths[n : n + 3])) > 1 for n in range(0, 72, 3))


@pytest.mark.slow
@pytest.mark.usefixtures("kept_replicas")
def test_a_row_that_fails_in_a_longer_canvas_is_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = [*QUESTIONS[:3], "Xanthippe has 2 apples. How many is that?"]
    source, output = write_shards(tmp_path / "in", questions), tmp_path / "out"
    rule = [{"at": "replica.place", "match": "*Xanthippe*", "do": "nan"}]
    monkeypatch.setenv("LRD_FAULTS", json.dumps(rule))
    before = run(source, output, FAST)
    assert before["status"].to_pylist() == ["ok"] * 3 + ["failed"]
    monkeypatch.delenv("LRD_FAULTS")
    assert retry_failed.run(parse(retry_failed, str(output))) == 0
    assert same(read(output), run(source, tmp_path / "calm", FAST))


# The driver's part.


SPENT = Spent(1, 2, 3, 4, [0.5], [0.25], 0.5)


def test_a_row_moves_to_the_next_canvas_with_all_it_took() -> None:
    prompt = Prompt(0, 1, [1], Bucket(16, 12), sample=2, begun=1, suspect=True, deaths_alone=1)
    once = prompt.moved(FAST.canvases, SPENT)
    assert once == replace(prompt, bucket=Bucket(16, 24), spent=SPENT)
    assert once.moved(FAST.canvases, SPENT).bucket == (16, 48)


def test_suspects_in_canvases_of_two_lengths_are_tried_apart() -> None:
    short = [Prompt(0, n, [1], Bucket(16, 12)) for n in range(2)]
    long = [Prompt(0, n, [1], Bucket(16, 24), spent=SPENT) for n in range(2, 4)]
    suspects = Suspects(3)
    suspects.died(Death("killed", [*short, *long], [], False, "node", False, 0.0))
    suspects.decide(1.0, lambda node: False)
    groups = []
    while group := suspects.take():
        assert len({prompt.bucket for prompt in group}) == 1
        groups.append([prompt.spent for prompt in group])
    assert groups == [[None], [None], [SPENT], [SPENT]]


# Settings.


def test_a_prompts_room_is_what_the_longest_canvas_leaves(tmp_path: Path) -> None:
    model = lrd.load_model("tiny", "meta")
    ids = encode_prompt(model, QUESTIONS[0])
    source = write_shards(tmp_path / "in", QUESTIONS[:1])
    for over, fits in ((0, True), (1, False)):
        longest = model.max_length - len(ids) + over
        decoding = FAST.model_copy(update={"max_gen_length": longest})
        config = RunConfig(input=str(source), output=str(tmp_path / "o"), decoding=decoding)
        seen = check(config)
        found = Reader(config, seen.inputs, seen.files, seen.face, seen.face.max_length).read(0)
        assert [prompt.bucket for prompt in found.prompts] == [(len(ids), 12)] * fits


@pytest.mark.parametrize("command", ["generate", "plan"])
def test_a_longest_canvas_without_room_is_one_line(
    command: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--input", str(source), "--output", str(tmp_path / "out"), "--gen-length", "auto"]
    assert cli.run([command, *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "max_gen_length 512 leaves no room for a prompt in the model's 512 positions" in line
    assert "--max-gen-length" in line
    assert not (tmp_path / "out").exists()


def test_auto_is_written_as_a_flag_and_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('input = "i"\noutput = "o"\n[decoding]\ngen_length = "auto"\n')
    places = ["--input", "i", "--output", "o"]
    given = [
        run_config(parse(generate, "--config", str(file))),
        run_config(parse(generate, *places, "--gen-length", "auto")),
    ]
    assert given[0] == given[1]
    assert given[0].decoding.canvases == (64, 128, 256, 512)
    line = entrypoint_of(given[0]).split()
    assert run_config(parse(generate, *line[3:])) == given[0]


def test_the_plan_has_the_first_canvas_and_the_memory_of_the_longest(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--input", str(source), "--output", str(tmp_path / "out"), "--gen-length", "12"]
    assert plan.run(parse(plan, *words, "--max-gen-length", "48")) == 0
    printed = capsys.readouterr().out
    assert " + 48 tokens: 1 takes" in printed
    assert "canvas    rows begin in 12 positions and move to 24 and 48 where they need them" in (
        printed
    )
