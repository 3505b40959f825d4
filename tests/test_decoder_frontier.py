"""`jobs.tiny.decoder_frontier`: outcomes by preset, what is stored is kept, and the page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs.tiny import decoder_frontier
from jobs.tiny.decoder_frontier import TASKS, config_of
from lrd import decode, load_model
from lrd.config import ALL_PRESETS

PAGE = "".join(
    f"<!-- measured: {name} -->\n<!-- end -->\n"
    for task in TASKS
    for name in (f"{task}-facts", task)
)


def test_every_preset_fits_every_canvas() -> None:
    for task in TASKS.values():
        for name in ALL_PRESETS:
            config = config_of(name, task)
            assert (config.gen_length, config.stop_at_eos) == (task.shape["gen_length"], True)
            assert config.steps in (None, task.shape["gen_length"] // 2)


def test_outcomes_are_those_of_the_decoder_and_fill_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TASKS, "plain", replace(TASKS["plain"], model="tiny"))
    output = str(tmp_path / "out")
    for task, only in (("singles", ["fast", "wino"]), ("plain", ["fast"]), ("sheets", ["fast"])):
        words = ["measure", "--task", task, "--output", output, "--limit", "2", "--only", *only]
        assert decoder_frontier.main(words) == 0
    assert capsys.readouterr().out.count(" passes, ") == 4
    assert decoder_frontier.main(words) == 0
    assert not capsys.readouterr().out  # What is stored is not decoded again.

    kept = json.loads(Path(output, "singles-wino.json").read_text())
    tiny, task = load_model("tiny"), TASKS["singles"]
    tested = decoder_frontier.distinct_sheets(2, decoder_frontier.SEED, task.sizes)
    prompts = [decoder_frontier.encode_prompt(tiny, one.question) for one in tested]
    samples = decode(tiny, prompts, config_of("wino", task))
    assert kept["forwards"] == [sample.num_forwards for sample in samples]
    assert kept["uncommits"] == [sample.num_uncommits for sample in samples]
    texts = [sample.text or "" for sample in samples]
    right = [
        text.rstrip().endswith(f"#### {one.answers[0]}")
        for text, one in zip(texts, tested, strict=True)
    ]
    assert kept["correct"] == [int(one) for one in right]

    words = ["time", "--task", "singles", "--rows", "2", "--turns", "1", "--output", output]
    with monkeypatch.context() as patch:
        seconds = iter([0.0, 0.5, 1.0, 1.2])
        clock = SimpleNamespace(monotonic=lambda: next(seconds))
        patch.setattr(decoder_frontier, "time", clock)
        assert decoder_frontier.main(words) == 0
    timed = json.loads(capsys.readouterr().out)
    assert timed["milliseconds"] == pytest.approx({"fast": 250, "wino": 100})
    assert timed["ratio"] == pytest.approx({"fast": 1, "wino": 2.5})

    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert decoder_frontier.main(["page", str(page), "--output", output]) == 0
    text = page.read_text()
    assert "`wino`" in text
    assert "Not measured: `baseline`" in text
    plots = {path.name for path in tmp_path.glob("*.svg")}
    assert plots == {f"page-{name}.svg" for name in (*TASKS, "singles-time")}
    drawn = (tmp_path / "page-singles-time.svg").read_text()
    for name, spent in timed["milliseconds"].items():
        assert f", {spent:,.1f} ms<" in drawn
        assert f"| {1000 / spent:.1f} | {timed['ratio'][name]:.2f} |" in text
    assert text.count("Rows/s: 2 rows in 16 slots, threads: 1, medians of 1 turns") == 1
    assert decoder_frontier.main(["page", str(page), "--output", str(tmp_path / "none")]) == 2
    assert "measure them first" in capsys.readouterr().err
