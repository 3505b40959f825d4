"""Which settings of published decoders go together, and with the method's own.

Each raises ValueError in one line that names the settings and what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lrd.config import DecodingConfig

COMMIT_RULES = ("entropy_threshold", "entropy_bound", "confidence_threshold")
"""Rules that replace `tokens_per_step`; at most one may be set. `steps` replaces it too."""

NOT_REOPENED = ("stable_kl", "reject_js", "explore_above", "span_confidence")
"""Settings that positions which open again would confuse."""


def check_decoders(c: DecodingConfig) -> None:
    """Raises where settings of decoders do not go together."""
    if c.reads_canvas and c.num_blocks > 1 and c.feeds_some:
        whole = [
            name for name in ("stop_gap_early", "explore_above") if getattr(c, name) is not None
        ]
        whole += ["soft_suffix"] if c.soft_suffix else []
        block = "set kv_cache to none and suffix to all"
        if not whole:
            whole, block = [f"reopen {c.reopen}"], f"{block}, or reopen_scope to block"
        raise ValueError(f"{whole[0]} reads the whole canvas in each pass; {block}")
    for check in CHECKS:
        check(c)


def _check_committed_threshold(c: DecodingConfig) -> None:
    if not c.threshold_from_committed:
        if c.min_commits > 1:
            raise ValueError(
                f"min_commits {c.min_commits} goes with threshold_from_committed; set it "
                "too, or tokens_per_step instead"
            )
        return
    others = [name for name in (*COMMIT_RULES, "steps") if getattr(c, name) is not None]
    others += ["tokens_per_step"] if c.tokens_per_step != 1 else []
    others += ["schedule doubling"] if c.schedule == "doubling" else []
    if others:
        raise ValueError(
            f"threshold_from_committed and {others[0]} are both set; keep one commit rule"
        )
    if c.confidence_eos_eot_inf:
        raise ValueError(
            "threshold_from_committed takes means of confidences, and confidence_eos_eot_inf "
            "makes some infinite; drop one of them"
        )


def _check_reopening(c: DecodingConfig) -> None:
    if (c.reopen == "lowest") != (c.schedule in ("linear", "cosine")):
        raise ValueError(
            f"reopen {c.reopen} and schedule {c.schedule} do not go together: reopen "
            "lowest needs steps and schedule linear or cosine, which go with it alone"
        )
    if c.reopen_scope == "block" and c.reopen not in ("drop", "lowest"):
        raise ValueError(
            "reopen_scope block goes with reopen drop or lowest; set one of these, or drop it"
        )
    if c.reopen == "none":
        return
    if c.reopen != "lowest" and c.is_scheduled:
        raise ValueError(
            f"steps are used up before all is committed under reopen {c.reopen}; drop "
            "steps, and set confidence_threshold or another commit rule"
        )
    clash = [name for name in NOT_REOPENED if getattr(c, name) is not None]
    if clash:
        raise ValueError(
            f"{clash[0]} follows positions from pass to pass, and reopen {c.reopen} "
            "changes which are open; drop one of them"
        )
    if c.reopen == "shadow" and (c.feeds_some or c.cfg_scale or c.reads_canvas):
        raise ValueError(
            "reopen shadow feeds a second copy of the block beside the whole canvas; set "
            "kv_cache to none, suffix to all, cfg_scale to 0, soft_suffix to false, and "
            "stop_gap_early to none"
        )


def _check_caps(c: DecodingConfig) -> None:
    caps = c.commit_share < 1 or c.commit_ceiling is not None
    if caps and c.confidence_threshold is None:
        raise ValueError(
            "commit_share and commit_ceiling cap what confidence_threshold commits; set it too"
        )
    if c.commit_floor > 1 and c.commit_share == 1:
        raise ValueError(
            f"commit_floor {c.commit_floor} is what commit_share leaves at least, and that "
            "is 1; lower commit_share or drop commit_floor"
        )


def _needs_threshold(c: DecodingConfig, name: str, what: str) -> float:
    """confidence_threshold; raises where it is not set, and `name` changes what it commits."""
    if c.confidence_threshold is None:
        raise ValueError(f"{name} {what} confidence_threshold; set it too, or drop {name}")
    return c.confidence_threshold


def _check_klass(c: DecodingConfig) -> None:
    if c.stable_kl is not None:
        _needs_threshold(c, "stable_kl", "holds back what passes")


def _check_local_leap(c: DecodingConfig) -> None:
    if c.leap_radius is None:
        return
    threshold = _needs_threshold(c, "leap_radius", "reaches out from what passes")
    if c.steps is not None:
        raise ValueError(
            "leap_radius commits more than steps allow a pass; drop steps or leap_radius"
        )
    if c.leap_threshold > threshold:
        raise ValueError(
            f"leap_threshold {c.leap_threshold} is above confidence_threshold {threshold}, "
            "so that leap_radius does nothing; lower it"
        )


def _check_eoser(c: DecodingConfig) -> None:
    if c.eos_confidence_start == 1:
        return
    if not c.is_scheduled:
        raise ValueError(
            "eos_confidence_start rises while steps are spent; set steps, or schedule to doubling"
        )
    if c.confidence == "entropy" and c.confidence_threshold is None:
        raise ValueError(
            "eos_confidence_start lowers the probability of EOS and positions are ordered by "
            "entropy; set confidence to probability"
        )


def _check_slow_fast(c: DecodingConfig) -> None:
    if c.span_confidence is None:
        return
    _needs_threshold(c, "span_confidence", "divides a block for")
    if c.feeds_some:
        raise ValueError(
            "span_confidence hides columns that a cache or a suffix pattern would keep; set "
            "kv_cache to none and suffix to all"
        )


def _check_explore(c: DecodingConfig) -> None:
    if c.explore_above is None:
        return
    _needs_threshold(c, "explore_above", "takes over where nothing passes")
    for name in ("steps", "stable_kl", "leap_radius", "span_confidence"):
        if getattr(c, name) is not None:
            raise ValueError(
                f"explore_above and {name} both say what is committed where few positions are "
                "sure; keep one"
            )


def _check_credit(c: DecodingConfig) -> None:
    if c.credit_alpha > 0 and not c.reads_beliefs_alone:
        raise ValueError(
            "credit_alpha credits the most probable token of the belief; set temperature to 0, "
            "confidence to entropy or probability, confidence_source to belief, and drop "
            "confidence_eos_eot_inf, or credit_alpha"
        )


def _check_stop_gap(c: DecodingConfig) -> None:
    if c.stop_gap_start is None:
        return
    if c.stop_gap_early is None:
        raise ValueError("stop_gap_start has no effect without stop_gap_early; set that too")
    if c.stop_gap_start >= c.gen_length:
        raise ValueError(
            f"stop_gap_start {c.stop_gap_start} lies behind the canvas of gen_length "
            f"{c.gen_length}; lower it"
        )


def _check_mix(c: DecodingConfig) -> None:
    if c.mixes:
        if c.soft_suffix and c.reject_js is not None:
            raise ValueError(
                "reject_js compares with the pass before, and soft_suffix reads what lies "
                "behind the block once a block; drop one of them"
            )
        return
    for name in ("reject_js", "soft_suffix"):
        if getattr(c, name):
            share = "mix_share" if c.mix == "remix" else "r_f and top_p"
            raise ValueError(f"{name} needs a mix; set {share} above 0, or drop {name}")


CHECKS = (
    _check_committed_threshold,
    _check_reopening,
    _check_caps,
    _check_klass,
    _check_local_leap,
    _check_eoser,
    _check_slow_fast,
    _check_explore,
    _check_credit,
    _check_stop_gap,
    _check_mix,
)
