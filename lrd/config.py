"""Decoding settings: what a user writes, checked before anything runs.

The baseline, the paper's method, its ablations and the
commit rules of other samplers are all settings of one procedure (`lrd/decoding.py`).
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import ConfigDict, model_validator

from lrd.decoder_checks import COMMIT_RULES, check_decoders
from lrd.decoder_settings import DecoderSettings
from lrd.presets import ALL_PRESETS, DECODERS, PRESETS
from lrd.settings import AUTO_LENGTHS, MAX_REFINE_STEPS, MethodSettings

__all__ = ["ALL_PRESETS", "AUTO_LENGTHS", "COMMIT_RULES", "DECODERS", "PRESETS", "DecodingConfig"]

PromptFormat = Literal["auto", "chat", "raw"]
Truncation = Literal["fail", "keep_last"]
Compile = Literal["none", "eager", "compile", "graphs"]
"""What of a model torch.compile makes: nothing but, on CUDA, fused element-wise work (none); not
even that (eager); all but attention (compile); the same, replayed as CUDA graphs (graphs)."""

PassRows = Literal["busy", "all"]
PASS_ROWS: tuple[PassRows, ...] = ("busy", "all")
"""Rows that a pass computes where shapes are fixed: those that are busy, or all slots."""

YOUNGER = frozenset(
    {"monitor", "max_gen_length", "eos_window", "eos_enough", *DecoderSettings.model_fields}
)
"""Settings that were added after runs had been recorded without them."""

MAX_FORWARDS = 1_000_000
"""Passes that a sample may take at most; each has eight bytes of traces in every slot."""


class DecodingConfig(DecoderSettings, MethodSettings):
    """Settings of one decoding run; paper symbols in brackets.

    Without arguments: latent refinement with Appendix A's values, one token a pass and no
    early stop. `DecodingConfig.preset(name, **overrides)` starts from a preset instead.
    Raises pydantic's ValidationError (a ValueError) for unknown or impossible settings.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _read_auto(cls, given: Any) -> Any:
        """`gen_length = "auto"` as the lengths that it stands for."""
        if not isinstance(given, dict) or given.get("gen_length") != "auto":
            return given
        first, last = AUTO_LENGTHS
        block = given.get("block_length")
        step = block if isinstance(block, int) and block > 0 else 1
        found = {**given, "gen_length": -(-first // step) * step}
        if found.get("max_gen_length") is None:
            found["max_gen_length"] = max(found["gen_length"], last // step * step)
        return found

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.gen_length % self.block_tokens:
            raise ValueError(
                f"block_length {self.block_length} does not divide gen_length {self.gen_length}; "
                "make gen_length a multiple of it"
            )
        if isinstance(self.refinement, int):
            self._check_refinement(self.refinement)
        if self.max_forwards > MAX_FORWARDS:
            raise ValueError(
                f"a row could take {self.max_forwards:,} passes, more than {MAX_FORWARDS:,}; lower "
                "gen_length, steps, or the passes of refinement (max_refine_steps, refinement)"
            )
        rules = [name for name in COMMIT_RULES if getattr(self, name) is not None]
        if len(rules) > 1:
            raise ValueError(f"{' and '.join(rules)} are both set; keep one commit rule")
        if rules and self.tokens_per_step != 1:
            raise ValueError(f"tokens_per_step and {rules[0]} are both set; keep one commit rule")
        self._check_schedule(rules)
        self._check_sampling(rules)
        self._check_cache()
        self._check_growth()
        check_decoders(self)
        return self

    def _check_growth(self) -> None:
        longest = self.max_gen_length
        if longest is None:
            return
        if longest < self.gen_length:
            raise ValueError(
                f"max_gen_length {longest} is below gen_length {self.gen_length}, with which rows "
                "begin; raise it or lower gen_length"
            )
        if self.block_length is not None and longest % self.block_length:
            raise ValueError(
                f"block_length {self.block_length} does not divide max_gen_length {longest}; make "
                "it a multiple"
            )
        if self.grows and self.steps is not None:
            raise ValueError(
                "steps are shared out over one gen_length; drop steps, or give max_gen_length up"
            )
        if self.grows and self.logits_eos_inf:
            raise ValueError(
                "logits_eos_inf leaves no EOS to tell by that a canvas is long enough; drop it, or "
                "give gen_length a number"
            )
        if self.grows:
            # The longest canvas is checked as a setting of its own.
            type(self)(**{**self.model_dump(), "gen_length": longest, "max_gen_length": None})

    def _check_cache(self) -> None:
        if isinstance(self.suffix, int) and self.suffix < 0:
            raise ValueError(f"suffix {self.suffix} counts blocks; give 0 or more, or all")
        if isinstance(self.suffix, tuple) and min(self.suffix, default=0) < 0:
            raise ValueError(
                f"suffix {min(self.suffix)} is a distance behind the block; give 0 or more"
            )
        if self.cache_refresh and not self.caches:
            raise ValueError(
                "cache_refresh renews a cache and kv_cache is none; set kv_cache to dual or prefix"
            )
        if self.cfg_scale > 0 and self.feeds_some:
            raise ValueError(
                "cfg_scale > 0 runs every pass twice and works with kv_cache none and suffix all "
                "alone; drop cfg_scale or these"
            )

    def _check_refinement(self, passes: int) -> None:
        if passes < 1:
            raise ValueError(
                "refinement as a number counts passes and must be at least 1; "
                "for none set max_refine_steps to 0"
            )
        if passes > MAX_REFINE_STEPS:
            raise ValueError(
                f"refinement as a number counts passes and must be at most {MAX_REFINE_STEPS:,}"
            )

    def _check_schedule(self, rules: list[str]) -> None:
        if self.schedule == "doubling" and (rules or self.tokens_per_step != 1):
            raise ValueError(
                f"schedule doubling and {(*rules, 'tokens_per_step')[0]} are both set; keep one "
                "commit rule"
            )
        if self.steps is None:
            if self.schedule in ("timestep", "linear", "cosine"):
                raise ValueError(f"schedule {self.schedule} shares out steps; set steps too")
            return
        if self.steps % self.num_blocks:
            raise ValueError(
                f"steps {self.steps} are shared by {self.num_blocks} blocks and must be a "
                f"multiple of {self.num_blocks}"
            )
        clash = [rule for rule in rules if rule != "confidence_threshold"]
        if self.tokens_per_step != 1:
            clash.append("tokens_per_step")
        if clash:
            raise ValueError(f"steps and {clash[0]} are both set; keep one commit rule")
        if rules and self.schedule != "even":
            raise ValueError(
                "under confidence_threshold steps are shared out evenly; drop schedule"
            )

    def _check_sampling(self, rules: list[str]) -> None:
        fitting = {"confidence_threshold": ("entropy", "probability")}
        for rule in rules:
            if self.confidence not in fitting.get(rule, ("entropy",)):
                raise ValueError(
                    f"{rule} orders positions by what it compares; drop confidence = "
                    f"{self.confidence}, which goes with tokens_per_step or steps"
                )
        cut = self.sample_top_p is not None or self.sample_top_k is not None
        if cut and self.temperature == 0 and self.confidence_source == "belief":
            raise ValueError(
                "at temperature 0 sample_top_p and sample_top_k change confidences alone; "
                "set confidence_source to sampling, raise temperature, or drop them"
            )

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """A preset with some settings replaced; a commit rule given replaces the preset's."""
        if name not in ALL_PRESETS:
            raise ValueError(f"no preset {name!r}; there are {', '.join(ALL_PRESETS)}")
        settings = dict(ALL_PRESETS[name])
        rules = {"tokens_per_step", "steps", "threshold_from_committed", *COMMIT_RULES}
        if rules & overrides.keys():
            for rule in (*rules, "min_commits"):
                settings.pop(rule, None)
        return cls(**{**settings, **overrides})

    @property
    def unrecorded(self) -> set[str]:
        """Settings that fingerprints and digests leave out: those of `YOUNGER` at their default,
        so that a run which was recorded without them is the same run and goes on."""
        fields = type(self).model_fields
        return {name for name in YOUNGER if getattr(self, name) == fields[name].default}

    @property
    def block_tokens(self) -> int:
        """Block length in tokens, the whole canvas where none is set."""
        return self.block_length or self.gen_length

    @property
    def grows(self) -> bool:
        """Whether a row of this canvas may need a longer one."""
        return self.max_gen_length is not None and self.gen_length < self.max_gen_length

    @property
    def looks(self) -> bool:
        """Whether a row's first pass reads the last block, only to see whether it needs a longer
        canvas. Where the canvas is one block it reads that anyway."""
        return self.grows and self.num_blocks > 1

    @property
    def canvases(self) -> tuple[int, ...]:
        """The canvas lengths that a row may be decoded in, in their order."""
        lengths = [self.gen_length]
        while self.max_gen_length is not None and lengths[-1] < self.max_gen_length:
            lengths.append(min(2 * lengths[-1], self.max_gen_length))
        return tuple(lengths)

    def at(self, gen_length: int) -> Self:
        """These settings for canvases of another length, a multiple of block_length."""
        return self.model_copy(update={"gen_length": gen_length})

    @property
    def reads_canvas(self) -> bool:
        """Whether passes read the whole canvas and not its current block alone."""
        return (
            self.stop_gap_early is not None
            or self.explore_above is not None
            or self.soft_suffix
            or (self.reopen in ("drop", "lowest") and self.reopen_scope == "reached")
        )

    @property
    def ranks_tokens(self) -> bool:
        """Whether the most probable tokens of a belief are asked for in order."""
        return self.mix != "lrd" or self.stop_gap_early is not None

    @property
    def reads_more(self) -> bool:
        """Whether passes may read positions beside the block's open ones."""
        return self.reads_canvas or self.reopen != "none"

    @property
    def window_tokens(self) -> int:
        """Canvas positions that a pass may read: the block's, or all."""
        return self.gen_length if self.reads_canvas else self.block_tokens

    @property
    def num_blocks(self) -> int:
        return self.gen_length // self.block_tokens

    @property
    def is_scheduled(self) -> bool:
        """Whether a schedule says how many positions a pass commits."""
        return self.steps is not None or self.schedule == "doubling"

    @property
    def refines(self) -> bool:
        return isinstance(self.refinement, int) or self.max_refine_steps > 0

    @property
    def mixes(self) -> bool:
        if self.mix == "remix":
            return self.mix_share > 0
        return self.r_f > 0 and (self.mix == "topk" or self.top_p > 0)

    @property
    def caches(self) -> bool:
        """Whether keys and values are kept from pass to pass."""
        return self.kv_cache != "none"

    @property
    def feeds_some(self) -> bool:
        """Whether passes may leave columns out: under a cache or a suffix pattern."""
        return self.caches or self.suffix != "all"

    @property
    def orders_by_belief(self) -> bool:
        """Whether confidences are the belief's entropy, or its probability of the token."""
        return (
            self.confidence_source == "belief"
            and self.confidence != "margin"
            and not self.confidence_eos_eot_inf
        )

    @property
    def reads_beliefs_alone(self) -> bool:
        """Whether tokens and confidences are the belief's argmax, its probability and entropy."""
        return self.temperature == 0 and self.orders_by_belief

    @property
    def max_forwards(self) -> int:
        """No sample can take more passes than this. Where positions open again, each decode pass
        still leaves one open position fewer (`lrd/decoders/` has the proofs), or `steps` end it."""
        # A schedule of more steps than tokens has passes that commit nothing.
        decode_steps = max(self.gen_length, self.steps or 0)
        phases = {"initial": self.num_blocks, "first": 1}.get(str(self.refinement), decode_steps)
        longest = self.refinement if isinstance(self.refinement, int) else self.max_refine_steps
        return decode_steps + phases * longest
