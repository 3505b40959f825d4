"""The files of a run under its output folder: names, and what can be read from them alone.

    OUT/data/train-00000-of-00012.parquet   a committed shard: all its rows, in order
    OUT/.run/manifest.json                  written once: settings, fingerprint, plan
    OUT/.run/driver.json                    the lease of the driver that writes here
    OUT/.run/commits/00003.json             digest and counts of a shard, written before it
    OUT/.run/segments/00003/000001-….parquet  finished rows of a shard not committed yet
    OUT/.run/events.jsonl                   restarts, quarantines, starts and ends

Knows nothing of who writes them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from pipeline.storage.storage import Storage

MANIFEST = ".run/manifest.json"
EVENTS = ".run/events.jsonl"
COMMITS = ".run/commits"
SEGMENTS = ".run/segments"
NOT_REPLACED = "its rows were retried, and the shard that holds them was not written yet"


@dataclass(frozen=True, slots=True)
class Commit:
    """The record of a shard, written before the shard: what its file must hold."""

    sha256: str
    replaces: str | None
    """Digest of the file that was there before, which stays good until the new one is whole."""
    rows: int
    failed: int
    num_forwards: int
    num_output_tokens: int


def shard_name(number: int, num_shards: int) -> str:
    """A result shard's name under the output."""
    return f"data/{shard_stem('train', number, num_shards)}.parquet"


def shard_stem(split: str, number: int, num_shards: int) -> str:
    """`train-00003-of-00012`: as many digits as num_shards needs, so that names sort as numbers."""
    digits = max(5, len(str(num_shards)))
    return f"{split}-{number:0{digits}d}-of-{num_shards:0{digits}d}"


def commit_name(number: int) -> str:
    """The name of a shard's record under the output."""
    return f"{COMMITS}/{number:05d}.json"


def read_manifest(output: Storage) -> dict[str, Any]:
    """A run's manifest. Raises ValueError where the folder holds no run."""
    try:
        manifest: dict[str, Any] = json.loads(output.read(MANIFEST))
    except FileNotFoundError as error:
        raise ValueError(f"{output.uri}: holds no run; check the folder") from error
    except ValueError as error:
        raise ValueError(f"{output.path(MANIFEST)}: is no JSON ({error}); restore it") from error
    return manifest


def read_commits(output: Storage) -> dict[int, Commit]:
    """The records of shards by number; one that cannot be read counts as missing."""
    commits = {}
    for name in output.names(COMMITS):
        try:
            commits[int(name.removesuffix(".json"))] = Commit(
                **json.loads(output.read(f"{COMMITS}/{name}"))
            )
        except (ValueError, TypeError):
            continue
    return commits


def damage(output: Storage, name: str, commit: Commit) -> str | None:
    """What is wrong with a committed shard's bytes; None where nothing is."""
    try:
        digest = hashlib.sha256(output.read(name)).hexdigest()
    except FileNotFoundError:
        return f"{name}: is missing"
    if digest == commit.sha256:
        return None
    if digest == commit.replaces:
        return NOT_REPLACED
    return f"{name}: its bytes are not those that were written"
