"""Checkpoints that people have: hub id, family, chat or base, canvases and block settings as
published; and the embedded models by name.

A table for reference. Loading uses of it the embedded models alone: any checkpoint of a known
architecture loads, listed or not. What a release does not say is None or empty here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

TINY = Path(__file__).parent / "tiny"
"""The embedded model for single word problems, `tiny` by name."""
TINY_SHEETS = Path(__file__).parent / "tiny_sheets"
"""The embedded model for sheets of several word problems, `tiny_sheets` by name."""
EMBEDDED = {"tiny": TINY, "tiny_sheets": TINY_SHEETS}
"""Name → folder of the models that come with the package."""


@dataclass(frozen=True, slots=True)
class Published:
    """Canvas settings that a release names for a task, in tokens."""

    gen_length: int
    block_length: int


@dataclass(frozen=True, slots=True)
class BlockSettings:
    """Settings of block decoding that somebody has run a checkpoint with."""

    decoding: Mapping[str, Any]
    """Fields of `DecodingConfig`: the block, its cache, which positions are committed."""
    basis: Literal["published", "measured"]
    """published: by the authors of the checkpoint or of the sampler. measured: by this project."""
    source: str
    """Where they stand."""


@dataclass(frozen=True, slots=True)
class KnownCheckpoint:
    """One release on the hub."""

    hub_id: str
    family: Literal["llada", "dream"]
    chat: bool
    """Tuned for chat; False for a base model."""
    canvas: Literal["blocks", "whole"] | None = None
    """Whether its authors decode block by block or the whole canvas as one block."""
    tasks: Mapping[str, Published] = field(default_factory=dict)
    blocks: BlockSettings | None = None
    """Recommended for block decoding."""


def _published(source: str, **decoding: Any) -> BlockSettings:
    return BlockSettings(decoding, "published", source)


KNOWN = (
    KnownCheckpoint("GSAI-ML/LLaDA-8B-Base", "llada", chat=False, canvas="whole"),
    KnownCheckpoint(
        "GSAI-ML/LLaDA-8B-Instruct",
        "llada",
        chat=True,
        canvas="blocks",
        tasks={
            "gsm8k": Published(256, 8),
            "math": Published(512, 64),
            "humaneval": Published(512, 32),
            "mbpp": Published(512, 32),
        },
        blocks=_published(
            "NVlabs/Fast-dLLM, v1/llada/eval_humaneval.sh: 256 tokens",
            block_length=32,
            kv_cache="dual",
            confidence_threshold=0.9,
        ),
    ),
    KnownCheckpoint(
        "GSAI-ML/LLaDA-1.5",
        "llada",
        chat=True,
        canvas="blocks",
        tasks={
            "gsm8k": Published(256, 16),
            "math": Published(1024, 128),
            "humaneval": Published(512, 32),
            "mbpp": Published(512, 32),
        },
    ),
    KnownCheckpoint(
        "Zigeng/dParallel-LLaDA-8B-instruct",
        "llada",
        chat=True,
        blocks=_published(
            "czg1225/dParallel, README: 256 tokens", block_length=32, entropy_threshold=0.5
        ),
    ),
    KnownCheckpoint("d3LLM/d3LLM_LLaDA", "llada", chat=True),
    KnownCheckpoint("Dream-org/Dream-v0-Base-7B", "dream", chat=False, canvas="whole"),
    KnownCheckpoint(
        "Dream-org/Dream-v0-Instruct-7B",
        "dream",
        chat=True,
        canvas="whole",
        blocks=_published(
            "hao-ai-lab/d3LLM, eval_scripts/dream_mbpp.sh, Fast-dLLM with dual cache: 256 tokens",
            block_length=32,
            kv_cache="dual",
            confidence_threshold=0.9,
        ),
    ),
    KnownCheckpoint("Dream-org/Dream-Coder-v0-Base-7B", "dream", chat=False),
    KnownCheckpoint("Dream-org/Dream-Coder-v0-Instruct-7B", "dream", chat=True),
    KnownCheckpoint("apple/DiffuCoder-7B-Base", "dream", chat=False),
    KnownCheckpoint("apple/DiffuCoder-7B-Instruct", "dream", chat=True),
    KnownCheckpoint("apple/DiffuCoder-7B-cpGRPO", "dream", chat=True),
    KnownCheckpoint(
        "Zigeng/dParallel_Dream_7B_Instruct",
        "dream",
        chat=True,
        blocks=_published(
            "czg1225/dParallel, Dream/generate.py: 256 tokens",
            block_length=32,
            entropy_threshold=0.5,
        ),
    ),
    KnownCheckpoint("d3LLM/d3LLM_Dream", "dream", chat=True),
    KnownCheckpoint("d3LLM/d3LLM_Dream_Coder", "dream", chat=True),
)


def known_checkpoint(hub_id: str) -> KnownCheckpoint | None:
    """The table's entry of a hub id (case does not matter), or None."""
    return next((known for known in KNOWN if known.hub_id.lower() == hub_id.lower()), None)


def embedded_folder(name: str) -> Path | None:
    """The folder of an embedded model's name; None for any other name.

    Raises ValueError where this installation lacks it.
    """
    folder = EMBEDDED.get(name)
    if folder is not None and not folder.is_dir():
        there = ", ".join(name for name, folder in EMBEDDED.items() if folder.is_dir())
        raise ValueError(f"{name}: this installation does not have it; choose {there or 'another'}")
    return folder
