"""Reads a checkpoint's text and JSON files; every error is one line that names the file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

M = TypeVar("M", bound=BaseModel)

LFS_HEAD = b"version https://git-lfs.github.com/spec/"
LONGEST_VALUE = 60
"""Characters of a wrong value that an error shows."""
EXPECTED = {
    "int_type": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "an object",
}
"""pydantic's kinds of errors → what JSON calls the type."""


def refuse_pointer(file: Path) -> None:
    """ValueError where Git LFS left its pointer instead of the file."""
    with file.open("rb") as stream:
        if stream.read(len(LFS_HEAD)) == LFS_HEAD:
            raise ValueError(
                f"{file}: a Git LFS pointer, not the file itself; run `git lfs pull` in its folder"
            )


def read_text(file: Path) -> str:
    """A UTF-8 file, with or without a byte order mark. Raises ValueError for anything else."""
    try:
        refuse_pointer(file)
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror or error}; download it again") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}: not UTF-8 text (byte {error.start}); save it as UTF-8, or run "
            "`git lfs pull` or download it again"
        ) from error


def read_object(file: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises ValueError for anything else."""
    try:
        found = json.loads(read_text(file))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error}); download it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file}: not a JSON object; download it again")
    return found


def validated(kind: type[M], values: Mapping[str, Any], name: str) -> M:
    """The values as a pydantic model; a null counts as absent.

    Raises ValueError that names the file (`name`) and every field that does not fit.
    """
    try:
        return kind.model_validate({k: v for k, v in values.items() if v is not None})
    except ValidationError as error:
        raise ValueError(f"{name}: " + "; ".join(map(_said, error.errors()))) from error


def _said(finding: Any) -> str:
    field, wrong = ".".join(map(str, finding["loc"])), repr(finding["input"])
    if finding["type"] == "missing":
        return f"no '{field}'; it is needed to build the model"
    if len(wrong) > LONGEST_VALUE:
        wrong = wrong[:LONGEST_VALUE] + "…"
    message = finding["msg"].removeprefix("Input should be ")
    return f"{field} is {wrong}; expected {EXPECTED.get(finding['type'], message)}"
