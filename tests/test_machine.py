"""Machines and folders that Ray cannot start on, or must not be misled by: a run that starts, or
one line with what to change, before anything is written; no start goes on for ever."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.plugs import POISON

from jobs import cli
from pipeline import cluster
from pipeline.config import RunConfig
from pipeline.import_path import named_folders, safe_environment, safe_folders
from pipeline.replicas.deaths import Limits, RunStoppedError
from pipeline.replicas.fleet import Actors
from pipeline.replicas.replica import Replica, ReplicaSettings
from pipeline.run import generate

ROOT = Path(__file__).parents[1]
TESTS = Path(__file__).parent
CONFIG = RunConfig(input="in", output="out")
SHADOWS = [
    *("lrd", "numpy", "pipeline", "random", "ray", "torch", "pyarrow", "jobs", "json", "typing"),
    *("socket", "logging", "pickle", "psutil", "grpc", "setproctitle", "sitecustomize"),
]
"""Names of modules that the driver, Ray's processes or a replica import."""


def start(
    folder: Path, *words: str, ulimit: str = "-c 0", **environment: str
) -> subprocess.CompletedProcess[str]:
    """`lrd generate` over three rows, as the installed command, in the folder."""
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table({"prompt": ["Tom has 3 apples."] * 3}), folder / "in.parquet")
    limited = ["bash", "-c", f'ulimit {ulimit}; exec "$@"', "limited"]
    command = [
        *limited,
        sys.executable,
        "-P",
        "-m",
        "jobs.cli",
        "generate",
        "--input",
        "in.parquet",
    ]
    given = ["--output", "out", "--gen-length", "16", "--cpus-per-replica", "1", *words]
    variables = {"PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}", **environment}
    return subprocess.run(
        [*command, *given],
        cwd=folder,
        env={**os.environ, "RAY_ADDRESS": "", **variables},
        capture_output=True,
        text=True,
        timeout=240,
    )


# What processes import.


@pytest.mark.slow
def test_nothing_is_imported_from_the_working_directory(tmp_path: Path, no_ray: None) -> None:
    """Neither by the driver nor by Ray's processes; a plug of PYTHONPATH is found by both."""
    for name in SHADOWS:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong file')")
    assert POISON not in "Tom has 3 apples."
    ended = start(tmp_path, "--model", "helpers.plugs:killing", "--start-seconds", "100")
    assert ended.returncode == 0, ended.stderr
    assert "3 rows, 0 failed" in ended.stdout


@pytest.mark.slow
def test_a_start_that_fails_ends_with_the_workers_own_words(tmp_path: Path, no_ray: None) -> None:
    searched = tmp_path / "searched"
    searched.mkdir()
    (searched / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if any(word.endswith('default_worker.py') for word in sys.orig_argv):\n"
        "    os.write(2, b'this worker cannot live here\\n')\n"
        "    os._exit(1)\n"
    )
    path = os.pathsep.join(map(str, [searched, ROOT]))
    began = time.monotonic()
    ended = start(tmp_path / "run", "--start-seconds", "8", PYTHONPATH=path)
    assert ended.returncode == 75
    assert time.monotonic() - began < 120
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("lrd generate")]
    assert "no replica could start within 8 s" in line
    assert "this worker cannot live here" in line


class Unmade(Replica):
    """Cannot be made, as where a node lacks a package."""

    def __init__(self, name: str, settings: ReplicaSettings) -> None:
        raise ModuleNotFoundError("No module named 'elsewhere'")


@pytest.mark.slow
def test_actors_that_cannot_be_made_end_the_start(
    tmp_path: Path, ray_session: None, prompts: RunConfig
) -> None:
    with pytest.raises(RunStoppedError, match=r"no replica could start: .*No module named 'else"):
        generate(prompts, actors=Actors(Unmade))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return tmp_path


@pytest.mark.parametrize("folder", ["", ".", "{here}", "{here}/", "{here}/../{name}", "{link}"])
def test_the_working_directory_is_not_searched(elsewhere: Path, folder: str) -> None:
    link = elsewhere.parent / f"{elsewhere.name}-link"
    link.symlink_to(elsewhere)
    named = folder.format(here=elsewhere, name=elsewhere.name, link=link)
    assert safe_folders(["/usr", named, "/nowhere"]) == ["/usr", "/nowhere"]


@pytest.mark.parametrize(
    ("path", "kept"),
    [("", False), (":", False), (":/usr", False), ("/usr:", False), (".", True), ("{here}", True)],
)
def test_what_pythonpath_names_is_searched(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, path: str, kept: bool
) -> None:
    """An empty part, as of `$PYTHONPATH:/more`, names nothing."""
    monkeypatch.setenv("PYTHONPATH", path.format(here=elsewhere))
    monkeypatch.setattr(sys, "path", [str(elsewhere), "/usr"])
    environment = safe_environment(named_folders())
    assert environment["PYTHONPATH"] == (f"{elsewhere}:/usr" if kept else "/usr")
    assert environment["PYTHONSAFEPATH"] == "1"


def test_the_folder_of_this_package_is_searched_from_within(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    assert safe_folders([str(ROOT)]) == [str(ROOT)]


# How starts end.


def test_a_start_has_an_end() -> None:
    limits = Limits(max_restarts=1, start_seconds=5)
    limits.unscheduled(5, lambda: "words")
    with pytest.raises(RunStoppedError, match="5 s; the last words of a worker process: words"):
        limits.unscheduled(5.1, lambda: "words")
    with pytest.raises(RunStoppedError, match="no machine had room for a replica for 5 s"):
        limits.unscheduled(5.1, lambda: None)


LOGS = {
    ":job_id:01000000\nTraceback\nModuleNotFoundError: No module named 'x'\n\n": "No module named",
    "[2026-11-28 05:03:05,753 I 12 13] core_worker.cc:1: fine\n": None,
    "words\n:actor_name:Replica\n": "words",
    "": None,
}


@pytest.mark.parametrize(("log", "expected"), LOGS.items())
def test_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: str, expected: str | None
) -> None:
    class Node:
        def get_logs_dir_path(self) -> str:
            return str(tmp_path)

    monkeypatch.setattr("ray._private.worker.global_worker.node", Node())
    assert cluster.last_words() is None
    (tmp_path / "raylet.err").write_text("older words")
    os.utime(tmp_path / "raylet.err", (1, 1))
    (tmp_path / "worker-new-2.err").write_text(log)
    found = cluster.last_words()
    if log == "":
        assert found == "older words"
    else:
        assert (found is None) if expected is None else expected in str(found)


# The machine.


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A run of three rows, and an environment that names no cluster."""
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    pq.write_table(pa.table({"prompt": ["one"] * 3}), tmp_path / "in.parquet")
    return RunConfig(input=str(tmp_path / "in.parquet"), output=str(tmp_path / "out"))


def file_as_folder(folder: Path) -> str:
    (folder / "file").write_text("text")
    return f"{folder}/file"


FOLDERS: dict[str, tuple[Callable[[Path], str], str]] = {
    "too long for a socket": (
        lambda folder: "/tmp/" + "x" * 60,
        "bytes too long for Ray's sockets",
    ),
    "too long in bytes": (lambda folder: "/tmp/" + "ü" * 20, "bytes too long for Ray's sockets"),
    "relative": (lambda folder: "tmp", "not an absolute path"),
    "empty": (lambda folder: "", "not an absolute path"),
    "in /proc": (lambda folder: "/proc", "can write no file in /proc/ray"),
    "below a device": (lambda folder: "/dev/null", "can write no file in /dev/null/ray"),
    "in /sys": (lambda folder: "/sys", "can write no file in /sys/ray"),
}


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
@pytest.mark.parametrize("kind", FOLDERS)
def test_a_temporary_folder_that_ray_cannot_use(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    prompts: RunConfig,
    variable: str,
    kind: str,
    no_ray: None,
) -> None:
    make, reason = FOLDERS[kind]
    monkeypatch.setenv(variable, make(tmp_path))
    code = cli.run(["generate", "--input", prompts.input, "--output", prompts.output])
    (line,) = capfd.readouterr().err.splitlines()
    assert code == 2
    assert line.startswith(f"lrd generate: {variable} is ")
    assert reason in line
    assert "set RAY_TMPDIR to" in line
    assert not Path(prompts.output).exists()


def test_a_folder_of_another_user(tmp_path: Path) -> None:
    """Without root's right to write anywhere, as users are."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    Path("/tmp/lrd-other/ray").mkdir(parents=True, exist_ok=True)
    os.chown("/tmp/lrd-other/ray", 65534, 65534)
    held = "-dac_override,-dac_read_search"
    program = (
        "from pipeline.cluster import connect; from pipeline.config import RunConfig\n"
        "connect(RunConfig(input='x', output='y'))"
    )
    variables = {"RAY_TMPDIR": "/tmp/lrd-other", "RAY_ADDRESS": "", "PYTHONPATH": str(ROOT)}
    confined = ["setpriv", f"--bounding-set={held}", f"--inh-caps={held}"]
    ended = subprocess.run(
        [*confined, sys.executable, "-c", program],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    assert "ValueError: RAY_TMPDIR is '/tmp/lrd-other': Ray can write no file" in ended.stderr
    assert "Permission denied" in ended.stderr


FAILURES: dict[str, tuple[Exception, str]] = {
    "home": (PermissionError(13, "Permission denied", "/home/me/.ray"), "HOME is '/home/me': set"),
    "a disk": (OSError(28, "No space left on device", "/tmp/ray/x"), "No space left on device"),
    "ray itself": (RuntimeError("The node timed out.\nIt\n  failed."), "timed out. It failed."),
    "without words": (RuntimeError(), "RuntimeError"),
    "an assertion": (AssertionError("no such port"), "no such port"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_what_ray_says_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    prompts: RunConfig,
    kind: str,
    no_ray: None,
) -> None:
    error, expected = FAILURES[kind]

    def fail(**options: Any) -> None:
        raise error

    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setattr("ray.init", fail)
    before = dict(os.environ)
    code = cli.run(["generate", "--input", prompts.input, "--output", prompts.output])
    (line,) = capfd.readouterr().err.splitlines()
    assert code == 2
    assert line.startswith("lrd generate: Ray cannot start on this machine: ")
    assert expected in line
    assert not Path(prompts.output).exists()
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("flag", "kind"), [("v", resource.RLIMIT_AS), ("f", resource.RLIMIT_FSIZE)]
)
def test_a_shells_limits_are_named(
    monkeypatch: pytest.MonkeyPatch, prompts: RunConfig, flag: str, kind: int, no_ray: None
) -> None:
    def fail(**options: Any) -> None:
        raise RuntimeError("The node timed out")

    monkeypatch.setattr("ray.init", fail)
    real = resource.getrlimit
    monkeypatch.setattr(
        "resource.getrlimit", lambda which: (123456, -1) if which == kind else real(which)
    )
    with pytest.raises(ValueError, match=rf"to 123456 \(ulimit -{flag}\): raise it"):
        generate(prompts)


@pytest.mark.slow
def test_a_start_under_a_limit_of_memory(tmp_path: Path, no_ray: None) -> None:
    """Ray gives its processes half a minute, then says so."""
    folder = tmp_path / "run"
    ended = start(folder, ulimit="-v 3000000")
    assert ended.returncode == 2, ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line.startswith("lrd generate: ")]
    assert len(lines) == 1
    assert "ulimit -v" in lines[0]
    assert "Traceback" not in ended.stderr
    assert not (folder / "out").exists()


# A cluster that is named.


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@pytest.mark.parametrize("how", ["auto in the environment", "auto as a flag", "address", "none"])
def test_an_address_that_does_not_answer(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    prompts: RunConfig,
    how: str,
    no_ray: None,
) -> None:
    """`auto` reads a file that a cluster which is gone may have left behind."""
    address = f"127.0.0.1:{closed_port()}"
    (tmp_path / "ray").mkdir()
    if how != "none":
        (tmp_path / "ray" / "ray_current_cluster").write_text(address)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    # Whatever else runs on this machine.
    monkeypatch.setattr("ray._private.services._cached_find_gcs_addresses", cache(set))
    flags = {"auto as a flag": ["--address", "auto"], "address": ["--address", address]}
    if how not in flags:
        monkeypatch.setenv("RAY_ADDRESS", "auto")
    began = time.monotonic()
    words = ["generate", "--input", prompts.input, "--output", prompts.output, *flags.get(how, [])]
    code = cli.run(words)
    (line,) = capfd.readouterr().err.splitlines()
    assert code == 2
    assert "no Ray cluster answers at" in line
    assert "RAY_ADDRESS" in line
    assert time.monotonic() - began < 20
    assert not Path(prompts.output).exists()


# Settings that no machine can bear.


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "Infinity", "1e999"])
@pytest.mark.parametrize(
    "name",
    [
        *("temperature", "tau_refine", "tau_decode", "cfg_scale", "r_f", "top_p", "schedule_eps"),
        *("entropy_threshold", "entropy_bound", "confidence_threshold", "stop_max_entropy"),
        *("sample_top_p", "hang_seconds", "start_seconds", "flush_seconds"),
        *("cpus_per_replica", "gpus_per_replica"),
    ],
)
def test_numbers_are_finite(
    capfd: pytest.CaptureFixture[str], prompts: RunConfig, name: str, value: str
) -> None:
    flag = f"--{name.replace('_', '-')}={value}"
    code = cli.run(["generate", "--input", prompts.input, "--output", prompts.output, flag])
    (line,) = capfd.readouterr().err.splitlines()
    assert code == 2
    assert line.startswith(f"lrd generate: {name}: ")


HUGE = 10**12
SIZES = {
    "max_refine_steps": {"max_refine_steps": HUGE},
    "max_refine_steps, a little too large": {"max_refine_steps": 10_001},
    "refinement": {"refinement": HUGE},
    "refinement, a little too large": {"refinement": 10_001},
    "steps": {"steps": HUGE},
    "gen_length": {"gen_length": HUGE},
    "blocks that all refine": {"gen_length": 4096, "block_length": 1, "max_refine_steps": 10_000},
    "refined before every token": {"refinement": "auto", "max_refine_steps": 10_000},
    "slots": {"slots": HUGE},
    "lookahead_shards": {"lookahead_shards": HUGE},
    "replicas": {"replicas": HUGE},
}


@pytest.mark.parametrize("kind", SIZES)
def test_sizes_that_would_never_end(
    capfd: pytest.CaptureFixture[str], prompts: RunConfig, kind: str
) -> None:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SIZES[kind].items()]
    if "steps" in SIZES[kind]:
        flags.append("--preset=baseline")
    code = cli.run(["plan", "--input", prompts.input, "--output", prompts.output, *flags])
    (line,) = capfd.readouterr().err.splitlines()
    assert code == 2
    assert kind.partition(",")[0].split()[0] in line or "passes" in line


@pytest.mark.parametrize("value", ["0", "-1"])
@pytest.mark.parametrize(
    "words",
    [
        ["prepare", "{input}", "--output", "{output}"],
        ["reproduce", "table1", "--output", "{output}"],
        ["tune", "--task", "gsm8k", "--input", "{input}", "--output", "{output}"],
    ],
    ids=lambda words: words[0],
)
def test_limits_of_no_row(
    capfd: pytest.CaptureFixture[str], prompts: RunConfig, words: list[str], value: str
) -> None:
    filled = [word.format(input=prompts.input, output=prompts.output) for word in words]
    code = cli.run([*filled, f"--limit={value}"])
    (line,) = capfd.readouterr().err.splitlines()
    assert code == 2
    assert f"limit is {value}; at least 1" in line
    assert not Path(prompts.output).exists()
