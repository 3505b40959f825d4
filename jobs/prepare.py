"""Make prompt shards from a Parquet, JSONL, JSON or CSV file, a folder of them, or a hub dataset.

    lrd prepare SOURCE --output PROMPTS --rows-per-shard 1000

All columns are kept; which one is the prompt is said to `lrd generate`. The folder appears
under its name only when it is whole. Knows nothing of models.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
BAD_INPUT = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The job's flags."""
    parser.add_argument("source", help="file, folder of files, or hub id of a dataset")
    parser.add_argument("--output", required=True, help="folder for the shards; must not exist")
    parser.add_argument("--rows-per-shard", type=int, default=1000, help="[1000]")
    parser.add_argument("--split", default="train", help="split of a hub dataset [train]")
    parser.add_argument("--limit", type=int, help="take only the first rows")


def run(args: argparse.Namespace) -> int:
    """The job; its exit code."""
    try:
        dataset = load_rows(args.source, args.split)
        if args.limit is not None:
            dataset = dataset.select(range(min(args.limit, dataset.num_rows)))
        num_shards = write_shards(dataset, Path(args.output), args.rows_per_shard)
    except ValueError as error:
        print(f"lrd prepare: {error}", file=sys.stderr)
        return BAD_INPUT
    print(
        f"{dataset.num_rows} rows in {num_shards} shards, columns "
        f"{', '.join(dataset.column_names)}: {args.output}"
    )
    return 0


def load_rows(source: str, split: str) -> Any:
    """The source as a `datasets.Dataset`; ValueError naming it where it cannot be read."""
    import datasets

    datasets.disable_progress_bars()
    path = Path(source)
    try:
        if not path.exists():
            if path.suffix in BUILDERS or source.startswith((".", "/")):
                raise ValueError("no such file or folder")
            return datasets.load_dataset(source, split=split)
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        files = [file for file in files if file.suffix in BUILDERS]
        kinds = Counter(BUILDERS[file.suffix] for file in files)
        if len(kinds) != 1:
            raise ValueError(
                f"holds {', '.join(kinds) or 'no'} files of {', '.join(BUILDERS)}; "
                "one kind is needed"
            )
        builder = next(iter(kinds))
        names = [str(file) for file in files]
        return datasets.load_dataset(builder, data_files=names, split="train")
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    except Exception as error:
        # datasets raises a dozen classes of its own and of its readers for unreadable sources.
        reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{source}: cannot be read ({reason[0]})") from error


def write_shards(dataset: Any, output: Path, rows_per_shard: int) -> int:
    """Write the shards beside their place and rename the folder; how many there are.

    Raises ValueError where the folder exists, there are no rows, or shards would hold none.
    """
    if rows_per_shard < 1:
        raise ValueError(f"--rows-per-shard is {rows_per_shard}; at least 1 is needed")
    if output.exists():
        raise ValueError(f"{output}: exists already; name a new --output or remove it")
    if not dataset.num_rows:
        raise ValueError("the source has no rows")
    num_shards = -(-dataset.num_rows // rows_per_shard)
    partial = output.with_name(output.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for number in range(num_shards):
        first = number * rows_per_shard
        rows = range(first, min(first + rows_per_shard, dataset.num_rows))
        name = f"prompts-{number:05d}-of-{num_shards:05d}.parquet"
        dataset.select(rows).to_parquet(str(partial / name))
    partial.rename(output)
    return num_shards


def main() -> None:
    """`python -m jobs.prepare`."""
    parser = argparse.ArgumentParser(prog="lrd prepare", description="Make prompt shards.")
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))


if __name__ == "__main__":
    main()
