"""Where a published dataset goes: a local folder, an object store or the hub."""

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
"""Takes a published folder elsewhere; where it is then."""


def publish_to(
    output: Storage,
    to: str,
    about: About,
    *,
    public: bool = False,
    partial: bool = False,
    on_shard: Callable[[int, int], None] = lambda done, planned: None,
) -> tuple[Facts, str]:
    """Publish a run to a folder, a URI or a hub id: what was written, and where it is.

    public: of a hub repository that is new. partial, on_shard: as `publish`.
    Raises ValueError for a destination that is not one or holds something, and as `publish`;
    PushError where the hub does not take it; OSError where storage fails.
    """
    to = canonical(to)
    send = destination(to, public)
    if send is None:
        Storage(to).check_writable()
        folder = Path(to)
        return publish(output, folder, about, partial=partial, on_shard=on_shard), str(folder)
    # Beside a local run, so that its shards need no second copy.
    beside = str(Path(output.root).resolve().parent) if output.is_local else None
    with tempfile.TemporaryDirectory(prefix=".lrd-publish-", dir=beside) as parent:
        folder = Path(parent) / "dataset"
        facts = publish(output, folder, about, partial=partial, on_shard=on_shard)
        return facts, send(folder)


def destination(to: str, public: bool) -> Send | None:
    """What takes the dataset to a store or the hub; None for a local folder.

    Raises ValueError for what is not a hub id, where a folder could be meant as well, and where a
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
    """Write a published folder to a store, the card last; where it is."""
    store.take_folder(folder, last="README.md")
    return store.uri
