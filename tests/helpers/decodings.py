"""Which settings may differ between decodings that one table compares."""

from __future__ import annotations

from lrd.config import COMMIT_RULES

OF_THE_METHOD = {
    *("r_f", "top_p", "tau_refine", "tau_decode", "max_refine_steps", "refinement"),
    *("early_stop", "reduction", "stop_max_entropy"),
}
"""What makes a decoding the baseline, LRD, a preset or an ablation."""
OF_THE_COMMIT_RULE = {"tokens_per_step", "steps", "schedule", "schedule_eps", *COMMIT_RULES}
"""How many positions a pass commits."""
