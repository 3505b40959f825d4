"""Rows that were in the slots of a replica when it died, until it is known which of them did it.

A death on a machine that is lost blames nobody. After any other the rows are tried again by a
replica that holds nothing else; each death halves the group; what stays in a group of one dies
alone. Knows nothing of Ray.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from pipeline.rows import Prompt, Result

MAX_FAILED_STARTS = 3
"""Starts in a row that may fail before any replica has come up."""


@dataclass(frozen=True, slots=True)
class Death:
    """A replica's end, and what it held."""

    reason: str
    begun: list[Prompt]
    """Rows that were in its slots."""
    untouched: list[Prompt]
    """Rows that it held beside them."""
    alone: bool
    """Whether the one row in its slot was all that it held."""
    node: str | None
    failed_start: bool
    decide_at: float
    """Monotonic time until which its node may still turn out to be lost."""


@dataclass(slots=True)
class Verdict:
    """What has been decided about deaths."""

    lost_nodes: list[str | None] = field(default_factory=list)
    freed: list[Prompt] = field(default_factory=list)
    """Rows that nobody blames."""
    given_up: list[tuple[Prompt, str]] = field(default_factory=list)
    """Rows that have died alone too often, with the last reason."""
    blamed: list[Death] = field(default_factory=list)
    """Deaths that no lost machine explains."""


def quarantined(prompt: Prompt, reason: str) -> Result:
    """What becomes of a row that is given up."""
    return Result.failed(
        prompt.row_id,
        f"{prompt.begun} replicas died with this row in a slot, {prompt.deaths_alone} of them "
        f"with this row alone; the last: {reason}",
        num_prompt_tokens=len(prompt.token_ids),
        bucket=prompt.bucket,
        attempts=prompt.begun,
    )


class Suspects:
    """Deaths that are not decided yet, and groups that wait for a replica of their own."""

    def __init__(self, max_attempts: int) -> None:
        """max_attempts: deaths alone after which a row is given up."""
        self._max_attempts = max_attempts
        self._undecided: list[Death] = []
        self._groups: deque[list[Prompt]] = deque()

    def __len__(self) -> int:
        return sum(map(len, self._groups))

    def died(self, death: Death) -> None:
        """A replica has died."""
        begun = [replace(prompt, begun=prompt.begun + 1) for prompt in death.begun]
        self._undecided.append(replace(death, begun=begun))

    def decide(self, now: float, is_gone: Callable[[str | None], bool]) -> Verdict:
        """Decide what can be decided. is_gone: whether a node is known to be lost."""
        verdict, undecided = Verdict(), []
        for death in self._undecided:
            if is_gone(death.node):
                verdict.lost_nodes.append(death.node)
                verdict.freed += death.begun
            elif now < death.decide_at:
                undecided.append(death)
            else:
                verdict.blamed.append(death)
                verdict.given_up += [(p, death.reason) for p in self._suspect(death)]
        self._undecided = undecided
        return verdict

    def take(self) -> list[Prompt]:
        """The next group, all of one bucket; empty where none waits."""
        return self._groups.popleft() if self._groups else []

    def put_back(self, group: Sequence[Prompt]) -> None:
        """A group that was taken and not tried to its end, through no fault of its own."""
        if group:
            self._groups.appendleft(list(group))

    def _suspect(self, death: Death) -> list[Prompt]:
        """Form new groups; the row that is given up, if it is."""
        begun = [replace(prompt, suspect=True) for prompt in death.begun]
        if death.alone:
            (prompt,) = begun
            prompt = replace(prompt, deaths_alone=prompt.deaths_alone + 1)
            if prompt.deaths_alone >= self._max_attempts:
                return [prompt]
            begun = [prompt]
        for bucket in dict.fromkeys(prompt.bucket for prompt in begun):
            group = [prompt for prompt in begun if prompt.bucket == bucket]
            half = len(group) // 2
            self._groups += [part for part in (group[:half], group[half:]) if part]
        return []


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

    def unscheduled(self, seconds: float, last_words: Callable[[], str | None]) -> None:
        """No replica has had a place on any node for so long. last_words: of a worker process,
        where one wrote any."""
        if seconds > self._start_seconds:
            if words := last_words():
                raise RunStoppedError(
                    f"no replica could start within {self._start_seconds:g} s; the last words of a "
                    f"worker process: {words}"
                )
            raise RunStoppedError(
                f"no machine had room for a replica for {self._start_seconds:g} s; see the "
                "cluster's autoscaler, or raise --start-seconds"
            )
