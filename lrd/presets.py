"""Named settings: the method's own presets, and the published decoders by their names."""

from __future__ import annotations

from typing import Any

# Latent refinement, every sure position committed at once, a stop only where all are sure.
_FAST: dict[str, Any] = {
    "r_f": 0.15,
    "top_p": 0.9,
    "tau_refine": 0.1,
    "tau_decode": 0.1,
    "max_refine_steps": 20,
    "early_stop": True,
    "stop_max_entropy": 0.2,
    "entropy_threshold": 0.2,
}

PRESETS: dict[str, dict[str, Any]] = {
    # Eq. 2: one token a pass, the rest back to [MASK].
    "baseline": {"r_f": 0.0, "max_refine_steps": 0, "early_stop": False},
    # Appendix A to the letter, early stop by Eq. 6 alone.
    "paper": {
        "r_f": 0.15,
        "top_p": 0.9,
        "tau_refine": 0.1,
        "tau_decode": 0.1,
        "max_refine_steps": 20,
        "early_stop": True,
        "tokens_per_step": 1,
        "stop_at_eos": False,
    },
    "fast": _FAST,
    # The same block by block; a block's later passes compute the block alone, which makes
    # refinement cheap.
    "blocks": {**_FAST, "block_length": 32, "kv_cache": "dual", "suffix": 1},
}

DECODERS: dict[str, dict[str, Any]] = {}
"""Published decoders as their authors run them, on blocks and canvases of any length."""

ALL_PRESETS = {**PRESETS, **DECODERS}
