"""The main job on the example problems, and how many final answers are right: `make demo`.

Decodes `jobs/examples` with the embedded model into runs/demo, opens the result with pandas
and datasets as a user would, and compares each final answer with the reference.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from jobs import cli, output
from pipeline.scoring.word_problems import final_answer

EXAMPLES = Path(__file__).parent / "examples"


def main() -> int:
    """Run, check, print; the exit code of the run."""
    parser = argparse.ArgumentParser(prog="python -m jobs.demo", description=__doc__)
    parser.add_argument("--output", default="runs/demo", help="replaced if it exists")
    parser.add_argument("--replicas", default="2")
    args = parser.parse_args()
    shutil.rmtree(args.output, ignore_errors=True)

    flags = {
        "--input": str(EXAMPLES),
        "--output": args.output,
        "--gen-length": "64",
        "--replicas": args.replicas,
    }
    code = cli.run(["generate", *(word for pair in flags.items() for word in pair)])
    if code not in (output.OK, output.FAILED_ROWS):
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
