"""The decoding benchmark: variants decode the same rows, figures follow a simulated clock."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.engine import PROMPTS, cramped
from helpers.random_model import LIVELY, random_model

import lrd
from jobs.bench import against_peers, decoder_steps, step
from jobs.bench import decode as bench
from jobs.bench.against_peers import Rate, compare, figures, ours, peers, summary
from jobs.bench.plain_loop import check, decode_plain
from jobs.bench.rows_per_second import (
    Work,
    accuracy,
    decisions,
    right_answers,
    run_plain,
    run_slots,
    run_static_drop,
    run_static_wait,
)
from lrd import decoding
from lrd.config import ALL_PRESETS
from lrd.models.checkpoint import LoadedModel

LRD = {"gen_length": 12, "r_f": 0.3, "tau_refine": 0.05, "max_refine_steps": 4}
SETTINGS: dict[str, dict[str, Any]] = {
    "one a pass": LRD,
    "baseline": {"gen_length": 12, "r_f": 0.0, "max_refine_steps": 0},
    "sure ones": {**LRD, "entropy_threshold": 0.9},
    "stop": {**LRD, "early_stop": True, "tau_decode": 0.3, "entropy_threshold": 0.5},
    "gated": {**LRD, "early_stop": True, "tau_decode": 0.3, "stop_max_entropy": 2.0},
    "stop: sum": {**LRD, "early_stop": True, "tau_decode": 2.0, "reduction": "sum"},
    "stop: max": {**LRD, "early_stop": True, "tau_decode": 0.3, "reduction": "max"},
    "stop: open": {**LRD, "early_stop": True, "tau_decode": 0.3, "scope": "open"},
    "blocks": {**LRD, "block_length": 4, "tokens_per_step": 2},
    "blocks, stop": {**LRD, "block_length": 4, "early_stop": True, "tau_decode": 0.3},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_plain_loop_decides_as_the_engine_does(setting: str) -> None:
    config = lrd.DecodingConfig(**SETTINGS[setting])
    check(config)
    model = random_model(**LIVELY)
    plain = [decode_plain(model, prompt, config) for prompt in PROMPTS]
    samples = lrd.decode(model, PROMPTS, config, batch_size=3)
    assert [decisions(sample) for sample in samples] == [decisions(sample) for sample in plain]


def test_the_plain_loop_refuses_what_it_does_not_do() -> None:
    for settings in ({"confidence_threshold": 0.5}, {"refinement": "auto"}, {"temperature": 1.0}):
        with pytest.raises(ValueError, match="plain loop"):
            check(lrd.DecodingConfig(**settings))


def work_of(prompts: list[list[int]] = PROMPTS, slots: int = 2, **settings: Any) -> Work:
    config = lrd.DecodingConfig(**{**LRD, "entropy_threshold": 0.9, **settings})
    return Work(random_model(**LIVELY), config, prompts, [""] * len(prompts), slots)


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_every_way_decodes_the_same_rows(slots: int) -> None:
    work = work_of(slots=slots)
    plain, dropped, run = run_plain(work), run_static_drop(work), run_slots(work)
    assert [decisions(sample) for sample in run.samples] == [decisions(s) for s in plain]
    assert sorted(map(repr, map(decisions, dropped))) == sorted(map(repr, map(decisions, plain)))
    # A batch that waits takes as many passes as its slowest sample.
    passes = {sample.key: sample.num_forwards for sample in run.samples}
    slowest = [max(passes[r.key] for r in requests) for _, requests in work.batches()]
    assert run_static_wait(work) == sum(slowest)


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_padding_is_what_slots_hold_besides_prompt_and_answer(slots: int) -> None:
    work = work_of(slots=slots)
    run = run_slots(work)
    lengths = {index: length for length, indices in work.buckets.items() for index in indices}
    empty = filled = 0
    for sample in run.samples:
        prompt = len(PROMPTS[sample.key])
        empty += sample.num_forwards * (lengths[sample.key] - prompt)
        filled += sample.num_forwards * (prompt + work.config.gen_length)
    assert empty > 0
    assert run.padding_share == pytest.approx(empty / (empty + filled))
    assert run.occupancy == 1.0, "a freed slot takes the next prompt at once"


def test_slots_without_memory_are_not_occupied() -> None:
    """Of seven slots three are left; the pass that found it out computed nothing."""
    work = work_of([[1, 2]] * 12, slots=7)
    work.model = cramped(torch.OutOfMemoryError("no memory"))
    (sample,) = lrd.decode(random_model(**LIVELY), [[1, 2]], work.config)
    rounds = 3 * sample.num_forwards  # The fourth three find nobody waiting.
    assert run_slots(work).occupancy == pytest.approx(3 * rounds / (7 * (1 + rounds)))


def test_accuracy_is_the_share_of_right_answers() -> None:
    work = work_of()
    tiny = lrd.load_model("tiny")
    assert isinstance(tiny, LoadedModel)
    work.model, work.answers = tiny, ["12", "7", "7", "12"]
    texts = ["#### 12", "#### 7", "#### 8", "#### 1"]
    canvases = [tiny.tokenizer.encode(text, add_special_tokens=False) for text in texts]
    canvases[1] += [tiny.eos_id, *canvases[0]]  # What follows EOS is not part of the answer.
    assert accuracy(work, canvases) == 0.5


def test_a_worksheet_has_as_many_answers_as_problems() -> None:
    work = work_of(PROMPTS[:3])
    tiny = lrd.load_model("tiny")
    assert isinstance(tiny, LoadedModel)
    work.model, work.answers = tiny, ["12", "12 7", "40 12 7"]
    texts = ["#### 12", "A) 3*4=12\n#### 12\nB) #### 8", "A) #### 40\nC) #### 7"]
    canvases = [tiny.tokenizer.encode(text, add_special_tokens=False) for text in texts]
    assert right_answers(work, canvases) == [[True], [True, False], [True, False, True]]
    assert accuracy(work, canvases) == pytest.approx(4 / 6)


class Clock:
    """Stands still but for what is added to it."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def charge(
        self, patch: pytest.MonkeyPatch, owner: Any, name: str, *seconds: float
    ) -> list[float]:
        """Let a function take so long, the last for all further calls; what was charged."""
        plain, charged = getattr(owner, name), list[float]()

        def slow(*args: Any, **kwargs: Any) -> Any:
            charged.append(seconds[min(len(charged), len(seconds) - 1)])
            self.now += charged[-1]
            return plain(*args, **kwargs)

        patch.setattr(owner, name, slow)
        return charged


def test_shares_of_time_are_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(bench, "time", clock)
    parts = {
        "model": clock.charge(monkeypatch, LoadedModel, "hidden", 4.0),
        "head": clock.charge(monkeypatch, LoadedModel, "head", 2.0),
        "beliefs": clock.charge(monkeypatch, decoding, "read_block", 1.0),
        "rest": clock.charge(monkeypatch, bench, "run_slots", 30.0),
    }
    shares = bench.shares_of_time(work_of())
    seconds = {name: sum(charged) for name, charged in parts.items()}
    total = sum(seconds.values())
    assert min(seconds.values()) > 0
    assert shares == pytest.approx({name: spent / total for name, spent in seconds.items()})


def test_rates_are_rows_over_the_median_of_the_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = {
        "plain": [8.0, 2.0, 3.5],
        "static_wait": [7.0, 1.0, 2.0],
        "static_drop": [1.0, 1.0, 9.0],
        "slots": [0.5, 0.7, 0.1],
        "slots_bfloat16": [0.25, 0.35, 0.3],
    }
    script = iter([turns[name][turn] for turn in range(3) for name in turns])
    work = work_of()
    monkeypatch.setattr(bench, "timed", lambda call: (next(script), call()))
    monkeypatch.setattr(bench, "read_work", lambda args, dtype: work)
    monkeypatch.setattr(bench, "accuracy", lambda work, canvases: 0.25)
    monkeypatch.setattr(bench, "shares_of_time", lambda work: {"model": 1.0})
    found = bench.throughput(argparse.Namespace(repeats=3))
    medians = {"plain": 3.5, "static_wait": 2.0, "static_drop": 1.0, "slots": 0.5}
    assert found["rows_per_second"] == {name: 7 / taken for name, taken in medians.items()}
    assert found["rows_per_second_bfloat16"] == round(7 / 0.3, 2)
    assert (found["rows"], found["identical"], found["agree_bfloat16"]) == (7, 7, 1.0)
    forwards = [s.num_forwards for s in lrd.decode(work.model, PROMPTS, work.config)]
    assert found["forwards_per_row"] == round(sum(forwards) / 7, 2)
    # One sample that differs is counted.
    monkeypatch.setattr(bench, "run_plain", lambda work: [*run_plain(work)[1:], run_plain(work)[0]])
    script = iter([1.0] * 5)
    assert bench.throughput(argparse.Namespace(repeats=1))["identical"] < 7


@pytest.mark.parametrize("num_passes", [3, 100])
def test_a_step_is_timed_without_the_first(
    num_passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether samples end within the passes or not."""
    clock = Clock()
    monkeypatch.setattr(step, "time", clock)
    clock.charge(monkeypatch, lrd.Engine, "step", 1000.0, 2.0, 4.0, 3.0)
    model, config = random_model(**LIVELY), lrd.DecodingConfig(**SETTINGS["baseline"])
    seconds, entropy = step.time_passes(model, config, PROMPTS, num_passes)
    assert seconds == pytest.approx(3.0)
    first = [sample.entropy_trace[0] for sample in lrd.decode(model, PROMPTS, config)]
    assert entropy == pytest.approx(sum(first) / len(first), rel=1e-5)


def test_a_steps_cost_is_the_ratio_of_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    script = iter([(2.0, 9.0), (3.0, 1.0), (1.0, 9.0), (9.0, 1.0), (4.0, 9.0), (5.0, 1.5)])
    asked: list[tuple[bool, int, int]] = []

    def passes(model: Any, config: lrd.DecodingConfig, *_: Any) -> tuple[float, float]:
        asked.append((config.mixes, config.gen_length, config.block_tokens))
        return next(script)

    monkeypatch.setattr(step, "time_passes", passes)
    cost = step.step_cost(random_model(**LIVELY), PROMPTS, 16, 8, num_passes=3, repeats=3)
    assert asked == [(False, 16, 8), (True, 16, 8)] * 3
    assert (cost.baseline_seconds, cost.refined_seconds, cost.ratio) == (2.0, 5.0, 2.5)
    assert cost.entropy == 1.5, "the refined one's, of the last turn"


@pytest.mark.parametrize("canvas", decoder_steps.canvases(8), ids=lambda one: one.name)
@pytest.mark.parametrize("name", ALL_PRESETS)
def test_steps_of_presets_have_about_as_many_open_positions(
    name: str, canvas: decoder_steps.Canvas
) -> None:
    """No sample ends within the passes that are timed."""
    engine = lrd.Engine(random_model(3), decoder_steps.held_back(name, canvas), 2, 9)
    for index, prompt in enumerate(PROMPTS[:2]):
        engine.submit(lrd.Request(index, prompt, index))
    assert [engine.step() for _ in range(4)] == [[]] * 4


def test_ratios_of_steps_are_those_of_medians(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spent = iter([3.0, 1.0, 9.0, 2.0, 4.0, 3.0] * 2)
    monkeypatch.setattr(decoder_steps, "time_passes", lambda *_: (next(spent), 0.0))
    shapes = []
    monkeypatch.setattr(
        decoder_steps, "random_model", lambda shape: (shapes.append(shape), random_model(3))[1]
    )
    words = ["--presets", "remix", "--repeats", "3", "--layers", "7"]
    monkeypatch.setattr("sys.argv", ["decoder_steps", *words])
    threads = torch.get_num_threads()
    decoder_steps.main()
    torch.set_num_threads(threads)
    *page, last = capsys.readouterr().out.splitlines()
    assert {shape.num_layers for shape in shapes} == {json.loads(last)["layers"]} == {7}
    found = json.loads(last)["step_over_baseline"]
    assert found == {name: {"remix": 2.0, "baseline": 1.0} for name in ("one block", "two blocks")}
    assert page[1].split() == ["remix", "4000.0", "2.000", "4000.0", "2.000"]


@pytest.mark.slow
def test_the_benchmark_ends_in_one_json_object() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "jobs.bench.decode", "--quick", "--threads", "1"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    *page, last = process.stdout.splitlines()
    found = json.loads(last)
    assert found["identical"] == found["rows"] == 12
    assert set(found["shares"]) == {"model", "head", "beliefs", "rest"}
    assert sum(found["shares"].values()) == pytest.approx(1, abs=0.01)
    # What is kept of the pass before alone: 2 slots x 64 positions x 20480 columns in float16.
    assert found["belief_peak_bytes"] > 2 * 64 * 20_480 * 2
    # The page has the same numbers, and ratios of them.
    rates = {line[:14].strip(): line[14:].split() for line in page}
    for name in ("plain", "static_wait", "static_drop", "slots"):
        rate = found["rows_per_second"][name]
        printed, times = map(float, rates[name])
        assert printed == pytest.approx(rate, abs=0.006)
        assert times == pytest.approx(rate / found["rows_per_second"]["plain"], abs=0.006)
    assert found["lrd_over_baseline"].keys() == {"752", "20480"}
    for columns, ratio in found["lrd_over_baseline"].items():
        baseline, refined, printed, _ = map(float, rates[columns])
        assert printed == pytest.approx(ratio, abs=0.0006)
        assert refined / baseline == pytest.approx(ratio, rel=0.051 * (1 / refined + 1 / baseline))
    of_blocks = {"blocks_none", "blocks_dual", "peer_threshold", "peer_dual", "positions_ratio"}
    assert of_blocks < found["rows_per_second"].keys()
    lines = [line.split() for line in page]
    for name, variant in found["blocks"]["singles"]["variants"].items():
        assert found["rows_per_second"][name] == variant["rows_per_second"]
        printed = next(words for words in lines if words[:1] == [name])
        assert float(printed[1]) == pytest.approx(variant["rows_per_second"], abs=0.006)
        assert float(printed[3]) == pytest.approx(variant["right"] / 12, abs=0.0006)


# Blocks against the peers.

ALIGNED = {**LIVELY, "logit_shift": False}


def aligned_work() -> Work:
    config = lrd.DecodingConfig(**LRD)
    return Work(random_model(**ALIGNED), config, PROMPTS, ["1"] * len(PROMPTS), 2)


def test_rates_are_of_the_median_turn_and_ratios_of_each_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(against_peers, "time", clock)
    monkeypatch.setattr(against_peers, "right_answers", lambda work, canvases: [[True]] * 7)
    plain = against_peers.one_at_a_time(12, 4, "none", False)
    dual = against_peers.one_at_a_time(12, 4, "dual", False)
    script = {"blocks_none": [4.0, 8.0, 6.0], "blocks_dual": [2.0, 1.0, 9.0]}
    script["peer_dual"] = [12.0, 4.0, 12.0]

    def slow(name: str, decode: Any) -> Any:
        turns = iter(script[name])

        def run(work: Work) -> Any:
            clock.now += next(turns)
            return decode(work)

        return run

    decoders = {"blocks_none": plain, "blocks_dual": dual, "peer_dual": dual}
    variants = {name: slow(name, decode) for name, decode in decoders.items()}
    rates = compare(aligned_work(), variants, 3)
    assert torch.get_num_threads() >= 1
    none, cached = rates["blocks_none"], rates["blocks_dual"]
    assert none.rows_per_second == pytest.approx(7 / 6)
    # Turn by turn 2, 8 and 2/3; the ratio of the medians would be 3.
    assert cached.times(none) == pytest.approx(2.0)
    assert (none.num_right, none.num_problems, none.num_rows) == (7, 7, 7)
    samples = plain(aligned_work())
    assert none.positions == sum(s.positions_computed for s in samples) / 7
    assert (
        none.positions
        == sum(
            s.num_forwards * (len(prompt) + 12) for s, prompt in zip(samples, PROMPTS, strict=True)
        )
        / 7
    )
    assert cached.positions < none.positions
    assert figures("x_", rates)["x_positions_ratio"] == round(none.positions / cached.positions, 3)
    found = summary(rates)
    assert found["fastest"] == {
        "ours": "blocks_dual", "peer_as_published": "peer_dual", "peer": "peer_dual",
    }  # fmt: skip
    assert found["ours_over_peer"] == 4.0


def test_one_thread_is_for_the_turns_alone() -> None:
    threads = torch.get_num_threads()
    seen = []

    def fail(work: Work) -> Any:
        seen.append(torch.get_num_threads())
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        compare(aligned_work(), {"peer_dual": fail}, 1)
    assert (seen, torch.get_num_threads()) == ([1], threads)


@pytest.mark.parametrize("gen_length", [64, 256])
def test_the_peers_come_as_published_and_with_an_end_at_the_eos(gen_length: int) -> None:
    names = set(peers(gen_length))
    published = {name for name in names if not name.endswith("_eos")}
    assert {"peer_threshold", "peer_dual"} <= published
    assert {f"{name}_eos" for name in published} == names - published
    assert ("peer_threshold_whole" in names) == (gen_length == 256)
    assert {"fast", "blocks_none", "blocks_dual", "blocks", "blocks_no_refine"} == set(
        ours(gen_length)
    )


def test_the_fastest_peer_as_published_has_no_end_at_the_eos() -> None:
    seconds = {"blocks_none": 2.0, "blocks_dual": 1.0, "peer_dual": 3.0, "peer_dual_eos": 0.5}
    rates = {name: Rate((taken,), 10, 1, 10, 1.0, 1.0, 1.0) for name, taken in seconds.items()}
    found = summary(rates)
    assert found["fastest"]["peer_as_published"] == "peer_dual"
    assert found["fastest"]["peer"] == "peer_dual_eos"
    assert (found["ours_over_peer_as_published"], found["ours_over_peer"]) == (3.0, 0.5)
