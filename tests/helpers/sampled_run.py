"""A finished run of several samples a prompt, written without a driver: tables, records, manifest.

Columns that a run of this version does not have yet (`sample`, `mean_confidence`) are added.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.output.result_shards import parquet_bytes
from pipeline.output.run_folder import MANIFEST, commit_name, shard_name
from pipeline.output.run_records import Commit, Manifest
from pipeline.rows import RESULT_SCHEMA, InputFile, row_id

Columns = dict[str, pa.Array]
ADDED = {"sample": pa.int32(), "mean_confidence": pa.float32()}


def write_sampled_run(
    folder: Path,
    num_prompts: int = 6,
    num_shards: int = 3,
    num_samples: int = 4,
    seed: int = 0,
    change: Callable[[int, Columns], Columns] = lambda shard, columns: columns,
    **settings: Any,
) -> Path:
    """Write a run of so many prompts a shard. Half of the answers are right, a tenth of the rows
    failed, confidences repeat. change: makes a shard's columns from those that it would have.
    settings: of the run. Scores are those of the task `word-problems`."""
    rng = np.random.default_rng(seed)
    folder.joinpath("data").mkdir(parents=True)
    folder.joinpath(".run", "commits").mkdir(parents=True)
    decoding = {"gen_length": 8, "temperature": 1.0}
    fingerprint = {"model": "m", "dtype": "float32", "decoding": decoding}
    if num_samples > 1:
        fingerprint["num_samples"] = num_samples
    for shard in range(num_shards):
        columns = change(shard, _columns(rng, shard, num_prompts, num_samples))
        table = pa.table(columns)
        content = bytes(parquet_bytes(table, {"lrd.fingerprint": json.dumps(fingerprint)}))
        folder.joinpath(shard_name(shard, num_shards)).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        commit = Commit(digest, None, table.num_rows, 0, 0, 0)
        folder.joinpath(commit_name(shard)).write_text(json.dumps(asdict(commit)))
    files = [InputFile(f"{n}.parquet", num_prompts, "0" * 64) for n in range(num_shards)]
    plain = {"model": "m", "input": "nowhere", "prompt_column": "question", "decoding": decoding}
    manifest = Manifest("2026-01-02T03:04:05+00:00", fingerprint, {**plain, **settings}, files)
    folder.joinpath(MANIFEST).write_text(json.dumps(asdict(manifest)))
    return folder


def _columns(rng: np.random.Generator, shard: int, num_prompts: int, num_samples: int) -> Columns:
    num_rows = num_prompts * num_samples
    prompts = np.repeat(np.arange(num_prompts), num_samples)
    samples = np.tile(np.arange(num_samples), num_prompts)
    truth = rng.integers(10, 99, num_prompts)[prompts]
    wrong = rng.integers(0, 3, num_rows) * (rng.random(num_rows) < 0.5)
    is_failed = rng.random(num_rows) < 0.1
    suffix = (lambda n: f"-{n}") if num_samples > 1 else (lambda n: "")
    pairs = zip(prompts.tolist(), samples.tolist(), strict=True)
    texts = [f"{t}+0={t + w}\n#### {t + w}" for t, w in zip(truth, wrong, strict=True)]
    given: dict[str, Any] = {
        "row_id": [row_id(shard, prompt) + suffix(sample) for prompt, sample in pairs],
        "sample": samples,
        "status": np.where(is_failed, "failed", "ok"),
        "error": [f"none of {n}" if failed else None for n, failed in enumerate(is_failed)],
        "output_text": [None if f else t for t, f in zip(texts, is_failed, strict=True)],
        "stop_reason": np.where(is_failed, "failed", "complete"),
        "mean_confidence": np.round(rng.random(num_rows), 1),
    }
    counts = ("num_output_tokens", "num_forwards", "full_passes", "positions_computed")
    given |= {name: rng.integers(1, 20, num_rows) for name in counts}
    kinds = {**dict(zip(RESULT_SCHEMA.names, RESULT_SCHEMA.types, strict=True)), **ADDED}
    columns = {
        "question": pa.array(
            [f"What is {t} and 0, number {shard} {p}?" for t, p in zip(truth, prompts, strict=True)]
        ),
        "answer": pa.array([str(t) for t in truth]),
    }
    for name, kind in kinds.items():
        values = given.get(name)
        columns[name] = pa.nulls(num_rows, kind) if values is None else pa.array(values).cast(kind)
    return columns
