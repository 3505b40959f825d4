"""Makes a new dataset of the rows of a run that are worth keeping.

Every rule reads the few columns that it needs, a batch at a time, and narrows down which rows are
kept (a byte a row); the rows that are left are then read once more with all their columns and
written. The same run and rules give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.parquet_batches import rows_at
from pipeline.scoring.stored_scores import read_evaluations, stored_tasks
from pipeline.selecting import duplicates, per_prompt
from pipeline.selecting.conversations import (
    MESSAGES,
    PREFERENCE,
    exchanges,
    messages,
    preferences,
)
from pipeline.selecting.new_dataset import new_dataset, write_shards
from pipeline.selecting.rules import Dropped, Rules
from pipeline.selecting.run_rows import Mask, RunRows, digest_of, read_correct, read_run_rows
from pipeline.selecting.selection import SELECTION, SelectedShard, Selection
from pipeline.selecting.where import Condition, keep_where
from pipeline.storage.storage import Storage
from pipeline.storage.uris import canonical

CHATS_AT_A_TIME = 1000

Tell = Callable[[str], None]
"""Called with the name of what is done next."""


def select(
    output: Storage,
    to: str,
    rules: Rules,
    *,
    task: str | None = None,
    partial: bool = False,
    on_step: Tell = lambda name: None,
) -> Selection:
    """Write the rows of a run that pass the rules to a new place; its record.

    to: a folder or URI that holds nothing yet. task: whose scores `correct` and `majority` read;
    the only one there is where None. partial: select from the finished shards of an unfinished run.
    Raises ValueError for a place, rule, expression or run that cannot be, where scores are missing
    or not those of the rows, and where no row is left; OSError where storage fails. Nothing is
    written then.
    """
    _check_place(output, to)
    rows = read_run_rows(output, partial)
    evaluations = read_evaluations(output)
    chooser = _Chooser(rows, rules, _scored_task(rows, rules, task), on_step)
    on_step("checking the run")
    rows.check_digests()
    chooser.choose()
    if not chooser.kept.any():
        counts = ", ".join(f"{step.rule} dropped {step.num_dropped}" for step in chooser.dropped)
        raise ValueError(f"{output.uri}: no row is left of {rows.num_rows}: {counts}")
    on_step("writing")
    with new_dataset(to) as place:
        schema, tables = _tables(rows, rules, chooser)
        shards = write_shards(place, schema, tables, _footer(rows, chooser))
        selection = Selection(
            form=rules.form,
            rules=chooser.dropped,
            num_rows=sum(num_rows for _, num_rows in shards),
            source={
                "created": rows.manifest.created,
                "settings": rows.manifest.settings,
                "fingerprint": rows.manifest.fingerprint,
            },
            num_shards=len(rows.shards),
            num_shards_planned=rows.num_shards_planned,
            evaluations=evaluations,
            shards=[SelectedShard(name, n, digest_of(place, name)) for name, n in shards],
        )
        place.write(SELECTION, selection.to_json())
    return selection


def _check_place(output: Storage, to: str) -> None:
    """Refuses a place that holds something, before all rows are read for nothing; what a killed
    selection left in a store is looked at when writing begins."""
    place = Storage(canonical(to))
    inside = (place.root + "/").startswith(output.root + "/")
    if inside and place.is_local == output.is_local:
        raise ValueError(f"{to}: is in the run's own folder; name one outside {output.uri}")
    if place.is_local:
        place.check_empty()
        place.check_writable()


def _scored_task(rows: RunRows, rules: Rules, task: str | None) -> str | None:
    """The task whose scores the rules need; None where they need none."""
    flag = "--correct" if rules.correct else "--majority"
    if not rules.correct and not rules.majority:
        return None
    stored = stored_tasks(rows.output)
    uri = rows.output.uri
    if task is not None and task not in stored:
        raise ValueError(f"{uri}: {flag} needs its scores; run lrd evaluate {uri} --task {task}")
    if not stored:
        raise ValueError(f"{uri}: {flag} needs its scores; run lrd evaluate {uri} --task NAME")
    if task is None and len(stored) > 1:
        raise ValueError(f"{uri}: has scores of {', '.join(stored)}; choose with --task")
    return task or stored[0]


class _Chooser:
    """Applies rules one after another."""

    def __init__(self, rows: RunRows, rules: Rules, task: str | None, on_step: Tell) -> None:
        """Raises ValueError for a rule that this run cannot have, before any row is read."""
        self._rows, self._rules, self._task, self._on_step = rows, rules, task, on_step
        if rules.best_of is not None:
            per_prompt.check_numbers(rows, rules.best_of)
        if rules.majority:
            per_prompt.comparable_answers(str(task))
        if rules.dedupe == "minhash":
            duplicates.bands(rules.threshold)
        self._condition = Condition(rules.where, rows.schema) if rules.where is not None else None
        self.kept: Mask = np.ones(rows.num_rows, np.bool_)
        self.best: Mask | None = None
        """Of the form `preference`: which kept rows are the better ones."""
        self.dropped: list[Dropped] = []

    def choose(self) -> None:
        """Apply all rules. Raises ValueError, as `select`."""
        rules, rows = self._rules, self._rows
        is_pairs = rules.form == "preference"
        correct = read_correct(rows, self._task) if self._task is not None else None
        self._apply("ok", _keep_ok)
        if rules.correct and correct is not None and not is_pairs:
            self._apply(f"correct ({self._task})", lambda _, kept: kept & correct)
        if self._condition is not None:
            self._apply(f"where {rules.where}", partial(keep_where, condition=self._condition))
        if rules.dedupe == "exact":
            self._apply("dedupe exact", duplicates.keep_distinct)
        elif rules.dedupe == "minhash":
            keep = partial(duplicates.keep_dissimilar, threshold=rules.threshold)
            self._apply(f"dedupe minhash at {rules.threshold:g}", keep)
        if is_pairs:
            self._choose_pairs(correct if rules.correct else None)
            return
        if rules.best_of is not None:
            keep = partial(per_prompt.keep_best, column=rules.best_of)
            self._apply(f"best of {rules.best_of}", keep)
        if rules.majority:
            keep = partial(per_prompt.keep_majority, task=str(self._task))
            self._apply(f"majority ({self._task})", keep)
        if rules.max_per_prompt is not None:
            keep = partial(per_prompt.keep_first, most=rules.max_per_prompt)
            self._apply(f"at most {rules.max_per_prompt} a prompt", keep)

    def _apply(self, name: str, keep: Callable[[RunRows, Mask], Mask]) -> None:
        self._on_step(name)
        before = int(np.count_nonzero(self.kept))
        self.kept = keep(self._rows, self.kept)
        self.dropped.append(Dropped(name, before, before - int(np.count_nonzero(self.kept))))

    def _choose_pairs(self, correct: Mask | None) -> None:
        self._on_step("preference")
        self.kept, self.best, dropped = per_prompt.keep_best_and_worst(
            self._rows, self.kept, correct, self._rules.best_of
        )
        self.dropped += dropped


def _keep_ok(rows: RunRows, kept: Mask) -> Mask:
    left = np.zeros_like(kept)
    for first, batch in rows.batches(["status"], kept):
        is_ok = pc.fill_null(pc.equal(batch["status"], "ok"), False)
        left[first : first + batch.num_rows] = is_ok.to_numpy(zero_copy_only=False)
    return left & kept


def _footer(rows: RunRows, chooser: _Chooser) -> dict[str, str]:
    """Entries of every shard's footer: those of the run's shards, and the rules."""
    return {**rows.footer, "lrd.selection": json.dumps([asdict(step) for step in chooser.dropped])}


def _tables(rows: RunRows, rules: Rules, chooser: _Chooser) -> tuple[pa.Schema, Iterator[pa.Table]]:
    """The columns of a form, and its rows."""
    if rules.form == "rows":
        return rows.schema, _whole_rows(rows, chooser.kept)
    found = exchanges(rows, chooser.kept)
    if rules.form == "messages":
        return MESSAGES, (messages(part) for part in _parts(found))
    best = chooser.best
    assert best is not None
    # Two kept rows a prompt, which follow each other.
    pairs = ((a, b) if best[a.number] else (b, a) for a, b in zip(found, found, strict=True))
    return PREFERENCE, (preferences(part) for part in _parts(pairs))


def _whole_rows(rows: RunRows, kept: Mask) -> Iterator[pa.Table]:
    for first, batch in rows.batches(rows.schema.names, kept):
        wanted = np.flatnonzero(kept[first : first + batch.num_rows]).tolist()
        yield rows_at(pa.Table.from_batches([batch]), wanted)


def _parts(items: Iterator[Any]) -> Iterator[list[Any]]:
    while part := list(islice(items, CHATS_AT_A_TIME)):
        yield part
