"""Makes a dataset in the hub's layout from a finished run or a selection of one, and pushes it to
the hub.

    README.md                                the card (`pipeline/publishing/dataset_card.py`)
    data/train-00000-of-00012.parquet        rows that are ok, of shards that have any
    failed/failed-00000-of-00012.parquet     rows that failed, of shards that have any

The run is only read. One shard is in memory at a time; a local shard without failed rows becomes a
hard link instead of a copy.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial as bound
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.output.result_shards import parquet_bytes
from pipeline.output.run_folder import (
    check_digest,
    commit_name,
    finished_shards,
    read_commit,
    read_manifest,
    shard_stem,
)
from pipeline.output.run_records import Manifest, Shard
from pipeline.output.statistics import COUNTED, Counts
from pipeline.parquet_batches import read_table, rows_at
from pipeline.publishing.dataset_card import About, Facts, card
from pipeline.publishing.links import link_or_copy
from pipeline.publishing.selected import add_selection
from pipeline.scoring.stored_scores import read_evaluations
from pipeline.selecting.selection import holds_selection, read_selection
from pipeline.storage.storage import PARTIAL, Storage

REASONS = 10
"""Most reasons of failed rows that a card lists."""


class PushError(Exception):
    """The hub refused the dataset or could not be reached; the run is unchanged."""


def publish(
    output: Storage,
    folder: Path,
    about: About,
    *,
    partial: bool = False,
    on_shard: Callable[[int, int], None] = lambda done, planned: None,
) -> Facts:
    """Write the dataset into a folder, which is renamed once it is whole; its card's figures.

    output: a run's, or a dataset of `lrd select`.

    partial: publish the finished shards of a run that is not finished. on_shard: called with the
    numbers of shards done and planned.
    Raises ValueError where the folder exists or is in the output, there is no run, shards are
    missing or damaged; OSError where storage fails.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: exists already; name another folder or remove it")
    if output.is_local and folder.resolve().is_relative_to(Path(output.root).resolve()):
        raise ValueError(f"{folder}: is in the run's own folder; name one outside {output.uri}")
    if holds_selection(output):
        add = bound(add_selection, output, read_selection(output))
    else:
        manifest = read_manifest(output)
        add = bound(_add_run, output, manifest, *finished_shards(output, "publish", partial))
    beside = folder.with_name(f"{folder.name}.{os.getpid()}{PARTIAL}")
    (beside / "data").mkdir(parents=True)
    try:
        facts = add(beside, on_shard)
        (beside / "README.md").write_text(card(facts, about), encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return facts


def push(folder: Path, hub_id: str, *, public: bool = False) -> str:
    """Upload a published folder as one commit that replaces earlier data; the dataset's address.

    public: whether a new repository is public; an existing one is not changed. The token is
    huggingface_hub's: HF_TOKEN, else the stored login.
    Raises PushError with the reason.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi()
    try:
        address = api.create_repo(hub_id, repo_type="dataset", private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=hub_id,
            folder_path=folder,
            repo_type="dataset",
            commit_message="Published by lrd-pipeline",
            delete_patterns=["data/*", "failed/*"],
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise PushError(
            f"{hub_id}: the hub did not take it ({type(error).__name__}: {reason}); check the id, "
            "the connection, and HF_TOKEN or `hf auth login` for a token that may write there"
        ) from error
    return str(address)


def _add_run(
    output: Storage,
    manifest: Manifest,
    shards: list[Shard],
    planned: int,
    folder: Path,
    on_shard: Callable[[int, int], None],
) -> Facts:
    """Write a run's shards into the folder; the card's figures."""
    found = _Published()
    for done, shard in enumerate(shards, 1):
        _add_shard(output, shard, planned, folder, found)
        on_shard(done, planned)
    return found.facts(manifest, len(shards), planned, read_evaluations(output))


def _add_shard(
    output: Storage, shard: Shard, planned: int, folder: Path, found: _Published
) -> None:
    """Write one shard into the folder: whole, or split in two where rows of it failed."""
    name = shard.name
    content = output.read(name)
    digest = hashlib.sha256(content).hexdigest()
    check_digest(output, name, digest, read_commit(output, commit_name(shard.number)))
    file = pq.ParquetFile(pa.BufferReader(content))
    rows = file.read(columns=list(COUNTED))
    found.counts.add(rows)
    found.schema = found.schema or file.schema_arrow
    failed = pc.equal(rows["status"], "failed")
    num_failed = pc.sum(failed).as_py() or 0
    # `datasets` cannot open a Parquet file without rows, so none is written.
    if not num_failed:
        if rows.num_rows:
            link_or_copy(output, name, content, folder / name)
        return
    table = read_table(file)
    footer = {
        key.decode(): value.decode()
        for key, value in (file.metadata.metadata or {}).items()
        if key.startswith(b"lrd.")
    }
    (folder / "failed").mkdir(exist_ok=True)
    failures = f"failed/{shard_stem('failed', shard.number, planned)}.parquet"
    if num_failed < rows.num_rows:
        ok = pc.indices_nonzero(pc.invert(failed)).to_pylist()
        (folder / name).write_bytes(parquet_bytes(rows_at(table, ok), footer))
    bad = rows_at(table, pc.indices_nonzero(failed).to_pylist())
    (folder / failures).write_bytes(parquet_bytes(bad, footer))


@dataclass(slots=True)
class _Published:
    """What was published so far."""

    counts: Counts = field(default_factory=Counts)
    schema: pa.Schema | None = None

    def facts(
        self,
        manifest: Manifest,
        num_shards: int,
        num_shards_planned: int,
        evaluations: list[dict[str, Any]],
    ) -> Facts:
        """The card's figures."""
        assert self.schema is not None
        counts = self.counts
        return Facts(
            manifest=asdict(manifest),
            schema=self.schema,
            num_shards=num_shards,
            num_shards_planned=num_shards_planned,
            num_ok=counts.num_ok,
            num_failed=counts.num_failed,
            num_forwards=counts.num_forwards,
            most_forwards=counts.most_forwards,
            num_positions=counts.num_positions,
            num_output_tokens=counts.num_output_tokens,
            stop_reasons=dict(counts.stops.most_common()),
            errors=dict(counts.errors.most_common(REASONS)),
            evaluations=evaluations,
        )
