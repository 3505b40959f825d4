"""What a result dataset holds, in a few numbers.

Knows nothing of runs: it reads the shards that are there.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.storage.storage import Storage

UNSURE_ENTROPY = 0.5
"""An early stop that committed a position above this entropy (nats) is called unsure."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a result dataset holds, counted from its files."""

    num_rows: int
    num_failed: int
    errors: dict[str, int]
    """Reasons of failed rows with their numbers as N, most frequent first."""
    num_forwards: int
    num_output_tokens: int
    stop_reasons: dict[str, int]
    num_unsure_stops: int
    """Early stops with an open position above `UNSURE_ENTROPY`."""


def summarize(output: Storage) -> Summary:
    """Count a result dataset, shard by shard, from its files alone."""
    columns = [
        "status",
        "error",
        "stop_reason",
        "num_forwards",
        "num_output_tokens",
        "max_entropy_at_stop",
    ]
    num_rows = num_forwards = num_output_tokens = num_unsure = 0
    errors: Counter[str] = Counter()
    stops: Counter[str] = Counter()
    for name in output.names("data"):
        with output.open(f"data/{name}") as source:
            table = pq.ParquetFile(source).read(columns=columns)
        num_rows += table.num_rows
        decoded = pc.equal(table["status"], "ok")
        ok, failed = table.filter(decoded), table.filter(pc.invert(decoded))
        for entry in failed["error"].value_counts().to_pylist():
            errors[re.sub(r"\d+", "N", entry["values"])] += entry["counts"]
        for entry in ok["stop_reason"].value_counts().to_pylist():
            stops[entry["values"]] += entry["counts"]
        num_forwards += pc.sum(ok["num_forwards"]).as_py() or 0
        num_output_tokens += pc.sum(ok["num_output_tokens"]).as_py() or 0
        unsure = pc.greater(ok["max_entropy_at_stop"], UNSURE_ENTROPY)
        num_unsure += pc.sum(unsure).as_py() or 0
    return Summary(
        num_rows=num_rows,
        num_failed=errors.total(),
        errors=dict(errors.most_common()),
        num_forwards=num_forwards,
        num_output_tokens=num_output_tokens,
        stop_reasons=dict(stops.most_common()),
        num_unsure_stops=num_unsure,
    )
