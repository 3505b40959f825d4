"""A run's state as dataclasses: `pipeline.inspection.status` makes it, `lrd status` shows it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipeline.output.lease import BEAT_SECONDS, LOST_AFTER

SILENT_SECONDS = BEAT_SECONDS * LOST_AFTER
"""A lease that was watched for as long without a change is silent."""

Liveness = Literal["ended", "dead", "beating", "silent", "unknown"]


@dataclass(frozen=True, slots=True)
class ShardState:
    """One result shard."""

    number: int
    state: Literal["whole", "retried", "open", "waiting"]
    """whole: written. retried: written, and failed rows of it are being decoded again. open: rows
    of it are in segments. waiting: nothing of it is on storage."""
    num_rows: int
    num_done: int
    num_failed: int
    """Of those done."""


@dataclass(frozen=True, slots=True)
class DriverState:
    """The driver as its lease tells of it."""

    state: Liveness
    """ended: it said so. dead: it ran on this machine and its process is gone. beating: the lease
    changed while it was watched. silent: it did not for `SILENT_SECONDS`. unknown: not watched
    long enough."""
    host: str
    pid: int
    heard_at: str
    """By its own clock, UTC; not to be compared with another machine's."""
    progress: dict[str, Any]
    """`Progress.to_json()` as of then; empty before the first."""

    @property
    def over(self) -> bool:
        """Whether it surely is at work no more."""
        return self.state in ("ended", "dead")


@dataclass(frozen=True, slots=True)
class RunState:
    """Where a run stands."""

    uri: str
    created: str
    settings: dict[str, Any]
    shards: list[ShardState]
    num_forwards: int
    """Of the rows in whole shards."""
    driver: DriverState | None
    """None where no lease was ever written, or it cannot be read."""
    events: list[dict[str, Any]]
    """The last ones, oldest first."""
    unreadable: list[str]
    """Segments and records that cannot be read, whose rows count as left, and the lease."""

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
        """All of it, with the totals."""
        totals = ("num_rows", "num_done", "num_failed", "num_whole")
        return {**{name: getattr(self, name) for name in totals}, **asdict(self)}
