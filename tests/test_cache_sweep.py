"""The sweep of block caches: which settings, what is stored, how it goes on, its page."""

from __future__ import annotations

import json
import random
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from jobs.bench import caches
from jobs.bench.sweep_cases import (
    CACHES,
    DTYPES,
    GROUPS,
    MONITOR,
    REFINEMENT,
    TASKS,
    Case,
    cache_cases,
    cases,
    preset_cases,
)
from jobs.bench.sweep_page import Line, compare, sections
from lrd import DecodingConfig, decode, load_model
from lrd.models.registry import TINY
from lrd.prompts import encode_prompt
from pipeline.experiments import paired
from pipeline.experiments.paired import Outcomes
from pipeline.scoring.word_problems import final_answer

FEW = ["--problems", "3", "--sheets", "2", "--blocks", "64", "--tasks", "singles-64"]


def call(output: Path, *words: str) -> int:
    usual = ["--model", str(TINY), "--output", str(output), "--processes", "1", *FEW]
    return caches.run(caches.parser().parse_args([*usual, *words]))


ANY_FIELD = DecodingConfig.model_fields


def differing(case: Case, theirs: Case, gen_length: int) -> set[str]:
    """Settings in which two cases differ."""
    other = theirs.config(gen_length)
    return {k for k, v in case.config(gen_length) if v != getattr(other, k)}


@pytest.mark.parametrize("gen_length", [64, 128, 256])
def test_no_two_settings_are_the_same(gen_length: int) -> None:
    found = cases(gen_length, groups=GROUPS)
    for group in GROUPS:
        settings = [(c.config(gen_length), c.dtype) for c in found if c.group == group]
        assert len(set(settings)) == len(settings) > 0
    keys = [case.key for case in found]
    assert len(set(keys)) == len(keys)
    assert {case.against for case in found} <= set(keys)
    allowed = {
        CACHES: {"kv_cache", "cache_refresh", "suffix"},
        REFINEMENT: {"refinement", "max_refine_steps"},
        MONITOR: {"monitor"},
        DTYPES: set(),
    }
    for case in found:
        theirs = next(other for other in found if other.key == case.against)
        assert differing(case, theirs, gen_length) <= allowed.get(case.group, {*ANY_FIELD})
        assert (case.dtype is None) == (case.group != DTYPES)
    for case in preset_cases(gen_length):
        theirs = next(other for other in found if other.key == case.against).config(gen_length)
        assert case.config(gen_length).block_length == theirs.block_length


@pytest.mark.parametrize(
    ("gen_length", "block", "expected"),
    [(256, 16, 10), (256, 32, 10), (256, 64, 10), (128, 64, 5), (64, 32, 5), (64, 64, 3)],
)
def test_settings_without_an_effect_of_their_own_are_left_out(
    gen_length: int, block: int, expected: int
) -> None:
    found = cache_cases(gen_length, [block])
    assert len(found) == expected
    assert all(case.config(gen_length).suffix == "all" for case in found) == (expected < 10)


def test_what_is_measured_is_what_decoding_gives(tmp_path: Path) -> None:
    output = tmp_path / "caches.jsonl"
    assert call(output, "--groups", "caches") == 0
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["case"] for line in lines] == ["none-b64", "dual-b64", "dual-b64-r4"]
    model, none = load_model(str(TINY)), lines[0]
    asked = TASKS["singles-64"].asked(3, none["seed"])
    config = DecodingConfig(**none["decoding"])
    samples = decode(model, [encode_prompt(model, question) for question, _ in asked], config)
    assert none["right"] == [
        str(int(final_answer(sample.text or "") == answer))
        for sample, (_, answer) in zip(samples, asked, strict=True)
    ]
    assert none["forwards"] == [sample.num_forwards for sample in samples]
    lengths = [len(encode_prompt(model, question)) + 64 for question, _ in asked]
    assert none["positions"] == [
        length * sample.num_forwards for length, sample in zip(lengths, samples, strict=True)
    ]
    assert none["full_passes"] == none["forwards"]
    # One block: its first pass is full, with a refresh every fourth one too.
    assert lines[1]["full_passes"] == [1, 1, 1]
    assert sum(lines[1]["positions"]) < sum(none["positions"])
    assert lines[2]["full_passes"] == [1 + (n - 1) // 4 for n in lines[2]["forwards"]]


def fake(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Measure nothing, at once and in this process; the keys of the cases that were asked for."""
    asked: list[str] = []

    class Done:
        def __init__(self, value: Any) -> None:
            self.value = value

        def result(self) -> Any:
            return self.value

    class Pool:
        def __init__(self, *_: Any) -> None: ...

        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_: Any) -> None: ...

        def submit(self, _: Any, cell: caches.Cell) -> Done:
            asked.append(cell.case.key)
            rng = random.Random(cell.case.key)
            size = 3 if len(cell.prompts.task.sizes) > 1 else 1
            prompts = range(cell.prompts.count)
            right = ["".join(rng.choice("01") for _ in range(size)) for _ in prompts]
            counts = {
                name: [rng.randint(1, 900) for _ in prompts]
                for name in ("forwards", "full_passes", "positions")
            }
            spent = {"unsure": 0, "failed": 0, "seconds": 1.0, "cpu_seconds": 0.5}
            return Done({**cell.facts, "right": right, **counts, **spent})

    monkeypatch.setattr(caches, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(caches, "wait", lambda running, **_: (running, set()))
    return asked


def test_what_is_stored_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, output, page = fake(monkeypatch), tmp_path / "caches.jsonl", tmp_path / "page.md"
    assert call(output, "--groups", "caches", "--page", str(page)) == 0
    assert asked == ["none-b64", "dual-b64", "dual-b64-r4"]
    first = page.read_text()
    assert call(output, "--groups", "caches", "--page", str(page)) == 0
    assert len(asked) == 3
    assert page.read_text() == first
    # Other prompts, another dtype and another task are other cells; more settings are added.
    for words, added in (
        (["--problems", "4"], 3),
        (["--dtype", "bfloat16"], 3),
        (["--seed", "1"], 3),
        (["--tasks", "singles-128"], 5),
        (["--blocks", "32", "64"], 5),
    ):
        asked.clear()
        assert call(output, "--groups", "caches", *words) == 0
        assert len(asked) == added


def test_it_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, output = fake(monkeypatch), tmp_path / "caches.jsonl"
    assert call(output, "--minutes", "0") == 75
    assert asked == []
    store = caches.Sweep._store

    def store_and_stop(sweep: caches.Sweep, found: dict[str, Any], num_left: int) -> None:
        store(sweep, found, num_left)
        if len(asked) == 2:
            sweep.stop()

    monkeypatch.setattr(caches.Sweep, "_store", store_and_stop)
    assert call(output) == 75
    assert "the same command continues" in capsys.readouterr().err
    assert len(output.read_text().splitlines()) == len(asked) == 2
    # Half a line, as of a process that was killed while it wrote, is measured again.
    whole = output.read_text()
    output.write_text(whole[:-9])
    assert call(output) == 0
    stored = [json.loads(line)["case"] for line in output.read_text().splitlines()]
    assert Counter(stored) == Counter(case.key for case in cases(64, [64]))
    assert asked.count(stored[0]) == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--problems", "0"], "--problems"),
        (["--processes", "0"], "--processes"),
        (["--model", "no/such/model"], "no/such/model"),
        (["--draw"], "nothing is measured"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    assert call(tmp_path / "caches.jsonl", *words) == 2
    printed = capsys.readouterr().err
    assert len(printed.strip().splitlines()) == 1
    assert expected in printed
    assert not (tmp_path / "caches.jsonl").exists()


def test_a_file_that_is_no_sweep_and_a_page_without_blocks_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(monkeypatch)
    output, page = tmp_path / "caches.jsonl", tmp_path / "page.md"
    output.write_text("no json\n{}\n")
    assert call(output) == 2
    assert "line 1 is not JSON" in capsys.readouterr().err
    output.unlink()
    page.write_text("# mine\n")
    assert call(output, "--page", str(page)) == 2
    assert page.read_text() == "# mine\n"
    assert "facts" in capsys.readouterr().err.splitlines()[-1]


def test_a_second_command_on_the_same_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "caches.jsonl"
    with caches.alone(output):
        assert call(output) == 2
    assert "another command" in capsys.readouterr().err


def test_the_page_shows_every_model_and_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch)
    output, page = tmp_path / "caches.jsonl", tmp_path / "page.md"
    tasks = ["--tasks", *TASKS, "--blocks", "16", "32", "64"]
    assert call(output, *tasks, "--label", "one", "--page", str(page)) == 0
    assert call(output, *tasks, "--label", "two", "--page", str(page)) == 0
    text = page.read_text()
    for name in ("one", "two"):
        for task in TASKS.values():
            assert text.count(f"### {name}: {task.name}") == 2
            ET.fromstring((tmp_path / f"page-{name}-{task.key}.svg").read_text())
            assert f"(page-{name}-{task.key}.svg)" in text
    num_cases = sum(len(cases(task.gen_length)) for task in TASKS.values())
    rows = [line for line in text.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert len(rows) == 2 * num_cases
    assert "sheets right" in text
    # The order of the lines makes no difference, but for which model comes first.
    lines = output.read_text().splitlines(keepends=True)
    half = len(lines) // 2
    random.Random(0).shuffle(first := lines[:half])
    ones = [[line for line in first if f'"task": "{task}"' in line] for task in TASKS]
    output.write_text("".join([*(line for part in ones for line in part), *lines[half:]]))
    assert call(output, "--draw", "--page", str(page)) == 0
    assert page.read_text() == text
    # Prose of an author stays.
    page.write_text(text.replace("## Caches", "## Caches\n\nWhat to take from it."))
    assert call(output, "--draw", "--page", str(page)) == 0
    assert "What to take from it." in page.read_text()


def line(case: str, right: list[str], **facts: Any) -> dict[str, Any]:
    usual = {"model": "m", "task": "singles-64", "model_digest": "a", "prompts_digest": "p"}
    return {**usual, "dtype": "float32", "case": case, "right": right, **facts}


def test_single_problems_are_compared_as_everywhere() -> None:
    rng = random.Random(3)
    for _ in range(20):
        ours, theirs = ([rng.choice("0111") for _ in range(50)] for _ in range(2))
        found = compare(Line(line("a", ours)), Line(line("b", theirs)))
        a, b = (Outcomes("", tuple(x == "1" for x in one), (1,) * 50) for one in (ours, theirs))
        expected = paired.compare(a, b)
        for name in ("gained", "lost", "difference", "low", "high", "p"):
            assert getattr(found, name) == pytest.approx(getattr(expected, name))


def test_sheets_are_compared_sheet_by_sheet() -> None:
    ours = Line(line("a", ["111", "110", "000", "1"]))
    theirs = Line(line("b", ["000", "010", "000", "1"]))
    found = compare(ours, theirs)
    assert (found.gained, found.lost) == (2, 0)
    assert found.difference == pytest.approx(4 / 10)
    assert found.low < 0.4 < found.high
    assert found.p == 0.5
    assert (ours.num_whole, theirs.num_whole) == (2, 1)


def test_lines_of_another_checkpoint_or_other_prompts_are_left_out() -> None:
    lines = [
        line("a", ["1"], model_digest="old"),
        line("b", ["1"], prompts_digest="old"),
        line("c", ["0"]),
        line("c", ["1"]),
        line("d", ["1"], dtype="bfloat16"),
        line("e", ["1"]),
        line("a", ["1"], task="sheets-256"),
    ]
    found = sections(lines)
    assert list(found[("m", "singles-64")]) == ["c", "e"]
    assert found[("m", "singles-64")]["c"].right == ["1"]
    assert list(found[("m", "sheets-256")]) == ["a"]
