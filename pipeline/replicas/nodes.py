"""The cluster's nodes, as Ray knows them now.

Knows nothing of replicas.
"""

from __future__ import annotations

import ray

Resources = dict[str, float]
"""Ray's names → amounts: CPU, GPU, accelerator_type:A100, …"""


def alive() -> dict[str, Resources]:
    """Id → all that a node has, in use or not."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return {node["NodeID"]: node["Resources"] for node in nodes if node["Alive"]}


def draining() -> set[str]:
    """Ids of nodes that will be taken away, as far as Ray knows."""
    try:
        # No public call tells it in Ray 2.60.
        from ray._private.state import state

        return set(state.get_draining_nodes())
    except (ImportError, AttributeError):
        return set()
