"""Prompts that a template or a table of embeddings refuses: failed rows, or no run at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.made_tokenizers import tokenizer_of
from transformers import PreTrainedTokenizerFast

from jobs import cli
from lrd import DecodingConfig, load_model
from lrd.models.registry import TINY
from lrd.prompts import encode_prompts
from pipeline.config import RunConfig
from pipeline.inspection.plan import forecast
from pipeline.preflight import check, fingerprint_of

ROOT = Path(__file__).parents[1]
REAL = "{{ messages[-1].content }}"
FAILING = {
    "raises": ("{{ raise_exception('not this one') }}", "not this one"),
    "TypeError": ("{{ messages[-1].content + 1 }}", "TypeError"),
    "ZeroDivisionError": ("{{ 1 // 0 }}", "ZeroDivisionError"),
    "undefined": ("{{ nothing.at.all }}", "nothing"),
    "IndexError": ("{{ messages[7].content }}", "no element 7"),
    "OverflowError": ("{% for n in range(10 ** 12) %}{{ n }}{% endfor %}", "OverflowError"),
    "RecursionError": (
        "{% macro deep(n) %}{{ deep(n + 1) }}{% endmacro %}{{ deep(0) }}",
        "RecursionError",
    ),
    "security": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "ValueError": ("{{ '{:d}'.format('x') }}", "ValueError"),
}
TEXTS = ["one", "bad two", "three"]


def only_bad(body: str) -> str:
    return "{% if 'bad' in messages[-1].content %}" + body + "{% else %}" + REAL + "{% endif %}"


def tiny_with(folder: Path, template: str) -> Path:
    """The embedded model under another chat template."""
    shutil.copytree(TINY, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**settings, "chat_template": template})
    )
    return folder


def prompts(folder: Path, texts: list[str | None]) -> Path:
    folder.mkdir()
    pq.write_table(pa.table({"prompt": pa.array(texts, pa.string())}), folder / "a.parquet")
    return folder


def config_of(tmp_path: Path, texts: list[str | None], model: Path | str, **more: Any) -> RunConfig:
    return RunConfig(
        input=str(prompts(tmp_path / "in", texts)),
        output=str(tmp_path / "out"),
        model=str(model),
        decoding=DecodingConfig(gen_length=8),
        **more,
    )


@pytest.mark.parametrize("name", FAILING)
def test_a_template_may_raise_anything_for_one_row(name: str, tmp_path: Path) -> None:
    body, reason = FAILING[name]
    model = load_model(tiny_with(tmp_path / "model", only_bad(body)), "meta")
    one, two, three = encode_prompts(model, TEXTS)
    assert isinstance(one, list)
    assert isinstance(three, list)
    assert isinstance(two, ValueError)
    assert reason in str(two)
    assert "chat template refuses" in str(two)
    assert "\n" not in str(two)


@pytest.mark.parametrize("name", [*FAILING, "syntax"])
def test_a_template_that_refuses_every_row_ends_the_run_first(name: str, tmp_path: Path) -> None:
    body, reason = FAILING.get(name, ("{% if %}", "Expected an expression"))
    config = config_of(tmp_path, [*TEXTS, None, " "], tiny_with(tmp_path / "model", body))
    with pytest.raises(ValueError, match="none of the 3 prompts that were sampled") as refused:
        forecast(check(config), config)
    assert reason in str(refused.value)
    assert config.input in str(refused.value)


@pytest.mark.parametrize("texts", [[None, ""], [], [None, " \n"]])
def test_rows_that_hold_nothing_are_no_templates_fault(
    texts: list[str | None], tmp_path: Path
) -> None:
    config = config_of(tmp_path, texts, "tiny")
    assert sum(forecast(check(config), config).refused.values()) == len(texts)


def beyond(rows: int) -> Any:
    """A model of so many embeddings whose tokenizer has words and tokens added behind them."""
    tokenizer = tokenizer_of("words", None)
    assert tokenizer.add_tokens(["<tool>", "overmuch"]) == 2
    return SimpleNamespace(
        tokenizer=tokenizer, mask_id=0, eos_id=1, eot_id=None, embedding_table=torch.empty(rows, 2)
    )


@pytest.mark.parametrize("prompt_format", ["raw", "chat"])
@pytest.mark.parametrize("allow_special_tokens", [False, True])
def test_a_token_without_an_embedding_fails_its_row(
    prompt_format: Any, allow_special_tokens: bool
) -> None:
    first = tokenizer_of("words", None).vocab_size
    model = beyond(first + 1)  # <tool> has an embedding, overmuch has none
    model.tokenizer.chat_template = REAL
    texts = ["the model", "the overmuch model", "the <tool> model", "overmuch"]
    found = encode_prompts(model, texts, prompt_format, None, allow_special_tokens)
    assert [isinstance(ids, list) for ids in found] == [True, False, True, False]
    assert f"'overmuch', token {first + 1}, and the model has {first + 1} embeddings" in str(
        found[1]
    )
    assert isinstance(found[2], list)
    assert max(found[2]) == first


def with_added_token(folder: Path, template: str = REAL) -> Path:
    """The embedded model, whose tokenizer got tokens that the model has no embeddings for."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_with(folder, template))
    tokenizer.add_tokens([f"<spare {n}>" for n in range(752 - len(tokenizer))])
    tokenizer.add_tokens(["<tool_call>"])
    tokenizer.save_pretrained(folder)
    assert tokenizer.convert_tokens_to_ids("<tool_call>") == 752
    return folder


def test_where_every_row_has_one_there_is_no_run(tmp_path: Path) -> None:
    model = with_added_token(tmp_path / "model")
    config = config_of(tmp_path, ["a <tool_call>", "<tool_call>"], model)
    with pytest.raises(ValueError, match=r"none of the 2 prompts .* 752 embeddings"):
        forecast(check(config), config)


def generated(config: RunConfig) -> subprocess.CompletedProcess[str]:
    args = ["--input", config.input, "--output", config.output, "--model", config.model]
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", "generate", *args, "--gen-length", "8"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.usefixtures("ray_session")
def test_a_run_has_failed_rows_with_their_reasons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other rows are decoded, and no replica has died of these."""
    looks = "{% if 'branch' in messages[-1].content %}<|question|>{% endif %}"
    model = with_added_token(tmp_path / "model", looks + only_bad("{{ 1 // 0 }}"))
    reasons = {
        "1 + 1": None,
        "bad": "ZeroDivisionError",
        "a <tool_call>": "752 embeddings",
        "branch <|mask|>": "allow_special_tokens",
        "a <|mask|> b": None,
    }
    config = config_of(tmp_path, [*reasons], model)
    places = ["--input", config.input, "--output", config.output, "--model", config.model]
    flags = ["--gen-length", "8", "--replicas", "1", "--cpus-per-replica", "1"]
    assert cli.run(["generate", *places, *flags]) == 3, capsys.readouterr().err
    table = pq.read_table(tmp_path / "out" / "data")
    assert [s == "ok" for s in table["status"].to_pylist()] == [r is None for r in reasons.values()]
    for error, reason in zip(table["error"].to_pylist(), reasons.values(), strict=True):
        assert (reason or "") in (error or "")
    assert table["attempts"].to_pylist() == [1 if r is None else 0 for r in reasons.values()]
    events = (tmp_path / "out" / ".run" / "events.jsonl").read_text()
    assert "died" not in events


@pytest.mark.slow
def test_a_run_that_can_decode_no_row_writes_nothing(tmp_path: Path) -> None:
    config = config_of(tmp_path, ["a", "b"], tiny_with(tmp_path / "model", "{{ 1 // 0 }}"))
    ran = generated(config)
    assert ran.returncode == 2, ran.stderr
    assert "ZeroDivisionError" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("on", [False, True])
def test_prompts_are_read_by_the_setting(on: bool, tmp_path: Path) -> None:
    config = config_of(tmp_path, ["a <|mask|>"], "tiny", allow_special_tokens=on)
    run = check(config)
    (ids,) = encode_prompts(run.face, ["a <|mask|>"], allow_special_tokens=on)
    assert isinstance(ids, list)
    assert (run.face.mask_id in ids) == on
    assert list(forecast(run, config).lengths) == [len(ids)]


def test_the_setting_is_part_of_the_fingerprint_where_it_is_on(tmp_path: Path) -> None:
    """So runs that older versions began go on, and the two readings are two runs."""
    config = config_of(tmp_path, ["a <|mask|>", "b"], "tiny")
    run = check(config)
    other = config.model_copy(update={"allow_special_tokens": True})
    before, after = (fingerprint_of(one, run.files, "float32") for one in (config, other))
    assert set(before["prompts"]) == {
        "prompt_column", "prompt_format", "system_prompt", "truncation",
    }  # fmt: skip
    assert after == {**before, "prompts": {**before["prompts"], "allow_special_tokens": True}}
