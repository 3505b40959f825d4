"""The peers' loops: Fast-dLLM's own records repeated, and what the passes compute."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.engine import PROMPTS
from helpers.golden import SHARED, load, meta, tensors
from helpers.random_model import EOS, LIVELY, random_model

import lrd
from jobs.bench.peers import CachedPasses, PeerSample, check, decode_peer

ALIGNED = {**LIVELY, "logit_shift": False}
DATA = Path(__file__).parent / "data"
GOLDEN_CACHE = SHARED.parent / "golden_cache"


@dataclass(frozen=True)
class FastRecord:
    """One prompt decoded by Fast-dLLM's own code under a threshold."""

    folder: Path
    name: str
    settings: dict[str, Any]
    prompt: list[int]
    canvas: list[int]
    widths: list[int]
    """Columns that each of its passes fed, without those that found the block full."""

    def __str__(self) -> str:
        return f"{'' if self.folder.parent == SHARED else 'small:'}{self.folder.name}-{self.name}"


def widths(entry: dict[str, Any], cache: str, num_columns: int) -> list[int]:
    """What the passes fed: a record without a cache has no list of it."""
    if cache == "none":
        return [num_columns] * int(entry["nfe"])
    return list(entry["forward_lengths"])


def from_shared(folder: Path) -> list[FastRecord]:
    found = []
    for entry in meta(folder)["generate"]:
        name, call = entry["name"], entry["call"]["kwargs"]
        if not name.startswith("fast_") or entry["call"]["model"] != "fd_llada":
            continue
        if call["threshold"] is None:
            continue
        of = tensors(folder, "generate")
        prompt = of[f"{name}.prompt"].flatten().tolist()
        sequence = of[f"{name}.sequences"].flatten().tolist()
        cache = name.split("_")[1].replace("plain", "none")
        settings = {
            "gen_length": call["gen_length"],
            "block_length": call["block_length"],
            "threshold": call["threshold"],
            "cache": cache,
        }
        found.append(
            FastRecord(
                folder,
                name,
                settings,
                prompt,
                sequence[len(prompt) :],
                widths(entry, cache, len(sequence)),
            )
        )
    return found


def small_records() -> list[FastRecord]:
    """Copies of the records of the case whose weights come with the tests."""
    entries = json.loads((DATA / "fast_dllm.json").read_text())
    return [FastRecord(DATA / "golden" / e.pop("case"), **e) for e in entries]


def fast_records() -> list[FastRecord]:
    folders = sorted(SHARED.glob("llada_*/meta.json")) if SHARED.is_dir() else []
    return small_records() + [record for file in folders for record in from_shared(file.parent)]


@pytest.mark.parametrize("record", fast_records(), ids=str)
def test_a_peer_decodes_as_fast_dllm_does(record: FastRecord) -> None:
    sample = decode_peer(load(record.folder, "float32"), record.prompt, **record.settings)
    assert sample.canvas == record.canvas
    assert sample.widths == record.widths


def test_all_records_are_here() -> None:
    small = small_records()
    assert {record.settings["cache"] for record in small} == {"none", "prefix", "dual"}
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there: only the copies in {DATA.name}/ are compared")
    shared = fast_records()[len(small) :]
    assert len(shared) == 15
    copied = {record.name: record for record in shared if record.folder.name == "llada_c_tied"}
    for record in small:
        theirs = copied[record.name]
        assert (record.prompt, record.canvas) == (theirs.prompt, theirs.canvas)
        assert (record.settings, record.widths) == (theirs.settings, theirs.widths)


def cached_records() -> list[dict[str, Any]]:
    """Records of `tiny` that Fast-dLLM's own samplers decoded too."""
    file = GOLDEN_CACHE / "tiny" / "lrd.json"
    entries = json.loads(file.read_text()) if file.is_file() else []
    return [entry for entry in entries if entry.get("fast_dllm", {}).get("same_tokens")]


@pytest.mark.parametrize("entry", cached_records(), ids=lambda entry: entry["name"])
def test_a_peer_decodes_tiny_as_fast_dllm_does(entry: dict[str, Any]) -> None:
    name, settings = entry["name"], entry["settings"]
    found = tensors(GOLDEN_CACHE / "tiny", "lrd")
    sample = decode_peer(
        load(SHARED.parent / "golden_tiny", "float32"),
        found[f"{name}.prompt"].flatten().tolist(),
        settings["gen_length"],
        settings["block_length"],
        settings["confidence_threshold"],
        settings["kv_cache"],
    )
    assert sample.canvas == found[f"{name}.output"].flatten().tolist()
    assert sample.num_forwards == entry["num_forwards"]
    assert sample.full_passes == entry["full_passes"]
    assert sample.positions_computed == entry["fed_positions"]
    # Fast-dLLM runs one pass more before it sees that a block is full.
    idle = entry["fast_dllm"]["blocks_filled_by_the_full_pass"]
    assert sample.num_forwards + idle == entry["fast_dllm"]["nfe"]


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("threshold", [0.3, 0.9])
@pytest.mark.parametrize(
    ("block_length", "stop_at_eos"),
    [(4, False), (4, True), (12, False)],  # In one block the engine decodes on behind an EOS.
)
def test_the_engine_decodes_and_counts_the_same(
    cache: Any, threshold: float, block_length: int, stop_at_eos: bool
) -> None:
    config = lrd.DecodingConfig(
        gen_length=12,
        block_length=block_length,
        r_f=0.0,
        max_refine_steps=0,
        confidence_threshold=threshold,
        confidence="probability",
        stop_at_eos=stop_at_eos,
        kv_cache=cache,
    )
    model = random_model(**ALIGNED)
    samples = lrd.decode(model, PROMPTS, config)
    peers = [
        decode_peer(model, prompt, 12, block_length, threshold, cache, stop_at_eos)
        for prompt in PROMPTS
    ]
    for name in ("canvas", "num_forwards", "full_passes", "positions_computed"):
        assert [getattr(p, name) for p in peers] == [getattr(s, name) for s in samples], name


def test_a_pass_over_some_columns_sees_the_others_as_they_were() -> None:
    """Against a whole pass, where the other columns have not changed, and where they have."""
    model, one_layer = random_model(**ALIGNED), random_model(**ALIGNED)
    one_layer.transformer.blocks = one_layer.transformer.blocks[:1]
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]])
    changed = ids.clone()
    changed[0, 3:5] = torch.tensor([9, 10])
    at = torch.arange(2)
    with torch.inference_mode():
        passes = CachedPasses(model.transformer, 8, ids.device)
        passes.run(model.embed(ids), 0, at)
        part = passes.run(model.embed(changed[:, 3:5]), 3, at)
        single = CachedPasses(one_layer.transformer, 8, ids.device)
        single.run(one_layer.embed(ids), 0, at)
        exact = single.run(one_layer.embed(changed[:, 3:5]), 3, at)
        whole = one_layer.transformer.hidden(one_layer.embed(changed))[0, 3:5]
        stale = model.transformer.hidden(model.embed(changed))[0, 3:5]
    # In a model of one layer keys depend on their own column alone: nothing is stale.
    assert torch.allclose(exact[0], whole, atol=1e-5)
    # In deeper ones those of the others are from before the change.
    assert not torch.allclose(part[0], stale, atol=1e-4)


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_stopping_at_eos_spares_passes_and_fills_with_eos(cache: Any) -> None:
    model = random_model(**ALIGNED)
    stopped = spared = 0
    for prompt in PROMPTS:
        whole = decode_peer(model, prompt, 12, 4, 0.9, cache)
        ended = decode_peer(model, prompt, 12, 4, 0.9, cache, stop_at_eos=True)
        if EOS in ended.canvas:
            stopped += 1
            end = ended.canvas.index(EOS)
            assert ended.canvas[:end] == whole.canvas[:end]
            spared += whole.num_forwards - ended.num_forwards
        else:
            assert ended == whole
    assert stopped
    assert spared > 0


def test_positions_are_the_columns_of_all_passes() -> None:
    assert PeerSample([], [20, 4, 4, 20], 2).positions_computed == 48


def test_other_families_are_refused() -> None:
    check(random_model(**ALIGNED))
    with pytest.raises(ValueError, match="Dream"):
        check(random_model(**LIVELY))
    fused = random_model(**ALIGNED)
    fused.transformer.fuse()
    with pytest.raises(ValueError, match="unfused"):
        check(fused)
