"""Decoding settings: what a user writes, checked before anything runs.

The baseline, the paper's method, its ablations and the
commit rules of other samplers are all settings of one procedure (`lrd/decoding.py`).
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

PromptFormat = Literal["auto", "chat", "raw"]
Truncation = Literal["fail", "keep_last"]
Compile = Literal["none", "eager", "compile", "graphs"]
"""What of a model torch.compile makes: nothing but, on CUDA, fused element-wise work (none); not
even that (eager); all but attention (compile); the same, replayed as CUDA graphs (graphs)."""

PassRows = Literal["busy", "all"]
PASS_ROWS: tuple[PassRows, ...] = ("busy", "all")
"""Rows that a pass computes where shapes are fixed: those that are busy, or all slots."""

COMMIT_RULES = ("entropy_threshold", "entropy_bound", "confidence_threshold")
"""Rules that replace `tokens_per_step`; at most one may be set. `steps` replaces it too."""

YOUNGER = frozenset({"monitor", "max_gen_length", "eos_window", "eos_enough"})
"""Settings that were added after runs had been recorded without them."""

AUTO_LENGTHS = (64, 512)
"""gen_length and max_gen_length of `gen_length = "auto"`."""
MAX_REFINE_STEPS = 10_000
MAX_FORWARDS = 1_000_000
"""Passes that a sample may take at most; each has eight bytes of traces in every slot."""

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


class DecodingConfig(BaseModel):
    """Settings of one decoding run; paper symbols in brackets.

    Without arguments: latent refinement with Appendix A's values, one token a pass and no
    early stop. `DecodingConfig.preset(name, **overrides)` starts from a preset instead.
    Raises pydantic's ValidationError (a ValueError) for unknown or impossible settings.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

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
    schedule: Literal["even", "timestep"] = Field(
        "even",
        description="how steps share out a block. even: equally, the remainder to the first "
        "(LLaDA); timestep: 1 - s/t of what is open, all in the last (Dream)",
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
    suffix: Literal["all"] | int = Field(
        "all",
        description="what is computed behind the block: all; w: the next w blocks, and of each "
        "later block its last position",
    )
    temperature: float = Field(0.0, ge=0, description="0: argmax; else Gumbel sampling")
    sample_top_p: float | None = Field(
        None, gt=0, le=1, description="draw from the most probable tokens of this mass alone"
    )
    sample_top_k: int | None = Field(
        None, ge=1, description="draw from this many most probable tokens alone"
    )
    seed: int = Field(0, description="each row draws from hash(seed, row id)")

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
        if self.steps is None:
            if self.schedule != "even":
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
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
        settings = dict(PRESETS[name])
        if {"tokens_per_step", "steps", *COMMIT_RULES} & overrides.keys():
            for rule in ("tokens_per_step", "steps", *COMMIT_RULES):
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
    def num_blocks(self) -> int:
        return self.gen_length // self.block_tokens

    @property
    def refines(self) -> bool:
        return isinstance(self.refinement, int) or self.max_refine_steps > 0

    @property
    def mixes(self) -> bool:
        return self.r_f > 0 and self.top_p > 0

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
        """No sample can take more passes than this."""
        # A schedule of more steps than tokens has passes that commit nothing.
        decode_steps = max(self.gen_length, self.steps or 0)
        phases = {"initial": self.num_blocks, "first": 1}.get(str(self.refinement), decode_steps)
        longest = self.refinement if isinstance(self.refinement, int) else self.max_refine_steps
        return decode_steps + phases * longest
