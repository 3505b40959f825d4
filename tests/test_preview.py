"""`lrd preview`: what it shows is what `lrd generate` writes, on terminals of every kind."""

from __future__ import annotations

import math
import os
import re
import shlex
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.commands import parse
from helpers.few import few, spread
from helpers.made_tokenizers import KINDS, tokenizer_of
from helpers.shards import OF_THE_RUN, distinct_questions, write_shards
from helpers.terminal import Terminal
from rich.cells import cell_len

from jobs import cli, output, preview
from jobs.flags import run_config
from lrd import DecodingConfig
from lrd.config import DecodingConfig as Settings
from pipeline.config import RunConfig
from pipeline.preflight import check
from pipeline.preview.canvas_screen import (
    ASCII,
    COLOURS,
    UNICODE,
    Screen,
    canvas_lines,
    colour,
    glyphs_of,
    packed,
    spark,
)
from pipeline.preview.chosen_rows import choose_rows, first_shards, given_prompt
from pipeline.preview.frame import Cell, Frame, answer_parts
from pipeline.preview.in_process import Decoded, InProcess, settings_here
from pipeline.preview.row_lines import figures
from pipeline.preview.token_texts import harmless, token_texts
from pipeline.rows import OF_REOPENING
from pipeline.run import generate as run_generate

QUESTIONS = distinct_questions(8, seed=77)
ROOT = Path(__file__).parents[1]


# What is decoded.

DECODINGS: dict[str, dict[str, Any]] = {
    "fast": {"gen_length": 32},
    "blocks with caches": {"preset": "blocks", "gen_length": 32, "block_length": 8},
    "paper": {"preset": "paper", "gen_length": 24},
    "drawn": {"preset": "baseline", "gen_length": 16, "temperature": 0.9, "seed": 5},
    "growing": {"gen_length": 12, "max_gen_length": 48, "eos_window": 4},
    "growing blocks": {
        "preset": "blocks", "gen_length": 8, "max_gen_length": 32, "block_length": 8,
        "eos_window": 8,
    },
    "opened again": {
        "preset": "saber", "gen_length": 32, "block_length": 16, "min_commits": 4,
        "r_f": 0.15, "max_refine_steps": 2, "refinement": "auto",
    },
    "shadows": {
        "preset": "wino", "gen_length": 32, "r_f": 0.15, "max_refine_steps": 3,
        "refinement": "auto", "confidence_threshold": 0.3, "reopen_threshold": 0.999,
    },
}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "system prompt, cut prompts, stops": {
        "system_prompt": "Be brief.", "truncation": "keep_last", "stop": ("#",),
    },
    "raw, special tokens": {"prompt_format": "raw", "allow_special_tokens": True},
}  # fmt: skip


def decoding_of(settings: dict[str, Any]) -> DecodingConfig:
    return Settings.preset(**{"name": "fast", **_renamed(settings)})


def _renamed(settings: dict[str, Any]) -> dict[str, Any]:
    return {{"preset": "name"}.get(name, name): value for name, value in settings.items()}


def previewed(config: RunConfig, num_rows: int) -> tuple[list[dict[str, Any]], list[list[Frame]]]:
    """The rows as a preview decodes them, and their frames."""
    checked = check(config, first_shards(config, num_rows))
    replica = InProcess(settings_here(config))
    replica.load()
    rows: list[dict[str, Any]] = []
    every: list[list[Frame]] = []
    for row in choose_rows(config, checked, num_rows):
        frames: list[Frame] = []
        if row.prompt is None:
            rows.append({"row_id": row.row_id, "status": "failed", "error": row.error})
        else:
            decoded = replica.decode(row.prompt, frames.append)
            assert decoded.frame is frames[-1]
            rows.append(decoded.row)
        every.append(frames)
    return rows, every


def assert_written(config: RunConfig, rows: list[dict[str, Any]]) -> None:
    """The run writes these rows, equal to the last bit."""
    run_generate(config)
    paths = sorted(Path(config.output, "data").iterdir())
    table = pa.concat_tables(pq.read_table(path) for path in paths)
    written = {row["row_id"]: row for row in table.to_pylist()}
    # Prompts of other shards may give the run other lengths of slots.
    apart = {*OF_THE_RUN, "bucket"}
    if config.decoding.reopen == "none":
        apart |= {*OF_REOPENING}
    for row in rows:
        for name in row.keys() - apart:
            ours, theirs = row[name], written[row["row_id"]][name]
            assert repr(ours) == repr(theirs), (row["row_id"], name)


@pytest.mark.usefixtures("kept_replicas")
@pytest.mark.parametrize(
    "name",
    [name if name == "fast" else pytest.param(name, marks=pytest.mark.slow) for name in DECODINGS],
)
def test_what_is_shown_is_what_a_run_writes(name: str, tmp_path: Path) -> None:
    source = write_shards(tmp_path / "in", [*QUESTIONS[:4], " ", QUESTIONS[5]], 2)
    config = RunConfig(
        input=str(source), output=str(tmp_path / "out"), cpus_per_replica=1.0,
        decoding=decoding_of(DECODINGS[name]),
    )  # fmt: skip
    rows, frames = previewed(config, 5)
    assert [row["status"] for row in rows] == ["ok"] * 4 + ["failed"]
    assert [len(some) for some in frames[:4]] == [row["num_forwards"] for row in rows[:4]]
    if "growing" in name:
        assert any(frame.stop == "grow" for some in frames for frame in some)
    assert_written(config, rows)


@pytest.mark.usefixtures("kept_replicas")
@pytest.mark.parametrize(
    "name",
    [
        name if name in ("as it is",) else pytest.param(name, marks=pytest.mark.slow)
        for name in RUNS
    ],
)
def test_settings_of_a_run_are_those_of_the_preview(name: str, tmp_path: Path) -> None:
    """Rows' own settings and several samples too."""
    source = write_shards(
        tmp_path / "in", QUESTIONS[:3], gen_length=[16, None, 24], temperature=[0.5, 0.0, None],
        seed=[None, 3, 4],
    )  # fmt: skip
    config = RunConfig(
        input=str(source), output=str(tmp_path / "out"), cpus_per_replica=1.0, num_samples=2,
        row_settings="gen_length,temperature,seed",
        decoding=DecodingConfig.preset("fast", gen_length=32, temperature=0.7), **RUNS[name],
    )  # fmt: skip
    rows, _ = previewed(config, 3)
    assert [row["row_id"][-2:] for row in rows] == ["-0"] * 3, "the first sample of each"
    assert_written(config, rows)


def config_of(**settings: Any) -> RunConfig:
    decoding = decoding_of(settings.pop("decoding", {"gen_length": 32}))
    named = {"input": "in", "output": "out", "cpus_per_replica": 1.0, **settings}
    return RunConfig(decoding=decoding, **named)


def decoded(prompt: Any, **settings: Any) -> tuple[Decoded, list[Frame]]:
    """A prompt that is given, decoded."""
    config, frames = config_of(**settings), []
    checked = check(config, given_prompt(prompt, config.prompt_column))
    replica = InProcess(settings_here(config))
    replica.load()
    (row,) = choose_rows(config, checked, 1)
    assert row.prompt is not None
    return replica.decode(row.prompt, frames.append), frames


@pytest.mark.parametrize("name", DECODINGS)
def test_entropies_are_those_of_the_pass(name: str) -> None:
    """Where a pass commits nothing, their mean is what its trace has."""
    _, frames = decoded(QUESTIONS[0], decoding=DECODINGS[name])
    num_compared = 0
    before = 0
    for frame in frames:
        known = [cell.entropy for cell in frame.cells if cell.entropy is not None]
        assert all(cell.text is None for cell in frame.cells if cell.entropy is not None)
        if frame.phase == "refining" and frame.stop is None:
            assert frame.refine_steps == before + 1
            assert sum(known) / len(known) == pytest.approx(frame.entropy_trace[-1], abs=1e-4)
            num_compared += 1
        before = frame.refine_steps
    assert num_compared or name == "drawn", "a baseline does not refine"


@pytest.mark.parametrize("name", ["opened again", "shadows"])
def test_positions_that_open_again_are_shown_open(name: str) -> None:
    found = [decoded(question, decoding=DECODINGS[name]) for question in QUESTIONS[:4]]
    seen = 0
    for end, frames in found:
        again = 0
        for before, after in pairwise(frames):
            for old, new in zip(before.cells, after.cells, strict=True):
                if old.text is not None and new.text is None:
                    assert (new.step, new.entropy) == (0, None)
                    again += 1
        assert again == end.row["num_uncommits"]
        line = figures(end.row, frames[-1])
        assert (f"{again} opened again" in line) == (again > 0)
        assert [cell.step for cell in frames[-1].cells] == end.row["commit_step"]
        seen += again
    assert seen


def test_frames_tell_what_the_pass_has_done() -> None:
    (end, frames) = decoded(QUESTIONS[1], decoding=DECODINGS["blocks with caches"])
    assert [frame.num_passes for frame in frames] == list(range(1, end.row["num_forwards"] + 1))
    for frame in frames:
        assert len(frame.kl_trace) == len(frame.entropy_trace) == frame.num_passes
        assert all(cell.step <= frame.num_passes for cell in frame.cells)
        assert (frame.stop is None) == (frame is not frames[-1])
        news = {n // 8 for n, cell in enumerate(frame.cells) if cell.step == frame.num_passes}
        assert news in (set(), {frame.block}), "a pass commits in its own block alone"
    assert [frame.block for frame in frames] == sorted(frame.block for frame in frames)
    assert frames[0].block == 0
    assert [frame.num_open for frame in frames] == sorted(
        (frame.num_open for frame in frames), reverse=True
    )
    assert [cell.step for cell in frames[-1].cells] == end.row["commit_step"]
    assert (
        "".join(part for part, _ in answer_parts(frames[-1].cells, end.row["output_text"]))
        == (end.row["output_text"])
    )


def test_only_the_shards_that_are_shown_are_opened(tmp_path: Path) -> None:
    source = write_shards(tmp_path / "in", QUESTIONS[:6], 3)
    (source / "part-00002.parquet").write_bytes(b"not read")
    config = config_of(input=str(source))
    for num_rows, num_files in ((1, 1), (2, 1), (3, 2), (4, 2)):
        assert len(first_shards(config, num_rows).files) == num_files
    with pytest.raises(ValueError, match=r"part-00002\.parquet: not a whole Parquet file"):
        first_shards(config, 5)


# Texts of tokens.


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_tokens_make_the_text(kind: str) -> None:
    tokenizer = tokenizer_of(kind, None, clean_up_tokenization_spaces=False)
    for text in ("A cat sat,\n\n on  1234 mats.", "naïve – 日本語 👍🏽 👨‍👩‍👧 e\u0301"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        texts = token_texts(tokenizer, ids)
        whole = tokenizer.decode(ids)
        if "\ufffd" in whole:
            continue
        assert "".join(map(str, texts)) == whole
        holed = token_texts(tokenizer, [*ids[:2], None, *ids[2:4]])
        assert holed[2] is None
        assert len(holed) == min(len(ids), 4) + 1


def test_no_character_can_change_a_terminal() -> None:
    for first in range(0, 0x110000, 0x1000):
        text = "".join(map(chr, range(first, first + 0x1000)))
        left = [char for char in harmless(text) if char not in "\n\t"]
        kinds = {unicodedata.category(char) for char in left}
        assert not kinds & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"} - {"So"}, hex(first)
    assert harmless("\x1b[31mred\x9b2J\r\n\u202edes\u200dre\ufe0f") == "␛[31mred\ufffd2J\ndesre"


# The picture.


def frame_with(texts: list[str | None], **changes: Any) -> Frame:
    cells = [
        Cell(text, 0 if text is None else 1 + n % 7, (n % 5) * 0.8 if text is None else None)
        for n, text in enumerate(texts)
    ]
    values: dict[str, Any] = {
        "row_id": "r", "cells": cells, "phase": "decoding", "block": 0, "block_tokens": len(cells),
        "refine_steps": 3, "decode_steps": 4, "kl_trace": [math.nan, 2.0, 0.5, 0.01],
        "entropy_trace": [3.0, 1.0, 0.5, 0.1], "seconds": 0.5,
    }  # fmt: skip
    return Frame(**{**values, **changes})


ODD = [
    "日本語", "👍🏽", "👨‍👩‍👧", "\n", "a\nb\n", "\x1b[2J", "\t", "e\u0301", "", "\u202eleft", "🇩🇪",
    "ﷺ", "x" * 300, "\r", "\x9b31m", "한국어", None, None, None, " word",
]  # fmt: skip


@pytest.mark.parametrize(
    ("height", "width", "encoding"),
    spread(
        [1, 2, 5, 12, 23, 60],
        [8, 20, 39, 79, 200],
        ["utf-8", "ascii", "latin-1", "cp437"],
        every=3,
    ),
)
def test_a_screen_fits_the_terminal(width: int, height: int, encoding: str) -> None:
    for texts in (ODD, ODD * 30, [None] * 512, ["word "] * 100 + [None] * 400):
        screen = Screen("row 1 of 3: 00000-00000000", "日本 How many?" * 9, encoding)
        for frame in (None, frame_with(list(texts)), frame_with(list(texts), block_tokens=8)):
            lines = screen.lines(frame, width, height, waited=7)
            assert len(lines) <= height
            for line in lines:
                assert cell_len(line.plain) <= width
                assert line.plain == harmless(line.plain).replace("\n", "")
                line.plain.encode(encoding)


def test_the_part_of_a_canvas_that_is_worked_on_is_shown() -> None:
    frame = frame_with(["word "] * 300 + [None] * 20 + ["end "] * 300)
    lines = [line.plain for line in canvas_lines(frame, 40, 10)]
    assert len(lines) == 10
    assert re.fullmatch(r"… \d+ lines above", lines[0])
    assert re.fullmatch(r"… \d+ lines below", lines[-1])
    assert sum(line.count("█") + line.count("▓") + line.count("░") for line in lines) >= 12


@pytest.mark.parametrize("height", [4, 7, 10])
@pytest.mark.parametrize("at", [0, 3, 40, 96, 99])
def test_marks_count_the_lines_that_are_not_shown(height: int, at: int) -> None:
    texts: list[str | None] = [f"{n:02d}\n" for n in range(100)]
    texts[at] = None
    every = [line.plain for line in canvas_lines(frame_with(texts), 40, 1000)]
    shown = [line.plain for line in canvas_lines(frame_with(texts), 40, height)]
    assert len(shown) == height
    counts = [int(line.split()[1]) for line in shown if "lines" in line]
    assert len(every) == sum(counts) + height - len(counts)
    assert all(count > 1 for count in counts)
    assert [line for line in shown if "lines" not in line] == every[
        (at0 := every.index(next(line for line in shown if "lines" not in line))) : at0
        + height
        - len(counts)
    ]
    assert any(set("░▒▓█") & set(line) for line in shown)


def test_positions_are_shaded_by_entropy() -> None:
    cells = [Cell(None, 0, nats) for nats in (0.0, 0.5, 2.0, 9.0, None)]
    frame = frame_with([None] * 5)
    for glyphs in (UNICODE, ASCII):
        (line,) = canvas_lines(
            Frame(**{**{n: getattr(frame, n) for n in frame.__slots__}, "cells": cells}),
            20, 3, glyphs,
        )  # fmt: skip
        assert line.plain == glyphs.shades + glyphs.unread


def luminance(colour: str) -> float:
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("shade", COLOURS)
def test_colours_can_be_read_on_dark_and_light(shade: str) -> None:
    assert (luminance(shade) + 0.05) / 0.05 >= 4.4
    assert 1.05 / (luminance(shade) + 0.05) >= 4.4


def test_passes_have_colours_from_first_to_last() -> None:
    for num_passes in (1, 2, 5, 12, 13, 500):
        found = [colour(step, num_passes) for step in range(1, num_passes + 1)]
        places = [COLOURS.index(one) for one in found]
        assert places == sorted(places)
        assert places[0] == 0
        assert num_passes == 1 or places[-1] == len(COLOURS) - 1


def test_sparks_and_packing() -> None:
    assert spark([math.nan, 10.0, 1.0, 0.1]) == " █▄▁"
    assert spark([]) == spark([math.nan]) == ""
    assert spark([1.0, 1.0]) == "▁▁"
    assert len(spark([0.5] * 300)) == 24
    from rich.text import Text

    lines = packed([Text("one"), Text("two"), Text("three")], 9)
    assert [line.plain for line in lines] == ["one · two", "three"]
    assert glyphs_of("no such encoding") is ASCII


# The command.


def lrd(*words: str, cwd: Path, **changes: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a preview that has no terminal."""
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", *words], capture_output=True, cwd=cwd, timeout=240,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT), **changes},
    )  # fmt: skip
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done.returncode, done.stdout.decode("latin-1"), done.stderr.decode("latin-1")


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """As `lrd`, in this process, where no machine is too slow for a refusal of one line."""
    monkeypatch.setattr(output, "LINE_SECONDS", math.inf)

    def call(*words: str, cwd: Path) -> tuple[int, str, str]:
        monkeypatch.chdir(cwd)
        code = cli.run(words)
        return code, *capfd.readouterr()

    return call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with prompts in `in`."""
    write_shards(tmp_path / "in", QUESTIONS[:4], 2)
    return tmp_path


@pytest.fixture(scope="module")
def answers() -> list[str]:
    """Of the first two questions, with a canvas of 32."""
    return [decoded(question)[0].row["output_text"] for question in QUESTIONS[:2]]


FLAGS = ("--input", "in", "--gen-length", "32", "--cpus-per-replica", "1")
ESCAPE = "\x1b"


def test_without_a_terminal_answers_and_figures_are_printed(
    here: Command, folder: Path, answers: list[str]
) -> None:
    code, out, err = here("preview", *FLAGS, "--rows", "2", cwd=folder)
    assert code == 0
    assert_told(err)
    blocks = out.split("\n\n")
    assert [block.splitlines()[0] for block in blocks[:2]] == [
        "row 1 of 2: 00000-00000000", "row 2 of 2: 00000-00000001",
    ]  # fmt: skip
    for block, answer in zip(blocks, answers, strict=False):
        _, _, *lines, figures = block.splitlines()
        assert "\n".join(lines) == answer
        assert re.match(r"(complete|converged) .*\d+ passes \(\d+ refining, \d+ ", figures)
    assert ESCAPE not in out
    assert sorted(path.name for path in folder.iterdir()) == ["in"], "nothing is written"


def test_the_closing_command_has_the_settings(here: Command, folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "run.toml").write_text('input = "in"\n[decoding]\ngen_length = 16\n')
    words = [
        *("--config", "run.toml", "--rows", "1", "--no-live", "--stop", "a b", "--stop=-x'$y"),
        *("--system-prompt", 'two\nlines and "quotes" \\ \x1b', "--no-early-stop"),
        *("--cpus-per-replica", "1", "--temperature", "0.5"),
    ]
    code, out, _ = here("preview", *words, cwd=folder)
    assert code == 0
    command = out.rstrip("\n").splitlines()[-1]
    shown = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True
    )
    name, job, *found = shown.stdout.decode().split("\0")[:-1]
    assert (name, job) == ("lrd", "generate")
    ours = run_config(parse(preview, *words, "--output", "x", "--config", str(folder / "run.toml")))
    args = cli.parser(["generate", *found]).parse_args(["generate", *found])
    args.config = str(folder / args.config)
    theirs = run_config(args)
    assert theirs == ours.model_copy(update={"output": "out-2"}), "out is there already"


@pytest.mark.slow
def test_the_closing_command_works(folder: Path, answers: list[str]) -> None:
    _, out, _ = lrd("preview", *FLAGS, "--rows", "1", cwd=folder)
    words = shlex.split(out.splitlines()[-1])
    code, _, err = lrd(*words[1:], cwd=folder)
    assert code == 0, err
    table = pq.read_table(folder / "out" / "data")
    assert table["output_text"].to_pylist()[:2] == answers


def test_a_prompt_from_the_command_line(here: Command, tmp_path: Path, answers: list[str]) -> None:
    words = ("preview", "--text", QUESTIONS[0], "--gen-length", "32", "--cpus-per-replica", "1")
    code, out, err = here(*words, cwd=tmp_path)
    assert code == 0
    assert_told(err)
    assert answers[0] in out
    assert out.splitlines()[-1] == (
        "lrd generate --input PROMPTS --output out --cpus-per-replica 1 --gen-length 32"
    )
    assert not list(tmp_path.iterdir())


def test_a_chat_goes_on(tmp_path: Path) -> None:
    words = ("preview", "--chat", "--gen-length", "32", "--cpus-per-replica", "1", "--no-live")
    terminal = Terminal(*words, cwd=tmp_path, columns=100, lines=40)
    first = decoded([{"role": "user", "content": QUESTIONS[0]}])[0].row["output_text"]
    turns = [
        {"role": "user", "content": QUESTIONS[0]},
        {"role": "assistant", "content": first},
        {"role": "user", "content": QUESTIONS[1]},
    ]
    second = decoded(turns)[0].row["output_text"]
    terminal.wait(lambda: "you>" in terminal.text)
    terminal.type(f"{QUESTIONS[0]}\n")
    terminal.wait(lambda: terminal.text.count("you>") == 2)
    terminal.type(f"{QUESTIONS[1]}\n")
    terminal.wait(lambda: terminal.text.count("you>") == 3)
    terminal.type("\x04")
    assert terminal.ended() == 0
    assert first in terminal.text
    assert second in terminal.text
    assert terminal.text.index("turn 1") < terminal.text.index("turn 2")
    assert "lrd generate --input PROMPTS" in terminal.text


@pytest.mark.slow
def test_a_text_begins_a_chat_and_an_empty_line_ends_it(tmp_path: Path, answers: list[str]) -> None:
    words = [sys.executable, "-m", "jobs.cli", "preview", "--chat", "--text", QUESTIONS[0]]
    done = subprocess.run(
        [*words, "--gen-length", "32", "--cpus-per-replica", "1"], input=b"\nnever read\n",
        capture_output=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert answers[0] in done.stdout.decode()
    assert b"turn 2" not in done.stdout


def test_rows_that_cannot_be_decoded_are_named(here: Command, tmp_path: Path) -> None:
    write_shards(tmp_path / "in", [QUESTIONS[0], None, "x" * 9000])
    code, out, err = here("preview", *FLAGS, cwd=tmp_path)
    assert (code, err) == (3, "")
    assert "failed: the prompt is null" in out
    assert re.search(r"failed: the prompt has \d+ tokens, \d+ fit", out)
    assert out.splitlines()[-1].startswith("lrd generate")


def test_an_input_without_rows(here: Command, tmp_path: Path) -> None:
    write_shards(tmp_path / "in", [])
    (tmp_path / "in").mkdir(exist_ok=True)
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "in" / "a.parquet")
    code, out, _ = here("preview", *FLAGS, cwd=tmp_path)
    assert code == 0
    assert out.startswith("the input has no rows\n")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--input", "nowhere"], "nowhere: no such file or folder; check --input"),
        ([], "input: is needed; give --input"),
        (["--input", "in", "--rows", "0"], "--rows is 0; at least 1 is needed"),
        (["--text", "a", "--rows", "2"], "--rows counts prompts of the input"),
        (["--text", " "], "--text is empty"),
        (["--text", "a", "--pass-seconds", "-1"], "--pass-seconds is -1.0"),
        (["--text", "a", "--pass-seconds", "nan"], "--pass-seconds is nan"),
        (["--text", "a", "--model", "nowhere"], "nowhere"),
        (["--text", "a", "--device", "cuda"], "--device cpu"),
        (["--text", "a", "--gen-length", "512"], "leaves no room for a prompt"),
        (["--text", "a", "--prompt-format", "raw", "--system-prompt", "b"], "has no system turn"),
        (["--chat", "--prompt-format", "raw"], "which prompt format raw cannot render"),
        (["--text", "a", "--config", "nowhere.toml"], "nowhere.toml"),
        (["--text", "a", "--r-f", "2"], "r_f"),
        (["--input", "in", "--prompt-column", "q"], "no column 'q'"),
        (["--input", "in", "--row-settings", "seed"], "no column 'seed'"),
    ],
)
def test_bad_settings_are_one_line(
    words: list[str], reason: str, here: Command, folder: Path
) -> None:
    if "cuda" in words:
        import torch

        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
    code, out, err = here("preview", *words, cwd=folder)
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert err.startswith("lrd preview: ")
    assert reason in err


def assert_told(err: str) -> None:
    """Nothing but what the preview is doing, which it tells where that takes long."""
    assert all(line.startswith("lrd preview: ") for line in err.splitlines()), err


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("latin-1", marks=pytest.mark.slow)])
def test_streams_of_other_encodings(encoding: str, tmp_path: Path) -> None:
    write_shards(tmp_path / "in", [f"日本 {QUESTIONS[0]}"])
    code, out, err = lrd("preview", *FLAGS, cwd=tmp_path, PYTHONIOENCODING=encoding)
    assert code == 0
    assert_told(err)
    out.encode(encoding)
    assert "\\u65e5\\u672c" in out


# On terminals.


@pytest.mark.parametrize(
    ("columns", "lines"),
    [
        (80, 24),
        *(pytest.param(*size, marks=pytest.mark.slow) for size in ((30, 8), (40, 24), (120, 12))),
    ],
)
def test_the_canvas_is_shown_live(
    columns: int, lines: int, folder: Path, answers: list[str]
) -> None:
    words = ("preview", *FLAGS, "--rows", "1", "--pass-seconds", "0.3")
    terminal = Terminal(*words, columns=columns, lines=lines, cwd=folder, COLORTERM="truecolor")
    assert terminal.ended() == 0
    frames = ["\n".join(frame) for frame in terminal.frames]
    assert any(set("░▒▓█") & set(frame) for frame in frames), "open positions"
    assert any("refining" in frame for frame in frames)
    assert all(frame.startswith("row 1 of 1") for frame in frames)
    if lines >= 24:
        ended = [frame for frame in frames if re.search(r"^(complete|converged)", frame, re.M)]
        assert ended, frames[-1]
        for part in ("pass ", "D_t", "entropy", "tokens/s", "committed"):
            assert part in ended[-1]
        assert answers[0].splitlines()[0] in ended[-1].replace("⏎", "")
    # Afterwards the answer stands on the screen that was there before, whose cursor is seen.
    assert not terminal.screen.is_alternate
    assert not terminal.screen.cursor.hidden
    assert "lrd generate --input in" in terminal.text.replace("\n", "") or lines < 24
    assert b"38;2;" in terminal.output, "in colour"


@pytest.mark.slow
def test_a_terminal_without_colour(folder: Path) -> None:
    terminal = Terminal("preview", *FLAGS, "--rows", "1", cwd=folder, NO_COLOR="1")
    assert terminal.ended() == 0
    assert terminal.frames
    assert not re.search(rb"\x1b\[[\d;]*(3[0-9]|4[0-9]|9[0-7])[\d;]*m", terminal.output)


def test_a_dumb_terminal_gets_plain_lines(folder: Path, answers: list[str]) -> None:
    terminal = Terminal("preview", *FLAGS, "--rows", "1", cwd=folder, TERM="dumb")
    assert terminal.ended() == 0
    assert not terminal.frames
    assert b"\x1b" not in terminal.output
    assert answers[0].splitlines()[-1] in terminal.text


@pytest.mark.slow
def test_no_live_on_a_terminal(folder: Path, answers: list[str]) -> None:
    terminal = Terminal("preview", *FLAGS, "--rows", "1", "--no-live", cwd=folder)
    assert terminal.ended() == 0
    assert not terminal.frames
    assert b"\x1b[?" not in terminal.output
    assert answers[0].splitlines()[-1] in terminal.text


@pytest.mark.slow
def test_a_terminal_that_shows_ascii(folder: Path) -> None:
    words = ("preview", *FLAGS, "--rows", "1", "--pass-seconds", "0.3")
    terminal = Terminal(*words, cwd=folder, PYTHONIOENCODING="ascii")
    assert terminal.ended() == 0
    assert any("refining" in line for frame in terminal.frames for line in frame)
    terminal.output.decode("ascii")


@pytest.mark.parametrize("how", few(["ctrl-c", "SIGTERM"]))
def test_an_interrupted_preview_leaves_a_clean_screen(how: str, folder: Path) -> None:
    words = ("preview", *FLAGS, "--rows", "3", "--pass-seconds", "5")
    terminal = Terminal(*words, cwd=folder)
    terminal.wait(lambda: terminal.screen.is_alternate and "pass 1" in terminal.text)
    if how == "ctrl-c":
        terminal.type("\x03")
    else:
        terminal.process.send_signal(signal.SIGTERM)
    assert terminal.ended() == 75
    assert not terminal.screen.is_alternate
    assert not terminal.screen.cursor.hidden
    lines = [line for line in terminal.display if "^C" not in line]
    assert lines == ["lrd preview: reading prompts, loading tiny", "lrd preview: interrupted"]


@pytest.mark.slow
def test_a_resized_terminal_is_drawn_anew(folder: Path) -> None:
    words = ("preview", *FLAGS, "--rows", "1", "--pass-seconds", "4")
    terminal = Terminal(*words, cwd=folder)
    terminal.wait(lambda: "D_t" in terminal.text)
    for columns, lines in ((40, 24), (100, 30), (36, 14)):
        terminal.resize(columns, lines)
        rule = "─" * (columns - 1)
        terminal.wait(lambda rule=rule: terminal.display.count(rule) >= 1)
        assert terminal.display[0] == "row 1 of 1: 00000-00000000"
        others = {line for line in terminal.display if set(line) == {"─"}}
        assert others == {rule}, "nothing is left of the size before"
    terminal.type("\x03")
    assert terminal.ended() == 75
