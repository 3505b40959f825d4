"""The record of a selection, `_selection.json` beside its data: rules with their counts, the source
run, and a digest of every shard.

    PLACE/data/train-00000-of-00004.parquet
    PLACE/_selection.json

Its name begins with `_` so that pandas, pyarrow and `lrd generate --input` do not read it as data.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, TypeAdapter, ValidationError

from pipeline.output.run_folder import DATA, listing
from pipeline.selecting.rules import Dropped, Form
from pipeline.selecting.run_rows import digest_of
from pipeline.storage.storage import Storage

SELECTION = "_selection.json"
AGAIN = "remove the folder, and run lrd select again"


def _check_source(found: dict[str, Any]) -> dict[str, Any]:
    parts = {"fingerprint": dict, "settings": dict, "created": str}
    lacking = [name for name, kind in parts.items() if not isinstance(found.get(name), kind)]
    if lacking:
        raise ValueError(f"lacks {', '.join(lacking)}")
    return found


@dataclass(frozen=True, slots=True)
class SelectedShard:
    """One file of the dataset."""

    name: str
    """Under PLACE."""
    num_rows: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Selection:
    """What a selected dataset holds and how it came about."""

    form: Form
    rules: list[Dropped]
    """In the order in which they applied."""
    num_rows: int
    """Rows of the dataset: pairs in the form `preference`."""
    source: Annotated[dict[str, Any], AfterValidator(_check_source)]
    """The run: `created`, `settings` and `fingerprint` of its manifest."""
    num_shards: int
    """Of the run, finished ones."""
    num_shards_planned: int
    evaluations: list[dict[str, Any]]
    """The run's scores, as `read_evaluations` has them."""
    shards: list[SelectedShard]

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode() + b"\n"


_SELECTION = TypeAdapter(Selection)


def holds_selection(place: Storage) -> bool:
    """Whether a folder is a dataset of `lrd select`."""
    return place.kind(SELECTION) == "file"


def read_selection(place: Storage) -> Selection:
    """Read the record. Raises ValueError where it is not one."""
    try:
        return _SELECTION.validate_json(place.read(SELECTION))
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        what = ".".join(map(str, found["loc"])) or "the file"
        raise ValueError(
            f"{place.path(SELECTION)}: is not a record of lrd select ({what}: {found['msg']}); "
            f"{AGAIN}"
        ) from error


def check_shards(place: Storage, selection: Selection) -> Iterator[tuple[str, str]]:
    """File and fault of everything in which the data differ from their record."""
    for shard in selection.shards:
        try:
            digest = digest_of(place, shard.name)
        except FileNotFoundError:
            yield shard.name, "is missing"
            continue
        if digest != shard.sha256:
            yield shard.name, "its bytes are not those of its record"
    known = {shard.name for shard in selection.shards}
    for name in sorted(set(listing(place, DATA)) - known):
        yield name, "is not in the record of lrd select"
