"""Settings → runs of the pipeline on one sample → outcomes of each, row by row.

    OUT/runs/DIGEST/                      a whole run of `lrd generate`, with its scores

A run that is finished and scored is not touched again, so an interrupted sweep can be continued,
and another grid into the same OUT adds to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from lrd import DecodingConfig
from pipeline.config import RunConfig
from pipeline.driver import Driver
from pipeline.experiments.paired import Outcomes
from pipeline.experiments.tuning.grid import run_name
from pipeline.output.result_shards import opened
from pipeline.output.run_folder import SCORES, finished_shards, read_manifest
from pipeline.output.statistics import COUNTED, Counts
from pipeline.run import generate
from pipeline.scoring.evaluate import evaluate
from pipeline.scoring.task import Task
from pipeline.storage.storage import Storage
from pipeline.storage.uris import child

RUNS = "runs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial(Outcomes):
    """The outcomes of one setting; `name` is its run's folder under OUT/runs."""

    config: DecodingConfig
    model_digest: str
    """Of the weights it was decoded with."""
    mean_seconds: float | None
    """Wall time of a decoded row in its slot, which it shares with the rows in the other slots;
    None where no row was decoded."""


def measure(
    config: RunConfig,
    sweep: Storage,
    task: Task,
    decoding: DecodingConfig,
    on_driver: Callable[[Driver], None] = lambda driver: None,
    reference_column: str | None = None,
) -> Trial:
    """Decode the sample under one setting, score it, read it back.

    config: the run's settings but for `decoding` and `output`, its input the sample's folder.
    Raises as `pipeline.run.generate` and `pipeline.scoring.evaluate.evaluate` do.
    """
    output = Storage(child(sweep.uri, f"{RUNS}/{run_name(decoding)}"))
    if not is_scored(output, task.name):
        settings = {**dict(config), "output": output.uri, "decoding": decoding}
        generate(RunConfig(**settings), on_driver=on_driver)
        evaluate(output, task, reference_column=reference_column)
    return read_trial(output, task.name)


def is_scored(output: Storage, task: str) -> bool:
    """Whether a run is finished and has scores, which are written after its last shard."""
    return output.kind(f"{SCORES}/{task}.parquet") == "file"


def all_trials(sweep: Storage, task: str) -> list[Trial]:
    """Every scored run of the sweep.

    Raises ValueError where the model changed between them.
    """
    folders = [Storage(child(sweep.uri, f"{RUNS}/{name}")) for name in sweep.folders(RUNS)]
    trials = [read_trial(folder, task) for folder in folders if is_scored(folder, task)]
    if len({trial.model_digest for trial in trials}) > 1:
        raise ValueError(
            f"{sweep.uri}: its runs are of models with different weights; name another --output"
        )
    return sorted(trials, key=lambda trial: trial.name)


def read_trial(output: Storage, task: str) -> Trial:
    """A scored run as outcomes."""
    manifest = read_manifest(output)
    shards, _ = finished_shards(output)
    columns = ["row_id", *COUNTED]
    results = pa.concat_tables([_read(output, shard.name, columns) for shard in shards])
    counts = Counts()
    counts.add(results)
    scores = _read(output, f"{SCORES}/{task}.parquet", ["row_id", "correct"])
    assert scores["row_id"].equals(results["row_id"]), "scores are of other rows"
    return Trial(
        name=output.root.rpartition("/")[2],
        correct=tuple(scores["correct"].to_pylist()),
        forwards=_counts(results["num_forwards"]),
        positions=_counts(results["positions_computed"]),
        num_unsure=counts.num_unsure_stops or 0,
        num_failed=counts.num_failed,
        config=DecodingConfig(**manifest.settings["decoding"]),
        model_digest=manifest.fingerprint["model"],
        mean_seconds=(counts.seconds or 0.0) / counts.num_ok if counts.num_ok else None,
    )


def _counts(column: pa.ChunkedArray) -> tuple[int, ...]:
    return tuple(count or 0 for count in column.to_pylist())


def _read(output: Storage, name: str, columns: list[str]) -> pa.Table:
    again = "delete the run's folder; the same command decodes and scores it again"
    with opened(output, name, again) as parquet:
        return parquet.read(columns=columns).replace_schema_metadata(None)
