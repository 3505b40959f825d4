"""Reads the chosen rows in full, and tells refinement from decoding passes.

Memory: the chosen rows and one batch of a shard.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.input.prompt_text import prompts_of
from pipeline.output.result_shards import batches, with_nulls
from pipeline.output.run_records import Run
from pipeline.parquet_batches import rows_at
from pipeline.report.counting import RowIndex

BATCH_ROWS = 256
"""Rows read at a time: with canvases and traces of a thousand entries a few megabytes."""
FACTS = (
    *("row_id", "status", "error", "output_text", "stop_text"),
    *("num_output_tokens", "num_prompt_tokens"),
    *("num_forwards", "refine_steps", "decode_steps", "full_passes", "positions_computed"),
    *("blocks", "num_uncommits", "stop_reason", "open_at_stop"),
    *("max_entropy_at_stop", "mean_confidence", "min_confidence", "mean_mix_weight"),
    *("bucket", "seconds", "replica", "attempts"),
)
LISTS = ("output_token_ids", "kl_trace", "entropy_trace", "commit_step", "token_confidence")

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Row:
    """One result row. The arrays are empty where a failed row has none, or the run does not keep
    them."""

    facts: dict[str, Any]
    """The scalar columns, and as `prompt` the prompt: a text, a list of turns, or None."""
    token_ids: Ints
    kl: Floats
    """D_t of each pass, nats; NaN in a block's first."""
    entropy: Floats
    """Mean entropy of the open positions at each pass, nats."""
    commit_step: Ints
    """1-based pass that committed each position; 0 where none did."""
    fixed: list[int] = field(default_factory=list)
    """Positions of a template's fixed tokens."""

    @property
    def decoding_passes(self) -> npt.NDArray[np.bool_] | None:
        """Which passes belong to decoding, the others to refinement; None where it is not known."""
        names = ("decode_steps", "refine_steps", "blocks")
        return decoding_passes(self.commit_step, self.kl, *(self.facts[n] for n in names))


def decoding_passes(
    commit_step: Ints,
    kl: Floats,
    decode_steps: int | None,
    refine_steps: int | None,
    blocks: int | None,
) -> npt.NDArray[np.bool_] | None:
    """Which of a row's passes belong to decoding, the others to refinement; None where it is not
    known.

    A decode pass commits at least one position that stays, save under a schedule of more steps than
    tokens or where positions were opened again: there the phases can be distinguished only where
    refinement comes first and once. Not where the row began anew in a longer canvas, which its
    results show by a further pass without a D_t.
    """
    decoding = np.zeros(len(kl), bool)
    decoding[commit_step[commit_step > 0] - 1] = True
    if decoding.sum() == decode_steps:
        return decoding
    if refine_steps == 0:  # Passes whose tokens were all opened again are not in `commit_step`.
        return np.ones(len(kl), bool)
    began_once = blocks == 1 and np.isnan(kl).sum() <= 1
    if began_once and refine_steps is not None and not decoding[:refine_steps].any():
        later: npt.NDArray[np.bool_] = np.arange(len(kl)) >= refine_steps
        return later
    return None


def read_rows(run: Run, indices: Iterable[RowIndex]) -> dict[RowIndex, Row]:
    """The rows at these indices; ValueError where a shard is damaged."""
    wanted: dict[int, set[int]] = defaultdict(set)
    for index in indices:
        wanted[index.shard].add(index.row)
    prompt = run.settings.get("prompt_column", "prompt")
    rows = {}
    for shard, numbers in sorted(wanted.items()):
        first = 0
        name = run.shards[shard].name
        for batch in batches(run.output, name, [prompt, *FACTS, *LISTS], BATCH_ROWS):
            inside = sorted(n for n in numbers if first <= n < first + batch.num_rows)
            if inside:
                here = pa.Table.from_batches([with_nulls(batch, [*FACTS, *LISTS])])
                taken = rows_at(here, [n - first for n in inside])
                for number, row in zip(inside, _rows(taken, prompt), strict=True):
                    rows[RowIndex(shard, number)] = row
            first += batch.num_rows
    return rows


def _rows(batch: pa.Table, prompt: str) -> list[Row]:
    facts = batch.select(list(FACTS)).to_pylist()
    prompts = prompts_of(batch[prompt])
    return [
        Row(
            facts={**fact, "prompt": str(found) if isinstance(found, ValueError) else found},
            token_ids=_array(batch, "output_token_ids", n, np.int32),
            kl=_array(batch, "kl_trace", n, np.float32),
            entropy=_array(batch, "entropy_trace", n, np.float32),
            commit_step=_array(batch, "commit_step", n, np.int32),
            fixed=_fixed(batch, n),
        )
        for n, (fact, found) in enumerate(zip(facts, prompts, strict=True))
    ]


def _fixed(batch: pa.Table, row: int) -> list[int]:
    """Positions that no pass committed and that are sure all the same: where EOS filled the rest
    there is no confidence."""
    steps = _array(batch, "commit_step", row, np.int32)
    sure = _array(batch, "token_confidence", row, np.float32) == 1
    return np.flatnonzero((steps == 0) & sure).tolist() if len(steps) == len(sure) else []


def _array(batch: pa.Table, column: str, row: int, dtype: Any) -> npt.NDArray[Any]:
    """One row's list, a copy of its own; null entries are NaN, a null list is empty."""
    values = batch.column(column)[row].values
    if values is None:
        return np.empty(0, dtype)
    return np.array(values.to_numpy(zero_copy_only=False), dtype)
