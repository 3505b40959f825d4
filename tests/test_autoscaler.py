"""A run on a cluster that grows for it: Ray's own autoscaler, whose machines are processes here."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from helpers.commands import wait_for
from helpers.shards import distinct_questions, events, write_shards

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SETTINGS: dict[str, Any] = {
    "cluster_name": "grows",
    "max_workers": 2,
    "idle_timeout_minutes": 0.1,
    "upscaling_speed": 10,
    # Machines have the head's address here, and nothing is to be installed on them.
    "provider": {
        "type": "fake_multinode",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "one-core": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 2},
    },
    **{key: {} for key in ("auth", "head_node", "worker_nodes", "file_mounts")},
    **{key: [] for key in ("rsync_exclude", "rsync_filter", "cluster_synced_files")},
    **{f"{key}_commands": [] for key in ("initialization", "setup", "head_setup")},
    **{f"{key}_commands": [] for key in ("worker_setup", "head_start_ray", "worker_start_ray")},
}


@dataclass
class Growing:
    """A head without cores, and its autoscaler."""

    head: psutil.Process
    address: str
    environment: dict[str, str]

    def machines(self) -> list[psutil.Process]:
        """Nodes that the autoscaler has added; the head's own is the head's child."""
        (monitor,) = [
            child
            for child in self.head.children()
            if any(word.endswith("_private/monitor.py") for word in child.cmdline())
        ]
        return [p for p in monitor.children() if p.name() == "raylet"]


@pytest.fixture
def cluster() -> Iterator[Growing]:
    with socket.socket() as probe, tempfile.TemporaryDirectory(prefix="lrd-", dir="/tmp") as name:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        probe.close()
        config = Path(name) / "cluster.json"
        provider = {**SETTINGS["provider"], "gcs_address": address}
        config.write_text(json.dumps({**SETTINGS, "provider": provider}))
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")},
            "RAY_FAKE_CLUSTER": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "a-cluster-that-grows-for-a-test-0123456789",
            "RAY_TMPDIR": name,
            "RAY_worker_niceness": "0",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "AUTOSCALER_HEARTBEAT_TIMEOUT_S": "5",
        }
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
        with (Path(name) / "log").open("w") as log:
            head = subprocess.Popen(
                [
                    *command,
                    *(f"--port={address.rpartition(':')[2]}", "--node-ip-address=127.0.0.1"),
                    *("--num-cpus=0", "--include-dashboard=false"),
                    f"--autoscaling-config={config}",
                ],
                env=environment,
                stdout=log,
                stderr=log,
            )
        found = Growing(psutil.Process(head.pid), address, environment)
        try:
            wait_for(lambda: "Ray runtime started" in (Path(name) / "log").read_text())
            yield found
        finally:
            processes = [found.head, *found.head.children(recursive=True)]
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            head.wait(30)
            psutil.wait_procs(processes, 30)


def test_machines_come_for_replicas_are_replaced_and_go(cluster: Growing, tmp_path: Path) -> None:
    questions = distinct_questions(200, seed=31)
    write_shards(tmp_path / "in", questions)
    output = tmp_path / "out"
    # A pass takes long enough for a machine to come meanwhile.
    slow = {"at": "replica.pass", "do": "slow", "seconds": 0.3}
    flags = {"input": tmp_path / "in", "output": output, "address": cluster.address}
    flags |= {"replicas": 2, "slots": 2, "device": "cpu", "flush-seconds": 0.2, "gen-length": 32}
    command = [sys.executable, "-m", "jobs.generate", "--autoscale"]

    def happened(kind: str) -> list[dict[str, Any]]:
        return [event for event in events(output) if event["event"] == kind]

    assert not cluster.machines()
    run = subprocess.Popen(
        [*command, *(f"--{name}={value}" for name, value in flags.items())],
        env={**cluster.environment, "LRD_FAULTS": json.dumps([slow])},
    )
    try:
        wait_for(lambda: len(happened("replica up")) == 2 or run.poll() is not None)
        assert run.poll() is None
        first = {event["node"] for event in happened("replica up")}
        assert len(first) == len(cluster.machines()) == 2
        cluster.machines()[0].kill()
        wait_for(lambda: len(happened("replica up")) == 3 or run.poll() is not None)
        assert happened("replica up")[-1]["node"] not in first
        assert [event["node"] for event in happened("node lost")] == [
            event["node"] for event in happened("replica died")
        ]
        assert run.wait(200) == 0
    finally:
        run.kill()
        run.wait()
    frame = pd.read_parquet(output / "data")
    assert frame["row_id"].is_unique
    assert len(frame) == len(questions)
    wait_for(lambda: not cluster.machines())
