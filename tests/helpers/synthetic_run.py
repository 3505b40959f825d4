"""A run's folder made up from a seed: canvases, traces and events as a decoder would leave them.

For tests of what reads results; decodes nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lrd.models.checkpoint import TINY
from lrd.models.tokenizer import load_tokenizer
from pipeline.rows import RESULT_SCHEMA

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LENGTH, BLOCK = 64, 32
DECODING = {
    "gen_length": LENGTH,
    "block_length": BLOCK,
    "r_f": 0.15,
    "top_p": 0.9,
    "tau_refine": 0.1,
    "tau_decode": 0.05,
    "max_refine_steps": 20,
    "refinement": "initial",
    "early_stop": True,
    "stop_max_entropy": 0.1,
}
PROMPT = "Nina has {} pens & {} cups. How many <b>things</b> does she have?"


def write_run(
    folder: Path,
    shard_rows: Sequence[int] = (40, 40, 20),
    num_committed: int | None = None,
    failed_every: int = 17,
    seed: int = 0,
    **changes: Any,
) -> pa.Table:
    """Write a run; its committed rows, in order.

    num_committed: shards that are there, all without it. failed_every: each n-th row failed; 1:
    all did. changes: columns → values that every row has instead.
    """
    rng = np.random.default_rng(seed)
    tokenizer = load_tokenizer(TINY)
    num_committed = len(shard_rows) if num_committed is None else num_committed
    files = [
        {"name": f"p-{n}.parquet", "num_rows": m, "sha256": "0"} for n, m in enumerate(shard_rows)
    ]
    manifest = {
        "created": START.isoformat(),
        "fingerprint": {"version": "0", "model": "abc", "dtype": "float32", "input": {"p-0": "0"}},
        "settings": {
            "input": "in",
            "output": str(folder),
            "prompt_column": "question",
            "model": "tiny",
            "revision": None,
            "replicas": 2,
            "slots": 4,
            "decoding": DECODING,
        },
        "files": files,
    }
    (folder / ".run").mkdir(parents=True)
    (folder / "data").mkdir()
    (folder / ".run/manifest.json").write_text(json.dumps(manifest))
    is_whole = num_committed == len(shard_rows)
    events = [(0, "driver started")] + (
        [(60 * num_committed, "driver finished")] if is_whole else []
    )
    write_events(folder, events)
    shards = []
    for number, num_rows in enumerate(shard_rows[:num_committed]):
        rows = [_row(rng, tokenizer, number, n, failed_every) for n in range(num_rows)]
        shard = _table([{**row, **changes} for row in rows], rng)
        path = folder / f"data/train-{number:05d}-of-{len(shard_rows):05d}.parquet"
        pq.write_table(shard, path, row_group_size=16)
        written = (START + timedelta(seconds=60 * (number + 1))).timestamp()
        os.utime(path, (written, written))
        shards.append(shard)
    return pa.concat_tables(shards)


def write_events(folder: Path, events: Sequence[tuple[float, str]], **facts: Any) -> None:
    """events: seconds after `START`, and what happened."""
    lines = [
        json.dumps({"time": (START + timedelta(seconds=s)).isoformat(), "event": what, **facts})
        for s, what in events
    ]
    (folder / ".run/events.jsonl").write_text("\n".join(lines) + "\n")


def _table(rows: list[dict[str, Any]], rng: np.random.Generator) -> pa.Table:
    numbers = rng.integers(2, 40, (len(rows), 2)).tolist()
    prompts = [
        row.get("question", PROMPT.format(a, b)) for row, (a, b) in zip(rows, numbers, strict=True)
    ]
    columns = [pa.array([row.get(f.name) for row in rows], f.type) for f in RESULT_SCHEMA]
    schema = pa.schema([("question", pa.string()), *RESULT_SCHEMA])
    return pa.table([pa.array(prompts), *columns], schema=schema)


def _row(
    rng: np.random.Generator, tokenizer: Any, shard: int, index: int, failed_every: int
) -> dict[str, Any]:
    name = {"row_id": f"{shard:05d}-{index:08d}", "attempts": 1}
    if index % failed_every == failed_every - 1:
        error = f"the prompt has {500 + index} tokens, 448 fit"
        return {**name, "status": "failed", "stop_reason": "failed", "error": error, "attempts": 0}
    a, b = rng.integers(2, 40, 2).tolist()
    ids = tokenizer.encode(f"{a}+{b}={a + b}\n#### {a + b}", add_special_tokens=False)
    num_tokens = len(ids)
    text = tokenizer.decode(ids, skip_special_tokens=True)
    ids += [tokenizer.eos_token_id] * (LENGTH - num_tokens)
    commit, phases = _passes(rng)
    length = int(rng.integers(20, 60))
    return {
        **name,
        "status": "ok",
        "output_text": text,
        "output_token_ids": ids,
        "num_output_tokens": num_tokens,
        "num_prompt_tokens": length,
        "num_forwards": len(phases),
        "decode_steps": phases.count("d"),
        "refine_steps": phases.count("r"),
        "blocks": LENGTH // BLOCK,
        "stop_reason": ["complete", "converged", "eos"][index % 3],
        "open_at_stop": int(index % 3 == 1),
        "max_entropy_at_stop": 0.6 if index % 30 == 1 else 0.01,
        "refine_converged": True,
        "mean_mix_weight": 0.12,
        "kl_trace": _kl(rng, phases),
        "entropy_trace": _entropy(rng, phases),
        "commit_step": commit,
        "bucket": 32 if length <= 32 else 64,
        "seconds": 0.09 * len(phases),
        "replica": f"replica-{index % 2}",
    }


def _passes(rng: np.random.Generator) -> tuple[list[int], str]:
    """The pass that committed each position, and each pass's phase; blocks marked by case."""
    commit: list[int] = []
    phases = ""
    for _ in range(LENGTH // BLOCK):
        refining = int(rng.integers(1, 5))
        deciding = int(rng.integers(4, 16))
        first = len(phases) + refining
        block = rng.permutation(np.arange(BLOCK) % deciding) + first + 1
        commit += block.tolist()
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
