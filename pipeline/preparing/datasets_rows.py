"""Reads hub datasets and folders of `save_to_disk`, through the `datasets` library."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.preparing.reading import Rows
from pipeline.preparing.source_file import BATCH_ROWS

HUB_SPLIT = "train"
"""The split of a hub dataset that is read where none is named."""
SAVED = ("dataset_dict.json", "state.json")
"""Files that `save_to_disk` writes, the first for several splits, the second for one."""


def read_hub(hub_id: str, split: str | None) -> Rows:
    """Read a hub dataset. Raises ValueError naming it where it cannot be read."""
    with _named(hub_id):
        import datasets

        datasets.disable_progress_bars()
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)
        return _rows(hub_id, datasets.load_dataset(hub_id, split=split or HUB_SPLIT))


def read_saved(folder: Path, shown: str, split: str | None) -> Rows:
    """Read a folder of `save_to_disk`. Raises ValueError naming it where it cannot be read, or has
    several splits and none is named."""
    with _named(shown), tempfile.TemporaryDirectory() as name:
        import datasets

        # The library reads :: in a path as a separator of paths.
        link = Path(name) / "saved"
        link.symlink_to(folder.resolve(), target_is_directory=True)
        found = datasets.load_from_disk(str(link))
        if isinstance(found, datasets.DatasetDict):
            found = datasets.concatenate_datasets(
                [found[name] for name in _named_splits(found, split)]
            )
        elif split not in (None, HUB_SPLIT, str(found.split)):
            raise ValueError(f"has no split {split!r}; it is {found.split or 'without a name'}")
        return _rows(shown, found)


def _named_splits(found: Any, split: str | None) -> list[str]:
    there = list(found)
    if split is None and len(there) > 1:
        raise ValueError(f"has several splits: {', '.join(there)}; name one with --split")
    names = split.split("+") if split else there
    missing = [name for name in names if name not in there]
    if missing:
        raise ValueError(f"has no split {missing[0]!r}; it has {', '.join(there)}")
    return names


def _rows(shown: str, dataset: Any) -> Rows:
    stored = dataset.with_format("arrow")

    def tables() -> Iterator[pa.Table]:
        with _named(shown):
            for first in range(0, dataset.num_rows, BATCH_ROWS):
                yield stored[first : first + BATCH_ROWS]

    return Rows(dataset.features.arrow_schema, tables())


@contextmanager
def _named(shown: str) -> Iterator[None]:
    """Turns every exception into a ValueError that names the source."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{shown}: {error}") from error
    except Exception as error:
        # datasets raises a dozen classes of its own and of its readers for unreadable sources.
        reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{shown}: cannot be read ({reason[0]})") from error
