"""`lrd submit` against a real job server with token authentication, on a head and a worker."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest
from helpers.commands import wait_for
from helpers.shards import OF_THE_RUN, write_shards

# A cluster of processes and its job server need a minute alone; test_submit.py has the rest.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
TOKEN = secrets.token_hex(24)
PROMPTS = [f"Tom has {n} apples and buys 7 more. How many are there?" for n in range(60)]
SLOW = '[{"at": "replica.pass", "do": "slow", "seconds": 1.0}]'
"""Fault rules by which a run takes half a minute: long enough to be met half way."""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@dataclass
class Cluster:
    """`ray start` as processes; everything under one folder, and nothing of it outlives a test."""

    folder: Path
    environment: dict[str, str]
    address: str
    nodes: list[subprocess.Popen[bytes]]

    def start(self, *words: str) -> None:
        # A short path: Ray puts sockets under it, whose names may have 107 bytes.
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *words, "--block"]
        log = (self.folder / f"node-{len(self.nodes)}.log").open("wb")
        # Jobs run in copies of their working directory; the node must not have one of its own.
        node = subprocess.Popen(
            command, env=self.environment, stdout=log, stderr=log, cwd=self.folder
        )
        self.nodes.append(node)

    def end(self) -> None:
        processes = []
        for node in self.nodes:
            with contextlib.suppress(psutil.NoSuchProcess):
                processes += [psutil.Process(node.pid), *psutil.Process(node.pid).children(True)]
        # Jobs' watchers are nobody's children any more, but all carry the token.
        for process in psutil.process_iter(["environ"]):
            if (process.info["environ"] or {}).get("RAY_AUTH_TOKEN") == TOKEN:
                processes.append(process)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.pid != os.getpid():
                    process.kill()
        for node in self.nodes:
            node.wait(30)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="lrd-", dir="/tmp") as name:
        folder = Path(name)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("RAY_", "PYTEST_")) and key != "PYTHONPATH"
        }
        environment |= {
            "PATH": path,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_worker_niceness": "0",
            "OMP_NUM_THREADS": "1",
            "NO_PROXY": "127.0.0.1",
        }
        port, dashboard = free_port(), free_port()
        made = Cluster(folder, environment, f"http://127.0.0.1:{dashboard}", [])
        ip = "--node-ip-address=127.0.0.1"
        try:
            made.start(
                *("--head", ip, f"--port={port}", "--num-cpus=1", "--dashboard-host=127.0.0.1"),
                *(f"--dashboard-port={dashboard}", f"--temp-dir={folder}/r"),
            )
            wait_for(lambda: answers(dashboard), 120)
            # A folder of its own, as on another machine: in a common one a node would delete the
            # working directory that the other still runs in.
            made.start(ip, f"--address=127.0.0.1:{port}", "--num-cpus=2", f"--temp-dir={folder}/w")
            # A run that asks for more than has joined is refused.
            joined = folder / "node-1.log"
            wait_for(lambda: b"Ray runtime started" in joined.read_bytes(), 120)
            yield made
        finally:
            made.end()


def answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    return False


def write_run(folder: Path, prompts: list[str]) -> Path:
    """Prompts in two shards and a run.toml."""
    write_shards(folder / "in", prompts, num_shards=2)
    toml = folder / "run.toml"
    toml.write_text(
        f'input = "{folder}/in"\noutput = "{folder}/out"\nreplicas = 2\nslots = 4\n'
        "cpus_per_replica = 1.0\nflush_seconds = 0.5\n[decoding]\ngen_length = 32\n"
    )
    return toml


def command(toml: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "jobs.cli", "submit", str(toml), *flags]


def start(cluster: Cluster, toml: Path, *flags: str, **changes: str) -> subprocess.Popen[str]:
    environment = {**cluster.environment, **changes}
    return subprocess.Popen(
        command(toml, "--address", cluster.address, *flags),
        cwd=ROOT,
        env={key: value for key, value in environment.items() if value},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def submit(cluster: Cluster, toml: Path, *flags: str, **changes: str) -> tuple[int, str, str]:
    """Exit code, the job's log, our own lines."""
    ran = start(cluster, toml, *flags, **changes)
    log, lines = ran.communicate(timeout=240)
    assert TOKEN not in log + lines
    return ran.returncode, log, lines


def read(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "out" / "data").drop(columns=OF_THE_RUN)


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("undisturbed")
    code, log, lines = submit(cluster, write_run(folder, PROMPTS))
    assert code == 0, log + lines
    assert f"{len(PROMPTS)} rows, 0 failed" in log
    assert re.fullmatch(r"submitted: lrd-out-[0-9a-f]{8}-1\n", lines)
    return read(folder)


def test_a_finished_run_is_0_and_again(undisturbed: pd.DataFrame) -> None:
    assert len(undisturbed) == len(PROMPTS)
    assert set(undisturbed["status"]) == {"ok"}


def test_failed_rows_are_3_and_flags_override(cluster: Cluster, tmp_path: Path) -> None:
    toml = write_run(tmp_path, ["", *PROMPTS[:5]])
    flags = ("--output", f"{tmp_path}/other", "--log-format", "json")
    code, log, lines = submit(cluster, toml, *flags)
    assert code == 3, log + lines
    assert '"event": "run finished"' in log
    assert (tmp_path / "other" / "data").is_dir()
    assert "lrd-other-" in lines


def test_what_the_driver_refuses_is_2(cluster: Cluster, tmp_path: Path) -> None:
    toml = write_run(tmp_path, PROMPTS[:2])
    code, log, _ = submit(cluster, toml, "--prompt-column", "question")
    assert code == 2
    assert "no column 'question'" in log
    assert not (tmp_path / "out").exists()


def test_a_job_that_is_stopped_is_75_and_submitted_again_continues(
    cluster: Cluster, tmp_path: Path, undisturbed: pd.DataFrame
) -> None:
    toml = write_run(tmp_path, PROMPTS)
    ran = start(cluster, toml, "--stop-on-interrupt", "--env", f"LRD_FAULTS={SLOW}")
    wait_for(lambda: list((tmp_path / "out").glob(".run/segments/*/*")), 120)
    ran.send_signal(signal.SIGINT)
    log, lines = ran.communicate(timeout=120)
    assert ran.returncode == 75, log + lines
    assert "stopping the job" in lines
    assert "the job was stopped" in lines
    assert "storing finished rows" in log, "the driver had the time to flush"
    kept = sum(
        pq.read_metadata(path).num_rows for path in (tmp_path / "out").glob(".run/segments/*/*")
    )
    assert 0 < kept < len(PROMPTS)
    code, log, lines = submit(cluster, toml)
    assert code == 0, log + lines
    assert re.fullmatch(r"submitted: lrd-out-[0-9a-f]{8}-2\n", lines), "its second job"
    pd.testing.assert_frame_equal(read(tmp_path), undisturbed)


def test_a_killed_driver_and_a_follower_that_leaves(
    cluster: Cluster, tmp_path: Path, undisturbed: pd.DataFrame
) -> None:
    toml = write_run(tmp_path, PROMPTS)
    first = start(cluster, toml, "--env", f"LRD_FAULTS={SLOW}")
    wait_for(lambda: list((tmp_path / "out").glob(".run/segments/*/*")), 120)
    first.send_signal(signal.SIGINT)
    _, lines = first.communicate(timeout=60)
    assert first.returncode == 75
    assert "the job goes on" in lines
    second = start(cluster, toml)
    assert second.stderr is not None
    said = second.stderr.readline()
    drivers = [
        process
        for process in psutil.process_iter(["cmdline"])
        if f"--output={tmp_path}/out" in (process.info["cmdline"] or [])
    ]
    assert drivers, "the job goes on"
    for driver in drivers:
        driver.kill()
    log, lines = second.communicate(timeout=60)
    assert second.returncode == 75, log + lines
    assert "running already" in said + lines
    assert "signal 9" in lines
    code, log, lines = submit(cluster, toml)
    assert code == 0, log + lines
    pd.testing.assert_frame_equal(read(tmp_path), undisturbed)


def test_two_drivers_on_disjoint_shards_share_the_cluster(
    cluster: Cluster, tmp_path: Path, undisturbed: pd.DataFrame
) -> None:
    half = len(PROMPTS) // 2
    folders = [tmp_path / "first", tmp_path / "second"]
    jobs = []
    for folder, prompts in zip(folders, (PROMPTS[:half], PROMPTS[half:]), strict=True):
        toml = write_run(folder, prompts)
        slow = SLOW.replace("1.0", "0.5")  # Longer than the other takes to come.
        jobs.append(start(cluster, toml, "--replicas", "1", "--env", f"LRD_FAULTS={slow}"))
    for job in jobs:
        log, lines = job.communicate(timeout=240)
        assert job.returncode == 0, log + lines
    events = [pd.read_json(f / "out" / ".run" / "events.jsonl", lines=True) for f in folders]
    assert max(e["time"].min() for e in events) < min(e["time"].max() for e in events), "together"
    together = pd.concat([read(folder) for folder in folders], ignore_index=True)
    own = ["row_id"]
    pd.testing.assert_frame_equal(together.drop(columns=own), undisturbed.drop(columns=own))


def test_without_the_token_nothing_goes(cluster: Cluster, tmp_path: Path) -> None:
    toml = write_run(tmp_path, PROMPTS[:2])
    nothing = {"HOME": str(tmp_path), "RAY_AUTH_TOKEN": ""}
    cases = [
        ({**nothing, "RAY_AUTH_MODE": ""}, "asks for a token: set RAY_AUTH_MODE=token"),
        (nothing, "asks for a token"),
        ({**nothing, "RAY_AUTH_TOKEN": "not-the-one"}, "refuses this token"),
    ]
    for changes, said in cases:
        code, log, lines = submit(cluster, toml, **changes)
        assert code == 2, lines
        assert log == ""
        (line,) = lines.splitlines()
        assert said in line
    assert not (tmp_path / "out").exists()


def test_rays_own_command_does_as_well(
    cluster: Cluster, tmp_path: Path, undisturbed: pd.DataFrame
) -> None:
    """As the documentation has it, on a cluster that has taken a job before: Ray's command does
    not wait for one that has just begun."""
    write_run(tmp_path, PROMPTS[:4])
    words = ["job", "submit", "--address", cluster.address, "--working-dir", "."]
    job = ["python", "-m", "jobs.generate", "--address", "auto"]
    settings = ["--input", f"{tmp_path}/in", "--output", f"{tmp_path}/out", "--gen-length", "32"]
    settings += ["--cpus-per-replica", "1"]
    ran = subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", *words, "--", *job, *settings],
        cwd=ROOT,
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert len(read(tmp_path)) == 4
