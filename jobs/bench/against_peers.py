"""Blocks with and without a cache, and Fast-dLLM's loops, on the same prompts, in turns.

Ours decode in slots, as a replica does; the peers one prompt at a time, as they are run. All on
one thread: a machine of more cores runs more replicas, or more such scripts.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from jobs.bench.peers import Cache, PeerSample, check, decode_peer
from jobs.bench.rows_per_second import EXAMPLES, Work, read_work, right_answers, run_slots
from lrd import DecodingConfig, Sample
from pipeline.scoring.summary import wilson

SHEETS = EXAMPLES.with_name("example_sheets")
SHEETS_CANVAS = 256
BLOCK = 32
THRESHOLD = 0.9
"""Fast-dLLM's own settings: `--block_length 32 --threshold 0.9`."""

PEER, AT_EOS = "peer_", "_eos"
"""How names of the peers' variants begin, and how those end that stop at the EOS."""

Decode = Callable[[Work], Sequence[Sample | PeerSample]]


@dataclass(frozen=True, slots=True)
class Rate:
    """What one variant reached."""

    seconds: tuple[float, ...]
    """Of each turn."""
    num_rows: int
    num_right: int
    num_problems: int
    forwards: float
    """Mean a row, as the next two."""
    full_passes: float
    positions: float

    @property
    def rows_per_second(self) -> float:
        """By the median turn."""
        return self.num_rows / median(self.seconds)

    def times(self, other: Rate) -> float:
        """How many times as fast as the other, turn by turn: the median."""
        pairs = zip(other.seconds, self.seconds, strict=True)
        return median(theirs / ours for theirs, ours in pairs)

    def as_json(self) -> dict[str, Any]:
        return {
            "rows_per_second": round(self.rows_per_second, 2),
            "right": self.num_right,
            "problems": self.num_problems,
            "forwards_per_row": round(self.forwards, 2),
            "full_passes_per_row": round(self.full_passes, 2),
            "positions_per_row": round(self.positions, 1),
        }


def block_settings(**changes: Any) -> dict[str, Any]:
    """The preset `blocks` with changes."""
    return {"name": "blocks", **changes}


def ours(gen_length: int) -> dict[str, Decode]:
    """Our variants by name."""
    settings: dict[str, dict[str, Any]] = {
        "fast": {"name": "fast"},
        "blocks_none": block_settings(kv_cache="none", suffix="all"),
        "blocks_dual": block_settings(suffix="all"),
        "blocks": block_settings(),
        "blocks_no_refine": block_settings(max_refine_steps=0),
    }
    return {name: in_slots(values, gen_length) for name, values in settings.items()}


def in_slots(settings: dict[str, Any], gen_length: int) -> Decode:
    """Decodes by these settings of a preset."""
    config = DecodingConfig.preset(**settings, gen_length=gen_length)
    return lambda work: (
        run_slots(Work(work.model, config, work.prompts, work.answers, work.slots)).samples
    )


def peers(gen_length: int) -> dict[str, Decode]:
    """The peers' variants by name. A canvas of more than two blocks they decode in blocks of 32;
    `_whole` takes it as one. `_eos` ends at the EOS, which Fast-dLLM does not do, others do."""
    blocks = BLOCK if gen_length > 2 * BLOCK else gen_length
    found: dict[str, tuple[int, Cache]] = {"peer_threshold": (blocks, "none")}
    if blocks != gen_length:
        found["peer_threshold_whole"] = gen_length, "none"
    found["peer_dual"] = BLOCK, "dual"
    variants = {}
    for name, (block, cache) in found.items():
        for suffix, stop in (("", False), (AT_EOS, True)):
            variants[name + suffix] = one_at_a_time(gen_length, block, cache, stop)
    return variants


def one_at_a_time(gen_length: int, block: int, cache: Cache, stop: bool) -> Decode:
    """A peer's loop over the prompts."""

    def decode(work: Work) -> list[PeerSample]:
        return [
            decode_peer(work.model, prompt, gen_length, block, THRESHOLD, cache, stop)
            for prompt in work.prompts
        ]

    return decode


def compare(work: Work, variants: Mapping[str, Decode], repeats: int) -> dict[str, Rate]:
    """Every variant's rate, in alternating turns on one thread."""
    check(work.model)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    samples: dict[str, Sequence[Sample | PeerSample]] = {}
    try:
        for turn in range(1, repeats + 1):
            for name, decode in variants.items():
                began = time.perf_counter()
                samples[name] = decode(work)
                seconds[name].append(time.perf_counter() - began)
            latest = (f"{n} {len(work.prompts) / taken[-1]:.1f}" for n, taken in seconds.items())
            print(f"turn {turn} of {repeats}, rows/s: {', '.join(latest)}", file=sys.stderr)
    finally:
        torch.set_num_threads(threads)
    return {name: rate_of(work, samples[name], seconds[name]) for name in variants}


def rate_of(work: Work, samples: Sequence[Sample | PeerSample], seconds: list[float]) -> Rate:
    """Accuracy and counts of a variant's last turn beside all turns' seconds."""
    num_rows = len(work.prompts)
    right = right_answers(work, [sample.canvas for sample in samples])
    return Rate(
        seconds=tuple(seconds),
        num_rows=num_rows,
        num_right=sum(map(sum, right)),
        num_problems=sum(map(len, right)),
        forwards=sum(sample.num_forwards for sample in samples) / num_rows,
        full_passes=sum(sample.full_passes for sample in samples) / num_rows,
        positions=sum(sample.positions_computed for sample in samples) / num_rows,
    )


def fastest(rates: Mapping[str, Rate], group: Literal["ours", "published", "peers"]) -> str:
    """The fastest of ours, of the peers as Fast-dLLM has them, or of these and their `_eos`."""
    names = {
        "ours": [name for name in rates if not name.startswith(PEER)],
        "published": [n for n in rates if n.startswith(PEER) and not n.endswith(AT_EOS)],
        "peers": [name for name in rates if name.startswith(PEER)],
    }[group]
    return max(names, key=lambda name: rates[name].rows_per_second)


def table(title: str, rates: Mapping[str, Rate]) -> str:
    """The rates as text."""
    peer = fastest(rates, "peers")
    lines = [
        "",
        f"{title}, {next(iter(rates.values())).num_rows} rows, one thread, "
        f"medians of {len(rates[peer].seconds)} turns",
        f"{'variant':26} {'rows/s':>8} {'x ' + peer:>22} {'right':>22} {'passes':>7} {'full':>6} "
        f"{'positions':>10}",
    ]
    for name, rate in rates.items():
        low, high = wilson(rate.num_right, rate.num_problems)
        share = rate.num_right / rate.num_problems
        lines.append(
            f"{name:26} {rate.rows_per_second:8.2f} {rate.times(rates[peer]):22.2f} "
            f"{share:8.3f} ({low:.3f}-{high:.3f}) {rate.forwards:7.2f} {rate.full_passes:6.2f} "
            f"{rate.positions:10.1f}"
        )
    mine, published = fastest(rates, "ours"), fastest(rates, "published")
    lines += [
        f"dual / none: {rates['blocks_dual'].times(rates['blocks_none']):.2f} in rows/s, "
        f"{positions_ratio(rates):.2f} in positions",
        f"fastest of ours ({mine}) / fastest peer as published ({published}): "
        f"{rates[mine].times(rates[published]):.2f}; / any peer ({peer}): "
        f"{rates[mine].times(rates[peer]):.2f}",
    ]
    return "\n".join(lines)


def positions_ratio(rates: Mapping[str, Rate]) -> float:
    """Positions computed a row without a cache ÷ with the dual one."""
    return rates["blocks_none"].positions / rates["blocks_dual"].positions


def summary(rates: Mapping[str, Rate]) -> dict[str, Any]:
    """Ratios, measured turn by turn, and each variant's figures."""
    mine, published, peer = (fastest(rates, group) for group in ("ours", "published", "peers"))
    return {
        "dual_over_none": round(rates["blocks_dual"].times(rates["blocks_none"]), 3),
        "fastest": {"ours": mine, "peer_as_published": published, "peer": peer},
        "ours_over_peer_as_published": round(rates[mine].times(rates[published]), 3),
        "ours_over_peer": round(rates[mine].times(rates[peer]), 3),
        "variants": {name: rate.as_json() for name, rate in rates.items()},
    }


def figures(prefix: str, rates: Mapping[str, Rate]) -> dict[str, float]:
    """What the benchmark's `rows_per_second` gets."""
    found = {prefix + name: round(rate.rows_per_second, 2) for name, rate in rates.items()}
    return {**found, f"{prefix}positions_ratio": round(positions_ratio(rates), 3)}


def measure(args: argparse.Namespace) -> tuple[list[str], dict[str, float], dict[str, Any]]:
    """Tables, figures for `rows_per_second`, and details: single problems, then worksheets where
    there is a model for them."""
    singles = read_work(args, args.blocks_dtype)
    works = {"": (f"single problems, canvas {args.gen_length}", singles, args.gen_length)}
    if (Path(args.sheets_model) / "config.json").is_file():
        asked = argparse.Namespace(
            **{**vars(args), "model": args.sheets_model, "prompts": args.sheets}
        )
        sheets = read_work(asked, args.blocks_dtype, SHEETS)
        works["sheets_"] = f"worksheets, canvas {SHEETS_CANVAS}", sheets, SHEETS_CANVAS
    else:
        print(f"worksheets are skipped: {args.sheets_model} holds no model", file=sys.stderr)
    tables, rates, details = [], dict[str, float](), {"dtype": args.blocks_dtype}
    for prefix, (title, work, gen_length) in works.items():
        found = compare(work, {**ours(gen_length), **peers(gen_length)}, args.repeats)
        tables.append(table(f"{title}, {args.blocks_dtype}", found))
        rates |= figures(prefix, found)
        details[prefix.rstrip("_") or "singles"] = summary(found)
    return tables, rates, details
