"""The settings of published decoders, each beside its paper; all are off by default.

`lrd/decoders/` has the rules, a file each, and `presets.py` the published values.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class DecoderSettings(BaseModel):
    """What other decoders add to the procedure; `DecodingConfig` checks them with the others."""

    # How many positions a pass may commit: ReMix, WINO.
    commit_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="confidence_threshold commits at most this share of the open positions, but "
        "commit_floor at least and commit_ceiling at most (ReMix, WINO)",
    )
    commit_floor: int = Field(1, ge=1, description="positions that commit_share leaves at least")
    commit_ceiling: int | None = Field(
        None, ge=1, description="positions that confidence_threshold commits at most a pass"
    )

    # KLASS.
    stable_kl: float | None = Field(
        None,
        gt=0,
        description="confidence_threshold commits only where the last stable_passes divergences "
        "of a position are below, nats (KLASS)",
    )
    stable_passes: int = Field(2, ge=1, description="divergences that must be below stable_kl")

    # LocalLeap.
    leap_radius: int | None = Field(
        None,
        ge=1,
        description="positions around those that confidence_threshold names may be committed too "
        "(LocalLeap)",
    )
    leap_threshold: float = Field(0.75, ge=0, le=1, description="probability that they need")

    # CreditDecoding.
    credit_alpha: float = Field(
        0.0,
        ge=0,
        description="weight of what a token has been credited with in earlier passes; 0: none "
        "(CreditDecoding)",
    )
    credit_gamma: float = Field(0.2, gt=0, description="credit of a pass: p(token) to this power")
    credit_decay: float = Field(0.8, ge=0, le=1, description="share of credit that a pass keeps")

    # EOSER.
    eos_confidence_start: float = Field(
        1.0,
        ge=0,
        le=1,
        description="factor on the confidence of EOS in the first pass, rises to 1 (EOSER)",
    )

    # CreditDecoding, DPad.
    eos_ends_block: bool = Field(
        False,
        description="block mode: a full block that holds an EOS anywhere ends the sample, and what "
        "lies behind the block becomes EOS (CreditDecoding, DPad)",
    )

    # Prophet.
    stop_gap_early: float | None = Field(
        None,
        ge=0,
        description="first third of steps: commit all of the canvas where the mean gap between "
        "the largest two logits of the answer's positions is as large (Prophet)",
    )
    stop_gap_middle: float = Field(5.0, ge=0, description="the same in the second third")
    stop_gap_late: float = Field(2.5, ge=0, description="the same in the last third")
    stop_gap_start: int | None = Field(
        None,
        ge=0,
        description="first canvas position of the answer; by default all open positions count",
    )
    stop_gap_length: int = Field(5, ge=1, description="positions from stop_gap_start on")

    # What is mixed.
    mix: Literal["lrd", "remix", "topk"] = Field(
        "lrd",
        description="what open positions are fed. lrd: Eq. 3 and 4 (r_f, top_p); remix: the "
        "nucleus by its mass (ReMix: mix_share); topk: the mix_top_k most probable tokens, "
        "renormalised, by Eq. 4's weight (soft masking)",
    )
    mix_share: float = Field(0.5, ge=0, le=1, description="remix: share of the nucleus [beta]")
    mix_top_k: int = Field(3, ge=1, le=50, description="topk: tokens that are mixed")
    reject_js: float | None = Field(
        None,
        gt=0,
        description="positions whose belief moved by more since the pass before (Jensen-Shannon, "
        "nats) are fed [MASK] (ReMix)",
    )
    soft_suffix: bool = Field(
        False,
        description="block mode: open positions behind the block are mixed too, once, in the "
        "block's first pass (SSM)",
    )

    # SlowFast.
    span_confidence: float | None = Field(
        None,
        ge=0,
        le=1,
        description="a block is decoded span by span, each as long as positions of this "
        "probability reach (SlowFast)",
    )
    span_explore: int = Field(6, ge=1, description="passes that explore before a span is decoded")
    span_window: int = Field(2, ge=1, description="estimates of the length that must agree")
    span_std: float = Field(1.0, ge=0, description="standard deviation below which they agree")

    # Explore-then-exploit.
    explore_above: float | None = Field(
        None,
        ge=0,
        description="where no position is sure enough, commit the most uncertain one above this "
        "entropy, nats, in any block (explore-then-exploit)",
    )

    # Un-committing: WINO, Saber, RCR.
    reopen: Literal["none", "shadow", "drop", "lowest"] = Field(
        "none",
        description="which committed positions open again. shadow: those that a second, masked "
        "copy of the block doubts (WINO); drop: those whose confidence rose least (Saber); "
        "lowest: the least sure, so that steps end with all (RCR)",
    )
    reopen_scope: Literal["reached", "block"] = Field(
        "reached",
        description="drop and lowest: what may open again. reached: all of the canvas up to the "
        "end of the block, as published; block: the block alone, which kv_cache can go with",
    )
    reopen_threshold: float = Field(
        0.9, ge=0, le=1, description="shadow: probability below which a token is open again"
    )
    threshold_from_committed: bool = Field(
        False,
        description="commit what is surer than the mean of all commits was, at least min_commits "
        "(Saber)",
    )
    min_commits: int = Field(
        1, ge=1, description="threshold_from_committed: positions that a pass commits at least"
    )
