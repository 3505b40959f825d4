"""A Hugging Face Hub id → a local folder with the files that loading reads, and no others.

huggingface_hub does the work, with its cache, its credentials and its offline mode
(HF_HUB_OFFLINE).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

TOKENIZER_FILES = ("*.json", "merges.txt", "*.jinja")
"""What a tokenizer is made from: all but the weights."""
FILES = (*TOKENIZER_FILES, "*.safetensors")
"""Never code (*.py) and never pickles (*.bin, *.pt)."""


def is_hub_id(name: str) -> bool:
    """Whether a name has the form `owner/name`."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None


def download(hub_id: str, revision: str | None, files: Sequence[str] = FILES) -> Path:
    """The snapshot folder of a hub repository, downloaded where the cache lacks it.

    revision: branch, tag or commit; the repository's main branch where there is none. files:
    patterns of the names to have.
    Raises ValueError where the repository or revision does not exist, is not permitted or
    cannot be reached.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        folder = huggingface_hub.snapshot_download(
            hub_id, revision=revision, allow_patterns=list(files), ignore_patterns=["*/*"]
        )
    # Without a connection or a cached copy huggingface_hub raises kinds of OSError.
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ValueError(
            f"{hub_id}{f' at {revision}' if revision else ''} is not a local folder and could not "
            f"be downloaded from the hub ({type(error).__name__}: {error}). Check the id and "
            "revision, the connection, HF_TOKEN for gated models and HF_HUB_OFFLINE, or "
            "name a folder"
        ) from error
    return Path(folder)
