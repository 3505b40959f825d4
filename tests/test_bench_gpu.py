"""The GPU check: its arithmetic, every stage rehearsed without a GPU, and what a stage costs that
fails or hangs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from jobs.bench import gpu, gpu_stages
from jobs.bench.gpu_models import MODELS, num_flops, small
from jobs.bench.gpu_stages import STAGES, Bench
from lrd.models.checkpoint import LoadedModel
from lrd.models.transformer import Transformer, TransformerConfig

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("name", "billions"), [("llada-8b", 8.02), ("dream-7b", 7.62)])
def test_shapes_are_those_of_the_models(name: str, billions: float) -> None:
    with torch.device("meta"):
        transformer = Transformer(MODELS[name])
    count = sum(p.numel() for p in transformer.parameters())
    assert count / 1e9 == pytest.approx(billions, abs=0.005)


@pytest.mark.parametrize("config", [*map(small, MODELS.values()), *MODELS.values()])
def test_flops_are_those_that_torch_counts(config: TransformerConfig) -> None:
    slots, length, read = 3, 40, 8
    with torch.device("meta"):
        ids = {"mask_token_id": 0, "eos_token_id": 1}
        model = LoadedModel(Transformer(config).requires_grad_(False), ids, None)
        embeds = torch.zeros(slots, length, config.width)
        at = torch.zeros(slots * read, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model.head(model.hidden(embeds, None, at))
    assert num_flops(config, slots * length, length, slots * read) == counter.get_total_flops()


def bench(seconds: float = 300.0) -> Bench:
    return Bench("cpu", seconds, time.monotonic())


def test_all_stages_together_take_less_than_eight_minutes() -> None:
    limits = [seconds + gpu.GRACE for _, seconds in STAGES.values()]
    assert sum(limits) <= 490


SAYS: dict[str, set[str]] = {
    "machine": {"tflops", "tb_per_s", "kernel"},
    "golden": {"passed", "records"},
    "syncs": {"waits", "setting"},
    "steps": {"hidden_ms", "hidden_mask_ms", "lrd_over_baseline", "formula_gib", "tokens_per_s"},
    "caches": {"block_ms", "full_ms", "gain_at_10_passes_a_block"},
    "beliefs": {"skipped"},
    "rows": {"bits_equal", "canvas_equal"},
    "profile": {"kernels", "top"},
    "compile": {"first_s", "eager_ms", "relative_error"},
    "graphs": {"skipped"},
}


@pytest.mark.parametrize(
    "stage", [pytest.param(s, marks=pytest.mark.slow) if s == "compile" else s for s in STAGES]
)
def test_a_stage_is_rehearsed(stage: str) -> None:
    """What each says, and that a line can be JSON."""
    lines = list(STAGES[stage][0](bench()))
    said: set[str] = set().union(*lines)
    assert said >= SAYS[stage]
    assert not [line for line in lines if "error" in line]
    assert json.loads(json.dumps(lines)) == lines
    if stage == "golden":
        assert lines[0]["passed"] >= 3
        assert lines[0]["code"] == 0
        assert any("llada_c_tied" in line for line in lines[0]["records"])
    elif stage in ("syncs", "rows", "steps", "caches", "compile"):
        assert {line["model"] for line in lines} == set(MODELS)
    if stage == "compile":
        assert all(line["relative_error"] < 0.02 for line in lines)


def test_no_case_begins_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of its own: 50 s a case, 120 s for all."""
    clock = [0.0]
    monkeypatch.setattr(gpu_stages.time, "monotonic", lambda: clock[0])

    def case(*_: Any) -> dict[str, Any]:
        clock[0] += 50.0
        return {}

    monkeypatch.setattr(gpu_stages, "_step_case", case)
    monkeypatch.setattr(gpu_stages, "CASES", ((32, 1),) * 5)
    monkeypatch.setattr(Bench, "small", False)
    monkeypatch.setattr(Bench, "model", lambda *_: None)
    begun = list(gpu_stages.steps(Bench("cpu", 120.0, 0.0)))
    assert len(begun) == 3, "at 0, 50 and 100 s"


def test_memory_that_runs_out_costs_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    def case(*_: Any) -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried\nmore")

    monkeypatch.setattr(gpu_stages, "_step_case", case)
    found = list(gpu_stages.steps(bench()))
    assert [line["out_of_memory"] for line in found] == ["CUDA out of memory. Tried"] * 2
    assert not any(map(gpu.is_wrong, found)), "a small GPU does not fail the check"


@pytest.mark.parametrize(
    ("script", "lines", "end"),
    [
        ("print('{}')", ["{}"], "ok"),
        ("print('{}', flush=True); import time; time.sleep(60)", ["{}"], "late"),
        ("print('{}'); raise ValueError('no luck')", ["{}"], "failed: ValueError: no luck"),
        ("import os; os._exit(9)", [], "failed: exit code 9"),
    ],
)
def test_how_a_stage_ends(script: str, lines: list[str], end: str) -> None:
    began = time.monotonic()
    assert list(gpu.lines_of([sys.executable, "-c", script], 3.0)) == [*lines, end]
    assert time.monotonic() - began < 30


def test_what_a_stage_has_started_ends_with_it(tmp_path: Path) -> None:
    """A test run of its own, say: it would keep the GPU busy for the stages after."""
    pid = tmp_path / "pid"
    inner = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    assert list(gpu.lines_of([sys.executable, "-c", outer], 3.0)) == ["late"]
    for _ in range(50):
        if not psutil.pid_exists(int(pid.read_text())):
            break
        time.sleep(0.1)
    assert not psutil.pid_exists(int(pid.read_text()))


WRONG_LINES: dict[str, dict[str, Any]] = {
    "golden": {"passed": 140, "failed": 1, "code": 1},
    "syncs": {"waits": True, "error": "called a synchronizing CUDA operation"},
    "beliefs": {"tokens_equal": False},
    "compile": {"error": "BackendCompilerFailed"},
}


@pytest.mark.parametrize("stage", WRONG_LINES)
def test_a_line_that_says_so_fails_its_stage(
    stage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fine, wrong = {"ms": 1.0}, WRONG_LINES[stage]
    for lines, code in (([fine], 0), ([fine, wrong, fine], 1)):
        monkeypatch.setitem(STAGES, stage, (lambda _, lines=lines: iter(lines), 1.0))
        assert gpu.run_stage(stage, "cpu", 60) == code
        assert len(capsys.readouterr().out.splitlines()) == len(lines)


def test_a_stage_that_fails_costs_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def lines_of(words: list[str], seconds: float) -> list[str]:
        stage = words[words.index("--stage") + 1]
        assert seconds == pytest.approx(STAGES[stage][1] + gpu.GRACE)
        return ["failed: no luck"] if stage == "rows" else [f'{{"stage": "{stage}"}}', "ok"]

    monkeypatch.setattr(gpu, "lines_of", lines_of)
    out = tmp_path / "found.jsonl"
    args = ["--device", "cpu", "--stages", "machine", "rows", "steps", "--out", str(out)]
    assert gpu.run(gpu.parser().parse_args(args)) == 1
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert lines[:2] == ['{"stage": "machine"}', '{"stage": "steps"}']
    ends = {"machine": "ok", "rows": "failed: no luck", "steps": "ok"}
    assert json.loads(lines[-1])["stages"] == ends
    assert out.read_text().splitlines() == lines
    assert "stage rows: failed: no luck" in told.err


def test_neither_ray_nor_datasets_is_needed() -> None:
    script = (
        "import sys; sys.modules.update(ray=None, datasets=None)\n"
        "from jobs.bench.gpu import run_stage\n"
        "for name in ('machine', 'syncs'): run_stage(name, 'cpu', 60)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert {json.loads(line)["stage"] for line in ran.stdout.splitlines()} == {"machine", "syncs"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "jobs.bench.gpu"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert len(ran.stderr.splitlines()) == 1
    assert "no CUDA device" in ran.stderr
