"""Products in eight bits: their arithmetic bit by bit, what a checkpoint's layers become, what
CUDA's kernels are given, and the devices and checkpoints that are refused.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from helpers.checkpoints import (
    DREAM_7B,
    LLADA_8B,
    SMALL_DREAM,
    SMALL_LLADA,
    logits_of,
    random_tensors,
    write,
)
from helpers.live_bytes import LiveBytes
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import lrd
from lrd import memory
from lrd.models import checkpoint, w8a8
from lrd.models.checkpoint import DTYPES, LoadedModel
from lrd.models.compiled import fuse_pointwise
from lrd.models.families import family_of
from lrd.models.transformer import Transformer
from lrd.models.w8a8 import FORMATS, W8A8Linear, quantise
from pipeline.config import RunConfig

E4M3 = sorted(
    {
        sign * (value if exponent == 0 else 0)
        + (sign * (1 + m / 8) * 2.0 ** (exponent - 7) if exponent else 0)
        for sign in (1, -1)
        for exponent in range(16)
        for m in range(8)
        for value in [m / 8 * 2.0**-6]
        if not (exponent == 15 and m == 7)
    }
)
"""Every finite FP8 number: 4 bits of exponent, 3 of mantissa, the largest 448."""


def nearest(x: float, form: str) -> float:
    """The representable number that is nearest to x, of two the one with an even last bit."""
    if form == "int8_w8a8":
        return float(max(-127, min(127, round(x))))
    below = max((e for e in E4M3 if e <= x), default=-448.0)
    above = min((e for e in E4M3 if e >= x), default=448.0)
    if x - below != above - x:
        return below if x - below < above - x else above
    bits = torch.tensor([below, above]).to(torch.float8_e4m3fn).view(torch.uint8).tolist()
    return below if bits[0] % 2 == 0 else above


def rows_of(kind: str) -> Tensor:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(6, 24, generator=draw)
    if kind == "wide":
        x = x * 10.0 ** torch.linspace(-12, 12, 24)
    if kind == "zeros":
        x[::2] = 0
    if kind == "tiny":
        x = x * 1e-30
    if kind == "huge":
        x = x * 1e30
    if kind == "ties":
        x = torch.randint(-254, 255, (6, 24), generator=draw) / 2.0
        x[:, 0] = 448.0
    return x


KINDS = ("normal", "wide", "zeros", "tiny", "huge", "ties")


def test_every_number_of_fp8_is_known() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    assert sorted(set(every[every.isfinite()].tolist())) == E4M3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FORMATS)
def test_numbers_and_scales_are_defined_to_the_bit(
    name: str, kind: str, dtype: torch.dtype
) -> None:
    form, x_NK = FORMATS[name], rows_of(kind).to(dtype)
    before = x_NK.clone()
    q_NK, scale_N1 = quantise(x_NK, form.dtype, form.largest)
    assert torch.equal(x_NK, before)
    assert q_NK.dtype == form.dtype
    assert scale_N1.dtype == torch.float32
    for x_K, q_K, scale in zip(x_NK.float(), q_NK.float(), scale_N1[:, 0], strict=True):
        largest = torch.tensor(max(float(x_K.abs().max()), w8a8.SMALLEST))
        assert torch.equal(scale, largest / form.largest)
        assert q_K.tolist() == [nearest(float(x / scale), name) for x in x_K]
    if kind in ("normal", "wide", "huge"):
        assert (q_NK.float().abs().amax(-1) == form.largest).all()


def layer_of(
    name: str, bias: bool, width_in: int = 64, width_out: int = 48, scale: float = 1.0
) -> tuple[W8A8Linear, nn.Linear]:
    """A packed layer, and the one that it is made of."""
    torch.manual_seed(5)
    plain = nn.Linear(width_in, width_out, bias).requires_grad_(False).to(torch.bfloat16)
    plain.weight.mul_(scale)
    packed = W8A8Linear(width_in, width_out, bias, FORMATS[name]).requires_grad_(False)
    packed.load_state_dict({k: v.clone() for k, v in plain.state_dict().items()}, assign=True)
    packed.pack()
    return packed, plain


def expected_of(layer: W8A8Linear, x_NK: Tensor) -> Tensor:
    """The layer's output in float64, from the numbers that are multiplied."""
    q_NK, scale_N1 = quantise(x_NK, layer.form.dtype, layer.form.largest)
    assert layer.scale is not None
    out_NM = (q_NK.double() @ layer.weight.double().t()) * scale_N1.double() * layer.scale.double()
    return out_NM if layer.bias is None else out_NM + layer.bias.double()


@pytest.mark.parametrize("shape", [(64,), (0, 64), (1, 64), (5, 64), (2, 7, 64)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_a_layer_is_its_numbers_product(name: str, bias: bool, shape: tuple[int, ...]) -> None:
    layer, plain = layer_of(name, bias)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    out = layer(x)
    assert out.dtype == x.dtype
    assert out.shape == (*shape[:-1], 48)
    expected = expected_of(layer, x.reshape(-1, 64)).view(out.shape)
    # float32's rounding of the sum, then bfloat16's.
    allowed = expected.abs() * 2**-8 + 1e-6
    assert bool(((out.double() - expected).abs() <= allowed).all())
    if out.numel():
        off = float((out - plain(x)).float().norm() / plain(x).float().norm())
        assert 0 < off < {"fp8": 0.06, "int8_w8a8": 0.03}[name]  # measured: 0.04, 0.014


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_does_not_depend_on_the_others(name: str) -> None:
    layer, _ = layer_of(name, bias=True)
    x_NK = torch.randn(9, 64, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    x_NK[3] *= 1e4
    together = layer(x_NK)
    for row, x_K in enumerate(x_NK):
        alone = layer(x_K[None])[0]
        if name == "int8_w8a8":  # Sums are exact.
            assert torch.equal(alone, together[row])
        assert torch.allclose(alone.float(), together[row].float(), rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_not_finite_stays_so_and_in_its_row(name: str, value: float) -> None:
    layer, _ = layer_of(name, bias=True)
    x_NK = torch.randn(4, 64, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    expected = layer(x_NK)
    x_NK[1, 5] = value
    out = layer(x_NK)
    assert not out[1].isfinite().any()
    assert torch.equal(out[[0, 2, 3]], expected[[0, 2, 3]])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_joined_layers_are_equal_to_separate_ones(name: str, bias: bool) -> None:
    layers = [layer_of(name, bias, width_out=width, scale=width)[0] for width in (48, 16, 32)]
    one = w8a8.joined(layers)
    x_NK = torch.randn(7, 64, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    separate = torch.cat([layer(x_NK) for layer in layers], dim=-1)
    if name == "int8_w8a8":
        assert torch.equal(one(x_NK), separate)
    assert torch.allclose(one(x_NK).float(), separate.float(), rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("name", FORMATS)
def test_element_wise_work_compiles_as_two_functions_of_any_number_of_rows(name: str) -> None:
    """What a GPU runs: the graphs that torch.compile makes, without its code generator."""
    layer, _ = layer_of(name, bias=True)
    graphs = []

    def counting(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def fused(function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, fullgraph=True, dynamic=True, backend=counting)

    given = [torch.randn(rows, 64).to(torch.bfloat16) for rows in (2, 3, 9)]
    eager = [layer(x_NK) for x_NK in given]
    torch._dynamo.reset()
    w8a8.fuse_products(layer, fused)
    for x_NK, expected in zip(given, eager, strict=True):
        assert torch.equal(layer(x_NK), expected)
    assert len(graphs) == 2


# Checkpoints

FAMILIES = {
    "LLaDA": {**SMALL_LLADA, "d_model": 64, "mlp_hidden_size": 96},
    "Dream": {**SMALL_DREAM, "hidden_size": 64, "intermediate_size": 96},
}


@functools.cache
def folder_of(family: str, tmp: Path) -> Path:
    return write(tmp / family, FAMILIES[family], random_tensors(FAMILIES[family]))


@pytest.fixture(scope="module")
def tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("w8a8")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", FORMATS)
def test_a_checkpoints_blocks_are_packed_and_nothing_else(
    name: str, family: str, tmp: Path
) -> None:
    folder = folder_of(family, tmp)
    packed, plain = (lrd.load_model(folder, dtype=dtype) for dtype in (name, "bfloat16"))
    assert isinstance(packed, LoadedModel)
    assert isinstance(plain, LoadedModel)
    layers = dict(packed.transformer.named_modules())
    num_packed = 0
    for key, module in plain.transformer.named_modules():
        if isinstance(module, nn.Linear) and key.startswith("blocks."):
            ours = layers[key]
            assert isinstance(ours, W8A8Linear)
            q_MK, scale_M1 = quantise(module.weight, FORMATS[name].dtype, FORMATS[name].largest)
            assert torch.equal(ours.weight.view(torch.uint8), q_MK.view(torch.uint8))
            assert ours.scale is not None
            assert torch.equal(ours.scale, scale_M1[:, 0])
            assert (ours.bias is None) == (module.bias is None)
            num_packed += 1
        elif not list(module.children()) and list(module.parameters()):
            assert torch.equal(layers[key].weight, module.weight)
            assert layers[key].weight.dtype == torch.bfloat16
    assert num_packed == 2 * 7
    ours, theirs = logits_of(packed).float(), logits_of(plain).float()
    off = float((ours - theirs).norm() / theirs.norm())
    assert 0 < off < {"fp8": 0.35, "int8_w8a8": 0.2}[name]  # measured: 0.25, 0.1
    stored = sum(p.nbytes for p in packed.transformer.parameters())
    face = lrd.load_model(folder, "meta", name)
    assert isinstance(face, LoadedModel)
    assert memory.weight_bytes(face, name) == stored
    # As on a GPU, where layers are joined.
    packed.transformer.fuse()
    assert sum(p.nbytes for p in packed.transformer.parameters()) == stored
    fused = logits_of(packed).float()
    assert torch.allclose(fused, ours, rtol=0.05, atol=0.05 * float(ours.std()))


@pytest.mark.parametrize("name", FORMATS)
def test_a_models_products_are_fused_with_its_pointwise_work(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As on CUDA, and taken back where compiling fails."""
    model = lrd.load_model(folder_of("Dream", tmp_path_factory.getbasetemp()), dtype=name)
    assert isinstance(model, LoadedModel)
    embeds = model.embed(torch.arange(40).view(2, 20))
    expected = model.logits(embeds)
    packed = [one for one in model.transformer.modules() if isinstance(one, W8A8Linear)]
    before = packed[0].quantise
    assert fuse_pointwise(model.transformer, "eager")
    assert packed[0].quantise is packed[-1].quantise is not before
    assert torch.equal(model.logits(embeds), expected)

    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("Failed to find C compiler.")

    assert not fuse_pointwise(model.transformer, broken)
    assert packed[0].quantise is before
    assert torch.equal(model.logits(embeds), expected)


@pytest.mark.parametrize("settings", [{}, {"block_length": 8, "kv_cache": "dual", "suffix": 0}])
@pytest.mark.parametrize("name", FORMATS)
def test_a_packed_model_decodes(name: str, settings: dict[str, Any], tmp: Path) -> None:
    """By itself and the same each time; its tokens are not those of bfloat16 by accident."""
    model = lrd.load_model(folder_of("Dream", tmp), dtype=name)
    config = lrd.DecodingConfig.preset("fast", gen_length=16, max_refine_steps=3, **settings)
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    samples, again = (lrd.decode(model, prompts, config, batch_size=3) for _ in range(2))
    plain = lrd.decode(lrd.load_model(folder_of("Dream", tmp), dtype="bfloat16"), prompts, config)
    for sample, other in zip(samples, again, strict=True):
        assert sample.error is None
        assert model.mask_id not in sample.canvas
        assert (sample.canvas, sample.commit_step) == (other.canvas, other.commit_step)
    assert [s.entropy_trace for s in samples] != [s.entropy_trace for s in plain]


def test_a_run_knows_every_dtype() -> None:
    assert set(get_args(RunConfig.model_fields["dtype"].annotation)) == {"auto", *DTYPES}
    assert set(FORMATS) < set(DTYPES)


# CUDA


def fake_layers(config: dict[str, Any], name: str) -> tuple[Transformer, int]:
    """One layer of a published model as CUDA has it, made of tensors without memory; its width."""
    family = family_of(config)
    shape = family.transformer_config({**config, "n_layers": 1, "num_hidden_layers": 1})
    with torch.device("meta"):
        transformer = Transformer(shape)
        w8a8.use_w8a8(transformer.blocks, FORMATS[name])
    for module in transformer.modules():
        for key, value in list(module.named_parameters(recurse=False)):
            made = torch.empty(value.shape, dtype=torch.bfloat16, device="cuda")
            setattr(module, key, nn.Parameter(made, requires_grad=False))
        if isinstance(module, W8A8Linear):
            module.pack()
    return transformer, shape.width


@pytest.mark.parametrize("num_rows", [1, 8, 16, 17, 33, 640])
@pytest.mark.parametrize("config", [LLADA_8B, DREAM_7B], ids=["LLaDA-8B", "Dream-7B"])
@pytest.mark.parametrize("name", FORMATS)
def test_cuda_kernels_are_given_what_they_take(
    name: str, config: dict[str, Any], num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """a row-major, b column-major, both sides multiples of 16, scales [N, 1] and [1, M], a bias of
    the output's dtype, and for int8 more than 16 rows; on tensors that pretend to be on CUDA."""
    kernels: list[tuple[Tensor, Tensor, dict[str, Any]]] = []
    kernel = "_int_mm" if name == "int8_w8a8" else "_scaled_mm"
    real = getattr(torch, kernel)

    def watched(a: Tensor, b: Tensor, **options: Any) -> Tensor:
        kernels.append((a, b, options))
        return real(a, b, **options)

    monkeypatch.setattr(torch, kernel, watched)
    with FakeTensorMode(), torch.no_grad():
        transformer, width = fake_layers(config, name)
        for fuse in (False, True):
            kernels.clear()
            if fuse:
                for block in transformer.blocks:
                    block.fuse()
            linears = [m for m in transformer.modules() if isinstance(m, W8A8Linear)]
            assert len(linears) == (4 if fuse else 7)
            for layer in linears:
                x = torch.empty(num_rows, layer.in_features, dtype=torch.bfloat16, device="cuda")
                out = layer(x)
                assert (out.shape, out.dtype) == ((num_rows, layer.out_features), x.dtype)
                assert out.device.type == "cuda"
            assert len(kernels) == len(linears)
            for (a, b, options), layer in zip(kernels, linears, strict=True):
                rows = num_rows if name == "fp8" else max(num_rows, 17)
                assert (a.shape, a.stride()) == ((rows, layer.in_features), (layer.in_features, 1))
                assert b.shape == (layer.in_features, layer.out_features)
                assert b.stride() == (1, layer.in_features)
                assert not any(side % 16 for side in b.shape)
                assert a.dtype == b.dtype == FORMATS[name].dtype
                if name == "fp8":
                    assert options["scale_a"].shape == (num_rows, 1)
                    assert options["scale_b"].shape == (1, layer.out_features)
                    for scale in (options["scale_a"], options["scale_b"]):
                        assert scale.is_contiguous()
                        assert scale.dtype == torch.float32
                    assert options["out_dtype"] == torch.bfloat16
                    assert options["bias"] is layer.bias
                    assert layer.bias is None or layer.bias.dtype == torch.bfloat16
            with_bias = sum(layer.bias is not None for layer in linears)
            assert with_bias == (0 if config is LLADA_8B else 1 if fuse else 3)
    assert width in (4096, 3584)


@pytest.mark.parametrize(
    ("name", "gpu", "capability", "words"),
    [
        (
            "fp8",
            "NVIDIA A100-SXM4-80GB",
            (8, 0),
            r"8\.9 .*A100.* 8\.0; choose int8_w8a8 or",
        ),
        ("fp8", "NVIDIA A10", (8, 6), r"8\.9 .*A10 has 8\.6; choose int8_w8a8 or bfloat16"),
        ("fp8", "Tesla V100", (7, 0), r"8\.9 .*V100 has 7\.0; choose bfloat16"),
        ("int8_w8a8", "Tesla T4", (7, 5), r"8\.0 .*T4 has 7\.5; choose bfloat16"),
    ],
)
def test_a_gpu_that_cannot_is_refused_in_one_line(
    name: str, gpu: str, capability: tuple[int, int], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    with pytest.raises(ValueError, match=words) as refused:
        lrd.load_model("tiny", device="cuda", dtype=name)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", FORMATS)
def test_a_gpu_whose_kernels_fail_is_refused_in_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As row-wise FP8 failed on new GPUs, and int8 on others, in some releases of torch."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA New")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (12, 0))

    def fails(*_: Any) -> float:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling it\nat line 3")

    monkeypatch.setattr(w8a8, "_error_on", fails)
    device = torch.device("cuda")
    with pytest.raises(ValueError, match=r"NOT_SUPPORTED when calling it\); choose bfloat16$"):
        w8a8.check_device(FORMATS[name], device)
    for off in (0.5, math.nan):
        monkeypatch.setattr(w8a8, "_error_on", lambda *_, off=off: off)
        with pytest.raises(ValueError, match="multiplies it wrongly on NVIDIA New"):
            w8a8.check_device(FORMATS[name], device)
    monkeypatch.setattr(w8a8, "_error_on", lambda *_: 0.001)
    w8a8.check_device(FORMATS[name], device)


@pytest.mark.parametrize("name", FORMATS)
def test_the_trial_product_is_of_the_formats_own_layer(name: str) -> None:
    assert w8a8._error_on(FORMATS[name], torch.device("cpu")) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("name", FORMATS)
def test_cuda_multiplies_as_the_cpu(name: str) -> None:
    device = torch.device("cuda")
    if torch.cuda.get_device_capability(device) < FORMATS[name].capability:
        pytest.skip(f"{name} needs compute capability {FORMATS[name].capability}")
    w8a8.check_device(FORMATS[name], device)
    layer, _ = layer_of(name, bias=True, width_in=1024, width_out=512)
    for rows in (1, 16, 17, 100, 640):
        x = torch.randn(rows, 1024, generator=torch.Generator().manual_seed(rows))
        expected = layer(x.to(torch.bfloat16)).float()
        found = layer.to(device)(x.to(device, torch.bfloat16)).float().cpu()
        layer.to("cpu")
        assert float((found - expected).norm() / expected.norm()) < 0.005


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_checkpoint_whose_widths_do_not_fit_is_refused(
    name: str, device: str, tmp_path: Path
) -> None:
    """Wherever it is loaded, so before a run has started anything."""
    config = {**SMALL_LLADA, "mlp_hidden_size": 40}
    folder = write(tmp_path, config, random_tensors(config))
    with pytest.raises(
        ValueError, match=r"multiples of 16; gate is 32 to 40; choose bfloat16"
    ) as e:
        lrd.load_model(folder, device, name)
    assert str(folder) in str(e.value)
    assert "\n" not in str(e.value)


# Memory


def test_memory_of_int8_sums(tmp_path: Path) -> None:
    """With layers joined, as on a GPU, sums are in int32 and float32 before they are cast."""
    config = {**SMALL_LLADA, "d_model": 64, "mlp_hidden_size": 512, "max_sequence_length": 512}
    folder = write(tmp_path, config, random_tensors(config))
    model = lrd.load_model(folder, dtype="int8_w8a8")
    assert isinstance(model, LoadedModel)
    model.transformer.fuse()
    settings = lrd.DecodingConfig(gen_length=8)
    need = memory.memory_of(model, settings, 200, 8, fixed_shapes=True)
    assert need.weights == sum(p.nbytes for p in model.transformer.parameters())
    model.transformer.prepare(512, torch.device("cpu"))
    with LiveBytes() as live:
        engine = lrd.Engine(model, settings, 8, 200, fixed_shapes=True)
        for index in range(8):
            engine.submit(lrd.Request(index, [3] * 200, index))
        for _ in range(3):
            engine.step()
    assert live.peak <= need.beside_weights <= 1.35 * live.peak
    plain = memory.memory_of(lrd.load_model(folder, dtype="bfloat16"), settings, 200, 8, True)
    fp8 = memory.memory_of(lrd.load_model(folder, dtype="fp8"), settings, 200, 8, True)
    # CUDA's FP8 product gives the layer's output itself.
    assert fp8.beside_weights == plain.beside_weights < need.beside_weights


def test_eight_bits_halve_the_published_models() -> None:
    for config in (LLADA_8B, DREAM_7B):
        with torch.device("meta"):
            transformer = Transformer(family_of(config).transformer_config(config))
        model = LoadedModel(transformer, config, None)
        half, whole = (memory.weight_bytes(model, dtype) for dtype in ("fp8", "bfloat16"))
        assert memory.weight_bytes(model, "int8_w8a8") == half
        assert 0.5 * whole < half < 0.6 * whole


def test_checkpoint_module_has_the_formats() -> None:
    assert all(checkpoint.DTYPES[name] == torch.bfloat16 for name in FORMATS)
