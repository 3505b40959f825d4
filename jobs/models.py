"""List the models that are known by name: canvases and block settings as published.

Any LLaDA or Dream checkpoint loads, listed or not.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from jobs import output
from lrd.models.registry import EMBEDDED, KNOWN, BlockSettings, KnownCheckpoint

EMBEDDED_FOR = {"tiny": "word problems, 64/64", "tiny_sheets": "sheets of word problems, 256/32"}
"""What an embedded model is for, and its canvas."""
CACHES = {"dual": "cache of all but the block", "prefix": "cache of all before the block"}
RULES = {
    "confidence_threshold": "commits probability >= {:g}",
    "entropy_threshold": "commits entropy < {:g} nats",
}
"""A commit rule of `DecodingConfig` in words."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command has no flags of its own."""


@output.command("lrd models")
def run(args: argparse.Namespace) -> int:
    """Print the list; exit code 0."""
    for line in lines():
        print(line)
    return output.OK


def lines() -> Iterator[str]:
    """The whole list."""
    yield f"{'model':42} {'family':7} {'kind':5} published gen_length/block_length"
    for name, folder in EMBEDDED.items():
        there = "embedded" if folder.is_dir() else "not in this installation"
        yield f"{name:42} {'llada':7} {'chat':5} {there}; {EMBEDDED_FOR[name]}"
    for known in KNOWN:
        kind = "chat" if known.chat else "base"
        yield f"{known.hub_id:42} {known.family:7} {kind:5} {_canvases(known)}".rstrip()
        if known.blocks is not None:
            yield from _blocks(known.blocks)
    yield "gen_length/block_length: as the authors evaluated; whole: one block, without a length."
    yield "Block settings are those of decoding without soft embeddings: start from"
    yield "--preset baseline; lrd tune measures what the other presets make of them."
    yield "Any folder or hub id with a LLaDA or Dream config.json works: --model FOLDER|OWNER/NAME"


def _canvases(known: KnownCheckpoint) -> str:
    tasks = (f"{task} {p.gen_length}/{p.block_length}" for task, p in known.tasks.items())
    return ", ".join(tasks) or known.canvas or ""


def _blocks(found: BlockSettings) -> Iterator[str]:
    """A recommended block setting: in words with its source, then as flags."""
    decoding = found.decoding
    words = [f"blocks of {decoding['block_length']}"]
    words += [CACHES[decoding["kv_cache"]]] if "kv_cache" in decoding else []
    if decoding.get("cache_refresh"):
        words.append(f"renewed every {decoding['cache_refresh']} passes")
    words += [rule.format(decoding[name]) for name, rule in RULES.items() if name in decoding]
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in decoding.items())
    yield f"  {found.basis}: {', '.join(words)} ({found.source})"
    yield f"    {flags}"
