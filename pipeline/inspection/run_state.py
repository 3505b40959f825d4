"""Dataclasses for a run's state, which `pipeline.inspection.status` reads and `lrd status` shows.

`lrd status --json` prints them with these field names.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipeline.output.lease import BEAT_SECONDS, LOST_AFTER

SILENT_SECONDS = BEAT_SECONDS * LOST_AFTER
"""A lease that was watched for so long without a change is silent."""

Liveness = Literal["ended", "dead", "beating", "silent", "unknown"]


@dataclass(frozen=True, slots=True)
class ShardState:
    """One result shard."""

    number: int
    state: Literal["whole", "retried", "open", "waiting"]
    """whole: written. retried: written, and its failed rows are being decoded again. open: some of
    its rows are in segments. waiting: none of it is on storage."""
    num_rows: int
    """Samples of its prompts."""
    num_done: int
    num_failed: int
    """Of those done."""


@dataclass(frozen=True, slots=True)
class DriverState:
    """The last driver, as its lease describes it."""

    state: Liveness
    """ended: it released the lease. dead: it ran on this machine and its process is gone. beating:
    the lease changed while it was watched. silent: the lease did not change for `SILENT_SECONDS`.
    unknown: not watched long enough."""
    host: str
    pid: int
    last_heartbeat: str
    """Time of its last beat in UTC by its own clock; do not compare it with another machine's."""
    progress: dict[str, Any]
    """`Progress.to_json()` at that beat; empty before there is any."""

    @property
    def over(self) -> bool:
        """Whether it has certainly ended."""
        return self.state in ("ended", "dead")


@dataclass(frozen=True, slots=True)
class RunState:
    """The state of a run."""

    uri: str
    created: str
    settings: dict[str, Any]
    num_samples: int
    """Rows of each prompt."""
    shards: list[ShardState]
    num_forwards: int
    """Of the rows in whole shards."""
    driver: DriverState | None
    """None where there is no lease, or it cannot be read."""
    events: list[dict[str, Any]]
    """The last ones, oldest first."""
    unreadable: list[str]
    """Files that cannot be read: segments and records, whose rows count as left, and the lease."""

    @property
    def num_rows(self) -> int:
        return sum(shard.num_rows for shard in self.shards)

    @property
    def num_done(self) -> int:
        return sum(shard.num_done for shard in self.shards)

    @property
    def num_failed(self) -> int:
        return sum(shard.num_failed for shard in self.shards)

    @property
    def num_whole(self) -> int:
        return sum(shard.state in ("whole", "retried") for shard in self.shards)

    @property
    def whole(self) -> bool:
        """Whether every shard is written."""
        return self.num_whole == len(self.shards)

    def to_json(self) -> dict[str, Any]:
        """All fields, and the totals."""
        totals = ("num_rows", "num_done", "num_failed", "num_whole")
        return {**{name: getattr(self, name) for name in totals}, **asdict(self)}
