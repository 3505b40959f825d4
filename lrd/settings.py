"""The settings of the procedure, field by field: what a user may write, its meaning and bounds.

`config.py` makes one checked object of these and of `decoder_settings.py`.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator

AUTO_LENGTHS = (64, 512)
"""gen_length and max_gen_length of `gen_length = "auto"`."""
MAX_REFINE_STEPS = 10_000


class MethodSettings(BaseModel):
    """Latent refinement, commit rules, blocks, caches and sampling; paper symbols in brackets."""

    gen_length: int = Field(
        128,
        ge=1,
        description="canvas length in tokens; auto: as long as the row needs, from "
        f"{AUTO_LENGTHS[0]} on, doubled up to max_gen_length [{AUTO_LENGTHS[1]}]",
    )
    max_gen_length: int | None = Field(
        None,
        ge=1,
        description="longest canvas: rows begin with gen_length and move to twice as long a canvas "
        "where the model does not expect to end in theirs",
    )
    eos_window: int = Field(
        32, ge=1, description="last canvas positions that are asked for EOS [W of DAEDAL]"
    )
    eos_enough: float = Field(
        0.5,
        ge=0,
        le=1,
        description="mean probability of EOS there from which on a canvas is long enough",
    )
    block_length: int | None = Field(
        None, ge=1, description="tokens decoded together; must divide gen_length [whole canvas]"
    )
    r_f: float = Field(0.15, ge=0, le=1, description="largest share of token embedding [r_f]")
    top_p: float = Field(0.9, ge=0, le=1, description="mass of the nucleus T; 0: no mixing")
    tau_refine: float = Field(0.1, ge=0, description="refine until the monitor is below, nats")
    tau_decode: float = Field(0.1, ge=0, description="early stop: the monitor below, nats")
    max_refine_steps: int = Field(
        20, ge=0, le=MAX_REFINE_STEPS, description="refinement passes at most [T_refine]"
    )
    refinement: Literal["initial", "first", "auto"] | int = Field(
        "initial",
        description="initial: once a block; first: in the first block alone; auto: before every "
        "commitment; k: exactly k passes before every commitment (LF x k)",
    )
    monitor: Literal["kl", "change"] = Field(
        "kl",
        description="what must fall below tau_refine and tau_decode. kl: D_t; change: "
        "|D_t - D_(t-1)|, from a block's third pass on (the paper's Figure 3)",
    )
    early_stop: bool = Field(False, description="end a block once the monitor has converged")
    reduction: Literal["mean", "max", "sum"] = Field("mean", description="of KL over positions")
    scope: Literal["block", "open"] = Field("block", description="what a mean divides by")
    patience: int = Field(1, ge=1, description="consecutive decode passes below tau_decode")
    stop_max_entropy: float | None = Field(
        None, ge=0, description="gate of the early stop: every open position's entropy below, nats"
    )
    tokens_per_step: int = Field(1, ge=1, description="positions committed a decode pass")
    entropy_threshold: float | None = Field(
        None, ge=0, description="commit every position with entropy below (nats), at least one"
    )
    entropy_bound: float | None = Field(
        None, ge=0, description="EB-Sampler's gamma: summed entropy less the largest, nats"
    )
    confidence_threshold: float | None = Field(
        None, ge=0, le=1, description="commit every position of this probability, at least one"
    )
    steps: int | None = Field(
        None,
        ge=1,
        description="decode passes over all blocks; replaces tokens_per_step. With "
        "confidence_threshold it caps what has been committed by each pass",
    )
    schedule: Literal["even", "timestep", "doubling", "linear", "cosine"] = Field(
        "even",
        description="how steps share out a block. even: equally, the remainder to the first "
        "(LLaDA); timestep: 1 - s/t of what is open, all in the last (Dream); doubling: 1, 2, 4, "
        "…, all in the last; without steps log2 of a block's tokens, rounded down, passes (ASS); "
        "linear, cosine: with reopen = lowest, what a pass leaves open (RCR)",
    )
    schedule_eps: float = Field(1e-3, gt=0, lt=1, description="last timestep of `timestep`")
    confidence: Literal["entropy", "probability", "margin"] = Field(
        "entropy", description="orders positions: the belief's entropy, p(token), p(1st) - p(2nd)"
    )
    confidence_source: Literal["belief", "sampling"] = Field(
        "belief",
        description="what confidence is read from: the model's belief (LLaDA), or what tokens "
        "are drawn from, tempered and cut by sample_top_p and sample_top_k (Dream)",
    )
    cfg_scale: float = Field(
        0.0, ge=0, description="classifier-free guidance against a masked prompt; 0: none"
    )
    logits_eos_inf: bool = Field(False, description="EOS is never written (LLaDA)")
    confidence_eos_eot_inf: bool = Field(
        False, description="positions that would write EOS or the end of turn come last (LLaDA)"
    )
    stop_at_eos: bool = Field(True, description="block mode: end once an EOS has no gap before")
    kv_cache: Literal["none", "prefix", "dual"] = Field(
        "none",
        description="what a block's passes after its first keep: nothing; prefix: keys and values "
        "of all before the block; dual: of all but the block",
    )
    cache_refresh: int = Field(
        0,
        ge=0,
        description="every n-th pass of a block renews all that is kept; 0: its first alone",
    )
    suffix: Literal["all"] | int | tuple[int, ...] = Field(
        "all",
        description="what is computed behind the block: all; w: the next w blocks, and of each "
        "later block its last position; a list, or a text such as 0-7,15,23: the positions at "
        "these distances, 0 the first behind the block; none (DPad)",
    )
    temperature: float = Field(0.0, ge=0, description="0: argmax; else Gumbel sampling")
    sample_top_p: float | None = Field(
        None, gt=0, le=1, description="draw from the most probable tokens of this mass alone"
    )
    sample_top_k: int | None = Field(
        None, ge=1, description="draw from this many most probable tokens alone"
    )
    seed: int = Field(0, description="each row draws from hash(seed, row id)")

    @field_validator("suffix", mode="before")
    @classmethod
    def _read_suffix(cls, given: Any) -> Any:
        """Distances, in ascending order, of a text or a list of numbers."""
        if isinstance(given, str) and given not in ("all", "none") and not given.isdigit():
            return _distances(given)
        if isinstance(given, (list, tuple, range)) and all(isinstance(one, int) for one in given):
            return tuple(sorted(set(given)))
        return () if given == "none" else given


def _distances(text: str) -> tuple[int, ...]:
    """The numbers of a text such as 0-7,15,23."""
    found: set[int] = set()
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", part)
        if ends is None:
            raise ValueError(
                "give all, none, a number of blocks, or distances behind the block such as "
                "0-7,15,23"
            )
        first, last = int(ends[1]), int(ends[2] or ends[1])
        if last < first:
            raise ValueError(f"{part.strip()} is not a range; write {last}-{first}")
        found |= set(range(first, last + 1))
    return tuple(sorted(found))


def suffix_text(suffix: str | int | tuple[int, ...]) -> str:
    """The text of a flag that gives this `suffix`."""
    if not isinstance(suffix, tuple):
        return str(suffix)
    # One number would count blocks.
    parts = [f"{one}-{one}" if len(suffix) == 1 else str(one) for one in suffix]
    return ",".join(parts) or "none"
