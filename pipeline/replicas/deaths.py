"""Finds the row that kills its replicas, and says when a run has to stop.

The rows in a replica's slots at its death are suspects, unless its node was lost. A group of
suspects is decoded by a replica that holds no other row. Each death halves the group, until the
row that causes it is in a group of one. Samples of one prompt kill alike, so they stay together:
where rows have several, a group of one is the samples of one prompt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from pipeline.rows import Prompt, Result

MAX_FAILED_STARTS = 3
"""Failed starts after which the run stops, while no replica has ever been up."""


@dataclass(frozen=True, slots=True)
class Death:
    """A replica's end, and what it held."""

    reason: str
    begun: list[Prompt]
    """Rows that were in its slots."""
    untouched: list[Prompt]
    """Rows that it held and that had no slot yet."""
    alone: bool
    """Whether it held samples of one prompt row and nothing else."""
    node: str | None
    failed_start: bool
    decide_at: float
    """Monotonic time until which its node may still turn out to be lost."""


@dataclass(slots=True)
class Verdict:
    """What was decided about deaths."""

    lost_nodes: list[str | None] = field(default_factory=list)
    freed: list[Prompt] = field(default_factory=list)
    """Rows that go back to be decoded as if nothing had happened."""
    given_up: list[tuple[Prompt, str]] = field(default_factory=list)
    """Rows to quarantine: alone at too many deaths, or samples of the same prompt as such a row.
    With the last reason."""
    blamed: list[Death] = field(default_factory=list)
    """Deaths that no lost node explains."""


def quarantined(prompt: Prompt, reason: str) -> Result:
    """The failed result of a row that is quarantined."""
    alone = "this row" if prompt.sample is None else "samples of this prompt"
    return Result.failed(
        prompt.row_id,
        f"{prompt.begun} replicas died with this row in a slot, {prompt.deaths_alone} of them "
        f"with {alone} alone; the last: {reason}",
        num_prompt_tokens=len(prompt.token_ids),
        bucket=prompt.bucket.prompt,
        attempts=prompt.begun,
    )


class Suspects:
    """Deaths to be decided, and groups of suspects that wait for an empty replica."""

    def __init__(self, max_attempts: int) -> None:
        """max_attempts: quarantine a row after this many deaths while alone."""
        self._max_attempts = max_attempts
        self._undecided: list[Death] = []
        self._groups: deque[list[Prompt]] = deque()
        self._poison: set[tuple[int, int]] = set()
        """Prompts (shard, index) of which samples were quarantined. Others of their samples are at
        the first death with them in a slot."""

    def __len__(self) -> int:
        return sum(map(len, self._groups))

    def died(self, death: Death) -> None:
        """Record a replica's death."""
        begun = [replace(prompt, begun=prompt.begun + 1) for prompt in death.begun]
        self._undecided.append(replace(death, begun=begun))

    def decide(self, now: float, is_gone: Callable[[str | None], bool]) -> Verdict:
        """Decide the deaths that can be decided now. is_gone: whether a node is known as lost."""
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
        """The next group of suspects, all of one bucket; empty where none waits."""
        return self._groups.popleft() if self._groups else []

    def put_back(self, group: Sequence[Prompt]) -> None:
        """Put back, first in the queue, a group whose trial something else cut short."""
        if group:
            self._groups.appendleft(list(group))

    def _suspect(self, death: Death) -> list[Prompt]:
        """Form new groups of a death's rows; the rows to quarantine."""
        begun = [
            replace(prompt, suspect=True, deaths_alone=prompt.deaths_alone + death.alone)
            for prompt in death.begun
        ]
        self._poison |= {p.row for p in begun if p.deaths_alone >= self._max_attempts}
        others = [prompt for prompt in begun if prompt.row not in self._poison]
        for bucket in dict.fromkeys(prompt.bucket for prompt in others):
            group = [prompt for prompt in others if prompt.bucket == bucket]
            rows = list(dict.fromkeys(prompt.row for prompt in group))
            first = set(rows[: len(rows) // 2])
            halves = [p for p in group if p.row in first], [p for p in group if p.row not in first]
            self._groups += [half for half in halves if half]
        return [prompt for prompt in begun if prompt.row in self._poison]


class RunStoppedError(Exception):
    """The run cannot go on now; what is finished is safe and the same command continues."""


class Limits:
    """Stops a run in which too much goes wrong; `died` and `unscheduled` raise RunStoppedError."""

    def __init__(self, max_restarts: int, start_seconds: float) -> None:
        """max_restarts: most deaths without a finished row in between. start_seconds: longest time
        in which no replica has a node."""
        self._max_restarts, self._start_seconds = max_restarts, start_seconds
        self._failed_starts = self._deaths_without_row = 0

    def row_finished(self) -> None:
        """A row has finished, so deaths are counted from zero again."""
        self._deaths_without_row = 0

    def died(self, death: Death, any_ready: bool) -> None:
        """A replica died and no lost node explains it. any_ready: whether one was ever up."""
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
        """No replica has been on any node for so many seconds. last_words: of a worker process,
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
