"""Lists the cluster's nodes, alive and draining, as Ray reports them now."""

from __future__ import annotations

import ray

Resources = dict[str, float]
"""Ray's names → amounts: CPU, GPU, accelerator_type:A100, …"""


def alive() -> dict[str, Resources]:
    """Node id → all its resources, in use or not."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return {node["NodeID"]: node["Resources"] for node in nodes if node["Alive"]}


def draining() -> set[str]:
    """Ids of nodes that will be taken away soon, as far as Ray knows."""
    try:
        # Ray 2.60 has no public call for it.
        from ray._private.state import state

        return set(state.get_draining_nodes())
    except (ImportError, AttributeError):
        return set()
