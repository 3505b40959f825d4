"""A replica as the driver sees it: its actor, how far its start is, and what it holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.rows import Prompt


@dataclass(slots=True, eq=False)
class Worker:
    """A replica."""

    name: str
    actor: Any = None
    placing: Any = None
    """Reference that is due once the actor has a process; None afterwards."""
    loading: Any = None
    """Reference that is due once the model is loaded; None before and afterwards."""
    node: str | None = None
    pid: int | None = None
    units: dict[Any, dict[str, Prompt]] = field(default_factory=dict)
    """Stream → its prompts that are not back, by row id, in the order of submission."""
    num_fed: int = 0
    """Units that its actor was ever given."""
    last_bucket: int | None = None
    start_at: float = 0.0
    deaths: int = 0
    """In a row, without a finished row in between."""
    heard_at: float = 0.0
    heard: bool = False
    """Whether it has finished a pass."""
    draining: bool = False

    @property
    def ready(self) -> bool:
        """Whether it may be given units."""
        up = self.actor is not None and self.placing is None and self.loading is None
        return up and not self.draining

    @property
    def state(self) -> str:
        """In a word; waiting: for the end of a pause, or for room on a node."""
        if self.actor is None or self.placing is not None:
            return "waiting"
        if self.loading is not None:
            return "starting"
        return "draining" if self.draining else "busy" if self.units else "idle"

    @property
    def references(self) -> list[Any]:
        """What the driver waits for."""
        return [ref for ref in (self.placing, self.loading, *self.units) if ref is not None]

    @property
    def num_held(self) -> int:
        """Prompts that are not back."""
        return sum(map(len, self.units.values()))

    @property
    def in_flight(self) -> list[Prompt]:
        """Prompts that are not back, in the order of submission."""
        return [prompt for prompts in self.units.values() for prompt in prompts.values()]
