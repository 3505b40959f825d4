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

# What published decoders lack: soft embeddings and latent refinement.
_PLAIN: dict[str, Any] = {"r_f": 0.0, "max_refine_steps": 0}

DECODERS: dict[str, dict[str, Any]] = {
    "klass": {**_PLAIN, "confidence_threshold": 0.9, "stable_kl": 0.01, "stable_passes": 2},
    "localleap": {
        **_PLAIN,
        "confidence_threshold": 0.9,
        "leap_radius": 4,
        "leap_threshold": 0.75,
    },
    "slowfast": {**_PLAIN, "confidence_threshold": 0.9, "span_confidence": 0.3},
    "eoser": {
        **_PLAIN,
        "confidence": "probability",
        "steps": 64,
        "eos_confidence_start": 0.4,
    },
    # With EOSER, as the authors run it.
    "ass": {
        **_PLAIN,
        "confidence": "probability",
        "schedule": "doubling",
        "eos_confidence_start": 0.01,
    },
    # The threshold of exploration is a choice made here.
    "ete": {
        **_PLAIN,
        "block_length": 32,
        "confidence_threshold": 0.9,
        "explore_above": 1.0,
    },
    # inclusionAI/dInfer; there in blocks of 64.
    "credit": {
        **_PLAIN,
        "confidence_threshold": 0.9,
        "credit_alpha": 0.7,
        "credit_gamma": 0.2,
        "credit_decay": 0.8,
        "stop_at_eos": False,
        "eos_ends_block": True,
    },
    # pixeli99/Prophet; there in blocks of 32, and of the answer's positions alone.
    "prophet": {
        **_PLAIN,
        "confidence": "probability",
        "stop_gap_early": 7.5,
        "stop_gap_middle": 5.0,
        "stop_gap_late": 2.5,
    },
    # Serpientw/ReMix-DLLM; there in blocks of 128.
    "remix": {
        **_PLAIN,
        "mix": "remix",
        "mix_share": 0.5,
        "reject_js": 0.3,
        "confidence_threshold": 0.8,
        "commit_share": 0.7,
        "commit_floor": 5,
        "commit_ceiling": 20,
    },
    # Crys-Chen/DPad, with a fixed list for its random one; there windows of 256 positions.
    "dpad": {
        **_PLAIN,
        "block_length": 32,
        "suffix": (*range(8), 15, 23, 31, 47, 63, 95, 127, 191, 255),
        "confidence_threshold": 0.9,
        "stop_at_eos": False,
        "eos_ends_block": True,
    },
    "wino": {
        **_PLAIN,
        "confidence_threshold": 0.6,
        "commit_share": 0.7,
        "commit_floor": 5,
        "commit_ceiling": 20,
        "reopen": "shadow",
        "reopen_threshold": 0.9,
    },
    "saber": {
        **_PLAIN,
        "threshold_from_committed": True,
        "min_commits": 2,
        "reopen": "drop",
    },
    "rcr": {
        **_PLAIN,
        "steps": 64,
        "schedule": "linear",
        "confidence": "probability",
        "reopen": "lowest",
    },
}
"""Published decoders as their authors run them, on blocks and canvases of any length."""

ALL_PRESETS = {**PRESETS, **DECODERS}
