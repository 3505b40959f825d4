"""What a run would do, before it does it: rows, lengths, buckets, padding, time.

Writes nothing and starts no Ray. Prompts go through the driver's own reader, so that what is
foretold of them is what will happen.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.config import RunConfig
from pipeline.input.reader import Reader
from pipeline.inspection.status import Inspector
from pipeline.output.ledger import Ledger, Plan
from pipeline.output.open_shard import OpenShard
from pipeline.output.run_folder import MANIFEST
from pipeline.preflight import Checked, fingerprint_of


@dataclass(slots=True)
class BucketRows:
    """Prompts of one bucket."""

    rows: int = 0
    num_tokens: int = 0
    """Of the prompts, all in all, as they will be decoded."""


@dataclass(slots=True)
class Forecast:
    """What the prompts that were looked at are like."""

    num_rows: int
    """Of the whole input."""
    num_seen: int = 0
    """Rows that were tokenised: all, or a sample."""
    lengths: Counter[int] = field(default_factory=Counter)
    """Prompts by their number of tokens, as they will be decoded."""
    refused: Counter[str] = field(default_factory=Counter)
    """Rows that cannot be decoded, by reason with numbers as N."""
    buckets: dict[int, BucketRows] = field(default_factory=dict)
    shards: list[Counter[int]] = field(default_factory=list)
    """Prompts seen of each shard, by bucket."""

    def padding(self, num_more: int = 0) -> float:
        """Share of the prompts' columns that hold nothing, 0 to 1; num_more: other columns of a
        slot, to be counted as full."""
        return padding(list(self.buckets.items()), num_more)


def forecast(
    run: Checked,
    config: RunConfig,
    sample: int | None = None,
    on_shard: Callable[[int], None] = lambda number: None,
) -> Forecast:
    """Tokenise the input, shard by shard; sample: so many rows of each at most.

    on_shard is told of every shard that has been looked at.
    """
    found = Forecast(sum(file.num_rows for file in run.files))
    reader = Reader(config, run.inputs, run.files, run.face, run.face.max_length)
    for number, file in enumerate(run.files):
        prompts = run.inputs.read(file.name, [config.prompt_column], sample)
        ready = reader.encode(OpenShard(number, prompts))
        found.num_seen += ready.shard.prompts.num_rows
        found.refused.update(
            re.sub(r"\d+", "N", error) for error in ready.failed["error"].to_pylist()
        )
        for prompt in ready.prompts:
            found.lengths[len(prompt.token_ids)] += 1
            bucket = found.buckets.setdefault(prompt.bucket, BucketRows())
            bucket.rows += 1
            bucket.num_tokens += len(prompt.token_ids)
        found.shards.append(Counter(prompt.bucket for prompt in ready.prompts))
        on_shard(number)
    reader.close()
    return found


def padding(buckets: list[tuple[int, BucketRows]], num_more: int = 0) -> float:
    """Share of columns that hold nothing, 0 to 1, as `Forecast.padding`."""
    held = sum((length + num_more) * bucket.rows for length, bucket in buckets)
    real = sum(bucket.num_tokens + num_more * bucket.rows for _, bucket in buckets)
    return 1 - real / held if held else 0.0


def check_output(run: Checked, config: RunConfig, dtype: str) -> Inspector | None:
    """What stands in the output; None where nothing does.

    Raises ValueError, as the run itself would, where that is another run, naming each
    difference, or no run at all.
    """
    is_new = run.output.kind(MANIFEST) == "missing"
    # Large weights take a while to digest, and a new run has nothing to compare them with.
    known = {} if is_new else fingerprint_of(config, run.files, dtype)
    Ledger(run.output, Plan(run.files, known, {}))
    return None if is_new else Inspector(run.output)


def rows_left(found: Forecast, inspector: Inspector | None) -> dict[int, float]:
    """Rows still to be decoded, by bucket, for the whole input.

    A shard that was sampled, or of which some rows are done, counts by its share.
    """
    shares = [1.0] * len(found.shards)
    if inspector is not None:
        states = inspector.look().shards
        shares = [1 - s.num_done / s.num_rows if s.num_rows else 0.0 for s in states]
    scale = found.num_rows / found.num_seen if found.num_seen else 0.0
    left: dict[int, float] = dict.fromkeys(found.buckets, 0.0)
    for share, by_bucket in zip(shares, found.shards, strict=True):
        for bucket, count in by_bucket.items():
            left[bucket] += share * count * scale
    return left
