"""The driver's record of a replica: its actor, how far its start is, and the rows it holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.rows import Bucket, Key, Phase, Prompt


@dataclass(slots=True, eq=False)
class ReplicaHandle:
    """What the driver keeps of one replica."""

    name: str
    actor: Any = None
    scheduling: Any = None
    """Reference of `location`, ready once the actor runs on a node; None afterwards."""
    loading: Any = None
    """Reference of `load`, ready once the model is loaded; None before and afterwards."""
    node: str | None = None
    pid: int | None = None
    collecting: Any = None
    """Reference to its next report; None while it holds no prompt."""
    in_flight: dict[Key, Prompt] = field(default_factory=dict)
    """Prompts without a result yet, in the order in which they were given."""
    num_batches: int = 0
    """Batches that its actor was given."""
    num_passes: int = 0
    """Passes that its actor has reported."""
    num_canvases: int = 0
    """Canvases that its actor has computed in them."""
    pass_seconds: float = 0.0
    """How long these took."""
    phase: Phase = Phase.DECODING
    """What its passes were doing at the last report."""
    lacked_room: bool = False
    """Whether its last actor had no memory for one slot."""
    last_bucket: Bucket | None = None
    start_at: float = 0.0
    deaths: int = 0
    """Deaths since it last finished a row."""
    last_heartbeat: float = 0.0
    draining: bool = False

    @property
    def ready(self) -> bool:
        """Whether it may be given batches."""
        up = self.actor is not None and self.scheduling is None and self.loading is None
        return up and not self.draining

    @property
    def state(self) -> str:
        """waiting (for the end of a pause or room on a node), starting, idle, busy or draining."""
        if self.actor is None or self.scheduling is not None:
            return "waiting"
        if self.loading is not None:
            return "starting"
        return "draining" if self.draining else "busy" if self.in_flight else "idle"

    @property
    def references(self) -> list[Any]:
        """The Ray references for which the driver waits."""
        known = (self.scheduling, self.loading, self.collecting)
        return [reference for reference in known if reference is not None]
