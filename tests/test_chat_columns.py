"""Chats in a dataset: every Arrow layout, what `lrd prepare` makes of JSON, and a run over good and
bad rows whose answers end at stops."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.runs import bad, good, with_column
from helpers.synthetic_run import write_run
from test_chats import FAULTS
from test_prepare import prepared, refused, write_jsonl
from test_refused_prompts import tiny_with
from test_report import data_of, text_of

import lrd
from jobs import generate as generate_job
from jobs.flags import in_one_line
from lrd import DecodingConfig, Request, load_model
from lrd.engine import Engine, row_seed
from lrd.models.registry import TINY
from lrd.prompts import encode_prompt
from pipeline.config import RunConfig
from pipeline.input import prompt_shards
from pipeline.input.input_files import find
from pipeline.input.one_schema import conform, writable
from pipeline.input.prompt_text import is_chat, is_text, prompts_of
from pipeline.inspection.plan import forecast
from pipeline.inspection.shard_checks import contradictions
from pipeline.inspection.verify import Verification
from pipeline.markdown import code
from pipeline.preflight import check, fingerprint_of
from pipeline.publishing.dataset_card import About
from pipeline.publishing.publish import publish
from pipeline.report.report import make_report
from pipeline.report.viewer import MAX_CHARACTERS, _prompt
from pipeline.rows import cut_at_stop, results_batch, row_id
from pipeline.run import generate
from pipeline.scoring.evaluate import evaluate
from pipeline.scoring.tasks import task_named
from pipeline.storage.storage import Storage

USER = {"role": "user", "content": "naïve 🙂"}
ANSWER = {"role": "assistant", "content": ""}
CHATS: list[Any] = [
    [USER],
    None,
    [],
    [USER, ANSWER, {"role": None, "content": "x"}, {"role": "gpt", "content": None}],
    [ANSWER, None],
    [{"role": "system", "content": "s"}, USER],
]
READ: list[Any] = [*CHATS[:4], "turn 2 is null", CHATS[5]]


def shown(found: list[Any]) -> list[Any]:
    return [str(one) if isinstance(one, ValueError) else one for one in found]


LISTS = {
    "list": pa.list_,
    "large_list": pa.large_list,
    "list_view": pa.list_view,
    "large_list_view": pa.large_list_view,
}
TEXTS = [
    *(pa.string(), pa.large_string(), pa.string_view()),
    *(pa.binary(), pa.large_binary(), pa.binary_view()),
    *(pa.dictionary(pa.int8(), kind) for kind in (pa.string(), pa.large_string())),
]


def turn(kind: pa.DataType, *more: pa.Field) -> pa.DataType:
    return pa.struct([("content", kind), *more, ("role", kind)])


def as_bytes(value: Any) -> Any:
    if isinstance(value, list):
        return [as_bytes(one) for one in value]
    if isinstance(value, dict):
        return {key: as_bytes(one) for key, one in value.items()}
    return value.encode() if isinstance(value, str) else value


@pytest.mark.parametrize("text", TEXTS, ids=str)
@pytest.mark.parametrize("layout", LISTS)
def test_chats_of_every_layout(tmp_path: Path, layout: str, text: pa.DataType) -> None:
    """As they are in memory, in parts, and through a file."""
    rows = as_bytes(CHATS) if "binary" in str(text) else CHATS
    array = pa.array(rows, LISTS[layout](turn(text)))
    assert is_chat(array.type)
    column = pa.chunked_array([array.slice(0, 1), array.slice(1, 4), array.slice(5)])
    assert shown(prompts_of(column)) == READ
    assert shown(prompts_of(column.slice(2, 3))) == READ[2:5]
    write_as_declared(pa.table({"prompt": array}), tmp_path / "a.parquet")
    read_as = pq.read_schema(tmp_path / "a.parquet").field("prompt").type
    # Dictionaries alone come back with other values: of string, not large_string.
    assert read_as.equals(array.type) or pa.types.is_dictionary(text)
    inputs = prompt_shards.inspect(find(str(tmp_path)), "prompt")
    assert inputs.holds_chats
    table = inputs.read("a.parquet")
    assert shown(prompts_of(table["prompt"])) == READ
    # Results and prepared shards can hold what was read.
    pq.write_table(table, tmp_path / "results.parquet")
    again = prepared(tmp_path / "prepared", tmp_path / "a.parquet")
    assert shown(prompts_of(again["prompt"])) == READ


def write_as_declared(table: pa.Table, path: Path) -> None:
    """A file whose Arrow schema names these types, also views in structs in lists, which pyarrow
    itself cannot write and Polars does."""
    path.parent.mkdir(exist_ok=True)
    columns = dict(zip(table.column_names, table.columns, strict=True))
    plain = conform(columns, pa.schema([f.with_type(writable(f.type)) for f in table.schema]))
    declared = base64.b64encode(table.schema.serialize().to_pybytes()).decode()
    with pq.ParquetWriter(path, plain.schema, store_schema=False) as writer:
        writer.write_table(plain)
        writer.add_key_value_metadata({"ARROW:schema": declared})


def test_chats_of_a_fixed_number_of_turns() -> None:
    rows = [[USER, ANSWER], None, [None, USER]]
    array = pa.array(rows, pa.list_(turn(pa.string()), 2))
    assert shown(prompts_of(pa.chunked_array([array]))) == [rows[0], None, "turn 1 is null"]
    assert shown(prompts_of(pa.chunked_array([array.slice(1)]))) == [None, "turn 1 is null"]


def test_chats_of_maps() -> None:
    """As Spark writes `array<map<string, string>>`; keys may lack, or be there twice."""
    kind = pa.list_(pa.map_(pa.string(), pa.large_string()))
    pairs = [[list(t.items()) if t else None for t in chat] for chat in ([USER, ANSWER], [None])]
    twice = [[("role", "user"), ("role", "system")]]
    array = pa.array([*pairs, None, [], twice, [[("role", "user")]]], kind)
    found = shown(prompts_of(pa.chunked_array([array.slice(1), array.slice(0, 1)])))
    assert found == [
        *("turn 1 is null", None, [], "turn 1: has a key twice", [{"role": "user"}]),
        [USER, ANSWER],
    ]


def test_text_that_is_not_utf8_fails_its_row_alone() -> None:
    content = pa.array([b"fine", b"caf\xe9", b"x"])
    bad = pa.Array.from_buffers(pa.string(), 3, content.buffers())
    turns = pa.StructArray.from_arrays([pa.array(["user"] * 3), bad], ["role", "content"])
    column = pa.ListArray.from_arrays([0, 1, 3, 3], turns)
    good, broken, empty = prompts_of(pa.chunked_array([column]))
    assert good == [{"role": "user", "content": "fine"}]
    assert str(broken) == "turn 1: the prompt is not UTF-8: byte 0xe9 at position 3"
    assert empty == []


MORE = [
    pa.field("name", pa.string()),
    pa.field("tool_calls", pa.list_(pa.struct([("id", pa.string())]))),
    pa.field("toxic", pa.bool_()),
]


def test_fields_beside_role_and_content(tmp_path: Path) -> None:
    """Those of the message format are kept where they say something, the dataset's own are not
    read, and one line says so."""
    empty = {**USER, "name": "", "tool_calls": [], "toxic": True}
    calls = {**USER, "name": None, "tool_calls": [{"id": "1"}], "toxic": None}
    array = pa.array([[USER], [empty], [empty, calls]], pa.list_(turn(pa.string(), *MORE)))
    found = prompts_of(pa.chunked_array([array]))
    assert [len(chat) for chat in found if isinstance(chat, list)] == [1, 1, 2]
    model = load_model("tiny", "meta")
    plain = encode_prompt(model, [USER])
    *same, refusal = lrd.prompts.encode_prompts(model, found)
    assert same == [plain, plain]
    assert "turn 2 has tool_calls" in str(refusal)
    pq.write_table(pa.table({"prompt": array}), tmp_path / "a.parquet")
    inputs = prompt_shards.inspect(find(str(tmp_path)), "prompt")
    assert inputs.notes() == ["input: fields of turns that are not read: toxic"]


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.string()),
        pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())])),
        pa.list_(pa.struct([("role", pa.string())])),
        pa.list_(pa.struct([("role", pa.string()), ("content", pa.list_(pa.string()))])),
        pa.list_(pa.struct([("role", pa.string()), ("content", pa.int64())])),
        pa.list_(
            pa.struct([("role", pa.string()), ("role", pa.string()), ("content", pa.string())])
        ),
        pa.list_(pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        pa.struct([("role", pa.list_(pa.string())), ("content", pa.list_(pa.string()))]),
        pa.struct([("role", pa.string()), ("content", pa.string())]),
        pa.map_(pa.string(), pa.string()),
        pa.list_(pa.map_(pa.string(), pa.int64())),
    ],
    ids=str,
)
def test_what_is_no_chat_is_refused(kind: pa.DataType) -> None:
    assert not is_chat(kind)
    assert not is_text(kind)
    schema = pa.schema([("prompt", kind)])
    with pytest.raises(ValueError, match="a prompt column holds text, or chats: lists of") as error:
        prompt_shards._check_prompts("a.parquet", schema, "prompt")
    assert "\n" not in str(error.value)


def test_text_and_chats_are_two_kinds_of_input(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["Hi"]}), tmp_path / "a.parquet")
    array = pa.array([[USER]], pa.list_(turn(pa.string())))
    pq.write_table(pa.table({"prompt": array}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet: column 'prompt' holds list.*write both"):
        prompt_shards.inspect(find(str(tmp_path)), "prompt")


# Preparing.


def test_json_chats_are_prepared_as_lists(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"prompt": chat, "n": n} for n, chat in enumerate(CHATS)]
    rows.append({"prompt": [{"content": "x", "role": "user", "weight": 0.5}], "n": 6})
    write_jsonl(path, rows)
    found = prepared(tmp_path, path)
    assert is_chat(found["prompt"].type)
    assert found["n"].to_pylist() == list(range(7))
    # What is not in a turn is null there, as in every struct.
    assert shown(prompts_of(found["prompt"])) == [*READ, [{"content": "x", "role": "user"}]]
    assert found["prompt"][6].as_py()[0]["weight"] == 0.5
    inputs = prompt_shards.inspect(find(str(tmp_path / "out")), "prompt")
    assert inputs.holds_chats


@pytest.mark.parametrize("words", [["--prompt-column", "messages"], []])
def test_a_column_that_is_named_is_the_prompts(tmp_path: Path, words: list[str]) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [{"messages": [USER], "q": "5"}, {"messages": None, "q": "6"}])
    found = prepared(tmp_path, path, *words)
    assert shown(prompts_of(found["messages"])) == [[USER], None]


def test_text_that_looks_like_json_stays_text(tmp_path: Path) -> None:
    texts = [json.dumps([USER]), "[]", "[1, 2]", "{"]
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": text} for text in texts])
    found = prepared(tmp_path, tmp_path / "a.jsonl")
    assert found["prompt"].to_pylist() == texts
    write_jsonl(tmp_path / "b.jsonl", [{"prompt": [USER]}, {"prompt": "Hi"}])
    found = prepared(tmp_path, tmp_path / "b.jsonl", "--types", "prompt=string")
    assert found["prompt"].type == pa.string()
    assert [json.loads(found["prompt"][0].as_py()), found["prompt"][1].as_py()] == [[USER], "Hi"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([[USER], "Hi"], "line 2: column 'prompt' holds text, but a list in line 1"),
        (["Hi", [USER]], "line 2: column 'prompt' holds a list, but text in line 1"),
        ([5, [USER]], "line 2: column 'prompt' holds a list, but text in line 1"),
        (
            [["a", "b"]],
            "line 1: column 'prompt' holds '[\"a\", \"b\"]'; a prompt is text, or chats",
        ),
        ([[USER], [USER, "x"]], "line 2: column 'prompt' holds"),
        ([USER], "line 1: column 'prompt' holds"),
        ([[{"from": "human", "value": "x"}]], "a prompt column holds text, or chats: lists of"),
        ([[{**USER, "content": [{"type": "text"}]}]], "a prompt column holds text, or chats"),
        ([[USER], [{**USER, "content": 5}]], "line 2: column 'prompt[].content' holds an integer"),
    ],
)
def test_json_that_is_no_chat_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[Any], words: str
) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": row} for row in rows])
    line = refused(tmp_path, capsys, tmp_path / "a.jsonl")
    assert words in line
    assert "--types prompt=string keeps it as JSON text" in line


# Before a run.


def chat_input(folder: Path, chats: list[Any]) -> Path:
    folder.mkdir()
    kind = pa.list_(turn(pa.string(), *MORE))
    pq.write_table(pa.table({"prompt": pa.array(chats, kind)}), folder / "a.parquet")
    return folder


def config_of(tmp_path: Path, chats: list[Any], **more: Any) -> RunConfig:
    return RunConfig(
        **{
            "input": str(chat_input(tmp_path / "in", chats)),
            "output": str(tmp_path / "out"),
            "decoding": DecodingConfig(gen_length=16, block_length=16),
            "replicas": 1,
            "cpus_per_replica": 1,
            **more,
        }
    )


def without_template(folder: Path) -> Path:
    shutil.copytree(TINY, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("case", ["raw", "base"])
def test_chats_need_a_template(tmp_path: Path, case: str) -> None:
    model = str(without_template(tmp_path / "base")) if case == "base" else "tiny"
    more = {"prompt_format": "raw"} if case == "raw" else {}
    config = config_of(tmp_path, [[USER]], model=model, **more)
    with pytest.raises(ValueError, match="column 'prompt' holds chats") as error:
        check(config)
    assert ("use --prompt-format chat" if case == "raw" else "has no chat template") in str(
        error.value
    )
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_plan_counts_bad_chats_by_reason(tmp_path: Path) -> None:
    chats = [[USER], [], None, [{"role": "gpt", "content": "x"}]]
    config = config_of(tmp_path, chats)
    found = forecast(check(config), config)
    assert sum(found.lengths.values()) == 1
    assert dict(found.refused) == {
        "the chat has no turns": 1,
        "the prompt is null": 1,
        "turn N has the role 'gpt'; expected system, user, assistant": 1,
    }


def test_a_template_that_refuses_every_chat_ends_the_run_first(tmp_path: Path) -> None:
    model = tiny_with(tmp_path / "model", "{{ raise_exception('no') }}")
    config = config_of(tmp_path, [[USER], [USER]], model=str(model))
    with pytest.raises(ValueError, match="none of the 2 prompts that were sampled"):
        forecast(check(config), config)


@pytest.mark.parametrize("chats", [[[], None], [[]], [None]])
def test_empty_chats_are_no_templates_fault(tmp_path: Path, chats: list[Any]) -> None:
    config = config_of(tmp_path, chats)
    assert sum(forecast(check(config), config).refused.values()) == len(chats)


# Stops.


@pytest.mark.parametrize(
    ("text", "stops", "cut", "stop"),
    [
        ("a b c", (), "a b c", None),
        ("a b c", ("x",), "a b c", None),
        ("a b c", ("c", "b"), "a ", "b"),
        ("a\n\nb", ("\n\n", "\n"), "a", "\n\n"),
        ("a\n\nb", ("\n", "\n\n"), "a", "\n"),
        ("abcab", ("bca", "abc"), "", "abc"),
        ("🙂é#", ("é",), "🙂", "é"),
        ("", ("x",), "", None),
        (None, ("x",), None, None),
    ],
)
def test_a_text_ends_before_its_first_stop(
    text: str | None, stops: tuple[str, ...], cut: str | None, stop: str | None
) -> None:
    assert cut_at_stop(text, stops) == (cut, stop)


@pytest.mark.parametrize("words", [["--stop", ""], ["--stop", "a", "--stop="]])
def test_an_empty_stop_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    from helpers.commands import parse

    where = ["--input", str(tmp_path), "--output", str(tmp_path / "out"), *words]
    assert generate_job.run(parse(generate_job, *where)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "stop: a stop text is empty" in line
    assert not (tmp_path / "out").exists()


def test_stops_from_flags_and_from_a_run_file(tmp_path: Path) -> None:
    from helpers.commands import parse

    from jobs.flags import run_config
    from jobs.submit import entrypoint_of

    where = ["--input", "in", "--output", "out"]
    config = run_config(parse(generate_job, *where, "--stop", "\n\n", "--stop=-q 5"))
    assert config.stop == ("\n\n", "-q 5")
    file = tmp_path / "run.toml"
    file.write_text('stop = ["a", "b"]\n')
    named = [*where, "--config", str(file)]
    assert run_config(parse(generate_job, *named)).stop == ("a", "b")
    assert run_config(parse(generate_job, *named, "--stop", "c")).stop == ("c",)
    file.write_text("stop = [5]\n")
    with pytest.raises(ValueError, match="stop: Input should be a valid string"):
        run_config(parse(generate_job, *named))
    at = RunConfig(input="/in", output="/out", stop=("a b", "--x"))
    assert "'--stop=a b' --stop=--x" in entrypoint_of(at)
    assert RunConfig(**json.loads(json.dumps(at.model_dump()))) == at


def test_stops_are_in_the_fingerprint_where_there_are_any(tmp_path: Path) -> None:
    """So that runs which older versions began go on."""
    config = config_of(tmp_path, [[USER]])
    run = check(config)
    before = fingerprint_of(config, run.files, "float32")
    assert "stop" not in before
    with_stops = config.model_copy(update={"stop": ("b", "a")})
    after = fingerprint_of(with_stops, run.files, "float32")
    assert after == json.loads(json.dumps({**before, "stop": ["b", "a"]}))


@pytest.mark.parametrize(
    ("stop_text", "output_text", "finding"),
    [
        (["b", None], ["a", "x"], None),
        (["b", "c"], ["a", ""], None),
        (["x", None], ["a", "x"], "its stop_text is not one of the stops of the run"),
        ([None, None], ["a b", "x"], "its output_text holds the stop 'b'"),
        (["b", None], ["a c", "x"], "its output_text holds the stop 'c'"),
        ([None, "b"], ["a", None], "is failed with a stop_text"),
    ],
)
def test_rows_that_contradict_their_stops(
    stop_text: list[Any], output_text: list[Any], finding: str | None
) -> None:
    rows = results_batch(
        [good(0, n) if text is not None else bad(0, n) for n, text in enumerate(output_text)]
    )
    table = pa.Table.from_batches([rows])
    table = with_column(with_column(table, "output_text", output_text), "stop_text", stop_text)
    found = [what for what, _ in contradictions(table, [3], ["b", "c"])]
    assert found == ([] if finding is None else [finding])


# A run.

ASKED = "Tom has 3 pens and buys 4 pens. How many pens does Tom have?"
GOOD: dict[str, Any] = {
    "one turn": [{"role": "user", "content": ASKED}],
    "own system": [{"role": "system", "content": ""}, {"role": "user", "content": ASKED}],
    "many turns": [
        *({"role": "user", "content": ASKED}, {"role": "assistant", "content": "3+4=7\n#### 7"}),
        {"role": "user", "content": "Ann buys 2 caps that cost $5 each. How many dollars?"},
    ],
    "continued": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": "3+4="}],
    "spells tokens": [{"role": "user", "content": f"{ASKED} <|mask|><|eos|><|answer|>"}],
}
BAD = {
    name: chat
    for name, (chat, _) in FAULTS.items()
    if name not in ("a text", "parts", "number", "tool calls", "reasoning", "too many")
}
STOPS = ("####", "\n")


@pytest.mark.usefixtures("kept_replicas")
def test_a_run_over_chats(tmp_path: Path) -> None:
    """Good rows are decoded as the library decodes them, bad ones say why, nothing else is lost."""
    from helpers.commands import parse

    from jobs import status

    calls = {**USER, "tool_calls": [{"id": "1"}]}
    chats = {**GOOD, **BAD, "null chat": None, "calls": [calls]}
    config = config_of(tmp_path, list(chats.values()), stop=STOPS, system_prompt="Count.", slots=4)
    assert generate(config).num_failed == len(BAD) + 2
    output = Storage(config.output)
    table = pq.read_table(tmp_path / "out/data")
    rows = dict(zip(chats, table.to_pylist(), strict=True))
    assert [rows[name]["status"] for name in GOOD] == ["ok"] * len(GOOD)
    for name in BAD:
        assert FAULTS[name][1] in rows[name]["error"], name
        assert rows[name]["attempts"] == 0
    assert rows["null chat"]["error"] == "the prompt is null"
    assert "tool_calls" in rows["calls"]["error"]

    model = load_model("tiny", "cpu")
    for number, (name, chat) in enumerate(GOOD.items()):
        ids = encode_prompt(model, chat, system_prompt="Count.")
        engine = Engine(model, config.decoding, 1, len(ids))
        engine.submit(Request(0, ids, row_seed(config.decoding.seed, row_id(0, number))))
        samples = []
        while engine.busy:
            samples += engine.step()
        (sample,) = samples
        row = rows[name]
        assert row["num_prompt_tokens"] == len(ids)
        assert (row["output_text"], row["stop_text"]) == cut_at_stop(sample.text, STOPS)
        # Counts and ids are those of the whole canvas.
        assert row["output_token_ids"] == sample.canvas
        assert row["num_output_tokens"] == sample.num_output_tokens
    assert {rows[name]["stop_text"] for name in GOOD} <= {*STOPS, None}
    assert any(rows[name]["stop_text"] for name in GOOD)
    begun = len(model.tokenizer.encode("3+4=", add_special_tokens=False))
    lengths = {name: rows[name]["num_prompt_tokens"] for name in GOOD}
    assert lengths["continued"] == lengths["one turn"] + begun
    assert rows["one turn"]["num_prompt_tokens"] > rows["own system"]["num_prompt_tokens"]

    assert [str(found) for found in Verification(output, Storage(config.input)).findings()] == []
    page = make_report(output).html
    by_id = {row["id"]: row for row in data_of(page)["viewer"]["rows"]}
    shown_turns = by_id[row_id(0, list(chats).index("many turns"))]["prompt"]
    assert shown_turns == [[t["role"], t["content"]] for t in GOOD["many turns"]]
    assert by_id[row_id(0, list(chats).index("null chat"))]["prompt"] is None
    assert data_of(page)["viewer"]["tokens"], "the run's own tokenizer reads cut answers too"
    assert "Texts that answers end before" in text_of(page)
    assert status.run(parse(status, config.output)) == 0
    publish(output, tmp_path / "published", About("chats"))
    card = (tmp_path / "published/README.md").read_text()
    assert f"| `stop` | {code(json.dumps(STOPS))} |" in card
    import datasets

    loaded = datasets.load_dataset(str(tmp_path / "published"), split="train")
    assert loaded[0]["prompt"][0]["content"] == ASKED
    # The same command finds nothing to do, and other stops are another run.
    assert generate(config).num_rows == len(chats)
    with pytest.raises(ValueError, match=r"holds another run; stop was"):
        generate(config.model_copy(update={"stop": ("x",)}))


def test_a_task_that_reads_the_prompt_refuses_chats(tmp_path: Path) -> None:
    kind = pa.list_(turn(pa.string()))
    write_run(tmp_path / "run", (4,), failed_every=9, entry_point="f", test="x")
    for path in (tmp_path / "run/data").iterdir():
        table = pq.ParquetFile(path).read()
        chats = pa.array([[USER]] * table.num_rows, kind)
        pq.write_table(table.append_column("prompt", chats), path)
    with pytest.raises(ValueError, match="'prompt' holds chats, and task humaneval"):
        evaluate(Storage(str(tmp_path / "run")), task_named("humaneval"))


def test_the_viewer_cuts_long_chats() -> None:
    turns = [{"role": "user", "content": "x" * 9000}] * 5
    found = _prompt(turns)
    assert isinstance(found, list)
    assert [role for role, _ in found] == ["user", "user", "user", "…"]
    assert found[-1][1] == "2 more turns"
    assert sum(len(text) for _, text in found) < MAX_CHARACTERS + 100
    assert _prompt([{"role": None, "content": None}]) == [("no role", "")]


def test_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"stop: a stop text is empty"), in_one_line():
        RunConfig(input="a", output="b", stop=[""])
