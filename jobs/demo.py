"""The main job on the example problems, and how many final answers are right: `make demo`.

Decodes `jobs/examples` with the embedded model into runs/demo, opens the result with pandas
and datasets as a user would, and compares each final answer with the reference.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from jobs import generate
from pipeline.scoring.word_problems import final_answer

EXAMPLES = Path(__file__).parent / "examples"


def main() -> int:
    """Run, check, print; the run's exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.demo", description=__doc__)
    parser.add_argument("--output", default="runs/demo", help="replaced if it is there")
    parser.add_argument("--replicas", default="2")
    args = parser.parse_args()
    shutil.rmtree(args.output, ignore_errors=True)

    flags = argparse.ArgumentParser()
    generate.add_arguments(flags)
    code = generate.run(
        flags.parse_args(
            f"--input {EXAMPLES} --output {args.output} --gen-length 64 "
            f"--replicas {args.replicas}".split()
        )
    )
    if code not in (generate.OK, generate.FAILED_ROWS):
        return code

    import datasets
    import pandas as pd

    datasets.disable_progress_bars()
    frame = pd.read_parquet(f"{args.output}/data")
    rows = datasets.load_dataset(
        "parquet", data_dir=f"{args.output}/data", split="train", keep_in_memory=True
    )
    assert len(frame) == rows.num_rows
    found = frame["output_text"].fillna("").map(final_answer)
    right = int((found == frame["answer"]).sum())
    print(f"final answers right: {right} of {len(frame)} ({right / len(frame):.1%})")
    print(f"pandas opens it with {frame.shape[1]} columns, datasets with {rows.num_columns}")
    return code


if __name__ == "__main__":
    sys.exit(main())
