"""The paper's tables and figures, decoded through the pipeline.

    lrd reproduce all --output OUT                     # the embedded model on its word problems
    lrd reproduce table3 figure4 --output OUT --model GSAI-ML/LLaDA-8B-Instruct \
        --task gsm8k=PROMPTS --gen-length 256 --gen-length 512 --block-length 32 --replicas 8

Every decoding has a run of its own under OUT/runs, shared by all that show it; the same command
continues what was interrupted and decodes nothing twice. Knows nothing of what tables hold.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from jobs import logs
from jobs.flags import add_model_flags, given
from jobs.generate import FAILED_ROWS, OK, Display, ended, handle_signals
from jobs.reproduce_prompts import OWN_TASK, Prompts, prompts_of, write
from lrd.config import DecodingConfig
from pipeline.config import RunConfig
from pipeline.experiments.paper.decodings import NEEDED, items_named
from pipeline.experiments.paper.pages import REPLAYED, Pages
from pipeline.experiments.paper.replays import replay_run
from pipeline.experiments.paper.study import Study
from pipeline.preflight import check
from pipeline.run import generate
from pipeline.storage.uris import child

JOB = "lrd reproduce"
OWN_FLAGS = {"decoding", "input", "output", "model", "prompt_column"}
GEN_LENGTHS = (64, 128)
"""Of the embedded model, whose answers are short."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The job's flags, and those of `lrd generate` for all runs alike."""
    parser.add_argument("items", nargs="+", metavar="ITEM", help=f"{', '.join(NEEDED)} or all")
    parser.add_argument("--output", required=True, metavar="OUT", help="folder of runs and tables")
    parser.add_argument("--model", action="append", help="as for lrd generate; may repeat [tiny]")
    parser.add_argument(
        "--task",
        action="append",
        metavar="NAME[=PROMPTS]",
        help=f"a task and its shards by lrd prepare --task; may repeat [{OWN_TASK}, made here]",
    )
    parser.add_argument("--gen-length", action="append", type=int, help="may repeat [64, 128]")
    parser.add_argument("--limit", type=int, help="take only the first rows of each task")
    parser.add_argument(
        "--preset", default="paper", metavar="paper|fast", help="what LRD is [paper]"
    )
    parser.add_argument(
        "--replay-rows",
        type=int,
        default=100,
        help="rows decoded once more, with their beliefs looked at, for figures 2 and 5 [100]",
    )
    parser.add_argument(
        "--tables-only", action="store_true", help="write what finished runs give; decode nothing"
    )
    logs.add_argument(parser)
    add_model_flags(parser, RunConfig, exclude=OWN_FLAGS)
    add_model_flags(
        parser.add_argument_group("decoding, of all runs"), DecodingConfig, exclude={"gen_length"}
    )


def run(args: argparse.Namespace) -> int:
    """The job; its exit code, as `lrd generate` has them."""
    return ended(JOB, lambda: reproduce(args), args.log_format)


def reproduce(args: argparse.Namespace) -> int:
    """Decode what is owed and write the pages. Raises as `ended` catches."""
    items = items_named(args.items)
    study, prompts = study_from(args)
    runs, num_failed = study.runs(items), 0
    if not args.tables_only:
        check_all(study, prompts, items)
        write(prompts)
        num_failed = decode_all(runs)
        replay_all(study, items, args.replay_rows)
    write_pages(study, items, args.replay_rows)
    return FAILED_ROWS if num_failed else OK


def study_from(args: argparse.Namespace) -> tuple[Study, dict[str, Prompts]]:
    """What is to be compared, and the prompts; ValueError for what is unknown or impossible."""
    if args.preset not in ("paper", "fast"):
        raise ValueError(f"--preset is {args.preset!r}; LRD is paper or fast")
    if args.replay_rows < 1:
        raise ValueError(f"--replay-rows is {args.replay_rows}; at least 1 is needed")
    output = args.output.rstrip("/")
    prompts = prompts_of(args.task or [OWN_TASK], args.limit, output)
    study = Study(
        output=output,
        models=list(dict.fromkeys(args.model or ["tiny"])),
        prompts={task: found.uri for task, found in prompts.items()},
        gen_lengths=list(dict.fromkeys(args.gen_length or GEN_LENGTHS)),
        run=given(args, RunConfig),
        decoding=given(args, DecodingConfig),
        method=args.preset,
    )
    return study, prompts


def check_all(study: Study, prompts: dict[str, Prompts], items: list[str]) -> None:
    """Look at settings, prompts and checkpoints of all runs before anything is written."""
    drawn = study.decoding.get("temperature", 0)
    if float(drawn) > 0 and set(items) & set(REPLAYED):
        raise ValueError(f"--temperature is {drawn}; figure2 and figure5 replay argmax alone")
    with tempfile.TemporaryDirectory() as folder:
        places = {
            task: found.uri if found.table is None else str(Path(folder, Path(found.uri).name))
            for task, found in prompts.items()
        }
        write({task: replace(found, uri=places[task]) for task, found in prompts.items()})
        for group in study.groups():
            config = study.config(group, NEEDED[items[0]][0])
            check(config.model_copy(update={"input": places[group.task]}))


def decode_all(runs: list[RunConfig]) -> int:
    """Every run to its end, at once where it is whole; how many rows failed."""
    num_failed = 0
    for number, config in enumerate(runs, 1):
        let_signals_end()
        logs.tell(f"run {number} of {len(runs)}: {config.output}")
        with Display() as show:
            summary = generate(config, show, lambda driver: handle_signals(JOB, driver))
        num_failed += summary.num_failed
    let_signals_end()
    return num_failed


def replay_all(study: Study, items: list[str], num_rows: int) -> None:
    """Replay what figures need."""
    for group in study.groups():
        for item in items:
            for name in REPLAYED.get(item, ()):
                config = study.config(group, name)
                logs.tell(f"replaying rows for {item}: {config.output}")
                replay_run(config, num_rows)


def write_pages(study: Study, items: list[str], num_rows: int) -> None:
    """Every table and figure from what lies on storage."""
    pages = Pages(study, num_rows, lambda folder: logs.tell(f"scoring {folder}"))
    for item in items:
        names = pages.write(item)
        print(f"{item}: {', '.join(child(study.output, name) for name in names)}", flush=True)


def let_signals_end() -> None:
    """Between runs nothing has to be kept: a driver's handlers would only wait for its end."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def main() -> None:
    """`python -m jobs.reproduce`."""
    parser = argparse.ArgumentParser(prog=JOB, description="Make the paper's tables and figures.")
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))


if __name__ == "__main__":
    main()
