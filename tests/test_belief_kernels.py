"""The kernels of `lrd/belief_kernels.py`, in Triton's interpreter, against the plain functions."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from helpers.engine import PROMPTS, assert_same, drain, requests
from helpers.few import spread
from helpers.logits import random_logits
from helpers.triton_interpreter import counted_bytes, mend, needs_interpreter
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import lrd
from lrd import belief_ops
from lrd.beliefs import EXCLUDED, Belief
from lrd.commit_rules import gumbel_tokens
from lrd.draws import Draws
from lrd.models.checkpoint import LoadedModel
from lrd.nucleus import nucleus
from lrd.previous_beliefs import PastBeliefs

pytestmark = needs_interpreter
MASK = 5
SMALL, LLADA, DREAM = 752, 126_464, 152_064
SCALES = torch.tensor([[0.02], [0.3], [2.0], [4.0], [9.0]])
"""Standard deviations of a test's rows, from the vaguest to the surest."""
TOP_P = [0.0, 0.9, 1.0]


@pytest.fixture(autouse=True)
def large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes its time for every tile."""
    mend()
    monkeypatch.setattr(belief_ops, "TILE", 1 << 14)
    monkeypatch.setattr(belief_ops, "WIDE", 1 << 14)


@dataclass
class Read:
    """What the kernels say of some logits, and what the plain functions say."""

    belief: Belief
    kl: Tensor
    past: tuple[Tensor, Tensor]
    found: belief_ops.BeliefSummary
    found_kl: Tensor
    found_past: tuple[Tensor, Tensor]
    nuclei: belief_ops.Nuclei


def read(
    logits: Tensor,
    before: Tensor | None = None,
    top_p: float | None = 0.9,
    rows: Tensor | None = None,
) -> Read:
    n, V = logits.shape
    rows = torch.arange(n) if rows is None else rows
    past = PastBeliefs(1, int(rows.max()) + 1, V, logits.device)
    if before is not None:
        past.kl_then_keep(Belief.of_logits(before, MASK), rows)
    kept = tuple(x.clone() for x in past.rows())
    belief, untouched = Belief.of_logits(logits, MASK), logits.clone()
    kl = past.kl_then_keep(belief, rows)
    found, found_kl, nuclei = belief_ops.read(logits, MASK, top_p, kept, rows)
    assert torch.equal(logits.nan_to_num(), untouched.nan_to_num())
    return Read(belief, kl, past.rows(), found, found_kl, kept, nuclei)


def assert_equal_numbers(one: Read, tolerance: float) -> None:
    assert torch.equal(one.found.token_N, one.belief.token_N)
    for found, expected in (
        (one.found.entropy_N, one.belief.entropy_N),
        (one.found.log_z_N, one.belief.log_z_N),
        (one.found_kl, one.kl),
        (one.found_past[1], one.past[1]),
    ):
        assert torch.allclose(found, expected, atol=tolerance, rtol=1e-6, equal_nan=True)
    assert torch.equal(one.found_past[0].nan_to_num(), one.past[0].nan_to_num())


def weights(logits: Tensor, nuclei: belief_ops.Nuclei) -> Tensor:
    """p̄ [n, V] that the extents describe."""
    (count, edge, last), (top, mass) = nuclei.extent_n3.T[..., None], nuclei.scale_n2.T[..., None]
    shift = belief_ops.SHIFTS[logits.dtype]
    x = logits.float()
    x[:, MASK] = -torch.inf
    x = x + 0.0
    key = x.view(torch.int32)
    key = torch.where(key < 0, key ^ 0x7FFFFFFF, key) >> shift
    ids = torch.arange(x.shape[1])
    inside = (key > edge) | ((key == edge) & (ids <= last))
    if edge.min() > -(2**31):  # Else it is the whole belief.
        alone = torch.nn.functional.one_hot(nuclei.ids_nk[:, 0].long(), x.shape[1]).bool()
        inside = torch.where(count == 1, alone, inside)  # Then no edge is searched.
        assert torch.equal(inside.sum(-1), count[:, 0].long())
    return (x - top).exp() / mass * inside


def assert_equal_nuclei(p: Tensor, found: Tensor, top_p: float) -> int:
    """Returns how many rows were decided by more than rounding; these hold the same tokens."""
    expected, clear = nucleus(p, top_p), 0
    for row in range(len(p)):
        mass = p[row].double().sort(descending=True).values.cumsum(-1)
        differs = (found[row] > 0) != (expected[row] > 0)
        if (mass - top_p).abs().min() > 2e-6 and top_p < 1:
            clear += 1
            assert not differs.any()
        # Equals at the edge, or next to it.
        assert differs.sum() <= 4 or top_p == 1
        assert torch.allclose(found[row], expected[row], atol=1e-5)
    return clear


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("vocabulary", [SMALL, LLADA, DREAM])
def test_says_what_the_plain_functions_say(vocabulary: int, dtype: torch.dtype) -> None:
    scales = SCALES if vocabulary == SMALL else SCALES[[1, 3]]
    before = (random_logits(len(scales), vocabulary, scale=1.0) * scales).to(dtype)
    move = random_logits(len(scales), vocabulary, scale=0.1, seed=1)
    logits = (before.float() + move * scales).to(dtype)
    one = read(logits, before)
    assert_equal_numbers(one, 1e-4 if vocabulary > SMALL else 4e-6)
    assert one.kl.min() > 1e-6
    assert assert_equal_nuclei(one.belief.p_NV, weights(logits, one.nuclei), 0.9)

    exact = logits.double()
    exact[:, MASK] = -torch.inf
    p = exact.softmax(-1)
    entropy = -torch.special.xlogy(p, p).sum(-1)
    assert torch.allclose(one.found.entropy_N.double(), entropy, atol=4e-6)


@pytest.mark.parametrize("top_p", TOP_P)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_small_and_large_nuclei_are_mixed(
    dtype: torch.dtype, top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of up to 32 tokens gather, the others share a product, in a width of no whole tile."""
    monkeypatch.setattr(belief_ops, "MOST_IDS", 32)
    logits = (random_logits(5, SMALL, scale=1.0) * SCALES).to(dtype)
    one = read(logits, top_p=top_p)
    p_bar = nucleus(one.belief.p_NV, top_p)
    counts = one.nuclei.extent_n3[:, 0]
    if top_p == 0.9:
        assert counts.min() <= 32 < counts.max()
    assert assert_equal_nuclei(one.belief.p_NV, weights(logits, one.nuclei), top_p) or top_p == 1
    table = torch.randn(SMALL, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = p_bar.to(dtype).double() @ table.double()
    found = belief_ops.expected_embedding(logits, one.nuclei, table, MASK)
    assert found.dtype == dtype
    near = 5e-3 if dtype == torch.bfloat16 else 1e-5
    assert torch.allclose(found.double(), expected, atol=near, rtol=near)


EDGES = {
    "equals at the maximum": ([(0, 9), (3, 9)], 9.0),
    "equals at the edge": ([(20, 500)], 3.0),
    "equals everywhere": ([(0, SMALL)], 1.0),
    "zeros of both signs": ([(0, 200), (200, 400)], 0.0),
    "excluded": ([(10, SMALL)], -math.inf),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", EDGES)
def test_equals_and_excluded_tokens(name: str, dtype: torch.dtype) -> None:
    """Among equals the lower ids belong to the nucleus; −inf excludes a token."""
    spans, value = EDGES[name]
    logits = random_logits(3, SMALL, scale=1.0, seed=3).clamp(max=8).to(dtype)
    for first, last in spans:
        logits[:, first:last] = value
    if value == 0.0:
        logits = logits.clamp(max=0.0)
        logits[:, 100:300] = -0.0
    logits[:, MASK] = 100.0
    one = read(logits, random_logits(3, SMALL, seed=4).to(dtype))
    assert_equal_numbers(one, 1e-5)
    assert assert_equal_nuclei(one.belief.p_NV, weights(logits, one.nuclei), 0.9)
    size = one.nuclei.extent_n3[:, 0].tolist()
    for row, count in enumerate(size):
        ids = one.nuclei.ids_nk[row, :count]
        assert torch.equal(ids, (weights(logits, one.nuclei)[row] > 0).nonzero()[:, 0].int())


@pytest.mark.parametrize("top_p", [*TOP_P, None])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_without_a_belief_numbers_are_nan_and_neighbours_are_not(
    dtype: torch.dtype, top_p: float | None
) -> None:
    logits = random_logits(6, SMALL).to(dtype)
    logits[0, 7], logits[1, 7], logits[2, 7] = torch.nan, torch.inf, -torch.inf
    logits[3], logits[4, MASK] = -torch.inf, torch.nan
    one = read(logits, random_logits(6, SMALL, seed=1).to(dtype), top_p)
    is_bad = torch.tensor([True, True, False, True, False, False])
    for values in (one.found.entropy_N, one.found_kl, one.found_past[1]):
        assert torch.equal(values.isnan(), is_bad)
    good = ~is_bad
    assert torch.equal(one.found.token_N[good], one.belief.token_N[good])
    assert torch.allclose(one.found.entropy_N[good], one.belief.entropy_N[good], atol=1e-5)
    assert ((one.found.token_N >= 0) & (one.found.token_N < SMALL)).all()
    if top_p is None:
        return
    table = torch.randn(SMALL, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = nucleus(one.belief.p_NV, top_p).to(dtype) @ table
    found = belief_ops.expected_embedding(logits, one.nuclei, table, MASK)
    assert torch.allclose(found[good].float(), expected[good].float(), atol=2e-2)


def test_rows_of_the_past_come_in_any_order() -> None:
    logits, before = random_logits(3, SMALL), random_logits(3, SMALL, seed=1)
    one = read(logits, before, rows=torch.tensor([4, 0, 2]))
    assert_equal_numbers(one, 4e-6)
    assert one.found_past[0][[1, 3]].abs().sum() == 0


def test_a_first_pass_has_no_past() -> None:
    assert_equal_numbers(read(random_logits(3, SMALL)), 4e-6)


def test_logits_may_be_a_part_of_wider_rows() -> None:
    """As of a head that pads its columns."""
    padded = random_logits(3, SMALL + 8, scale=3.0)
    logits = padded[:, :SMALL]
    one = read(logits, random_logits(3, SMALL, seed=1))
    assert_equal_numbers(one, 4e-6)
    table = torch.randn(SMALL, 8, generator=torch.Generator().manual_seed(0))
    found = belief_ops.expected_embedding(logits, one.nuclei, table, MASK)
    assert torch.allclose(found, nucleus(one.belief.p_NV, 0.9) @ table, atol=1e-5)


def test_no_rows() -> None:
    nothing = torch.zeros(0, SMALL)
    found, kl, nuclei = belief_ops.read(
        nothing, MASK, 0.9, (torch.zeros(4, SMALL), torch.zeros(4)), torch.zeros(0).long()
    )
    mixed = belief_ops.expected_embedding(nothing, nuclei, torch.zeros(SMALL, 8), MASK)
    assert found.token_N.shape == kl.shape == (0,)
    assert mixed.shape == (0, 8)


MOST_BYTES = belief_ops.MOST_BYTES


@pytest.mark.parametrize(
    ("scale", "centre", "surest", "num_bytes"),
    [
        (1.0, 0.0, 40.0, 8),  # 2 for the maximum; 2 + 2 + 2 for the sums and the past.
        (4.5, 30.0, 0.0, 12),  # 2 for a further cut of keys of one sign, 2 for the ids.
        (0.5, 0.0, 0.0, MOST_BYTES),  # 6 for keys of both signs; 2 + 2 for p̄ of many tokens.
    ],
    ids=["one token", "hundreds", "most of the vocabulary"],
)
def test_bytes_that_are_moved(scale: float, centre: float, surest: float, num_bytes: float) -> None:
    """Every logit and what is kept of it, counted as often as it is loaded or stored."""
    logits = (random_logits(2, LLADA, scale=scale) + centre).bfloat16()
    logits[:, 77] += surest
    with counted_bytes() as counts:
        one = read(logits)
        belief_ops.write_weights(logits, one.nuclei, MASK)
    ids = one.nuclei.extent_n3[:, 0].clamp(max=belief_ops.MOST_IDS).sum().item() * 4
    moved = (sum(counts.values()) - ids) / logits.numel()
    assert moved == pytest.approx(num_bytes, abs=0.01)
    assert moved <= MOST_BYTES + 0.01


SHORT = lrd.DecodingConfig(
    gen_length=4, r_f=0.3, max_refine_steps=2, tau_refine=0.05, entropy_threshold=0.9
)
SETTINGS = {
    "by threshold": SHORT,
    "not mixed": SHORT.model_copy(update={"r_f": 0.0}),
    "drawn": SHORT.model_copy(update={"temperature": 0.8}),
    "by margin": SHORT.model_copy(update={"entropy_threshold": None, "confidence": "margin"}),
    "a cache": SHORT.model_copy(
        update={"block_length": 2, "kv_cache": "dual", "suffix": 0, "cache_refresh": 3}
    ),
    "credited": SHORT.model_copy(update={"credit_alpha": 1.5, "credit_decay": 0.9}),
    "by mass": SHORT.model_copy(update={"mix": "remix", "mix_share": 0.8, "reject_js": 0.05}),
    "rejected": SHORT.model_copy(update={"reject_js": 0.05}),
    "three tokens": SHORT.model_copy(
        update={"mix": "topk", "soft_suffix": True, "block_length": 2}
    ),
    "stopped by a gap": SHORT.model_copy(
        update={"stop_gap_early": 2.5, "stop_gap_start": 2, "block_length": 2}
    ),
}


@pytest.mark.parametrize("setting", spread(SETTINGS))
def test_an_engine_decodes_the_same_by_kernels(
    setting: str, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens, passes and stops are equal; traces to rounding."""
    for name, value in (("MOST_IDS", 8), ("TILE", 64), ("WIDE", 64)):
        monkeypatch.setattr(belief_ops, name, value)
    asked = requests(PROMPTS[:2])
    found = []
    for mode in ("off", "on"):
        monkeypatch.setenv(belief_ops.SWITCH, mode)
        engine = lrd.Engine(model, SETTINGS[setting], 2, 9, fixed_shapes=True)
        found.append(drain(engine, asked))
    assert_same(found[1], found[0])
    assert max(sample.num_forwards for sample in found[0].values()) > 2


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_tokens_are_drawn_with_the_same_numbers(temperature: float) -> None:
    """Excluded tokens never; log-beliefs of −1e30 stand for them."""
    n = 40
    log_p = random_logits(n, SMALL, scale=2.0).log_softmax(-1)
    log_p[:, ::3] = EXCLUDED
    warm = torch.tensor([temperature, 0.0, temperature, temperature], dtype=torch.float64)
    positions = torch.arange(10).expand(4, 10)
    made = Draws.of(torch.arange(4), torch.arange(4), positions, warm, SMALL)
    rows = torch.arange(n).flip(0)
    expected = gumbel_tokens(log_p, made.temperatures(rows), made.uniform(rows))
    found = belief_ops.draw_tokens(log_p, made.states(rows), made.temperatures(rows))
    assert torch.equal(found, expected)
    assert torch.equal(found[20:30], log_p[20:30].argmax(-1))  # The row at temperature 0.
    assert len(set(found.tolist())) > 30


# What a GPU would be given.


@pytest.mark.parametrize(
    ("arch", "dtype"),
    [
        (90, "bfloat16"),
        *(pytest.param(arch, "bfloat16", marks=pytest.mark.slow) for arch in (80, 86, 100)),
        *(pytest.param(arch, "float32", marks=pytest.mark.slow) for arch in (80, 90)),
    ],
)
def test_kernels_compile_for_a_gpu(arch: int, dtype: str, tmp_path: Path) -> None:
    """Without a GPU: the kernels as they are launched, down to machine code."""
    script = Path(__file__).parent / "helpers" / "compile_kernels.py"
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join([str(script.parents[2]), str(script.parents[1])])
    done = subprocess.run(
        [sys.executable, str(script), str(arch), dtype],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == 5


def test_pretended_tensors_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors without values the operations give shapes and dtypes, with no kernel at hand."""
    monkeypatch.setattr(belief_ops, "_kernels", lambda: pytest.fail("a kernel was asked for"))
    n, V, D = 6, LLADA, 32
    for where in (FakeTensorMode(), torch.device("meta")):
        with where:
            device = "cuda" if isinstance(where, FakeTensorMode) else "meta"
            logits = torch.empty(n, V, dtype=torch.bfloat16, device=device)
            past = (
                torch.empty(9, V, dtype=torch.float16, device=device),
                torch.empty(9, device=device),
            )
            rows = torch.empty(n, dtype=torch.long, device=device)
            table = torch.empty(V, D, dtype=torch.bfloat16, device=device)
            found, kl, nuclei = belief_ops.read(logits, MASK, 0.9, past, rows)
            mixed = belief_ops.expected_embedding(logits, nuclei, table, MASK)
            tokens = belief_ops.draw_tokens(logits.float(), rows, rows.double())
        assert mixed.shape == (n, D)
        assert mixed.dtype == table.dtype
        assert kl.shape == found.entropy_N.shape == (n,)
        assert found.token_N.dtype == tokens.dtype == torch.long
        assert {x.device.type for x in (mixed, kl, tokens, found.token_N)} == {device}


@pytest.mark.parametrize(
    ("mode", "device", "dtypes", "expected"),
    [
        ("auto", "cpu", (torch.bfloat16, torch.bfloat16), False),
        ("auto", "meta", (torch.bfloat16, torch.bfloat16), True),
        ("off", "meta", (torch.bfloat16, torch.bfloat16), False),
        ("on", "cpu", (torch.float32, torch.float32), True),
        ("on", "cpu", (torch.bfloat16, torch.float32), False),
        ("on", "cpu", (torch.float64, torch.float64), False),
    ],
)
def test_where_kernels_apply(
    mode: str,
    device: str,
    dtypes: tuple[torch.dtype, torch.dtype],
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(belief_ops.SWITCH, mode)
    table, logits = (torch.empty(2, 2, dtype=dtype, device=device) for dtype in dtypes)
    assert belief_ops.kernels_apply(table, logits) == expected
