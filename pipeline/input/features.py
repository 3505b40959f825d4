"""The features that `datasets` keeps in a footer: which structs are images, which integers
classes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

KEY = b"huggingface"


class Features:
    """Those of an input: the first shard's that has any."""

    def __init__(self) -> None:
        self._footer: bytes | None = None
        self._classes: dict[str, Any] = {}
        self._where = ""

    def add(self, where: str, footer: Mapping[bytes, bytes]) -> None:
        """Raises ValueError where a shard's integers stand for other classes than before."""
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
        """For the schema of all shards."""
        return {} if self._footer is None else {KEY: self._footer}


def _classes(feature: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Names of every ClassLabel, by its place."""
    if isinstance(feature, list):
        feature = dict(enumerate(feature))
    if not isinstance(feature, dict):
        return
    if feature.get("_type") == "ClassLabel":
        yield path, feature.get("names")
    else:
        for key, inner in feature.items():
            yield from _classes(inner, f"{path}.{key}" if path else str(key))
