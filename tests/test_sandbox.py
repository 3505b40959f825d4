"""Generated programs are confined: the hostile ones end as failed rows within their limits."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from pipeline.scoring import humaneval
from pipeline.scoring.sandbox import Limits, run_program, walls

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are confined by Linux")

LIMITS = Limits(cpu_seconds=1, wall_seconds=2, memory_bytes=512 << 20, file_bytes=1 << 20)
FORGED = b'{"nonce": "", "error": null, "walls": []}'

HOSTILE = {
    "fork bomb": "import os\nwhile True: os.fork()",
    "fork bomb below os": "import _posixsubprocess as p, os\nos.getcwd()\nwhile True:"
    " p.fork_exec([b'/bin/sh'], [b'/bin/sh'], True, (), None, None, -1, -1, -1, -1, -1, -1,"
    " *os.pipe(), False, False, -1, None, None, None, -1, None, False)",
    "another program": "import os\nos.execv('/bin/true', ['true'])",
    "a shell": "import os\nif os.system('true') == 0: raise OSError",
    "subprocess": "import subprocess\nsubprocess.run(['true'])",
    "threads": "import threading, time\n"
    "while True: threading.Thread(target=time.sleep, args=(9,)).start()",
    "endless loop": "while True: pass",
    "endless sleep": "import time\ntime.sleep(99)",
    "endless loop that ignores signals": "import signal\nfor n in range(1, 64):\n"
    "    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
    "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "memory hog": "x = bytearray(1 << 40)",
    "growing memory": "x = []\nwhile True: x.append(bytearray(1 << 24))",
    "large file": "with open('x', 'wb') as f:\n    while True: f.write(bytes(1 << 18))",
    "many open files": "x = []\nwhile True: x.append(open('x', 'w'))",
    "sys.exit": "import sys\nsys.exit(0)",
    "exit": "exit()",
    "os._exit": "import os\nos._exit(0)",
    "abort": "import os\nos.abort()",
    "crash": "import ctypes\nctypes.string_at(0)",
    "kills its parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
    "kills its parent by descriptor": "import os, signal\n"
    "signal.pidfd_send_signal(os.pidfd_open(os.getppid()), signal.SIGKILL)",
    "kills all": "import os\nos.kill(-1, 9)",
    "prints forged marks": f"import os, sys\nprint({FORGED.decode()!r})\n"
    "sys.__stdout__.write('passed')\nfor fd in range(64):\n"
    f"    try: os.write(fd, {FORGED!r})\n    except OSError: pass\nos._exit(0)",
    "deletes its folder": "import os, shutil\nshutil.rmtree('.')\nos._exit(0)",
    "network": "import socket\nsocket.create_connection(('127.0.0.1', 9), 1)",
    "network below socket": "import _socket\n_socket.socket().connect(('127.0.0.1', 9))",
    "input": "input()",
    "redefines assert's error": "AssertionError = None\nassert False",
    "syntax error": "def f(:",
    "null": "x = 1\0",
    "closes all": "import os\nos.closerange(0, 99)",
    "hostile exception": "class E(Exception):\n    def __str__(self): raise E\nraise E",
}


@pytest.mark.parametrize("program", HOSTILE.values(), ids=HOSTILE)
def test_hostile_programs_fail_in_time(program: str) -> None:
    began = time.monotonic()
    outcome = run_program([program, "pass"], LIMITS)
    assert not outcome.passed
    assert outcome.error
    # The limit on wall time, and what a busy machine takes to start Python.
    assert time.monotonic() - began < LIMITS.wall_seconds + 5


@pytest.mark.parametrize(
    "program",
    [
        "open({path!r}, 'w')",
        "open({path!r}, 'a').write('x')",
        "import os\nos.open({path!r}, os.O_RDWR | os.O_CREAT)",
        "import pathlib\npathlib.Path({path!r}).write_text('x')",
        "import os\nos.remove({path!r})",
        "import os\nos.truncate({path!r}, 0)",
        "import os\nos.rename({path!r}, 'x')",
        "import os\nos.chmod({path!r}, 0)",
        "import os\nos.mkdir({path!r} + 'd')",
        "import os\nos.symlink({path!r}, 'l')\nopen('l', 'w')",
        "import os\nos.link({path!r}, 'l')\nopen('l', 'w')",
        "import os\nos.chdir(os.path.dirname({path!r}))\nopen('kept.txt', 'w')",
        "import os\nd = os.open(os.path.dirname({path!r}), os.O_RDONLY)\n"
        "os.close(os.open('kept.txt', os.O_WRONLY | os.O_TRUNC, dir_fd=d))",
        "import shutil, os\nshutil.rmtree(os.path.dirname({path!r}))",
        "import sqlite3\nsqlite3.connect({path!r}).execute('create table t (x)')",
    ],
)
def test_files_outside_are_kept(tmp_path: Path, program: str) -> None:
    kept = tmp_path / "kept.txt"
    kept.write_text("kept")
    kept.chmod(0o666)
    tmp_path.chmod(0o777)
    outcome = run_program([program.format(path=str(kept))], LIMITS)
    if "no writes outside" not in outcome.walls and "sqlite3" in program:
        pytest.skip("the kernel has no Landlock; sqlite opens files without Python's knowledge")
    assert not outcome.passed
    assert os.listdir(tmp_path) == ["kept.txt"]
    assert kept.read_text() == "kept"
    assert kept.stat().st_mode & 0o777 == 0o666


@pytest.mark.parametrize(
    "program",
    [
        "assert True",
        "import collections, csv, dataclasses, heapq, itertools, math, re, string, typing",
        "import asyncio\nasync def f(): return 3\nassert asyncio.run(f()) == 3",
        "import numpy\nassert numpy.ones(3).sum() == 3",
        "import hashlib\nassert hashlib.md5(b'').hexdigest()[0] == 'd'",
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass A:\n    x: int = 1\nassert A().x == 1",
        "import os\nopen('a', 'w').write('x')\nos.mkdir('d')\nos.rename('a', 'd/a')\n"
        "assert open('d/a').read() == 'x'\nos.remove('d/a')\nos.rmdir('d')",
        "import shutil, tempfile\nwith tempfile.TemporaryDirectory() as t: open(t + '/x', 'w')",
        "import os\nassert os.getcwd() == os.environ['HOME'] and 'PYTHONPATH' not in os.environ",
        "if __name__ == '__main__': raise SystemExit",
        "print('x' * 10_000_000)",
        "assert hash('a') == hash('a') and list({'a', 'b', 'c'}) == list({'a', 'b', 'c'})",
    ],
)
def test_honest_programs_pass(program: str) -> None:
    outcome = run_program([program])
    assert outcome.passed, outcome.error


def test_the_environment_is_scrubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    outcome = run_program(["import os\nassert 'secret' not in os.environ.values()"])
    assert outcome.passed, outcome.error


def test_sources_share_a_module_and_the_last_one_counts() -> None:
    assert run_program(["x = 1", "assert x == 1"]).passed
    assert run_program(["x = 1", "assert x == 2, 'two'"]).error == "AssertionError: two"
    assert run_program(["x = '''", "'''"]).passed is False


def test_hash_order_is_the_same_in_every_run() -> None:
    errors = {run_program(["raise ValueError(hash('lrd'))"]).error for _ in range(2)}
    assert len(errors) == 1


def test_walls_are_named() -> None:
    assert {"limits", "audit hook"} <= set(walls())


def test_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run_program(["import os\nos.makedirs('a/b')\nopen('a/b/c', 'w')\nwhile True: pass"], LIMITS)
    assert not list(tmp_path.iterdir())


def test_a_hostile_answer_is_a_failed_row() -> None:
    row = {"prompt": 'def one():\n    """One."""\n', "entry_point": "one"}
    reference = "def check(f):\n    assert f() == 1\n"
    assert humaneval.score("    return 1", reference, row).correct
    for body in ("import os; os._exit(0)", "raise SystemExit(0)", "return 2"):
        score = humaneval.score(f"    {body}", reference, row)
        assert not score.correct
        assert score.reason
