"""Puts a shard into the folder that is published, as a link where that is possible."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.storage.storage import Storage


def link_or_copy(output: Storage, name: str, content: bytes, target: Path) -> None:
    """Hard-link a shard where the filesystem allows it, else write its content. A link is safe: a
    shard is never written into but replaced."""
    if output.is_local:
        try:
            os.link(output.path(name), target)
            return
        except OSError:
            pass
    target.write_bytes(content)
