"""What `jobs.bench.gpu` measures, a stage at a time.

A stage yields one dict a measurement, as soon as it has it; `jobs.bench.gpu` runs each stage in a
process of its own, prints what it yields and holds it to its time.

Legend: S slots, K positions of a block, L positions of a slot.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from jobs.bench.gpu_models import (
    BASELINE,
    BLOCKS,
    MODELS,
    PASSES_A_BLOCK,
    REFINED,
    num_flops,
    random_model,
    small,
)
from jobs.bench.peaks import peak_of
from lrd import DecodingConfig, Engine, Request, belief_ops, nucleus
from lrd.beliefs import Belief
from lrd.config import PASS_ROWS, Compile, PassRows
from lrd.memory import memory_of
from lrd.models.checkpoint import LoadedModel
from lrd.previous_beliefs import PastBeliefs
from lrd.slots import Slots

ROOT = Path(__file__).parents[2]
CACHED_BLOCK = 32
BACKENDS = {0: "math", 1: "flash", 2: "memory-efficient", 3: "cuDNN"}

Found = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Bench:
    """Where and how large to measure."""

    device: str
    """cuda; cpu rehearses every stage at small shapes."""
    seconds: float
    """No case begins later than this."""
    began: float

    @property
    def small(self) -> bool:
        return self.device == "cpu"

    @property
    def late(self) -> bool:
        return time.monotonic() - self.began > self.seconds

    @property
    def peak_tflops(self) -> float | None:
        """Dense bfloat16 of this device; None where it is not known."""
        return None if self.small else peak_of(torch.cuda.get_device_name(), "bfloat16").tflops

    def model(self, name: str, compile: Compile = "none") -> LoadedModel:
        """Random weights at the model's shape."""
        config = small(MODELS[name]) if self.small else MODELS[name]
        return random_model(config, self.device, compile)

    def sync(self) -> None:
        """Wait for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def milliseconds(self, call: Callable[[], Any], warm: int = 2, timed: int = 5) -> float:
        """Median, each call waited for."""
        for _ in range(warm):
            call()
        taken = []
        for _ in range(timed):
            self.sync()
            began = time.perf_counter()
            call()
            self.sync()
            taken.append(1e3 * (time.perf_counter() - began))
        return median(taken)

    def forget_peak(self) -> None:
        """Start to measure the peak of memory anew."""
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float | None:
        """Peak of allocated memory since `forget_peak`."""
        return torch.cuda.max_memory_allocated() / 2**30 if self.device == "cuda" else None


def busy_engine(model: LoadedModel, config: DecodingConfig, num_slots: int, prompt: int) -> Engine:
    """An engine with fixed shapes whose slots are all taken at its first pass."""
    engine = Engine(model, config, num_slots, prompt, fixed_shapes=True)
    for index in range(num_slots):
        engine.submit(Request(index, [2 + index] * prompt, index))
    return engine


def machine(bench: Bench) -> Iterator[Found]:
    """What the device is, and what it reaches: products, copies, attention."""
    if bench.device == "cuda":
        of = torch.cuda.get_device_properties(0)
        yield {
            "device": of.name,
            "gib": round(of.total_memory / 2**30, 1),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "triton": importlib.util.find_spec("triton") is not None,
        }
    n = 256 if bench.small else 8192
    a, b = (torch.randn(n, n, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    yield {"what": "product", "tflops": 2 * n**3 / bench.milliseconds(lambda: a @ b) / 1e9}
    x = torch.empty(1 << (20 if bench.small else 32), device=bench.device, dtype=torch.uint8)
    y = torch.empty_like(x)
    moved = 2 * x.numel()
    yield {"what": "copy", "tb_per_s": moved / bench.milliseconds(lambda: y.copy_(x)) / 1e9}
    for name, heads, kv in (("llada-8b", 32, 32), ("dream-7b", 28, 4)):
        yield from _attention(bench, name, heads, kv)


def _attention(bench: Bench, name: str, heads: int, kv: int) -> Iterator[Found]:
    """Which kernel torch picks with and without a mask, and how fast it is."""
    S, L, E = (2, 32, 16) if bench.small else (16, 640, 128)
    query, key, value = (
        torch.randn(S, L, number, E, device=bench.device, dtype=torch.bfloat16).transpose(1, 2)
        for number in (heads, kv, kv)
    )
    mask = torch.ones(S, 1, 1, L, dtype=torch.bool, device=bench.device)
    mask[..., :7] = False
    whole = [x.repeat_interleave(heads // kv, dim=1) for x in (key, value)]
    ways: dict[str, tuple[Tensor, Tensor, Tensor | None]] = {
        "mask, kv heads repeated": (whole[0], whole[1], mask),
        "no mask, kv heads shared": (key, value, None),
        "mask, kv heads shared": (key, value, mask),
    }
    for what, (k, v, m) in ways.items():
        shared = k.shape[1] != heads
        found: Found = {"what": "attention", "model": name, "way": what}
        try:
            attend = partial(
                F.scaled_dot_product_attention, query, k, v, attn_mask=m, enable_gqa=shared
            )
            ms = bench.milliseconds(attend)
            kind = torch._fused_sdp_choice(query, k, v, attn_mask=m, enable_gqa=shared)
            found |= {
                "kernel": BACKENDS.get(int(kind), str(kind)),
                "ms": ms,
                "tflops": 4 * S * L * L * heads * E / ms / 1e9,
            }
        except RuntimeError as error:
            found["error"] = str(error).partition("\n")[0][:200]
        yield found


def golden(bench: Bench) -> Iterator[Found]:
    """The golden records on this device, by the tests that hold them on a CPU."""
    if importlib.util.find_spec("pytest") is None:
        yield {"error": "pytest is not installed"}
        return
    which = ["tests/test_golden.py"] + ([] if bench.small else ["tests/test_block_cache.py"])
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts="]
    words += [
        "-m",
        "not slow and not gpu",
        "-k",
        "small and llada_c_tied" if bench.small else "golden or record",
    ]
    if importlib.util.find_spec("xdist") is not None and not bench.small:
        words += ["-n", str(min(6, os.cpu_count() or 1))]
    left = max(5.0, bench.seconds - (time.monotonic() - bench.began))
    try:
        ran = subprocess.run(
            [*words, *which],
            cwd=ROOT,
            env={**os.environ, "LRD_TEST_DEVICE": bench.device},
            capture_output=True,
            text=True,
            timeout=left,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        text = (error.stdout or b"").decode(errors="replace")
        yield {"error": f"not done after {left:.0f} s", "tail": text[-500:]}
        return
    counts = {
        word: int(number)
        for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", ran.stdout)
    }
    records = re.search(r"=+ golden records =+\n(.*?)\n=", ran.stdout + "\n=", re.DOTALL)
    yield {
        **counts,
        "failed_tests": re.findall(r"^FAILED (\S+)", ran.stdout, re.MULTILINE)[:40],
        "records": records[1].splitlines() if records else [],
        "code": ran.returncode,
        **({} if counts else {"tail": (ran.stdout + ran.stderr)[-500:]}),
    }


def syncs(bench: Bench) -> Iterator[Found]:
    """Whether anything inside a pass waits for the device: CUDA raises where it does."""
    gen = {"gen_length": 32, "block_length": 16}
    settings = {
        "baseline": DecodingConfig.preset("baseline", **gen),
        "fast": DecodingConfig.preset("fast", **gen),
        "drawn": DecodingConfig.preset("fast", **gen, temperature=0.7, sample_top_p=0.9),
        "dual": DecodingConfig.preset("fast", **gen, kv_cache="dual", suffix=1),
        "prefix, refreshed": DecodingConfig.preset(
            "fast", **gen, kv_cache="prefix", cache_refresh=3
        ),
    }
    for name in MODELS:
        model = random_model(small(MODELS[name]), bench.device, "none")
        for setting, config in settings.items():
            engine = busy_engine(model, config, 3, 9)
            for _ in range(3):  # cuBLAS and the allocator may wait at first.
                engine.step()
            found: Found = {"model": name, "setting": setting, "checked": bench.device == "cuda"}
            try:
                with _no_waits(bench.device):
                    while engine.busy:
                        engine.step()
                found["waits"] = False
            except RuntimeError as error:
                found |= {"waits": True, "error": str(error).partition("\n")[0][:300]}
            yield found


@contextmanager
def _no_waits(device: str) -> Iterator[None]:
    """Inside a pass, not between two, where the host reads which samples have ended."""
    advance = Slots.advance

    def watched(self: Slots) -> int:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            return advance(self)
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")

    with mock.patch.object(Slots, "advance", watched):
        yield


CASES = (
    *((512, 16), (512, 1), (256, 16), (1024, 16), (512, 8)),
    *((256, 1), (1024, 1), (512, 32), (1024, 32), (512, 64)),
)
"""gen_length and slots, the most telling first: later ones may find no time."""


def steps(bench: Bench) -> Iterator[Found]:
    """Passes without a cache: the forward pass alone, and a step of the baseline and of LRD."""
    for gen, num_slots in [(32, 2)] if bench.small else CASES:
        for name in MODELS:
            if bench.late:
                return
            yield _guarded(bench, name, gen, num_slots, _step_case)


def caches(bench: Bench) -> Iterator[Found]:
    """The same with a dual cache: passes over blocks, and the full pass before them."""
    for gen, num_slots in [(32, 2)] if bench.small else CASES:
        for name in MODELS:
            if bench.late:
                return
            yield _guarded(bench, name, gen, num_slots, _cached_case)


_MODELS: dict[str, LoadedModel] = {}


def _guarded(
    bench: Bench,
    name: str,
    gen: int,
    num_slots: int,
    case: Callable[[Bench, str, LoadedModel, int, int], Found],
) -> Found:
    """A case, or why there is none. Both models fit beside each other from 40 GB on."""
    found: Found = {"model": name, "gen_length": gen, "slots": num_slots}
    try:
        if name not in _MODELS:
            _MODELS[name] = bench.model(name)
        return found | case(bench, name, _MODELS[name], gen, num_slots)
    except torch.OutOfMemoryError as error:
        bench.forget_peak()
        return found | {"out_of_memory": str(error).partition("\n")[0][:100]}


def _prompt(bench: Bench) -> int:
    return 8 if bench.small else 128


def _step_case(bench: Bench, name: str, model: LoadedModel, gen: int, num_slots: int) -> Found:
    prompt, block = _prompt(bench), 16 if bench.small else BLOCKS[name]
    config = REFINED.model_copy(update={"gen_length": gen, "block_length": block})
    plain = BASELINE.model_copy(update={"gen_length": gen, "block_length": block})
    K, L = config.block_tokens, prompt + gen
    bench.forget_peak()
    found: Found = {}
    with torch.inference_mode():
        embeds = model.embed(torch.full((num_slots, L), 2, device=bench.device))
        columns_K = torch.arange(prompt, prompt + K, device=bench.device)
        at = (torch.arange(num_slots, device=bench.device)[:, None] * L + columns_K).flatten()
        mask = torch.ones(num_slots, L, dtype=torch.long, device=bench.device)
        found["hidden_ms"] = bench.milliseconds(lambda: model.hidden(embeds, None, at))
        found["hidden_mask_ms"] = bench.milliseconds(lambda: model.hidden(embeds, mask, at))
    for label, decoding in (("baseline_ms", plain), ("lrd_ms", config)):
        found[label] = _step_ms(bench, model, decoding, num_slots, prompt)
    found["lrd_over_baseline"] = found["lrd_ms"] / found["baseline_ms"]
    found["tokens_per_s"] = 1e3 * num_slots / found["lrd_ms"]
    if bench.peak_tflops:
        flops = num_flops(model.transformer.config, num_slots * L, L, num_slots * K)
        found["mfu"] = flops / found["hidden_mask_ms"] / 1e9 / bench.peak_tflops
    found["peak_gib"] = bench.peak_gib()
    found["formula_gib"] = memory_of(model, config, prompt, num_slots, True).total / 2**30
    return found


def _step_ms(
    bench: Bench, model: LoadedModel, config: DecodingConfig, num_slots: int, prompt: int
) -> float:
    """A step of all slots, the first one (with its placing, and its full pass) left out."""
    engine = busy_engine(model, config, num_slots, prompt)
    ms = bench.milliseconds(engine.step)
    if engine.oom_events:
        raise torch.OutOfMemoryError(engine.oom_events[0])
    return ms


def _cached_case(bench: Bench, name: str, model: LoadedModel, gen: int, num_slots: int) -> Found:
    prompt, block = _prompt(bench), 16 if bench.small else CACHED_BLOCK
    config = REFINED.model_copy(update={"gen_length": gen, "block_length": block})
    dual = config.model_copy(update={"kv_cache": "dual"})
    bench.forget_peak()
    block_ms = _step_ms(bench, model, dual, num_slots, prompt)
    found: Found = {"block_ms": block_ms, "peak_gib": bench.peak_gib()}
    found["formula_gib"] = memory_of(model, dual, prompt, num_slots, True).total / 2**30
    refreshed = dual.model_copy(update={"cache_refresh": 1})
    found["full_ms"] = _step_ms(bench, model, refreshed, num_slots, prompt)
    whole_ms = _step_ms(bench, model, config, num_slots, prompt)
    mean_ms = (found["full_ms"] + (PASSES_A_BLOCK - 1) * block_ms) / PASSES_A_BLOCK
    return found | {
        "no_cache_ms": whole_ms,
        "gain_at_10_passes_a_block": whole_ms / mean_ms,
        "tokens_per_s": 1e3 * num_slots / mean_ms,
    }


def beliefs(bench: Bench) -> Iterator[Found]:
    """The beliefs' kernels against the plain functions: equality, time and bytes a second."""
    if bench.small:
        yield {"skipped": "kernels run on a GPU; tests run them in Triton's interpreter"}
        return
    for name in MODELS:
        yield {"model": name, **_belief_case(bench, MODELS[name].table_rows, MODELS[name].width)}


def _belief_case(bench: Bench, V: int, D: int, n: int = 512) -> Found:
    """Of n rows of random logits, whose nuclei hold some hundred tokens."""
    generator = torch.Generator(bench.device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=bench.device)

    before_nV, logits_nV = (5 * random(n, V)).bfloat16(), (5 * random(n, V)).bfloat16()
    table_VD, rows_n = random(V, D).bfloat16(), torch.arange(n, device=bench.device)
    past = PastBeliefs(1, n, V, table_VD.device)
    past.kl_then_keep(Belief.of_logits(before_nV, 0), rows_n)
    s_nV, log_z_n = (x.clone() for x in past.rows())
    belief = Belief.of_logits(logits_nV, 0)
    kl_n = past.kl_then_keep(belief, rows_n)
    plain_nD = nucleus.expected_embedding(belief.p_NV, belief.token_N, 0.9, table_VD, True)
    found, found_kl_n, nuclei = belief_ops.read(logits_nV, 0, 0.9, (s_nV, log_z_n), rows_n)
    scratch_nV = logits_nV.clone()
    mixed_nD = belief_ops.expected_embedding(scratch_nV, nuclei, table_VD, 0)
    read_ms = bench.milliseconds(
        lambda: belief_ops.read(logits_nV, 0, 0.9, (s_nV, log_z_n), rows_n)
    )
    mix_ms = bench.milliseconds(
        lambda: belief_ops.expected_embedding(scratch_nV, nuclei, table_VD, 0)
    )
    return {
        "tokens_equal": bool((found.token_N == belief.token_N).all()),
        "entropy_gap": float((found.entropy_N - belief.entropy_N).abs().max()),
        "kl_gap": float((found_kl_n - kl_n).abs().max()),
        "embedding_gap": float((mixed_nD - plain_nD).float().norm() / plain_nD.float().norm()),
        "nucleus_tokens": float(nuclei.extent_n3[:, 0].float().mean()),
        "read_ms": read_ms,
        "tb_per_s": 8 * logits_nV.numel() / read_ms / 1e9,
        "mix_ms": mix_ms,
    }


def rows(bench: Bench) -> Iterator[Found]:
    """Whether a row's result depends on its slot, its neighbours and how many they are."""
    gen, prompt = (16, 8) if bench.small else (64, 128)
    config = DecodingConfig(
        gen_length=gen, block_length=gen // 4, tokens_per_step=4, max_refine_steps=2
    )
    same = [[2 + n % 50 for n in range(prompt - 3)]] * 8
    other = [
        [3 + (n * k) % 60 for n in range(prompt - 3 - k)] for k in range(1, 8) if k < prompt - 3
    ]
    for name in MODELS:
        if bench.late:
            return
        model = bench.model(name)

        in_all = _decoded(model, config, same, 8, "all")
        yield {
            "model": name,
            "what": "one prompt in 8 slots, bits equal to slot 0's",
            "equal": [one == in_all[0] for one in in_all],
        }
        for pass_rows in PASS_ROWS:
            alone = _decoded(model, config, same[:1], 8, pass_rows)[0]
            among = _decoded(model, config, [same[0], *other], 8, pass_rows)[0]
            yield {
                "model": name,
                "what": f"alone against among others, pass_rows {pass_rows}",
                "canvas_equal": alone[0] == among[0],
                "bits_equal": alone == among,
            }
        one, eight = _decoded(model, config, same[:1], 1, "all")[0], in_all[0]
        yield {
            "model": name,
            "what": "1 slot against 8",
            "canvas_equal": one[0] == eight[0],
            "bits_equal": one == eight,
        }
        del model


def _decoded(
    model: LoadedModel,
    config: DecodingConfig,
    prompts: list[list[int]],
    num_slots: int,
    pass_rows: PassRows,
) -> list[tuple[list[int], str]]:
    """Canvas and trace of every prompt; slots have room for the longest prompt of the stage."""
    room = max(map(len, prompts)) + 3
    engine = Engine(model, config, num_slots, room, fixed_shapes=True, pass_rows=pass_rows)
    for index, ids in enumerate(prompts):
        engine.submit(Request(index, ids, 0))
    samples = []
    while engine.busy:
        samples += engine.step()
    return [(one.canvas, str(one.kl_trace)) for one in sorted(samples, key=lambda one: one.key)]


def profile(bench: Bench) -> Iterator[Found]:
    """Which kernels a step of LRD runs, how many, and how long."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    on_cuda = bench.device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    key = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    gen, num_slots = (32, 2) if bench.small else (512, 16)
    for name in MODELS:
        for cache in ("none", "dual"):
            if bench.late:
                return
            block = 16 if bench.small else (CACHED_BLOCK if cache == "dual" else BLOCKS[name])
            config = REFINED.model_copy(
                update={"gen_length": gen, "block_length": block, "kv_cache": cache}
            )
            engine = busy_engine(bench.model(name), config, num_slots, _prompt(bench))
            for _ in range(3):
                engine.step()
            bench.sync()
            with profiler(activities=activities) as seen:
                engine.step()
                bench.sync()
            events = [e for e in seen.key_averages() if getattr(e, key)]
            top = sorted(events, key=lambda e: -getattr(e, key))[:14]
            yield {
                "model": name,
                "kv_cache": cache,
                "kernels": sum(e.count for e in events),
                "ms": sum(getattr(e, key) for e in events) / 1e3,
                "top": [[e.key[:60], round(getattr(e, key) / 1e3, 3), e.count] for e in top],
            }
            del engine


def compiled(bench: Bench) -> Iterator[Found]:
    """Time to compile and a pass's time with `compile`."""
    return _compiled(bench, "compile")


def graphs(bench: Bench) -> Iterator[Found]:
    """The same with `graphs`, in a thread that is not the main one, as a replica has it."""
    if bench.device != "cuda":
        yield {"skipped": "CUDA graphs need a CUDA device"}
        return
    yield from _compiled(bench, "graphs")


def _compiled(bench: Bench, how: Compile) -> Iterator[Found]:
    found: list[Found] = []

    def work() -> None:
        try:
            for name in MODELS:
                found.extend(_compile_cases(bench, name, how))
        except Exception as error:  # Reported as what was found.
            found.append({"error": f"{type(error).__name__}: {str(error)[:300]}"})

    thread = threading.Thread(target=work, name="passes")
    thread.start()
    while thread.is_alive() or found:
        while found:
            yield found.pop(0)
        thread.join(0.2)


def _compile_cases(bench: Bench, name: str, how: Compile) -> Iterator[Found]:
    gen, block = (32, 16) if bench.small else (512, CACHED_BLOCK)
    prompt = _prompt(bench)
    plain, model = bench.model(name, "eager"), bench.model(name, how)
    for num_slots in (2,) if bench.small else (16, 1):
        for cache in ("dual",) if bench.small else ("none", "dual"):
            if bench.late:
                return
            config = REFINED.model_copy(
                update={"gen_length": gen, "block_length": block, "kv_cache": cache}
            )
            engine = busy_engine(model, config, num_slots, prompt)
            began = time.monotonic()
            engine.step()
            bench.sync()
            seconds = time.monotonic() - began
            ms = bench.milliseconds(engine.step, warm=3)
            with torch.inference_mode():
                gap = _gap(bench, plain, model, num_slots, prompt, gen)
            yield {
                "model": name,
                "slots": num_slots,
                "kv_cache": cache,
                "first_s": seconds,
                "ms": ms,
                "eager_ms": _step_ms(bench, plain, config, num_slots, prompt),
                "relative_error": gap,
                "peak_gib": bench.peak_gib(),
            }


def _gap(
    bench: Bench, plain: LoadedModel, model: LoadedModel, num_slots: int, prompt: int, gen: int
) -> float:
    """Relative difference of the final states, compiled against eager."""
    L = prompt + gen
    ids = torch.arange(num_slots * L, device=bench.device).view(num_slots, L) % 1000
    embeds = model.embed(ids)
    at = torch.arange(num_slots * L, device=bench.device)
    ours, theirs = (m.hidden(embeds, None, at).float() for m in (model, plain))
    return float((ours - theirs).norm() / theirs.norm())


STAGES: dict[str, tuple[Callable[[Bench], Iterator[Found]], float]] = {
    "machine": (machine, 25),
    "golden": (golden, 85),
    "syncs": (syncs, 20),
    "steps": (steps, 90),
    "caches": (caches, 55),
    "beliefs": (beliefs, 15),
    "rows": (rows, 30),
    "profile": (profile, 35),
    "compile": (compiled, 60),
    "graphs": (graphs, 45),
}
"""Stage → seconds that it may take; 460 in all."""
