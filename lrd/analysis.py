"""Reads finished runs into pandas: tables of rows, passes and tokens, and ready plots.

    from lrd import analysis
    run = analysis.load("runs/out")

The names of `pipeline.analysis`, for users of the library. No module of `lrd` imports this one;
`lrd.analysis` is imported when it is first used.
"""

from __future__ import annotations

from pipeline.analysis.frames import load, tokenizer
from pipeline.analysis.plots import plot_commit_order, plot_confidence, plot_kl, plot_passes
from pipeline.analysis.tidy import tokens, traces

__all__ = [
    "load",
    "plot_commit_order",
    "plot_confidence",
    "plot_kl",
    "plot_passes",
    "tokenizer",
    "tokens",
    "traces",
]
