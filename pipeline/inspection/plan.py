"""Predicts what a run would do: its rows, prompt lengths, buckets, padding and time.

Writes nothing and does not start Ray. Prompts go through the driver's own reader, so the plan shows
what would happen to each of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.config import RunConfig
from pipeline.input.reader import Reader
from pipeline.inspection.pace import pace_of, seconds_for
from pipeline.inspection.status import Inspector
from pipeline.output.ledger import Ledger, Plan
from pipeline.output.open_shard import OpenShard
from pipeline.output.run_folder import MANIFEST, read_manifest
from pipeline.output.statistics import reason_of
from pipeline.preflight import Checked, fingerprint_of
from pipeline.rows import Bucket
from pipeline.storage.storage import Storage


@dataclass(slots=True)
class BucketRows:
    """Prompts of one bucket."""

    rows: int = 0
    num_tokens: int = 0
    """Sum over the prompts, as they will be decoded."""
    num_positions: int = 0
    """Sum over their own canvases."""


@dataclass(slots=True)
class Forecast:
    """Lengths and buckets of the prompts that were read, and the reasons why rows will fail."""

    num_rows: int
    """Of the whole input, like all figures here: prompts, however many samples each has."""
    num_samples: int = 1
    """Result rows of each prompt."""
    num_seen: int = 0
    """Rows that were tokenised: all, or the first of each shard."""
    lengths: Counter[int] = field(default_factory=Counter)
    """Prompts by their number of tokens, as they will be decoded."""
    refused: Counter[str] = field(default_factory=Counter)
    """Rows that cannot be decoded, by reason with numbers as N."""
    buckets: dict[Bucket, BucketRows] = field(default_factory=dict)
    shards: list[Counter[int]] = field(default_factory=list)
    """Prompts seen of each shard, by the prompt tokens of their bucket."""

    @property
    def largest(self) -> Bucket | None:
        """The bucket whose slots have the most positions; None where no prompt can be decoded."""
        return max(self.buckets, key=sum, default=None)

    def padding(self, bucket: Bucket | None = None, *, canvases: bool = False) -> float:
        """Share of padding among the prompt positions of slots, 0 to 1. canvases: also among those
        of their canvases. bucket: this one alone."""
        buckets = self.buckets if bucket is None else {bucket: self.buckets[bucket]}
        held = sum(rows.rows * (b.prompt + canvases * b.canvas) for b, rows in buckets.items())
        real = sum(r.num_tokens + canvases * r.num_positions for r in buckets.values())
        return 1 - real / held if held else 0.0


def forecast(
    run: Checked,
    config: RunConfig,
    sample: int | None = None,
    on_shard: Callable[[int], None] = lambda number: None,
) -> Forecast:
    """Tokenise the input, shard by shard. sample: at most so many rows of each.

    on_shard: called with the number of every shard that has been read.
    """
    found = Forecast(sum(file.num_rows for file in run.files), config.num_samples)
    reader = Reader(config, run.inputs, run.files, run.face, run.face.max_length, form=run.form)
    for number, file in enumerate(run.files):
        prompts = run.inputs.read(file.name, reader.columns, sample)
        ready = reader.encode(OpenShard(number, prompts))
        found.num_seen += ready.shard.prompts.num_rows
        found.refused.update(map(reason_of, ready.failed["error"].to_pylist()))
        for prompt in ready.prompts:
            found.lengths[len(prompt.token_ids)] += 1
            bucket = found.buckets.setdefault(prompt.bucket, BucketRows())
            bucket.rows += 1
            bucket.num_tokens += len(prompt.token_ids)
            bucket.num_positions += prompt.canvas_length
        found.shards.append(Counter(prompt.bucket.prompt for prompt in ready.prompts))
        on_shard(number)
    reader.close()
    return found


def check_output(run: Checked, config: RunConfig, dtype: str) -> Inspector | None:
    """The inspector of the run in the output; None where there is none.

    Raises ValueError, as the run itself would, where the output holds another run, naming each
    difference, or something that is not a run.
    """
    is_new = run.output.kind(MANIFEST) == "missing"
    # Large weights take a while to digest, and a new run has nothing to compare them with.
    known = {} if is_new else fingerprint_of(config, run.files, dtype, form=run.form)
    Ledger(run.output, Plan(run.files, known, {}))
    return None if is_new else Inspector(run.output)


def rows_left(found: Forecast, inspector: Inspector | None) -> dict[int, float]:
    """Result rows still to be decoded, by the prompt tokens of their bucket, for the whole input.

    A shard that was sampled, or of which some rows are done, counts by its share.
    """
    shares = [1.0] * len(found.shards)
    if inspector is not None:
        states = inspector.snapshot().shards
        shares = [1 - s.num_done / s.num_rows if s.num_rows else 0.0 for s in states]
    scale = found.num_samples * found.num_rows / found.num_seen if found.num_seen else 0.0
    left: dict[int, float] = {bucket.prompt: 0.0 for bucket in found.buckets}
    for share, by_bucket in zip(shares, found.shards, strict=True):
        for bucket, count in by_bucket.items():
            left[bucket] += share * count * scale
    return left


def expected_dtype(config: RunConfig, output: Storage) -> str:
    """The dtype of the run. What `auto` becomes depends on the cluster, so it is estimated: as in
    the run that the output holds, else as on a GPU."""
    if config.dtype != "auto":
        return config.dtype
    if output.kind(MANIFEST) == "file":
        return str(read_manifest(output).fingerprint["dtype"])
    return "float32" if config.device == "cpu" else "bfloat16"


@dataclass(frozen=True, slots=True)
class Duration:
    """How long the rows that are left will take."""

    seconds: float
    num_rows: float
    num_replicas: int
    source: str
    """The run whose pace was used."""
    differing: list[str]
    """Settings of its decoding that are not those planned: what they were there, and are here."""


def duration_of(
    config: RunConfig, left: dict[int, float], inspector: Inspector | None, like: str | None
) -> Duration | str:
    """How long the rows left will take, or a text that says why that is unknown.

    like: output of a run whose pace is used; None: that of the run that the output holds.
    """
    num_left = sum(left.values())
    if round(num_left) == 0:
        return "nothing is left to decode"
    own = config.output if inspector is not None else None
    source = own if like is None else like
    if source is None:
        return "unknown: nothing was decoded with these settings yet; --like OUT takes a run's pace"
    pace = pace_of(Storage(source))
    manifest = read_manifest(Storage(source))
    if pace is None and "seconds" not in manifest.layout.schema.names:
        return f"unknown: {source} keeps {manifest.layout.columns} columns, without seconds"
    if pace is None:
        return f"unknown: {source} has decoded no row yet"
    there = manifest.settings["decoding"]
    return Duration(
        seconds=seconds_for(left, pace, config.replicas),
        num_rows=num_left,
        num_replicas=config.replicas or pace.num_replicas,
        source=pace.source,
        differing=[
            f"{name} was {_plain(there[name])}, is {_plain(value)}"
            for name, value in config.decoding.model_dump().items()
            if name in there and there[name] != value
        ],
    )


def _plain(value: object) -> object:
    return "none" if value is None else value
