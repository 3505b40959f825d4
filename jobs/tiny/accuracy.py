"""Accuracy of a tiny model on disjoint test problems: the table of its card.

    python -m jobs.tiny.accuracy --model lrd/models/tiny --problems 1000

Decodes the same problems under the baseline and under LRD at both canvas lengths, counts right
final answers, and prints a Markdown table, a row as soon as it is measured.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

from jobs.tiny.problems import Problem, problems
from lrd import DecodingConfig, decode, load_model
from lrd.models.protocol import DiffusionModel
from lrd.prompts import encode_prompt
from pipeline.experiments.paired import Outcomes
from pipeline.output.statistics import UNSURE_ENTROPY
from pipeline.scoring.summary import wilson
from pipeline.scoring.word_problems import final_answer

SETTINGS: dict[str, dict[str, object]] = {
    "baseline, one a pass": {"preset": "baseline"},
    "LRD, one a pass": {"preset": "fast", "tokens_per_step": 1, "early_stop": False},
    "baseline, entropy threshold": {"preset": "baseline", "entropy_threshold": 0.2},
    "fast": {"preset": "fast"},
    "paper": {"preset": "paper"},
}


def distinct(count: int, seed: int) -> list[Problem]:
    """Test problems of which no two ask the same question."""
    found: dict[str, Problem] = {}
    for problem in problems("test", seed):
        found.setdefault(problem.question, problem)
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


def table(
    model: DiffusionModel, count: int, seed: int, lengths: list[int], only: list[str]
) -> Iterator[str]:
    """The table's lines. only: names of decodings."""
    tested = distinct(count, seed)
    yield "| decoding | gen_length | right | accuracy (95 %) | forwards | seconds |"
    yield "|---|---|---|---|---|---|"
    for gen_length in lengths:
        for name in only:
            settings = SETTINGS[name]
            overrides = {k: v for k, v in settings.items() if k != "preset"}
            config = DecodingConfig.preset(
                str(settings["preset"]), gen_length=gen_length, **overrides
            )
            began = time.monotonic()
            right, forwards = measure(model, tested, config)
            low, high = wilson(right, count)
            yield (
                f"| {name} | {gen_length} | {right} of {count} | {right / count:.3f} "
                f"({low:.3f} to {high:.3f}) | {forwards:.1f} | {time.monotonic() - began:.0f} |"
            )


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(prog="python -m jobs.tiny.accuracy")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--gen-length", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    args = parser.parse_args()
    model = load_model(args.model)
    for line in table(model, args.problems, args.seed, args.gen_length, args.only):
        print(line, flush=True)


if __name__ == "__main__":
    main()
