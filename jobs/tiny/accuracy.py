"""Accuracy of a tiny model on disjoint test problems: the table of its card.

    python -m jobs.tiny.accuracy --model lrd/models/tiny --problems 1000
    python -m jobs.tiny.accuracy --model runs/sheets/final --problems 200 --sheets 4 5 6 \
        --gen-length 256 --block-length 256 32 --only fast

Decodes the same problems under the baseline and under LRD at all canvas and block lengths, counts
right final answers, of worksheets also the sheets that are right as a whole, and prints a Markdown
table, a row as soon as it is measured. Without Ray.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from itertools import product
from typing import TypeVar

from jobs.tiny.problems import Problem, problems
from jobs.tiny.worksheets import Sheet, sheets
from lrd import DecodingConfig, Sample, decode, load_model
from lrd.models.protocol import DiffusionModel
from lrd.prompts import encode_prompt
from pipeline.experiments.paired import Outcomes
from pipeline.output.statistics import UNSURE_ENTROPY
from pipeline.scoring import word_sheets
from pipeline.scoring.summary import wilson
from pipeline.scoring.word_problems import final_answer

Asked = TypeVar("Asked", Problem, Sheet)

SETTINGS: dict[str, dict[str, object]] = {
    "baseline, one a pass": {"preset": "baseline"},
    "LRD, one a pass": {"preset": "fast", "tokens_per_step": 1, "early_stop": False},
    "baseline, entropy threshold": {"preset": "baseline", "entropy_threshold": 0.2},
    "fast": {"preset": "fast"},
    "paper": {"preset": "paper"},
}


def distinct(count: int, seed: int) -> list[Problem]:
    """Test problems of which no two ask the same question."""
    return _distinct(problems("test", seed), count)


def distinct_sheets(count: int, seed: int, sizes: Sequence[int]) -> list[Sheet]:
    """Test worksheets of `sizes` problems of which no two ask the same."""
    return _distinct(sheets("test", seed, sizes), count)


def _distinct(stream: Iterator[Asked], count: int) -> list[Asked]:
    found: dict[str, Asked] = {}
    for asked in stream:
        found.setdefault(asked.question, asked)
        if len(found) == count:
            break
    return list(found.values())


def outcomes(
    model: DiffusionModel, tested: list[Problem], config: DecodingConfig, name: str
) -> Outcomes:
    """Decode the problems by `config`; `name` is the outcomes' name."""
    prompts = [encode_prompt(model, problem.question) for problem in tested]
    samples = decode(model, prompts, config, batch_size=32)
    return Outcomes(
        name=name,
        correct=tuple(
            final_answer(sample.text or "") == str(problem.answer)
            for sample, problem in zip(samples, tested, strict=True)
        ),
        forwards=tuple(sample.num_forwards for sample in samples),
        num_unsure=sum(sample.max_entropy_at_stop > UNSURE_ENTROPY for sample in samples),
        num_failed=sum(sample.stop_reason == "failed" for sample in samples),
    )


def measure(
    model: DiffusionModel, tested: list[Problem], config: DecodingConfig
) -> tuple[int, float]:
    """Right final answers, and mean forwards a problem."""
    found = outcomes(model, tested, config, "")
    return found.num_correct, found.mean_forwards


def right_answers(samples: Sequence[Sample], tested: Sequence[Sheet]) -> list[list[bool]]:
    """For each sheet, which of its problems are right."""
    return [
        word_sheets.right_answers(sample.text or "", " ".join(map(str, sheet.answers)))
        for sample, sheet in zip(samples, tested, strict=True)
    ]


def measure_sheets(
    model: DiffusionModel, tested: list[Sheet], config: DecodingConfig
) -> tuple[int, int, float]:
    """Right final answers, sheets of which all are right, and mean forwards a sheet."""
    prompts = [encode_prompt(model, sheet.question) for sheet in tested]
    samples = decode(model, prompts, config, batch_size=16)
    right = right_answers(samples, tested)
    forwards = sum(sample.num_forwards for sample in samples) / len(samples)
    return sum(map(sum, right)), sum(map(all, right)), forwards


def table(model: DiffusionModel, args: argparse.Namespace) -> Iterator[str]:
    """The table's lines, by the flags of `parser`."""
    tested = distinct_sheets(args.problems, args.seed, args.sheets)
    num_problems = sum(len(sheet.problems) for sheet in tested)
    yield "| decoding | gen_length | block | problems right | sheets right | forwards | seconds |"
    yield "|---|---|---|---|---|---|---|"
    for gen_length, block_length, name in product(args.gen_length, args.block_length, args.only):
        overrides = {k: v for k, v in SETTINGS[name].items() if k != "preset"}
        if block_length:
            overrides["block_length"] = block_length
        config = DecodingConfig.preset(
            str(SETTINGS[name]["preset"]), gen_length=gen_length, **overrides
        )
        began = time.monotonic()
        right, whole, forwards = measure_sheets(model, tested, config)
        yield (
            f"| {name} | {gen_length} | {config.block_tokens} | {_share(right, num_problems)} | "
            f"{_share(whole, len(tested))} | {forwards:.1f} | {time.monotonic() - began:.0f} |"
        )


def _share(right: int, count: int) -> str:
    low, high = wilson(right, count)
    return f"{right} of {count}: {right / count:.3f} ({low:.3f} to {high:.3f})"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m jobs.tiny.accuracy")
    made.add_argument("--model", default="tiny")
    made.add_argument("--problems", type=int, default=1000, help="problems or sheets [1000]")
    made.add_argument(
        "--sheets",
        type=int,
        nargs="+",
        default=[1],
        metavar="SIZE",
        help="problems a sheet; several sizes are mixed [1: single problems]",
    )
    made.add_argument("--seed", type=int, default=7)
    made.add_argument("--gen-length", type=int, nargs="+", default=[64, 128])
    made.add_argument(
        "--block-length", type=int, nargs="+", default=[0], help="[0: the whole canvas]"
    )
    made.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    return made


def main() -> None:
    """Print the table."""
    args = parser().parse_args()
    for line in table(load_model(args.model), args):
        print(line, flush=True)


if __name__ == "__main__":
    main()
