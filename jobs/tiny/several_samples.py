"""What several samples a prompt are worth on the tiny models: one, the majority, the surest.

    python -m jobs.tiny.several_samples --problems 1000 --temperature 0.5 1.0
    python -m jobs.tiny.several_samples --model tiny_sheets --sheets 4 5 6 --problems 300

Runs the pipeline as a user would: `lrd generate --num-samples N`, `lrd evaluate`, `lrd select
--correct`; then counts from what they wrote. Prints a Markdown table a temperature, with 95 %
intervals over prompts and paired tests against the first sample, then one JSON line. Everything
stays under --folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from jobs import cli
from jobs.tiny.accuracy import distinct, distinct_sheets
from pipeline.experiments.paired import Outcomes, compare
from pipeline.scoring.summary import wilson
from pipeline.scoring.tasks import TASKS
from pipeline.scoring.votes import majority


def write_prompts(args: argparse.Namespace, folder: Path) -> tuple[Path, str]:
    """The input of the run, and the task that scores it."""
    if args.sheets:
        tested = distinct_sheets(args.problems, args.seed, args.sheets)
        rows = [(sheet.question, " ".join(map(str, sheet.answers))) for sheet in tested]
        task = "word-sheets"
    else:
        rows = [(one.question, str(one.answer)) for one in distinct(args.problems, args.seed)]
        task = "word-problems"
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows, columns=["prompt", "answer"]).to_parquet(folder / "prompts.parquet")
    return folder, task


def run(words: list[str]) -> None:
    """One command of `lrd`; it must succeed."""
    code = cli.run(words)
    assert code == 0, (words, code)


def measure(args: argparse.Namespace, prompts: Path, task: str, warmth: float) -> dict[str, Any]:
    """Decode, score and select at one temperature; prints its table."""
    out = Path(args.folder) / f"{args.model}-{args.gen_length}-{warmth:g}"
    shutil.rmtree(out, ignore_errors=True)
    kept = out.with_name(out.name + "-correct")
    shutil.rmtree(kept, ignore_errors=True)
    given = {
        "--input": prompts,
        "--output": out,
        "--model": args.model,
        "--gen-length": args.gen_length,
        "--temperature": warmth,
        "--num-samples": args.num_samples,
        "--replicas": 2,
    }
    run(["generate", *(str(word) for pair in given.items() for word in pair)])
    run(["evaluate", str(out), "--task", task])
    run(["select", str(out), "--correct", "--to", str(kept)])
    scores = pd.read_parquet(out / ".scores" / f"{task}.parquet")
    frame = pd.read_parquet(out / "data").merge(scores, on="row_id", validate="one_to_one")
    frame["prompt_row"] = frame["row_id"].str.rsplit("-", n=1).str[0]
    by_prompt = frame.sort_values("row_id", kind="stable").groupby("prompt_row", sort=True)

    def outcome(name: str, correct: pd.Series) -> Outcomes:
        right = tuple(bool(one) for one in correct.sort_index())
        return Outcomes(name, right, (0,) * len(right))

    def chosen(column: str) -> pd.Series:
        best = frame.loc[by_prompt[column].idxmax()]
        return best.set_index("prompt_row")["correct"]

    first = outcome("the first sample", by_prompt["correct"].first())
    found = [
        first,
        outcome(
            "majority of all",
            pd.Series({row: majority_is_right(rows, task) for row, rows in by_prompt}),
        ),
        outcome("largest mean_confidence", chosen("mean_confidence")),
        outcome("largest min_confidence", chosen("min_confidence")),
        outcome("any of all (pass@N)", by_prompt["correct"].any()),
    ]
    print(f"\n**{args.model}, temperature {warmth:g}, {len(first.correct)} prompts, "
          f"{args.num_samples} samples each**; mean over all samples "
          f"{frame['correct'].mean():.3f}\n")  # fmt: skip
    print("| answer | right | 95 % | against the first sample | p |\n|---|---|---|---|---|")
    rows: dict[str, Any] = {}
    for one in found:
        low, high = one.interval
        against = compare(one, first)
        print(f"| {one.name} | {one.accuracy:.3f} | {low:.3f} to {high:.3f} | "
              f"{against.difference:+.3f} ({against.low:+.3f} to {against.high:+.3f}) | "
              f"{against.p:.2g} |")  # fmt: skip
        rows[one.name] = [one.accuracy, low, high, against.difference, against.p]
    num_kept = len(pd.read_parquet(kept / "data", columns=["row_id"]))
    num_prompts = int(by_prompt["correct"].any().sum())
    low, high = wilson(num_kept, len(frame))
    print(
        f"\n`select --correct` keeps {num_kept} of {len(frame)} rows ({num_kept / len(frame):.1%}, "
        f"{low:.1%} to {high:.1%}), of {num_prompts} of {len(first.correct)} prompts."
    )
    return {"temperature": warmth, "rows": rows, "kept": num_kept, "of": len(frame)}


def majority_is_right(samples: pd.DataFrame, task: str) -> bool:
    """Whether the most frequent answer is right, as `lrd evaluate` has it."""
    answers = [None if pd.isna(one) else str(one) for one in samples["extracted"]]
    comparable = TASKS[task].comparable
    assert comparable is not None
    of_majority = majority(answers, comparable)
    return any(right for right, voted in zip(samples["correct"], of_majority, strict=True) if voted)


def main() -> None:
    """Print the tables and the JSON line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.tiny.several_samples")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--problems", type=int, default=1000, help="problems or sheets [1000]")
    parser.add_argument("--sheets", type=int, nargs="+", default=[], metavar="SIZE")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--gen-length", type=int, default=64)
    parser.add_argument("--num-samples", type=int, default=8)
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.5, 1.0])
    parser.add_argument("--folder", default="runs/several-samples")
    args = parser.parse_args()
    prompts, task = write_prompts(args, Path(args.folder) / f"prompts-{args.model}")
    found = [measure(args, prompts, task, warmth) for warmth in args.temperature]
    print(json.dumps({"model": args.model, "num_samples": args.num_samples, "found": found}))


if __name__ == "__main__":
    main()
