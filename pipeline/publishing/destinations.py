"""Sends a published dataset to a local folder, an object store or the hub."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial as bound
from pathlib import Path

from lrd.models.hub import is_hub_id
from pipeline.publishing.dataset_card import About, Facts
from pipeline.publishing.publish import publish, push
from pipeline.storage.storage import Storage
from pipeline.storage.uris import canonical, is_uri

HUB = "hf://datasets/"

Send = Callable[[Path], str]
"""Sends a published folder somewhere; returns its new address."""


def publish_to(
    output: Storage,
    to: str,
    about: About,
    *,
    public: bool = False,
    partial: bool = False,
    on_shard: Callable[[int, int], None] = lambda done, planned: None,
) -> tuple[Facts, str]:
    """Publish a run to a folder, a URI or a hub id; the card's figures, and the dataset's address.

    public: whether a new hub repository is public. partial, on_shard: as in `publish`.
    Raises ValueError for a destination that is not valid or not empty, and as `publish`;
    PushError where the hub refuses it; OSError where storage fails.
    """
    to = canonical(to)
    send = destination(to, public)
    if send is None:
        Storage(to).check_writable()
        folder = Path(to)
        return publish(output, folder, about, partial=partial, on_shard=on_shard), str(folder)
    # On the file system of a local run, so that shards can be hard links instead of copies.
    beside = str(Path(output.root).resolve().parent) if output.is_local else None
    with tempfile.TemporaryDirectory(prefix=".lrd-publish-", dir=beside) as parent:
        folder = Path(parent) / "dataset"
        facts = publish(output, folder, about, partial=partial, on_shard=on_shard)
        return facts, send(folder)


def destination(to: str, public: bool) -> Send | None:
    """The function that sends the dataset to a store or the hub; None for a local folder.

    Raises ValueError where `to` is not a hub id, where it could mean a folder too, and where a
    store holds something there already.
    """
    if is_uri(to) and not to.startswith(HUB):
        store = Storage(to)
        store.check_empty()
        return bound(_to_store, store)
    hub_id = to.removeprefix(HUB)
    if not is_hub_id(hub_id):
        if to.startswith(HUB):
            raise ValueError(f"--to {to}: is not a hub id; expected owner/name")
        return None
    if hub_id == to and Path(to).parent.exists():
        raise ValueError(f"--to {to}: write ./{to} for the folder, {HUB}{to} for the hub")
    return bound(push, hub_id=hub_id, public=public)


def _to_store(store: Storage, folder: Path) -> str:
    """Write a published folder to a store, the card last; its URI."""
    store.take_folder(folder, last="README.md")
    return store.uri
