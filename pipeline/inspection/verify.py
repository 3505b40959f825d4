"""Checks by reading everything whether a result dataset is complete and matches its manifest.

Writes nothing. A few shards are in memory at a time: each one's whole file, and one of its row
groups unpacked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.inspection.planned_prompts import PlannedPrompts
from pipeline.inspection.shard_checks import Expected, ShardCheck, contradictions
from pipeline.observe.stages import stage
from pipeline.output import result_shards
from pipeline.output.lease import is_dead
from pipeline.output.run_folder import (
    DATA,
    DRIVER,
    EVENTS,
    MANIFEST,
    SEGMENTS,
    UnreadableError,
    commit_name,
    listing,
    numbers_in,
    read_commit,
    read_events,
    read_lease,
    read_manifest,
    segment_files,
    shard_name,
)
from pipeline.output.run_records import Commit, run_canvases
from pipeline.storage.storage import PARTIAL, Storage

SHARDS_AT_A_TIME = 4
AGAIN = "the same lrd generate command decodes it again"
DELETE = "delete it; the same lrd generate command decodes it again"
"""For a wrong shard whose bytes are those of its record: a run decodes it again only once it is
deleted."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong, or a note."""

    file: str
    row: str | None
    what: str
    fix: str
    wrong: bool = True
    """False: a note."""

    def __str__(self) -> str:
        row = f" row {self.row}" if self.row else ""
        note = "" if self.wrong else "note: "
        return f"{note}{self.file}{row}: {self.what}; {self.fix}"


@dataclass(slots=True)
class _Shard:
    """What was found of one planned shard."""

    state: str
    """whole, unfinished (never written) or retried (its failures are being decoded again)."""
    check: ShardCheck | None = None
    findings: list[Finding] = field(default_factory=list)


class Verification:
    """Reads a run's files once; the counts are complete when `findings` has ended."""

    def __init__(self, output: Storage, inputs: Storage | None = None) -> None:
        """inputs: where the prompts are now; None: they are not compared.

        Raises ValueError where the folder holds no run, or its manifest cannot be read.
        """
        self._output, self._inputs = output, inputs
        manifest = read_manifest(output)
        self.files, self._fingerprint = manifest.files, manifest.fingerprint
        self._layout = manifest.layout
        names = [file.name for file in self.files]
        self._planned = None if inputs is None else PlannedPrompts(inputs, names)
        self.num_unfinished = self.num_rows = self.num_failed = 0
        self._schema: pa.Schema | None = None

    @property
    def num_shards(self) -> int:
        return len(self.files)

    def findings(self) -> Iterator[Finding]:
        """All findings, shard by shard; shards that are not written yet are only counted."""
        with (
            stage("checking shards", len(self.files), "shards") as step,
            ThreadPoolExecutor(SHARDS_AT_A_TIME) as pool,
        ):
            for number, shard in enumerate(pool.map(self._check, range(len(self.files)))):
                step.add()
                self.num_unfinished += shard.state != "whole"
                yield from shard.findings
                if shard.check is not None:
                    self.num_rows += shard.check.num_rows
                    self.num_failed += shard.check.num_failed
                    yield from self._compare_schema(number, shard.check.schema)
        with stage("checking other files"):
            yield from self._strays()
            yield from self._segments()
            yield from self._notes()

    def _check(self, number: int) -> _Shard:
        name, planned = shard_name(number, len(self.files)), self.files[number]
        commit, content, broken = self._read(number, name)
        if broken is None and content is None and (commit is None or self._may_come(number)):
            return _Shard("unfinished")
        if content is None:
            reason = "is missing" if broken is None else f"cannot be read ({broken})"
            return _Shard("whole", findings=[Finding(name, None, reason, AGAIN)])
        shard = _Shard("whole")
        intact = self._check_record(shard, name, commit, content)
        prompts = self._prompts(shard, number, content)
        shard.check = check = ShardCheck(
            Expected(number, planned.num_rows, planned.name, self._fingerprint, prompts)
        )
        check.read(content)
        fix = DELETE if intact else AGAIN
        shard.findings += [Finding(name, row, what, fix) for row, what in check.findings]
        if intact and commit is not None and shard.state == "whole" and not check.findings:
            found = (check.num_rows, check.num_failed)
            if found != (commit.rows, commit.failed):
                what = f"counts {commit.rows} rows, {commit.failed} failed; there are {found}"
                shard.findings.append(Finding(commit_name(number), None, what, DELETE))
        return shard

    def _may_come(self, number: int) -> bool:
        """Whether a shard that has a record may still be written, so that it is not lost. Its
        segments are deleted after that, and a running driver may be between the two."""
        return bool(segment_files(self._output, number)) or self._may_be_running()

    def _read(self, number: int, name: str) -> tuple[Commit | None, bytes | None, OSError | None]:
        """Record and bytes of a shard; read a second time where they disagree, since a driver may
        have written both in between."""
        for _ in range(2):
            content: bytes | None = None
            broken: OSError | None = None
            commit = read_commit(self._output, commit_name(number))
            try:
                content = self._output.read(name)
            except FileNotFoundError:
                pass
            except OSError as error:
                broken = error
            if commit and content and hashlib.sha256(content).hexdigest() == commit.sha256:
                break
        return commit, content, broken

    def _check_record(
        self, shard: _Shard, name: str, commit: Commit | None, content: bytes
    ) -> bool:
        """Whether the bytes are those of the record, before or after a retry."""
        digest = hashlib.sha256(content).hexdigest()
        if commit is None:
            what = "has no record that can be read"
        elif digest == commit.sha256:
            return True
        elif digest == commit.replaces:
            shard.state = "retried"
            return True
        else:
            what = "its bytes are not those that were written"
        shard.findings.append(Finding(name, None, what, AGAIN))
        return False

    def _prompts(self, shard: _Shard, number: int, results: bytes) -> pa.Table | None:
        """The input's rows; None where they cannot be read or have changed."""
        if self._inputs is None or self._planned is None:
            return None
        planned = self.files[number]
        where = self._inputs.path(planned.name)
        try:
            content = self._inputs.read(planned.name)
        except OSError as error:
            fix = "restore it, or say --no-input"
            what = f"this input cannot be read ({error.strerror or error})"
            shard.findings.append(Finding(where, None, what, fix, wrong=False))
            return None
        if hashlib.sha256(content).hexdigest() != planned.sha256:
            what = "this input has changed since the run began"
            shard.findings.append(Finding(where, None, what, "restore it"))
            return None
        try:
            found = pq.read_schema(pa.BufferReader(results))
        except (pa.ArrowException, OSError):
            found = pa.schema([])
        return self._planned.read(content, planned.name, found)

    def _compare_schema(self, number: int, schema: pa.Schema | None) -> Iterator[Finding]:
        if self._schema is None:
            self._schema = schema
        if schema is not None and not schema.equals(self._schema):
            what = "its columns are not those of the shards before"
            yield Finding(shard_name(number, len(self.files)), None, what, DELETE)

    def _strays(self) -> Iterator[Finding]:
        planned = {shard_name(number, len(self.files)) for number in range(len(self.files))}
        for name in sorted(listing(self._output, DATA, recursive=True)):
            if name in planned:
                continue
            if name.endswith(PARTIAL):
                what = "is a partial file that a driver left when it was killed"
                fix = "delete it if no driver is running: readers of data/ fail on it"
                yield Finding(name, None, what, fix, wrong=not self._may_be_running())
            else:
                fix = "move it away: readers of data/ take it for results"
                yield Finding(name, None, "is not a shard of this run", fix)

    def _notes(self) -> Iterator[Finding]:
        """Notes on columns that are not kept, and on files that cannot be read and on which no row
        depends."""
        absent = self._layout.absent
        if absent:
            what = f"the run keeps {self._layout.columns} columns alone"
            fix = f"not checked: {', '.join(absent)}"
            yield Finding(MANIFEST, None, what, fix, wrong=False)
        try:
            read_lease(self._output)
        except UnreadableError as error:
            yield Finding(DRIVER, None, error.what, error.fix, wrong=False)
        _, num_bad = read_events(self._output)
        if num_bad:
            fix = "the next lrd generate copies the file and keeps the other lines"
            yield Finding(EVENTS, None, f"{num_bad} lines are not events", fix, wrong=False)

    def _may_be_running(self) -> bool:
        """Whether a driver may be running; a running one has a lease that can be read."""
        try:
            lease = read_lease(self._output)
        except UnreadableError:
            return False
        return lease is not None and not lease.released and not is_dead(lease)

    def _segments(self) -> Iterator[Finding]:
        for name in sorted(listing(self._output, SEGMENTS, recursive=True)):
            if name.endswith(PARTIAL):
                continue
            if not numbers_in(name):
                what, fix = "is not a segment of this run", "move it away; nothing reads it"
                yield Finding(name, None, what, fix, wrong=False)
                continue
            try:
                content = self._output.read(name)
                rows = result_shards.results_in(content, self._layout.schema)
            except FileNotFoundError:
                continue  # Its shard was written meanwhile.
            except (pa.ArrowException, OSError) as error:
                reason = str(error).strip().splitlines()[0]
                fix = "the same lrd generate command decodes its rows again"
                yield Finding(name, None, f"cannot be read ({reason})", fix)
                continue
            yield from self._check_segment(name, rows)

    def _check_segment(self, name: str, rows: pa.Table) -> Iterator[Finding]:
        fix = "delete it; the same lrd generate command decodes its rows again"
        number, _ = numbers_in(name)
        num_prompts = self.files[number].num_rows if number < len(self.files) else 0
        num_rows = num_prompts * self._layout.num_samples
        own = {self._layout.row_id(number, row) for row in range(num_rows)}
        foreign = [found for found in rows["row_id"].to_pylist() if found not in own]
        if foreign:
            yield Finding(name, str(foreign[0]), "is not of this shard", fix)
        canvases = run_canvases(self._fingerprint)
        stops = self._fingerprint.get("stop", ())
        has_schema = "json_schema" in self._fingerprint
        for what, indices in contradictions(rows, canvases, stops, has_schema=has_schema):
            yield Finding(name, rows["row_id"][indices[0]].as_py(), what, fix)
