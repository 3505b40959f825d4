"""Say what `lrd generate` would do with these settings: a dry run that writes nothing.

    lrd plan --input PROMPTS --output OUT [settings] [--sample N] [--like OTHER_OUT]

Ray is not started. `pipeline/inspection` (`plan.py`, `pace.py`) and `lrd/memory.py` have the
estimates.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs import output
from jobs.flags import add_run_flags, run_config
from pipeline.observe.stages import stage

if TYPE_CHECKING:
    from lrd.memory import MemoryNeed
    from pipeline.config import RunConfig
    from pipeline.inspection.plan import Duration, Forecast
    from pipeline.inspection.status import Inspector
    from pipeline.rows import Bucket, InputFile

DEVICES_GB = (16, 24, 40, 80, 141)
SHARDS_LISTED = 10
NUM_BARS, BAR_WIDTH = 12, 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `lrd generate`, and how much to read."""
    add_run_flags(parser)
    parser.add_argument(
        "--sample", type=int, metavar="N", help="tokenise the first N rows of each shard [all]"
    )
    parser.add_argument("--like", metavar="OTHER_OUT", help="a run to estimate the time from")
    output.add_price(parser)


@output.command("lrd plan")
def run(args: argparse.Namespace) -> int:
    """Print the plan; the exit code: 2 where `lrd generate` would refuse."""
    with stage("loading torch"):
        from lrd.memory import drawing, memory_need
        from pipeline.inspection.plan import (
            check_output,
            duration_of,
            expected_dtype,
            forecast,
            rows_left,
        )
        from pipeline.output.money import check_price
        from pipeline.output.run_folder import read_manifest
        from pipeline.preflight import check
        from pipeline.rows import Bucket
        from pipeline.storage.storage import Storage

    check_price(args.price_per_gpu_hour)
    if args.sample is not None and args.sample < 1:
        raise ValueError(f"--sample is {args.sample}; at least 1 is needed")
    config = run_config(args)
    checked = check(config)
    if args.like:  # Refused before the input is tokenised, which may take long.
        read_manifest(Storage(args.like))
    dtype = expected_dtype(config, checked.output)
    found = forecast(checked, config, args.sample)
    longest = found.largest or Bucket(1, config.decoding.gen_length)
    if config.decoding.grows:
        longest = longest._replace(canvas=config.decoding.canvases[-1])
    decoding = config.decoding.at(longest.canvas)
    if "temperature" in config.row_settings:
        decoding = drawing(decoding)
    need = memory_need(checked.face, dtype, decoding, longest.prompt)
    print("\n".join([*_input(checked.files, found), *_notes(checked.notes)]))
    print("\n".join([*_lengths(found), *_growth(config.decoding.canvases)]))
    print("\n".join(_memory(need, dtype, longest, config)))
    inspector = check_output(checked, config, dtype)
    print("\n".join(_output(config, inspector)))
    duration = duration_of(config, rows_left(found, inspector), inspector, args.like)
    print(f"time      {_time(duration)}")
    source = args.like or (config.output if inspector is not None else None)
    for line in _cost(config, duration, source, args.price_per_gpu_hour):
        print(line)
    return output.OK


def _input(files: list[InputFile], found: Forecast) -> list[str]:
    lines = [f"input     {found.num_rows} rows in {len(files)} shards"]
    if found.num_samples > 1:
        lines[0] += (
            f" × {found.num_samples} samples = {found.num_rows * found.num_samples} rows to "
            "decode; the figures below are of prompts"
        )
    lines += [f"  {file.num_rows:9d}  {file.name}" for file in files[:SHARDS_LISTED]]
    if len(files) > SHARDS_LISTED:
        rows = [file.num_rows for file in files[SHARDS_LISTED:]]
        lines.append(f"  … and {len(rows)} more of {min(rows)} to {max(rows)} rows")
    if found.num_seen < found.num_rows:
        share = found.num_seen / found.num_rows
        lines.append(
            f"sampled   {found.num_seen} rows ({share:.1%}); the figures below are of these"
        )
    lines.append(
        f"refused   {found.refused.total()} rows cannot be decoded and will be failed rows"
        + (f", {found.num_samples} each" if found.refused and found.num_samples > 1 else "")
    )
    lines += [f"  {count:9d}  {reason}" for reason, count in found.refused.most_common()]
    return lines


def _notes(notes: list[str]) -> list[str]:
    return [f"note      {line}" for line in notes]


def _lengths(found: Forecast) -> list[str]:
    """Histogram, buckets, padding."""
    if not found.lengths:
        return ["tokens    no prompt can be decoded"]
    total = sum(length * count for length, count in found.lengths.items())
    lines = [f"tokens    {total / found.lengths.total():.1f} per prompt, with its template"]
    lines += _bars(found.lengths)
    lines.append("bucket         rows   padding of its prompts   of prompts and canvases")
    vary = len({bucket.canvas for bucket in found.buckets}) > 1
    for bucket, of_it in sorted(found.buckets.items()):
        name = str(bucket) if vary else str(bucket.prompt)
        lines.append(
            f"  {name:>5}  {of_it.rows:9d} {found.padding(bucket):23.1%} "
            f"{found.padding(bucket, canvases=True):25.1%}"
        )
    lines.append(
        f"  all    {found.lengths.total():9d} {found.padding():23.1%} "
        f"{found.padding(canvases=True):25.1%}"
    )
    return lines


def _growth(canvases: Sequence[int]) -> list[str]:
    """Where rows may move to longer canvases."""
    first, *longer = canvases
    if not longer:
        return []
    return [
        f"canvas    rows begin in {first} positions and move to "
        f"{' and '.join(map(str, longer))} where they need them"
    ]


def _bars(lengths: Counter[int]) -> list[str]:
    """One bar per range of lengths; ranges are multiples of 8 wide."""
    width = -(-max(lengths) // (NUM_BARS * 8)) * 8
    counts: Counter[int] = Counter()
    for length, count in lengths.items():
        counts[(length - 1) // width] += count
    most = max(counts.values())
    return [
        f"  {index * width + 1:5d} to {(index + 1) * width:5d}  {counts[index]:9d} "
        + "#" * -(-counts[index] * BAR_WIDTH // most)
        for index in range(min(counts), max(counts) + 1)
    ]


def _memory(need: MemoryNeed | None, dtype: str, longest: Bucket, config: RunConfig) -> list[str]:
    from lrd.memory import MOST_SLOTS

    if need is None:
        return [
            "memory    unknown: the model is another package's, and its shape is not known here"
        ]
    lines = [
        f"memory    {_gb(need.weights)} of weights in {dtype}; slots of {longest.prompt} "
        f"+ {longest.canvas} tokens: 1 takes {_gb(need.beside_weights(1))}, "
        f"{config.slots} take {_gb(need.beside_weights(config.slots))}; estimated, not measured"
    ]
    lines += _cache(need, longest, config)
    for size in DEVICES_GB:
        slots = need.slots_in(size * 1e9)
        more = " or more" if slots == MOST_SLOTS else ""
        note = f"{slots} slots{more}" if slots else "does not hold it"
        few = f", fewer than --slots {config.slots}" if 0 < slots < config.slots else ""
        lines.append(f"  {size:5d} GB GPU  {note}{few}")
    return lines


def _cache(need: MemoryNeed, longest: Bucket, config: RunConfig) -> list[str]:
    """The part of the memory that a block cache takes; nothing without one."""
    from lrd.memory import memory_of

    if not config.decoding.caches:
        return []
    one, every = (
        memory_of(need.model, need.decoding, longest.prompt, num_slots).cache
        for num_slots in (1, config.slots)
    )
    return [
        f"cache     keys and values of kv_cache {config.decoding.kv_cache}, within the memory of "
        f"slots: 1 has {_gb(one)}, {config.slots} have {_gb(every)}"
    ]


def _output(config: RunConfig, inspector: Inspector | None) -> list[str]:
    if inspector is None:
        return [f"output    {config.output}: nothing there yet"]
    state = inspector.snapshot()
    return [
        f"output    {config.output}: a run with this fingerprint; {state.num_done} of "
        f"{state.num_rows} rows done, {state.num_failed} failed, {state.num_whole} of "
        f"{len(state.shards)} shards written"
    ]


def _time(duration: Duration | str) -> str:
    if isinstance(duration, str):
        return duration
    text = (
        f"about {output.duration(duration.seconds)} for {duration.num_rows:.0f} rows on "
        f"{duration.num_replicas} replicas, at the pace of {duration.source}"
    )
    if duration.differing:
        text += f"; rows take another time here, since {'; '.join(duration.differing)}"
    return text


def _cost(
    config: RunConfig, duration: Duration | str, source: str | None, price: float | None
) -> list[str]:
    """How the rows of the run whose pace is taken spread, and what those left will cost."""
    from pipeline.inspection.cost import PastRows, cost_of, past_rows
    from pipeline.output.money import money
    from pipeline.storage.storage import Storage

    past = PastRows() if source is None else past_rows(Storage(source))
    of = ", ".join(f"{name} {spread}" for name, spread in past.spreads)
    lines = [f"rows      there, each: {of.replace(', seconds', '; seconds')}"] if of else []
    if price is None:
        return lines
    found = cost_of(config, duration, source, past, price)
    if isinstance(found, str):
        return [*lines, f"cost      {found}"]
    cost = found.cost
    tokens = cost.million_tokens
    text = (
        f"cost      about {money(cost.total)} for {cost.gpu_hours:,.2f} GPU-hours at "
        f"{money(price)}; a thousand rows {money(cost.thousand_rows)}"
    )
    text += "" if tokens is None else f", a million effective tokens {money(tokens)}"
    if found.low is None or found.high is None:
        return [*lines, text, "          no range: it takes two written shards of that run"]
    low, high = (money(cost.total * factor) for factor in (found.low, found.high))
    return [
        *lines,
        text,
        f"          {low} to {high} if all shards are like its fastest or its slowest, on "
        "GPUs like its own",
    ]


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 5e6 else f"{num_bytes / 1e6:.2f} MB"
