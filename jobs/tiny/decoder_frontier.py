"""Every decoder on one frontier: accuracy against passes and rows a second, paired with `fast`.

    python -m jobs.tiny.decoder_frontier measure --task singles --output FOLDER
    python -m jobs.tiny.decoder_frontier measure --task sheets --output FOLDER
    python -m jobs.tiny.decoder_frontier measure --task plain --output FOLDER
    python -m jobs.tiny.decoder_frontier time --output FOLDER
    python -m jobs.tiny.decoder_frontier page jobs/benchmarks/which-decoder.md --output FOLDER

`measure` decodes the same problems by every preset of `lrd/presets.py` and stores the outcomes, a
file each; what is stored is not decoded again. `time` decodes a few rows by all of them in turns,
on an idle machine. `page` fills the marked blocks of a page and draws its plots. Without Ray.
`plain` needs the weights of `python -m jobs.tiny.train --output runs/plain --soft-from 1`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from jobs.tiny.accuracy import distinct_sheets, right_answers
from jobs.tiny.comparison_page import difference, fill
from lrd import DecodingConfig, decode, load_model
from lrd.config import ALL_PRESETS
from lrd.models.checkpoint import fingerprint
from lrd.prompts import encode_prompt
from pipeline.experiments.frontier import Series, frontier
from pipeline.experiments.paired import Cost, Outcomes, compare, front
from pipeline.markdown import table

COMMON = {"stop_at_eos": True}
"""The presets differ in it, and it would count as a gain of those that have it."""
AGAINST = "fast"
SEED = 11
SLOTS = 16


@dataclass(frozen=True, slots=True)
class Task:
    """What is decoded, and how long its canvases are."""

    name: str
    model: str
    """As `lrd.load_model` takes it."""
    sizes: tuple[int, ...]
    """Problems a row."""
    count: int
    shape: dict[str, Any]
    said: str


TASKS = {
    "singles": Task(
        "singles",
        "tiny",
        (1,),
        1000,
        {"gen_length": 64, "block_length": None},
        "single word problems, `tiny`, canvas 64 in one block",
    ),
    "sheets": Task(
        "sheets",
        "tiny_sheets",
        (4, 5, 6),
        300,
        {"gen_length": 256, "block_length": 32},
        "worksheets of 4 to 6 problems, `tiny_sheets`, canvas 256 in blocks of 32; a sheet is "
        "right where all its problems are",
    ),
    "plain": Task(
        "plain",
        "runs/plain/final",
        (1,),
        1000,
        {"gen_length": 64, "block_length": None},
        "single word problems, `tiny`'s recipe without soft batches, canvas 64 in one block",
    ),
}


def config_of(preset: str, task: Task) -> DecodingConfig:
    """A preset on the canvas of a task, in blocks where the task has them. Raises ValueError where
    it cannot be."""
    shape = dict(task.shape)
    if "steps" in ALL_PRESETS[preset]:
        # Two tokens a pass, as in the authors' own evaluations.
        shape["steps"] = shape["gen_length"] // 2
    return DecodingConfig.preset(preset, **{**COMMON, **shape})


def measure(args: argparse.Namespace) -> int:
    """Outcomes of every preset that is not stored yet."""
    task, folder = TASKS[args.task], Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    count = args.limit or task.count
    tested = distinct_sheets(count, SEED, task.sizes)
    model, digest = load_model(task.model), fingerprint(task.model)
    prompts = [encode_prompt(model, sheet.question) for sheet in tested]
    for preset in args.only or ALL_PRESETS:
        path = folder / f"{task.name}-{preset}.json"
        try:
            config = config_of(preset, task)
        except ValueError as error:
            reason = str(error).splitlines()
            print(f"{task.name}, {preset}: refused: {reason[2] if len(reason) > 2 else error}")
            continue
        asked = {
            "model": digest,
            "rows": count,
            "decoding": config.model_dump(mode="json", exclude=config.unrecorded),
        }
        if path.exists() and json.loads(path.read_text())["asked"] == asked:
            continue
        began = time.monotonic()
        samples = decode(model, prompts, config, batch_size=SLOTS)
        right = right_answers(samples, tested)
        whole = [int(all(one)) for one in right]
        forwards = [sample.num_forwards for sample in samples]
        found = {
            "asked": asked,
            "correct": whole,
            "problems": [sum(map(sum, right)), sum(map(len, right))],
            "forwards": forwards,
            "positions": [sample.positions_computed for sample in samples],
            "uncommits": [sample.num_uncommits for sample in samples],
        }
        path.write_text(json.dumps(found))
        print(
            f"{task.name}, {preset}: {sum(whole) / count:.1%} in "
            f"{sum(forwards) / count:.2f} passes, "
            f"{time.monotonic() - began:.0f} s",
            flush=True,
        )
    return 0


def clock(args: argparse.Namespace) -> int:
    """Rows a second of all presets, in turns; medians, and ratios to `fast` of the same turn."""
    folder = Path(args.output)
    for task in (TASKS[name] for name in args.task):
        model = load_model(task.model)
        tested = distinct_sheets(args.rows, SEED, task.sizes)
        prompts = [encode_prompt(model, sheet.question) for sheet in tested]
        presets = [name for name in ALL_PRESETS if (folder / f"{task.name}-{name}.json").exists()]
        seconds: dict[str, list[float]] = {name: [] for name in presets}
        for _ in range(args.turns):
            for preset in presets:
                began = time.monotonic()
                decode(model, prompts, config_of(preset, task), batch_size=SLOTS)
                seconds[preset].append(time.monotonic() - began)
        found = {
            "rows": args.rows,
            "turns": args.turns,
            "threads": torch.get_num_threads(),
            "milliseconds": {
                name: 1000 * median(each) / args.rows for name, each in seconds.items()
            },
            "ratio": {
                name: median(a / b for a, b in zip(seconds[AGAINST], each, strict=True))
                for name, each in seconds.items()
            },
        }
        (folder / f"{task.name}.speed.json").write_text(json.dumps(found))
        print(json.dumps({"task": task.name, **found}), flush=True)
    return 0


@dataclass(frozen=True, slots=True)
class Measured:
    """One task's outcomes by preset."""

    task: Task
    outcomes: dict[str, Outcomes]
    problems: dict[str, tuple[int, int]]
    uncommits: dict[str, float]
    speed: dict[str, Any]
    """What `time` has stored; empty where it has not run."""


def read(folder: Path, task: Task) -> Measured:
    """What `measure` and `time` have stored. Raises ValueError where `fast` is not measured."""
    outcomes, problems, uncommits = {}, {}, {}
    speed = folder / f"{task.name}.speed.json"
    clocked = json.loads(speed.read_text()) if speed.exists() else {}
    for preset in ALL_PRESETS:
        path = folder / f"{task.name}-{preset}.json"
        if not path.exists():
            continue
        kept = json.loads(path.read_text())
        outcomes[preset] = Outcomes(
            name=preset,
            correct=tuple(map(bool, kept["correct"])),
            forwards=tuple(kept["forwards"]),
            positions=tuple(kept["positions"]),
            mean_milliseconds=clocked.get("milliseconds", {}).get(preset, math.nan),
        )
        problems[preset] = tuple(kept["problems"])
        uncommits[preset] = sum(kept["uncommits"]) / len(kept["uncommits"])
    if AGAINST not in outcomes:
        raise ValueError(
            f"{folder}: has no outcomes of {AGAINST} on {task.name}; measure them first"
        )
    return Measured(task, outcomes, problems, uncommits, clocked)


def frontier_table(found: Measured) -> str:
    """A row a preset, the fewest passes first."""
    head = ["", "preset", "right (95 %)"]
    if max(found.task.sizes) > 1:
        head.append("problems right")
    head += ["passes", "rows/s", "x fast", "un-commits", "points against `fast` (95 %)"]
    head += ["won, lost", "p"]
    best = {one.name for one in front(list(found.outcomes.values()))}
    rows = []
    ordered = sorted(found.outcomes.values(), key=lambda one: one.mean_forwards)
    for number, one in enumerate(ordered, 1):
        low, high = one.interval
        name = f"**`{one.name}`**" if one.name in best else f"`{one.name}`"
        cells = [str(number), name, f"{one.accuracy:.3f} ({low:.3f} to {high:.3f})"]
        if max(found.task.sizes) > 1:
            right, count = found.problems[one.name]
            cells.append(f"{right / count:.3f}")
        cells.append(f"{one.mean_forwards:.1f}")
        if math.isnan(one.mean_milliseconds):
            cells += ["", ""]
        else:
            ratio = found.speed["ratio"][one.name]
            cells += [f"{1000 / one.mean_milliseconds:.1f}", f"{ratio:.2f}"]
        cells.append(f"{found.uncommits[one.name]:.1f}" if found.uncommits[one.name] else "")
        if one.name == AGAINST:
            cells += ["", "", ""]
        else:
            cells += difference(compare(one, found.outcomes[AGAINST]))
        rows.append(cells)
    return table(head, rows)


def drawing(found: Measured, title: str, cost: Cost) -> str:
    """The frontier as an SVG, of the presets whose cost is known; a dot has its number in the
    table."""
    ordered = sorted(found.outcomes.values(), key=lambda one: one.mean_forwards)
    labels = {one.name: str(number) for number, one in enumerate(ordered, 1)}
    known = [one for one in ordered if not math.isnan(one.mean(cost))]
    return frontier([Series("presets", "s1", known, labels, {})], title, cost)


def facts(found: Measured) -> str:
    """What was decoded, and how many tests the table holds."""
    count = len(found.outcomes[AGAINST].correct)
    tests = max(1, len(found.outcomes) - 1)
    missing = [f"`{name}`" for name in ALL_PRESETS if name not in found.outcomes]
    left = f" Not measured: {', '.join(missing)}." if missing else ""
    if found.speed:
        left += (
            f" Rows/s: {found.speed['rows']} rows in {SLOTS} slots, threads: "
            f"{found.speed['threads']}, medians of {found.speed['turns']} turns that all presets "
            "took in order; `x fast`: medians of the turns' ratios."
        )
    return (
        f"{count:,} {found.task.said}; seed {SEED}, float32, `stop_at_eos` on everywhere. {tests} "
        f"tests whose p is not corrected; Bonferroni's level for all of them is {0.05 / tests:.1g}."
        f"{left}"
    )


def page(args: argparse.Namespace) -> int:
    """Fill a page's blocks and draw its plots."""
    path, made = Path(args.page), {}
    for name, task in TASKS.items():
        found = read(Path(args.output), task)
        made[f"{name}-facts"], made[name] = facts(found), frontier_table(found)
        plot = f"{path.stem}-{name}"
        title = f"every preset on {name}"
        path.with_name(f"{plot}.svg").write_text(drawing(found, title, "forwards"))
        if found.speed:
            svg = drawing(found, f"{title}, by time", "milliseconds")
            path.with_name(f"{plot}-time.svg").write_text(svg)
    path.write_text(fill(path.read_text(), made, str(path)))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m jobs.tiny.decoder_frontier")
    commands = made.add_subparsers(required=True)
    one = commands.add_parser("measure")
    one.add_argument("--task", choices=TASKS, required=True)
    one.add_argument("--limit", type=int, help="rows [the task's]")
    one.add_argument("--only", nargs="+", choices=ALL_PRESETS, metavar="PRESET")
    one.set_defaults(run=measure)
    two = commands.add_parser("time")
    two.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    two.add_argument("--rows", type=int, default=32, help="rows a turn [32]")
    two.add_argument("--turns", type=int, default=3, help="turns [3]")
    two.set_defaults(run=clock)
    three = commands.add_parser("page")
    three.add_argument("page", metavar="PAGE.md")
    three.set_defaults(run=page)
    for command in (one, two, three):
        command.add_argument("--output", required=True, help="folder of the outcomes")
    return made


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; the exit code, 2 where something cannot be measured or written."""
    args = parser().parse_args(words)
    try:
        code: int = args.run(args)
    except (ValueError, OSError) as error:
        print(f"decoder_frontier: {error}", file=sys.stderr)
        return 2
    return code


if __name__ == "__main__":
    sys.exit(main())
