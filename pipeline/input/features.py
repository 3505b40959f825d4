"""Collects the features that `datasets` writes into Parquet footers (which structs are images,
which integers are class labels) and checks that all shards agree."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

KEY = b"huggingface"


class Features:
    """The features of an input: those of the first shard that has any."""

    def __init__(self) -> None:
        self._footer: bytes | None = None
        self._classes: dict[str, Any] = {}
        self._where = ""

    def add(self, where: str, footer: Mapping[bytes, bytes]) -> None:
        """Take in a shard's footer. Raises ValueError where its class names differ from earlier
        ones."""
        try:
            features = json.loads(footer[KEY])["info"]["features"]
            classes = dict(_classes(features))
        except (KeyError, TypeError, ValueError):
            return
        if self._footer is None:
            self._footer, self._classes, self._where = footer[KEY], classes, where
        for path in self._classes.keys() & classes.keys():
            if self._classes[path] != classes[path]:
                raise ValueError(
                    f"{where}: classes of {path} are {classes[path]}, in {self._where} "
                    f"{self._classes[path]}; cast both to one ClassLabel"
                )

    @property
    def metadata(self) -> dict[bytes, bytes]:
        """The features as schema metadata; empty where no shard has any."""
        return {} if self._footer is None else {KEY: self._footer}


def _classes(feature: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The path and the class names of every ClassLabel."""
    if isinstance(feature, list):
        feature = dict(enumerate(feature))
    if not isinstance(feature, dict):
        return
    if feature.get("_type") == "ClassLabel":
        yield path, feature.get("names")
    else:
        for key, inner in feature.items():
            yield from _classes(inner, f"{path}.{key}" if path else str(key))
