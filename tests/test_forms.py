"""Answers of a fixed form through the pipeline: templates, a column of them, schemas, infilling."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.commands import parse
from helpers.few import few
from helpers.shards import OF_THE_RUN, distinct_questions, write_shards

import lrd
from jobs import cli, generate, retry_failed
from jobs.flags import run_config
from jobs.submit import entrypoint_of
from lrd import DecodingConfig, Engine, Request
from lrd.engine import row_seed
from lrd.json_schema import json_form
from lrd.prompts import encode_prompt
from lrd.templates import TemplateReader
from pipeline.config import RunConfig
from pipeline.driver import Driver
from pipeline.input.reader import Reader
from pipeline.input.row_templates import read_form
from pipeline.inspection.shard_checks import contradictions
from pipeline.inspection.verify import Verification
from pipeline.preflight import check, fingerprint_of
from pipeline.replicas.deaths import RunStoppedError
from pipeline.rows import Prompt, split_id
from pipeline.run import generate as run_generate
from pipeline.storage.storage import Storage

QUESTIONS = distinct_questions(12, seed=41)
FAST = DecodingConfig.preset("fast", gen_length=128)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20, "x-tokens": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "height": {"type": "number"},
        "married": {"type": "boolean"},
        "level": {"enum": ["low", "middle", "high", "highest"]},
    },
    "required": ["name", "age", "height", "married", "level"],
    "additionalProperties": False,
}


def config_of(folder: Path, decoding: DecodingConfig = FAST, **more: Any) -> RunConfig:
    places = {"input": str(folder / "in"), "output": str(folder / "out")}
    return RunConfig(**{**places, "decoding": decoding, **more})


def file_of(folder: Path, content: Any, name: str = "form") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def read_rows(config: RunConfig) -> tuple[dict[int, Prompt], dict[int, str]]:
    """Prompts of the first shard by row, and the reasons of its failed rows."""
    run = check(config)
    reader = Reader(config, run.inputs, run.files, run.face, run.face.max_length, form=run.form)
    found = reader.read(0)
    failed = {split_id(row["row_id"])[1]: row["error"] for row in found.failed.to_pylist()}
    return {prompt.index: prompt for prompt in found.prompts}, failed


# Settings.


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--template {t} --schema {s}", "template and schema each give answers their form"),
        ("--template {t} --template-column form", "template and template_column each give"),
        ("--schema {s} --infill", "schema and infill each give answers their form; keep one"),
        ("--template-filler <none>", "template_filler is for holes; drop it, or set a template"),
        ("--template {t} --template-filler=", "template_filler is empty"),
        ("--template {t} --gen-length auto", "template gives it; set gen_length to a number"),
        ("--schema {s} --max-gen-length 512", "schema gives it; set gen_length to a number"),
        ("--schema {s} --stop x", "stop would cut the JSON that schema asks for"),
        ("--schema {s} --logits-eos-inf", "logits_eos_inf leaves out EOS"),
        ("--template {d}/none", "none: no such file; name a file with --template"),
        ("--schema {d}", ": is a folder; name a file with --schema"),
        ("--template {latin}", "latin: is not UTF-8; save it as UTF-8"),
        ("--template {plain}", "plain: the template has no hole; write [[12]]"),
        ("--template {zero}", "zero: the hole [[0]] has no positions"),
        ("--template {t} --gen-length 3", "t: the template takes"),
        ("--schema {t}", "t: is not JSON"),
        ("--schema {any}", "any: $: allows any value"),
        ("--schema {bad}", "bad: $.properties.a: pattern cannot be guaranteed"),
        ("--schema {s} --gen-length 16", "s: $: the schema takes"),
        ("--template-column other", "no column 'other'; it has prompt, form, number. Name the"),
        ("--template-column number", "column 'number' holds int64; a template column holds text"),
        ("--infill", "none of the 12 prompts that were sampled can be decoded: the prompt is a"),
        ("--infill --prompt-format raw", "can be decoded: the prompt has no hole; write [[12]]"),
    ],
)
def test_settings_that_cannot_be_are_one_line(
    words: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_shards(tmp_path / "in", QUESTIONS, form=["[[3]]"] * 12, number=list(range(12)))
    files = {
        "t": "The answer is [[3]].",
        "s": SCHEMA,
        "plain": "no hole",
        "zero": "a [[0]]",
        "any": {},
        "bad": {"type": "object", "properties": {"a": {"type": "string", "pattern": "a"}}},
    }
    places = {name: file_of(tmp_path / "files", text, name) for name, text in files.items()}
    (tmp_path / "files" / "latin").write_bytes(b"caf\xe9 [[3]]")
    places |= {"latin": str(tmp_path / "files" / "latin"), "d": str(tmp_path / "files")}
    out = ["--input", str(source), "--output", str(tmp_path / "out")]
    filled = [word.format(**places) for word in words.split()]
    assert cli.run(["plan", *out, *filled]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert reason in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["schema", "json_schema"])
def test_schema_is_a_flag_and_a_setting_of_a_file(key: str, tmp_path: Path) -> None:
    toml = tmp_path / "run.toml"
    toml.write_text(f'input = "i"\noutput = "o"\n{key} = "s.json"\ntemplate_filler = "<none>"\n')
    of_file = run_config(parse(generate, "--config", str(toml)))
    words = ["--input", "i", "--output", "o", "--schema", "s.json", "--template-filler", "<none>"]
    assert of_file == run_config(parse(generate, *words))
    assert of_file.json_schema == "s.json"
    line = entrypoint_of(of_file).split()
    assert "--schema=s.json" in line
    with pytest.raises(SystemExit):
        parse(generate, "--json-schema", "s.json")


def test_the_fingerprint_has_contents_and_only_what_is_set(tmp_path: Path) -> None:
    plain = config_of(tmp_path)
    before = fingerprint_of(plain, [], "float32", "m")
    found = []
    for name, text in [("a", "The [[3]]."), ("b", "The [[3]].\n"), ("c", "\ufeffThe [[3]].\r\n")]:
        path = tmp_path / name
        path.write_bytes(text.encode())
        config = plain.model_copy(update={"template": str(path)})
        found.append(fingerprint_of(config, [], "float32", "m", read_form(config)))
    assert found == [{**before, "template": "The [[3]]."}] * 3
    schemas = []
    for number, names in enumerate(("ab", "ba")):
        schema = {"type": "object", "properties": {n: {"type": "boolean"} for n in names}}
        config = plain.model_copy(
            update={"json_schema": file_of(tmp_path, schema, f"{number}.json")}
        )
        schemas.append(fingerprint_of(config, [], "float32", "m", read_form(config)))
    assert schemas[0] != schemas[1], "the order of properties is that of the answers"
    other = plain.model_copy(update={"infill": True, "template_filler": "x"})
    facts = {"infill": True, "template_filler": "x"}
    assert fingerprint_of(other, [], "float32", "m") == {**before, **facts}


# Rows.

OWN: list[tuple[str | None, str | None]] = [
    ("A [[3]].", None),
    (None, "the template is null"),
    ("", "the template has no hole"),
    ("[[0]]", "the hole [[0]] has no positions"),
    ("[[129]]", "the template takes 129 positions (0 of them fixed text) and gen_length is 128"),
    ("words " * 200 + "[[*]]", "and 1 more for [[*]]"),
    ("A [[3]].", None),
    ("<|mask|> [[2]]", None),
    ("[[*]]", None),
]


def test_each_rows_own_template_makes_its_canvas_or_its_failure(tmp_path: Path) -> None:
    write_shards(tmp_path / "in", QUESTIONS[: len(OWN)], form=[text for text, _ in OWN])
    prompts, failed = read_rows(config_of(tmp_path, template_column="form"))
    assert {n: reason for n, (_, reason) in enumerate(OWN) if reason} == {
        n: reason for n, (_, reason) in enumerate(OWN) if reason and reason in failed.get(n, "")
    }
    assert sorted(prompts) == [n for n, (_, reason) in enumerate(OWN) if reason is None]
    reader = TemplateReader(lrd.load_model("tiny", "meta"), 128)
    for n, prompt in prompts.items():
        assert prompt.scaffold == reader.read(OWN[n][0] or "")
        assert prompt.canvas_length == len(prompt.scaffold.ids) <= prompt.bucket.canvas
        assert prompt.token_ids == encode_prompt(reader.model, QUESTIONS[n])
    assert prompts[0].scaffold is prompts[6].scaffold, "sent once in a batch"


def test_a_template_that_is_not_utf8_is_a_failed_row(tmp_path: Path) -> None:
    forms = pa.array([b"[[3]]", b"\xff[[3]]"], pa.binary())
    write_shards(tmp_path / "in", QUESTIONS[:2], form=forms)
    prompts, failed = read_rows(config_of(tmp_path, template_column="form"))
    assert list(prompts) == [0]
    assert failed == {1: "the template is not UTF-8: byte 0xff at position 0"}


def test_a_column_called_template_changes_nothing_unless_it_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path / "in", QUESTIONS[:2], template=["[[3]]"] * 2)
    prompts, _ = read_rows(config_of(tmp_path))
    assert prompts[0].scaffold is None
    assert prompts[0].canvas_length == 128


def test_a_rows_gen_length_is_what_its_template_may_take(tmp_path: Path) -> None:
    write_shards(tmp_path / "in", QUESTIONS[:4], gen_length=[8, None, 2, 40])
    form = file_of(tmp_path, "A [[*]]")
    settings: dict[str, Any] = {"row_settings": "gen_length", "template": form}
    prompts, failed = read_rows(config_of(tmp_path, **settings))
    assert {n: prompt.canvas_length for n, prompt in prompts.items()} == {0: 8, 1: 128, 3: 40}
    assert "gen_length is 2; raise gen_length" in failed[2]


@pytest.mark.parametrize("block_length", [None, 32])
def test_slots_are_no_longer_than_the_templates_need(
    block_length: int | None, tmp_path: Path
) -> None:
    write_shards(tmp_path / "in", QUESTIONS[:2], form=["[[20]]", "[[70]]"])
    decoding = FAST.model_copy(update={"block_length": block_length})
    prompts, _ = read_rows(config_of(tmp_path, decoding, template_column="form"))
    expected = [20, 70] if block_length is None else [32, 96]
    assert [prompt.bucket.canvas for prompt in prompts.values()] == expected
    steps = DecodingConfig.preset("baseline", gen_length=128, steps=16)
    prompts, _ = read_rows(config_of(tmp_path, steps, template_column="form"))
    assert {prompt.bucket.canvas for prompt in prompts.values()} == {128}


RAW: list[tuple[str, str | None]] = [
    ("Tom has [[2]] apples. He [[*]]", None),
    ("Tom has 3 apples.", "the prompt has no hole"),
    ("[[2]] apples", "the prompt begins with a hole; write a word before it"),
    ("Tom has [[0]] apples.", "the hole [[0]] has no positions"),
    ("Tom has [[x]] [[1]]", None),
]


def test_a_raw_prompt_is_cut_at_its_first_hole(tmp_path: Path) -> None:
    write_shards(tmp_path / "in", [text for text, _ in RAW])
    prompts, failed = read_rows(config_of(tmp_path, infill=True, prompt_format="raw"))
    assert sorted(failed) == [n for n, (_, reason) in enumerate(RAW) if reason]
    assert all((RAW[n][1] or "?") in reason for n, reason in failed.items())
    reader = TemplateReader(lrd.load_model("tiny", "meta"), 128)
    for n, before, rest in [
        (0, "Tom has ", "[[2]] apples. He [[*]]"),
        (4, "Tom has [[x]] ", "[[1]]"),
    ]:
        assert prompts[n].token_ids == encode_prompt(reader.model, before, "raw")
        assert prompts[n].scaffold == reader.read(rest)


def turns(*contents: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(contents)]


CHATS: list[tuple[list[dict[str, str]], str | None]] = [
    (turns("Hi", "I am [[2]], and [[*]]"), None),
    (turns("Hi", "[[2]]!"), None),
    (turns("Hi", " \n [[2]]!"), None),
    (turns("Hi"), "the chat does not end with the assistant's turn"),
    (turns("Hi [[3]]", "yes"), "the prompt has no hole"),
    (turns("Hi", "a [[0]]"), "the hole [[0]] has no positions"),
]


def test_a_chats_last_assistant_turn_is_cut_at_its_first_hole(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    chats = [chat for chat, _ in CHATS]
    pq.write_table(pa.table({"prompt": chats}), tmp_path / "in" / "a.parquet")
    prompts, failed = read_rows(config_of(tmp_path, infill=True))
    assert sorted(failed) == [n for n, (_, reason) in enumerate(CHATS) if reason]
    assert all((CHATS[n][1] or "?") in reason for n, reason in failed.items())
    reader = TemplateReader(lrd.load_model("tiny", "meta"), 128)
    expected = [("I am ", "[[2]], and [[*]]"), ("", "[[2]]!"), ("", " \n [[2]]!")]
    for n, (before, rest) in enumerate(expected):
        assert prompts[n].token_ids == encode_prompt(reader.model, turns("Hi", before))
        assert prompts[n].scaffold == reader.read(rest)


@pytest.mark.parametrize(
    ("status", "found", "reason", "has_schema", "is_wrong"),
    [
        ("ok", "{}", None, True, False),
        ("ok", None, "is not JSON", True, False),
        ("ok", None, None, True, True),
        ("ok", "{}", "is not JSON", True, True),
        ("failed", None, None, True, False),
        ("failed", "{}", None, True, True),
        ("ok", None, None, False, False),
        ("ok", "{}", None, False, True),
        ("ok", None, "is not JSON", False, True),
    ],
)
def test_verify_knows_which_rows_have_json(
    status: str, found: str | None, reason: str | None, has_schema: bool, is_wrong: bool
) -> None:
    columns = {
        "status": [status],
        "error": [None if status == "ok" else "x"],
        "output_text": ["{}" if status == "ok" else None],
        "output_json": [found],
        "json_error": [reason],
        "num_forwards": [1],
    }
    texts = ("error", "output_text", "output_json", "json_error")
    table = pa.table(
        {n: pa.array(v, pa.string() if n in texts else None) for n, v in columns.items()}
    )
    what = [what for what, _ in contradictions(table, None, has_schema=has_schema)]
    assert ("its output_json or json_error is missing or not expected" in what) == is_wrong


# Runs.


def run(config: RunConfig, **more: Any) -> pa.Table:
    hooks = {n: more.pop(n) for n in ("on_driver", "on_progress") if n in more}
    own = {"cpus_per_replica": 1.0, "replicas": 1, "slots": 5, "flush_seconds": 0.2, **more}
    run_generate(config.model_copy(update=own), **hooks)
    paths = sorted(Path(config.output, "data").iterdir())
    return pa.concat_tables(pq.read_table(path) for path in paths)


def findings(config: RunConfig) -> list[str]:
    places = Storage(config.output), Storage(config.input)
    return list(map(str, Verification(*places).findings()))


def decoded(prompts: dict[int, Prompt], decoding: DecodingConfig, **engine: Any) -> dict[int, str]:
    """The texts that an engine of one slot gives for rows."""
    model = lrd.load_model("tiny", "cpu")
    found = {}
    for n, prompt in prompts.items():
        own = Engine(model, decoding, 1, len(prompt.token_ids), **engine)
        seed = row_seed(decoding.seed, prompt.row_id)
        own.submit(Request(n, prompt.token_ids, seed, prompt.scaffold))
        while own.busy:
            found |= {sample.key: sample.text for sample in own.step()}
    return found


@pytest.mark.usefixtures("kept_replicas")
@pytest.mark.parametrize("preset", few(["fast", "blocks"]))
def test_a_template_for_all_rows(preset: str, tmp_path: Path) -> None:
    write_shards(tmp_path / "in", QUESTIONS, 2)
    form = file_of(tmp_path, "Step 1: [[12]]\n#### [[4]].\n")
    decoding = DecodingConfig.preset(preset, gen_length=64)
    config = config_of(tmp_path, decoding, template=form)
    rows = run(config, replicas=2)
    prompts, _ = read_rows(config)
    texts = rows["output_text"].to_pylist()
    assert {n: texts[n] for n in prompts} == decoded(prompts, decoding)
    assert all(text.startswith("Step 1: ") and text.endswith(".") for text in texts)
    assert all("\n#### " in text for text in texts)
    (length,) = set(rows["canvas_length"].to_pylist())
    scaffold = prompts[0].scaffold
    assert scaffold is not None
    assert length == len(scaffold.ids)
    is_open = [token == 0 for token in scaffold.ids]
    for row in rows.to_pylist():
        assert [bool(step) for step in row["commit_step"]] == is_open
        ids = row["output_token_ids"]
        assert [x for x, o in zip(ids, is_open, strict=True) if not o] == [
            x for x in scaffold.ids if x
        ]
        fixed = [p for p, o in zip(row["token_confidence"], is_open, strict=True) if not o]
        assert fixed == [1.0] * is_open.count(False)
        assert row["output_json"] is row["json_error"] is None
    assert findings(config) == []


@pytest.fixture(scope="module")
def with_schema(kept_replicas: None, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run of 24 rows, three samples each of eight questions."""
    folder = tmp_path_factory.mktemp("schema")
    write_shards(folder / "in", QUESTIONS[:8], 2, answer=["7"] * 8)
    decoding = FAST.model_copy(update={"temperature": 1.2, "seed": 3})
    form = file_of(folder, SCHEMA, "person.json")
    config = config_of(folder, decoding, json_schema=form, num_samples=3)
    run(config)
    return config


def table_of(config: RunConfig) -> pa.Table:
    paths = sorted(Path(config.output, "data").iterdir())
    return pa.concat_tables(pq.read_table(path) for path in paths)


def test_every_answer_of_a_schema_parses_and_validates(with_schema: RunConfig) -> None:
    rows = table_of(with_schema).to_pylist()
    assert len(rows) == 24
    for row in rows:
        value = json.loads(row["output_json"])
        jsonschema.validate(value, SCHEMA)
        assert json.loads(row["output_text"]) == value
        assert list(value) == list(SCHEMA["properties"])
        assert row["json_error"] is None
        assert row["num_output_tokens"] <= row["canvas_length"]
    assert len({row["output_json"] for row in rows}) > 12, "the samples say something"
    assert findings(with_schema) == []


def test_a_run_with_a_schema_is_that_of_the_engine(with_schema: RunConfig) -> None:
    model = lrd.load_model("tiny", "cpu")
    form = json_form(SCHEMA, model, 128)
    rows = table_of(with_schema)["output_text"].to_pylist()
    run = check(with_schema)
    reader = Reader(
        with_schema, run.inputs, run.files, run.face, run.face.max_length, form=run.form
    )
    prompts = dict(enumerate(reader.read(0).prompts))
    found = decoded(prompts, with_schema.decoding, allowed=form.allowed())
    assert [found[n] for n in range(len(found))] == rows[: len(found)]


@pytest.mark.parametrize(
    "words",
    [
        "status {out}",
        "verify {out}",
        "report {out}",
        "evaluate {out} --task word-problems",
        "select {out} --to {new} --where \"output_json LIKE '%age%'\"",
        "publish {out} --to {card}",
    ],
)
def test_other_commands_work_on_such_a_run(
    words: str, with_schema: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"out": with_schema.output, "new": tmp_path / "new", "card": tmp_path / "card"}
    code = cli.run(shlex.split(words.format(**places)))
    assert code == 0, capsys.readouterr().err


@pytest.mark.usefixtures("kept_replicas")
def test_rows_whose_template_is_at_fault_fail_alone(tmp_path: Path) -> None:
    write_shards(tmp_path / "in", QUESTIONS[: len(OWN)], form=[text for text, _ in OWN])
    config = config_of(tmp_path, template_column="form")
    rows = run(config).to_pylist()
    for row, (text, reason) in zip(rows, OWN, strict=True):
        if reason is None:
            assert row["status"] == "ok"
            assert row["output_text"].startswith((text or "").partition("[[")[0])
        else:
            assert row["status"] == "failed"
            assert reason in row["error"]
            assert row["output_text"] is None
    assert findings(config) == []
    assert retry_failed.run(parse(retry_failed, config.output)) == 3
    assert findings(config) == []


@pytest.mark.usefixtures("kept_replicas")
def test_holes_of_prompts_are_filled_in_place(tmp_path: Path) -> None:
    prompts = [f"Tom has {n} apples. He buys [[2]] more. Now he has [[*]]" for n in range(6)]
    write_shards(tmp_path / "in", prompts)
    config = config_of(
        tmp_path, FAST.model_copy(update={"gen_length": 32}), infill=True, prompt_format="raw"
    )
    rows = run(config)
    texts = rows["output_text"].to_pylist()
    assert all(" more. Now he has " in text for text in texts)
    assert rows["canvas_length"].to_pylist() == [32] * 6
    assert rows["prompt"].to_pylist() == prompts
    assert findings(config) == []


@pytest.mark.usefixtures("kept_replicas")
@pytest.mark.slow
def test_an_interrupted_run_with_forms_samples_and_row_settings_continues(tmp_path: Path) -> None:
    forms = ["A [[6]].", "[[*]]", "B [[3]] C [[*]]", "[[20]]"] * 3
    columns = {"form": forms, "gen_length": [24, 48, None] * 4, "seed": [1, None] * 6}
    write_shards(tmp_path / "in", QUESTIONS, 2, **columns)
    decoding = FAST.model_copy(update={"gen_length": 32, "temperature": 0.9})
    settings: dict[str, Any] = {
        "template_column": "form",
        "row_settings": "gen_length,seed",
        "num_samples": 4,
    }
    whole = run(config_of(tmp_path, decoding, **settings, output=str(tmp_path / "whole")))
    assert set(whole["status"].to_pylist()) == {"ok"}
    config = config_of(tmp_path, decoding, **settings)
    driver: list[Driver] = []

    def stop(progress: Any) -> None:
        if 5 <= progress.num_done < 48:
            driver[0].stop()

    with pytest.raises(RunStoppedError):
        run(config, slots=2, on_driver=driver.append, on_progress=stop)
    found = run(config, slots=3, replicas=2)
    assert found.drop_columns(OF_THE_RUN).equals(whole.drop_columns(OF_THE_RUN))
    assert findings(config) == []


@pytest.mark.usefixtures("kept_replicas")
def test_another_content_is_another_run(with_schema: RunConfig) -> None:
    path = Path(str(with_schema.json_schema))
    before = path.read_text()
    path.write_text(before.replace("120", "119"))
    try:
        with pytest.raises(ValueError, match="json_schema was"):
            run(with_schema)
    finally:
        path.write_text(before)
