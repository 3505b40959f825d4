"""The paper's tables and figures, decoded through the pipeline.

    lrd reproduce all --output OUT                     # the embedded model on its word problems
    lrd reproduce table3 figure4 --output OUT --model GSAI-ML/LLaDA-8B-Instruct \
        --task gsm8k=PROMPTS --gen-length 256 --gen-length 512 --block-length 32 --replicas 8

Every decoding has a run of its own under OUT/runs, shared by all that show it; the same command
continues what was interrupted and decodes nothing twice.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jobs import output
from jobs.flags import add_model_flags, given, in_one_line
from lrd.config import DecodingConfig
from pipeline.config import FORMS, RunConfig
from pipeline.experiments.paper.decodings import NEEDED, items_named
from pipeline.scoring.word_problems import TASK as OWN_TASK

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.experiments.paper.paper_prompts import Prompts
    from pipeline.experiments.paper.study import Study

JOB = "lrd reproduce"
SEED = 7
"""Of the embedded model's test problems, as in its card."""
OWN_FLAGS = {
    *("decoding", "input", "output", "model", "prompt_column"),
    *("num_samples", "columns", "row_settings", "template_filler"),
    *FORMS,
}
GEN_LENGTHS = (64, 128)
"""Of the embedded model, whose answers are short."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags, and those of `lrd generate` for all runs alike."""
    parser.add_argument("items", nargs="+", metavar="ITEM", help=f"{', '.join(NEEDED)} or all")
    parser.add_argument("--output", required=True, metavar="OUT", help="folder of runs and tables")
    parser.add_argument("--model", action="append", help="as for lrd generate; may repeat [tiny]")
    parser.add_argument(
        "--task",
        action="append",
        metavar="NAME[=PROMPTS]",
        help="a task and its shards by lrd prepare --task; may repeat "
        f"[{OWN_TASK.name}, made here]",
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
        help="rows decoded again with their beliefs recorded, for figures 2 and 5 [100]",
    )
    parser.add_argument(
        "--tables-only",
        action="store_true",
        help="write the pages from finished runs; decode nothing",
    )
    add_model_flags(parser, RunConfig, exclude=OWN_FLAGS)
    add_model_flags(
        parser.add_argument_group("decoding, of all runs"), DecodingConfig, exclude={"gen_length"}
    )


@output.decoding_command(JOB)
def run(args: argparse.Namespace) -> int:
    """Decode what is not decoded yet and write the pages; the exit code."""
    items = items_named(args.items)
    with in_one_line():
        study, prompts = study_from(args)
        runs, num_failed = study.runs(items), 0
        if not args.tables_only:
            check_all(study, prompts, items)
    if not args.tables_only:
        from pipeline.experiments.paper.paper_prompts import write

        write(prompts)
        num_failed = decode_all(runs)
        replay_all(study, items, args.replay_rows)
    write_pages(study, items, args.replay_rows)
    return output.FAILED_ROWS if num_failed else output.OK


def study_from(args: argparse.Namespace) -> tuple[Study, dict[str, Prompts]]:
    """What is compared, and the prompts; ValueError for what is unknown or impossible."""
    from pipeline.experiments.paper.paper_prompts import prompts_of
    from pipeline.experiments.paper.study import Study
    from pipeline.storage.uris import canonical

    if args.preset not in ("paper", "fast"):
        raise ValueError(f"--preset is {args.preset!r}; LRD is paper or fast")
    if args.replay_rows < 1:
        raise ValueError(f"--replay-rows is {args.replay_rows}; at least 1 is needed")
    folder = canonical(args.output).rstrip("/")
    prompts = prompts_of(args.task or [OWN_TASK.name], args.limit, folder, test_problems)
    study = Study(
        output=folder,
        models=list(dict.fromkeys(args.model or ["tiny"])),
        prompts={task: found.uri for task, found in prompts.items()},
        gen_lengths=list(dict.fromkeys(args.gen_length or GEN_LENGTHS)),
        run=given(args, RunConfig),
        decoding=given(args, DecodingConfig),
        method=args.preset,
    )
    return study, prompts


def test_problems(count: int) -> pa.Table:
    """The first of the embedded model's test problems: columns prompt and answer."""
    import pyarrow as pa

    from jobs.tiny.accuracy import distinct

    tested = distinct(count, SEED)
    return pa.table(
        {
            "prompt": [problem.question for problem in tested],
            "answer": [str(problem.answer) for problem in tested],
        }
    )


def check_all(study: Study, prompts: dict[str, Prompts], items: list[str]) -> None:
    """Check settings, prompts and checkpoints of all runs before anything is written."""
    from pipeline.experiments.paper.pages import REPLAYED
    from pipeline.experiments.paper.paper_prompts import write
    from pipeline.preflight import check

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
    """Every run to its end, at once where it is finished; how many rows failed."""
    from pipeline.run import generate

    num_failed = 0
    for number, config in enumerate(runs, 1):
        output.default_signals()
        output.tell(f"run {number} of {len(runs)}: {config.output}")
        with output.Display() as show:
            summary = generate(config, show, lambda driver: output.handle_signals(JOB, driver))
        num_failed += summary.num_failed
    output.default_signals()
    return num_failed


def replay_all(study: Study, items: list[str], num_rows: int) -> None:
    """Replay what figures need."""
    from pipeline.experiments.paper.pages import REPLAYED
    from pipeline.experiments.paper.replays import replay_run

    for group in study.groups():
        for item in items:
            for name in REPLAYED.get(item, ()):
                config = study.config(group, name)
                output.tell(f"replaying rows for {item}: {config.output}")
                replay_run(config, num_rows)


def write_pages(study: Study, items: list[str], num_rows: int) -> None:
    """Every table and figure from what is on storage."""
    from pipeline.experiments.paper.pages import Pages
    from pipeline.storage.uris import child

    pages = Pages(study, num_rows, lambda folder: output.tell(f"scoring {folder}"))
    for item in items:
        names = pages.write(item)
        print(f"{item}: {', '.join(child(study.output, name) for name in names)}", flush=True)


if __name__ == "__main__":
    from jobs import cli

    cli.main("reproduce")
