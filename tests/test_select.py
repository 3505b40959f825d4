"""`lrd select`: which rows are kept, what is written, what is refused; whole or absent."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import s3
from helpers.commands import parse
from helpers.few import spread
from helpers.runs import MadeRun
from helpers.sampled_run import Columns, write_sampled_run

from jobs import cli, evaluate, publish, verify
from jobs import select as job
from pipeline.output.result_shards import parquet_bytes
from pipeline.rows import prompt_id
from pipeline.selecting import duplicates, new_dataset
from pipeline.selecting.conversations import Exchange, conversation
from pipeline.selecting.rules import Rules
from pipeline.selecting.select import select
from pipeline.selecting.selection import SELECTION, read_selection
from pipeline.selecting.where import Condition
from pipeline.storage.storage import Storage

PAGE = Path(__file__).parents[1] / "pipeline/selecting/README.md"


def call(output: Path | str, to: Path | str, *flags: str) -> int:
    return job.run(parse(job, str(output), "--to", str(to), *flags))


def score(output: Path) -> None:
    words = [str(output), "--task", "word-problems", "--workers", "1"]
    assert evaluate.run(parse(evaluate, *words)) == 0


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scored run of 18 prompts with 4 samples each."""
    folder = write_sampled_run(tmp_path_factory.mktemp("select") / "out")
    score(folder)
    return folder


def frame(output: Path) -> pd.DataFrame:
    """The rows with their scores."""
    rows = pd.read_parquet(output / "data").drop(columns=["sample"], errors="ignore")
    scores = pd.read_parquet(output / ".scores/word-problems.parquet")
    rows = rows.merge(scores[["row_id", "correct", "extracted"]], on="row_id", validate="1:1")
    return rows.assign(prompt=rows["row_id"].map(prompt_id))


def written(to: Path) -> list[str]:
    return pd.read_parquet(to / "data")["row_id"].tolist()


# Which rows are kept: compared with rules written anew for pandas.


def expected(rows: pd.DataFrame, rules: Rules) -> tuple[list[str], list[int]]:
    """Ids that are kept, and how many rows each rule drops."""
    rows = rows.reset_index(drop=True)
    counts = [len(rows)]

    def keep(mask: pd.Series) -> None:
        nonlocal rows
        rows = rows[mask]
        counts.append(len(rows))

    keep(rows["status"] == "ok")
    if rules.correct:
        keep(rows["correct"])
    if rules.where:
        keep(rows["mean_confidence"] > 0.3)
    if rules.dedupe:
        keep(~rows.duplicated(["question", "output_text"]))
    groups = rows.groupby("prompt", sort=False)
    if rules.best_of:
        best = groups["mean_confidence"].idxmax()
        keep(rows.index.isin(best))
    if rules.majority:
        winners = groups["extracted"].agg(lambda found: Counter(found).most_common(1)[0][0])
        keep(rows["extracted"] == rows["prompt"].map(winners))
    if rules.max_per_prompt:
        keep(rows.groupby("prompt", sort=False).cumcount() < rules.max_per_prompt)
    return rows["row_id"].tolist(), [a - b for a, b in pairwise(counts)]


RULES = [
    Rules(correct=correct, where=where, dedupe=dedupe, max_per_prompt=most, **choice)
    for correct, where, dedupe, most, choice in product(
        (False, True),
        (None, "mean_confidence > 0.3"),
        (None, "exact"),
        (None, 2),
        ({}, {"best_of": "mean_confidence"}, {"majority": True}),
    )
]


@pytest.mark.parametrize("rules", spread(RULES))
def test_rules_apply_in_order_and_are_counted(rules: Rules, out: Path, tmp_path: Path) -> None:
    found = select(Storage(str(out)), str(tmp_path / "new"), rules)
    ids, dropped = expected(frame(out), rules)
    assert written(tmp_path / "new") == ids
    assert [step.num_dropped for step in found.rules] == dropped
    assert found.num_rows == len(ids) == found.rules[-1].num_kept
    assert found.rules[0].num_rows == 72


def test_the_rules_in_the_test_differ(out: Path) -> None:
    kept = {tuple(expected(frame(out), rules)[0]) for rules in RULES}
    assert len(kept) > len(RULES) // 2, "rules that drop nothing prove nothing"


def test_rows_are_kept_as_they_are(out: Path, tmp_path: Path) -> None:
    assert call(out, tmp_path / "new") == 0
    before, after = pq.read_table(out / "data"), pq.read_table(tmp_path / "new" / "data")
    assert after.schema.equals(before.schema, check_metadata=True)
    status = before["status"].to_pylist()
    assert after.equals(before.take([n for n, value in enumerate(status) if value == "ok"]))


@pytest.mark.parametrize(
    "kind",
    [pa.string_view(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.binary()],
    ids=str,
)
def test_other_types_of_prompts(kind: pa.DataType, tmp_path: Path) -> None:
    def change(shard: int, columns: Columns) -> Columns:
        text = columns["question"]
        is_category = pa.types.is_dictionary(kind)
        return {**columns, "question": text.dictionary_encode() if is_category else text.cast(kind)}

    out = write_sampled_run(tmp_path / "out", num_shards=2, change=change)
    assert call(out, tmp_path / "new", "--dedupe", "exact", "--max-per-prompt", "2") == 0
    assert (
        pq.read_schema(tmp_path / "new/data/train-00000-of-00001.parquet").field("question").type
        == kind
    )
    assert call(out, tmp_path / "chats", "--as", "messages") == 0
    (first, *_), *_ = pq.read_table(tmp_path / "chats/data")["messages"].to_pylist()
    assert first["content"].startswith("What is")


def test_runs_of_one_sample_a_prompt(tmp_path: Path) -> None:
    """Every rule works there, on a run as the ledger leaves it."""
    made = MadeRun(tmp_path / "run").begin().whole(failed=[1]).end()
    flags = ["--best-of", "num_forwards", "--max-per-prompt", "3", "--dedupe", "exact"]
    assert call(made.output, tmp_path / "new", *flags) == 0
    assert len(written(tmp_path / "new")) == 9


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ([None, 0.5, 0.5], 1),
        ([None, float("nan"), None], 0),
        ([0.1, float("nan"), 0.2], 2),
        ([True, False, True], 0),
        ([-3, -1, -2], 1),
    ],
)
def test_the_best_of_odd_values(values: list[Any], kept: int, tmp_path: Path) -> None:
    def change(shard: int, columns: Columns) -> Columns:
        ok = {"status": pa.array(["ok"] * 3), "output_text": pa.array(["a", "b", "c"])}
        return {**columns, **ok, "value": pa.array(values, from_pandas=False)}

    out = write_sampled_run(tmp_path / "out", 1, 1, 3, change=change)
    assert call(out, tmp_path / "new", "--best-of", "value") == 0
    assert written(tmp_path / "new") == [f"00000-00000000-{kept}"]


# Conditions.

SCHEMA = pa.schema([("a", pa.int64()), ("B c", pa.string()), ("l", pa.list_(pa.int32()))])
ROWS = pa.RecordBatch.from_pylist(
    [
        {"a": 1, "B c": "x", "l": [1]},
        {"a": 2, "B c": None, "l": []},
        {"a": None, "B c": "y'", "l": None},
    ],
    SCHEMA,
)


@pytest.mark.parametrize(
    ("expression", "holds"),
    [
        ("a > 1", [1]),
        ("A >= 1 -- a comment", [0, 1]),
        ("not a > 1", [0]),
        ("a is null", [2]),
        ("a > 1) or (a < 2", [0, 1]),
        ("rows.a = 1", [0]),
        ("len(list_filter(l, lambda x: x = a)) > 0", [0]),
        ("\"B c\" = 'y'''", [2]),
        ("\"b C\" like 'x%' or len(l) = 0", [0, 1]),
        ("coalesce(a, 0) + 1 in (1, 3)", [1, 2]),
        ('a between 1 and 2 and "B c" is not null', [0]),
        ("list_contains(l, 1)", [0]),
        ("case when a = 2 then true else false end", [1]),
        ("true", [0, 1, 2]),
        ("null::boolean", []),
        ("regexp_matches(\"B c\", '^[xy]')", [0, 2]),
    ],
)
def test_conditions(expression: str, holds: list[int]) -> None:
    condition = Condition(expression, SCHEMA)
    assert np.flatnonzero(condition.holds(ROWS.select(condition.columns))).tolist() == holds


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("c > 1", "no column 'c'"),
        ("a >", "syntax error"),
        ("", "is empty"),
        ("s.f > 1", "no column 's'"),
        (" -- a", "neither true nor false"),
        ("a", "is of type BIGINT"),
        ("nosuch(a)", "nosuch does not exist"),
        ("count(*) > 1", "aggregates"),
        ("row_number() over () = 1", "window"),
        ("a > (select max(a) from rows)", "has a query in it"),
        ("exists (select 1)", "has a query in it"),
        ("random() < 0.5", "uses random()"),
        ("now() > '2020-01-01'", "uses now()"),
        ("current_date > date '2020-01-01'", "no column 'current_date'"),
        ("a > 1) order by (a", "is more than one expression"),
        ("a > 1) limit (1", "is more than one expression"),
        ("true); drop table rows; select (true", "statements|SELECT"),
        ("true); select (true", "is more than one expression|syntax"),
        ("a > ?", "parameter"),
        ("read_text('/etc/passwd') is null", "table function"),
        ("getenv('HOME') is null", "getenv does not exist"),
        ("current_setting('threads') = '1'", "uses current_setting()"),
        ("__import__('os') is null", "does not exist"),
    ],
)  # fmt: skip
def test_what_is_no_condition(expression: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason.replace("()", r"\(\)")) as error:
        Condition(expression, SCHEMA)
    assert len(str(error.value).splitlines()) == 1
    assert repr(expression) in str(error.value)
    assert "the columns are a, B c, l" in str(error.value)


def test_a_value_that_cannot_be_computed_is_one_line(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(out, tmp_path / "new", "--where", "output_text::int > 1") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "Could not convert" in line
    assert list(tmp_path.iterdir()) == []


def test_columns_that_differ_in_case(tmp_path: Path) -> None:
    schema = pa.schema([("a", pa.int64()), ("A", pa.int64()), ("b", pa.int64())])
    assert Condition("b > 1", schema).columns == ["b"]
    with pytest.raises(ValueError, match="a, A: columns whose names differ in case alone"):
        Condition("a > 1", schema)


# Duplicates.


def texts_run(folder: Path, texts: list[str]) -> Path:
    def change(shard: int, columns: Columns) -> Columns:
        n = len(texts)
        return {
            **columns,
            "question": pa.array(["What?"] * n),
            "status": pa.array(["ok"] * n),
            "output_text": pa.array(texts),
        }

    return write_sampled_run(folder, len(texts), 1, 1, change=change)


def kept_numbers(to: Path) -> list[int]:
    return [int(name.partition("-")[2]) for name in written(to)]


def prose(rng: random.Random, num_words: int) -> list[str]:
    return ["".join(rng.choices("abcdefghij", k=6)) for _ in range(num_words)]


def jaccard(a: str, b: str) -> float:
    def grams(text: str) -> set[tuple[str, ...]]:
        found = duplicates.words(text)
        return {tuple(found[n : n + 5]) for n in range(max(1, len(found) - 4))}

    one, two = grams(a), grams(b)
    return len(one & two) / len(one | two)


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95, 1.0])
def test_similar_rows_are_dropped_and_others_stay(threshold: float, tmp_path: Path) -> None:
    """Texts with 0 to 6 of 200 words changed, and their true similarity beside the threshold."""
    rng = random.Random(0)
    texts: list[str] = []
    similar: list[bool | None] = []
    for _ in range(20):
        base = prose(rng, 200)
        texts.append(" ".join(base))
        similar.append(False)
        for num_changed in range(0, 31, 2):
            changed = list(base)
            for place in rng.sample(range(200), num_changed):
                changed[place] = prose(rng, 1)[0]
            text = " ".join(changed).upper()
            found = jaccard("What? " + texts[-1 - num_changed // 2], "What? " + text)
            near = abs(found - threshold) < 0.12 and found < 1
            texts.append(text)
            similar.append(None if near else found >= threshold)
    flags = ["--dedupe", "minhash", "--dedupe-threshold", str(threshold)]
    out = texts_run(tmp_path / "out", texts)
    assert call(out, tmp_path / "new", *flags) == 0
    kept = set(kept_numbers(tmp_path / "new"))
    wrong = [
        n
        for n, is_similar in enumerate(similar)
        if is_similar is not None and is_similar == (n in kept)
    ]
    assert similar.count(True) >= 20
    assert similar.count(False) >= 20
    assert not wrong
    assert call(out, tmp_path / "again", *flags) == 0
    assert kept_numbers(tmp_path / "again") == sorted(kept), "MinHash is seeded"


@pytest.mark.parametrize(
    ("a", "b", "exact", "minhash"),
    [
        ("one two", "one two", True, True),
        ("one two", "One  TWO", False, True),
        ("1 + 2", "1 - 2", False, False),
        ("", "", True, True),
        ("", "x", False, False),
        ("今日は", "今日は", True, True),
        ("今日は", "昨日は", False, False),
        ("a b c d e f", "a b c d e g", False, False),
    ],
)  # fmt: skip
def test_pairs_of_texts(a: str, b: str, exact: bool, minhash: bool, tmp_path: Path) -> None:
    out = texts_run(tmp_path / "out", [a, b])
    for kind, is_duplicate in (("exact", exact), ("minhash", minhash)):
        assert call(out, tmp_path / kind, "--dedupe", kind) == 0
        assert kept_numbers(tmp_path / kind) == ([0] if is_duplicate else [0, 1])


def test_prompt_and_answer_are_no_one_text(tmp_path: Path) -> None:
    def change(shard: int, columns: Columns) -> Columns:
        return {
            **columns,
            "question": pa.array(["ab", "a"]),
            "status": pa.array(["ok"] * 2),
            "output_text": pa.array(["c", "bc"]),
        }

    out = write_sampled_run(tmp_path / "out", 2, 1, 1, change=change)
    assert call(out, tmp_path / "new", "--dedupe", "exact") == 0
    assert len(written(tmp_path / "new")) == 2


# Chats and pairs, as trl documents them ("Dataset formats and types").


def load(folder: Path, cache: Path) -> Any:
    datasets.disable_progress_bars()
    return datasets.load_dataset(str(folder), split="train", cache_dir=str(cache))


def turns(*said: str) -> list[dict[str, str]]:
    return [{"role": said[n], "content": said[n + 1]} for n in range(0, len(said), 2)]


def check_turns(feature: Any) -> None:
    """A list of {role, content}, both text: trl's conversational format."""
    assert type(feature) is datasets.List
    assert feature.feature == {
        "role": datasets.Value("string"),
        "content": datasets.Value("string"),
    }


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_messages_are_those_of_trl(system: str | None, tmp_path: Path) -> None:
    out = write_sampled_run(tmp_path / "out", system_prompt=system)
    assert call(out, tmp_path / "new", "--as", "messages") == 0
    found = load(tmp_path / "new", tmp_path / "cache")
    assert found.column_names == ["row_id", "messages"]
    check_turns(found.features["messages"])
    rows = pd.read_parquet(out / "data").query("status == 'ok'").set_index("row_id")
    before = turns("system", system) if system else []
    for row in found:
        prompt, answer = rows.loc[row["row_id"], ["question", "output_text"]]
        assert row["messages"] == [*before, *turns("user", prompt, "assistant", answer)]
    assert found["row_id"] == rows.index.tolist()


LONG = turns("user", "1", "assistant", "2", "user", "3")
BEGUN = turns("user", "Hi", "assistant", "Well, ")


@pytest.mark.parametrize(
    ("prompt", "system", "before", "answer"),
    [
        (turns("user", "Hi"), None, turns("user", "Hi"), "A"),
        (turns("user", "Hi"), "S", turns("system", "S", "user", "Hi"), "A"),
        (turns("system", "T", "user", "Hi"), "S", turns("system", "T", "user", "Hi"), "A"),
        (LONG, None, LONG, "A"),
        (BEGUN, "S", turns("system", "S", "user", "Hi"), "Well, A"),
        (turns("user", "Hi", "assistant", ""), None, turns("user", "Hi"), "A"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["list", "view", "maps"])
def test_chats_keep_their_turns(
    prompt: Any, system: str | None, before: Any, answer: str, kind: str, tmp_path: Path
) -> None:
    """In every layout that a run reads."""
    turn = pa.struct([("role", pa.string()), ("content", pa.string())])
    kinds = {
        "list": pa.list_(turn),
        "view": pa.list_view(turn),
        "maps": pa.list_(pa.map_(pa.string(), pa.string())),
    }

    def change(shard: int, columns: Columns) -> Columns:
        some = [[list(t.items()) for t in prompt] if kind == "maps" else prompt] * 2
        chats = pa.array(some, kinds[kind])
        ok = {"status": pa.array(["ok"] * 2), "output_text": pa.array(["A"] * 2)}
        return {**columns, **ok, "question": chats}

    row = Exchange(0, "", prompt, "A", system)
    assert conversation(row) == (before, turns("assistant", answer)[0])
    out = write_sampled_run(tmp_path / "out", 2, 1, 1, change=change, system_prompt=system)
    assert call(out, tmp_path / "new", "--as", "messages", "--dedupe", "exact") == 0
    found = pq.read_table(tmp_path / "new/data")["messages"].to_pylist()
    assert found == [[*before, *turns("assistant", answer)]]


def test_json_that_looks_like_a_chat_is_the_text_that_the_model_saw(tmp_path: Path) -> None:
    def change(shard: int, columns: Columns) -> Columns:
        ok = {"status": pa.array(["ok"] * 2), "output_text": pa.array(["A"] * 2)}
        return {**columns, **ok, "question": pa.array([text] * 2, pa.json_())}

    text = json.dumps(LONG)
    out = write_sampled_run(tmp_path / "out", 2, 1, 1, change=change)
    assert call(out, tmp_path / "new", "--as", "messages", "--dedupe", "exact") == 0
    found = pq.read_table(tmp_path / "new/data")["messages"].to_pylist()
    assert found == [turns("user", text, "assistant", "A")]


def test_raw_prompts_have_no_system_prompt(tmp_path: Path) -> None:
    out = write_sampled_run(tmp_path / "out", system_prompt="S", prompt_format="raw")
    assert call(out, tmp_path / "new", "--as", "messages") == 0
    assert {len(chat) for chat in pq.read_table(tmp_path / "new/data")["messages"].to_pylist()} == {
        2
    }


PAIR_FLAGS = {
    "correct": ["--correct"],
    "best": ["--best-of", "mean_confidence"],
    "both": ["--correct", "--best-of", "mean_confidence"],
}


@pytest.mark.parametrize("by", PAIR_FLAGS)
def test_pairs_are_those_of_trl(by: str, out: Path, tmp_path: Path) -> None:
    assert call(out, tmp_path / "new", "--as", "preference", *PAIR_FLAGS[by]) == 0
    found = load(tmp_path / "new", tmp_path / "cache")
    assert found.column_names == [
        "prompt",
        "chosen",
        "rejected",
        "chosen_row_id",
        "rejected_row_id",
    ]
    for name in ("prompt", "chosen", "rejected"):
        check_turns(found.features[name])
    rows = frame(out).query("status == 'ok'")
    expected = []
    for _, group in rows.groupby("prompt", sort=False):
        value = (
            group["mean_confidence"].astype(float) if by != "correct" else group["correct"] * 0.0
        )
        key = value + (10.0 * group["correct"] if by != "best" else 0.0)
        best, worst = group.loc[key.idxmax()], group.loc[key.idxmin()]
        differ = best["correct"] != worst["correct"] if by != "best" else key.max() > key.min()
        if len(group) > 1 and differ and best["output_text"] != worst["output_text"]:
            expected.append((best, worst))
    assert len(expected) > 5
    assert len(found) == len(expected)
    for row, (best, worst) in zip(found, expected, strict=True):
        assert row["prompt"] == turns("user", best["question"])
        assert row["chosen"] == turns("assistant", best["output_text"])
        assert row["rejected"] == turns("assistant", worst["output_text"])
        assert (row["chosen_row_id"], row["rejected_row_id"]) == (best["row_id"], worst["row_id"])
    steps = read_selection(Storage(str(tmp_path / "new"))).rules
    assert [step.rule.partition(":")[0] for step in steps] == ["ok", *["preference"] * 3]
    assert steps[-1].num_kept == 2 * len(expected)
    assert all(a.num_kept == b.num_rows for a, b in pairwise(steps))


# What is written.


def test_a_table_and_json(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(out, tmp_path / "new", "--correct", "--max-per-prompt", "1") == 0
    lines = capsys.readouterr().out.splitlines()
    names = ["ok", "correct (word-problems)", "at most 1 a prompt"]
    assert [re.split(r"  +", line)[0] for line in lines[1:4]] == names
    assert lines[-1].endswith(f"rows: {tmp_path / 'new'}")
    words = ["select", str(out), "--to", str(tmp_path / "j"), "--correct", "--log-format", "json"]
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", *words], capture_output=True, text=True
    )
    (line,) = map(json.loads, done.stderr.splitlines())
    assert (done.returncode, done.stdout, line["event"]) == (0, "", "selection finished")
    assert [step["rule"] for step in line["rules"]] == names[:2]
    assert line["num_rows"] == line["rules"][-1]["num_rows"] - line["rules"][-1]["num_dropped"]


def test_equal_runs_give_equal_bytes_in_shards_of_bounded_size(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(new_dataset, "SHARD_BYTES", 1)
    monkeypatch.setattr(new_dataset, "ROW_GROUP_ROWS", 10)
    for name in ("a", "b"):
        assert call(out, tmp_path / name, "--dedupe", "minhash") == 0
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    shards = [file.name for file in files if file.parent.name == "data"]
    assert len(shards) > 3
    assert shards == [f"train-{n:05d}-of-{len(shards):05d}.parquet" for n in range(len(shards))]
    assert all(
        (tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files
    )
    assert load(tmp_path / "a", tmp_path / "cache").num_rows == len(written(tmp_path / "a"))
    assert len(pd.read_parquet(tmp_path / "a")) == len(written(tmp_path / "a")), (
        "the record is not data"
    )


@pytest.mark.parametrize("form", ["rows", "messages", "preference"])
def test_a_selection_is_published_with_its_rules(form: str, out: Path, tmp_path: Path) -> None:
    flags = ["--correct", "--where", "num_forwards > 2", "--as", form]
    assert call(out, tmp_path / "new", *flags) == 0
    words = [str(tmp_path / "new"), "--to", str(tmp_path / "published"), "--license", "mit"]
    assert publish.run(parse(publish, *words)) == 0
    card = (tmp_path / "published/README.md").read_text()
    record = read_selection(Storage(str(tmp_path / "new")))
    for step in record.rules:
        cells = f"| {step.num_rows} | {step.num_dropped} | {step.num_kept} |"
        assert cells in card
    assert "where num&#95;forwards &#62; 2" in card
    assert "word-problems" in card
    assert "pass@2" in card
    assert str(tmp_path) not in card
    assert load(tmp_path / "published", tmp_path / "cache").num_rows == record.num_rows
    assert verify.run(parse(verify, str(tmp_path / "new"))) == 0


def flip(path: Path) -> None:
    """Change one bit of the values; the footer behind them stays as it is."""
    content = bytearray(path.read_bytes())
    footer_bytes = int.from_bytes(content[-8:-4], "little")
    content[(len(content) - 8 - footer_bytes) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "finding"),
    [
        (lambda folder: flip(next((folder / "data").iterdir())), "its bytes are not those"),
        (lambda folder: next((folder / "data").iterdir()).unlink(), "is missing"),
        (lambda folder: (folder / "data/more.parquet").touch(), "is not in the record"),
        (lambda folder: (folder / SELECTION).write_text("{}"), "is not a record of lrd select"),
        (lambda folder: (folder / SELECTION).write_text("no"), "is not a record of lrd select"),
    ],
    ids=["flipped", "missing", "more", "empty record", "no JSON"],
)  # fmt: skip
def test_verify_and_publish_see_damage(
    harm: Any, finding: str, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(out, tmp_path / "new") == 0
    harm(tmp_path / "new")
    capsys.readouterr()
    assert verify.run(parse(verify, str(tmp_path / "new"))) == 1
    printed = capsys.readouterr()
    assert finding in printed.out + printed.err
    if finding != "is not in the record":
        words = [str(tmp_path / "new"), "--to", str(tmp_path / "published")]
        assert publish.run(parse(publish, *words)) == 2
        assert finding in capsys.readouterr().err
        assert not (tmp_path / "published").exists()


# What is refused.


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--where", "nosuch > 1"], "the columns are question, answer"),
        (["--best-of", "nosuch"], "no column 'nosuch'; there are question"),
        (["--best-of", "output_text"], "are string, not numbers; there are "),
        (["--best-of", "num_forwards", "--majority"], "drop one"),
        (["--max-per-prompt", "0"], "at least 1"),
        (["--dedupe", "minhash", "--dedupe-threshold", "0"], "above 0"),
        (["--dedupe", "minhash", "--dedupe-threshold", "nan"], "above 0"),
        (["--dedupe-threshold", "0.5"], "is for --dedupe minhash"),
        (["--as", "preference"], "needs --correct or --best-of"),
        (["--as", "preference", "--correct", "--majority"], "drop --majority"),
        (["--as", "preference", "--correct", "--max-per-prompt", "1"], "drop --max-per-prompt"),
        (["--correct", "--task", "gsm8k"], "run lrd evaluate {out} --task gsm8k"),
        (["--where", "num_forwards > 1000"], "no row is left of 72: ok dropped"),
    ],
)  # fmt: skip
def test_what_is_refused(
    flags: list[str], reason: str, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(out, tmp_path / "new", *flags) == 2
    printed = capsys.readouterr()
    assert (printed.out, len(printed.err.splitlines())) == ("", 1)
    assert reason.format(out=out) in printed.err
    assert list(tmp_path.iterdir()) == []


def rewrite(scores: Path, table: pa.Table) -> None:
    """Other scores with the summary as it is."""
    summary = pq.read_metadata(scores).metadata[b"lrd.evaluation"].decode()
    scores.write_bytes(parquet_bytes(table, {"lrd.evaluation": summary}))


def harmed(tmp_path: Path, what: str) -> tuple[Path, list[str]]:
    """A run in which something is wrong, and flags."""
    out = write_sampled_run(tmp_path / "out")
    flags = ["--correct"]
    if what == "no scores":
        return out, flags
    score(out)
    scores = out / ".scores/word-problems.parquet"
    if what == "two tasks":
        shutil.copy(scores, out / ".scores/gsm8k.parquet")
    elif what == "scores of fewer rows":
        rewrite(scores, pq.read_table(scores).slice(0, 70))
    elif what == "scores before a retry":
        table = pq.read_table(scores)
        status = ["failed", *table["status"].to_pylist()[1:]]
        status[0] = "ok" if table["status"][0].as_py() == "failed" else "failed"
        changed = table.set_column(1, "status", pa.array(status))
        rewrite(scores, changed)
    elif what == "scores damaged":
        scores.write_bytes(b"PAR1")
    elif what == "programs":
        scores.rename(out / ".scores/mbpp.parquet")
        return out, ["--majority"]
    elif what == "flipped":
        flip(out / "data/train-00001-of-00003.parquet")
    elif what == "unfinished":
        (out / "data/train-00002-of-00003.parquet").unlink()
    elif what == "no run":
        shutil.rmtree(out / ".run")
    return out, flags


HARMS = {
    "no scores": "run lrd evaluate",
    "two tasks": "choose with --task",
    "scores of fewer rows": "run lrd evaluate again",
    "scores before a retry": "run lrd evaluate again",
    "scores damaged": "score again or remove it",
    "programs": "programs, which cannot be compared",
    "flipped": "its bytes are not those of its record",
    "unfinished": "2 of 3 shards are finished",
    "no run": "holds no run",
}


@pytest.mark.parametrize("what", HARMS)
def test_runs_that_are_refused(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, flags = harmed(tmp_path, what)
    capsys.readouterr()
    assert call(out, tmp_path / "new", *flags) == 2
    printed = capsys.readouterr()
    assert (printed.out, len(printed.err.splitlines())) == ("", 1)
    assert HARMS[what] in printed.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("what", ["full", "file", "link", "inside", "itself"])
def test_places_that_are_refused(
    what: str, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "new"
    if what == "full":
        to.mkdir()
        (to / "mine.txt").touch()
    elif what == "file":
        to.touch()
    elif what == "link":
        to.symlink_to(tmp_path / "nowhere")
    else:
        to = out / "new" if what == "inside" else out
    assert call(out, to) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search("exists already|link to nothing|in the run's own folder", line)
    assert not (out / "new").exists()


def test_an_empty_folder_is_a_place_and_partial_runs_can_be_selected(tmp_path: Path) -> None:
    out, _ = harmed(tmp_path, "unfinished")
    (tmp_path / "new").mkdir()
    assert call(out, tmp_path / "new", "--partial", "--best-of", "num_forwards") == 0
    assert len(written(tmp_path / "new")) <= 12
    assert read_selection(Storage(str(tmp_path / "new"))).num_shards == 2


@pytest.mark.parametrize(
    ("flags", "module"), [(["--where", "true"], "duckdb"), (["--dedupe", "minhash"], "datasketch")]
)
def test_a_library_that_is_not_installed(
    flags: list[str],
    module: str,
    out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert call(out, tmp_path / "new", *flags) == 2
    assert "pip install 'lrd-pipeline[select]'" in capsys.readouterr().err


# Whole or absent.


def killed(output: str, to: str, rule: dict[str, Any], **variables: str) -> None:
    """A selection that a fault kills."""
    program = (
        "import sys; from jobs import cli; from pipeline.selecting import new_dataset\n"
        "new_dataset.SHARD_BYTES, new_dataset.ROW_GROUP_ROWS = 1, 10\n"
        f"cli.main('select', {output!r}, '--to', {to!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True,
        env={**os.environ, **variables, "LRD_FAULTS": json.dumps([rule])},
    )  # fmt: skip
    assert done.returncode == -9, done.stderr


KILLS = [
    {"at": "storage.write", "match": ".selecting/0.parquet", "do": "kill"},
    {"at": "storage.written", "match": ".selecting/2.parquet", "do": "kill"},
    {"at": "storage.write", "match": SELECTION, "do": "kill"},
    {"at": "storage.written", "match": SELECTION, "do": "kill"},
]


@pytest.mark.parametrize("rule", KILLS, ids=lambda rule: f"{rule['at']} {rule['match']}")
def test_a_killed_selection_leaves_no_dataset(
    rule: dict[str, Any], out: Path, tmp_path: Path
) -> None:
    killed(str(out), str(tmp_path / "new"), rule)
    assert not (tmp_path / "new").exists()
    assert call(out, tmp_path / "new") == 0
    assert verify.run(parse(verify, str(tmp_path / "new"))) == 0


@pytest.mark.parametrize("error", ["ENOSPC", "EACCES"])
@pytest.mark.parametrize("match", [".selecting/*", SELECTION])
def test_storage_that_fails_leaves_nothing(
    error: str,
    match: str,
    out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from pipeline import faults

    rule = {"at": "storage.write", "match": match, "do": "raise", "error": error}
    faults.load(json.dumps([rule]))
    try:
        assert call(out, tmp_path / "new") == 75
    finally:
        faults.load(None)
    assert "the same command starts over" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def server() -> Any:
    with s3.server() as address:
        s3.make_bucket(address, "bucket")
        with s3.as_environment(s3.environment(address)):
            yield s3.environment(address)


@s3.needs_server
def test_object_stores(
    out: Path, tmp_path: Path, server: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    place = Storage(f"s3://bucket/{tmp_path.name}")
    for file in (path for path in out.rglob("*") if path.is_file()):
        place.write(f"out/{file.relative_to(out)}", file.read_bytes())
    flags = ["--correct", "--where", "num_forwards > 2", "--dedupe", "exact", "--majority"]
    assert call(f"{place.uri}/out", f"{place.uri}/new", *flags) == 0
    assert call(out, tmp_path / "new", *flags) == 0
    new = Storage(f"{place.uri}/new")
    names = sorted(info.path.removeprefix(f"{new.root}/") for info in new.files(recursive=True))
    assert names == [SELECTION, "data/train-00000-of-00001.parquet"]
    assert all(new.read(name) == (tmp_path / "new" / name).read_bytes() for name in names)
    assert verify.run(parse(verify, new.uri)) == 0
    assert call(out, new.uri) == 2
    assert "exists already" in capsys.readouterr().err


@s3.needs_server
@pytest.mark.parametrize("rule", KILLS, ids=lambda rule: f"{rule['at']} {rule['match']}")
def test_a_killed_selection_in_a_store_is_started_over(
    rule: dict[str, Any], out: Path, tmp_path: Path, server: dict[str, str]
) -> None:
    to = f"s3://bucket/{tmp_path.name}/new"
    killed(str(out), to, rule, **server)
    place = Storage(to)
    assert place.kind(new_dataset.UNFINISHED) == "file"
    if SELECTION not in rule["match"]:
        assert place.names("data") == []
    assert call(out, to) == 0
    files = {info.path.removeprefix(f"{place.root}/") for info in place.files(recursive=True)}
    assert files == {SELECTION, "data/train-00000-of-00001.parquet"}
    assert verify.run(parse(verify, to)) == 0


# Memory.

MEASURE = """
import sys
from pipeline.selecting.rules import Rules
from pipeline.selecting.select import select
from pipeline.storage.storage import Storage
from pipeline.selecting import new_dataset
new_dataset.SHARD_BYTES = 1 << 22  # So that even the small run fills a shard.
best = {"dedupe": "exact", "best_of": "mean_confidence"}
rules = Rules(where="mean_confidence > 0.2", **best)
if sys.argv[3] != "rows":
    rules = Rules(correct=True, where="mean_confidence > 0.2", form="preference")
found = select(Storage(sys.argv[1]), sys.argv[2], rules)
# Not ru_maxrss: after an exec it holds the parent's peak too.
(peak,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(found.num_rows, int(peak.split()[1]) // 1024)
"""


def wide(shard: int, columns: Columns) -> Columns:
    """With canvases that do not compress: 1 KB a row."""
    num_rows = len(columns["row_id"])
    offsets = pa.array(np.arange(num_rows + 1) * 256, pa.int32())
    rng = np.random.default_rng(shard)
    values = pa.array(rng.integers(0, 1 << 30, num_rows * 256), pa.int32())
    return {**columns, "output_token_ids": pa.ListArray.from_arrays(offsets, values)}


def write_scores(out: Path) -> None:
    """Scores as `lrd evaluate` leaves them, in a few columns."""
    columns = ["row_id", "status", "output_text", "answer"]
    rows = pq.read_table(out / "data", columns=columns).to_pandas()
    extracted = rows["output_text"].str.rpartition("#### ")[2]
    table = pa.table(
        {
            "row_id": rows["row_id"],
            "status": rows["status"],
            "correct": (extracted == rows["answer"]).to_numpy(bool),
            "extracted": extracted,
        }
    )
    counts = {"num_correct": 0, "num_rows": 0, "accuracy": 0, "accuracy_low": 0}
    summary = {"task": "word-problems", **counts, "accuracy_high": 0}
    (out / ".scores").mkdir()
    content = parquet_bytes(table, {"lrd.evaluation": json.dumps(summary)})
    (out / ".scores/word-problems.parquet").write_bytes(content)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """20,000 and 200,000 rows of 1 KB: 200 MB more to read and write."""
    peaks: dict[tuple[str, int], int] = {}
    for num_shards in (4, 40):
        out = write_sampled_run(tmp_path / f"{num_shards}", 1250, num_shards, 4, change=wide)
        write_scores(out)
        for form in ("rows", "preference"):
            to = str(tmp_path / f"{form}-{num_shards}")
            done = subprocess.run(
                [sys.executable, "-c", MEASURE, str(out), to, form],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            num_rows, peaks[form, num_shards] = map(int, done.stdout.split())
            assert num_rows > 300 * num_shards
    print("peak in MiB:", peaks)
    for form in ("rows", "preference"):
        assert peaks[form, 40] < 500, peaks
        assert peaks[form, 40] - peaks[form, 4] < 40, peaks


# The page.


def test_the_commands_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_sampled_run(tmp_path / "out")
    (commands,) = re.findall(r"^```bash\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line, comments=True) for line in commands.splitlines()]
    assert len(lines) == 9
    for line in lines:
        assert line[0] == "lrd"
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0, f"{line}: {capsys.readouterr().err}"
    assert load(tmp_path / "published", tmp_path / "cache").num_rows > 10


def test_the_page_names_every_file_and_flag() -> None:
    page = PAGE.read_text()
    there = {path.name for path in PAGE.parent.glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"^\| `(\w+\.py)`", page, re.MULTILINE)) == there
    flags = re.findall(r"(--[a-z-]+)", Path(job.__file__).read_text())
    assert set(flags) <= set(re.findall(r"--[a-z-]+", page)) | {"--partial"}
