"""Canvases with fixed tokens, of a length of their own, of allowed tokens alone, and growing ones:
against the plain decoders, and beside other rows."""

from __future__ import annotations

import itertools
import random
from typing import Any, Literal

import pytest
import torch
from helpers.cached_reference import decode_cached
from helpers.engine import assert_same, drain
from helpers.few import few
from helpers.golden import Record, note, records, sampler_settings
from helpers.random_model import EOS, LIVELY, MASK, PAD, VOCABULARY, random_model
from helpers.reference import Outcome, decode_one

import lrd
from lrd.choices import NOT_YET
from lrd.commit_rules import is_any_of
from lrd.engine import row_seed
from lrd.models.checkpoint import LoadedModel
from lrd.models.protocol import eos_ids
from lrd.templates import Hole, Scaffold

MODELS: dict[str, dict[str, Any]] = {
    "plain": {"seed": 1},
    "sure": {"seed": 2, "sharpness": 3.0, "coupling": 0.5},
    "Dream": {"seed": 3, "sharpness": 2.0, "logit_shift": True},
    "brief": {"seed": 5, "sharpness": 2.0, "eos_bias": 2.0},
    "brief Dream": LIVELY,
}
G = 16
LRD: dict[str, Any] = {
    "gen_length": G, "r_f": 0.3, "tau_refine": 0.05, "max_refine_steps": 3,
    "entropy_threshold": 1.0,
}  # fmt: skip
BLOCKS = {**LRD, "block_length": 4}
STOP = {"early_stop": True, "tau_decode": 0.3}
SETTINGS: dict[str, dict[str, Any]] = {
    "whole": LRD,
    "whole, stop": {**LRD, **STOP, "patience": 2},
    "one a pass": {"gen_length": G, "r_f": 0.2, "max_refine_steps": 2},
    "baseline": {"gen_length": G, "r_f": 0.0, "max_refine_steps": 0},
    "auto": {**LRD, "refinement": "auto"},
    "warm": {**LRD, "temperature": 0.8, "seed": 4},
    "change": {**LRD, **STOP, "monitor": "change"},
    "blocks": BLOCKS,
    "blocks, stop": {**BLOCKS, **STOP, "scope": "open"},
    "blocks, first": {**BLOCKS, "refinement": "first"},
    "blocks, no EOS": {**BLOCKS, "stop_at_eos": False},
    "blocks, bound": {**BLOCKS, "entropy_threshold": None, "entropy_bound": 1.5},
    "blocks, warm": {**BLOCKS, "temperature": 0.8, "seed": 5},
    "all at once": {**LRD, "entropy_threshold": 99.0},
    "stopped at once": {**LRD, "early_stop": True, "tau_decode": 99.0, "entropy_threshold": None},
}
CACHES: dict[str, dict[str, Any]] = {
    "dual": {"kv_cache": "dual"},
    "prefix": {"kv_cache": "prefix"},
    "refreshed": {"kv_cache": "dual", "cache_refresh": 2},
    "suffix": {"kv_cache": "none", "suffix": 0},
    "dual, suffix": {"kv_cache": "dual", "suffix": 1},
}
SIDES: tuple[Literal["left", "right"], ...] = ("left", "right")
PROMPTS = [[3, 1, 4, 1, 5, 9], [2], [7, 7, 7, 20, 30, 40, 44, 0, 11], [8, 2, 8], [5, 6], [1, 2, 3]]


def scaffold(*parts: int | list[int]) -> Scaffold:
    """A number is a hole of so many positions, a list fixed tokens."""
    ids: list[int] = []
    found: list[str | Hole] = []
    for part in parts:
        if isinstance(part, int):
            found.append(Hole(len(ids), len(ids) + part))
            ids += [MASK] * part
        else:
            found.append("".join(chr(97 + token % 26) for token in part))
            ids += part
    return Scaffold(tuple(ids), tuple(found))


CANVASES: list[Scaffold | None] = [
    scaffold([1, 2], 3, [4], 2, [5]),
    None,
    scaffold(3, [9, EOS], 11),  # An EOS among fixed tokens ends nothing.
    scaffold([1, 2, 3, 4, 5, 6, 7, 8, 9], 2, [3, 3], 3),  # Two blocks without an open position.
    Scaffold.open(7, MASK),
    scaffold(1, [30, 31, 32, 33, 34, 35, 36, 37], 1, [2, 2]),  # The second block is full.
]


def given_to(one: Scaffold | None) -> dict[str, Any]:
    if one is None:
        return {}
    return {"given": [None if t == MASK else t for t in one.ids], "eos_from": one.eos_from}


def assert_is(sample: lrd.Sample, expected: Outcome) -> None:
    for name in ("canvas", "commit_step", "refine_steps", "decode_steps", "blocks", "stop_reason",
                 "open_at_stop", "refine_converged"):  # fmt: skip
        assert getattr(sample, name) == getattr(expected, name), name
    for name in ("kl_trace", "entropy_trace", "max_entropy_at_stop", "mean_mix_weight"):
        near = pytest.approx(getattr(expected, name), abs=2e-4, nan_ok=True)
        assert getattr(sample, name) == near, name


def decode(model: LoadedModel, config: lrd.DecodingConfig, side: Any = "left") -> list[lrd.Sample]:
    return lrd.decode(model, PROMPTS, config, batch_size=4, padding_side=side, scaffolds=CANVASES)


def cases(firsts: Any, seconds: Any) -> list[Any]:
    """All pairs, each with the padding on either side; a third of them in every run of the tests,
    so that each member of both is among them, the others are slow ones."""
    found = []
    for number, (first, second) in enumerate(itertools.product(firsts, seconds)):
        for place, side in enumerate(SIDES):
            marks = () if number % 3 == place else pytest.mark.slow
            found.append(pytest.param(first, second, side, marks=marks))
    return found


@pytest.mark.parametrize(("setting", "name", "side"), cases(SETTINGS, MODELS))
def test_a_canvas_with_fixed_tokens_is_decoded_as_by_the_plain_decoder(
    setting: str, name: str, side: Any
) -> None:
    model, config = random_model(**MODELS[name]), lrd.DecodingConfig(**SETTINGS[setting])
    samples = decode(model, config, side)
    for index, (sample, one) in enumerate(zip(samples, CANVASES, strict=True)):
        seed = row_seed(config.seed, index)
        assert_is(sample, decode_one(model, PROMPTS[index], config, seed, **given_to(one)))
        if one is not None:
            kept = [s == t for s, t in zip(sample.canvas, one.ids, strict=True) if t != MASK]
            assert all(kept)
            assert all(
                (c, s) == (1.0, 0)
                for c, s, t in zip(
                    sample.token_confidence, sample.commit_step, one.ids, strict=True
                )
                if t != MASK
            )


def test_the_canvases_reach_every_end() -> None:
    reasons = {
        (sample.stop_reason, index)
        for name, setting in itertools.product(MODELS, ("blocks", "blocks, stop"))
        for index, sample in enumerate(
            decode(random_model(**MODELS[name]), lrd.DecodingConfig(**SETTINGS[setting]))
        )
    }
    assert {reason for reason, _ in reasons} == {"complete", "converged", "eos"}
    # Only a hole that reaches the end ends at an EOS.
    assert {index for reason, index in reasons if reason == "eos"} <= {1, 2, 3, 4}
    assert ("eos", 2) in reasons


@pytest.mark.parametrize(
    ("cache", "name", "side"), cases(CACHES, ["plain", "Dream", "brief Dream", "sure"])
)
def test_caches_keep_to_a_rows_own_canvas(cache: str, name: str, side: Any) -> None:
    model = random_model(**MODELS[name])
    config = lrd.DecodingConfig(**{**BLOCKS, **CACHES[cache]})
    for index, (sample, one) in enumerate(zip(decode(model, config, side), CANVASES, strict=True)):
        seed = row_seed(config.seed, index)
        expected, passes = decode_cached(model, PROMPTS[index], config, seed, **given_to(one))
        assert_is(sample, expected)
        assert sample.full_passes == passes.full_passes
        assert sample.positions_computed == passes.positions_computed


@pytest.mark.parametrize("fixed_shapes", [False, True])
@pytest.mark.parametrize("name", ["plain", "brief Dream"])
@pytest.mark.parametrize("settings", [LRD, BLOCKS, {**BLOCKS, **CACHES["dual"]}])
def test_a_shorter_canvas_is_decoded_as_by_an_engine_of_its_length(
    settings: dict[str, Any], name: str, fixed_shapes: bool
) -> None:
    model, config = random_model(**MODELS[name]), lrd.DecodingConfig(**settings)
    lengths = [4, 16, 8, 12, 8, 4]
    asked = [
        lrd.Request(n, prompt, 50 + n, Scaffold.open(lengths[n], MASK))
        for n, prompt in enumerate(PROMPTS)
    ]
    mixed = drain(lrd.Engine(model, config, 3, 9, fixed_shapes=fixed_shapes), asked)
    for n, prompt in enumerate(PROMPTS):
        alone = lrd.Engine(model, config.at(lengths[n]), 1, len(prompt), fixed_shapes=fixed_shapes)
        assert_same({n: mixed[n]}, drain(alone, [lrd.Request(n, prompt, 50 + n)]))


MASKS_IN_PROMPT = [r for r in records("generate") if r.name.startswith("masks_in_prompt")]


@pytest.mark.parametrize("record", MASKS_IN_PROMPT, ids=str)
def test_holes_of_a_prompt_as_in_the_original(
    record: Record, request: pytest.FixtureRequest
) -> None:
    """The original commits one position a pass anywhere, for as many passes as the canvas has
    positions, and leaves the other holes; here all are filled, in the same order."""
    model, config = record.model, sampler_settings(record)
    prompt = record.tensor("prompt")[0].tolist()
    first = prompt.index(model.mask_id)
    ids = [*prompt[first:], *[model.mask_id] * config.gen_length]
    parts: list[int | list[int]] = []
    for is_open, group in itertools.groupby(ids, lambda token: token == model.mask_id):
        tokens = list(group)
        parts.append(len(tokens) if is_open else tokens)
    own = scaffold(*parts)
    own = Scaffold(tuple(ids), own.parts)
    settings = {**config.model_dump(), "gen_length": len(ids), "block_length": None}
    if record.model.transformer.config.logit_shift:
        settings |= {"steps": config.steps, "schedule": config.schedule}
    else:
        settings |= {"steps": ids.count(model.mask_id)}
    found = lrd.decode(model, [prompt[:first]], lrd.DecodingConfig(**settings), scaffolds=[own])[0]
    expected = record.tensor("sequences")[0, first:].tolist()
    note(request, record)
    same = [
        ours == theirs
        for ours, theirs, step in zip(found.canvas, expected, found.commit_step, strict=True)
        if step <= record.entry["nfe"]
    ]
    assert all(same)
    assert len(same) > config.gen_length
    left = [n for n, step in enumerate(found.commit_step) if step > record.entry["nfe"]]
    assert all(expected[n] == model.mask_id for n in left)


# Allowed tokens.


def classes_of(length: int) -> tuple[torch.Tensor, tuple[int, ...], list[set[int] | None]]:
    """A table of three classes, a class a position, and the same as sets."""
    rng = random.Random(3)
    table = torch.zeros(3, VOCABULARY, dtype=torch.bool)
    table[0] = True
    sets: list[set[int] | None] = [None, {3, 17, 20, 41, EOS}, {30}]
    for number, allowed in enumerate(sets):
        if allowed is not None:
            table[number, sorted(allowed)] = True
    classes = tuple(rng.choice([0, 1, 1, 2]) for _ in range(length))
    return table, classes, [sets[c] for c in classes]


@pytest.mark.parametrize("fixed_shapes", [False, True])
@pytest.mark.parametrize("setting", ["whole", "warm", "whole, stop", "baseline", "blocks, no EOS"])
def test_only_allowed_tokens_are_written(setting: str, fixed_shapes: bool) -> None:
    model, config = random_model(**MODELS["plain"]), lrd.DecodingConfig(**SETTINGS[setting])
    table, classes, sets = classes_of(G)
    one = Scaffold((MASK,) * G, (Hole(0, G),), classes)
    asked = [
        lrd.Request(0, PROMPTS[0], 7, one),
        lrd.Request(1, PROMPTS[1], 8),
        lrd.Request(2, PROMPTS[2], 9, one),
    ]
    engine = lrd.Engine(model, config, 3, 9, fixed_shapes=fixed_shapes, allowed=table)
    found = drain(engine, asked)
    for request in asked:
        allowed = sets if request.scaffold else None
        sample = found[request.key]
        expected = decode_one(model, request.prompt, config, request.seed, allowed=allowed)
        assert_is(sample, expected)
        for token, known in zip(sample.canvas, sets, strict=True):
            assert request.scaffold is None or known is None or token in known


class InOrder(Scaffold):
    """Its positions wait for each other; each may take the successor of the one before alone."""

    @property
    def has_choices(self) -> bool:
        return True

    def next_classes(self, canvas: Any, mask_id: int) -> list[int]:
        ready = list(canvas).index(mask_id)
        return [
            NOT_YET if n > ready else 1 + (canvas[ready - 1] + 1 if ready else 0) % 40
            for n in range(len(canvas))
        ]


@pytest.mark.parametrize("fixed_shapes", [False, True])
@pytest.mark.parametrize(
    "setting",
    ["whole", "whole, stop", "warm", "blocks, no EOS", "all at once", "stopped at once"],
)
def test_classes_follow_what_was_committed(setting: str, fixed_shapes: bool) -> None:
    model, config = random_model(**MODELS["plain"]), lrd.DecodingConfig(**SETTINGS[setting])
    table = torch.zeros(41, VOCABULARY, dtype=torch.bool)
    table[0] = True
    table[torch.arange(1, 41), torch.arange(40)] = True
    one = InOrder((MASK,) * 8, (Hole(0, 8),), (0,) * 8)
    asked = [lrd.Request(n, prompt, n, one if n % 2 else None) for n, prompt in enumerate(PROMPTS)]
    engine = lrd.Engine(model, config, 3, 9, fixed_shapes=fixed_shapes, allowed=table)
    for key, sample in drain(engine, asked).items():
        if key % 2:
            assert sample.canvas == list(range(8))
            assert sample.commit_step == sorted(set(sample.commit_step))


# Temperatures of rows.


@pytest.mark.parametrize("run_at", [0.0, 0.7])
@pytest.mark.parametrize(
    "more",
    [{}, {"confidence_threshold": 0.5, "entropy_threshold": None},
     {"sample_top_p": 0.9, "confidence_source": "sampling"}],
    ids=["", "confidence", "sampling"],
)  # fmt: skip
def test_a_rows_temperature_is_that_of_a_run(run_at: float, more: dict[str, Any]) -> None:
    model = random_model(**MODELS["sure"])
    config = lrd.DecodingConfig(**{**LRD, **more, "temperature": run_at})
    warmth = [None, 0.0, 0.7, 1.3, 0.5, 0.0]
    asked = [
        lrd.Request(n, prompt, 70 + n, temperature=warmth[n]) for n, prompt in enumerate(PROMPTS)
    ]
    mixed = drain(lrd.Engine(model, config, 4, 9, row_temperatures=True), asked)
    for n, prompt in enumerate(PROMPTS):
        own = run_at if warmth[n] is None else warmth[n]
        alone = lrd.Engine(model, config.model_copy(update={"temperature": own}), 1, len(prompt))
        assert_same({n: mixed[n]}, drain(alone, [lrd.Request(n, prompt, 70 + n)]))


# Growing canvases.


def needs_more(model: LoadedModel, config: lrd.DecodingConfig, prompt: list[int]) -> bool:
    """DAEDAL's rule, from the logits of a first pass."""
    ids = torch.tensor([[*prompt, *[MASK] * config.gen_length]])
    logits = model.logits(model.embed(ids))[0, -min(config.eos_window, config.block_tokens) :]
    logits[:, MASK] = -torch.inf
    p = logits.softmax(-1)
    is_eos = is_any_of(p.argmax(-1), eos_ids(model))
    return bool(torch.where(is_eos, p.amax(-1), 0).mean() < config.eos_enough)


GROWTH = {"gen_length": 8, "max_gen_length": 32, "eos_window": 4, "eos_enough": 0.4}


GROWING: dict[str, dict[str, Any]] = {
    "whole": {},
    "blocks": {"block_length": 4},
    "refined to the limit": {"block_length": 4, "tau_refine": 0.0},
    "cached": {"block_length": 4, "kv_cache": "dual"},
    "warm": {"temperature": 0.8},
}


@pytest.mark.parametrize("fixed_shapes", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    ["brief", *(pytest.param(n, marks=pytest.mark.slow) for n in ("brief Dream", "plain"))],
)
@pytest.mark.parametrize("kind", few(GROWING, of_each=2))
def test_a_canvas_grows_until_it_ends_in_eos(kind: str, name: str, fixed_shapes: bool) -> None:
    """The answer is that of a run with the last canvas; all passes are counted."""
    model = random_model(**MODELS[name])
    config = lrd.DecodingConfig(**{**LRD, **GROWTH, **GROWING[kind]})
    assert config.canvases == (8, 16, 32)
    prompts = [*PROMPTS, *[[n, n + 1, n + 2] for n in range(5)]]
    lengths = set()
    for index, sample in enumerate(lrd.decode(model, prompts, config, batch_size=3)):
        seed, looks, earlier = row_seed(config.seed, index), 0, 0
        for length in config.canvases:
            own = config.at(length).model_copy(update={"max_gen_length": None})
            engine = lrd.Engine(model, own, 1, len(prompts[index]), fixed_shapes=fixed_shapes)
            (alone,) = drain(engine, [lrd.Request(0, prompts[index], seed)]).values()
            if length == config.canvases[-1]:
                break
            if needs_more(model, config.at(length), prompts[index]):
                earlier += 1
                continue
            looks = int(config.block_length is not None)
            if EOS in alone.canvas:
                break
            earlier += alone.num_forwards + looks
            looks = 0
        lengths.add(length)
        assert sample.canvas == alone.canvas
        assert sample.stop_reason == alone.stop_reason
        assert sample.blocks == alone.blocks
        # A draw depends on the number of the row's pass, so one that looks moves the others.
        assert sample.num_forwards == alone.num_forwards + earlier + looks
        assert len(sample.kl_trace) == len(sample.entropy_trace) == sample.num_forwards
        steps = [s - earlier - looks if s else 0 for s in sample.commit_step]
        assert steps == alone.commit_step
    assert len(lengths) > 1 or name == "plain"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"gen_length": 64, "max_gen_length": 32}, "below gen_length"),
        ({"gen_length": 8, "max_gen_length": 30, "block_length": 4}, "does not divide"),
        ({"gen_length": 8, "max_gen_length": 32, "steps": 8}, "drop steps"),
        ({"gen_length": 8, "max_gen_length": 32, "logits_eos_inf": True}, "logits_eos_inf"),
        ({"gen_length": 8, "max_gen_length": 2_000_000}, "passes"),
    ],
)
def test_growth_that_cannot_be_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        lrd.DecodingConfig(**settings)


def test_auto_stands_for_lengths() -> None:
    assert lrd.DecodingConfig(gen_length="auto").canvases == (64, 128, 256, 512)
    given: dict[str, Any] = {"gen_length": "auto", "max_gen_length": 200}
    assert lrd.DecodingConfig(**given).canvases == (64, 128, 200)
    blocks: dict[str, Any] = {"gen_length": "auto", "block_length": 48}
    assert lrd.DecodingConfig(**blocks).canvases == (96, 192, 384, 480)
    assert lrd.DecodingConfig(gen_length=64).canvases == (64,)


# What an engine refuses.


def refused(**changes: Any) -> tuple[lrd.Engine, lrd.Request]:
    settings = {**LRD, **changes.pop("settings", {})}
    engine = lrd.Engine(random_model(seed=1), lrd.DecodingConfig(**settings), 1, 4, **changes)
    return engine, lrd.Request(0, [1, 2, 3, 4], 0)


@pytest.mark.parametrize(
    ("changes", "own", "says"),
    [
        ({}, {"scaffold": Scaffold.open(17, MASK)}, "more than gen_length 16"),
        ({}, {"scaffold": scaffold([1, 2])}, "nothing in the canvas is open"),
        ({}, {"scaffold": scaffold(2, [VOCABULARY])}, "token id 48"),
        ({}, {"scaffold": Scaffold((MASK,), (Hole(0, 1),), (1,))}, "was not given"),
        ({}, {"temperature": 0.5}, "row_temperatures"),
        ({"padded": False}, {"scaffold": Scaffold.open(8, MASK)}, "leave padding"),
        ({"settings": {"max_gen_length": 32}}, {"scaffold": Scaffold.open(8, MASK)}, "max_gen"),
    ],
)
def test_a_canvas_that_cannot_be_is_refused(
    changes: dict[str, Any], own: dict[str, Any], says: str
) -> None:
    engine, request = refused(**changes)
    with pytest.raises(ValueError, match=says):
        engine.submit(lrd.Request(request.key, request.prompt, request.seed, **own))


# What a canvas reads as.


def test_a_hole_ends_at_its_own_eos_or_pad() -> None:
    one = scaffold([1], 3, [2], 2)
    canvas = [1, 5, PAD, 7, 2, EOS, 9]
    assert one.kept(canvas, {EOS, PAD}) == [True, True, False, False, True, False, False]
