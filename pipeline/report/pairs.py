"""Matches the rows of two runs by row id and prompt, counts how they differ, and chooses those that
are shown. Both runs are read once, a batch at a time."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from pipeline.input.prompt_text import prompts_of
from pipeline.output.result_shards import batches
from pipeline.output.run_records import Run
from pipeline.report.counting import RowIndex
from pipeline.report.samples import BATCH_ROWS
from pipeline.selecting.run_rows import Mask

COLUMNS = ("row_id", "status", "output_text", "num_forwards")
DIFFER, ONE_FAILED, SAME = "other answers", "failed in one", "same answer"
ORDER = (DIFFER, ONE_FAILED, SAME)


@dataclass(frozen=True, slots=True)
class RunRow:
    """What is compared of one result row."""

    index: RowIndex
    number: int
    """Among all rows of the run."""
    row_id: str
    is_ok: bool
    text: str | None
    num_forwards: int
    prompt: Any


@dataclass(frozen=True, slots=True)
class Pair:
    """A row of the first run and that of the same prompt in the second."""

    rows: tuple[RowIndex, RowIndex]
    why: str
    digest: bytes
    """Hash of the row id: its order makes the random sample."""


@dataclass(slots=True)
class PairCounts:
    """How the rows of two runs differ; pairs of figures are of the first and the second run."""

    only: list[int] = field(default_factory=lambda: [0, 0])
    """Rows that the other run does not have."""
    num_other_prompts: int = 0
    """Rows of one id with different prompts, which are not compared."""
    num_same: int = 0
    """Both ok, with equal texts."""
    num_differing: int = 0
    """Both ok, with different texts."""
    ok_alone: list[int] = field(default_factory=lambda: [0, 0])
    """Rows that are ok in this run and failed in the other."""
    num_failed: int = 0
    """Failed in both."""
    fewer: list[int] = field(default_factory=lambda: [0, 0])
    """Of those that are ok in both: rows that took fewer passes in this run."""
    right: dict[str, list[int]] = field(default_factory=dict)
    """Task → rows right in both, in the first alone, in the second alone, in none."""

    @property
    def num_compared(self) -> int:
        return self.num_same + self.num_differing + sum(self.ok_alone) + self.num_failed


def pair_up(
    runs: tuple[Run, Run], correct: dict[str, tuple[Mask, Mask]], num_shown: int
) -> tuple[PairCounts, list[Pair]]:
    """All counts, and the pairs that are shown: rows with other answers and, at most a fifth,
    those that failed in one run, then others; a random sample by the BLAKE2b digest of row_id.

    correct: which rows a task's scores call right, of tasks that both runs have.
    Raises ValueError where a shard is damaged or rows are not in the order of their ids.
    """
    counts = PairCounts(right={task: [0, 0, 0, 0] for task in correct})
    sizes = {DIFFER: num_shown, ONE_FAILED: max(1, num_shown // 5), SAME: num_shown}
    found: dict[str, list[Pair]] = {why: [] for why in sizes}
    for first, second in _matched(runs, counts):
        why = _compare(first, second, counts)
        for task, masks in correct.items():
            rights = masks[0][first.number], masks[1][second.number]
            counts.right[task][2 * (not rights[0]) + (not rights[1])] += 1
        if why is not None:
            digest = blake2b(first.row_id.encode(), digest_size=8).digest()
            found[why].append(Pair((first.index, second.index), why, digest))
            if len(found[why]) > 2 * sizes[why] + 100:
                found[why] = _smallest(found[why], sizes[why])
    failed = _smallest(found[ONE_FAILED], sizes[ONE_FAILED])
    shown = [*failed, *_smallest(found[DIFFER], num_shown - len(failed))]
    shown += _smallest(found[SAME], num_shown - len(shown))
    return counts, sorted(shown, key=lambda pair: (ORDER.index(pair.why), pair.rows))


def _smallest(pairs: Sequence[Pair], size: int) -> list[Pair]:
    return heapq.nsmallest(max(0, size), pairs, key=lambda pair: pair.digest)


def _matched(runs: tuple[Run, Run], counts: PairCounts) -> Iterator[tuple[RunRow, RunRow]]:
    """Rows of one id and one prompt; counts those that have no such row in the other run."""
    sides = [_rows(run) for run in runs]
    first, second = next(sides[0], None), next(sides[1], None)
    while first is not None and second is not None:
        if first.row_id == second.row_id:
            if first.prompt == second.prompt:
                yield first, second
            else:
                counts.num_other_prompts += 1
            first, second = next(sides[0], None), next(sides[1], None)
        elif first.row_id < second.row_id:
            counts.only[0] += 1
            first = next(sides[0], None)
        else:
            counts.only[1] += 1
            second = next(sides[1], None)
    for number, (side, row) in enumerate(zip(sides, (first, second), strict=True)):
        counts.only[number] += (row is not None) + sum(1 for _ in side)


def _rows(run: Run) -> Iterator[RunRow]:
    prompt = run.settings.get("prompt_column", "prompt")
    number, before = 0, ""
    for shard, file in enumerate(run.shards):
        inside = 0
        for batch in batches(run.output, file.name, [prompt, *COLUMNS], BATCH_ROWS):
            prompts = prompts_of(batch[prompt])
            columns = (batch[name].to_pylist() for name in COLUMNS)
            for (name, status, text, forwards), asked in zip(
                zip(*columns, strict=True), prompts, strict=True
            ):
                if name <= before:
                    raise ValueError(
                        f"{run.output.path(file.name)}: row {name} is not in the order of row "
                        "ids; lrd verify says more"
                    )
                before = name
                value = str(asked) if isinstance(asked, ValueError) else asked
                index = RowIndex(shard, inside)
                yield RunRow(index, number, name, status == "ok", text, forwards or 0, value)
                inside, number = inside + 1, number + 1


def _compare(first: RunRow, second: RunRow, counts: PairCounts) -> str | None:
    """Count a pair; why it may be shown, None where both failed."""
    if not first.is_ok and not second.is_ok:
        counts.num_failed += 1
        return None
    if first.is_ok != second.is_ok:
        counts.ok_alone[int(second.is_ok)] += 1
        return ONE_FAILED
    if first.num_forwards != second.num_forwards:
        counts.fewer[int(second.num_forwards < first.num_forwards)] += 1
    if first.text == second.text:
        counts.num_same += 1
        return SAME
    counts.num_differing += 1
    return DIFFER
