"""Block caches and suffix patterns: the golden records, the plain cached decoder, independence."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import random
from typing import Any, Literal

import pytest
import torch
from helpers.cached_reference import Passes, decode_cached
from helpers.engine import PROMPTS, Observed, assert_same, drain, requests
from helpers.few import spread
from helpers.golden import (
    SHARED_CACHE,
    SMALL_CACHE,
    Record,
    blocks_of_one_pass,
    cached_records,
    note,
    records,
    sure_passes,
)
from helpers.random_model import LIVELY, random_model
from helpers.reference import Outcome
from torch import Tensor

import lrd
from lrd.engine import row_seed
from lrd.models.checkpoint import LoadedModel
from lrd.slots import PaddingSide

TRACE_LIMIT = 1e-3


# The golden records: latent refinement over the original modelling code with its own cache


def tokens(record: Record, part: str) -> list[int]:
    return [int(x) for x in record.tensor(part).flatten().tolist()]


def settings(record: Record) -> lrd.DecodingConfig:
    return lrd.DecodingConfig(**record.entry["settings"])


def assert_is_the_record(found: Any, record: Record) -> None:
    """found: an engine's sample, or the plain decoder's outcome."""
    assert found.canvas == tokens(record, "output")
    assert found.commit_step == tokens(record, "commit_step")
    for count in ("refine_steps", "decode_steps"):
        assert getattr(found, count) == record.entry[count], count
    assert found.stop_reason == record.entry["stops"][-1]
    if record.entry["settings"]["refinement"] == "initial":
        assert found.refine_converged == all(record.entry["refine_converged"])


def trace_errors(found: Any, record: Record) -> Tensor:
    """The larger error of D_t and of the mean entropy, of every pass."""
    kl = torch.tensor(found.kl_trace).nan_to_num(nan=-1)
    entropy = torch.tensor(found.entropy_trace)
    return torch.maximum(
        (kl - record.tensor("kl_mean_block").flatten()).abs(),
        (entropy - record.tensor("entropy_mean_open").flatten()).abs(),
    )


def test_all_cached_records_are_here() -> None:
    if not SHARED_CACHE.is_dir():
        pytest.skip(f"{SHARED_CACHE} is not there: only the records in tests/data are compared")
    assert len(cached_records()) == 69
    shared = {(r.folder.name, r.name): r for r in cached_records()}
    small = cached_records(SMALL_CACHE)
    assert len(small) == sum(len(json.loads(f.read_text())) for f in SMALL_CACHE.glob("*/*.json"))
    for copy in small:
        original = shared[copy.folder.name, copy.name]
        assert copy.entry == original.entry
        for part in PARTS:
            assert torch.equal(copy.tensor(part), original.tensor(part)), part


PARTS = (
    *("prompt", "output", "commit_step", "fed", "kl_mean_block", "entropy_mean_open"),
    *("phase", "none_output", "none_commit_step"),
)


@pytest.mark.parametrize("record", spread(cached_records()))
def test_record(record: Record, request: pytest.FixtureRequest) -> None:
    model, config = record.model, settings(record)
    (sample,) = lrd.decode(model, [tokens(record, "prompt")], config)
    assert_is_the_record(sample, record)
    assert sample.full_passes == record.entry["full_passes"]
    assert sample.positions_computed == record.entry["fed_positions"]

    # A cache that is not in effect would be noticed.
    differs = record.entry["differs_without_cache"]
    assert (sample.canvas != tokens(record, "none_output")) == ("output" in differs)
    assert (sample.commit_step != tokens(record, "none_commit_step")) == ("commit_step" in differs)
    without = record.entry["num_forwards_without_cache"]
    assert (sample.num_forwards != without) == ("num_forwards" in differs)

    if "fast_dllm" in record.entry:
        theirs, filled = record.entry["fast_dllm"], blocks_of_one_pass(sample, config)
        assert theirs["same_tokens"]
        assert theirs["blocks_filled_by_the_full_pass"] == filled
        assert theirs["nfe"] == sample.num_forwards + filled

    errors = trace_errors(sample, record)
    apart = (errors >= TRACE_LIMIT).nonzero().flatten().tolist()
    held = apart[0] if apart else sample.num_forwards
    note(
        request,
        record,
        **{
            "trace error": float(errors[:held].max()),
            "trace passes": held,
            "all passes": sample.num_forwards,
        },
    )
    if apart:  # Only after a pass whose nuclei rounding decides, and by little.
        _, passes = decode_cached(model, tokens(record, "prompt"), config)
        assert held >= sure_passes(passes.logits, sample, config, model.mask_id)
        assert float(errors.max()) < 20 * TRACE_LIMIT


def test_cached_records_have_every_kind() -> None:
    """Otherwise equal records would prove less than they seem to."""
    kinds = {(settings(r).kv_cache, settings(r).cache_refresh) for r in cached_records()}
    assert kinds == set(itertools.product(("prefix", "dual"), (0, 1, 3)))
    differ = [r for r in cached_records() if "output" in r.entry["differs_without_cache"]]
    assert len(differ) > len(cached_records()) // 2


SIDES: dict[str, tuple[PaddingSide, bool]] = {
    "left": ("left", False),
    "right, fixed": ("right", True),
}


def records_and_sides() -> list[Any]:
    """Sides take turns with every other record, those that the quick suite does not compare alone;
    the rest is slow."""
    found = []
    for number, record in enumerate(cached_records()):
        for turn, (name, side) in enumerate(SIDES.items()):
            marks = [] if number % 4 == 2 * turn + 1 else [pytest.mark.slow]
            found.append(pytest.param(record, *side, id=f"{record}-{name}", marks=marks))
    return found


@pytest.mark.parametrize(("record", "side", "fixed_shapes"), records_and_sides())
def test_record_among_others(record: Record, side: PaddingSide, fixed_shapes: bool) -> None:
    """The same sample beside a longer prompt, with padding on either side."""
    prompt = tokens(record, "prompt")
    longer = [*prompt[::-1], *prompt[:7]]
    engine = lrd.Engine(
        record.model, settings(record), 2, len(longer), side, fixed_shapes=fixed_shapes
    )
    for asked in requests([longer, prompt]):
        engine.submit(asked)
    ended: dict[Any, lrd.Sample] = {}
    while 1 not in ended:
        ended |= {sample.key: sample for sample in engine.step()}
    assert_is_the_record(ended[1], record)
    assert ended[1].full_passes == record.entry["full_passes"]
    assert ended[1].positions_computed == record.entry["fed_positions"]


@pytest.mark.parametrize(
    "record", [r for r in cached_records() if settings(r).cache_refresh == 1], ids=str
)
def test_a_refresh_at_every_pass_is_no_cache(record: Record) -> None:
    config, prompts = settings(record), [tokens(record, "prompt")]
    without = config.model_copy(update={"kv_cache": "none", "cache_refresh": 0})
    renewed, plain = (lrd.decode(record.model, prompts, c) for c in (config, without))
    assert_same({0: renewed[0]}, {0: plain[0]})
    assert renewed[0].full_passes == renewed[0].num_forwards


# The plain cached decoder itself


def records_for_the_plain_decoder() -> list[Any]:
    """Those that come with the tests; the rest is slow."""
    here = {(r.folder.name, r.name) for r in cached_records(SMALL_CACHE)}
    return [
        pytest.param(
            record,
            id=str(record),
            marks=[] if (record.folder.name, record.name) in here else [pytest.mark.slow],
        )
        for record in cached_records()
    ]


@pytest.mark.parametrize("record", records_for_the_plain_decoder())
def test_plain_decoder_repeats_the_record(record: Record) -> None:
    outcome, passes = decode_cached(record.model, tokens(record, "prompt"), settings(record))
    assert_is_the_record(outcome, record)
    assert outcome.stops == record.entry["stops"]
    assert [[one.a, one.b] for one in passes.log] == record.tensor("fed").tolist()
    assert passes.full_passes == record.entry["full_passes"]
    assert passes.positions_computed == record.entry["fed_positions"]
    assert float(trace_errors(outcome, record).max()) < 20 * TRACE_LIMIT


@pytest.mark.parametrize("kv_cache", ["prefix", "dual"])
@pytest.mark.parametrize("record", [r for r in records("logits") if r.name == "cache"], ids=str)
def test_plain_pass_is_fast_dllms(record: Record, kv_cache: Literal["prefix", "dual"]) -> None:
    """One partial pass against Fast-dLLM's own, on other ids than those that were kept."""
    model, start, end = record.model, record.entry["start"], record.entry["end"]
    before, after = (record.tensor(f"input_ids_{which}") for which in ("before", "after"))
    T = before.shape[1]
    config = lrd.DecodingConfig(gen_length=T - start, kv_cache=kv_cache)
    passes = Passes(model, config, start)
    seen_T, column_T = torch.ones(T, dtype=torch.bool), torch.arange(T)
    passes.forward(model.embed(before)[0], seen_T, seen_T)
    end = T if kv_cache == "prefix" else end
    # Fast-dLLM feeds [start, end), with Dream too, whose logits here are not aligned.
    ours = passes.forward(model.embed(after)[0], seen_T, (column_T >= start) & (column_T < end))
    theirs, shift = record.tensor(f"{kv_cache}_logits")[0], passes.feeds_before
    assert (ours[start + shift : end] - theirs[: len(theirs) - shift]).abs().max() < 2e-4


# The engine against the plain decoder

MODELS: dict[str, dict[str, Any]] = {
    "LLaDA": {"seed": 5, "sharpness": 2.0, "eos_bias": 2.0},
    "Dream": {"seed": 3, "sharpness": 2.0, "logit_shift": True},
}
CACHES = {
    "none": {},
    "prefix": {"kv_cache": "prefix"},
    "prefix, refresh 3": {"kv_cache": "prefix", "cache_refresh": 3},
    "dual": {"kv_cache": "dual"},
    "dual, refresh 2": {"kv_cache": "dual", "cache_refresh": 2},
    "dual, refresh 1": {"kv_cache": "dual", "cache_refresh": 1},
}
SUFFIXES = ("all", 0, 1, 2)
BLOCKS = (3, 4, 6, None)
LRD = {"gen_length": 12, "r_f": 0.3, "tau_refine": 0.05, "max_refine_steps": 4}
PROCEDURES: dict[str, dict[str, Any]] = {
    "threshold": {**LRD, "entropy_threshold": 1.0},
    "one a pass": {**LRD, "stop_at_eos": False},
    "auto, stop": {
        **LRD, "refinement": "auto", "tau_refine": 0.5, "early_stop": True, "tau_decode": 0.3,
    },
    "first, gate, patience": {
        **LRD, "refinement": "first", "early_stop": True, "tau_decode": 0.3, "patience": 2,
        "stop_max_entropy": 2.0, "stop_at_eos": False,
    },
    "LF x 2, confidence": {**LRD, "refinement": 2, "confidence_threshold": 0.5},
    "baseline": {"gen_length": 12, "r_f": 0.0, "max_refine_steps": 0, "tokens_per_step": 2},
    "warm, change": {
        **LRD, "temperature": 0.7, "seed": 11, "entropy_threshold": 0.8, "monitor": "change",
        "early_stop": True, "tau_decode": 0.3,
    },
}  # fmt: skip
OTHERS = [[3, 1, 4, 1, 5, 9], [2], [7, 7, 7, 20, 30, 40, 44, 0, 11], [8, 45, 2, 8]]
"""Of different lengths; one holds a [MASK]."""


@dataclasses.dataclass(frozen=True)
class Combination:
    model: str
    cache: str
    suffix: str | int
    block: int | None
    procedure: str

    @property
    def config(self) -> lrd.DecodingConfig:
        return lrd.DecodingConfig(
            **PROCEDURES[self.procedure],
            **CACHES[self.cache],
            suffix=self.suffix,
            block_length=self.block,
        )

    def __str__(self) -> str:
        block = f"blocks of {self.block}" if self.block else "one block"
        return "-".join(
            (self.model, self.cache, f"suffix {self.suffix}", block, self.procedure)
        ).replace(", ", "+")


def combinations() -> list[Combination]:
    """Every model, cache and suffix, each with one block length and procedure, in turns that hold
    every pair of settings."""
    axes = (enumerate(axis) for axis in (MODELS, CACHES, SUFFIXES))
    return [
        Combination(
            model, cache, suffix, BLOCKS[(m + 2 * c + s) % 4], [*PROCEDURES][(4 * m + c + s) % 7]
        )
        for (m, model), (c, cache), (s, suffix) in itertools.product(*axes)
    ]


def more_combinations(draws: int = 8) -> list[Combination]:
    """Every model, cache and suffix, each with some draws of block length and procedure."""
    draw = random.Random(45)
    return [
        Combination(model, cache, suffix, draw.choice(BLOCKS), draw.choice([*PROCEDURES]))
        for model, cache, suffix in itertools.product(MODELS, CACHES, SUFFIXES)
        for _ in range(draws)
    ]


def combinations_and_more() -> list[Any]:
    few = dict.fromkeys(combinations())
    more = dict.fromkeys(c for c in more_combinations() if c not in few)
    slow = [pytest.param(c, id=str(c), marks=pytest.mark.slow) for c in more]
    return [*(pytest.param(c, id=str(c)) for c in few), *slow]


def test_every_pair_of_settings_is_compared() -> None:
    for one, other in itertools.combinations(dataclasses.fields(Combination), 2):
        seen = {(getattr(c, one.name), getattr(c, other.name)) for c in combinations()}
        assert len(seen) == len({a for a, _ in seen}) * len({b for _, b in seen}), (one, other)


@functools.cache
def model_named(name: str) -> LoadedModel:
    return random_model(**MODELS[name])


@functools.cache
def outcomes(combination: Combination) -> list[tuple[Outcome, Passes]]:
    config = combination.config
    return [
        decode_cached(model_named(combination.model), prompt, config, row_seed(config.seed, index))
        for index, prompt in enumerate(OTHERS)
    ]


@pytest.mark.parametrize("combination", combinations_and_more())
def test_matches_the_plain_decoder(combination: Combination) -> None:
    """Prompts of many lengths in two slots, so that rows enter while others are in mid-block."""
    samples = lrd.decode(model_named(combination.model), OTHERS, combination.config, batch_size=2)
    for sample, (outcome, passes) in zip(samples, outcomes(combination), strict=True):
        assert sample.error is None
        for name in (
            *("canvas", "commit_step", "refine_steps", "decode_steps", "blocks", "stop_reason"),
            *("open_at_stop", "refine_converged"),
        ):
            assert getattr(sample, name) == getattr(outcome, name), name
        for name in ("kl_trace", "entropy_trace", "max_entropy_at_stop", "mean_mix_weight"):
            approximately = pytest.approx(getattr(outcome, name), abs=2e-4, nan_ok=True)
            assert getattr(sample, name) == approximately, name
        assert sample.full_passes == passes.full_passes
        assert sample.positions_computed == passes.positions_computed


def test_the_combinations_reach_every_branch() -> None:
    """Otherwise the comparison above would prove less than it seems to."""
    seen = [found for combination in combinations() for found in outcomes(combination)]
    assert {o.stop_reason for o, _ in seen} == {"complete", "converged", "eos"}
    assert set().union(*(o.branches for o, _ in seen)) >= {
        *("refined until converged", "refined to the limit", "patience waits", "gate holds back"),
        *("stopped early", "several committed", "sampled", "EOS fills the rest"),
    }
    # A block without a partial pass, blocks with several, and a refresh in mid-block.
    assert any(not before.full and not after.full for _, p in seen for before, after in pairs(p))
    assert any(before.full and after.full for _, p in seen for before, after in pairs(p))
    assert any(p.full_passes > o.blocks and o.blocks > 1 for o, p in seen)


def pairs(passes: Passes) -> Any:
    return itertools.pairwise(passes.log)


@pytest.mark.parametrize("model_name", MODELS)
def test_caches_and_suffixes_change_what_is_written(model_name: str) -> None:
    """So that equal samples above mean that each was in effect."""

    def written(cache: str, suffix: str | int) -> list[Any]:
        combination = Combination(model_name, cache, suffix, 3, "one a pass")
        return [(o.canvas, o.commit_step) for o, _ in outcomes(combination)]

    assert written("dual, refresh 1", "all") == written("none", "all")
    caches = [cache for cache in CACHES if cache != "dual, refresh 1"]
    for cache, suffix in itertools.product(caches, ("all", 0)):
        others = [written(other, suffix) for other in caches if other != cache]
        assert written(cache, suffix) not in others, (cache, suffix)
    for cache in ("none", "dual"):
        assert written(cache, "all") != written(cache, 0) != written(cache, 1), cache


# Independence of everything else that is decoded

INDEPENDENT = {
    "dual": {**CACHES["dual"], "block_length": 4},
    "dual, refresh 2": {**CACHES["dual, refresh 2"], "block_length": 4, "early_stop": True},
    "prefix, suffix 0": {**CACHES["prefix"], "block_length": 3, "suffix": 0},
    "prefix, one block": CACHES["prefix"],
    "suffix 1": {"block_length": 3, "suffix": 1},
    "dual, warm": {**CACHES["dual"], "block_length": 4, "temperature": 0.8},
    "dual, first": {**CACHES["dual"], "block_length": 4, "refinement": "first", "suffix": 1},
    "dual, auto": {**CACHES["dual"], "block_length": 6, "refinement": "auto", "suffix": 0},
}


def independent_config(setting: str) -> lrd.DecodingConfig:
    common = {**LRD, "max_refine_steps": 3, "entropy_threshold": 0.9}
    return lrd.DecodingConfig(**{**common, **INDEPENDENT[setting]})


@functools.cache
def alone(setting: str, model_name: str) -> dict[Any, lrd.Sample]:
    """Every prompt on its own, without padding."""
    samples = {}
    for request in requests():
        engine = lrd.Engine(
            LIVELY_MODELS[model_name](), independent_config(setting), 1, len(request.prompt)
        )
        samples.update(drain(engine, [request]))
    return samples


LIVELY_MODELS = {
    "LLaDA": functools.cache(lambda: random_model(**{**LIVELY, "logit_shift": False})),
    "Dream": functools.cache(lambda: random_model(**LIVELY)),
}


@pytest.mark.parametrize(
    ("setting", "model_name", "fixed_shapes"), spread(INDEPENDENT, LIVELY_MODELS, [False, True])
)
def test_a_sample_depends_on_its_prompt_alone(
    setting: str, model_name: str, fixed_shapes: bool
) -> None:
    """Not on order, number of slots, neighbours, nor the side and width of the padding."""
    asked = requests()
    for num_slots, side, order, prompt_length in (
        (2, "right", asked[::-1], 9),
        (4, "left", asked[2:] + asked[:1], 14),
    ):
        engine = lrd.Engine(
            LIVELY_MODELS[model_name](),
            independent_config(setting),
            num_slots,
            prompt_length,
            side,
            fixed_shapes=fixed_shapes,
        )
        expected = alone(setting, model_name)
        assert_same(drain(engine, order), {r.key: expected[r.key] for r in order})


@pytest.mark.parametrize("fixed_shapes", [False, True], ids=["just the rows", "fixed shapes"])
@pytest.mark.parametrize("setting", INDEPENDENT)
def test_a_row_that_enters_later_changes_nothing(setting: str, fixed_shapes: bool) -> None:
    """Rows come in mid-block of others, one every second pass, and find a slot that was used."""
    engine = lrd.Engine(
        LIVELY_MODELS["Dream"](), independent_config(setting), 3, 9, fixed_shapes=fixed_shapes
    )
    waiting, samples = requests(), []
    for number in itertools.count():
        if number % 2 == 0 and waiting:
            engine.submit(waiting.pop(0))
        samples += engine.step()
        if not (engine.busy or waiting):
            break
    assert_same({s.key: s for s in samples}, alone(setting, "Dream"))


def test_the_lively_samples_end_at_different_times() -> None:
    for setting, model_name in itertools.product(INDEPENDENT, LIVELY_MODELS):
        counts = {s.num_forwards for s in alone(setting, model_name).values()}
        assert len(counts) > 2, (setting, model_name)


class Cramped(LoadedModel):
    """Has memory for a pass of three rows."""

    def hidden_kept(self, embeds: Tensor, *rest: Any) -> Tensor:
        if len(embeds) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().hidden_kept(embeds, *rest)


@pytest.mark.parametrize("fixed_shapes", [False, True], ids=["just the rows", "fixed shapes"])
def test_out_of_memory_costs_slots_but_no_sample(fixed_shapes: bool) -> None:
    tight = random_model(**LIVELY)
    tight.__class__ = Cramped
    engine = lrd.Engine(tight, independent_config("dual"), 16, 9, fixed_shapes=fixed_shapes)
    assert_same(drain(engine, requests()), alone("dual", "Dream"))
    assert engine.oom_events
    assert engine.num_slots <= 4


# What is refused


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cfg_scale": 0.5, "kv_cache": "dual"}, "drop cfg_scale"),
        ({"cfg_scale": 0.5, "kv_cache": "prefix"}, "drop cfg_scale"),
        ({"cfg_scale": 0.5, "suffix": 0}, "drop cfg_scale"),
        ({"cache_refresh": 4}, "set kv_cache to dual or prefix"),
        ({"cache_refresh": -1, "kv_cache": "dual"}, "cache_refresh"),
        ({"suffix": -1}, "suffix -1 .*give 0 or more, or all"),
        ({"suffix": "some"}, "suffix"),
        ({"kv_cache": "triple"}, "kv_cache"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        lrd.DecodingConfig(**settings)


@pytest.mark.parametrize(
    "needs_a_cache",
    [{"kv_cache": "dual"}, {"kv_cache": "prefix", "suffix": 1}, {"suffix": 0}],
    ids=str,
)
def test_a_model_without_a_cache(needs_a_cache: dict[str, Any]) -> None:
    """Refused in one line that names its class and the fix, before any pass; usable without."""
    plug: Any = Observed(random_model(**LIVELY))
    config = {"gen_length": 12, "block_length": 4, "max_refine_steps": 2}
    with pytest.raises(ValueError) as refused:
        lrd.decode(plug, PROMPTS, lrd.DecodingConfig(**config, **needs_a_cache))
    message = str(refused.value)
    assert "\n" not in message
    assert "Observed" in message
    for setting, fix in (("kv_cache", "none"), ("suffix", "all")):
        if setting in needs_a_cache:
            assert setting in message
            assert fix in message
    assert plug.passes == []
    samples = lrd.decode(plug, PROMPTS, lrd.DecodingConfig(**config))
    assert all(sample.error is None for sample in samples)
    assert {s.full_passes - s.num_forwards for s in samples} == {0}
    for prompt, sample in zip(PROMPTS, samples, strict=True):
        assert sample.positions_computed == sample.num_forwards * (len(prompt) + 12)
