"""Two models under every decoder: what is stored, what is decoded again, the page's blocks."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from helpers.decodings import OF_THE_COMMIT_RULE, OF_THE_METHOD

from jobs.tiny import compare_models
from jobs.tiny.accuracy import distinct, measure
from jobs.tiny.comparison_page import fill
from lrd import DecodingConfig, load_model
from lrd.models.registry import TINY
from pipeline.experiments.decoders import COMMON, DECODERS, Decoder

PAGE = "".join(
    f"## {name}\n<!-- measured: {name} -->\nold\n<!-- end -->\nprose of {name}\n"
    for name in ("facts", "accuracy", "within", "between")
)
ONLY = ["baseline-h0.4", "fast", "fast-no-mix"]


def call(output: Path, *words: str) -> int:
    usual = [str(TINY), str(TINY), "--output", str(output), "--limit", "6", "--gen-length", "32"]
    return compare_models.run(compare_models.parser().parse_args([*usual, *words]))


def test_decoders_are_settings_and_are_compared_with_decoders() -> None:
    keys = [decoder.key for decoder in DECODERS]
    assert len(set(keys)) == len(keys)
    configs = [decoder.config(64) for decoder in DECODERS]
    assert len(set(configs)) == len(configs), "two decoders are the same settings"
    assert {decoder.against for decoder in DECODERS} - {None} <= set(keys)
    by_key = dict(zip(keys, configs, strict=True))
    for name in ("fast", "paper"):
        assert by_key[name] == DecodingConfig.preset(name, gen_length=64, **COMMON)
    assert by_key["lrd-1-no-stop"].tokens_per_step == 1
    assert by_key["lrd-1-no-stop"].entropy_threshold is None


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: decoder.key)
def test_decoders_share_every_setting_that_is_not_the_decoders(decoder: Decoder) -> None:
    first = DECODERS[0].config(64)
    differing = {name for name, value in decoder.config(64) if value != getattr(first, name)}
    assert differing <= OF_THE_METHOD | OF_THE_COMMIT_RULE, differing


def test_what_is_kept_is_not_decoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert call(tmp_path / "out", "--only", *ONLY[:2], "--page", str(page)) == 0
    first = page.read_text()
    assert "-->\nold" not in first
    assert first.count("prose of") == 4
    for name in ("page.svg", "page-few.svg"):
        ET.fromstring((tmp_path / name).read_text())
    kept = json.loads((tmp_path / "out/soft-feedback/fast.json").read_text())
    config = DecodingConfig.preset("fast", gen_length=32, **COMMON)
    right, forwards = measure(load_model("tiny"), distinct(6, 11), config)
    assert sum(kept["outcomes"]["correct"]) == right
    assert kept["decoding"] == config.model_dump(exclude=config.unrecorded)
    assert f"| {forwards:.2f} |" in first

    def refuse(*given: Any) -> Any:
        raise AssertionError("decoded again")

    monkeypatch.setattr(compare_models, "outcomes", refuse)
    capsys.readouterr()
    assert call(tmp_path / "out", "--only", *ONLY[:2], "--page", str(page)) == 0
    assert page.read_text() == first
    assert capsys.readouterr().err == ""
    assert call(tmp_path / "out", "--only", "fast", "--seed", "12") == 2
    assert "another problems" in capsys.readouterr().err
    with pytest.raises(AssertionError, match="decoded again"):
        call(tmp_path / "out", "--only", *ONLY)


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, expected in (
        (["--limit", "0"], "--limit"),
        (["--labels", "a", "a"], "--labels"),
        (["--page", str(tmp_path / "none.md")], "none.md"),
    ):
        assert call(tmp_path / "out", *words) == 2
        printed = capsys.readouterr().err
        assert len(printed.strip().splitlines()) == 1
        assert expected in printed
        assert not (tmp_path / "out").exists()


def test_a_page_without_its_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"page\.md: has the measured blocks facts; facts, more"):
        fill(
            "<!-- measured: facts -->\n<!-- end -->\n",
            {"facts": "1", "more": "2"},
            "page.md",
        )
