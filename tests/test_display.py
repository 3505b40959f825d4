"""What a command shows while it works: a sign from the first moment, a frame that is redrawn in
place, and a clean terminal afterwards."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyte
import pytest
from helpers.few import few, spread
from helpers.runs import MadeRun, bad, good
from helpers.terminal import Terminal

from jobs import dashboard, live, output
from jobs.cli import COMMANDS
from jobs.dashboard import Counted, Display
from jobs.live import Live
from jobs.screen import Screen, cut, one_line, styled, width_of
from pipeline.observe import eta, stages
from pipeline.observe.eta import BucketProgress, LastAnswer, Progress, ProgressTracker
from pipeline.observe.stages import stage
from pipeline.output.run_folder import DRIVER
from pipeline.replicas.handle import WAITING_SECONDS, ReplicaHandle
from pipeline.rows import Bucket, Phase, Prompt, results_batch

ESCAPE = b"\x1b"
SGR = re.compile(rb"\x1b\[[0-9;]*m")


class Tty:
    """A pseudo-terminal of our own, and what would be seen on it."""

    def __init__(self, columns: int = 80, lines: int = 24) -> None:
        self.ours, self.theirs = pty.openpty()
        self.screen = pyte.Screen(columns, lines)
        self.stream = pyte.ByteStream(self.screen)
        self.output = b""
        self.resize(columns, lines)

    def resize(self, columns: int, lines: int) -> None:
        self.screen.resize(lines, columns)
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def read(self) -> bytes:
        """What was written since the last call; it is on the screen then."""
        found = b""
        while select.select([self.ours], [], [], 0.05)[0]:
            found += os.read(self.ours, 1 << 16)
        self.output += found
        self.stream.feed(found)
        return found

    @property
    def display(self) -> list[str]:
        self.read()
        return [line.rstrip() for line in self.screen.display if line.strip()]


@pytest.fixture
def tty() -> Iterator[Tty]:
    made = Tty()
    yield made
    os.close(made.ours)
    os.close(made.theirs)


@pytest.fixture
def smart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal with colours, whatever this test runs in."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


# The first sign.

ARGUMENTS = {
    **{name: ["nowhere"] for name in COMMANDS},
    "generate": ["--input", "nowhere", "--output", "out"],
    "plan": ["--input", "nowhere", "--output", "out"],
    "submit": ["nowhere.toml"],
    "prepare": ["nowhere.csv", "--output", "out"],
    "evaluate": ["nowhere", "--task", "gsm8k"],
    "tune": ["--task", "gsm8k", "--input", "nowhere", "--output", "out"],
    "reproduce": ["table7", "--output", "out"],
    "publish": ["nowhere", "--to", "./out"],
    "select": ["nowhere", "--to", "./out"],
}
LARGE = ("pydantic", "pyarrow", "rich", "torch", "ray", "transformers")
WATCHED = """
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in {large!r}:
            os.write(2, f"<{{name}}>".encode())
sys.meta_path.insert(0, Finder())
from jobs import cli
sys.argv = ["lrd", *{words!r}]
cli.main()
"""


def on_terminal(tty: Tty, program: str, **changes: str) -> int:
    """The exit code of a program whose stderr is the terminal."""
    names = ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "LRD_LOG_FORMAT")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=tty.theirs, env={**kept, "TERM": "xterm-256color", **changes},
    )  # fmt: skip
    while done.poll() is None:
        tty.read()
    tty.read()
    return done.returncode


@pytest.mark.parametrize("name", few([n for n in COMMANDS if n != "models"], of_each=3))
def test_the_first_line_stands_there_before_anything_large_is_imported(name: str, tty: Tty) -> None:
    tty.resize(400, 24)
    words = [name, *ARGUMENTS[name]]
    code = on_terminal(tty, WATCHED.format(large=LARGE, words=words))
    first, mark, _ = tty.output.partition(b"<")
    assert mark, "nothing large was imported; the test would pass on nothing"
    assert f"lrd {name}: starting".encode() in first
    assert code == 2
    (line,) = tty.display
    assert line.startswith(f"lrd {name}: "), "the refusal alone is left"
    assert "starting" not in line


@pytest.mark.parametrize("words", [["--help"], ["generate", "--help"], ["models"]])
def test_what_is_answered_at_once_shows_nothing_else(words: list[str], tty: Tty) -> None:
    assert on_terminal(tty, f"import sys; from jobs import cli; cli.main(*{words!r})") == 0
    assert tty.output == b""


@pytest.mark.parametrize(
    "changes", [{"TERM": "dumb"}, {"TERM": ""}, {"TERM": "unknown"}], ids=lambda c: c["TERM"]
)
def test_a_dumb_terminal_gets_no_escape_sequence(changes: dict[str, str], tty: Tty) -> None:
    program = SHOWN.format(progress=PROGRESS)
    assert on_terminal(tty, program, **changes) == 0
    assert ESCAPE not in tty.output
    assert b"3/40 rows, loading the model on 1 of 2 replicas" in tty.output


PROGRESS = Progress(
    num_rows=40,
    num_done=3,
    num_done_before=3,
    num_failed=0,
    num_forwards=0,
    seconds=1.0,
    seconds_left=None,
    replicas={"replica-0": "idle", "replica-1": "loading"},
)
SHOWN = """
from jobs import output
from jobs.dashboard import Display
from pipeline.observe.eta import Progress
output.take_streams()
with Display("lrd generate", "tiny → out") as display:
    display.show({progress})
"""


@pytest.mark.parametrize("no_color", ["", "1"])
def test_no_color_has_no_colours(no_color: str, tty: Tty) -> None:
    assert on_terminal(tty, SHOWN.format(progress=PROGRESS), NO_COLOR=no_color) == 0
    assert b"3 of 40 (7.5%)" in tty.output
    assert bool(SGR.search(tty.output)) is not bool(no_color)


def test_a_frame_is_for_terminals_alone() -> None:
    program = SHOWN.format(progress=PROGRESS)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "3/40 rows, loading the model on 1 of 2 replicas\n"


# Stages.


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_stages_are_told_innermost_first_and_by_thread() -> None:
    begun: list[str] = []
    with stages.listening(lambda one: begun.append(one.what)), stage("a"):
        with stage("b", 2, "files") as inner:
            assert [one.text for one in stages.current()] == ["b, 0 of 2 files"]
            inner.add()
            inner.detail = "5 rows"
            assert [one.text for one in stages.current()] == ["b, 1 of 2 files, 5 rows"]
        assert [one.text for one in stages.current()] == ["a"]
    assert begun == ["a", "b"]
    assert stages.current() == []
    with pytest.raises(ZeroDivisionError), stage("c"):
        raise ZeroDivisionError
    assert stages.current() == []


@pytest.mark.parametrize(
    ("done", "total", "text"),
    [
        (0, None, "hashing"),
        (1_200_000_000, 16_100_000_000, "hashing, 1.2 of 16.1 GB"),
        (500_000, 2_000_000, "hashing, 0.5 of 2.0 MB"),
        (1, 1000, "hashing, 0.0 of 1.0 kB"),
    ],
)
def test_bytes(done: int, total: int | None, text: str) -> None:
    with stage("hashing", unit=stages.BYTES) as step:
        step.at(done, total)
        assert step.text == text


@pytest.mark.usefixtures("smart")
@pytest.mark.parametrize(
    ("what", "columns"), spread(["starting Ray", "checking the input of a run, " * 4], [80, 40, 20])
)
def test_the_line_of_a_stage_changes_every_second(
    what: str, columns: int, tty: Tty, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(stages.time, "monotonic", clock)
    tty.resize(columns, 24)
    shown = Live("lrd generate", tty.theirs, clock)
    seen: list[list[str]] = []
    with stage(what):
        for second in range(40):
            shown.show()
            seen.append(tty.display)
            clock.now += 90.0 if second == 20 else 1.0  # To where seconds have no decimals.
    assert all(len(lines) == 1 and len(lines[0]) < columns for lines in seen)
    assert all(now != before for before, now in pairwise(seen))
    shown.show()
    assert tty.display == [], "nothing is left once the stage has ended"


@pytest.mark.parametrize("as_json", [False, True])
def test_without_a_terminal_a_stage_is_one_line(
    as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    output.set_log_format("json" if as_json else "text")
    try:
        clock = Clock()
        shown = Live("lrd verify", 0, clock)
        with stages.listening(shown.begin):
            with stage("a"):
                shown.show()
            with stage("b", 9, "shards") as step:
                clock.now += output.LINE_SECONDS - 0.1
                shown.show()
                assert capsys.readouterr().err == "", "most commands have ended by now"
                clock.now += 0.2
                shown.show()
                step.add(3)
                shown.show()
                clock.now += output.LINE_SECONDS
                shown.show()
            with stage("c"):
                pass
    finally:
        output.set_log_format("text")
    lines = capsys.readouterr().err.splitlines()
    if not as_json:
        expected = ["b", "b, 3 of 9 shards", "c"]
        assert lines == [f"lrd verify: {text}" for text in expected]
        return
    found = [json.loads(line) for line in lines]
    assert [(one["event"], one["stage"]) for one in found] == [
        *(("stage", "a"), ("stage", "b"), ("stage progress", "b"), ("stage", "c")),
    ]
    assert (found[2]["done"], found[2]["total"], found[2]["unit"]) == (3, 9, "shards")


def test_the_stages_of_a_refused_command_are_not_told(capsys: pytest.CaptureFixture[str]) -> None:
    with live.shown("lrd verify") as shown, stage("a"):
        shown.show()
    assert capsys.readouterr().err == ""
    with live.shown("lrd verify") as shown, stage("a"):
        shown.accepted()
    assert capsys.readouterr().err == "lrd verify: a\n"


# The end of a terminal.


@pytest.mark.usefixtures("smart")
def test_a_frame_is_replaced_in_place_and_leaves_nothing(tty: Tty) -> None:
    os.write(tty.theirs, b"$ lrd generate\r\n")
    screen = Screen(tty.theirs)
    screen.draw(["one", "two", "three"])
    assert tty.display == ["$ lrd generate", "one", "two", "three"]
    screen.draw(["1", "2"])
    assert tty.display == ["$ lrd generate", "1", "2"]
    screen.erase()
    os.write(tty.theirs, b"done\r\n")
    assert tty.display == ["$ lrd generate", "done"]
    assert not tty.screen.cursor.hidden
    assert b"?25l" not in tty.output, "a process that is killed could not show it again"
    assert b"?1049" not in tty.output


@pytest.mark.usefixtures("smart")
def test_a_redraw_is_one_write_that_clears_no_line_before_its_text(
    tty: Tty, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []
    monkeypatch.setattr("jobs.screen.os.write", lambda _, b: written.append(bytes(b)) or len(b))
    screen = Screen(tty.theirs)
    screen.draw(["one", "two"])
    written.clear()
    screen.draw(["one", "2"])
    assert written == [b"\r\x1b[1Aone\x1b[K\r\n2\x1b[K\x1b[J\r"]


@pytest.mark.usefixtures("smart")
def test_what_is_printed_goes_above_the_frame(tty: Tty) -> None:
    screen = Screen(tty.theirs)
    screen.draw(["one", "two"])
    with screen.above("warning\n"):
        os.write(tty.theirs, b"warning\r\n")
    screen.draw(["one", "two"])
    assert tty.display == ["warning", "one", "two"]
    with screen.above("50 %"):
        os.write(tty.theirs, b"50 %")
    screen.draw(["one", "two"])
    assert tty.display == ["warning", "50 %"], "no frame beside a line that has not ended"
    with screen.above("\n"):
        os.write(tty.theirs, b"\r\n")
    screen.draw(["one", "two"])
    assert tty.display == ["warning", "50 %", "one", "two"]


@pytest.mark.usefixtures("smart")
@pytest.mark.parametrize("echoed", [b"^C", b"^C^C"])
def test_the_echo_of_ctrl_c_leaves_no_line(tty: Tty, echoed: bytes) -> None:
    """At the end of a full line it would begin another one."""
    screen = Screen(tty.theirs)
    full = "x" * 79
    screen.draw(["one", full])
    os.write(tty.theirs, echoed)
    screen.draw(["one", full])
    assert tty.display == ["one", full]
    os.write(tty.theirs, echoed)
    screen.say_at_once("lrd generate: storing finished rows")
    screen.draw(["one", full])
    assert tty.display == ["lrd generate: storing finished rows", "one", full]


@pytest.mark.usefixtures("smart")
def test_a_terminal_that_gets_wider_or_lower(tty: Tty) -> None:
    screen = Screen(tty.theirs)
    screen.draw(["x" * 79, "two", "three"])
    tty.resize(120, 24)
    screen.draw(["x" * 100, "two"])
    assert tty.display == ["x" * 100, "two"]
    screen.erase()
    tty.resize(120, 3)
    screen.draw(["one", "two", "three", "four"])
    assert tty.display == ["one", "two"], "lines for which there is no room are left out"


@pytest.mark.usefixtures("smart")
def test_a_terminal_that_gets_narrower_has_broken_the_lines(tty: Tty) -> None:
    """As tmux, VTE and others do: pyte cuts the lines, so the movement is looked at."""
    screen = Screen(tty.theirs)
    screen.draw(["x" * 79, "y" * 30, "z" * 79])
    tty.read()
    tty.resize(40, 24)
    screen.draw(["one"])
    assert tty.read().startswith(b"\r\x1b[3A\x1b[Jone"), "two rows of x, one of y"


HOSTILE = {
    "escapes": "\x1b[2J\x1b]0;title\x07 red \x1b[31mtext",
    "lines": "one\r\ntwo\n\n\tthree\x0b\x0c four",
    "controls": "a\x00b\x08c\x7fd\x9be",
    "bidi": "abc\u202edef\u2066ghi\u200f",
    "separators": "a\u2028b\u2029c\x85d",
    "surrogate": "a\ud800b",
    "wide": "漢字かな交じり文" * 20,
    "emoji": "👩‍👩‍👧‍👦🇩🇪" * 30,
    "combining": "e\u0301" * 100,
    "long": "word " * 10_000,
    "empty": "",
}


@pytest.mark.parametrize("columns", [80, 40, 7, 1, 0])
@pytest.mark.parametrize("name", HOSTILE)
def test_an_answer_is_one_line_whatever_is_in_it(name: str, columns: int) -> None:
    line = one_line(HOSTILE[name], columns)
    assert width_of(line) <= columns
    assert line.isprintable()
    line.encode("utf-8")


def test_a_line_is_cut_at_the_width_of_its_characters() -> None:
    assert cut("漢字漢字", 8) == "漢字漢字"
    assert cut("漢字漢字", 7) == "漢字漢…"
    assert width_of(cut("漢字漢字", 6)) <= 6
    assert width_of(styled("漢字", "red")) == 4


# Figures.


def decoded(*results: Any, num_rows: int = 8, **changes: Any) -> Progress:
    """The progress after these results, of a run whose one shard was read."""
    tracker = ProgressTracker(num_rows, 0)
    prompts = [Prompt(0, n, [1], Bucket(8, 32)) for n in range(num_rows)]
    tracker.shard_read(num_rows, 0, prompts)
    tracker.rows_done(results_batch(results))
    return replace(tracker.progress({"replica-0": "decoding"}), **changes)


def test_speed_is_of_rows_that_are_ok_and_of_the_time_in_which_they_were_decoded() -> None:
    failed = replace(bad(0, 2), num_forwards=50, seconds=0.5, num_output_tokens=70)
    rows = [good(0, 0), good(0, 1, num_forwards=5, num_output_tokens=9), failed]
    progress = decoded(*rows, seconds=60.0, decoding_seconds=2.0)
    assert dashboard.speed(progress) == ["1.50 rows/s", "4.0 forwards/row", "6 effective tokens/s"]
    assert dashboard.in_one_line(progress).endswith(", 1 failed")
    old = replace(progress, decoding_seconds=None, num_output_tokens=0)
    assert dashboard.speed(old) == ["0.05 rows/s", "4.0 forwards/row"], "of an older driver"
    assert dashboard.speed(PROGRESS) == []


def test_failed_rows_are_those_of_the_whole_run() -> None:
    tracker = ProgressTracker(20, 8, num_failed=2)
    tracker.shard_read(8, 4, [Prompt(1, n, [1], Bucket(8, 32)) for n in range(4)], num_failed=1)
    tracker.rows_done(results_batch([bad(1, 4), good(1, 5)]))
    assert Counted.of(tracker.progress({})) == Counted(20, 14, 4)


def test_the_last_answer_is_the_last_good_one_and_short() -> None:
    long = good(0, 1, output_text="é" * 5000)
    progress = decoded(good(0, 0), long, bad(0, 2))
    assert progress.last_answer == LastAnswer("00000-00000001", "é" * eta.ANSWER_CHARACTERS)
    assert decoded(bad(0, 2)).last_answer is None


def test_the_range_of_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows of 1 s and 3 s, six left, one slot: by hand."""
    clock = Clock()
    monkeypatch.setattr(eta.time, "monotonic", clock)
    tracker = ProgressTracker(8, 0)
    tracker.shard_read(8, 0, [Prompt(0, n, [1], Bucket(8, 32)) for n in range(8)])
    tracker.rows_done(results_batch([good(0, 0, seconds=1.0)]))
    clock.now += 3.0
    progress = tracker.progress({})
    assert progress.seconds_left == pytest.approx(7.0 * 4.0)
    assert progress.seconds_left_range is None, "one row has no spread"
    tracker.rows_done(results_batch([good(0, 1, seconds=3.0)]))
    progress = tracker.progress({})
    variance = 2.0 * (6 + 36 / 2)
    assert progress.seconds_left == pytest.approx(12.0)
    off = eta.NORMAL_95 * variance**0.5
    assert progress.seconds_left_range == pytest.approx((max(0.0, 12.0 - off), 12.0 + off))
    assert dashboard.time_left(progress) == "12 s left (0 to 26 s)"


@pytest.mark.parametrize(
    ("left", "spread", "text"),
    [
        (None, None, None),
        (5400.0, None, "90 min left"),
        (5400.0, (5400.0, 5401.0), "90 min left"),
        (5400.0, (4800.0, 6000.0), "90 min left (80 to 100 min)"),
        (100.0, (50.0, 150.0), "2 min left (50 s to 2 min)"),
    ],
)
def test_time_left(left: float | None, spread: Any, text: str | None) -> None:
    progress = replace(PROGRESS, seconds_left=left, seconds_left_range=spread)
    assert dashboard.time_left(progress) == text
    assert dashboard.time_left(replace(progress, num_done=40)) is None


def test_a_report_is_read_back_and_one_of_an_older_driver_too() -> None:
    progress = decoded(good(0, 0), good(0, 1))
    assert Progress.from_json(json.loads(json.dumps(progress.to_json()))) == progress
    new = ("num_failed_before", "num_output_tokens", "decoding_seconds", "seconds_left_range")
    old = {k: v for k, v in progress.to_json().items() if k not in (*new, "last_answer")}
    old["buckets"] = {"8": {k: v for k, v in old["buckets"][8].items() if k != "squares"}}
    found = Progress.from_json(old)
    assert found.buckets == {8: BucketProgress(8, 2, 6, 1.0)}
    assert found.last_answer is None


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["starting", "starting"], "starting 2 of 2 replicas"),
        (["waiting", "starting"], "waiting for room on a node for 1 of 2 replicas"),
        (["loading", "loading"], "loading the model on 2 of 2 replicas"),
        (["idle", "loading"], "loading the model on 1 of 2 replicas"),
        (["preparing", "loading"], "finding out how many slots fit on 1 of 2 replicas"),
        (["compiling", "loading"], "compiling kernels on 1 of 2 replicas"),
        (["decoding", "loading"], "first passes"),
        (["dead", "dead"], "restarting after a pause: 2 of 2 replicas"),
        (["idle", "idle"], "reading prompts"),
        ([], None),
    ],
)
def test_what_replicas_do_before_the_first_row(states: list[str], expected: str | None) -> None:
    named = {f"replica-{n}": state for n, state in enumerate(states)}
    assert dashboard.starting(replace(PROGRESS, replicas=named)) == expected
    assert dashboard.starting(replace(PROGRESS, replicas=named, num_done=40)) is None


def test_nothing_starts_while_a_replica_decodes() -> None:
    states = {"replica-0": "decoding", "replica-1": "compiling", "replica-2": "dead"}
    assert dashboard.starting(replace(PROGRESS, replicas=states, num_done=5)) is None


def test_states_of_a_replica() -> None:
    replica = ReplicaHandle("replica-0")
    seen = [replica.state]
    replica.actor = replica.scheduling = object()
    replica.start_at = time.monotonic()
    seen.append(replica.state)
    replica.start_at -= WAITING_SECONDS + 1
    seen.append(replica.state)
    replica.scheduling, replica.loading = None, object()
    seen.append(replica.state)
    replica.loading = None
    seen.append(replica.state)
    replica.in_flight = {(0, 0): Prompt(0, 0, [1], Bucket(8, 32))}
    for phase in (Phase.PREPARING, Phase.COMPILING, Phase.DECODING):
        replica.phase = phase
        seen.append(replica.state)
    replica.draining = True
    seen.append(replica.state)
    replica.actor, replica.deaths = None, 1
    seen.append(replica.state)
    from pipeline.observe.metrics import STATES

    assert seen == ["starting", *STATES][:3] + list(STATES)[2:3] + [
        *("idle", "preparing", "compiling", "decoding", "draining", "dead")
    ]
    assert set(seen) == set(STATES)


FULL = Progress(
    num_rows=1_234_567,
    num_done=123_456,
    num_done_before=100_000,
    num_failed=12,
    num_forwards=500_000,
    seconds=7261.0,
    seconds_left=45_000.0,
    replicas={f"replica-{n}": s for n, s in enumerate(["decoding"] * 5 + ["loading", "dead"])},
    num_failed_before=3,
    num_output_tokens=6_000_000,
    decoding_seconds=7000.0,
    seconds_left_range=(40_000.0, 50_000.0),
    last_answer=LastAnswer("00012-00003456", "The answer\nis 42. " + "漢字" * 50),
)


@pytest.mark.usefixtures("smart")
@pytest.mark.parametrize("columns", [200, 79, 39, 20, 5])
@pytest.mark.parametrize("progress", [FULL, PROGRESS], ids=["full", "start"])
def test_a_frame_fits_and_loses_no_figure(columns: int, progress: Progress) -> None:
    lines = dashboard.frame("lrd generate  tiny → out", Counted.of(progress), progress, columns)
    assert max(map(width_of, lines)) <= columns
    if columns < 39 or progress is PROGRESS:
        return
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", " ".join(lines)).split())
    for figure in (
        *("123,456 of 1,234,567 (10.0%)", "15 failed", "3.35 rows/s", "21.3 forwards/row"),
        *("857 effective tokens/s", "2:01:01", "12 h 30 min left (11 h 7 min to 13 h 53 min)"),
        *("5 decoding", "1 loading", "1 dead", "00012-00003456", "The answer"),
    ):
        assert figure in text, f"{figure} is not in {text}"
    assert "\x1b[31m15 failed" in "\n".join(lines)


# Whole commands.


class Watched(Terminal):
    """A terminal that keeps every different state of its screen."""

    def __init__(self, *words: str, **options: Any) -> None:
        self.seen: list[list[str]] = []
        super().__init__(*words, **options)

    def _read(self) -> bool:
        going_on = super()._read()
        if not self.seen or self.seen[-1] != self.display:
            self.seen.append(self.display)
        return going_on

    def first(self, text: str) -> int:
        """Which state first showed a text."""
        for number, lines in enumerate(self.seen):
            if text in " ".join(lines):
                return number
        raise AssertionError(f"{text!r} was never shown")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    table = pa.table({"prompt": [f"Tom has {n} apples and buys 2. How many?" for n in range(40)]})
    pq.write_table(table, tmp_path / "in" / "a.parquet")
    return tmp_path


RUN = ["generate", "--input", "in", "--output", "out", "--gen-length", "32", "--slots", "4"]


@pytest.mark.slow
def test_a_run_on_a_terminal(prompts: Path) -> None:
    terminal = Watched(*RUN, columns=80, lines=30, cwd=prompts, NO_COLOR="1")
    assert terminal.ended() == 0
    order = [
        *("lrd generate: starting", "loading torch and Ray", "reading settings and tokenizer"),
        *("starting Ray", "lrd generate  tiny → out", "forwards/row"),
    ]
    places = [terminal.first(text) for text in order]
    assert places == sorted(places)
    # Ray's colorama resets the style at the end.
    assert set(SGR.findall(terminal.output)) <= {b"\x1b[0m"}
    # The figures of the last frame are those of the closing lines, which alone are left.
    final = "\n".join(terminal.display)
    assert terminal.display[0].startswith("40 rows, 0 failed, ")
    speed = next(line for line in terminal.display if line.startswith("speed: "))
    last = [lines for lines in terminal.seen if any("40 of 40 (100.0%)" in x for x in lines)][-1]
    frame = [line for line in last if line.startswith("speed ")]
    assert frame == [f"speed     {speed.removeprefix('speed: ')}"]
    assert re.search(r"per row, mean: ([\d.]+) forwards", final)[1] in speed
    assert "lrd generate" not in final
    assert not terminal.screen.cursor.hidden


def test_ctrl_c_on_a_narrow_terminal(prompts: Path) -> None:
    terminal = Watched(*RUN, columns=40, lines=30, cwd=prompts)
    terminal.wait(lambda: "last " in terminal.text)
    assert all(len(line) < 40 for line in terminal.display)
    terminal.type("\x03")
    assert terminal.ended() == 75
    left = "".join(line.ljust(40) for line in terminal.display).rstrip()
    assert left == (
        "lrd generate: storing finished rows; a second signal ends it at once".ljust(80)
        + "lrd generate: stopped on request; finished rows are safe, the same command continues"
    )
    assert SGR.search(terminal.output)
    assert not terminal.screen.cursor.hidden
    assert terminal.screen.cursor.x == 0


def test_status_draws_the_frame_of_generate(tmp_path: Path) -> None:
    run = MadeRun(tmp_path).begin()
    run.add(2, [0, 1])
    told = decoded(good(2, 0), good(2, 1), num_rows=12, seconds=100.0, decoding_seconds=50.0)
    run.ledger.lease.publish(told.to_json)
    lease = run.output / DRIVER
    lease.write_text(json.dumps({**json.loads(lease.read_text()), "progress": told.to_json()}))
    terminal = Watched("status", str(run.output), "--watch", columns=79, cwd=tmp_path)
    terminal.wait(lambda: "shard " in terminal.text)
    frame = dashboard.frame("", Counted.of(told), told, 78)
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in frame]
    shown = [line for line in terminal.display if line[:4] in ("rows", "spee", "repl", "last")]
    assert shown == [line for line in plain if line[:4] in ("rows", "spee", "repl", "last")]
    run.add(2, [2, 3])
    terminal.wait(lambda: "4 of 12 (33.3%)" in terminal.text)
    run.end()
    assert terminal.ended() == 0
    assert "4 of 12 done (33.3%), 0 failed" in terminal.text
    assert "4 of 12 (33.3%)" not in terminal.text, "the text replaces the frame"


def test_a_watch_that_is_left_keeps_the_state_as_text(tmp_path: Path) -> None:
    run = MadeRun(tmp_path).begin()
    terminal = Watched("status", str(run.output), "--watch", columns=80, cwd=tmp_path)
    terminal.wait(lambda: "0 of 12 (0.0%)" in terminal.text)
    terminal.type("\x03")
    assert terminal.ended() == 0
    assert "0 of 12 done (0.0%), 0 failed" in terminal.text
    assert "0 of 12 (0.0%)" not in terminal.text
    run.end()


def test_a_display_costs_its_caller_nothing(tty: Tty, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver hands over its progress; only the thread of the display draws it."""
    monkeypatch.setenv("TERM", "xterm")
    drawn: list[int] = []
    monkeypatch.setattr(Screen, "draw", lambda self, lines: drawn.append(len(lines)))
    monkeypatch.setattr(live, "FRAME_SECONDS", 1000.0)
    monkeypatch.setattr(Live.__init__, "__defaults__", (tty.theirs, time.monotonic))
    monkeypatch.setattr(live.shown.__wrapped__, "__defaults__", (tty.theirs,))
    with Display("lrd generate", "x") as display:
        for _ in range(1000):
            display.show(FULL)
        assert len(drawn) == 1, "the first one at once"
