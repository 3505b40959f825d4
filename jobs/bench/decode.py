"""How fast decoding is: slots against static batches and the plain loop, blocks with and without
a cache against Fast-dLLM's loops, and what LRD costs.

    python -m jobs.bench.decode            # about 30 minutes on two cores; --quick: a smoke test
    python -m jobs.bench.decode --only blocks --repeats 5

Everything in one run, on the same prompts and settings, in alternating turns; medians. Prints
a table, then as its last line one JSON object. On a machine that does other work, threads wait
for each other: reserve cores for it, or --threads 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any
from unittest import mock

import torch

from jobs.bench import against_peers
from jobs.bench.plain_loop import decode_plain
from jobs.bench.rows_per_second import (
    Work,
    accuracy,
    decisions,
    read_work,
    run_plain,
    run_slots,
    run_static_drop,
    run_static_wait,
)
from jobs.bench.step import (
    ModelShape,
    StepCost,
    belief_peak_bytes,
    random_step_cost,
    real_shape,
    step_cost,
)
from lrd import decoding
from lrd.models.checkpoint import LoadedModel
from lrd.models.registry import TINY_SHEETS


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call, and its result."""
    began = time.perf_counter()
    found = call()
    return time.perf_counter() - began, found


def shares_of_time(work: Work) -> dict[str, float]:
    """Share of (c)'s time in the blocks, the head, the beliefs, and all the rest."""
    seconds = dict.fromkeys(("model", "head", "read"), 0.0)

    @contextmanager
    def clocked(owner: Any, name: str, part: str) -> Iterator[None]:
        plain = getattr(owner, name)

        def clock(*args: Any, **kwargs: Any) -> Any:
            spent, found = timed(lambda: plain(*args, **kwargs))
            seconds[part] += spent
            return found

        with mock.patch.object(owner, name, clock):
            yield

    with (
        clocked(LoadedModel, "hidden", "model"),
        clocked(LoadedModel, "head", "head"),
        clocked(decoding, "read_block", "read"),
    ):
        total, _ = timed(lambda: run_slots(work))
    beliefs = seconds["read"] - seconds["model"] - seconds["head"]
    rest = total - seconds["read"]
    parts = {"model": seconds["model"], "head": seconds["head"], "beliefs": beliefs, "rest": rest}
    return {part: spent / total for part, spent in parts.items()}


def profile(work: Work) -> str:
    """The ten operations of (c) that take most time of their own."""
    run_slots(work)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        run_slots(work)
    averages = sorted(profiler.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in averages)
    return "\n".join(
        f"{row.key[:48]:48} {row.self_cpu_time_total / total:6.1%} {row.count:7} calls"
        for row in averages[:10]
    )


def throughput(args: argparse.Namespace) -> dict[str, Any]:
    """Rows/s of every variant, and whether their results are equal."""
    work, half = read_work(args, "float32"), read_work(args, "bfloat16")
    variants: dict[str, Callable[[], Any]] = {
        "plain": lambda: run_plain(work),
        "static_wait": lambda: run_static_wait(work),
        "static_drop": lambda: run_static_drop(work),
        "slots": lambda: run_slots(work),
        "slots_bfloat16": lambda: run_slots(half),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    found: dict[str, Any] = {}
    decode_plain(work.model, work.prompts[0], work.config)  # warm
    num_rows = len(work.prompts)
    for turn in range(1, args.repeats + 1):
        for name, variant in variants.items():
            spent, found[name] = timed(variant)
            seconds[name].append(spent)
        latest = ", ".join(f"{name} {num_rows / taken[-1]:.1f}" for name, taken in seconds.items())
        print(f"turn {turn} of {args.repeats}, rows/s: {latest}", file=sys.stderr, flush=True)
    rates = {name: num_rows / median(taken) for name, taken in seconds.items()}
    plain, slots, low = found["plain"], found["slots"], found["slots_bfloat16"]
    equal = [decisions(a) == decisions(b) for a, b in zip(plain, slots.samples, strict=True)]
    agree = [a.canvas == b.canvas for a, b in zip(plain, low.samples, strict=True)]
    return {
        "rows": num_rows,
        "rows_per_second": {n: round(r, 2) for n, r in rates.items() if n != "slots_bfloat16"},
        "rows_per_second_bfloat16": round(rates["slots_bfloat16"], 2),
        "occupancy": round(slots.occupancy, 4),
        "padding_share": round(slots.padding_share, 4),
        "forwards_per_row": round(sum(s.num_forwards for s in slots.samples) / num_rows, 2),
        "identical": sum(equal),
        "agree_bfloat16": round(sum(agree) / num_rows, 4),
        "accuracy": round(accuracy(work, [s.canvas for s in slots.samples]), 4),
        "accuracy_bfloat16": round(accuracy(half, [s.canvas for s in low.samples]), 4),
        "shares": {part: round(share, 3) for part, share in shares_of_time(work).items()},
        "prompt_lengths": list(work.buckets),
    }


def costs(args: argparse.Namespace) -> dict[str, StepCost]:
    """LRD step ÷ baseline step: the embedded model, then random ones of real vocabularies."""
    work = read_work(args, "float32")
    longest = sorted(work.prompts, key=len)[-args.slots :]
    found = {
        str(work.model.embedding_table.shape[0]): step_cost(
            work.model, longest, args.gen_length, args.gen_length, args.gen_length, args.repeats
        )
    }
    shapes = {str(n): real_shape(n) for n in (32_768, 126_464, 152_064)}
    shapes["126464 vague"] = real_shape(126_464, sharpness=3.0)
    if args.quick:
        shapes = {"20480": ModelShape(20_480, 64, 1, 64, 2, 8, 8)}
    for name, shape in shapes.items():
        found[name] = random_step_cost(shape, num_passes=3, repeats=args.repeats)
    return found


def table(results: dict[str, Any], step_costs: dict[str, StepCost]) -> str:
    """The results as text."""
    rates = {**results["rows_per_second"], "slots bf16": results["rows_per_second_bfloat16"]}
    shares = ", ".join(f"{part} {share:.1%}" for part, share in results["shares"].items())
    lines = [f"{'variant':14} {'rows/s':>8} {'x plain':>8}"]
    lines += [f"{name:14} {r:8.2f} {r / rates['plain']:8.2f}" for name, r in rates.items()]
    lines += [
        f"identical to plain: {results['identical']} of {results['rows']} rows (float32), "
        f"{results['agree_bfloat16']:.1%} (bf16)",
        f"final answers right: {results['accuracy']:.1%} (float32), "
        f"{results['accuracy_bfloat16']:.1%} (bf16)",
        f"forwards a row {results['forwards_per_row']}, occupancy {results['occupancy']:.1%}, "
        f"padding {results['padding_share']:.1%}, prompt lengths {results['prompt_lengths']}",
        f"time of slots: {shares}",
        "",
        f"{'columns':14} {'baseline ms':>12} {'LRD ms':>8} {'ratio':>6} {'entropy':>8}",
    ]
    lines += [
        f"{name:14} {1e3 * cost.baseline_seconds:12.1f} {1e3 * cost.refined_seconds:8.1f} "
        f"{cost.ratio:6.3f} {cost.entropy:8.2f}"
        for name, cost in step_costs.items()
    ]
    peak = results["belief_peak_bytes"]
    found = "not known here" if peak is None else f"{peak / 2**30:.3f} GiB"
    lines.append(f"peak memory of beliefs: {found}")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m jobs.bench.decode", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--gen-length", type=int, default=64)
    parser.add_argument("--model", default="tiny", help="a checkpoint folder, or tiny")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--quick", action="store_true", help="one turn, few prompts, small shapes")
    parser.add_argument("--profile", action="store_true", help="where slots spend their time")
    parser.add_argument("--only", choices=["slots", "blocks"], help="one of the two parts [both]")
    parser.add_argument("--sheets", type=int, default=64, help="worksheets of the second part")
    parser.add_argument("--sheets-model", default=str(TINY_SHEETS))
    parser.add_argument(
        "--blocks-dtype", default="bfloat16", choices=["float32", "bfloat16"], help="of that part"
    )
    args = parser.parse_args()
    if args.quick:
        args.repeats, args.prompts, args.slots, args.sheets = 1, 12, 4, 2
    torch.set_num_threads(args.threads)
    if args.profile:
        print(profile(read_work(args, "float32")))
        return
    results: dict[str, Any] = {"rows_per_second": {}}
    if args.only != "blocks":
        results |= measure_slots(args)
    if args.only != "slots":
        tables, rates, results["blocks"] = against_peers.measure(args)
        print("\n".join(tables))
        results["rows_per_second"] |= rates
    print(json.dumps(results))


def measure_slots(args: argparse.Namespace) -> dict[str, Any]:
    """The first part: slots and what LRD costs; prints its table."""
    results = throughput(args)
    step_costs = costs(args)
    peak = ModelShape(126_464, 64, 1, 64, 8, 16, 512)
    results["belief_peak_bytes"] = belief_peak_bytes(
        ModelShape(20_480, 64, 1, 64, 2, 8, 64) if args.quick else peak
    )
    results["lrd_over_baseline"] = {n: round(cost.ratio, 4) for n, cost in step_costs.items()}
    print(table(results, step_costs))
    return results


if __name__ == "__main__":
    main()
