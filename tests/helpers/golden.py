"""The golden records: where they lie, the settings that repeat each, what became of them.

A record is what the originals' own code computed on a tiny random checkpoint; the README beside
them explains each kind. A few come with the tests, the rest is found by LRD_SHARED or in
../shared beside the repository.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import lrd
from lrd.beliefs import log_beliefs
from lrd.models.checkpoint import LoadedModel
from lrd.models.registry import TINY

HERE = Path(__file__).parents[1] / "data"
OUTSIDE = Path(os.environ.get("LRD_SHARED") or Path(__file__).parents[3] / "shared")
SMALL, SHARED = HERE / "golden", OUTSIDE / "golden"
SMALL_CACHE, SHARED_CACHE = HERE / "golden_cache", OUTSIDE / "golden_cache"
"""Latent refinement with a block cache; the weights are those of golden, and of `tiny`."""

TINY_WEIGHTS = "91a1caba39f061f93a89dcb1e9945ed4cf840e9814186e0e8a28f794048723e8"
"""SHA-256 of the weights behind the records of `tiny`: the embedded model may be trained on."""

DEVICE = os.environ.get("LRD_TEST_DEVICE", "cpu")
"""Where records are compared; `jobs.bench.gpu` sets it."""

TIE = 2e-5
"""Logits of correct float32 implementations differ by about 1e-5 (the golden README), so where
two tokens' log-probabilities, or a mass and top_p, are nearer than this, rounding decides."""


@dataclass(frozen=True)
class Record:
    """One record of one case."""

    folder: Path
    kind: str
    entry: dict[str, Any]
    weights: Path | None = None
    """Folder of the checkpoint where it is not the record's own."""

    @property
    def name(self) -> str:
        return str(self.entry["name"])

    @property
    def call(self) -> dict[str, Any]:
        """Keyword arguments of the original's call."""
        return dict(self.entry["call"]["kwargs"])

    @property
    def case(self) -> str:
        root = self.folder.parent
        origin = "small:" if root in (SMALL, SMALL_CACHE) else ""
        cached = "cache:" if root in (SMALL_CACHE, SHARED_CACHE) else ""
        return f"{origin}{cached}{self.folder.name}"

    @property
    def model(self) -> LoadedModel:
        return load(self.weights or self.folder, "float32")

    def tensor(self, part: str) -> torch.Tensor:
        return tensors(self.folder, self.kind)[f"{self.name}.{part}"]

    def has(self, part: str) -> bool:
        return f"{self.name}.{part}" in tensors(self.folder, self.kind)

    def __str__(self) -> str:
        return f"{self.case}-{self.name}"


def note(request: pytest.FixtureRequest, record: Record, **more: object) -> None:
    """Count the test in the summary, with what it measured."""
    request.node.user_properties.append(("golden", (record.case, record.kind)))
    request.node.user_properties.extend(more.items())


def skip(request: pytest.FixtureRequest, record: Record, reason: str) -> None:
    note(request, record, reason=reason)
    pytest.skip(reason)


@cache
def load(folder: Path, dtype: str) -> LoadedModel:
    model = lrd.load_model(folder, device=DEVICE, dtype=dtype)
    assert isinstance(model, LoadedModel)
    return model


@cache
def tensors(folder: Path, kind: str) -> dict[str, torch.Tensor]:
    return load_file(folder / f"{kind}.safetensors", device=DEVICE)


def meta(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "meta.json").read_text())
    return found


def cases() -> list[Path]:
    folders = [*SMALL.iterdir(), *(SHARED.iterdir() if SHARED.is_dir() else [])]
    return sorted(folder for folder in folders if (folder / "meta.json").is_file())


def records(kind: str) -> list[Record]:
    """Every record of a kind: logits, generate or lrd."""
    found = []
    for folder in cases():
        if kind == "lrd":
            file = folder / "lrd.json"
            entries = json.loads(file.read_text()) if file.is_file() else []
        else:
            entries = meta(folder)[kind]
        found += [Record(folder, kind, entry) for entry in entries]
    return found


def cached_records(root: Path | None = None) -> list[Record]:
    """Every record with a block cache: the shared ones, or where they are absent the copies here
    (those of `tiny` where its weights are there)."""
    root = root or (SHARED_CACHE if SHARED_CACHE.is_dir() else SMALL_CACHE)
    found = []
    for file in sorted(root.glob("*/lrd.json")):
        weights = weights_of(file.parent.name)
        entries = json.loads(file.read_text()) if weights is not None else []
        found += [Record(file.parent, "lrd", entry, weights) for entry in entries]
    return found


@cache
def weights_of(case: str) -> Path | None:
    """The folder of the weights behind the records with a block cache of one case."""
    if case != "tiny":
        return next((root / case for root in (SHARED, SMALL) if (root / case).is_dir()), None)
    for folder in (OUTSIDE / "golden_tiny", TINY):
        file = folder / "model.safetensors"
        if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == TINY_WEIGHTS:
            return folder
    return None


def sampler_settings(record: Record) -> lrd.DecodingConfig:
    """The original sampler's call as settings of this procedure."""
    call = record.call
    common = {"r_f": 0.0, "max_refine_steps": 0, "stop_at_eos": False}
    if "alg" in call:
        # What was not passed has a default, and `effective` says which.
        call = {**call, **record.entry.get("effective", {})}
        settings = {
            "gen_length": call["max_new_tokens"],
            "steps": call["steps"],
            "confidence_source": "sampling",
            "sample_top_p": call.get("top_p"),
            "sample_top_k": call.get("top_k"),
        }
        if "dual_cache" in call:
            settings["block_length"] = call["block_length"]
            settings["kv_cache"] = "dual" if call["dual_cache"] else "prefix"
        if call["alg"] == "confidence_threshold":
            if "dual_cache" in call:
                del settings["steps"]  # Here Fast-dLLM caps nothing.
            return lrd.DecodingConfig(
                **common,
                **settings,
                confidence="probability",
                confidence_threshold=call["threshold"],
            )
        order = {"entropy": "entropy", "maskgit_plus": "probability", "topk_margin": "margin"}
        return lrd.DecodingConfig(
            **common,
            **settings,
            confidence=order[call["alg"]],
            schedule="timestep",
            schedule_eps=call.get("eps", 1e-3),
        )
    settings = {
        "gen_length": call["gen_length"],
        "block_length": call["block_length"],
        "confidence": "probability",
    }
    if call.get("threshold") is not None:
        settings["confidence_threshold"] = call["threshold"]
    else:
        settings["steps"] = call["steps"]
    cached = re.search("generate_with_(prefix|dual)_cache", record.entry["call"]["function"])
    if cached:
        settings["kv_cache"] = cached[1]
    switches = ("cfg_scale", "logits_eos_inf", "confidence_eos_eot_inf")
    settings.update({name: call[name] for name in switches if name in call})
    return lrd.DecodingConfig(**common, **settings)


def blocks_of_one_pass(sample: lrd.Sample, config: lrd.DecodingConfig) -> int:
    """Blocks that their first pass filled: with a cache Fast-dLLM runs one pass more in each of
    them before it looks for open positions."""
    steps = torch.tensor(sample.commit_step).view(-1, config.block_tokens)
    first = torch.cat([torch.ones(1), steps.amax(-1)[:-1] + 1])
    return int((steps == first[:, None]).all(-1).sum())


class Watched:
    """A model that keeps the logits of every forward pass."""

    def __init__(self, model: LoadedModel) -> None:
        self.watched = model
        self.passes: list[torch.Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.watched, name)

    def logits(self, *args: Any) -> torch.Tensor:
        logits = self.watched.logits(*args)
        self.passes.append(logits.clone())
        return logits


def nucleus_gap(log_p: torch.Tensor, top_p: float) -> float:
    """How near a nucleus [N, V] is to being another: the smallest distance, over positions, of
    the log-probabilities on either side of its edge, or of the mass there from top_p."""
    ordered = log_p.double().sort(dim=-1, descending=True).values
    mass = ordered.exp().cumsum(-1)
    last = ((mass - ordered.exp()) < top_p).sum(-1, keepdim=True).clamp(max=log_p.shape[-1] - 1) - 1
    swap = ordered.gather(-1, last) - ordered.gather(-1, last + 1)
    # The mass with the last token, and without it, both lie away from top_p.
    reach = (mass.gather(-1, last) - top_p).abs()
    short = ((mass - ordered.exp()).gather(-1, last) - top_p).abs()
    return float(torch.cat([swap, reach, short]).min())


def sure_passes(
    passes: list[torch.Tensor], sample: lrd.Sample, config: lrd.DecodingConfig, mask_id: int
) -> int:
    """How many passes of a lone sample repeat up to rounding: those up to and with the first
    whose nuclei, which make the next pass's inputs, rounding decides."""
    if not config.mixes:
        return len(passes)
    block = config.block_tokens
    steps = torch.tensor(sample.commit_step).view(-1, block)
    for number, logits in enumerate(passes, start=1):
        current = int((steps.amax(-1) < number).sum())  # blocks done before this pass
        still_open = steps[current] > number
        if still_open.any():
            log_p = log_beliefs(logits[0], mask_id)[still_open]
            if nucleus_gap(log_p, config.top_p) < TIE:
                return number
    return len(passes)


def summary(reports: list[Any]) -> list[str]:
    """The table of the test output: a line a case and kind, then every reason for a skip."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    reasons: Counter[str] = Counter()
    for report in reports:
        found = dict(report.user_properties)
        if "golden" not in found:
            continue
        case, kind = found["golden"]
        counts.setdefault((case, kind), Counter())[report.outcome] += 1
        if report.outcome == "skipped":
            reasons[f"{case}: {found['reason']}"] += 1
        for note in ("logit error", "trace error", "trace passes"):
            if note in found:
                key = counts[case, kind]
                key[note] = (
                    max(key[note], found[note]) if "error" in note else key[note] + found[note]
                )
                if note == "trace passes":
                    key["all passes"] += found["all passes"]
    lines = [
        f"{'case':22} {'records':9} {'compared':>8} {'equal':>6} {'skipped':>8}  largest error"
    ]
    for (case, kind), found in sorted(counts.items()):
        compared = found["passed"] + found["failed"]
        note = ""
        if "logit error" in found:
            note = f"logits {found['logit error']:.1e}"
        if "trace error" in found:
            passes = f"{found['trace passes']} of {found['all passes']} passes, then rounding"
            whole = found["trace passes"] == found["all passes"]
            note = f"traces {found['trace error']:.1e} over {'all passes' if whole else passes}"
        lines.append(
            f"{case:22} {kind:9} {compared:8} {found['passed']:6} {found['skipped']:8}  {note}"
        )
    lines += [f"skipped {count} x {reason}" for reason, count in sorted(reasons.items())]
    return lines
