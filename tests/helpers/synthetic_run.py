"""A run's folder generated from a seed: canvases, traces and events as a driver would leave them.

The ledger writes it, so that it is a run that a driver could have written; nothing is decoded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from helpers.runs import begun
from lrd import DecodingConfig
from lrd.models.checkpoint import fingerprint
from lrd.models.registry import TINY
from lrd.models.tokenizer import load_tokenizer
from pipeline.config import RunConfig
from pipeline.input.prompt_shards import PromptShards
from pipeline.output.ledger import Ledger
from pipeline.output.open_shard import OpenShard
from pipeline.output.run_folder import EVENTS, shard_name
from pipeline.output.run_records import Event
from pipeline.preflight import fingerprint_of
from pipeline.rows import Layout, Result, results_batch, split_id
from pipeline.storage.storage import Storage

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LENGTH, BLOCK = 64, 32
DECODING = DecodingConfig.preset("fast", gen_length=LENGTH, block_length=BLOCK, kv_cache="dual")
PROMPT = "Nina has {} pens & {} cups. How many <b>things</b> does she have?"
SHARD_SECONDS = 60
"""Between the times of two shards' files."""


def write_run(
    folder: Path,
    shard_rows: Sequence[int] = (40, 40, 20),
    num_committed: int | None = None,
    failed_every: int = 17,
    seed: int = 0,
    decoding: DecodingConfig = DECODING,
    layout: Layout = Layout(),  # noqa: B008 (it cannot be changed)
    **changes: Any,
) -> pa.Table:
    """Write a run, its prompts beside it; its committed rows, in order.

    num_committed: shards that are there, all without it. failed_every: each n-th row failed; 1:
    all did. changes: a column and its value in every row that has one, or a function that makes
    it from the row's number; columns that are not results are the input's.
    """
    rng = np.random.default_rng(seed)
    changes = {name: v if callable(v) else _always(v) for name, v in changes.items()}
    num_committed = len(shard_rows) if num_committed is None else num_committed
    events = [(0.0, "driver started")]
    if num_committed == len(shard_rows):
        events.append((SHARD_SECONDS * num_committed, "driver finished"))
    with _quickly():
        prompts = [_prompts(rng, n, changes) for n in shard_rows]
        ledger, inputs = _begun(folder, prompts, decoding, layout)
        for number, num_rows in enumerate(shard_rows[:num_committed]):
            shard = OpenShard(number, inputs.read(ledger.plan.files[number].name), layout)
            ledger.open(shard)
            rows = [
                _row(rng, layout.row_id(number, n), n, failed_every, changes)
                for n in range(num_rows * layout.num_samples)
            ]
            ledger.add(number, results_batch(rows))
            ledger.commit_complete()
        ledger.end()
    write_events(folder, events)
    paths = [folder / shard_name(n, len(shard_rows)) for n in range(num_committed)]
    for number, path in enumerate(paths, 1):
        written = (START + timedelta(seconds=SHARD_SECONDS * number)).timestamp()
        os.utime(path, (written, written))
    return pa.concat_tables([pq.ParquetFile(path).read() for path in paths])


def write_events(folder: Path, events: Sequence[tuple[float, str]], **facts: Any) -> None:
    """Events in place of the run's. events: seconds after `START`, and what happened."""
    told = [Event(START + timedelta(seconds=s), what, facts) for s, what in events]
    lines = [json.dumps(event.to_json()) for event in told]
    (folder / EVENTS).write_text("\n".join(lines) + "\n")


@contextmanager
def _quickly() -> Iterator[None]:
    """A driver's clock that stands at `START`, small row groups, and no wait for rivals."""
    with (
        patch("pipeline.output.ledger._now", lambda: START),
        patch("pipeline.output.result_shards.ROW_GROUP_ROWS", 16),
        patch("pipeline.output.lease.LOCAL_SETTLE_SECONDS", 0),
    ):
        yield


def _begun(
    folder: Path, prompts: list[pa.Table], decoding: DecodingConfig, layout: Layout
) -> tuple[Ledger, PromptShards]:
    source = Path(f"{folder}-prompts")
    config = RunConfig(
        input=str(source),
        output=str(folder),
        prompt_column="question",
        replicas=2,
        slots=4,
        num_samples=layout.num_samples,
        columns=layout.columns,
        decoding=decoding,
    )
    with patch("pipeline.preflight.fingerprint", lambda model, revision, on_bytes: _tiny()[1]):
        return begun(
            Storage(str(folder)),
            source,
            prompts,
            "question",
            lambda files: fingerprint_of(config, files, "float32"),
            config.model_dump(),
        )


@cache
def _tiny() -> tuple[Any, str]:
    """The embedded model's tokenizer and fingerprint."""
    return load_tokenizer(TINY), fingerprint("tiny")


def _always(value: Any) -> Any:
    return lambda row: value


def _prompts(rng: np.random.Generator, num_rows: int, changes: dict[str, Any]) -> pa.Table:
    numbers = rng.integers(2, 40, (num_rows, 2)).tolist()
    columns: dict[str, list[Any]] = {"question": [PROMPT.format(a, b) for a, b in numbers]}
    names = [name for name in changes if name not in Result.__dataclass_fields__]
    columns |= {name: [changes[name](n) for n in range(num_rows)] for name in names}
    return pa.table({name: pa.array(texts, pa.string()) for name, texts in columns.items()})


def _row(
    rng: np.random.Generator, name: str, index: int, failed_every: int, changes: dict[str, Any]
) -> Result:
    if index % failed_every == failed_every - 1:
        error = f"the prompt has {500 + index} tokens, 448 fit"
        if "error" in changes:
            error = changes["error"](index)
        return Result.failed(name, error, num_prompt_tokens=500 + index)
    tokenizer, _ = _tiny()
    a, b = rng.integers(2, 40, 2).tolist()
    ids = tokenizer.encode(f"{a}+{b}={a + b}\n#### {a + b}", add_special_tokens=False)
    num_tokens = len(ids)
    text = tokenizer.decode(ids, skip_special_tokens=True)
    ids += [tokenizer.eos_token_id] * (LENGTH - num_tokens)
    own = {name: value(index) for name, value in changes.items()}
    commit, phases = _passes(rng, own.get("num_forwards"))
    length = int(rng.integers(20, 60))
    num_full = sum(_starts(phases))
    values = {
        "row_id": name,
        "sample": split_id(name)[2] or 0,
        "status": "ok",
        "output_text": text,
        "output_token_ids": ids,
        "num_output_tokens": num_tokens,
        "canvas_length": LENGTH,
        "num_prompt_tokens": length,
        "num_forwards": len(phases),
        "decode_steps": phases.count("d"),
        "refine_steps": phases.count("r"),
        "full_passes": num_full,
        "positions_computed": num_full * (length + LENGTH) + (len(phases) - num_full) * BLOCK,
        "blocks": LENGTH // BLOCK,
        "num_uncommits": 0,
        "stop_reason": ["complete", "converged", "eos"][index % 3],
        "open_at_stop": int(index % 3 == 1),
        "max_entropy_at_stop": 0.6 if index % 30 == 1 else 0.01,
        "refine_converged": True,
        "token_confidence": [0.9] * (num_tokens + 1) + [None] * (LENGTH - num_tokens - 1),
        "mean_confidence": 0.9,
        "min_confidence": 0.9,
        "mean_mix_weight": 0.12,
        "kl_trace": _kl(rng, phases),
        "entropy_trace": _entropy(rng, phases),
        "commit_step": commit,
        "bucket": 32 if length <= 32 else 64,
        "seconds": 0.09 * len(phases),
        "replica": f"replica-{index % 2}",
        "attempts": 1,
    }
    results = {k: v for k, v in own.items() if k in Result.__dataclass_fields__ and k != "error"}
    return Result(**{**values, **results})


def _passes(rng: np.random.Generator, num_passes: int | None) -> tuple[list[int], str]:
    """The pass that committed each position, and each pass's phase: r or d.

    num_passes: how many there are in all; drawn without it.
    """
    commit: list[int] = []
    phases = ""
    for block in range(LENGTH // BLOCK):
        refining = int(rng.integers(1, 5))
        deciding = int(rng.integers(4, 16))
        if num_passes is not None:
            refining, deciding = 2, (num_passes + block) // 2 - 2
        first = len(phases) + refining
        steps = rng.permutation(np.arange(BLOCK) % deciding) + first + 1
        commit += steps.tolist()
        phases += "r" * refining + "d" * deciding
    return commit, phases


def _starts(phases: str) -> list[bool]:
    """Whether each pass is its block's first."""
    return [phase == "r" and phases[n - 1 : n] != "r" for n, phase in enumerate(phases)]


def _kl(rng: np.random.Generator, phases: str) -> list[float | None]:
    values = 0.5 * np.exp(-0.25 * np.arange(len(phases))) * rng.lognormal(0, 0.7, len(phases))
    return [None if s else float(v) for s, v in zip(_starts(phases), values, strict=True)]


def _entropy(rng: np.random.Generator, phases: str) -> list[float]:
    values = 2.5 * np.exp(-0.06 * np.arange(len(phases))) * rng.lognormal(0, 0.2, len(phases))
    return [float(v) for v in values]
