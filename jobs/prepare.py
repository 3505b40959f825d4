"""Make prompt shards from a Parquet, JSONL, JSON or CSV file, a folder of them, or a hub dataset.

    lrd prepare SOURCE --output PROMPTS --rows-per-shard 1000
    lrd prepare --task gsm8k SOURCE --output PROMPTS [--shots 8 --exemplars TRAIN.parquet]

All columns are kept; which one is the prompt is said to `lrd generate`. With a task the column
`prompt` is made by the task's template (one that is there stays as `source_prompt`). The folder
appears under its name only when it is whole. Knows nothing of models.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial as bound
from pathlib import Path
from typing import Any

from pipeline.scoring.task import Example, Task, few_shot_prompt
from pipeline.scoring.tasks import TASKS, task_named
from pipeline.storage.storage import Storage
from pipeline.storage.uris import is_uri, parent

BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
BAD_INPUT = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The job's flags."""
    parser.add_argument("source", help="file or folder, a URI of one, or hub id of a dataset")
    parser.add_argument(
        "--output", required=True, help="folder or URI for the shards; must not exist"
    )
    parser.add_argument("--rows-per-shard", type=int, default=1000, help="[1000]")
    parser.add_argument("--split", default="train", help="split of a hub dataset [train]")
    parser.add_argument("--limit", type=int, help="take only the first rows")
    parser.add_argument("--task", metavar="|".join(TASKS), help="make the column `prompt` for it")
    shots = ", ".join(f"{task.name} {task.paper_shots}" for task in TASKS.values())
    parser.add_argument(
        "--shots",
        type=int,
        help=f"prompts for base models, with so many exemplars (the paper's: {shots}) "
        "[zero-shot prompts for chat models]",
    )
    parser.add_argument("--exemplars", help="Parquet of solved examples; its first rows are shown")


def run(args: argparse.Namespace) -> int:
    """The job; its exit code."""
    try:
        dataset = load_rows(args.source, args.split)
        if args.limit is not None:
            dataset = dataset.select(range(min(args.limit, dataset.num_rows)))
        if args.task:
            task = task_named(args.task)
            exemplars = read_exemplars(task, args.shots, args.exemplars)
            dataset = with_prompts(dataset, args.source, task, exemplars)
        elif args.shots is not None or args.exemplars:
            raise ValueError("--shots and --exemplars are a task's; name it with --task")
        num_shards = write(dataset, args.output, args.rows_per_shard)
    except (ValueError, OSError) as error:
        print(f"lrd prepare: {error}", file=sys.stderr)
        return BAD_INPUT
    print(
        f"{dataset.num_rows} rows in {num_shards} shards, columns "
        f"{', '.join(dataset.column_names)}: {args.output}"
    )
    return 0


def load_rows(source: str, split: str) -> Any:
    """The source as a `datasets.Dataset`.

    Raises ValueError naming it where it cannot be read, OSError where its store does not answer.
    """
    if not is_uri(source):
        return _named(source, lambda: _load(source, split))
    # Files of a store lie here only until `datasets` has its own copy.
    with tempfile.TemporaryDirectory() as name:
        _fetch(source, Path(name))
        return _named(source, lambda: _load_files(Path(name)))


def _fetch(uri: str, folder: Path) -> None:
    """A store's file, or a folder's files that can be read, into a local folder."""
    store = Storage(uri)
    match store.kind():
        case "missing":
            raise ValueError(f"{uri}: no such file or folder")
        case "file":
            place, only = parent(uri)
            Storage(place).fetch_folder(folder, lambda name: name == only)
        case _:
            store.fetch_folder(folder, lambda name: Path(name).suffix in BUILDERS)


def _named(source: str, load: Callable[[], Any]) -> Any:
    """What is loaded; ValueError naming the source where it cannot be read."""
    try:
        return load()
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    except Exception as error:
        # datasets raises a dozen classes of its own and of its readers for unreadable sources.
        reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{source}: cannot be read ({reason[0]})") from error


def _load(source: str, split: str) -> Any:
    """A local file or folder, else a dataset of the hub."""
    import datasets

    path = Path(source)
    if path.exists():
        return _load_files(path)
    if path.suffix in BUILDERS or source.startswith((".", "/")):
        raise ValueError("no such file or folder")
    datasets.disable_progress_bars()
    return datasets.load_dataset(source, split=split)


def _load_files(path: Path) -> Any:
    """A local file, or a folder's files of one kind."""
    import datasets

    files = sorted(path.iterdir()) if path.is_dir() else [path]
    files = [file for file in files if file.suffix in BUILDERS]
    kinds = Counter(BUILDERS[file.suffix] for file in files)
    if len(kinds) != 1:
        raise ValueError(
            f"holds {', '.join(kinds) or 'no'} files of {', '.join(BUILDERS)}; one kind is needed"
        )
    datasets.disable_progress_bars()
    names = [str(file) for file in files]
    return datasets.load_dataset(next(iter(kinds)), data_files=names, split="train")


def read_exemplars(task: Task, shots: int | None, path: str | None) -> list[Any] | None:
    """The solved examples to show; None for a chat model's prompt.

    Raises ValueError where --shots and --exemplars do not fit or the file lacks rows or columns.
    """
    if shots is None and path is None:
        return None
    if shots is None or shots < 0 or bool(shots) != bool(path):
        raise ValueError(
            "--shots N and --exemplars FILE.parquet go together; --shots 0 goes without"
        )
    if path is None:
        return []
    dataset = load_rows(path, "train")
    _check_columns(path, dataset, task, task.exemplar_columns)
    if dataset.num_rows < shots:
        raise ValueError(f"{path}: has {dataset.num_rows} rows, --shots is {shots}")
    return list(dataset.select(range(shots)))


def with_prompts(dataset: Any, source: str, task: Task, exemplars: list[Any] | None) -> Any:
    """The dataset with the task's column `prompt`; a row without its parts gets null."""
    _check_columns(source, dataset, task, task.prompt_columns)
    make: Callable[[Example], str] = task.chat_prompt
    if exemplars is not None:
        make = bound(few_shot_prompt, task, exemplars)
    prompts = [
        None if any(row[column] is None for column in task.prompt_columns) else make(row)
        for row in dataset
    ]
    if "prompt" in dataset.column_names:
        if "source_prompt" in dataset.column_names:
            raise ValueError(f"{source}: has `prompt` and `source_prompt`; it is prepared already")
        dataset = dataset.rename_column("prompt", "source_prompt")
    return dataset.add_column("prompt", prompts)


def _check_columns(source: str, dataset: Any, task: Task, columns: tuple[str, ...]) -> None:
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        raise ValueError(
            f"{source}: no column {', '.join(missing)} for task {task.name}; it has "
            f"{', '.join(dataset.column_names)}"
        )


def write(dataset: Any, output: str, rows_per_shard: int) -> int:
    """Write the shards to a local folder or a URI; how many there are.

    Raises ValueError as `write_shards`, OSError where a store does not take them.
    """
    if not is_uri(output):
        return write_shards(dataset, Path(output.removeprefix("file://")), rows_per_shard)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "prompts"
        num_shards = write_shards(dataset, folder, rows_per_shard)
        Storage(output).take_folder(folder)
    return num_shards


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
