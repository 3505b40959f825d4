"""The command line: every wrong call is one line, exit code 2 and nothing written."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from helpers.few import few
from safetensors.torch import load_file, save_file

from jobs import cli, generate, prepare
from jobs.flags import run_config
from lrd import DecodingConfig
from lrd.models.registry import TINY
from pipeline.config import RunConfig


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    return parser.parse_args(words)


@pytest.fixture
def no_ray() -> Iterator[None]:
    """For calls that get as far as joining a cluster: no session before, none after."""
    ray.shutdown()
    yield
    ray.shutdown()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with one good shard."""
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(pa.table({"prompt": ["How many?"], "id": [1]}), folder / "a.parquet")
    return folder


def refused(capsys: pytest.CaptureFixture[str], output: Path, *words: str) -> str:
    """Run a bad call; its one line."""
    code = generate.run(parse("--output", str(output), *words))
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1, printed.err
    assert not output.exists()
    return printed.err


def broken_model(tmp_path: Path, change: Any) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    change(folder)
    return folder


def change_tensors(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_missing_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, tmp_path / "out", "--input", str(tmp_path / "nowhere"))
    assert "nowhere" in line
    assert "--input" in line


def test_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert "lrd prepare" in refused(capsys, tmp_path / "out", "--input", str(tmp_path / "empty"))


def test_no_such_column(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, tmp_path / "out", "--input", str(source), "--prompt-column", "question")
    assert "'question'" in line
    assert "prompt, id" in line


def test_column_of_the_wrong_type(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, tmp_path / "out", "--input", str(source), "--prompt-column", "id")
    assert "int64" in line


@pytest.mark.parametrize("kept", [0, 100, -20])
def test_truncated_file(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], kept: int
) -> None:
    whole = (source / "a.parquet").read_bytes()
    (source / "b.parquet").write_bytes(whole[:kept])
    line = refused(capsys, tmp_path / "out", "--input", str(source))
    assert "b.parquet" in line


def test_corrupt_pages(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pa.table({"prompt": [f"How many are {n}?" for n in range(2000)]})
    pq.write_table(table, source / "a.parquet", compression="zstd")
    content = bytearray((source / "a.parquet").read_bytes())
    for place in range(200, 400):
        content[place] ^= 0xFF
    (source / "a.parquet").write_bytes(content)
    assert "a.parquet" in refused(capsys, tmp_path / "out", "--input", str(source))


def test_shards_of_two_schemas(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.table({"prompt": ["How many?"], "id": ["x"]}), source / "b.parquet")
    line = refused(capsys, tmp_path / "out", "--input", str(source))
    assert "b.parquet" in line
    assert "column 'id' holds string, in " in line


def test_a_column_that_results_add(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.table({"prompt": ["x"], "output_text": ["y"]}), source / "a.parquet")
    assert "output_text" in refused(capsys, tmp_path / "out", "--input", str(source))


@pytest.mark.usefixtures("no_ray")
def test_a_cluster_that_does_not_answer(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, tmp_path / "out", "--input", str(source), "--address", "127.0.0.1:1")
    assert "127.0.0.1:1" in line


def test_output_that_is_something_else(
    tmp_path: Path,
    source: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.run.connect", lambda _: pytest.fail("Ray was started"))
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    code = generate.run(parse("--input", str(source), "--output", str(taken)))
    assert code == 2
    assert "taken" in capsys.readouterr().err
    assert [path.name for path in taken.iterdir()] == ["notes.txt"]


def test_output_is_the_input(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = generate.run(parse("--input", str(source), "--output", str(source)))
    assert code == 2
    assert "input" in capsys.readouterr().err
    assert [path.name for path in source.iterdir()] == ["a.parquet"]


def test_a_missing_setting_is_named(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.run(parse("--input", str(source))) == 2
    assert "--output" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--gen-length", "100", "--block-length", "32"], "block_length 32 does not divide"),
        (["--gen-length", "many"], "gen_length"),
        (["--r-f", "1.5"], "r_f"),
        (["--slots", "0"], "slots"),
        (["--entropy-bound", "1", "--entropy-threshold", "1"], "keep one"),
        (["--gen-length", "600"], "gen_length 600"),
        (["--model", "/nowhere"], "/nowhere"),
    ],
)
def test_impossible_settings(
    tmp_path: Path,
    source: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    expected: str,
) -> None:
    assert expected in refused(capsys, tmp_path / "out", "--input", str(source), *words)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("colour = 'red'", "colour: no such setting; see"),
        (
            "colour = 'red'\n[decoding]\ngen_lenght = 3",
            "colour: no such setting; gen_lenght: no such setting (did you mean gen_length?); see",
        ),
        (
            "prompt_colum = 'question'",
            "prompt_colum: no such setting (did you mean prompt_column?)",
        ),
        ("gen_length = 64", "gen_length: no such setting here; write it below [decoding]"),
        ("[decoding]\nslots = 4", "slots: no such setting here; write it above [decoding]"),
        ("scheme = 'form.json'", "scheme: no such setting (did you mean schema?)"),
    ],
)
def test_unknown_settings_in_the_file(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], content: str, expected: str
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(content)
    line = refused(capsys, tmp_path / "out", "--input", str(source), "--config", str(file))
    assert f"{file}: {expected}" in line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("genrate --input in", "lrd: genrate: no such command (did you mean generate?); see"),
        (
            "retry_failed out",
            "lrd: retry_failed: no such command (did you mean retry-failed?); see",
        ),
        ("xyz", "lrd: xyz: no such command; see lrd --help"),
        ("generate --genlength 64", "arguments: --genlength 64 (did you mean --gen-length?); see"),
        ("generate --genlength=64", "--genlength=64 (did you mean --gen-length?)"),
        ("verify out --partail", "lrd verify: unrecognized arguments: --partail (did you mean "),
        ("verify out --zzz", "lrd verify: unrecognized arguments: --zzz; see lrd verify --help"),
    ],
)
def test_a_misspelt_word_is_answered_with_the_nearest(
    capsys: pytest.CaptureFixture[str], words: str, expected: str
) -> None:
    assert cli.run(words.split()) == 2
    line = capsys.readouterr().err
    assert expected in line
    assert len(line.strip().splitlines()) == 1


TOML = 'slots = 3\nsystem_prompt = "Grüße"\n'


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"preset = [1]", "preset is [1]; expected a name in quotes: baseline, paper, fast"),
        (b"preset = 1.5", "preset is 1.5; expected a name"),
        (b"preset = {a = 1}", "preset is {'a': 1}; expected a name"),
        (b"preset = true", "preset is True; expected a name"),
        (b"preset = 'quick'", "'quick'"),
        (b"decoding = 3", "decoding is not a table"),
        (b"decoding = [1]", "decoding is not a table"),
        (b"slots = [1]", "slots"),
        (b"slots = ", "run.toml"),
        (b"\x00", "run.toml"),
        (TOML.encode("utf-16"), "run.toml: is UTF-16; save it as UTF-8"),
        (TOML.encode("utf-16-be"), "run.toml"),
        (TOML.encode("latin-1"), "run.toml: line 2 is not UTF-8; save the file as UTF-8"),
        (TOML.encode("utf-8-sig") + b"slots = 4", "run.toml"),
    ],
)
def test_a_run_file_that_is_wrong(
    tmp_path: Path,
    source: Path,
    capsys: pytest.CaptureFixture[str],
    content: bytes,
    expected: str,
) -> None:
    (tmp_path / "run.toml").write_bytes(content)
    words = ["--input", str(source), "--config", str(tmp_path / "run.toml")]
    assert expected in refused(capsys, tmp_path / "out", *words)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_run_file_may_have_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "run.toml").write_bytes(TOML.replace("\n", "\r\n").encode(encoding))
    words = ["--input", "a", "--output", "b", "--config", str(tmp_path / "run.toml")]
    config = run_config(parse(*words))
    assert (config.slots, config.system_prompt) == (3, "Grüße")


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        ("kill", "not a list of rules"),
        ("{}", "not a list of rules"),
        ("[1]", "0: "),
        ('[{"at": "replica.pass"}]', "0.do"),
        ('[{"at": "nowhere", "do": "kill"}]', "0.at"),
        ('[{"at": "replica.pass", "do": "explode"}]', "0.do"),
        ('[{"at": "replica.pass", "do": "kill", "colour": "red"}]', "0.colour"),
        ('[{"at": "replica.pass", "do": "kill", "times": "often"}]', "0.times"),
        ('[{"at": "storage.read", "do": "raise", "error": "EWRONG"}]', "'EWRONG'"),
    ],
)
@pytest.mark.parametrize("command", few(["generate", "verify"]))
def test_faults_that_are_malformed(
    tmp_path: Path, command: str, faults: str, expected: str
) -> None:
    words = {
        "generate": ["--input", str(tmp_path), "--output", str(tmp_path / "out")],
        "prepare": [str(tmp_path), "--output", str(tmp_path / "out")],
    }
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", command, *words.get(command, [str(tmp_path)])],
        env={**os.environ, "LRD_FAULTS": faults}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"lrd {command}: LRD_FAULTS: ")
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_unknown_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse("--colour", "red")
    assert exit_info.value.code == 2
    assert "--colour" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.pop("model.transformer.ln_f.weight"), "1 missing: model.transformer.ln_f"),
        (lambda t: t.update(more=t["model.transformer.ln_f.weight"].clone()), "1 extra: more"),
        (
            lambda t: t.update(
                {"model.transformer.ln_f.weight": t["model.transformer.ln_f.weight"][:5].clone()}
            ),
            "1 misshapen: model.transformer.ln_f.weight is [5], not [128]",
        ),
    ],
)
def test_checkpoint_that_does_not_fit(
    tmp_path: Path,
    source: Path,
    capsys: pytest.CaptureFixture[str],
    change: Any,
    expected: str,
) -> None:
    folder = broken_model(tmp_path, lambda folder: change_tensors(folder, change))
    line = refused(capsys, tmp_path / "out", "--input", str(source), "--model", str(folder))
    assert expected in line


def test_model_without_tokenizer(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = broken_model(tmp_path, lambda folder: (folder / "tokenizer.json").unlink())
    line = refused(capsys, tmp_path / "out", "--input", str(source), "--model", str(folder))
    assert "tokenizer" in line


def test_flags_override_the_file_and_the_file_the_preset(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(
        'input = "a"\noutput = "b"\nslots = 3\npreset = "fast"\n'
        "[decoding]\ngen_length = 64\nr_f = 0.3\n"
    )
    config = run_config(
        parse("--config", str(tmp_path / "run.toml"), "--slots", "5", "--r-f", "0.2")
    )
    expected = DecodingConfig.preset("fast", gen_length=64, r_f=0.2)
    assert config == RunConfig(input="a", output="b", slots=5, decoding=expected)


def test_every_setting_has_a_flag_and_reads_back() -> None:
    words = ["--input", "a", "--output", "b"]
    config = run_config(
        parse(
            *words,
            "--preset",
            "paper",
            "--no-early-stop",
            "--stop-at-eos",
            "--refinement",
            "3",
            "--tokens-per-step",
            "2",
            "--stop-max-entropy",
            "none",
            "--replicas",
            "2",
        )
    )
    decoding = config.decoding
    assert (decoding.early_stop, decoding.stop_at_eos, decoding.refinement) == (False, True, 3)
    assert (decoding.tokens_per_step, decoding.stop_max_entropy) == (2, None)
    chosen = run_config(parse(*words, "--refinement", "first", "--monitor", "change")).decoding
    assert (chosen.refinement, chosen.monitor) == ("first", "change")
    assert run_config(parse(*words, "--dtype", "int8_w8a8")).dtype == "int8_w8a8"
    assert config.replicas == 2
    assert run_config(parse(*words)).decoding == DecodingConfig.preset("fast")
    flags = {action.dest for action in _actions()}
    for model in (RunConfig, DecodingConfig):
        for name in set(model.model_fields) - {"decoding"}:
            assert f"{model.__name__}.{name}" in flags


def _actions() -> list[argparse.Action]:
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    return parser._actions


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "no column 'prompt': name yours with lrd generate --prompt-column"),
        (("--prompt-column", "q"), "the prompts are in 'q': lrd generate --prompt-column q"),
    ],
)
def test_prepare_names_the_flag_that_generate_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], expected: str
) -> None:
    (tmp_path / "rows.csv").write_text("q,prompt_id\nHow many?,1\n")
    args = _prepare(str(tmp_path / "rows.csv"), "--output", str(tmp_path / "out"), *words)
    assert prepare.run(args) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [expected]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_prepare_cuts_shards(tmp_path: Path, kind: str) -> None:
    rows = [{"question": f"How many, {n}?", "answer": str(n)} for n in range(7)]
    file = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        file.write_text("question,answer\n" + "".join(f'"How many, {n}?",{n}\n' for n in range(7)))
    args = _prepare(str(file), "--output", str(tmp_path / "out"), "--rows-per-shard", "3")
    assert prepare.run(args) == 0
    shards = [pq.read_table(path) for path in sorted((tmp_path / "out").iterdir())]
    assert [shard.num_rows for shard in shards] == [3, 3, 1]
    assert pa.concat_tables(shards)["question"].to_pylist() == [row["question"] for row in rows]
    assert not (tmp_path / "out.part").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nowhere.csv"], "nowhere.csv"),
        (["bad.jsonl"], "bad.jsonl"),
        (["bad.parquet"], "bad.parquet"),
        (["empty.csv"], "empty.csv"),
        (["good.csv", "--rows-per-shard", "0"], "--rows-per-shard"),
    ],
)
def test_prepare_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"a": 1}\nnot json\n')
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "good.csv").write_text("a\n1\n")
    source, *flags = words
    args = _prepare(str(tmp_path / source), "--output", str(tmp_path / "out"), *flags)
    assert prepare.run(args) == 2
    line = capsys.readouterr().err
    assert expected in line
    assert len(line.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_prepare_keeps_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "good.csv").write_text("a\n1\n")
    (tmp_path / "out").mkdir()
    args = _prepare(str(tmp_path / "good.csv"), "--output", str(tmp_path / "out"))
    assert prepare.run(args) == 2
    assert "exists" in capsys.readouterr().err


def _prepare(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    prepare.add_arguments(parser)
    return parser.parse_args(words)
