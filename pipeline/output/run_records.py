"""The contents of a run's files as dataclasses, with the checks that `run_folder` makes when it
reads them: of every part that any caller uses.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator

from lrd.config import DecodingConfig
from pipeline.config import FORMS
from pipeline.rows import InputFile, Layout
from pipeline.storage.storage import Storage


def _with(**kinds: type) -> AfterValidator:
    """Checks that a JSON object has these entries, with these types."""

    def check(found: dict[str, Any]) -> dict[str, Any]:
        lacking = [name for name, kind in kinds.items() if not isinstance(found.get(name), kind)]
        if lacking:
            raise ValueError(f"lacks {', '.join(lacking)}")
        return found

    return AfterValidator(check)


def _with_layout(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """Checks the entries of a fingerprint from which its layout is read."""
    Layout.of(fingerprint)
    return fingerprint


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a run was started with."""

    created: str
    fingerprint: Annotated[
        dict[str, Any],
        _with(model=str, dtype=str, decoding=dict),
        AfterValidator(_with_layout),
    ]
    """All that results depend on."""
    settings: Annotated[dict[str, Any], _with(model=str, input=str, decoding=dict)]
    files: list[InputFile]
    """The prompt shards, in order; each gives one result shard."""

    @property
    def layout(self) -> Layout:
        """Which rows and columns its result shards have."""
        return Layout.of(self.fingerprint)


@dataclass(frozen=True, slots=True)
class Commit:
    """The record of a result shard, written before the shard: its digest and counts."""

    sha256: str
    replaces: str | None
    """Digest of the file that it replaces, which stays valid until the new one is whole."""
    rows: int
    failed: int
    num_forwards: int
    num_output_tokens: int


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """What a driver writes about itself into its lease."""

    id: str
    host: str
    machine: str
    """Identifies the host, its boot and the process namespace."""
    pid: int
    process_began: float
    beat: int
    """Counted up while the driver is at work."""
    time: str
    """Time of the beat by the driver's clock; do not compare it with another machine's clock."""
    released: bool
    """Whether the driver has ended and given up the lease."""
    progress: dict[str, Any]
    """`Progress.to_json()` at the beat; empty before there is any, or where it cannot be read."""


@dataclass(frozen=True, slots=True)
class Event:
    """One line of events.jsonl."""

    time: datetime
    what: str
    facts: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        time = self.time.isoformat(timespec="milliseconds")
        return {"time": time, "event": self.what, **self.facts}


@dataclass(frozen=True, slots=True)
class Shard:
    """A result shard that is written."""

    number: int
    name: str
    """Under OUT."""
    written: datetime | None
    """Its file's time; None where the storage keeps none."""


@dataclass(frozen=True, slots=True)
class Run:
    """Everything under an output folder except the rows."""

    output: Storage
    manifest: Manifest
    shards: list[Shard]
    """Those that are written, in order."""
    events: list[Event]
    num_bad_events: int
    """Lines of events.jsonl that are not events, such as the last of a file cut short."""
    driver: LeaseRecord | None
    """The driver that wrote here last; None where that is not known."""

    @property
    def is_whole(self) -> bool:
        return len(self.shards) == len(self.manifest.files)

    @property
    def num_planned_rows(self) -> int:
        num_prompts = sum(file.num_rows for file in self.manifest.files)
        return num_prompts * self.manifest.layout.num_samples

    @property
    def layout(self) -> Layout:
        return self.manifest.layout

    @property
    def settings(self) -> dict[str, Any]:
        return self.manifest.settings

    @property
    def decoding(self) -> dict[str, Any]:
        found: dict[str, Any] = self.manifest.settings["decoding"]
        return found


def own_lengths(fingerprint: dict[str, Any]) -> bool:
    """Whether a row's canvas has the length of its column `gen_length`; a template has its own."""
    return "gen_length" in fingerprint.get("row_settings", ()) and fingerprint.keys().isdisjoint(
        FORMS
    )


def run_canvases(fingerprint: dict[str, Any]) -> tuple[int, ...] | None:
    """Lengths that a row's canvas may have; None where rows have their own, and where the
    fingerprint names none."""
    decoding = fingerprint["decoding"]
    if "gen_length" not in decoding or "gen_length" in fingerprint.get("row_settings", ()):
        return None
    if not fingerprint.keys().isdisjoint(FORMS):
        return None
    lengths = {name: decoding.get(name) for name in ("gen_length", "max_gen_length")}
    return DecodingConfig.model_construct(**lengths).canvases
