"""Replays some rows of a finished run on the cluster, and stores the replays beside it.

Figures 2 and 5 need beliefs, which results do not hold. Each row is decoded again by actors with
a replica's resources, with its answer known; a row that comes out differently is left out and
counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from ray.util.actor_pool import ActorPool

from lrd import load_model
from lrd.prompts import encode_prompts, fit_prompt
from lrd.replay import Replay, replay
from pipeline.cluster import connect
from pipeline.config import RunConfig
from pipeline.output.result_shards import parquet_bytes
from pipeline.output.run_folder import read_run
from pipeline.replicas import nodes
from pipeline.replicas.placement import place
from pipeline.report.counting import count
from pipeline.report.samples import Row, read_rows
from pipeline.storage.model_files import local_model, model_for_workers, node_folder
from pipeline.storage.storage import Storage

BATCH_ROWS = 8
"""Rows that an actor replays together; whole beliefs are kept, so fewer than a replica decodes."""
SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("refine_steps", pa.int32()),
        ("is_same", pa.bool_()),
        ("kl_to_final", pa.list_(pa.float32())),
        ("nucleus_share", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True, slots=True)
class ReplayTask:
    """One row to replay."""

    row_id: str
    refine_steps: int
    prompt: list[int]
    final: list[int]


def replay_name(num_rows: int) -> str:
    """The file of a run's replays, in a folder that readers of results ignore."""
    return f".replays/{num_rows}-rows.parquet"


def read_replays(output: Storage, num_rows: int) -> pa.Table | None:
    """A run's replays; None where there are none yet."""
    name = replay_name(num_rows)
    if output.kind(name) == "missing":
        return None
    return pq.read_table(pa.BufferReader(output.read(name)))


def replay_run(config: RunConfig, num_rows: int) -> pa.Table:
    """Replay at most `num_rows` ok rows of a finished run, drawn by the digest of their ids, or
    read what was replayed before.

    Raises ValueError where there is nothing to replay.
    """
    output = Storage(config.output)
    there = read_replays(output, num_rows)
    if there is not None:
        return there
    rows = _rows(output, num_rows)
    connect(config)
    there_are = list(nodes.alive().values())
    placement = place(config, there_are)
    device, dtype, resources = placement.device, placement.dtype, placement.resources
    tasks = _tasks(config, rows, dtype)
    batches = [tasks[n : n + BATCH_ROWS] for n in range(0, len(tasks), BATCH_ROWS)]
    num_actors = min(len(batches), placement.size(there_are))
    threads = max(1, int(resources["num_cpus"]))
    actor: Any = ray.remote(Replayer).options(**resources)
    config = config.model_copy(update={"model": model_for_workers(config.model)})
    pool = ActorPool([actor.remote(config, device, dtype, threads) for _ in range(num_actors)])
    parts = pool.map(lambda one, batch: one.replay.remote(batch), batches)
    lines = [line for part in parts for line in part]
    table = pa.Table.from_pylist(lines, schema=SCHEMA)
    output.write(replay_name(num_rows), parquet_bytes(table))
    return table


class Replayer:
    """The actor: one model, as a replica has it."""

    def __init__(self, config: RunConfig, device: str, dtype: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._decoding = config.decoding
        model = node_folder(local_model(config.model))
        self._model = load_model(model, device, dtype, config.revision, config.compile)

    def replay(self, batch: Sequence[ReplayTask]) -> list[dict[str, Any]]:
        """Lines of `SCHEMA`."""
        prompts, finals = [task.prompt for task in batch], [task.final for task in batch]
        found = replay(self._model, self._decoding, prompts, finals)
        return [_line(task, one) for task, one in zip(batch, found, strict=True)]


def _line(task: ReplayTask, one: Replay) -> dict[str, Any]:
    return {
        "row_id": task.row_id,
        "refine_steps": task.refine_steps,
        "is_same": one.token_ids == task.final,
        "kl_to_final": one.kl_to_final,
        "nucleus_share": one.nucleus_share,
    }


def _rows(output: Storage, num_rows: int) -> list[Row]:
    run = read_run(output)
    _, chosen = count(run, 0)
    indices = chosen.curves[:num_rows]
    if not indices:
        raise ValueError(f"{output.uri}: no row was decoded, so there is nothing to replay")
    rows = read_rows(run, indices)
    return [rows[index] for index in indices]


def _tasks(config: RunConfig, rows: Sequence[Row], dtype: str) -> list[ReplayTask]:
    """Rows with their prompts' tokens, long prompts first, so that those of a batch have about one
    length."""
    face = load_model(local_model(config.model), "meta", dtype, config.revision)
    prompts = [row.facts["prompt"] for row in rows]
    encoded = encode_prompts(
        face, prompts, config.prompt_format, config.system_prompt, config.allow_special_tokens
    )
    room = face.max_length - config.decoding.gen_length
    tasks = []
    for row, ids in zip(rows, encoded, strict=True):
        if isinstance(ids, ValueError):
            raise ids
        prompt = fit_prompt(ids, room, config.truncation)
        facts = row.facts
        tasks.append(
            ReplayTask(facts["row_id"], facts["refine_steps"], prompt, row.token_ids.tolist())
        )
    return sorted(tasks, key=lambda task: -len(task.prompt))
