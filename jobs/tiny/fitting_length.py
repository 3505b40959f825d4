"""Canvases that fit: `gen_length = "auto"` beside fixed lengths, on problems of mixed length.

    python -m jobs.tiny.fitting_length --sheets 200

Decodes single problems and sheets of up to six together, the same ones under every setting, and
prints a Markdown table (accuracy with 95 % intervals, passes, positions computed, rows a second as
a median over the repetitions, which take turns), then one JSON line. Without Ray.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from statistics import median
from typing import Any

from jobs.tiny.accuracy import distinct_sheets, right_answers
from lrd import DecodingConfig, Sample, decode, load_model
from lrd.prompts import encode_prompt
from pipeline.scoring.summary import wilson

SIZES = (1, 1, 1, 2, 4, 6)
"""Problems a sheet, drawn with equal chances: half of the rows are single problems."""


def settings(longest: int) -> dict[str, dict[str, Any]]:
    """Fixed lengths up to the longest, and the growing canvas."""
    lengths = [length for length in (64, 128, 256, 512) if length <= longest]
    fixed = {f"fixed {length}": {"gen_length": length} for length in lengths}
    return {**fixed, f"auto, up to {longest}": {"gen_length": "auto", "max_gen_length": longest}}


def share(right: int, count: int) -> str:
    """A share and its interval."""
    low, high = wilson(right, count)
    return f"{right / count:.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.tiny.fitting_length")
    parser.add_argument("--model", default="tiny_sheets")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--sheets", type=int, default=200)
    parser.add_argument("--longest", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each setting [3]")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--block-length", type=int, default=None)
    parser.add_argument("--seed", type=int, default=23)
    args = parser.parse_args()
    model = load_model(args.model)
    tested = distinct_sheets(args.sheets, args.seed, SIZES)
    prompts = [encode_prompt(model, sheet.question) for sheet in tested]
    found: dict[str, list[Sample]] = {}
    seconds: dict[str, list[float]] = {}
    for _ in range(args.repeat):
        for name, own in settings(args.longest).items():
            config = DecodingConfig.preset(args.preset, block_length=args.block_length, **own)
            began = time.monotonic()
            found[name] = decode(model, prompts, config, batch_size=args.batch_size)
            seconds.setdefault(name, []).append(time.monotonic() - began)
    print("| canvas | problems right | sheets right | passes | positions | rows/s | lengths |")
    print("|---|---|---|---|---|---|---|")
    rows: dict[str, Any] = {}
    for name, samples in found.items():
        right = right_answers(samples, tested)
        num_right, num_problems = sum(map(sum, right)), sum(map(len, right))
        whole, num = sum(map(all, right)), len(right)
        passes = sum(sample.num_forwards for sample in samples) / num
        positions = sum(sample.positions_computed for sample in samples) / num
        speed = num / median(seconds[name])
        lengths = sorted(Counter(sample.canvas_length for sample in samples).items())
        said = ", ".join(f"{count} of {length}" for length, count in lengths)
        print(
            f"| {name} | {share(num_right, num_problems)} | {share(whole, num)} | {passes:.1f} | "
            f"{positions:,.0f} | {speed:.1f} | {said} |"
        )
        rows[name] = {
            "problems_right": num_right / num_problems,
            "sheets_right": whole / num,
            "passes": passes,
            "positions": positions,
            "rows_per_second": speed,
            "lengths": dict(lengths),
        }
    print(json.dumps({"model": args.model, "sheets": args.sheets, "settings": rows}))


if __name__ == "__main__":
    main()
