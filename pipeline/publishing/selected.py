"""Publishes a dataset of `lrd select`: its shards as they are, and a card that names its rules."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.output.statistics import COUNTED, Counts
from pipeline.publishing.dataset_card import Facts
from pipeline.publishing.links import link_or_copy
from pipeline.selecting.selection import AGAIN, Selection
from pipeline.storage.storage import Storage


def add_selection(
    output: Storage, selection: Selection, folder: Path, on_shard: Callable[[int, int], None]
) -> Facts:
    """Put the shards of a selection into a folder; the card's figures.

    Raises ValueError where one is missing or not as it was written.
    """
    counts, schema = Counts(), pa.schema([])
    for done, shard in enumerate(selection.shards, 1):
        try:
            content = output.read(shard.name)
        except FileNotFoundError as error:
            raise ValueError(f"{output.path(shard.name)}: is missing; {AGAIN}") from error
        if hashlib.sha256(content).hexdigest() != shard.sha256:
            raise ValueError(
                f"{output.path(shard.name)}: its bytes are not those of its record; {AGAIN}"
            )
        file = pq.ParquetFile(pa.BufferReader(content))
        schema = file.schema_arrow
        if set(COUNTED) <= set(schema.names):
            counts.add(file.read(columns=list(COUNTED)))
        link_or_copy(output, shard.name, content, folder / shard.name)
        on_shard(done, len(selection.shards))
    return Facts(
        manifest=selection.source,
        schema=schema,
        num_shards=selection.num_shards,
        num_shards_planned=selection.num_shards_planned,
        num_ok=selection.num_rows,
        num_failed=0,
        num_forwards=counts.num_forwards,
        most_forwards=counts.most_forwards,
        num_positions=counts.num_positions,
        num_output_tokens=counts.num_output_tokens,
        stop_reasons=dict(counts.stops.most_common()),
        errors={},
        evaluations=selection.evaluations,
        selection=selection,
    )
