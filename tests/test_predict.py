"""Predicted milliseconds: what is counted is what the shapes say, and how counts become time."""

from __future__ import annotations

from collections import Counter

import pytest

from jobs.bench import predict
from jobs.bench.account import Operation
from jobs.bench.gpu_models import MODELS
from jobs.bench.predict import DEVICES, GOALS, PROMPT, Device, lockstep, milliseconds
from lrd.belief_ops import MOST_BYTES


def test_an_operation_takes_the_longer_of_products_and_bytes() -> None:
    device = Device("toy", gemm=1e3, attention=1e2, copy=1e1, memory=1.0, launch=1.0)
    assert predict.seconds(Operation("gemm", 5000, 10), device) == 5
    assert predict.seconds(Operation("gemm", 10, 50), device) == 5
    assert predict.seconds(Operation("attention", 500, 10), device) == 5
    assert predict.seconds(Operation("other", 0, 20), device) == 2
    work = Counter({Operation("gemm", 5000, 10): 2, Operation("other", 0, 20): 1})
    assert milliseconds(work, device, "limit") == 10_000
    assert milliseconds(work, device, "eager") == 12_000
    idle = Counter({Operation("other", 0, 1): 20})
    assert milliseconds(idle, device, "eager") == 20_000, "no kernel is shorter than its launch"


def test_a_cached_pass_is_the_mean_over_rows_that_enter_a_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Costs that are linear in the rows give the mean exactly."""
    device = Device("toy", 1.0, 1.0, 1.0, 1.0, launch=0.0)

    def costs(name: str, rows: int, length: int, kind: str, way: str) -> Counter[Operation]:
        columns = predict.BLOCK if kind == "block" else length
        return Counter({Operation("gemm", float(rows * columns), 0): 1})

    monkeypatch.setattr(predict, "pass_of", costs)
    monkeypatch.setattr(predict, "beliefs_of", lambda name, slots, block, way: Counter())
    for slots in (1, 5, 16):
        found = predict.cached_pass("", slots, 640, device, "limit")
        step = slots * predict.BLOCK + slots * 640 / predict.PASSES
        assert found == pytest.approx(1e3 * step, rel=1e-4)


def test_a_batch_in_lockstep_waits_for_its_slowest() -> None:
    rows = {6: 1, 2: 3}
    assert lockstep(1, rows) == pytest.approx(1.0)
    assert lockstep(2, rows) == pytest.approx((2 * 9 / 16 + 6 * 7 / 16) / 3)
    assert lockstep(1000, rows) == pytest.approx(2.0)


def test_kept_bytes_are_those_of_the_models() -> None:
    assert predict.shaped("llada-8b").new_cache(0, 1).row_bytes == 512 * 1024
    assert predict.shaped("dream-7b").new_cache(0, 1).row_bytes == 56 * 1024


def test_the_gain_grows_with_the_slots() -> None:
    """At full shapes, on an H100: what the page's answer rests on."""
    gains = [
        predict.plain_pass("llada-8b", slots, 640, DEVICES[0], "limit")
        / predict.cached_pass("llada-8b", slots, 640, DEVICES[0], "limit")
        for slots in (1, 8)
    ]
    assert gains[0] < 2.5
    assert gains[1] > 2 * gains[0]
    assert set(MODELS) == {"llada-8b", "dream-7b"}


@pytest.mark.parametrize("name", GOALS)
def test_fused_passes_meet_the_goals(name: str) -> None:
    """16 slots of 512 positions on an H100, against 335 and 722 ms eager."""
    block = 512 if predict.WHOLE_CANVAS[name] else predict.BLOCK
    plain = predict.plain_pass(name, 16, PROMPT + 512, DEVICES[0], "fused", block)
    dual = predict.cached_pass(name, 16, PROMPT + 512, DEVICES[0], "fused")
    limit = predict.cached_pass(name, 16, PROMPT + 512, DEVICES[0], "limit")
    assert plain <= GOALS[name][0] * 1.01, "a chunk of the head reads all its weights: some 10 ms"
    assert limit < dual <= GOALS[name][1]


def test_beliefs_in_a_kernel_move_what_is_said() -> None:
    """And the head's products are those of the plain way, without the expected embedding's."""
    elements = 16 * predict.BLOCK * MODELS["llada-8b"].table_rows
    plain, fused = (
        predict.beliefs_of("llada-8b", 16, predict.BLOCK, way) for way in ("eager", "fused")
    )
    moved = [
        sum(n * one.moved for one, n in found.items() if one.kind == "other") / elements
        for found in (plain, fused)
    ]
    assert moved[0] > 900
    assert MOST_BYTES <= moved[1] <= MOST_BYTES + 8
    assert predict.flops(fused, "gemm") == 2 * elements * MODELS["llada-8b"].width


@pytest.mark.parametrize("words", [["--slots", "0"], ["--page", "none/such.md"]])
def test_bad_input_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    made = ["--devices", "H100", "--slots", "1", "--gen-lengths", "32", *words]
    assert predict.run(predict.parser().parse_args(made)) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
