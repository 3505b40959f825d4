"""Write worksheets of the test split as prompts with references: what `jobs/example_sheets` is.

    python -m jobs.tiny.example_sheets --output jobs/example_sheets

`lrd generate --input jobs/example_sheets`, then `lrd evaluate OUT --task word-sheets`.
"""

from __future__ import annotations

import argparse
from itertools import pairwise

import pyarrow as pa

from jobs.tiny.accuracy import distinct_sheets
from jobs.tiny.worksheets import MAX_PROBLEMS, Sheet
from pipeline.output.result_shards import parquet_bytes
from pipeline.storage.storage import Storage

COUNT, NUM_SHARDS, SEED = 256, 4, 2026


def example_tables(
    count: int = COUNT, num_shards: int = NUM_SHARDS, seed: int = SEED
) -> list[pa.Table]:
    """Tables (id, prompt, reference, answer, num_problems), as equally long as may be.

    Sizes are 1 to 6 with equal chances.
    """
    tested = distinct_sheets(count, seed, range(1, MAX_PROBLEMS + 1))
    table = pa.Table.from_pylist([_row(number, sheet) for number, sheet in enumerate(tested)])
    bounds = [count * shard // num_shards for shard in range(num_shards + 1)]
    return [table.slice(first, end - first) for first, end in pairwise(bounds)]


def _row(number: int, sheet: Sheet) -> dict[str, object]:
    return {
        "id": f"sheet-{number:04d}",
        "prompt": sheet.question,
        "reference": sheet.solution,
        "answer": " ".join(map(str, sheet.answers)),
        "num_problems": len(sheet.problems),
    }


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(prog="python -m jobs.tiny.example_sheets")
    parser.add_argument("--output", required=True, help="folder; files of these names are replaced")
    parser.add_argument("--sheets", type=int, default=COUNT, help=f"how many [{COUNT}]")
    parser.add_argument("--shards", type=int, default=NUM_SHARDS, help=f"files [{NUM_SHARDS}]")
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    folder = Storage(args.output)
    for number, table in enumerate(example_tables(args.sheets, args.shards, args.seed)):
        name = f"sheets-{number:05d}-of-{args.shards:05d}.parquet"
        folder.write(name, parquet_bytes(table))


if __name__ == "__main__":
    main()
