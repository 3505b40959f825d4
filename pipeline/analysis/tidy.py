"""Result rows → tables with a row a pass, and a row a canvas position."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.analysis.frames import require
from pipeline.report.samples import decoding_passes

PHASES = ("refinement", "decoding")
PASS_COLUMNS = (
    *("row_id", "kl_trace", "entropy_trace", "commit_step"),
    *("decode_steps", "refine_steps", "blocks"),
)
TOKEN_COLUMNS = (
    *("row_id", "output_token_ids", "commit_step", "token_confidence", "num_output_tokens"),
)


def traces(frame: pd.DataFrame) -> pd.DataFrame:
    """A row for every forward pass of every row that was decoded.

    `row_id`; `pass`, from 1; `phase`, refinement or decoding, missing where a schedule of more
    steps than tokens hides it; `kl`, D_t of Eq. 6 in nats, NaN in a block's first pass; `entropy`,
    mean of the open positions, nats; `num_committed`, positions that the pass committed.

    frame: of `load`, or some of its rows. Raises ValueError where it lacks a column.
    """
    require(frame, PASS_COLUMNS, "traces")
    rows = _decoded(frame, "kl_trace")
    kls = _arrays(rows["kl_trace"], np.float32)
    commits = _arrays(rows["commit_step"], np.int32)
    numbers = [len(kl) for kl in kls]
    steps = rows[["decode_steps", "refine_steps", "blocks"]].astype(object)
    phases = [
        _phases(commit, kl, *(None if pd.isna(n) else int(n) for n in facts))
        for commit, kl, facts in zip(commits, kls, steps.to_numpy(), strict=True)
    ]
    found = {
        "row_id": rows["row_id"].repeat(numbers).array,
        "pass": _joined([np.arange(1, n + 1, dtype=np.int32) for n in numbers], np.int32),
        "phase": pd.Categorical.from_codes(_joined(phases, np.int8), pd.Index(PHASES)),
        "kl": _joined(kls, np.float32),
        "entropy": _joined(_arrays(rows["entropy_trace"], np.float32), np.float32),
        "num_committed": _joined(
            [np.bincount(c, minlength=n + 1)[1:] for c, n in zip(commits, numbers, strict=True)],
            np.int32,
        ),
    }
    return pd.DataFrame(found)


def tokens(frame: pd.DataFrame, tokenizer: Any = None) -> pd.DataFrame:
    """A row for every canvas position of every row that was decoded.

    `row_id`; `position`, from 0; `token_id`; `text`, the token alone, where a tokenizer is given
    (anything with `decode([id])`; `tokenizer(OUT)` is the run's); `commit_step`, the pass that
    committed it, 0 for tokens that none did (fixed ones, EOS that filled the rest); `confidence`,
    its probability in that pass, NaN where the run stores none; `kept`, whether the position
    belongs to the answer, missing where results do not say it (an answer with fixed tokens in
    which an EOS ends a hole at its last position).

    frame: of `load`, or some of its rows. Raises ValueError where it lacks a column.
    """
    require(frame, TOKEN_COLUMNS, "tokens")
    rows = _decoded(frame, "output_token_ids")
    ids = _arrays(rows["output_token_ids"], np.int32)
    commits = _arrays(rows["commit_step"], np.int32)
    confidences = _arrays(rows["token_confidence"], np.float32)
    numbers = [len(row) for row in ids]
    token_ids = _joined(ids, np.int32)
    found: dict[str, Any] = {
        "row_id": rows["row_id"].repeat(numbers).array,
        "position": _joined([np.arange(n, dtype=np.int32) for n in numbers], np.int32),
        "token_id": token_ids,
    }
    if tokenizer is not None:
        texts = {number: tokenizer.decode([number]) for number in np.unique(token_ids).tolist()}
        found["text"] = [texts[number] for number in token_ids.tolist()]
    kept = _joined(
        list(map(_kept, commits, confidences, rows["num_output_tokens"].astype(int))), np.int8
    )
    return pd.DataFrame(
        {
            **found,
            "commit_step": _joined(commits, np.int32),
            "confidence": _joined(confidences, np.float32),
            "kept": pd.arrays.BooleanArray(kept == 1, kept < 0),
        }
    )


def _decoded(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """The rows that have a list in a column; failed ones have none."""
    return frame[frame[column].notna()]


def _arrays(column: pd.Series[Any], dtype: Any) -> list[npt.NDArray[Any]]:
    """Each row's list as an array; None in it is NaN."""
    return [np.asarray(values, dtype) for values in column]


def _joined(parts: list[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *parts]).astype(dtype)


def _phases(
    commit: npt.NDArray[np.int32], kl: npt.NDArray[np.float32], *facts: int | None
) -> npt.NDArray[np.int8]:
    """Index in `PHASES` of each pass, -1 where it is not known. facts: decode_steps, refine_steps
    and blocks."""
    decoding = decoding_passes(commit, kl, *facts)
    return np.full(len(kl), -1, np.int8) if decoding is None else decoding.astype(np.int8)


def _kept(
    commit: npt.NDArray[np.int32], confidence: npt.NDArray[np.float32], number: int
) -> npt.NDArray[np.int8]:
    """Which positions belong to an answer of `number` tokens: 1, or 0; -1 where it is not known.

    Where tokens were fixed, which have a confidence and no pass, the positions with a confidence
    are those of the answer and an EOS behind each hole's text; positions after such an EOS have
    none.
    """
    known = ~np.isnan(confidence)
    if not (known & (commit == 0)).any():
        return (np.arange(len(commit)) < number).astype(np.int8)
    within = known & np.append(known[1:], True)
    for found in (known, within):
        if found.sum() == number:
            return found.astype(np.int8)
    return np.full(len(commit), -1, np.int8)
