"""What is printed never changes what a command has done, nor its exit code; and as JSON every line
on stderr is one object."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.few import few, spread

from jobs.cli import COMMANDS

FLAGS = ["--gen-length", "32", "--slots", "4"]
PROMPTS = [f"Tom has {n} apples and buys 2. How many?" for n in range(4)]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "jobs.cli", *words]


def environment(**changes: str) -> dict[str, str]:
    names = ("PYTHONIOENCODING", "LRD_LOG_FORMAT", "COLUMNS", "FORCE_COLOR", "NO_COLOR")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    return {**kept, **changes}


def lrd(*words: str, stdout: Any = subprocess.PIPE, **changes: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in a process of its own."""
    done = subprocess.run(
        command(*words), stdout=stdout, stderr=subprocess.PIPE, env=environment(**changes),
        timeout=240,
    )  # fmt: skip
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done.returncode, (done.stdout or b"").decode("latin-1"), done.stderr.decode("latin-1")


def objects(text: str) -> list[dict[str, Any]]:
    """The lines of stderr, each of which has to be a JSON object."""
    found = [json.loads(line) for line in text.splitlines()]
    assert all({"time", "level", "event"} <= line.keys() for line in found)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts under `in` and a finished run under `Übung ✓`, decoded with JSON lines."""
    folder = tmp_path_factory.mktemp("streams")
    (folder / "in").mkdir()
    table = pa.table({"prompt": PROMPTS, "answer": [str(n + 2) for n in range(4)]})
    pq.write_table(table, folder / "in" / "a.parquet")
    code, out, err = lrd(*generate(folder), "--log-format", "JSON")
    assert (code, out) == (0, ""), err
    (folder / "generate.err").write_text(err)
    return folder


def run_of(folder: Path) -> str:
    return str(folder / "Übung ✓")


def generate(folder: Path) -> list[str]:
    return ["generate", "--input", str(folder / "in"), "--output", run_of(folder), *FLAGS]


def working(name: str, folder: Path) -> list[str]:
    """A call that succeeds."""
    run, new = run_of(folder), folder / f"{name}-{time.monotonic_ns()}"
    return {
        "models": ["models"],
        "status": ["status", run],
        "verify": ["verify", run],
        "plan": ["plan", *generate(folder)[1:]],
        "preview": ["preview", *generate(folder)[1:], "--rows", "1"],
        "evaluate": ["evaluate", run, "--task", "word-problems", "--workers", "1"],
        "report": ["report", run, "--output", f"{new}.html"],
        "select": ["select", run, "--to", str(new), "--max-per-prompt", "1"],
        "publish": ["publish", run, "--to", str(new)],
        "prepare": ["prepare", str(folder / "in"), "--output", str(new)],
        "bench": ["bench", "--slots", "1", "--canvas", "16", "--rows-a-slot", "1", "--repeat", "1"],
        "generate": generate(folder),
        "retry-failed": ["retry-failed", run],
        "tune": [
            *("tune", "--task", "word-problems", "--input", str(folder / "in"), "--limit", "2"),
            *("--output", str(new), "--r-f", "0.15", "--tau-decode", "0.1", "--monitor", "none"),
            *("--whole-presets", "--gen-length", "32"),
        ],
        "reproduce": [
            *("reproduce", "figure4", "--limit", "1", "--gen-length", "16"),
            *("--output", str(new), "--slots", "2"),
        ],
    }[name]


WITHOUT_RAY = (
    *("plan", "preview", "select", "status", "models", "verify", "evaluate", "report", "publish"),
    "prepare",
)
WITH_RAY = ("retry-failed", "tune", "reproduce")


# Every line is JSON.


def test_a_run_is_json_from_its_first_line_to_its_last(folder: Path) -> None:
    lines = objects((folder / "generate.err").read_text())
    assert [line["event"] for line in lines[:2]] == ["stage", "stage"]
    events = [line["event"] for line in lines if line["event"] != "stage"]
    assert events[0] == "driver started"
    assert events[-1] == "run finished"


@pytest.mark.parametrize(
    "name",
    [*few([*WITHOUT_RAY, "bench"], of_each=3), *few(WITH_RAY, of_each=0)],
)
def test_a_working_call_writes_json_alone(folder: Path, name: str) -> None:
    code, _, err = lrd(*working(name, folder), LRD_LOG_FORMAT="Json")
    assert code == 0, err
    objects(err)


@pytest.mark.parametrize("name", few(COMMANDS, of_each=4))
def test_a_wrong_flag_is_one_object(name: str) -> None:
    code, out, err = lrd(name, "--colour", "--log-format=json")
    (line,) = objects(err)
    assert (code, out, line["event"]) == (2, "", "message")
    assert line["text"].startswith(f"lrd {name}: ")
    assert line["text"].endswith(f"; see lrd {name} --help")


FAILING = {
    "generate": ["--input", "nowhere", "--output", "out"],
    "submit": ["nowhere.toml"],
    "plan": ["--input", "nowhere", "--output", "out"],
    "preview": ["--input", "nowhere"],
    "status": ["nowhere"],
    "verify": ["nowhere"],
    "retry-failed": ["nowhere"],
    "prepare": ["nowhere.csv", "--output", "out"],
    "evaluate": ["nowhere", "--task", "gsm8k"],
    "tune": ["--task", "gsm8k", "--input", "nowhere", "--output", "out"],
    "report": ["nowhere"],
    "reproduce": ["table7", "--output", "out"],
    "publish": ["nowhere", "--to", "./out"],
    "bench": ["--input", "nowhere", "--output", "out.json"],
    "select": ["nowhere", "--to", "./out"],
}


@pytest.mark.parametrize("name", few(FAILING, of_each=3))
def test_a_failing_call_is_one_object(name: str) -> None:
    code, out, err = lrd(name, *FAILING[name], "--log-format", "json")
    # On a slow machine what it was doing until then is told too.
    (line,) = (one for one in objects(err) if one["event"] != "stage")
    assert (code, out) == (2, "")
    assert line["text"].startswith(f"lrd {name}: ")
    assert not Path("out").exists()


@pytest.mark.parametrize("words", [[], ["nonsense"], ["--colour"], ["Generate"]])
def test_an_unknown_command_is_one_line(words: list[str]) -> None:
    code, out, err = lrd(*words)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    code, out, err = lrd(*words, LRD_LOG_FORMAT="json")
    assert (code, out, len(objects(err))) == (2, "", 1)


@pytest.mark.parametrize("name", few(COMMANDS, of_each=4))
def test_an_unknown_format_is_one_line_for_every_command(name: str) -> None:
    code, out, err = lrd(name, *FAILING.get(name, []), LRD_LOG_FORMAT="xml")
    assert (code, out) == (2, "")
    assert err == f"lrd {name}: LRD_LOG_FORMAT is 'xml'; expected text or json\n"
    code, out, err = lrd(name, *FAILING.get(name, []), "--log-format", "xml")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "--log-format" in err


@pytest.mark.parametrize(
    ("code", "event", "text"),
    [
        ("raise KeyboardInterrupt", "message", "lrd models: interrupted"),
        ("import warnings; warnings.warn('a\\nb')", "warning", "UserWarning: a\nb"),
        ("import sys; print('from a library', file=sys.stderr)", "message", "from a library"),
        ("import logging; logging.getLogger('x').warning('odd')", "message", "odd"),
        ("import sys; sys.stderr.write('50%\\r99%\\n')", "message", "50%"),
        ("import sys; sys.stderr.write('no end')", "message", "no end"),
        ("raise RuntimeError('a bug')", "unexpected error", "RuntimeError: a bug"),
    ],
)
def test_what_others_write_is_json_too(code: str, event: str, text: str) -> None:
    program = (
        "import sys; from jobs import cli, models\n"
        "class Table:\n"
        "    def __iter__(self):\n"
        f"        {code}\n"
        "        return iter([])\n"
        "models.KNOWN = Table()\n"
        "sys.argv = ['lrd', 'models', '--log-format', 'json']\n"
        "cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment()
    )
    first = objects(done.stderr)[0]
    assert first["event"] == event
    assert text in (first.get("text") or first["traceback"])
    assert done.returncode == {"message": 0, "warning": 0}.get(event, 1) or "Keyboard" in code


# Whatever happens to stdout.


BROKEN = ("closed", "full", "reader gone")


@pytest.fixture(params=BROKEN)
def broken_stdout(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A descriptor to which nothing can be written; None: closed before the command starts."""
    if request.param == "closed":
        yield None
        return
    if request.param == "full":
        descriptor = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, descriptor = os.pipe()
        os.close(reader)
    yield descriptor
    os.close(descriptor)


def lrd_into(stdout: int | None, *words: str, **changes: str) -> tuple[int, str]:
    """Exit code and stderr of a command whose stdout is broken."""
    if stdout is not None:
        code, _, err = lrd(*words, stdout=stdout, **changes)
        return code, err
    closed = ["bash", "-c", 'exec "$@" >&-', "bash", *command(*words)]
    done = subprocess.run(closed, stderr=subprocess.PIPE, env=environment(**changes))
    return done.returncode, done.stderr.decode()


@pytest.mark.parametrize(
    ("broken_stdout", "name"), spread(BROKEN, WITHOUT_RAY, every=5), indirect=["broken_stdout"]
)
def test_a_broken_stdout_changes_nothing(folder: Path, name: str, broken_stdout: Any) -> None:
    """Nothing is said of it; what a command is doing is told where that takes long."""
    words = [*working(name, folder), "--log-format", "json"]
    code, err = lrd_into(broken_stdout, *words, PYTHONIOENCODING="ascii")
    assert code == 0
    assert not [one for one in objects(err) if one["level"] != "info" or one["event"] == "message"]
    words = words[:-2]
    if name in ("publish", "prepare"):
        assert any(Path(words[-1]).iterdir())
    if name == "report":
        assert Path(words[-1]).stat().st_size > 10_000


@pytest.mark.slow
def test_a_run_into_a_broken_stdout_is_whole(folder: Path, tmp_path: Path) -> None:
    """Descriptor 1 is free there: no file that the run opens may get what others print."""
    words = ["generate", "--input", str(folder / "in"), "--output", str(tmp_path / "out"), *FLAGS]
    code, err = lrd_into(None, *words, PYTHONIOENCODING="ascii")
    assert code == 0, err
    assert lrd("verify", str(tmp_path / "out"))[0] == 0


@pytest.mark.parametrize("name", ["verify", "status"])
def test_a_code_that_is_not_zero_stays(tmp_path: Path, name: str, broken_stdout: Any) -> None:
    assert lrd_into(broken_stdout, name, str(tmp_path / "none"))[0] == 2


@pytest.mark.parametrize("where", few(["2>&- >&- <&-", "2>/dev/full", "2>&-"]))
def test_a_broken_stderr_changes_nothing(folder: Path, where: str, tmp_path: Path) -> None:
    for code, words in ((0, ["status", run_of(folder)]), (2, ["status", str(tmp_path / "none")])):
        for log_format in ("text", "json"):
            done = subprocess.run(
                ["bash", "-c", f'exec "$@" {where}', "bash", *command(*words)],
                capture_output=True, env=environment(LRD_LOG_FORMAT=log_format),
            )  # fmt: skip
            assert done.returncode == code


def test_a_watch_ends_with_its_reader(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_of(folder), tmp_path / "run")
    lease = tmp_path / "run" / ".run" / "driver.json"
    at_work = {**json.loads(lease.read_text()), "released": False, "host": "elsewhere"}
    lease.write_text(json.dumps(at_work))
    (next((tmp_path / "run" / "data").iterdir())).unlink()
    watching = subprocess.Popen(
        command("status", "--watch", str(tmp_path / "run")), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=environment(),
    )  # fmt: skip
    assert watching.stdout is not None
    assert watching.stderr is not None
    assert b"rows" in watching.stdout.readline() + watching.stdout.readline()
    watching.stdout.close()
    try:
        assert watching.wait(30) == 0
        assert watching.stderr.read() == b""
    finally:
        watching.kill()


@pytest.mark.parametrize(
    "changes",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1:strict"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "C"},
        {"PYTHONIOENCODING": "utf-8"},
    ],
    ids=lambda changes: ",".join(changes.values()),
)
def test_what_an_encoding_lacks_is_escaped(
    folder: Path, tmp_path: Path, changes: dict[str, str]
) -> None:
    shutil.copytree(run_of(folder), tmp_path / "run")
    (tmp_path / "run" / "data" / "✓.txt").write_text("mine")
    code, out, _ = lrd("verify", str(tmp_path / "run"), **changes)
    assert code == 1
    shown = out.encode("latin-1").decode()
    assert "✓.txt" in shown or "\\u2713.txt" in shown
    assert "WRONG: 1 findings" in shown


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_path_in_a_refusal_is_escaped(encoding: str) -> None:
    code, out, err = lrd("status", "✓", PYTHONIOENCODING=encoding)
    assert (code, out, len(err.splitlines())) == (2, "", 1)


UNDECODABLE = os.fsdecode(b"x\xff")


@pytest.mark.parametrize("name", FAILING)
def test_a_path_that_is_not_text_is_named(name: str) -> None:
    words = [UNDECODABLE if word in ("nowhere", "out") else word for word in FAILING[name]]
    code, out, err = lrd(name, *words, UNDECODABLE)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert r"b'x\xff'" in err
    assert "rename" in err


def test_names_beyond_a_c_locale_are_refused_with_the_fix(folder: Path) -> None:
    changes = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code, _, err = lrd("status", run_of(folder), **changes)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "PYTHONUTF8=1" in err
    done = subprocess.run(
        command("status", "."), cwd=run_of(folder), capture_output=True,
        env=environment(**changes, PYTHONPATH=os.getcwd()),
    )  # fmt: skip
    assert done.returncode == 2
    assert b"PYTHONUTF8=1" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# Terminals.


@pytest.mark.parametrize(
    ("words", "change"),
    spread(
        ["--help", "generate --help", "status --watch"],
        [
            *("COLUMNS=0", "COLUMNS=-1", "COLUMNS=wide", "COLUMNS=5"),
            *("TERM=dumb", "TERM=", "FORCE_COLOR=1", "NO_COLOR=1"),
        ],
        every=3,
    ),
)
def test_odd_terminals(folder: Path, words: str, change: str) -> None:
    changes = dict([change.split("=")])
    called = [*words.split(), *([run_of(folder)] if words.startswith("status") else [])]
    terminal, ours = pty.openpty()
    done = subprocess.Popen(
        command(*called), stdout=ours, stderr=subprocess.PIPE, env=environment(**changes)
    )
    os.close(ours)
    seen = b""
    try:
        while chunk := os.read(terminal, 65536):
            seen += chunk
    except OSError:
        pass  # The other side is closed.
    os.close(terminal)
    _, err = done.communicate(timeout=60)
    assert (done.returncode, err) == (0, b"")
    assert len(seen) > 100


def test_ctrl_c_ends_a_watch_without_a_word(folder: Path) -> None:
    program = (
        "import os, signal; from jobs import cli, status\n"
        "status.is_over = lambda state: os.kill(os.getpid(), signal.SIGINT)\n"
        f"cli.main('status', '--watch', {run_of(folder)!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, env=environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
