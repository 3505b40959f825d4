"""CreditDecoding, Prophet, ReMix, soft masking, soft suffixes and DPad's list: against loops, with
and without latent refinement, in mixed company."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from helpers.beliefs_reference import Plain, decode_plainly
from helpers.cached_reference import decode_cached
from helpers.engine import PROMPTS, assert_same, drain, requests
from helpers.host_reads import NoReads
from helpers.logits import random_logits
from helpers.random_model import LIVELY, MASK, random_model
from test_golden_templates import scaffold_of

import lrd
from lrd import slots
from lrd.beliefs import Belief, BeliefSummary, log_beliefs
from lrd.canvases import Canvases
from lrd.decoders.credit import PAIRS, CreditDecoding
from lrd.decoders.prophet import Prophet
from lrd.decoders.rejection import Rejection
from lrd.decoders.rule import Chunk
from lrd.decoding import begin, step
from lrd.engine import PaddingSide
from lrd.models.checkpoint import LoadedModel
from lrd.nucleus import largest
from lrd.one_pass import Reading
from lrd.settings import suffix_text
from lrd.suffix import fed_positions
from pipeline.config import RunConfig
from pipeline.preflight import fingerprint_of

PLAIN = {"r_f": 0.0, "max_refine_steps": 0, "stop_at_eos": False, "gen_length": 12}
REFINED = {"r_f": 0.4, "max_refine_steps": 3, "tau_refine": 0.05, "stop_at_eos": False}
REFINED |= {"gen_length": 12}
SURE = {"confidence_threshold": 0.55}
CREDIT = {"credit_alpha": 1.5, "credit_gamma": 0.5, "credit_decay": 0.9}
REMIX = {"mix": "remix", "mix_share": 0.9, "reject_js": 0.05, "commit_ceiling": 2}

SETTINGS: dict[str, dict[str, Any]] = {
    "credit": {
        **PLAIN, "credit_alpha": 1.5, "credit_gamma": 0.1, "credit_decay": 1,
        "confidence_threshold": 0.95,
    },
    "credit, refined": {**REFINED, **SURE, **CREDIT},
    "credit, blocks": {**REFINED, **SURE, **CREDIT, "block_length": 4, "eos_ends_block": True},
    "credit, by entropy": {**REFINED, **CREDIT, "entropy_threshold": 0.9, "block_length": 6},
    "credit, one a pass": {**REFINED, **CREDIT, "block_length": 6},
    "remix": {**PLAIN, **REMIX, "confidence_threshold": 0.8},
    "remix, refined": {**REFINED, **REMIX, "confidence_threshold": 0.8, "block_length": 6},
    "remix, comes back": {**REFINED, **REMIX, "confidence_threshold": 0.9, "reject_js": 0.35},
    "remix without rejection": {**PLAIN, **REMIX, "reject_js": None, "confidence_threshold": 0.8},
    "lrd with rejection": {**REFINED, **SURE, "reject_js": 0.05, "block_length": 6},
    "topk": {**REFINED, **SURE, "mix": "topk", "block_length": 6},
    "topk, one": {**PLAIN, "r_f": 0.8, "mix": "topk", "mix_top_k": 1, **SURE},
    "soft suffix": {**REFINED, **SURE, "block_length": 4, "soft_suffix": True},
    "soft suffix, topk": {
        **REFINED, **SURE, "r_f": 0.9, "mix": "topk", "block_length": 3, "soft_suffix": True,
    },
    "prophet": {**PLAIN, "stop_gap_early": 1.2, "stop_gap_middle": 1, "block_length": 4},
    "prophet, refined": {
        **REFINED, "stop_gap_early": 1.2, "stop_gap_middle": 1, "stop_gap_late": 0.8,
        "block_length": 6, "stop_gap_start": 10, "stop_gap_length": 4,
    },
    "prophet, soft suffix": {
        **REFINED, **SURE, "stop_gap_early": 2, "soft_suffix": True, "block_length": 4,
    },
    "ends with its block": {**REFINED, **SURE, "block_length": 3, "eos_ends_block": True},
}  # fmt: skip

FIXED = [None, 3, None, None, None, None, 8, 9, None, None, None, 20]
"""A canvas with fixed tokens."""


def expected_of(config: lrd.DecodingConfig, model: LoadedModel, given: Any) -> dict[int, Plain]:
    eos_from = 0 if given is None else scaffold_of(canvas_of(given), MASK).eos_from
    return {i: decode_plainly(model, x, config, given, eos_from) for i, x in enumerate(PROMPTS[:4])}


def canvas_of(given: list[int | None]) -> list[int]:
    return [MASK if token is None else token for token in given]


def decoded(
    config: lrd.DecodingConfig, model: LoadedModel, given: Any, side: PaddingSide, fixed: bool
) -> dict[int, lrd.Sample]:
    """Three rows at a time; with fixed shapes nothing in a pass may be read on the host."""
    scaffold = None
    if given is not None:
        scaffold = scaffold_of(canvas_of(given), MASK)
    engine = lrd.Engine(model, config, 3, 9, side, fixed)
    return drain(engine, [lrd.Request(i, x, i, scaffold) for i, x in enumerate(PROMPTS[:4])])


@pytest.fixture
def watched_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def watched(model: Any, config: Any, state: Any) -> None:
        with NoReads() if state.fixed_shapes else nullcontext():
            step(model, config, state)

    monkeypatch.setattr(slots, "step", watched)


TAKEN = {
    "credit": {"another token by credit"},
    "prophet": {"gap"},
    "prophet, refined": {"gap"},
    "remix": {"rejected", "several in the nucleus"},
    "remix, comes back": {"comes back"},
    "soft suffix": {"suffix"},
    "credit, blocks": {"EOS ends"},
    "ends with its block": {"EOS ends"},
}
"""Branches that a setting is there for."""


@pytest.mark.usefixtures("watched_step")
@pytest.mark.parametrize("setting", SETTINGS)
def test_decodes_as_the_loops_do(setting: str) -> None:
    config = lrd.DecodingConfig(**SETTINGS[setting])
    seen: set[str] = set()
    for given, shift in ((None, False), (FIXED, True)):
        model = random_model(9, sharpness=1.5, eos_bias=2.0, logit_shift=shift)
        expected = expected_of(config, model, given)
        seen = seen.union(*(one.seen for one in expected.values()))
        for side in ("left", "right"):
            found = decoded(config, model, given, side, side == "right")
            for key, one in expected.items():
                sample = found[key]
                assert sample.canvas == one.canvas
                assert sample.commit_step == one.commit_step
                assert (sample.refine_steps, sample.decode_steps) == (
                    one.refine_steps, one.decode_steps,
                )  # fmt: skip
                assert sample.stop_reason == one.stop_reason
    assert seen >= TAKEN.get(setting, set())


def test_positions_as_sure_as_the_surest_are_committed_with_it() -> None:
    config = lrd.DecodingConfig(**{**SETTINGS["credit"], "gen_length": 5})
    model = random_model(1)
    state = Canvases.empty(model, config, 1, 6)
    state.place(0, [3], model, config, "left")
    now = begin(model, config, state)
    now.reading = Reading(*[torch.zeros(1, 5)] * 6, None, None, None)
    now.reading.confidence_BK = torch.tensor([[0.9, 0.5, 0.5 - 5e-6, 0.5 - 3e-5, 0.2]])
    named, may = torch.tensor([[0, 1, 0, 0, 0], [0, 1, 1, 1, 1]]).bool()[:, None]
    found = CreditDecoding().commits(now, named, may)
    assert found.tolist() == [[False, True, True, False, False]]


@pytest.mark.parametrize("steps", [None, 50])
def test_the_bound_of_the_gap_falls_by_thirds(steps: int | None) -> None:
    """Of the decode passes that `steps` gives, else of one a token; the answer's gaps alone count,
    to the canvas' end."""
    config = lrd.DecodingConfig(
        gen_length=100, steps=steps, stop_gap_early=7.5, stop_gap_start=98, stop_gap_length=5
    )
    model, most = random_model(1, max_length=128), steps or 100
    state = Canvases.empty(model, config, 1, 104)
    state.place(0, [3], model, config, "left")
    now = begin(model, config, state)
    now.reading = Reading(*[torch.zeros(1, 100)] * 6, None, None, None)
    for number in range(1, most + 1):
        bound = 7.5 if number / most < 0.33 else 5 if number / most < 0.67 else 2.5
        state.decode_steps_B.fill_(number)
        for gap, expected in ((bound, True), (bound - 1e-3, False)):
            gaps = torch.full((1, 100), 100.0)
            gaps[0, 98:] = torch.tensor([gap - 1, gap + 1])
            now.reading.more = {"gap": gaps}
            assert Prophet().stops(now).tolist() == [expected], number


def chunk_of(logits: torch.Tensor) -> Chunk:
    return Chunk(torch.arange(len(logits)), logits, MASK, Belief.of_logits(logits, MASK))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_columns", [48, 752, 4096, 5000, 20_010])
def test_the_largest_are_those_of_a_stable_sort(num_columns: int, dtype: torch.dtype) -> None:
    """Among equals the lower id comes first, in whole groups and in what is left of them."""
    logits = random_logits(6, num_columns, scale=2.0).to(dtype)
    logits[1] = logits[1].round()
    logits[2], logits[3, 1::2] = 0.0, -0.0
    logits[3, ::2] = 0.0
    logits[4, 7:] = -torch.inf
    for k in (1, 3, 48):
        expected = logits.float().sort(dim=-1, descending=True, stable=True).indices[:, :k]
        assert torch.equal(largest(logits, k), expected)


def test_mask_is_none_of_the_most_probable() -> None:
    logits = random_logits(4, 752)
    logits[0, MASK], logits[1, MASK], logits[2, MASK] = 100.0, -100.0, logits[2].sort().values[-2]
    chunk = chunk_of(logits)
    excluded = logits.clone()
    excluded[:, MASK] = -torch.inf
    expected = excluded.sort(dim=-1, descending=True, stable=True).indices[:, :20]
    assert torch.equal(chunk.top(20), expected)
    p = excluded.double().softmax(-1)
    assert torch.allclose(chunk.log_p(expected).exp().double(), p.gather(-1, expected))
    assert torch.allclose(chunk.p().double(), p, atol=1e-7)
    summary = BeliefSummary(chunk.belief.log_z_N, chunk.belief.token_N, chunk.belief.entropy_N)
    assert torch.allclose(Chunk(chunk.rows_n, logits, MASK, summary).p(), chunk.p(), atol=1e-7)


@pytest.mark.parametrize("scale", [0.1, 2.0, 8.0])
def test_the_divergence_of_a_rejection(scale: float) -> None:
    logits, before = (random_logits(5, 4096, scale=scale, seed=seed) for seed in (0, 1))
    chunk = chunk_of(logits)
    chunk.before_nV = log_beliefs(before, MASK).clamp(min=-6e4)
    found = Rejection().measure(None, chunk)["js"]
    p, q = chunk.p().double(), log_beliefs(before.double(), MASK).exp().double()
    mean = (p + q) / 2
    js = sum(
        torch.special.xlogy(x, x).sum(-1) - torch.special.xlogy(x, mean).sum(-1) for x in (p, q)
    )
    assert torch.allclose(found.double(), js / 2, atol=1e-5)
    assert found.max() <= math.log(2) + 1e-5


def test_the_least_credited_token_is_forgotten() -> None:
    """Of more than PAIRS most probable tokens; with fewer all credit is exact (see the loops)."""
    model, config = random_model(**LIVELY), lrd.DecodingConfig(**SETTINGS["credit"])
    state = Canvases.empty(model, config, 1, 20)
    state.place(0, [3], model, config, "left")
    now = begin(model, config, state)
    for token in range(PAIRS + 1):
        logits = torch.zeros(12, 48)
        logits[:, token] = 5.0 + token
        chunk = chunk_of(logits)
        now.reading = Reading(*[torch.zeros(1, 12)] * 6, None, None, None)
        found = CreditDecoding().measure(now, chunk)
        now.reading.more = {name: found[name][None] for name in ("credit", "credit_ids")}
        CreditDecoding().weigh(now)
        state.pass_in_block_B += 1
    ids, credit = state.kept["credit_ids"][0], state.kept["credit"][0]
    assert ids.sort().values.tolist() == [[*range(1, PAIRS + 1)]] * 12
    assert (credit > 0).all()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"credit_alpha": 0.7, "temperature": 0.5}, "credit_alpha .*set temperature to 0"),
    ({"credit_alpha": 0.7, "confidence": "margin"}, "credit_alpha .*confidence to entropy"),
    ({"credit_alpha": 0.7, "confidence_eos_eot_inf": True}, "confidence_eos_eot_inf, or credit"),
    ({"stop_gap_start": 4}, "stop_gap_start .*stop_gap_early"),
    ({"stop_gap_early": 5, "stop_gap_start": 128}, "stop_gap_start 128 .*gen_length 128; lower"),
    ({"reject_js": 0.3, "r_f": 0}, "reject_js needs a mix; set r_f"),
    ({"reject_js": 0.3, "mix": "remix", "mix_share": 0}, "reject_js needs a mix; set mix_share"),
    ({"soft_suffix": True, "top_p": 0}, "soft_suffix needs a mix"),
    ({"soft_suffix": True, "reject_js": 0.3}, "drop one of them"),
    ({"soft_suffix": True, "block_length": 32, "suffix": 1}, "set kv_cache to none and suffix"),
    ({"stop_gap_early": 5, "block_length": 32, "kv_cache": "dual"}, "set kv_cache to none"),
    ({"suffix": [3, -2]}, "suffix -2 is a distance behind the block; give 0 or more"),
    ({"suffix": "0-7,x"}, "give all, none, a number of blocks, or distances"),
    ({"suffix": "5-1"}, "5-1 is not a range"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_what_cannot_be_combined_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lrd.DecodingConfig(**settings)


def test_credit_and_temperatures_of_rows_are_refused() -> None:
    config = lrd.DecodingConfig.preset("credit", gen_length=8)
    with pytest.raises(ValueError, match="credit_alpha needs temperature 0"):
        lrd.Engine(random_model(1), config, 1, 4, row_temperatures=True)
    with pytest.raises(ValueError, match=r"credit_alpha credits .* row_settings .*keep one"):
        RunConfig(input="in", output="out", decoding=config, row_settings=("temperature",))


DISTANCES = {
    "0-7,15,23": (*range(8), 15, 23),
    "3": 3,
    "3-3": (3,),
    "none": (),
    "all": "all",
    "9, 2, 2-4": (2, 3, 4, 9),
}


@pytest.mark.parametrize("text", DISTANCES)
def test_distances_behind_the_block(text: str) -> None:
    """As a flag, and back into one."""
    config = lrd.DecodingConfig(block_length=32, suffix=text)
    assert config.suffix == DISTANCES[text]
    assert lrd.DecodingConfig(block_length=32, suffix=suffix_text(config.suffix)) == config
    assert lrd.DecodingConfig(**json.loads(config.model_dump_json())) == config


def test_a_run_with_distances_goes_on() -> None:
    """Its fingerprint is what a record of it reads as."""
    config = lrd.DecodingConfig.preset("dpad")
    found = fingerprint_of(RunConfig(input="in", output="out", decoding=config), [], "float32", "x")
    assert found["decoding"]["suffix"][:2] == [0, 1]
    assert json.loads(json.dumps(found)) == found


def test_positions_that_a_list_keeps() -> None:
    config = lrd.DecodingConfig(gen_length=16, block_length=4, suffix="0,2,5")
    assert [fed_positions(config, block) for block in range(4)] == [
        [*range(4), 4, 6, 9],
        [*range(8), 8, 10, 13],
        [*range(12), 12, 14],
        [*range(16)],
    ]


@pytest.mark.parametrize("kv_cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("suffix", ["0,2,5", "none"])
def test_a_list_decodes_as_the_plain_cached_decoder(suffix: str, kv_cache: str) -> None:
    config = lrd.DecodingConfig(**REFINED, **SURE, block_length=3, kv_cache=kv_cache, suffix=suffix)
    model = random_model(**LIVELY)
    expected = [decode_cached(model, prompt, config, 0)[0] for prompt in PROMPTS[:3]]
    for fixed in (False, True):
        engine = lrd.Engine(model, config, 2, 9, fixed_shapes=fixed)
        found = drain(engine, requests(PROMPTS[:3]))
        for key, one in enumerate(expected):
            assert found[key].canvas == one.canvas
            assert found[key].commit_step == one.commit_step


@pytest.mark.parametrize("preset", ["prophet", "remix", "dpad"])
def test_a_row_of_its_own_temperature_decodes_as_alone(preset: str) -> None:
    config = lrd.DecodingConfig.preset(preset, gen_length=8, block_length=4)
    model = random_model(**LIVELY)
    asked = [lrd.Request(i, x, i, None, 0.7 * (i % 2)) for i, x in enumerate(PROMPTS[:4])]
    together = drain(lrd.Engine(model, config, 3, 9, row_temperatures=True), asked)
    alone: dict[int, lrd.Sample] = {}
    for request in asked:
        alone |= drain(lrd.Engine(model, config, 1, 9, row_temperatures=True), [request])
    assert_same(together, alone)
    cold = drain(lrd.Engine(model, config, 1, 9), [lrd.Request(0, PROMPTS[0], 0)])
    assert cold[0].canvas == alone[0].canvas
