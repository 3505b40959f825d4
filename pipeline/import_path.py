"""Keeps processes of a run from importing files of the working directory.

A user's `random.py` or `numpy.py` would be imported instead of the module that is meant. Searched
are the installed packages, what `PYTHONPATH` names, and the folder that holds this package.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

SAFE = "PYTHONSAFEPATH"
"""Set, Python does not add a script's folder or the working directory to what it searches."""
_ROOT = Path(__file__).parents[1]


def safe_folders(folders: Iterable[str], named: Collection[str] = ()) -> list[str]:
    """Folders without the working directory, but for the folder that holds this package wherever
    it is, and those that are `named`."""
    return [folder for folder in folders if folder in named or not _is_working_directory(folder)]


def named_folders() -> list[str]:
    """The folders that the user's `PYTHONPATH` names; an empty part of it names none."""
    parts = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return [os.path.abspath(part) for part in parts if part]


def safe_environment(named: Collection[str] = ()) -> dict[str, str]:
    """Environment variables by which a Python process finds what this one finds, and nothing in
    the working directory unless it is `named`."""
    return {"PYTHONPATH": os.pathsep.join(safe_folders(sys.path, named)), SAFE: "1"}


def _is_working_directory(folder: str) -> bool:
    with suppress(OSError):
        return not folder or (os.path.samefile(folder, ".") and not _ROOT.samefile("."))
    return False
