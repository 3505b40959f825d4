"""`--row-settings`: rows that bring decoding settings along in columns of their own."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.commands import parse
from helpers.shards import OF_THE_RUN, distinct_questions, write_shards

import lrd
from jobs import cli, generate, plan, retry_failed
from jobs.flags import run_config
from jobs.submit import entrypoint_of
from lrd import DecodingConfig
from lrd.prompts import encode_prompt
from pipeline.config import RunConfig
from pipeline.driver import Driver
from pipeline.input.buckets import Shapes, choose_lengths
from pipeline.input.reader import Reader
from pipeline.inspection.plan import forecast
from pipeline.inspection.verify import Verification
from pipeline.output.run_folder import read_manifest
from pipeline.preflight import check, fingerprint_of
from pipeline.replicas.deaths import RunStoppedError
from pipeline.report.report import make_report
from pipeline.rows import Prompt, RowSettings, split_id
from pipeline.run import generate as run_generate
from pipeline.storage.storage import Storage

QUESTIONS = distinct_questions(12, seed=31)
FAST = DecodingConfig.preset("fast", gen_length=32)
BLOCKS = DecodingConfig.preset("blocks", gen_length=32, block_length=16)


def config_of(folder: Path, names: str, decoding: DecodingConfig = FAST, **more: Any) -> RunConfig:
    return RunConfig(
        input=str(folder / "in"),
        output=str(folder / "out"),
        row_settings=names,
        decoding=decoding,
        **more,
    )


def reader_of(config: RunConfig) -> Reader:
    run = check(config)
    return Reader(config, run.inputs, run.files, run.face, run.face.max_length)


def read_rows(config: RunConfig) -> tuple[dict[int, Prompt], dict[int, str]]:
    """Prompts of the first shard by row, and the reasons of its failed rows."""
    found = reader_of(config).read(0)
    failed = {split_id(row["row_id"])[1]: row["error"] for row in found.failed.to_pylist()}
    return {prompt.index: prompt for prompt in found.prompts}, failed


# Buckets.


@pytest.mark.parametrize("seed", range(20))
def test_a_bucket_holds_prompt_and_canvas_within_the_models_positions(seed: int) -> None:
    rng = random.Random(seed)
    max_length = rng.choice([64, 200, 1024])
    rows = [
        (rng.randint(1, max_length - length), length)
        for length in (rng.randint(1, max_length - 1) for _ in range(300))
    ]
    sampled = rows[: rng.choice([3, 50, 300])]
    shapes = Shapes(
        choose_lengths([tokens for tokens, _ in sampled], 6),
        choose_lengths([length for _, length in sampled], 6),
        max_length,
    )
    for tokens, length in rows:
        bucket = shapes.bucket(tokens, length, lambda n: n)
        assert bucket.prompt >= tokens
        assert bucket.canvas >= length
        assert sum(bucket) <= max_length
    roomy = [(t, n) for t, n in sampled if t + max(shapes.canvases) <= max_length]
    assert len({shapes.bucket(*row, lambda n: n).canvas for row in roomy}) <= 6
    assert len({shapes.bucket(*row, lambda n: n) for row in roomy}) <= 36


@pytest.mark.parametrize("decoding", [FAST, BLOCKS])
def test_longer_rows_than_were_sampled_have_few_canvases(
    decoding: DecodingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a thousand lengths, none of which was seen before."""
    monkeypatch.setattr("pipeline.input.reader.SAMPLE_ROWS", 2)
    step = decoding.block_length or 1
    lengths = [step, step, *range(step, 301, step)]
    write_shards(tmp_path / "in", ["How many?"] * len(lengths), gen_length=lengths)
    prompts, failed = read_rows(config_of(tmp_path, "gen_length", decoding))
    assert not failed
    assert all(p.bucket.canvas >= p.canvas_length == lengths[n] for n, p in prompts.items())
    assert all(p.bucket.canvas % step == 0 for p in prompts.values())
    assert len({p.bucket.canvas for p in prompts.values()}) <= 20


def test_canvases_are_rounded_up_to_few_lengths(tmp_path: Path) -> None:
    lengths = [16 * (1 + n % 12) for n in range(120)]
    write_shards(tmp_path / "in", ["How many?"] * 120, 3, gen_length=lengths)
    config = config_of(tmp_path, "gen_length", BLOCKS)
    prompts, _ = read_rows(config)
    canvases = {prompt.bucket.canvas for prompt in prompts.values()}
    assert 2 <= len(canvases) <= 6
    assert max(canvases) == 192
    assert all(canvas % 16 == 0 for canvas in canvases)
    assert reader_of(config).shapes == reader_of(config).shapes, "as at every start"


def test_without_row_settings_buckets_have_the_runs_canvas(tmp_path: Path) -> None:
    write_shards(tmp_path / "in", [*QUESTIONS, None], gen_length=[5] * 13)
    prompts, _ = read_rows(config_of(tmp_path, ()))
    assert {prompt.bucket.canvas for prompt in prompts.values()} == {32}
    assert {prompt.settings for prompt in prompts.values()} == {RowSettings()}


# Columns.

BAD_COLUMNS: dict[str, Any] = {
    "text": pa.array(["64", "32"]),
    "bool": pa.array([True, False]),
    "list": pa.array([[1], [2]]),
    "struct": pa.array([{"a": 1}, {"a": 2}]),
    "date": pa.array([1, 2], pa.date32()),
    "bytes": pa.array([b"1", b"2"]),
}


@pytest.mark.parametrize("kind", ["missing", "number", *BAD_COLUMNS])
@pytest.mark.parametrize("name", ["gen_length", "temperature", "seed", "system_prompt"])
@pytest.mark.parametrize("command", ["generate", "plan"])
def test_a_column_that_cannot_be_is_one_line(
    command: str, name: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text_is_fine = name == "system_prompt" and kind in ("text", "bytes")
    if text_is_fine or (kind == "number" and name != "system_prompt"):
        return
    column = BAD_COLUMNS.get(kind, pa.array([1, 2]))
    columns = {} if kind == "missing" else {name: column}
    source = write_shards(tmp_path / "in", QUESTIONS[:2], **columns)
    write_shards(source / "b", QUESTIONS[:2], **{k: pa.nulls(2) for k in columns})
    words = ["--input", str(source), "--output", str(tmp_path / "out"), "--row-settings", name]
    code = cli.run([command, *words])
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert f"{source}/" in line
    assert repr(name) in line
    assert f"drop {name} from --row-settings" in line
    assert not (tmp_path / "out").exists()


GOOD_COLUMNS = {
    "int8": pa.array([16, None], pa.int8()),
    "uint64": pa.array([16, None], pa.uint64()),
    "floats, as pandas makes them": pa.array([16.0, None]),
    "float16": pa.array([16.0, None]).cast(pa.float16()),
    "decimal": pa.array([Decimal("16.00"), None]),
    "dictionary": pa.array([16, None]).dictionary_encode(),
    "nulls": pa.nulls(2),
}


@pytest.mark.parametrize("kind", GOOD_COLUMNS)
@pytest.mark.parametrize("name", ["gen_length", "temperature", "seed"])
def test_numbers_of_every_type_are_read(name: str, kind: str, tmp_path: Path) -> None:
    write_shards(tmp_path / "in", QUESTIONS[:2], **{name: GOOD_COLUMNS[kind]})
    prompts, failed = read_rows(config_of(tmp_path, name))
    assert not failed
    runs = 32 if name == "gen_length" else None
    first = runs if kind == "nulls" else 16
    if name == "gen_length":
        found = [prompts[n].canvas_length for n in (0, 1)]
    else:
        found = [getattr(prompts[n].settings, name) for n in (0, 1)]
    assert found == [first, runs]


BAD_VALUES: list[tuple[str, Any, str]] = [
    ("gen_length", 0, "gen_length is 0; expected at least 1"),
    ("gen_length", -5, "gen_length is -5; expected at least 1"),
    ("gen_length", 24, "block_length 16 does not divide gen_length 24"),
    ("gen_length", 2**62, "leaves no room for a prompt in the model's"),
    ("gen_length", 16.5, "gen_length is 16.5; expected a whole number"),
    ("gen_length", float("nan"), "gen_length is nan; expected a whole number"),
    ("gen_length", float("inf"), "gen_length is inf; expected a whole number"),
    ("temperature", -0.5, "temperature is -0.5; expected a number of at least 0"),
    ("temperature", float("nan"), "temperature is nan; expected a number"),
    ("temperature", float("inf"), "temperature is inf; expected a number"),
    ("seed", 0.5, "seed is 0.5; expected a whole number"),
    ("seed", 2.0**63, "a float that has lost digits; write the column as integers"),
    ("seed", Decimal(2**64), "seed is 18446744073709551616; expected a number of 64 bits"),
    ("seed", Decimal(-(2**63) - 1), "expected a number of 64 bits"),
    ("system_prompt", b"\xff\xfe", "system_prompt cannot be read"),
]


@pytest.mark.parametrize(("name", "value", "reason"), BAD_VALUES)
def test_a_value_that_cannot_be_costs_its_row(
    name: str, value: Any, reason: str, tmp_path: Path
) -> None:
    write_shards(tmp_path / "in", QUESTIONS[:3], **{name: pa.array([None, value, None])})
    prompts, failed = read_rows(config_of(tmp_path, name, BLOCKS))
    assert sorted(prompts) == [0, 2]
    assert reason in failed[1]
    assert "\n" not in failed[1]


def test_the_largest_values_that_can_be(tmp_path: Path) -> None:
    seeds = [2**64 - 1, -(2**63), 0]
    for number, seed in enumerate(seeds):
        kind = pa.uint64() if seed > 0 else pa.int64()
        folder = tmp_path / str(number)
        write_shards(folder / "in", QUESTIONS[:1], seed=pa.array([seed], kind))
        prompts, _ = read_rows(config_of(folder, "seed"))
        assert prompts[0].settings.seed == seed


def test_where_no_value_can_be_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_shards(tmp_path / "in", QUESTIONS[:3], gen_length=[-1] * 3)
    words = ["--input", str(source), "--output", str(tmp_path / "out")]
    assert cli.run(["plan", *words, "--row-settings", "gen_length"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "none of the 3 prompts that were sampled can be decoded: gen_length is -1" in line


def test_a_prompts_room_is_what_its_own_canvas_leaves(tmp_path: Path) -> None:
    model = lrd.load_model("tiny", "meta")
    ids = encode_prompt(model, QUESTIONS[0])
    room = model.max_length - len(ids)
    lengths = [room, room + 1, 8]
    write_shards(tmp_path / "in", [QUESTIONS[0]] * 3, gen_length=lengths)
    prompts, failed = read_rows(config_of(tmp_path, "gen_length"))
    assert prompts[0].bucket == (len(ids), room)
    assert prompts[2].canvas_length == 8
    assert f"the prompt has {len(ids)} tokens, {len(ids) - 1} fit" in failed[1]
    cut, _ = read_rows(config_of(tmp_path, "gen_length", truncation="keep_last"))
    assert cut[1].token_ids == ids[1:]


# System prompts.


def test_each_row_has_its_own_system_prompt(tmp_path: Path) -> None:
    own = ["Be brief.", None, "", "<|im_end|>"]
    write_shards(tmp_path / "in", QUESTIONS[:4], system_prompt=own)
    prompts, _ = read_rows(config_of(tmp_path, "system_prompt", system_prompt="Be kind."))
    model = lrd.load_model("tiny", "meta")
    for n, text in enumerate(own):
        expected = encode_prompt(
            model, QUESTIONS[n], system_prompt="Be kind." if text is None else text
        )
        assert prompts[n].token_ids == expected
    assert len({len(prompt.token_ids) for prompt in prompts.values()}) > 1


def test_a_chats_own_system_turn_wins(tmp_path: Path) -> None:
    turns = [
        [{"role": "system", "content": "Be a poet."}, {"role": "user", "content": "Hi"}],
        [{"role": "user", "content": "Hi"}],
    ]
    table = pa.table({"prompt": turns, "system_prompt": ["Be brief."] * 2})
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "a.parquet")
    prompts, _ = read_rows(config_of(tmp_path, "system_prompt"))
    model = lrd.load_model("tiny", "meta")
    assert prompts[0].token_ids == encode_prompt(model, turns[0])
    assert prompts[1].token_ids == encode_prompt(model, turns[1], system_prompt="Be brief.")


def test_a_raw_prompt_with_a_system_prompt_is_a_failed_row(tmp_path: Path) -> None:
    write_shards(tmp_path / "in", QUESTIONS[:2], system_prompt=["Be brief.", None])
    prompts, failed = read_rows(config_of(tmp_path, "system_prompt", prompt_format="raw"))
    assert list(prompts) == [1]
    assert "a raw prompt has no system turn" in failed[0]


# Settings of the run.


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--row-settings", "gen_lenght"], "row_settings: Input should be 'gen_length'"),
        (["--row-settings", ""], "row_settings: Input should be 'gen_length'"),
        (["--row-settings", "gen_length,"], "row_settings: Input should be 'gen_length'"),
        (["--row-settings", "gen_length", "--steps", "16"], "steps are shared out over gen_length"),
        (["--row-settings", "gen_length", "--gen-length", "auto"], "keep one of them"),
        (["--row-settings", "gen_length", "--max-gen-length", "64"], "keep one of them"),
        (["--row-settings", "seed", "--num-samples", "2"], "num_samples 2 at temperature 0"),
    ],
)
def test_settings_that_cannot_be_are_one_line(
    words: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_shards(tmp_path / "in", QUESTIONS[:2], seed=[1, 2], gen_length=[8, 8])
    preset = ["--preset", "baseline", "--gen-length", "32"]
    places = ["--input", str(source), "--output", str(tmp_path / "out")]
    assert cli.run(["generate", *places, *preset, *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert reason in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("written", ['["seed", "gen_length"]', '"seed, gen_length"'])
def test_names_are_written_as_a_list_or_with_commas(written: str, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(f'input = "i"\noutput = "o"\nrow_settings = {written}\n')
    given = [
        run_config(parse(generate, "--config", str(file))),
        run_config(
            parse(generate, *("--input", "i", "--output", "o"), "--row-settings", "seed,gen_length")
        ),
    ]
    assert {config.row_settings for config in given} == {("gen_length", "seed")}
    line = entrypoint_of(given[0]).split()
    assert run_config(parse(generate, *line[3:])) == given[1]


def test_the_fingerprint_has_them_only_where_they_are_set(tmp_path: Path) -> None:
    plain = fingerprint_of(config_of(tmp_path, ()), [], "float32")
    assert "row_settings" not in plain
    found = fingerprint_of(config_of(tmp_path, "seed,temperature"), [], "float32")
    assert found == {**plain, "row_settings": ["temperature", "seed"]}


def test_several_samples_may_have_their_temperature_from_the_rows(tmp_path: Path) -> None:
    write_shards(tmp_path / "in", QUESTIONS[:3], temperature=[0.7, 0.0, None])
    prompts, failed = read_rows(config_of(tmp_path, "temperature", num_samples=3))
    assert list(prompts) == [0]
    reason = "temperature 0 would give all 3 samples the same answer; set it above 0"
    assert failed == {1: reason, 2: reason}


def test_the_plan_counts_canvases_by_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = [16, 48, 48, None, -1, *[16] * 7]
    source = write_shards(tmp_path / "in", QUESTIONS, gen_length=lengths)
    config = config_of(tmp_path, "gen_length")
    found = forecast(check(config), config)
    by_canvas: dict[int, int] = {}
    for bucket, rows in found.buckets.items():
        by_canvas[bucket.canvas] = by_canvas.get(bucket.canvas, 0) + rows.rows
    assert by_canvas == {16: 8, 32: 1, 48: 2}
    words = ["--input", str(source), "--output", str(tmp_path / "out"), "--gen-length", "32"]
    assert plan.run(parse(plan, *words, "--row-settings", "gen_length")) == 0
    printed = capsys.readouterr().out
    assert all(f"  {bucket}  " in printed for bucket in found.buckets)
    assert f"slots of {found.largest.prompt} + 48 tokens" in printed
    assert "gen_length is -N; expected at least N" in printed


# Runs.

LENGTHS = [16, 48, None, 64, 16, None, 32, 48, 64, 16, 48, None]
TEMPERATURES = [0.0, 2.0, None, 1.5, None, 2.0, 2.0, None, 1.5, 2.0, 0.0, 2.0]
SEEDS = [None, 7, 7, None, 3, 7, -1, 3, None, 7, 3, None]
SYSTEM = [None, "Be brief.", None, None, None, "Be brief.", None, None, None, None, None, None]
ALL = "gen_length,temperature,seed,system_prompt"


def run(folder: Path, output: Path, names: str, decoding: DecodingConfig, **more: Any) -> pa.Table:
    hooks = {n: more.pop(n) for n in ("on_driver", "on_progress") if n in more}
    settings = {"cpus_per_replica": 1.0, "replicas": 1, "slots": 5, "flush_seconds": 0.2, **more}
    config = config_of(folder, names, decoding, **settings)
    run_generate(config.model_copy(update={"output": str(output)}), **hooks)
    paths = sorted((output / "data").iterdir())
    return pa.concat_tables(pq.read_table(path) for path in paths)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    columns = {
        "gen_length": LENGTHS,
        "temperature": TEMPERATURES,
        "seed": SEEDS,
        "system_prompt": SYSTEM,
    }
    write_shards(folder / "in", QUESTIONS, 2, **columns)
    return folder


@pytest.fixture(scope="module")
def whole(kept_replicas: None, source: Path) -> pa.Table:
    """The run in the preset `fast`, by one replica with one slot."""
    return run(source, source / "whole", ALL, drawn(FAST), slots=1)


def drawn(decoding: DecodingConfig) -> DecodingConfig:
    return decoding.model_copy(update={"temperature": 0.8, "seed": 5})


PRESETS = {
    "whole canvas": FAST,
    "blocks": BLOCKS,
    "prefix": BLOCKS.model_copy(update={"kv_cache": "prefix", "suffix": "all"}),
    "one a pass": DecodingConfig.preset("baseline", gen_length=32),
}
OF_A_ROW = [
    *("output_text", "output_token_ids", "num_output_tokens", "canvas_length", "commit_step"),
    *("num_forwards", "refine_steps", "decode_steps", "full_passes", "positions_computed"),
    *("stop_reason", "blocks", "num_prompt_tokens", "status"),
]


@pytest.mark.parametrize(
    "name",
    [name if name == "blocks" else pytest.param(name, marks=pytest.mark.slow) for name in PRESETS],
)
@pytest.mark.usefixtures("kept_replicas")
def test_a_row_is_that_of_a_run_with_its_settings(name: str, source: Path, tmp_path: Path) -> None:
    """Each combination of settings as a run of its own over the same rows."""
    decoding = drawn(PRESETS[name])
    found = run(source, tmp_path / "out", ALL, decoding).to_pylist()
    combinations = list(zip(LENGTHS, TEMPERATURES, SEEDS, SYSTEM, strict=True))
    for number, own in enumerate(dict.fromkeys(combinations)):
        given = dict(zip(("gen_length", "temperature", "seed"), own[:3], strict=True))
        changes = {key: value for key, value in given.items() if value is not None}
        alike = decoding.model_copy(update=changes)
        alone = run(source, tmp_path / str(number), (), alike, system_prompt=own[3])
        rows = [n for n, other in enumerate(combinations) if other == own]
        for n, expected in ((n, alone.slice(n, 1).to_pylist()[0]) for n in rows):
            assert found[n]["status"] == "ok"
            assert {key: found[n][key] for key in OF_A_ROW} == {
                key: expected[key] for key in OF_A_ROW
            }
    assert len({row["canvas_length"] for row in found}) == 4


def findings(source: Path, output: Path) -> list[str]:
    places = Storage(str(output)), Storage(str(source / "in"))
    return list(map(str, Verification(*places).findings()))


def test_the_run_verifies_and_keeps_the_columns(source: Path, whole: pa.Table) -> None:
    assert findings(source, source / "whole") == []
    assert whole["canvas_length"].to_pylist() == [n or 32 for n in LENGTHS]
    assert whole["gen_length"].to_pylist() == LENGTHS
    manifest = read_manifest(Storage(str(source / "whole")))
    assert manifest.fingerprint["row_settings"] == ALL.split(",")


@pytest.mark.parametrize("row", [LENGTHS.index(None), LENGTHS.index(16)])
def test_verify_names_a_canvas_that_is_not_the_rows_own(
    source: Path, whole: pa.Table, tmp_path: Path, row: int, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(source / "whole", tmp_path / "copy")
    row_id = whole["row_id"].to_pylist()[row]
    number, row = split_id(row_id)[:2]
    shard = sorted((copy / "data").iterdir())[number]
    record = copy / f".run/commits/{number:05d}.json"
    table = pq.ParquetFile(shard).read()
    changed = table.to_pylist()
    changed[row]["canvas_length"] = 24
    for name in ("commit_step", "token_confidence", "output_token_ids"):
        changed[row][name] = (changed[row][name] * 2)[:24]  # Nothing else contradicts it.
    pq.write_table(pa.Table.from_pylist(changed, table.schema), shard, write_page_checksum=True)
    facts = json.loads(record.read_text())
    facts["sha256"] = hashlib.sha256(shard.read_bytes()).hexdigest()
    record.write_text(json.dumps(facts))
    assert cli.run(["verify", str(copy), "--no-input"]) == 1
    wrong = [line for line in capsys.readouterr().out.splitlines() if "canvas_length" in line]
    assert len(wrong) == 1
    assert row_id in wrong[0]
    assert "its canvas_length is not its own gen_length" in wrong[0]


def test_chats_that_are_selected_have_the_rows_system_prompts(
    source: Path, whole: pa.Table, tmp_path: Path
) -> None:
    out = str(source / "whole")
    assert cli.run(["select", out, "--to", str(tmp_path / "new"), "--as", "messages"]) == 0
    chats = pq.read_table(tmp_path / "new" / "data")["messages"].to_pylist()
    systems = [next((t["content"] for t in chat if t["role"] == "system"), None) for chat in chats]
    assert systems == SYSTEM
    assert len(chats) == whole.num_rows


def test_report_and_card_say_that_rows_have_their_own(source: Path, whole: pa.Table) -> None:
    out = Storage(str(source / "whole"))
    report = make_report(out)
    assert "of a canvas of the row&#x27;s own length" in report.html.replace("&#39;", "&#x27;")
    assert report.counts.num_rows == whole.num_rows
    card = cli.run(["publish", str(source / "whole"), "--to", str(source / "published")])
    assert card == 0
    text = (source / "published" / "README.md").read_text()
    assert "row_settings" in text


@pytest.mark.usefixtures("kept_replicas")
def test_a_row_depends_neither_on_slots_nor_on_its_neighbours(
    source: Path, whole: pa.Table, tmp_path: Path
) -> None:
    found = run(source, tmp_path / "out", ALL, drawn(FAST), replicas=2, slots=4)
    assert found.drop_columns(OF_THE_RUN).equals(whole.drop_columns(OF_THE_RUN))


@pytest.mark.usefixtures("kept_replicas")
def test_an_interrupted_run_continues(source: Path, whole: pa.Table, tmp_path: Path) -> None:
    driver: list[Driver] = []

    def stop(progress: Any) -> None:
        if 2 <= progress.num_done < 12:
            driver[0].stop()

    more = {"slots": 2, "on_driver": driver.append, "on_progress": stop}
    with pytest.raises(RunStoppedError):
        run(source, tmp_path / "out", ALL, drawn(FAST), **more)
    found = run(source, tmp_path / "out", ALL, drawn(FAST), slots=3)
    assert found.drop_columns(OF_THE_RUN).equals(whole.drop_columns(OF_THE_RUN))


@pytest.mark.usefixtures("kept_replicas")
def test_another_list_is_another_run(source: Path, whole: pa.Table) -> None:
    with pytest.raises(ValueError, match="row_settings was"):
        run(source, source / "whole", "gen_length,seed", drawn(FAST))
    assert whole.num_rows == 12


@pytest.mark.usefixtures("kept_replicas")
def test_failed_rows_are_retried_with_their_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = [*QUESTIONS[:2], "Xanthippe has 2 apples. How many is that?"]
    lengths, seeds = [16, -1, 48], [None, 1, 2]
    write_shards(tmp_path / "in", questions, gen_length=lengths, seed=seeds)
    rule = [{"at": "replica.place", "match": "*Xanthippe*", "do": "nan"}]
    monkeypatch.setenv("LRD_FAULTS", json.dumps(rule))
    out = tmp_path / "out"
    before = run(tmp_path, out, "gen_length,seed", drawn(FAST))
    assert before["status"].to_pylist() == ["ok", "failed", "failed"]
    assert before["canvas_length"].to_pylist() == [16, None, 48]
    monkeypatch.delenv("LRD_FAULTS")
    assert retry_failed.run(parse(retry_failed, str(out))) == 3
    after = pq.read_table(sorted((out / "data").iterdir())[0])
    assert after["status"].to_pylist() == ["ok", "failed", "ok"]
    assert after["error"].to_pylist()[1] == "gen_length is -1; expected at least 1"
    assert len(after["output_token_ids"].to_pylist()[2]) == 48
    assert findings(tmp_path, out) == []
