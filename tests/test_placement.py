"""Where replicas go: on simulated nodes, and on a cluster whose autoscaler adds them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.config import RunConfig
from pipeline.replicas.placement import Placement, place

HEAD = {"CPU": 0.0}
A100 = {"CPU": 96.0, "GPU": 8.0, "accelerator_type:A100": 1.0}
T4 = {"CPU": 4.0, "GPU": 1.0, "accelerator_type:T4": 1.0}
LAPTOP = {"CPU": 4.0}


def settings(**changes: Any) -> RunConfig:
    return RunConfig(input="in", output="out", **changes)


def placed(nodes: list[dict[str, float]], **changes: Any) -> Placement:
    return place(settings(**changes), nodes)


def test_without_settings_there_is_a_replica_a_gpu() -> None:
    nodes = [HEAD, A100, A100]
    found = placed(nodes)
    assert (found.device, found.dtype) == ("cuda", "bfloat16")
    assert found.resources == {"num_cpus": 8.0, "num_gpus": 1.0}
    assert [found.size(n) for n in (nodes, nodes[:2], nodes[:1], [*nodes, T4])] == [16, 8, 1, 16]


def test_without_gpus_there_is_one_replica_with_a_nodes_cores() -> None:
    found = placed([HEAD, LAPTOP, LAPTOP])
    assert (found.device, found.dtype) == ("cpu", "float32")
    assert found.resources == {"num_cpus": 4.0}, "not the cluster's: it has to fit on a node"
    assert found.size([LAPTOP] * 9) == 1
    assert placed([{"CPU": 96.0}]).resources == {"num_cpus": 8.0}
    assert placed([LAPTOP, LAPTOP], cpus_per_replica=1.5).size([LAPTOP] * 3) == 6


@pytest.mark.parametrize(
    ("nodes", "replicas", "share"),
    [
        ([LAPTOP], 4, 1.0),
        ([LAPTOP], 3, 1.3333),
        ([LAPTOP], 5, 0.8),
        ([LAPTOP, LAPTOP], 3, 2.0),
        ([LAPTOP, {"CPU": 1.0}], 2, 2.0),
        ([LAPTOP, {"CPU": 3.0}], 2, 3.0),
        ([LAPTOP, {"CPU": 3.0}], 7, 1.0),
    ],
)
def test_cores_are_shared_so_that_all_replicas_fit(
    nodes: list[dict[str, float]], replicas: int, share: float
) -> None:
    assert placed(nodes, replicas=replicas, device="cpu").resources == {"num_cpus": share}


def test_cores_of_a_head_without_gpus_are_nobodys() -> None:
    """By the cluster's sum each replica would be given 8 cores, and one of them fit."""
    found = placed([{"CPU": 64.0}, {"CPU": 8.0, "GPU": 8.0}])
    assert found.resources == {"num_cpus": 1.0, "num_gpus": 1.0}
    assert placed([A100, T4]).resources["num_cpus"] == 4.0, "every GPU can be used"
    assert placed([A100, T4], replicas=8).resources["num_cpus"] == 8.0


@pytest.mark.parametrize(
    ("gpus", "nodes", "room"),
    [
        (0.5, [A100], 16),
        (0.3, [T4, T4], 6),
        (0.6, [T4, T4], 2),  # Ray takes a share from one GPU, never from two.
        (0.25, [{"CPU": 3.0, "GPU": 1.0}], 4),
        (1, [A100, T4], 9),
    ],
)
def test_a_gpu_or_a_fraction_of_one(gpus: float, nodes: list[dict[str, float]], room: int) -> None:
    found = placed(nodes, gpus_per_replica=gpus)
    assert found.size(nodes) == found.room(nodes) == room
    assert found.resources["num_gpus"] == gpus
    placed(nodes, gpus_per_replica=gpus, replicas=room)
    with pytest.raises(ValueError, match=f"{room + 1} replicas with {gpus:g} GPUs each"):
        placed(nodes, gpus_per_replica=gpus, replicas=room + 1)


@pytest.mark.parametrize(
    ("nodes", "changes", "words"),
    [
        (
            [HEAD, A100, A100],
            {"replicas": 17},
            "17 replicas with 1 GPUs each need 17, the cluster has 16 on 2 nodes, room for 16; "
            "lower --replicas or --gpus-per-replica, or give --autoscale",
        ),
        (
            [T4, T4],
            {"replicas": 3, "gpus_per_replica": 0.6},
            "3 replicas with 0.6 GPUs each need 1.8, the cluster has 2 on 2 nodes, room for 2",
        ),
        (
            [T4],
            {"replicas": 2, "gpus_per_replica": 0.5, "cpus_per_replica": 3},
            "2 replicas with 3 CPUs each need 6, the cluster has 4 on 1 nodes, room for 1; "
            "lower --replicas or --cpus-per-replica",
        ),
        ([LAPTOP], {"device": "cuda"}, "1 replicas with 1 GPUs each need 1, the cluster has 0"),
        ([HEAD], {}, "the cluster has 0 on 0 nodes"),
        (
            [A100, T4],
            {"accelerator_type": "T4", "replicas": 2},
            "2 replicas with 1 GPUs each need 2, the cluster has 1 of type T4 on 1 nodes",
        ),
        (
            [A100, A100, T4],
            {"accelerator_type": "H100"},
            "accelerator_type H100: the cluster has A100 (16 GPUs), T4 (1 GPUs)",
        ),
        ([LAPTOP], {"accelerator_type": "A100"}, "the cluster has no GPU with a type"),
    ],
)
def test_what_has_no_room_is_refused_with_the_numbers(
    nodes: list[dict[str, float]], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError) as caught:
        placed(nodes, **changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_accelerator_type_keeps_replicas_to_its_nodes() -> None:
    nodes = [HEAD, A100, T4, T4]
    found = placed(nodes, accelerator_type="T4")
    assert found.device == "cuda"
    assert found.resources == {"num_cpus": 4.0, "num_gpus": 1.0, "accelerator_type": "T4"}
    assert (found.size(nodes), found.size([A100])) == (2, 1)


def test_with_an_autoscaler_replicas_may_wait_for_nodes_that_are_not_there() -> None:
    found = placed([HEAD], autoscale=True, replicas=16, device="cuda")
    assert found.size([HEAD]) == 16
    assert found.resources == {"num_cpus": 1.0, "num_gpus": 1.0}
    assert placed([HEAD, A100], autoscale=True, replicas=16).resources["num_cpus"] == 8.0
    assert placed([HEAD], autoscale=True, replicas=2, device="cpu").resources["num_cpus"] == 1.0
    typed = placed([HEAD], autoscale=True, replicas=2, accelerator_type="A100")
    assert (typed.device, typed.resources["accelerator_type"]) == ("cuda", "A100")
    with pytest.raises(ValueError, match="no GPU yet"):
        placed([HEAD], autoscale=True, replicas=2)
    with pytest.raises(ValueError, match="Ray knows no such type; it knows"):
        placed([HEAD, T4], autoscale=True, replicas=2, accelerator_type="a100")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gpus_per_replica": 1.5}, "gpus_per_replica 1.5: a replica computes on one GPU"),
        ({"gpus_per_replica": 2}, "give 1 or a fraction of one, and more --replicas"),
        ({"gpus_per_replica": 8}, "gpus_per_replica 8: a replica computes on one GPU"),
        ({"accelerator_type": "A100", "device": "cpu"}, "drop one of them"),
        ({"autoscale": True}, "autoscale needs replicas"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        settings(**changes)
