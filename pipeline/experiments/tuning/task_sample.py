"""The problems that every setting of a sweep decodes: sampled once, stored beside the results.

OUT/sample.json                       what the results in OUT have in common, written first
OUT/prompts/sample-00000-of-00001.parquet
"""

from __future__ import annotations

import json
import random
from typing import Any

import pyarrow as pa

from pipeline.config import RunConfig
from pipeline.input import input_files, prompt_shards
from pipeline.output import result_shards
from pipeline.parquet_batches import rows_at
from pipeline.storage.storage import Storage
from pipeline.storage.uris import child

FACTS = "sample.json"
FOLDER = "prompts"
FILE = f"{FOLDER}/sample-00000-of-00001.parquet"


def draw(output: Storage, config: RunConfig, task: str, limit: int, seed: int) -> str:
    """Make sure that `output` holds this sample; the folder of its prompts.

    limit: rows, all where the input has fewer. seed: of the draw.
    Raises ValueError where the input cannot be used or `output` holds something else; then nothing
    was written.
    """
    facts = {
        "task": task,
        "limit": limit,
        "sample_seed": seed,
        "input": config.input,
        **_common(config),
    }
    prompts = child(output.uri, FOLDER)
    if output.kind(FACTS) == "file":
        _check_same(output, json.loads(output.read(FACTS)), facts)
        if output.kind(FILE) == "file":
            return prompts
    elif output.kind() != "missing" and output.names():
        raise ValueError(f"{output.uri}: is not the folder of a sweep; name another --output")
    table = rows(config, limit, seed)
    output.write(FACTS, json.dumps(facts, indent=1).encode())
    output.write(FILE, result_shards.parquet_bytes(table))
    return prompts


def rows(config: RunConfig, limit: int, seed: int) -> pa.Table:
    """The drawn rows of the input, in its order."""
    inputs = prompt_shards.inspect(input_files.find(config.input), config.prompt_column)
    total = sum(file.num_rows for file in inputs.files)
    if not total:
        raise ValueError(f"{config.input}: has no rows")
    drawn = sorted(random.Random(seed).sample(range(total), min(limit, total)))
    tables, first = [], 0
    for file in inputs.files:
        here = [index - first for index in drawn if first <= index < first + file.num_rows]
        if here:
            tables.append(rows_at(inputs.read(file.name), here))
        first += file.num_rows
    return pa.concat_tables(tables)


def _common(config: RunConfig) -> dict[str, Any]:
    kept = {"model", "revision", "device", "dtype", "compile"}
    kept |= {"prompt_column", "prompt_format", "system_prompt", "truncation"}
    stops = {"stop": list(config.stop)} if config.stop else {}
    return {**config.model_dump(include=kept), **stops}


def _check_same(output: Storage, there: dict[str, Any], here: dict[str, Any]) -> None:
    differing = [
        f"{name} was {there.get(name)!r}, is {value!r}"
        for name, value in {"stop": None, **here}.items()
        if there.get(name) != value
    ]
    if differing:
        raise ValueError(
            f"{output.uri}: holds another sweep; {'; '.join(differing)}; name another --output"
        )
