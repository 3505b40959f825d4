"""Weight-only int8: what it packs, how far off it is, the message where torchao is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from helpers.checkpoints import SMALL_DREAM, SMALL_LLADA, logits_of, random_tensors, write

import lrd


def test_int8_packs_the_blocks_alone(tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed")
    config = {**SMALL_DREAM, "hidden_size": 128, "intermediate_size": 256}
    folder = write(tmp_path, config, random_tensors(config))
    packed, plain = lrd.load_model(folder, dtype="int8"), lrd.load_model(folder, dtype="bfloat16")
    assert packed.embedding_table.dtype == torch.bfloat16
    assert torch.equal(packed.embedding_table, plain.embedding_table)
    linears = {
        name: (module.weight, plain.transformer.get_submodule(name).weight)
        for name, module in packed.transformer.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    ours, theirs = linears.pop("head")
    assert torch.equal(ours, theirs)
    assert len(linears) == 2 * 7
    for ours, theirs in linears.values():
        assert ours.qdata.dtype == torch.int8
        step = theirs.float().abs().amax(-1, keepdim=True) / 127
        # Half a step by rounding to int8, and bfloat16's rounding of scale and product.
        allowed = 0.5 * step + theirs.float().abs() * 2**-7
        assert bool(((ours.dequantize().float() - theirs.float()).abs() <= allowed).all())
    ours, theirs = logits_of(packed).float(), logits_of(plain).float()
    assert 0 < float((ours - theirs).norm() / theirs.norm()) < 0.15  # measured: 0.07
    settings = lrd.DecodingConfig.preset("fast", gen_length=8)
    assert 39 not in lrd.decode(packed, [[1, 2, 3]], settings)[0].canvas


def test_int8_without_torchao_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torchao", "torchao.quantization"):
        monkeypatch.setitem(sys.modules, name, None)
    folder = write(tmp_path, SMALL_LLADA, random_tensors(SMALL_LLADA))
    with pytest.raises(ValueError, match=r"int8 needs torchao .*pip install torchao"):
        lrd.load_model(folder, dtype="int8")
