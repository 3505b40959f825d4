"""Measure the throughput of a model and settings, on this machine or on a cluster.

    lrd bench --model FOLDER --slots 1 4 16 --canvas 64 128 256 --output before.json
    lrd bench … --compare before.json          # after a change: ratios, and what they prove
    lrd bench --cluster --config RUN.toml      # `lrd generate` itself, with all replicas

Settings come from the preset, the TOML file and the flags, as those of `lrd generate`. Prints a
page, and as its last line one JSON object; `jobs/bench/README.md` says what each figure is.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import output
from jobs.flags import add_model_flags, in_one_line, read_run_file, run_config
from lrd.config import ALL_PRESETS, COMMIT_RULES, DecodingConfig
from pipeline.config import MOST_CPUS, RunConfig
from pipeline.observe.stages import stage

if TYPE_CHECKING:
    from jobs.bench.bench_cells import Cell
    from jobs.bench.bench_prompts import Prompts

JOB = "lrd bench"
USED = {
    *("input", "prompt_column", "prompt_format", "system_prompt", "allow_special_tokens"),
    *("truncation", "model", "revision", "device", "dtype", "compile", "pass_rows", "address"),
    *("replicas", "cpus_per_replica", "gpus_per_replica", "accelerator_type", "decoding"),
}
"""Settings of a run that figures depend on: they have flags, and count in a run file."""
OF_RUNS = {
    *("output", "slots", "num_samples", "columns", "row_settings", "stop", "lookahead_shards"),
    *("flush_seconds", "max_attempts", "max_restarts", "hang_seconds", "start_seconds"),
    "autoscale",
}
"""Those that may stand in a run file and change nothing here. Any other, such as what gives answers
a form, would change what a pass computes and is refused."""
NOT_USED = "(none)"
"""Stands for the input and output that a run would need."""
MAX_REPEAT = 1000
NUM_PROMPTS = 512
"""Prompts that are read, or more where a cell has more rows: columns of a slot, and the rows of a
cell, are then the same whatever the other cells are."""

Measure = Callable[["Cell"], dict[str, Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure, and the settings of `lrd generate`."""
    parser.add_argument(
        "--slots", type=int, nargs="+", metavar="N", help="canvases at a time [the settings' slots]"
    )
    parser.add_argument(
        "--canvas", type=int, nargs="+", metavar="N", help="tokens of a canvas [gen_length]"
    )
    parser.add_argument(
        "--prompt-tokens",
        type=int,
        metavar="N",
        help="prompt tokens of a slot: longer prompts are left out, random ones have N "
        "[the longest prompt; 128]",
    )
    parser.add_argument(
        "--passes",
        type=int,
        metavar="N",
        help="give every row N passes, whatever it answers [its own; random prompts: 10 a block]",
    )
    parser.add_argument(
        "--rows-a-slot",
        type=int,
        metavar="N",
        help="rows of a repetition for each slot [4, and 16 rows at least; 32 with --cluster]",
    )
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="repetitions [5]")
    parser.add_argument(
        "--seconds", type=float, default=600.0, help="budget; what does not fit is left out [600]"
    )
    parser.add_argument(
        "--cluster",
        action="store_true",
        help="measure lrd generate itself with all replicas; --address means it too "
        "[one replica in this process, without Ray]",
    )
    parser.add_argument("--compare", metavar="FILE", help="an earlier result: JSON or JSON lines")
    parser.add_argument(
        "--output", metavar="FILE.json", help="write the result there and a plot, FILE.svg"
    )
    parser.add_argument(
        "--config", metavar="RUN.toml", help="file of settings; those of [decoding] as a table"
    )
    parser.add_argument("--preset", choices=sorted(ALL_PRESETS), help="decoding preset [fast]")
    others = RunConfig.model_fields.keys() - USED
    add_model_flags(parser.add_argument_group("run"), RunConfig, exclude={*others, "decoding"})
    add_model_flags(parser.add_argument_group("decoding"), DecodingConfig)


@output.command(JOB)
def run(args: argparse.Namespace) -> int:
    """Measure and print; the exit code: 75 where Ctrl-C ended it, with what was measured so far."""
    check_numbers(args)
    config = settings(args)
    decodings = decodings_of(config, args.canvas, args.passes)
    from jobs.bench import bench_compare, bench_page
    from jobs.bench.bench_cells import each, grid
    from pipeline.preflight import refuse_secrets

    refuse_secrets(config)
    files = bench_page.Files.of(args.output)
    earlier = bench_compare.read(args.compare) if args.compare else None
    output.default_signals()
    began, started = time.monotonic(), datetime.now(UTC)
    deadline = began + args.seconds
    grid_cells = grid(args.slots or [config.slots], list(decodings))
    begin = begin_cluster if args.cluster or config.address else begin_process
    facts, measure = begin(args, config, decodings, grid_cells, deadline)
    cells: list[dict[str, Any]] = []
    interrupted = False
    try:
        for cell in each(grid_cells, measure, deadline):
            cells.append(cell)
            output.tell(bench_page.in_short(cell))
    except KeyboardInterrupt:
        interrupted = True
    measured = [cell for cell in cells if "reason" not in cell]
    measured.sort(key=lambda cell: (cell["canvas"], cell["slots"]))
    if not measured and not interrupted:
        raise ValueError(f"nothing could be measured; {bench_page.in_short(cells[0])}")
    not_begun = "interrupted before it was done"
    done = {(cell["slots"], cell["canvas"]) for cell in cells}
    result = {
        "lrd_bench": 1,
        **facts,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - began, 1),
        "interrupted": interrupted,
        "repeat": args.repeat,
        "budget_seconds": args.seconds,
        "cells": measured,
        "left_out": [cell for cell in cells if "reason" in cell]
        + [{**c._asdict(), "reason": not_begun} for c in grid_cells if c not in done],
    }
    if earlier is not None:
        result["compared"] = bench_compare.compare(earlier, result)
    print(bench_page.as_markdown(result))
    print(json.dumps(result))
    files.write(result)
    if interrupted:
        reason = "interrupted; the figures are of what was done before"
        return output.refuse(JOB, reason, output.INTERRUPTED)
    return output.OK


def check_numbers(args: argparse.Namespace) -> None:
    """Raises ValueError for a number that cannot be meant."""
    single = ("prompt_tokens", "passes", "rows_a_slot", "repeat")
    values = [(name, getattr(args, name)) for name in single]
    values += [(name, value) for name in ("slots", "canvas") for value in getattr(args, name) or ()]
    for name, value in values:
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; at least 1 is needed")
    if args.repeat > MAX_REPEAT:
        raise ValueError(f"--repeat is {args.repeat}; at most {MAX_REPEAT} are possible")
    if not 0 < args.seconds < math.inf:
        raise ValueError(f"--seconds is {args.seconds:g}; expected a number above 0")


def settings(args: argparse.Namespace) -> RunConfig:
    """The settings of a run that are measured; its input is `NOT_USED` where none is named.

    Raises ValueError as `run_config`.
    """
    given = vars(args)
    named = args.config and "input" in read_run_file(args.config)
    fixed = {"output": NOT_USED, "num_samples": 1, "row_settings": (), "stop": ()}
    if not named and "RunConfig.input" not in given:
        fixed["input"] = NOT_USED
    given = {**given, **{f"RunConfig.{name}": value for name, value in fixed.items()}}
    config = run_config(argparse.Namespace(**given))
    for name in RunConfig.model_fields.keys() - USED - OF_RUNS:
        if getattr(config, name) != RunConfig.model_fields[name].default:
            raise ValueError(f"{args.config}: {name} cannot be measured by lrd bench; take it out")
    with in_one_line():
        for slots in args.slots or ():
            RunConfig(**{**dict(config), "slots": slots})
    return config


def with_passes(decoding: DecodingConfig, passes: int) -> DecodingConfig:
    """The decoding with exactly so many passes for every row, whatever the model answers."""
    rules = dict.fromkeys(COMMIT_RULES)
    changes: dict[str, Any] = {
        **rules,
        "tokens_per_step": 1,
        "steps": passes,
        "schedule": "even",
        "early_stop": False,
        "stop_at_eos": False,
        "max_gen_length": None,
        "max_refine_steps": 0,
        "refinement": "initial",
    }
    return DecodingConfig(**{**decoding.model_dump(), **changes})


def decodings_of(
    config: RunConfig, canvases: Sequence[int] | None, passes: int | None
) -> dict[int, DecodingConfig]:
    """The decoding of each canvas. Where canvases may grow, each length that they may have.

    passes: of every row; None: its own.

    Raises ValueError where the settings do not allow a canvas.
    """
    found = {}
    for canvas in canvases or config.decoding.canvases:
        changes = {"gen_length": canvas, "max_gen_length": None}
        try:
            with in_one_line():
                one = DecodingConfig(**{**config.decoding.model_dump(), **changes})
                found[canvas] = with_passes(one, passes) if passes else one
        except ValueError as error:
            raise ValueError(f"--canvas {canvas}: {error}") from error
    return found


def without_answers(
    prompts: Prompts, decodings: Mapping[int, DecodingConfig], passes: int | None
) -> dict[int, DecodingConfig]:
    """The decodings, with a fixed number of passes where the prompts are random: how soon a row
    ends would say nothing."""
    from jobs.bench.gpu_models import PASSES_A_BLOCK

    if prompts.are_real or passes is not None:
        return dict(decodings)
    return {
        canvas: with_passes(one, min(PASSES_A_BLOCK, one.block_tokens) * one.num_blocks)
        for canvas, one in decodings.items()
    }


def begin_process(
    args: argparse.Namespace,
    config: RunConfig,
    decodings: Mapping[int, DecodingConfig],
    cells: Sequence[Cell],
    deadline: float,
) -> tuple[dict[str, Any], Measure]:
    """Load the model here; what the result says of the run, and what measures a cell."""
    import torch

    from jobs.bench.bench_cells import Setup, measure, rounded, warm_up
    from jobs.bench.peaks import Peak, peak_of
    from lrd import load_model
    from lrd.models.c_compiler import refuse_without_compiler
    from lrd.models.compiled import check_compile
    from lrd.rounding import computed_by
    from pipeline.storage.model_files import local_model

    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = config.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: torch finds no CUDA device here; choose cpu")
    check_compile(config.compile, torch.device(device))
    if device == "cuda" and config.compile in ("compile", "graphs"):
        refuse_without_compiler(", or measure with --compile none")
    prompts = prompts_of_run(args, config, decodings, cells, dtype)
    decodings = without_answers(prompts, decodings, args.passes)
    threads, load = num_threads(config), round(os.getloadavg()[0], 2)
    torch.set_num_threads(threads)
    began = time.perf_counter()
    with stage(f"loading {config.model} in {dtype} on {device}"), memory_in_one_line():
        model = load_model(
            local_model(config.model), device, dtype, config.revision, config.compile
        )
    loaded = time.perf_counter() - began
    peak = Peak(None, "no peak of a CPU is known")
    if device == "cuda":
        peak = peak_of(torch.cuda.get_device_name(), dtype)
    setup = Setup(
        model=model,
        decodings=decodings,
        prompts=prompts,
        pass_rows=config.pass_rows,
        peak=peak,
        rows_a_slot=args.rows_a_slot,
        repeat=args.repeat,
        fixed_passes=args.passes is not None or not prompts.are_real,
        deadline=deadline,
        tell=teller(),
    )
    with stage("making the first pass"), memory_in_one_line():
        first = warm_up(setup)
    machine = {**computed_by(setup.device), "processor": processor(), "threads": threads}
    machine["load_average"] = load
    facts = {
        "mode": "process",
        "settings": settings_told(config, decodings, device, dtype),
        "machine": machine,
        "prompts": prompts.as_json(),
        "fixed_passes": passes_told(setup.fixed_passes, decodings),
        "peak_tflops": peak.tflops,
        "peak_source": peak.source,
        "load_seconds": rounded(loaded),
        "first_pass_seconds": rounded(first),
    }
    return facts, lambda cell: measure(setup, cell)


def begin_cluster(
    args: argparse.Namespace,
    config: RunConfig,
    decodings: Mapping[int, DecodingConfig],
    cells: Sequence[Cell],
    deadline: float,
) -> tuple[dict[str, Any], Measure]:
    """Join the cluster; as `begin_process`."""
    dtype = "bfloat16" if config.dtype == "auto" else config.dtype
    prompts = prompts_of_run(args, config, decodings, cells, dtype)
    if not prompts.values:
        raise ValueError(f"{config.model}: has no tokenizer, which lrd generate needs")
    decodings = without_answers(prompts, decodings, args.passes)
    with stage("connecting to Ray"):
        import torch

        from jobs.bench.cluster_cells import Cluster

        cluster = Cluster(
            config=config,
            decodings=decodings,
            prompts=prompts,
            rows_a_slot=args.rows_a_slot,
            repeat=args.repeat,
            fixed_passes=args.passes is not None or not prompts.are_real,
            deadline=deadline,
            tell=teller(),
        )
    facts = {
        "mode": "cluster",
        "settings": settings_told(config, decodings, cluster.device, cluster.dtype),
        "machine": {**cluster.machine, "torch": torch.__version__, "replicas": cluster.replicas},
        "prompts": prompts.as_json(),
        "fixed_passes": passes_told(cluster.fixed_passes, decodings),
    }
    return facts, cluster.measure


@contextmanager
def memory_in_one_line() -> Iterator[None]:
    """A model that does not fit as a ValueError."""
    from lrd.engine import is_out_of_memory

    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0]
        raise ValueError(f"no memory for the model and one slot of it: {reason}") from error


def prompts_of_run(
    args: argparse.Namespace,
    config: RunConfig,
    decodings: Mapping[int, DecodingConfig],
    cells: Sequence[Cell],
    dtype: str,
) -> Prompts:
    """Prompts for the largest cell, checked against the model before its weights are read."""
    from jobs.bench.bench_cells import rows_of
    from jobs.bench.bench_prompts import prompts_for
    from lrd import load_model
    from lrd.engine import refuse_without_cache
    from pipeline.storage.model_files import local_model

    face = load_model(local_model(config.model), "meta", dtype, config.revision)
    for decoding in decodings.values():
        refuse_without_cache(face, decoding)
    return prompts_for(
        config,
        None if config.input == NOT_USED else config.input,
        face,
        max([NUM_PROMPTS, *(rows_of(cell, args.rows_a_slot, False) for cell in cells)]),
        face.max_length - max(decodings),
        args.prompt_tokens,
    )


def settings_told(
    config: RunConfig, decodings: Mapping[int, DecodingConfig], device: str, dtype: str
) -> dict[str, Any]:
    """The settings that figures depend on."""
    from pipeline.preflight import package_version

    decoding = next(iter(decodings.values())).model_dump(exclude={"gen_length", "steps"})
    run = config.model_dump(include={"model", "revision", "compile", "pass_rows"})
    return {**run, "device": device, "dtype": dtype, "version": package_version()} | {
        "decoding": decoding
    }


def passes_told(fixed: bool, decodings: Mapping[int, DecodingConfig]) -> dict[str, int] | None:
    """Passes of a row by canvas, where they are fixed."""
    return {str(canvas): one.steps or 0 for canvas, one in decodings.items()} if fixed else None


def num_threads(config: RunConfig) -> int:
    """Threads of the replica in this process, as one on this machine alone would have."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(config.cpus_per_replica or min(MOST_CPUS, here)))


def processor() -> str:
    """The processor's name; empty where the system does not tell it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "")


def teller() -> Callable[[str], None]:
    """Writes a line of progress now and then."""
    last = time.monotonic()

    def tell(line: str) -> None:
        nonlocal last
        if time.monotonic() - last >= output.LINE_SECONDS:
            last = time.monotonic()
            output.tell(line)

    return tell
