"""Nodes that come, go, are drained, or start no replica: a simulated cluster of several."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import ray
from helpers.shards import distinct_questions, events, write_shards
from ray.cluster_utils import Cluster

from lrd import DecodingConfig
from pipeline.config import RunConfig
from pipeline.driver import Driver
from pipeline.observe.eta import Progress
from pipeline.replicas import nodes
from pipeline.replicas.fleet import STARTS_A_NODE, Actors
from pipeline.replicas.placement import place
from pipeline.replicas.replica import Replica, ReplicaSettings
from pipeline.run import generate

# Half a minute each, most of it Ray's own; `test_chaos.py` loses and adds nodes in every run.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture
def cluster(no_ray: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without cores, joined by this process."""
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    ray.init(
        address=found.address,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )
    # A pass takes long enough for a node to go meanwhile.
    slow = {"at": "replica.pass", "do": "slow", "seconds": 0.1}
    monkeypatch.setenv("LRD_FAULTS", json.dumps([slow]))
    yield found
    ray.shutdown()
    found.shutdown()


class OnCpu(Replica):
    """Set to use a GPU that the node only appears to have."""

    def __init__(self, name: str, settings: ReplicaSettings) -> None:
        super().__init__(name, replace(settings, device="cpu"))


def run(tmp_path: Path, act: Any, **settings: Any) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """A run during which `act(driver)` is called once, when some rows are done."""
    drivers: list[Driver] = []
    acted: list[bool] = []

    def watch(progress: Progress) -> None:
        if progress.num_done >= 10 and not acted:
            acted.append(True)
            act(drivers[0])

    actors = Actors(settings.pop("replica_class", Replica))
    config = RunConfig(
        input=str(tmp_path / "in"),
        output=str(tmp_path / "out"),
        slots=2,
        decoding=DecodingConfig.preset("fast", gen_length=32),
        **{"cpus_per_replica": 1.0, **settings},
    )
    summary = generate(config, watch, drivers.append, actors=actors)
    assert summary.num_failed == 0
    assert acted
    return pd.read_parquet(tmp_path / "out" / "data"), events(tmp_path / "out")


def test_a_drained_node_is_left(cluster: Cluster, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=1)
    write_shards(tmp_path / "in", distinct_questions(80, seed=31))
    drained: list[str] = []

    def drain(driver: Driver) -> None:
        node = driver.fleet.replicas[0].node
        assert node is not None
        drained.append(node)
        cluster.add_node(num_cpus=1)
        subprocess.run(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "drain-node"),
                *("--address", cluster.address, "--node-id", node),
                *(
                    "--reason",
                    "DRAIN_NODE_REASON_PREEMPTION",
                    "--deadline-remaining-seconds",
                    "600",
                ),
                *("--reason-message", "spot"),
            ],
            check=True,
            capture_output=True,
        )
        assert nodes.draining() == {node}

    frame, events = run(tmp_path, drain, replicas=1)
    kinds = [event["event"] for event in events]
    assert "replica drained" in kinds
    assert "replica retired" in kinds
    assert "replica died" not in kinds
    up = [event["node"] for event in events if event["event"] == "replica up"]
    assert up[0] == drained[0]
    assert up[1] != drained[0]
    assert frame["attempts"].max() == 1, "what was begun was finished"


def test_a_node_where_nothing_starts_is_avoided(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where one node cannot read the checkpoint."""
    cluster.add_node(num_cpus=1)
    bad = cluster.add_node(num_cpus=1).node_id
    write_shards(tmp_path / "in", distinct_questions(110, seed=31))
    rules = [
        {"at": "replica.start", "match": f"* on {bad}", "do": "raise", "error": "EACCES"},
        {"at": "replica.pass", "do": "slow", "seconds": 0.1},
    ]
    monkeypatch.setenv("LRD_FAULTS", json.dumps(rules))
    frame, events = run(tmp_path, lambda driver: None, replicas=2)
    assert frame["replica"].nunique() == 1
    died = [event for event in events if event["event"] == "replica died"]
    assert [event["node"] for event in died] == [bad] * STARTS_A_NODE
    assert all("Permission denied" in event["error"] for event in died)


def test_replicas_follow_the_cluster(cluster: Cluster, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=1)
    write_shards(tmp_path / "in", distinct_questions(110, seed=31))

    def grow(driver: Driver) -> None:
        assert len(driver.fleet.replicas) == 1
        node = cluster.add_node(num_cpus=1)
        # It goes again later, without notice.
        threading.Thread(target=lose, args=(driver, node), daemon=True).start()

    def lose(driver: Driver, node: Any) -> None:
        while sum(replica.state == "busy" for replica in driver.fleet.replicas) < 2:
            time.sleep(0.1)
        cluster.remove_node(node, allow_graceful=False)

    frame, events = run(tmp_path, grow)
    assert "replica-1" in [event.get("replica") for event in events]
    sizes = [event["wanted"] for event in events if event["event"] == "replicas"]
    assert sizes[0] == 2
    assert "node lost" in [event["event"] for event in events]
    assert frame["attempts"].max() == 2


def test_replicas_keep_to_gpus_of_their_type(cluster: Cluster, tmp_path: Path) -> None:
    gpu = {"num_cpus": 1, "num_gpus": 1}
    cluster.add_node(**gpu, resources={"accelerator_type:T4": 1})
    right = cluster.add_node(**gpu, resources={"accelerator_type:A100": 1}).node_id
    write_shards(tmp_path / "in", distinct_questions(40, seed=31))
    half = {"gpus_per_replica": 0.5, "accelerator_type": "A100", "dtype": "float32"}
    settings = RunConfig(input="in", output="out", cpus_per_replica=0.5, **half, replicas=3)
    with pytest.raises(ValueError, match="the cluster has 1 of type A100 on 1 nodes, room for 2"):
        place(settings, list(nodes.alive().values()))
    half["cpus_per_replica"] = 0.5
    _, events = run(tmp_path, lambda driver: None, **half, replica_class=OnCpu)
    up = [event for event in events if event["event"] == "replica up"]
    assert [event["node"] for event in up] == [right] * 2
    (started,) = [event for event in events if event["event"] == "driver started"]
    assert started["accelerator_type"] == "A100"
    assert (started["device"], started["replicas"], started["num_gpus"]) == ("cuda", 2, 0.5)
