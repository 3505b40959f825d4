"""Chooses the files of a folder to read: all of one kind, of the splits that are named.

Only names are used, so that of a store's folder no more is fetched than is read.

    train-00000-of-00002.parquet        split train
    data/train_sft-00000-of-…           split train_sft
    test/0.jsonl, dev.csv               splits test, validation
    a.csv, b.csv                        no split
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.preparing.reading import naming
from pipeline.preparing.source_file import COMPRESSIONS

KINDS = {
    ".parquet": "Parquet",
    ".csv": "CSV",
    ".tsv": "CSV",
    ".jsonl": "JSON",
    ".ndjson": "JSON",
    ".json": "JSON",
}
TEXT_SUFFIXES = [suffix for suffix, kind in KINDS.items() if kind != "Parquet"]
EXPECTED = f"{', '.join(KINDS)}, text also compressed ({', '.join(COMPRESSIONS)})"
METADATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
"""Files that `datasets` and the hub store beside the data."""
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "dev", "val"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""The words for splits that `datasets` recognises in names of files and folders."""
SHARD = re.compile(r"(.+)-\d{5,}-of-\d{5,}")


@dataclass(frozen=True, slots=True)
class Choice:
    """Files to read, all of one kind."""

    kind: str
    names: list[str]
    left_out: tuple[str, ...]


def kind_of(name: str) -> str | None:
    """Parquet, CSV or JSON, by the suffix in any case, which a suffix of a compression may follow;
    None for other files."""
    stem, suffix = _parted(name.lower())
    if suffix in COMPRESSIONS:
        suffix = _parted(stem)[1]
        return KINDS[suffix] if suffix in TEXT_SUFFIXES else None
    return KINDS.get(suffix)


def choose_file(source: str, name: str, split: str | None) -> Choice:
    """The choice of a single file. Raises ValueError where its kind cannot be read, or it is of
    another split than the one named."""
    kind = kind_of(name)
    if kind is None:
        raise ValueError(f"{source}: cannot be read; expected {EXPECTED}")
    with naming(source):
        return Choice(kind, _of_splits([name], split), ())


def choose(source: str, names: Sequence[str], split: str | None) -> Choice:
    """The files of a folder to read, as paths in it; names that begin with . or _ are skipped.

    Raises ValueError where they are of several kinds, of several splits and none is named, or in
    several folders, and where there is no file to read.
    """
    with naming(source):
        if any(name.startswith("_delta_log/") for name in names):
            raise ValueError("is a Delta table, which still holds removed files; export it first")
        data = sorted(name for name in names if _is_data(name))
        kinds = sorted({str(kind_of(name)) for name in data})
        if len(kinds) != 1:
            holds = f"files of {' and '.join(kinds)}" if kinds else f"no files of {EXPECTED}"
            raise ValueError(f"holds {holds}; one kind is needed")
        chosen = _of_splits(data, split)
    return Choice(kinds[0], chosen, tuple(sorted(set(names) - set(chosen))))


def _is_data(name: str) -> bool:
    parts = name.split("/")
    hidden = any(part.startswith((".", "_")) for part in parts)
    return not hidden and parts[-1] not in METADATA and kind_of(name) is not None


def _of_splits(names: list[str], split: str | None) -> list[str]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(split_of(name), []).append(name)
    if split is None and len(groups) > 1:
        raise ValueError(f"holds several splits: {_list(groups)}; name one with --split")
    wanted = [_group(groups, word) for word in split.split("+")] if split else list(groups)
    for group in wanted:
        folders = sorted({name.rpartition("/")[0] or "." for name in groups[group]})
        if len(folders) > 1:
            raise ValueError(
                f"holds files in several folders: {', '.join(folders[:10])}; name one of them"
            )
    return [name for group in wanted for name in groups[group]]


def _group(groups: dict[str, list[str]], word: str) -> str:
    """The split to which a word of --split refers."""
    if word in groups:
        return word
    split = SPLITS.get(word, word)
    found = [group for group in groups if _keyword(group) == split]
    if not found and split == "train" and len(groups) == 1 and _keyword(next(iter(groups))) is None:
        # Files that name no split are the train split, as in `datasets`.
        found = list(groups)
    if len(found) != 1:
        fault = "has several splits" if found else "has no split"
        raise ValueError(f"{fault} {word!r}; it holds {_list(groups)}")
    return found[0]


def split_of(name: str) -> str:
    """The split that a file's path names; empty where it names none.

    A word of SPLITS alone is that split; with other words beside it, all of them are its name.
    """
    stem = _parted(name)[0]
    if name.lower().endswith(tuple(COMPRESSIONS)):
        stem = _parted(stem)[0]
    folders, _, last = stem.rpartition("/")
    if shard := SHARD.fullmatch(last):
        return SPLITS.get(shard[1].lower(), shard[1])
    for part in [last, *reversed(folders.split("/"))]:
        words = [word for word in _words(part) if not word.isdigit()]
        if any(word in SPLITS for word in words):
            return SPLITS[words[0]] if len(words) == 1 else "_".join(words)
    return ""


def _keyword(group: str) -> str | None:
    """The first word for a split in a group's name; None where there is none."""
    return next((SPLITS[word] for word in _words(group) if word in SPLITS), None)


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[-._ ]+|(?<=\D)(?=\d)|(?<=\d)(?=\D)", text.lower()) if word]


def _list(groups: dict[str, list[str]]) -> str:
    return ", ".join(
        f"{group or 'no name'} ({found[0]}{f' and {len(found) - 1} more' if found[1:] else ''})"
        for group, found in list(groups.items())[:10]
    )


def _parted(name: str) -> tuple[str, str]:
    """A name without its last suffix, and that suffix."""
    stem, dot, suffix = name.rpartition(".")
    return (stem, dot + suffix) if dot and "/" not in suffix else (name, "")
