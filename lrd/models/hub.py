"""A Hugging Face Hub id → a local folder with the files that loading reads, and no others.

huggingface_hub does the work, with its cache, its credentials and its offline mode
(HF_HUB_OFFLINE).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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


def weight_headers(hub_id: str, folder: Path) -> dict[str, dict[str, tuple[list[int], str]]] | None:
    """Shape and dtype of every tensor of a snapshot's safetensors files, which are not downloaded:
    names of files → names of tensors → both; None where the hub does not say.

    folder: the snapshot's, of any of its files.
    """
    from huggingface_hub import HfApi

    found = _asked(lambda: HfApi().get_safetensors_metadata(hub_id, revision=folder.name))
    if found is None:
        return None
    return {
        file: {name: (tensor.shape, tensor.dtype) for name, tensor in about.tensors.items()}
        for file, about in found.files_metadata.items()
    }


def weight_sha256(hub_id: str, folder: Path) -> dict[str, str]:
    """The SHA-256 of a snapshot's files that are stored by Git LFS, by name, without a download;
    empty where the hub does not say."""
    from huggingface_hub import HfApi

    info = _asked(lambda: HfApi().model_info(hub_id, revision=folder.name, files_metadata=True))
    files = (info.siblings or []) if info is not None else []
    return {file.rfilename: file.lfs.sha256 for file in files if file.lfs is not None}


def _asked(request: Callable[[], Any]) -> Any:
    """What the hub answers; None where it does not, whatever the reason: the files themselves are
    downloaded then, and that says what is wrong."""
    try:
        return request()
    except Exception:
        return None
