"""When a run gives up: replicas that cannot start, that keep dying, that find no place.

Knows nothing of Ray or storage.
"""

from __future__ import annotations

from pipeline.suspects import Death

MAX_FAILED_STARTS = 3
"""Starts in a row that may fail before any replica has come up."""


class RunStoppedError(Exception):
    """The run cannot go on now; what is finished is safe and the same command continues."""


class Limits:
    """Counts what goes wrong; every call may raise RunStoppedError."""

    def __init__(self, max_restarts: int, start_seconds: float) -> None:
        """max_restarts: deaths in a row without a finished row. start_seconds: without a place."""
        self._max_restarts, self._start_seconds = max_restarts, start_seconds
        self._failed_starts = self._deaths_without_row = 0

    def row_finished(self) -> None:
        """Something goes well."""
        self._deaths_without_row = 0

    def died(self, death: Death, any_ready: bool) -> None:
        """A replica has died that no lost machine explains. any_ready: whether one ever started."""
        self._failed_starts += death.failed_start
        self._deaths_without_row += 1
        if not any_ready and self._failed_starts >= MAX_FAILED_STARTS:
            raise RunStoppedError(f"no replica could start: {death.reason}")
        if self._deaths_without_row > self._max_restarts:
            raise RunStoppedError(
                f"replicas died {self._deaths_without_row} times in a row without finishing "
                f"a row; the last: {death.reason}"
            )

    def homeless(self, seconds: float) -> None:
        """No replica has had a place on any node for so long."""
        if seconds > self._start_seconds:
            raise RunStoppedError(
                f"no machine had room for a replica for {self._start_seconds:g} s; see the "
                "cluster's autoscaler, or raise --start-seconds"
            )
