"""Tell what `lrd generate` would do with these settings: a dry run that writes nothing.

    lrd plan --input PROMPTS --output OUT [settings] [--sample N] [--like OTHER_OUT]

No Ray is started. Knows nothing of how it is reckoned (`pipeline/inspection/plan.py`, `pace.py`,
`memory.py`).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from jobs import generate
from jobs.generate import settings_from
from jobs.status import duration
from pipeline.config import RunConfig
from pipeline.inspection.memory_need import MOST_SLOTS, MemoryNeed, memory_need
from pipeline.inspection.pace import pace_of, seconds_for
from pipeline.inspection.plan import Forecast, check_output, forecast, padding, rows_left
from pipeline.inspection.status import Inspector, whole_manifest
from pipeline.output.run_folder import MANIFEST
from pipeline.preflight import check
from pipeline.rows import InputFile
from pipeline.storage.storage import Storage

OK, REFUSED = 0, 2
DEVICES_GB = (16, 24, 40, 80, 141)
SHARDS_LISTED = 10
NUM_BARS, BAR_WIDTH = 12, 40
LINE_SECONDS = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `lrd generate`, and how closely to look."""
    generate.add_arguments(parser)
    parser.add_argument("--sample", type=int, metavar="N", help="tokenise N rows a shard [all]")
    parser.add_argument("--like", metavar="OTHER_OUT", help="a run to reckon the time from")


def run(args: argparse.Namespace) -> int:
    """The job; its exit code: 2 where `lrd generate` would refuse."""
    try:
        if args.sample is not None and args.sample < 1:
            raise ValueError(f"--sample is {args.sample}; at least 1 is needed")
        config = settings_from(args)
        checked = check(config)
        dtype = expected_dtype(config, checked.output)
        found = forecast(checked, config, args.sample, _Ticker(len(checked.files)))
        longest = max(found.buckets, default=1)
        need = memory_need(checked.face, dtype, config.decoding, longest)
        print("\n".join([*_input(checked.files, found), *_notes(checked.notes)]))
        print("\n".join(_lengths(found, config.decoding.gen_length)))
        print("\n".join(_memory(need, dtype, longest, config)))
        inspector = check_output(checked, config, dtype)
        print("\n".join(_output(config, inspector)))
        print(f"time      {_time(config, rows_left(found, inspector), inspector, args.like)}")
    except (ValueError, OSError) as error:
        print(f"lrd plan: {error}", file=sys.stderr)
        return REFUSED
    return OK


def expected_dtype(config: RunConfig, output: Storage) -> str:
    """The dtype of the run. What `auto` will be is known on the cluster alone: that of the run
    that is there, else a GPU's."""
    if config.dtype != "auto":
        return config.dtype
    if output.kind(MANIFEST) == "file":
        return str(whole_manifest(output)["fingerprint"]["dtype"])
    return "float32" if config.device == "cpu" else "bfloat16"


class _Ticker:
    """Says how far a long look is."""

    def __init__(self, num_shards: int) -> None:
        self._num_shards, self._last = num_shards, time.monotonic()

    def __call__(self, number: int) -> None:
        if time.monotonic() - self._last >= LINE_SECONDS:
            self._last = time.monotonic()
            print(f"{number + 1}/{self._num_shards} shards read", file=sys.stderr, flush=True)


def _input(files: list[InputFile], found: Forecast) -> list[str]:
    lines = [f"input     {found.num_rows} rows in {len(files)} shards"]
    lines += [f"  {file.num_rows:9d}  {file.name}" for file in files[:SHARDS_LISTED]]
    if len(files) > SHARDS_LISTED:
        rows = [file.num_rows for file in files[SHARDS_LISTED:]]
        lines.append(f"  … and {len(rows)} more of {min(rows)} to {max(rows)} rows")
    if found.num_seen < found.num_rows:
        share = found.num_seen / found.num_rows
        lines.append(f"sampled   {found.num_seen} rows ({share:.1%}); what follows is of these")
    lines.append(
        f"refused   {found.refused.total()} rows cannot be decoded and will be failed rows"
    )
    lines += [f"  {count:9d}  {reason}" for reason, count in found.refused.most_common()]
    return lines


def _notes(notes: list[str]) -> list[str]:
    return [f"note      {line}" for line in notes]


def _lengths(found: Forecast, gen_length: int) -> list[str]:
    """Histogram, buckets, padding."""
    if not found.lengths:
        return ["tokens    no prompt can be decoded"]
    total = sum(length * count for length, count in found.lengths.items())
    lines = [f"tokens    {total / found.lengths.total():.1f} a prompt, with its template"]
    lines += _bars(found.lengths)
    lines.append("bucket         rows   padding of its prompts   of prompts and canvases")
    for length, bucket in sorted(found.buckets.items()):
        own = [(length, bucket)]
        lines.append(
            f"  {length:5d}  {bucket.rows:9d} {padding(own):23.1%} {padding(own, gen_length):25.1%}"
        )
    lines.append(
        f"  all    {found.lengths.total():9d} {found.padding():23.1%} "
        f"{found.padding(gen_length):25.1%}"
    )
    return lines


def _bars(lengths: Counter[int]) -> list[str]:
    """A bar a range of lengths; ranges are multiples of 8 wide."""
    width = -(-max(lengths) // (NUM_BARS * 8)) * 8
    counts: Counter[int] = Counter()
    for length, count in lengths.items():
        counts[(length - 1) // width] += count
    most = max(counts.values())
    return [
        f"  {place * width + 1:5d} to {(place + 1) * width:5d}  {counts[place]:9d} "
        + "#" * -(-counts[place] * BAR_WIDTH // most)
        for place in range(min(counts), max(counts) + 1)
    ]


def _memory(need: MemoryNeed | None, dtype: str, longest: int, config: RunConfig) -> list[str]:
    if need is None:
        return ["memory    unknown: the shape of another package's model is not known here"]
    lines = [
        f"memory    {_gb(need.weights)} of weights in {dtype}; slots of {longest} + "
        f"{config.decoding.gen_length} tokens: 1 takes {_gb(need.beside_weights(1))}, "
        f"{config.slots} take {_gb(need.beside_weights(config.slots))}; reckoned, not measured"
    ]
    for size in DEVICES_GB:
        slots = need.slots_in(size * 1e9)
        more = " or more" if slots == MOST_SLOTS else ""
        note = f"{slots} slots{more}" if slots else "does not hold it"
        few = f", fewer than --slots {config.slots}" if 0 < slots < config.slots else ""
        lines.append(f"  {size:5d} GB  {note}{few}")
    return lines


def _output(config: RunConfig, inspector: Inspector | None) -> list[str]:
    if inspector is None:
        return [f"output    {config.output}: nothing there yet"]
    state = inspector.look()
    return [
        f"output    {config.output}: a run with this fingerprint; {state.num_done} of "
        f"{state.num_rows} rows done, {state.num_failed} failed, {state.num_whole} of "
        f"{len(state.shards)} shards written"
    ]


def _time(
    config: RunConfig, left: dict[int, float], inspector: Inspector | None, like: str | None
) -> str:
    """How long the rows left will take, or why that is unknown."""
    num_left = sum(left.values())
    if round(num_left) == 0:
        return "nothing is left to decode"
    source = like or (config.output if inspector is not None else None)
    if source is None:
        return "unknown: nothing was decoded with these settings yet; --like OUT takes a run's pace"
    pace = pace_of(Storage(source))
    if pace is None:
        return f"unknown: {source} has decoded no row yet"
    seconds = seconds_for(left, pace, config.replicas)
    replicas = config.replicas or pace.num_replicas
    return (
        f"about {duration(seconds)} for {num_left:.0f} rows on {replicas} replicas, at the pace of "
        f"{pace.source}"
    )


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 5e6 else f"{num_bytes / 1e6:.2f} MB"


def main() -> None:
    """`python -m jobs.plan`."""
    parser = argparse.ArgumentParser(prog="lrd plan", description="Tell what generate would do.")
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))


if __name__ == "__main__":
    main()
