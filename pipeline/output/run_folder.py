"""Reads a run's folder: the names of its files, and a checked reader for each of them.

    OUT/data/train-00000-of-00012.parquet   a committed shard: all its rows, in order
    OUT/.run/manifest.json                  written once: settings, fingerprint, plan
    OUT/.run/driver.json                    the lease of the driver that writes here
    OUT/.run/commits/00003.json             digest and counts of a shard, written before it
    OUT/.run/segments/00003/000001-….parquet  finished rows of a shard not committed yet
    OUT/.run/events.jsonl                   starts, ends, deaths, quarantined rows
    OUT/.scores/gsm8k.parquet               the scores of `lrd evaluate`

Shards, segments and records are read by name, so a file that somebody else left beside them
(`notes.txt`, `.DS_Store`, `.nfs…`) never counts as the run's. Whatever is read is checked for all
parts that any caller uses; errors name the file and the fix in one line.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from pipeline.observe.eta import Progress
from pipeline.output.run_records import Commit, Event, LeaseRecord, Manifest, Run, Shard
from pipeline.storage.storage import RUN, Storage

MANIFEST, DRIVER, EVENTS = f"{RUN}/manifest.json", f"{RUN}/driver.json", f"{RUN}/events.jsonl"
COMMITS, SEGMENTS = f"{RUN}/commits", f"{RUN}/segments"
UNREADABLE = ".unreadable"
"""Suffix of the copy that a driver keeps of a file that it cannot read and writes anew."""
DATA, SCORES = "data", ".scores"
NOT_REPLACED = "its rows were retried, and the shard that holds them was not written yet"

_SHARD = re.compile(r"train-([0-9]+)-of-([0-9]+)\.parquet")
_COMMIT = re.compile(rf"{re.escape(COMMITS)}/([0-9]+)\.json")
_SEGMENT = re.compile(rf"{re.escape(SEGMENTS)}/([0-9]+)/([0-9]+)-[^/]+\.parquet")

Stamp = tuple[int, int | None]
"""Size and time of change of a file; a new version of the file has another."""
MOST_PARTS = 4
"""Most wrong or missing parts of a file that an error names."""
T = TypeVar("T")


class UnreadableError(ValueError):
    """A file of the run exists and is not what a driver writes."""

    def __init__(self, path: str, what: str, fix: str) -> None:
        super().__init__(f"{path}: {what}; {fix}")
        self.what, self.fix = what, fix


def shard_name(number: int, num_shards: int) -> str:
    """A result shard's name under the output."""
    return f"{DATA}/{shard_stem('train', number, num_shards)}.parquet"


def shard_stem(split: str, number: int, num_shards: int) -> str:
    """`train-00003-of-00012`: as many digits as num_shards needs, so that names sort as numbers."""
    digits = max(5, len(str(num_shards)))
    return f"{split}-{number:0{digits}d}-of-{num_shards:0{digits}d}"


def commit_name(number: int) -> str:
    """The name of a shard's record under the output."""
    return f"{COMMITS}/{number:05d}.json"


def segment_folder(number: int) -> str:
    """The folder of a shard's segments under the output."""
    return f"{SEGMENTS}/{number:05d}"


# Lists.


def listing(storage: Storage, folder: str, *, recursive: bool = False) -> dict[str, Stamp]:
    """Files under a folder, by their name relative to the storage's root, also those that are not
    whole yet. One request for a thousand files, where `Storage.names` needs one for each folder."""
    return {
        f"{folder}/{info.path.rpartition(f'/{folder}/')[2]}": (info.size, info.mtime_ns)
        for info in storage.files(folder, recursive=recursive)
    }


def commit_files(output: Storage) -> dict[str, Stamp]:
    """The records of shards that exist."""
    return {name: stamp for name, stamp in listing(output, COMMITS).items() if numbers_in(name)}


def segment_files(output: Storage, number: int | None = None) -> dict[str, Stamp]:
    """The segments that exist, of one shard or of all."""
    folder = SEGMENTS if number is None else segment_folder(number)
    found = listing(output, folder, recursive=number is None)
    return {name: found[name] for name in sorted(found) if numbers_in(name)}


def numbers_in(name: str) -> tuple[int, ...]:
    """The numbers in a name: a record's shard; a segment's shard and its own number. Empty for
    other files."""
    found = _SEGMENT.fullmatch(name) or _COMMIT.fullmatch(name)
    return tuple(map(int, found.groups())) if found else ()


def written_shards(output: Storage, num_planned: int | None = None) -> tuple[list[Shard], int]:
    """The result shards that are written, in order, and how many there will be.

    num_planned: as in the manifest, which is read where this is None. For a dataset that was copied
    without its `.run` the number is taken from the shards' names (`train-00000-of-00012`). Raises
    ValueError where there is neither.
    """
    files = {info.base_name: info for info in output.files(DATA)}
    matches = {name: _SHARD.fullmatch(name) for name in sorted(files)}
    found = {name: (int(m[1]), int(m[2])) for name, m in matches.items() if m is not None}
    if num_planned is None and output.kind(MANIFEST) == "file":
        num_planned = len(read_manifest(output).files)
    elif num_planned is None:
        if not found:
            raise ValueError(no_run(output))
        _, num_planned = next(iter(found.values()))
    shards = [
        Shard(number, f"{DATA}/{name}", _utc(files[name].mtime))
        for name, (number, planned) in found.items()
        if number < planned == num_planned and f"{DATA}/{name}" == shard_name(number, planned)
    ]
    return sorted(shards, key=lambda shard: shard.number), num_planned


def finished_shards(
    output: Storage, use: str | None = None, partial: bool = False, flag: str = "--partial"
) -> tuple[list[Shard], int]:
    """`written_shards` of a run that is finished or, with `partial`, has begun.

    use: the verb of a command that has --partial, such as "publish". flag: what its user writes to
    get `partial`. Raises ValueError where they are not enough.
    """
    shards, num_planned = written_shards(output)
    if not num_planned:
        raise ValueError(f"{output.uri}: has no rows to {use}: the run's input has none")
    if not shards or (len(shards) < num_planned and not partial):
        hint = f", or {use} what is there with {flag}" if shards and use else ""
        raise ValueError(
            f"{output.uri}: {len(shards)} of {num_planned} shards are finished; continue the "
            f"run{hint}"
        )
    return shards, num_planned


def _utc(time: datetime | None) -> datetime | None:
    """pyarrow's file times know their zone on some filesystems and are UTC on the others."""
    if time is None or time.tzinfo is not None:
        return time
    return time.replace(tzinfo=UTC)


# Readers.


def read_run(output: Storage) -> Run:
    """Read everything but the rows. Raises ValueError where the folder holds no run."""
    manifest = read_manifest(output)
    events, num_bad = read_events(output)
    try:
        driver = read_lease(output)
    except UnreadableError:
        driver = None
    shards, _ = written_shards(output, len(manifest.files))
    return Run(output, manifest, shards, events, num_bad, driver)


def read_manifest(output: Storage) -> Manifest:
    """Read the manifest. Raises ValueError where the folder holds no run, UnreadableError where the
    file is not a whole manifest."""
    try:
        return _read(output, MANIFEST, _MANIFEST, "restore it, or decode into a new --output")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(no_run(output)) from error


def read_lease(output: Storage) -> LeaseRecord | None:
    """Read the lease; None where there is none. Raises UnreadableError where it is not a lease."""
    try:
        lease = _read(output, DRIVER, _LEASE, "the next lrd generate copies and replaces it")
    except FileNotFoundError:
        return None
    try:
        Progress.from_json(lease.progress)
    except ValidationError:
        return replace(lease, progress={})
    return lease


def read_commit(output: Storage, name: str) -> Commit | None:
    """Read a shard's record; None where there is none or it cannot be read."""
    try:
        return _read(output, name, _COMMIT_RECORD, "")
    except (FileNotFoundError, UnreadableError):
        return None


def read_commits(output: Storage) -> dict[int, Commit]:
    """Read the records of shards, by number; one that cannot be read counts as missing."""
    found = {numbers_in(name)[0]: read_commit(output, name) for name in commit_files(output)}
    return {number: commit for number, commit in found.items() if commit is not None}


def read_events(output: Storage) -> tuple[list[Event], int]:
    """Read all events, oldest first; and the number of lines that are not events."""
    try:
        lines = output.read(EVENTS).split(b"\n")
    except FileNotFoundError:
        return [], 0
    found = [_event(line) for line in lines if line.strip()]
    events = [event for event in found if event is not None]
    return events, len(found) - len(events)


def damage(output: Storage, name: str, commit: Commit) -> str | None:
    """What is wrong with a committed shard's bytes; None where they are those of its record."""
    try:
        digest = hashlib.sha256(output.read(name)).hexdigest()
    except FileNotFoundError:
        return f"{name}: is missing"
    if digest == commit.sha256:
        return None
    if digest == commit.replaces:
        return NOT_REPLACED
    return f"{name}: its bytes are not those that were written"


def check_digest(output: Storage, name: str, digest: str, commit: Commit | None) -> None:
    """Raises ValueError where a shard's digest is not that of its record. A shard whose failed rows
    are being decoded again is valid until the new one replaces it."""
    if commit is None or digest not in (commit.sha256, commit.replaces):
        reason = "has no record" if commit is None else "its bytes are not those of its record"
        raise ValueError(
            f"{output.path(name)}: {reason}; the same lrd generate command decodes it again, "
            "lrd verify says more"
        )


def keep_unreadable(output: Storage, name: str) -> str:
    """Copy a file that cannot be read and is about to be written anew; the copy's name."""
    kept = f"{name}{UNREADABLE}"
    output.write(kept, output.read(name))
    return kept


def is_own(name: str) -> bool:
    """Whether a file directly under .run may be there before the run's manifest is."""
    return f"{RUN}/{name}" in (DRIVER, f"{DRIVER}{UNREADABLE}")


_MANIFEST, _LEASE = TypeAdapter(Manifest), TypeAdapter(LeaseRecord)
_COMMIT_RECORD = TypeAdapter(Commit)


def _read(output: Storage, name: str, kind: TypeAdapter[T], fix: str) -> T:
    """Read a file of one JSON object. Raises FileNotFoundError, or UnreadableError with the fix."""
    content = output.read(name)
    try:
        return kind.validate_python(_object(content))
    except ValidationError as error:
        parts = {".".join(map(str, found["loc"])): found["msg"] for found in error.errors()}
        words = [f"{part}: {why.removeprefix('Value error, ')}" for part, why in parts.items()]
        what = "; ".join(words[:MOST_PARTS])
    except ValueError as error:
        what = str(error)
    raise UnreadableError(output.path(name), what, fix)


def _object(content: bytes) -> dict[str, Any]:
    if not content.strip():
        raise ValueError("is empty")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError("is not a JSON object")
    return found


def _event(line: bytes) -> Event | None:
    try:
        facts = json.loads(line)
        time, what = datetime.fromisoformat(facts.pop("time")), facts.pop("event")
        time = time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    except (ValueError, KeyError, AttributeError, TypeError, OverflowError, RecursionError):
        return None
    return Event(time, what, facts) if isinstance(what, str) else None


def no_run(output: Storage) -> str:
    """Why a folder without a manifest is refused."""
    found = {"file": "is a file, so it ", "missing": "no such folder, so it "}
    what = f"{found.get(output.kind(), '')}holds no run"
    return f"{output.uri}: {what}; name the --output folder of lrd generate"
