"""Checkpoints that people have: hub id, family, chat or base, canvases as published.

A table for reference. Loading does not use it: any checkpoint of a known architecture loads, listed
or not. What a release does not say is None or empty here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

TINY = Path(__file__).parent / "tiny"
"""The embedded model, `tiny` by name."""


@dataclass(frozen=True, slots=True)
class Published:
    """Canvas settings that a release names for a task, in tokens."""

    gen_length: int
    block_length: int


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
    KnownCheckpoint("Zigeng/dParallel-LLaDA-8B-instruct", "llada", chat=True),
    KnownCheckpoint("d3LLM/d3LLM_LLaDA", "llada", chat=True),
    KnownCheckpoint("Dream-org/Dream-v0-Base-7B", "dream", chat=False, canvas="whole"),
    KnownCheckpoint("Dream-org/Dream-v0-Instruct-7B", "dream", chat=True, canvas="whole"),
    KnownCheckpoint("Dream-org/Dream-Coder-v0-Base-7B", "dream", chat=False),
    KnownCheckpoint("Dream-org/Dream-Coder-v0-Instruct-7B", "dream", chat=True),
    KnownCheckpoint("apple/DiffuCoder-7B-Base", "dream", chat=False),
    KnownCheckpoint("apple/DiffuCoder-7B-Instruct", "dream", chat=True),
    KnownCheckpoint("apple/DiffuCoder-7B-cpGRPO", "dream", chat=True),
    KnownCheckpoint("Zigeng/dParallel_Dream_7B_Instruct", "dream", chat=True),
    KnownCheckpoint("d3LLM/d3LLM_Dream", "dream", chat=True),
    KnownCheckpoint("d3LLM/d3LLM_Dream_Coder", "dream", chat=True),
)


def known_checkpoint(hub_id: str) -> KnownCheckpoint | None:
    """The table's entry of a hub id (case does not matter), or None."""
    return next((known for known in KNOWN if known.hub_id.lower() == hub_id.lower()), None)
