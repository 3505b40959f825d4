"""Chooses device, dtype, number of replicas and the resources of each, from settings and nodes.

Counts node by node: a replica is on one machine, and a fraction of a GPU is on one GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray.util.accelerators import accelerators

from pipeline.config import MOST_CPUS, RunConfig
from pipeline.replicas.nodes import Resources

TYPE = "accelerator_type:"
"""Prefix of Ray's resource that names a node's GPU type."""
CPU_UNITS = 10_000
"""Parts of a CPU; Ray counts no finer."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where replicas go."""

    device: str
    dtype: str
    resources: dict[str, Any]
    """Resources of one replica, as options of a Ray actor."""
    replicas: int | None
    """None: as many as there is room for, now and later."""

    def size(self, nodes: Sequence[Resources]) -> int:
        """How many replicas to start on these nodes; at least one, so that an autoscaler sees
        demand."""
        return self.replicas or max(1, self.room(nodes))

    def room(self, nodes: Sequence[Resources]) -> int:
        """How many replicas fit on these nodes."""
        return sum(_fitting(node, **self.resources) for node in nodes)


def place(config: RunConfig, nodes: Sequence[Resources]) -> Placement:
    """The placement of a run on a cluster of these nodes.

    Raises ValueError with the numbers where the replicas do not fit and no autoscaler adds nodes.
    """
    device = _device(config, nodes)
    dtype = config.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    resources: dict[str, Any] = {}
    if device == "cuda":
        resources["num_gpus"] = config.gpus_per_replica
    if config.accelerator_type is not None:
        resources["accelerator_type"] = _known_type(config, nodes)
    replicas = config.replicas
    if replicas is None and device == "cpu" and config.cpus_per_replica is None:
        replicas = 1
    cpus = config.cpus_per_replica
    if cpus is None:
        cpus = _cpu_share(nodes, resources, replicas, config.autoscale)
    placement = Placement(device, dtype, {"num_cpus": cpus, **resources}, replicas)
    if not config.autoscale:
        _check_room(placement, nodes)
    return placement


def _device(config: RunConfig, nodes: Sequence[Resources]) -> str:
    if config.device != "auto":
        return config.device
    if config.accelerator_type is not None or any(node.get("GPU") for node in nodes):
        return "cuda"
    if config.autoscale:
        raise ValueError(
            "the cluster has no GPU yet, and with --autoscale some may come; say --device cuda, "
            "or --device cpu"
        )
    return "cpu"


def _known_type(config: RunConfig, nodes: Sequence[Resources]) -> str:
    """The GPU type of the settings; ValueError where no node has it, now or later."""
    wanted = str(config.accelerator_type)
    if any(TYPE + wanted in node for node in nodes):
        return wanted
    if config.autoscale:
        makers = ("NVIDIA", "AMD")
        known = {value for name, value in vars(accelerators).items() if name.startswith(makers)}
        if wanted in known:
            return wanted
        raise ValueError(
            f"accelerator_type {wanted}: no node has it and Ray knows no such type; it knows "
            + ", ".join(sorted(known))
        )
    gpus: dict[str, float] = {}
    for node in nodes:
        for name in node:
            if name.startswith(TYPE):
                kind = name.removeprefix(TYPE)
                gpus[kind] = gpus.get(kind, 0.0) + node.get("GPU", 0.0)
    there = ", ".join(f"{kind} ({count:g} GPUs)" for kind, count in sorted(gpus.items()))
    raise ValueError(f"accelerator_type {wanted}: the cluster has {there or 'no GPU with a type'}")


def _cpu_share(
    nodes: Sequence[Resources], resources: dict[str, Any], replicas: int | None, autoscale: bool
) -> float:
    """The most CPUs for each replica with which all fit. Where an autoscaler adds nodes: with which
    all GPUs of today's nodes can be used."""
    usable = [node for node in nodes if _fitting(node, 0.0, **resources)]
    if autoscale and ("num_gpus" not in resources or not usable):
        return 1.0
    places = sum(_fitting(node, 0.0, **resources) for node in usable)
    wanted = places if replicas is None or autoscale else min(replicas, places)
    sizes = {node.get("CPU", 0.0) for node in usable}
    shares = {min(MOST_CPUS, size / n) for size in sizes for n in range(1, int(wanted) + 1)}
    for share in sorted(shares, reverse=True):
        share = math.floor(share * CPU_UNITS + 1e-6) / CPU_UNITS
        if sum(_fitting(node, share, **resources) for node in usable) >= wanted:
            return share
    return 0.0


def _fitting(
    node: Resources,
    num_cpus: float,
    num_gpus: float | None = None,
    accelerator_type: str | None = None,
) -> int:
    """How many replicas with these resources fit on a node."""
    if accelerator_type is not None and TYPE + accelerator_type not in node:
        return 0
    counts = []
    if num_gpus is not None:
        gpus = node.get("GPU", 0.0)
        counts.append(int(gpus) * int(1 / num_gpus + 1e-9))
    if num_cpus or num_gpus is None:
        cpus = node.get("CPU", 0.0)
        counts.append(int(cpus / max(num_cpus, 1 / CPU_UNITS) + 1e-6))
    return min(counts)


def _check_room(placement: Placement, nodes: Sequence[Resources]) -> None:
    wanted, room = placement.replicas or 1, placement.room(nodes)
    if room >= wanted:
        return
    resources = placement.resources
    by_gpus = sum(_fitting(node, **{**resources, "num_cpus": 0.0}) for node in nodes)
    kind, share, flag = "CPU", resources["num_cpus"], "--cpus-per-replica"
    if "num_gpus" in resources and by_gpus < wanted:
        kind, share, flag = "GPU", resources["num_gpus"], "--gpus-per-replica"
    name = resources.get("accelerator_type")
    usable = [node for node in nodes if name is None or TYPE + name in node]
    usable = [node for node in usable if node.get(kind)]
    there = sum(node[kind] for node in usable)
    raise ValueError(
        f"{wanted} replicas with {share:g} {kind}s each need {wanted * share:g}, the cluster has "
        f"{there:g}{f' of type {name}' if name else ''} on {len(usable)} nodes, room for {room}; "
        f"lower --replicas or {flag}, or give --autoscale where machines are added on demand"
    )
