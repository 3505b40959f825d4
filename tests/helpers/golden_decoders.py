"""What the own code of thirteen published decoders computed, and decodings here held against it.

A folder is a decoder; a case is one setting of it on one checkpoint, with all of its records. They
come from LRD_SHARED or ../shared beside the repository; where that is absent, the copies in
tests/data/golden_decoders, two records a case of `tiny`. In tests/,
`python -m helpers.golden_decoders DECODER …`
writes those copies.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import golden
from lrd import DecodingConfig, Engine, Request, Sample
from lrd.engine import PaddingSide
from lrd.models.checkpoint import LoadedModel
from lrd.templates import Scaffold

SMALL, SHARED = golden.HERE / "golden_decoders", golden.OUTSIDE / "golden_decoders"
SIDES: tuple[PaddingSide, ...] = ("left", "right")
NUM_SLOTS = 7
QUICK = NUM_SLOTS + 1
"""Records of a case in the quick suite: one waits for a slot."""
PARTS = ("prompt", "output", "commit_step", "commit_step_stable")


@dataclass(frozen=True)
class Record:
    """One prompt, decoded by the original under one setting."""

    folder: Path
    entry: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.entry["name"])

    @property
    def num_forwards(self) -> int:
        return int(self.entry["num_forwards"])

    def ids(self, part: str) -> list[int]:
        """prompt, output, or another of the record's tensors."""
        found: list[int] = tensors(self.folder)[f"{self.name}.{part}"].tolist()
        return found

    @property
    def stable_steps(self) -> list[tuple[int, int]]:
        """Canvas position and commit step, where reruns of the original agree on it."""
        if f"{self.name}.commit_step" not in tensors(self.folder):
            return []
        pairs = zip(self.ids("commit_step"), self.ids("commit_step_stable"), strict=True)
        return [(at, step) for at, (step, is_stable) in enumerate(pairs) if is_stable]


@dataclass(frozen=True)
class Case:
    """All records of one setting on one checkpoint."""

    folder: Path
    name: str
    """checkpoint.setting"""
    settings: dict[str, Any]
    """Keyword arguments of the original's function, and what was adapted."""
    records: tuple[Record, ...]

    @property
    def setting(self) -> str:
        return self.name.partition(".")[2]

    @property
    def model(self) -> LoadedModel:
        """The checkpoint; skips the test where its weights are not here."""
        checkpoint = self.name.partition(".")[0]
        folder = golden.weights_of(checkpoint)
        if folder is None:
            pytest.skip(f"the weights of {checkpoint} are absent; LRD_SHARED names their folder")
        return golden.load(folder, "float32")

    def __str__(self) -> str:
        return self.name


@cache
def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "records.safetensors")


@cache
def cases(decoder: str) -> tuple[Case, ...]:
    """Every setting of a decoder: of the shared records, or where they are absent of the copies."""
    root = SHARED if SHARED.is_dir() else SMALL
    return cases_in(root / decoder)


def cases_in(folder: Path) -> tuple[Case, ...]:
    file = folder / "records.json"
    if not file.is_file():
        return ()
    found = json.loads(file.read_text())
    of_case: dict[str, list[Record]] = {name: [] for name in found["settings"]}
    for entry in found["records"]:
        of_case[f"{entry['checkpoint']}.{entry['setting']}"].append(Record(folder, entry))
    return tuple(
        Case(folder, name, found["settings"][name], tuple(records))
        for name, records in of_case.items()
        if records
    )


def ways(decoder: str) -> list[Any]:
    """Every case of a decoder and padding side, as parameters of a test. These are slow tests; the
    quick suite has each case once, sides in turn, with `QUICK` of its records."""
    found = []
    for number, case in enumerate(cases(decoder)):
        for turn, side in enumerate(SIDES):
            name = f"{decoder}-{case}-{side}"
            found.append(pytest.param(case, side, id=name, marks=pytest.mark.slow))
            if (number + turn) % 2:
                some = replace(case, records=case.records[:QUICK])
                found.append(pytest.param(some, side, id=f"{name}-{QUICK}"))
    return found


def parity(**settings: Any) -> DecodingConfig:
    """Settings with all off that the originals lack: mixing, refinement, the end at an EOS."""
    return DecodingConfig(**{"r_f": 0.0, "max_refine_steps": 0, "stop_at_eos": False, **settings})


def compare(
    case: Case,
    config: DecodingConfig,
    side: PaddingSide,
    request: pytest.FixtureRequest,
    *,
    listed: Callable[[Record], str | None] = lambda record: None,
    passes: Callable[[Record], int] = lambda record: record.num_forwards,
    scaffold: Scaffold | None = None,
    fixed_shapes: bool | None = None,
    compare_steps: bool = True,
) -> None:
    """Decode all records in one engine, seven at a time, and hold canvas, number of passes and
    stable commit steps against the originals'.

    listed: why a record is not compared, or None. passes: those that are expected of a record.
    scaffold: the canvas where it has fixed tokens. fixed_shapes: as on a GPU. Counts go into the
    test output's summary.
    """
    reasons = {record.name: listed(record) for record in case.records}
    chosen = [record for record in case.records if reasons[record.name] is None]
    why = Counter(reason for reason in reasons.values() if reason is not None)
    samples = decode_all(case, config, side, chosen, scaffold, fixed_shapes) if chosen else {}
    differing = [
        difference
        for record in chosen
        if (difference := _differs(samples[record.name], record, passes(record), compare_steps))
    ]
    num_equal = len(chosen) - len(differing)
    note(request, case, len(chosen), num_equal, why)
    assert not differing, "\n".join(differing)


def decode_all(
    case: Case,
    config: DecodingConfig,
    side: PaddingSide,
    records: list[Record],
    scaffold: Scaffold | None = None,
    fixed_shapes: bool | None = None,
) -> dict[str, Sample]:
    """The samples of these records by name."""
    prompts = {record.name: record.ids("prompt") for record in records}
    longest = max(map(len, prompts.values()))
    engine = Engine(case.model, config, NUM_SLOTS, longest, side, fixed_shapes)
    for name, prompt in prompts.items():
        engine.submit(Request(name, prompt, 0, scaffold))
    found: dict[str, Sample] = {}
    while engine.busy:
        found |= {sample.key: sample for sample in engine.step()}
    return found


def _differs(sample: Sample, record: Record, passes: int, compare_steps: bool) -> str | None:
    """How a sample differs from its record; None where it does not."""
    if sample.canvas != (output := record.ids("output")):
        at = [i for i, (a, b) in enumerate(zip(sample.canvas, output, strict=True)) if a != b]
        return f"{record.name}: tokens differ at {at}"
    if sample.num_forwards != passes:
        return f"{record.name}: {sample.num_forwards} passes instead of {passes}"
    pairs = record.stable_steps if compare_steps else []
    steps = [(at, sample.commit_step[at], step) for at, step in pairs]
    wrong = [one for one in steps if one[1] != one[2]]
    return f"{record.name}: (position, commit step, original's) {wrong}" if wrong else None


def note(
    request: pytest.FixtureRequest, case: Case, compared: int, equal: int, why: Counter[str]
) -> None:
    """Count records in the summary of the test output."""
    found = (case.folder.name, compared, equal, dict(why))
    request.node.user_properties.append(("golden decoders", found))


def summary(reports: list[Any]) -> list[str]:
    """A line a folder, then each reason why records are listed and not compared. Records count once
    for each way that they are decoded in."""
    counts: dict[str, Counter[str]] = {}
    reasons: Counter[str] = Counter()
    for report in reports:
        for name, value in report.user_properties:
            if name == "golden decoders":
                folder, compared, equal, why = value
                of_folder = counts.setdefault(folder, Counter())
                of_folder.update(compared=compared, equal=equal, listed=sum(why.values()))
                reasons.update({f"{folder}: {reason}": n for reason, n in why.items()})
    if not counts:
        return []
    lines = [f"{'decoder':22} {'compared':>8} {'equal':>6} {'listed':>8}"]
    for folder, found in sorted(counts.items()):
        lines.append(f"{folder:22} {found['compared']:8} {found['equal']:6} {found['listed']:8}")
    return lines + [f"listed {n} x {reason}" for reason, n in sorted(reasons.items())]


def write_copies(decoder: str, a_case: int = 2) -> None:
    """Copy the first records of each case of `tiny`, whose weights come with the tests, into
    tests/data; where only some repeat with a past per block, these."""
    entries: list[dict[str, Any]] = []
    parts: dict[str, torch.Tensor] = {}
    found = json.loads((SHARED / decoder / "records.json").read_text())
    every = [case for case in cases_in(SHARED / decoder) if case.name.startswith("tiny.")]
    for case in every:
        records = sorted(
            case.records, key=lambda one: not one.entry.get("same_if_past_reset_at_block", True)
        )
        for record in records[:a_case]:
            entries.append(record.entry)
            names = {f"{record.name}.{part}" for part in PARTS}
            own = tensors(case.folder)
            parts |= {name: own[name].clone() for name in names if name in own}
    folder = SMALL / decoder
    folder.mkdir(parents=True, exist_ok=True)
    settings = {case.name: case.settings for case in every}
    head = {"decoder": found["decoder"], "settings": settings}
    text = json.dumps({**head, "records": entries}, indent=1)
    (folder / "records.json").write_text(text + "\n")
    save_file(parts, folder / "records.safetensors")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        write_copies(name)
