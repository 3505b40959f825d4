"""Loading: every tensor accounted for, nothing run or unpickled, no second copy in memory."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoints import (
    DREAM_7B,
    LLADA_8B,
    SMALL,
    SMALL_DREAM,
    SMALL_LLADA,
    logits_of,
    random_tensors,
    shard,
    stored_shapes,
    write,
)
from helpers.commands import parse
from safetensors.torch import load_file, save_file

import lrd
from jobs import generate, models
from jobs.flags import run_config
from lrd.models.checkpoint import checkpoint_folder, fingerprint
from lrd.models.families import DREAM, FAMILIES, LLADA, Family, family_of
from lrd.models.registry import EMBEDDED, KNOWN, TINY, KnownCheckpoint, known_checkpoint
from pipeline.report.tokens import token_texts

# What loads


@pytest.mark.parametrize("name", SMALL)
def test_single_and_sharded_load_alike(name: str, tmp_path: Path) -> None:
    tensors = random_tensors(SMALL[name])
    folder = write(tmp_path, SMALL[name], tensors)
    single = lrd.load_model(folder)
    shard(folder, tensors, 3)
    sharded = lrd.load_model(folder)
    assert torch.equal(logits_of(single), logits_of(sharded))
    ours = family_of(SMALL[name]).tensor_names(single.transformer.config)
    for parameter, value in single.transformer.named_parameters():
        assert torch.equal(value, tensors[ours[parameter]])
        assert not value.requires_grad
    assert (single.mask_id, single.eos_id, single.pad_id) == (39, 38, 38)
    assert (single.max_length, single.tokenizer, single.eot_id) == (64, None, None)


@pytest.mark.parametrize(
    ("name", "field", "head"),
    [
        ("llada", "weight_tying", "model.transformer.ff_out.weight"),
        ("dream", "tie_word_embeddings", "lm_head.weight"),
    ],
)
def test_tied_head_is_the_embedding_table(name: str, field: str, head: str, tmp_path: Path) -> None:
    tensors = random_tensors(SMALL[name])
    table = "model.transformer.wte.weight" if name == "llada" else "model.embed_tokens.weight"
    untied = lrd.load_model(
        write(tmp_path / "a", SMALL[name], {**tensors, head: tensors[table].clone()})
    )
    del tensors[head]
    tied_config = {**SMALL[name], field: True}
    assert head not in stored_shapes(tied_config)
    tied = lrd.load_model(write(tmp_path / "b", tied_config, tensors))
    assert torch.equal(logits_of(tied), logits_of(untied))
    with pytest.raises(ValueError, match=f"1 missing: {re.escape(head)}"):
        lrd.load_model(write(tmp_path / "c", SMALL[name], tensors))


def test_a_loaded_model_does_not_need_its_files_again(tmp_path: Path) -> None:
    folder = write(tmp_path, SMALL_LLADA, random_tensors(SMALL_LLADA))
    model = lrd.load_model(folder)
    before = logits_of(model)
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    assert torch.equal(logits_of(model), before)


def test_dtypes(tmp_path: Path) -> None:
    """A file of one dtype loads in another; what is cast is cast once."""
    tensors = random_tensors(SMALL_DREAM)
    half = {name: value.bfloat16() for name, value in tensors.items()}
    full = lrd.load_model(write(tmp_path / "full", SMALL_DREAM, tensors), dtype="bfloat16")
    same = lrd.load_model(write(tmp_path / "half", SMALL_DREAM, half), dtype="bfloat16")
    wide = lrd.load_model(tmp_path / "half", dtype="float32")
    assert full.embedding_table.dtype == torch.bfloat16
    assert torch.equal(logits_of(full), logits_of(same))
    assert wide.embedding_table.dtype == torch.float32
    assert torch.equal(wide.embedding_table, half["model.embed_tokens.weight"].float())
    with pytest.raises(ValueError, match="choose from float32, bfloat16, int8"):
        lrd.load_model(tmp_path / "half", dtype="float16")


# True sizes, without their memory


@pytest.mark.parametrize(
    ("config", "count", "billions"), [(LLADA_8B, 291, 8.02), (DREAM_7B, 339, 7.62)]
)
def test_true_configurations_build_on_the_meta_device(
    config: dict[str, Any], count: int, billions: float
) -> None:
    shapes = stored_shapes(config)
    assert shapes == published_shapes(config)
    assert len(shapes) == count
    parameters = sum(torch.Size(shape).numel() for shape in shapes.values())
    assert parameters / 1e9 == pytest.approx(billions, abs=0.005)


def published_shapes(config: dict[str, Any]) -> dict[str, list[int]]:
    """Names of the published indexes, with shapes as the originals' modules have them."""
    if config["model_type"] == "llada":
        D, M, V = config["d_model"], config["mlp_hidden_size"], config["embedding_size"]
        top = "model.transformer."
        shapes = {f"{top}wte.weight": [V, D], f"{top}ln_f.weight": [D]}
        shapes[f"{top}ff_out.weight"] = [V, D]
        for n in range(config["n_layers"]):
            block = f"{top}blocks.{n}."
            for norm in ("attn_norm", "ff_norm"):
                shapes[f"{block}{norm}.weight"] = [D]
            for square in ("q_proj", "k_proj", "v_proj", "attn_out"):
                shapes[f"{block}{square}.weight"] = [D, D]
            for rising in ("ff_proj", "up_proj"):
                shapes[f"{block}{rising}.weight"] = [M, D]
            shapes[f"{block}ff_out.weight"] = [D, M]
        return shapes
    D, M, V = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = D // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": [V, D], "model.norm.weight": [D]}
    shapes["lm_head.weight"] = [V, D]
    for n in range(config["num_hidden_layers"]):
        block = f"model.layers.{n}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{block}{norm}.weight"] = [D]
        for name, rows in (("q", D), ("k", kv), ("v", kv)):
            shapes[f"{block}self_attn.{name}_proj.weight"] = [rows, D]
            shapes[f"{block}self_attn.{name}_proj.bias"] = [rows]
        shapes[f"{block}self_attn.o_proj.weight"] = [D, D]
        for rising in ("gate", "up"):
            shapes[f"{block}mlp.{rising}_proj.weight"] = [M, D]
        shapes[f"{block}mlp.down_proj.weight"] = [D, M]
    return shapes


MEASURE = """
import json, os, re, sys
os.environ["OMP_NUM_THREADS"] = "1"
import torch
from safetensors import safe_open
import lrd, lrd.models.checkpoint
torch.set_num_threads(1)
folder = sys.argv[1]
# Not ru_maxrss: a child starts with its parent's.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
before = peak()
model = lrd.load_model(folder, dtype="bfloat16")
after = peak()
size = sum(p.numel() * 2 for p in model.transformer.parameters())
from lrd.models.families import family_of
names = family_of(json.load(open(folder + "/config.json"))).tensor_names(model.transformer.config)
index = json.load(open(folder + "/model.safetensors.index.json"))["weight_map"]
for ours, value in model.transformer.named_parameters():
    with safe_open(f"{folder}/{index[names[ours]]}", framework="pt") as file:
        assert torch.equal(value, file.get_tensor(names[ours])), ours
print(json.dumps({"size": size, "before": before, "after": after}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llada", "dream"])
def test_true_width_round_trips_in_one_copy_of_memory(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three true-width layers, a table of 8192 rows. Bar: peak at most 1.3 times the weights."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("peak memory is read from /proc, which is Linux's")
    config = {
        "llada": {**LLADA_8B, "n_layers": 3, "vocab_size": 8192, "embedding_size": 8192},
        "dream": {**DREAM_7B, "num_hidden_layers": 3, "vocab_size": 8192},
    }[name]
    config.update({"mask_token_id": 8000, "eos_token_id": 8001, "pad_token_id": 8001})
    tensors = {}
    for number, (tensor, shape) in enumerate(sorted(stored_shapes(config).items())):
        count = torch.Size(shape).numel()
        # Cheap to make, different in every tensor and place.
        ramp = torch.arange(count, dtype=torch.int32).remainder_(997 + number)
        tensors[tensor] = (ramp.bfloat16() / 997 - 0.5).view(shape)
    folder = write(tmp_path, config, tensors)
    shard(folder, tensors, 2)
    del tensors
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    share = (found["after"] - found["before"]) / found["size"]
    with capsys.disabled():
        print(
            f"\n{name}: {found['size'] / 1e9:.2f} GB of bfloat16 weights, peak host memory of "
            f"loading {share:.2f} x that, of the process {found['after'] / found['size']:.2f} x"
        )
    assert found["size"] > 1e9
    assert share <= 1.3


# What is refused


def test_all_differences_are_named_at_once(tmp_path: Path) -> None:
    tensors = random_tensors(SMALL_LLADA)
    block = "model.transformer.blocks."
    del tensors[f"{block}0.q_proj.weight"], tensors[f"{block}1.ff_norm.weight"]
    tensors["model.transformer.wpe.weight"] = torch.zeros(4)
    tensors[f"{block}0.q_proj.bias"] = torch.zeros(32)
    tensors[f"{block}1.up_proj.weight"] = torch.zeros(47, 32)
    tensors[f"{block}1.k_proj.weight"] = torch.zeros(32, 32, dtype=torch.int8)
    with pytest.raises(ValueError) as refused:
        lrd.load_model(write(tmp_path, SMALL_LLADA, tensors))
    message = str(refused.value)
    assert f"2 missing: {block}0.q_proj.weight; {block}1.ff_norm.weight." in message
    assert f"2 extra: {block}0.q_proj.bias; model.transformer.wpe.weight." in message
    assert f"1 misshapen: {block}1.up_proj.weight is [47, 32], not [48, 32]." in message
    assert f"1 not floats: {block}1.k_proj.weight is I8." in message
    assert "Use the config.json that belongs to these weights" in message


def test_a_tensor_in_two_shards_is_extra(tmp_path: Path) -> None:
    tensors = random_tensors(SMALL_LLADA)
    folder = write(tmp_path, SMALL_LLADA, tensors)
    shard(folder, tensors, 2)
    twice = folder / "model-00002-of-00002.safetensors"
    name = sorted(tensors)[0]
    save_file({**load_file(twice), name: tensors[name]}, twice)
    with pytest.raises(ValueError, match=r"1 extra: .* and again in model-00002"):
        lrd.load_model(folder)


def test_unknown_architecture_names_the_supported(tmp_path: Path) -> None:
    config = {**SMALL_LLADA, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    with pytest.raises(ValueError, match="qwen3") as refused:
        lrd.load_model(write(tmp_path, config, {}))
    for family in FAMILIES:
        assert family.name in str(refused.value)
        assert all(name in str(refused.value) for name in family.architectures)


def test_family_is_recognised_by_either_field_and_never_by_the_path(tmp_path: Path) -> None:
    assert family_of({"model_type": "llada"}) is LLADA
    assert family_of({"architectures": ["DreamModel"]}) is DREAM
    folder = write(tmp_path / "Dream-7B", SMALL_LLADA, random_tensors(SMALL_LLADA))
    assert not lrd.load_model(folder).transformer.config.logit_shift


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.pth"])
def test_pickles_are_refused(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path, SMALL_LLADA, {})
    (folder / "model.safetensors").unlink()
    torch.save(random_tensors(SMALL_LLADA), folder / name)
    with pytest.raises(ValueError, match=rf"{re.escape(name)}.*refused. Convert them"):
        lrd.load_model(folder)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    config = {**SMALL_LLADA, "auto_map": {"AutoModel": "modeling_llada.LLaDAModelLM"}}
    folder = write(tmp_path, config, random_tensors(SMALL_LLADA))
    (folder / "modeling_llada.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    lrd.load_model(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("left", [0, 7, 500, -1])
def test_truncated_files_are_refused(left: int, tmp_path: Path) -> None:
    folder = write(tmp_path, SMALL_LLADA, random_tensors(SMALL_LLADA))
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(ValueError, match=r"not a whole safetensors file .*download it again"):
        lrd.load_model(folder)


def test_missing_shards_and_broken_indexes_are_refused(tmp_path: Path) -> None:
    tensors = random_tensors(SMALL_LLADA)
    folder = write(tmp_path, SMALL_LLADA, tensors)
    shard(folder, tensors, 3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"not there: model-00002-of-00003\.safetensors"):
        lrd.load_model(folder)
    for text in ("{", "[]", '{"weights": 1}'):
        (folder / "model.safetensors.index.json").write_text(text)
        with pytest.raises(ValueError, match="not an index of shards"):
            lrd.load_model(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_token_id": None}, "mask_token_id is None"),
        ({"eos_token_id": 48}, "eos_token_id is 48; expected a token id below 48"),
        ({"pad_token_id": -1}, "pad_token_id is -1"),
        ({"d_model": None}, "no 'd_model'"),
        ({"alibi": True}, "alibi = True; only False is supported"),
        ({"n_heads": 5}, "do not divide evenly"),
    ],
)
def test_configurations_that_cannot_be(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write(tmp_path, SMALL_LLADA, random_tensors(SMALL_LLADA))
    (folder / "config.json").write_text(json.dumps({**SMALL_LLADA, **change}))
    with pytest.raises(ValueError, match=re.escape(message)):
        lrd.load_model(folder)


def test_names_that_mean_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such checkpoint folder, and not a hub id"):
        lrd.load_model(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no config\.json"):
        lrd.load_model(tmp_path)
    folder = write(tmp_path, SMALL_LLADA, random_tensors(SMALL_LLADA))
    with pytest.raises(ValueError, match="drop the revision 'main'"):
        lrd.load_model(folder, revision="main")
    with pytest.raises(ValueError, match="device 'abacus' is unknown"):
        lrd.load_model(folder, device="abacus")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device"):
            lrd.load_model(folder, device="cuda")


# Fingerprint


def test_fingerprint_is_of_contents(tmp_path: Path) -> None:
    tensors = random_tensors(SMALL_DREAM)
    folder = write(tmp_path / "a", SMALL_DREAM, tensors)
    print_of = fingerprint(folder)
    assert fingerprint(write(tmp_path / "moved", SMALL_DREAM, tensors)) == print_of
    tensors["model.norm.weight"][3] += 1e-3
    assert fingerprint(write(tmp_path / "weight", SMALL_DREAM, tensors)) != print_of
    (folder / "README.md").write_text("A card decides nothing.")
    assert fingerprint(folder) == print_of
    (folder / "config.json").write_text(json.dumps({**SMALL_DREAM, "rope_theta": 5e5}))
    assert fingerprint(folder) != print_of


# Special ids and the table of known checkpoints


def test_end_of_turn_is_the_tokenizers(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"a": 0, "<|eot_id|>": 37, "<|im_end|>": 36}
    inner = Tokenizer(models.WordLevel(vocabulary))
    for name, expected in (("llada", 37), ("dream", 36)):
        folder = write(tmp_path / name, SMALL[name], random_tensors(SMALL[name]))
        PreTrainedTokenizerFast(tokenizer_object=inner).save_pretrained(folder)
        assert lrd.load_model(folder).eot_id == expected


def test_known_checkpoints() -> None:
    families: dict[str, Family] = {family.name: family for family in FAMILIES}
    assert len({known.hub_id for known in KNOWN}) == len(KNOWN)
    for known in KNOWN:
        assert known.family in families
        assert known.canvas != "whole" or not known.tasks
        for canvas in known.tasks.values():
            lrd.DecodingConfig(gen_length=canvas.gen_length, block_length=canvas.block_length)
    found = known_checkpoint("gsai-ml/llada-8b-instruct")
    assert found is not None
    assert found.chat
    assert (found.tasks["gsm8k"].gen_length, found.tasks["gsm8k"].block_length) == (256, 8)
    assert known_checkpoint("some/model") is None


@pytest.mark.parametrize(
    "known", [known for known in KNOWN if known.blocks], ids=lambda known: known.hub_id
)
def test_recommended_block_settings_are_flags_that_decode(
    known: KnownCheckpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `lrd models` prints below a checkpoint gives exactly the table's settings."""
    assert known.blocks is not None
    assert known.blocks.source
    assert models.run(argparse.Namespace()) == 0
    printed = capsys.readouterr().out.splitlines()
    _, words, flags = printed[[line.split()[0] for line in printed].index(known.hub_id) :][:3]
    assert words.startswith(
        f"  {known.blocks.basis}: blocks of {known.blocks.decoding['block_length']}"
    )
    assert words.endswith(f"({known.blocks.source})")
    usual = ["--input", "in", "--output", "out", "--preset", "baseline", "--gen-length", "256"]
    found = run_config(parse(generate, *usual, *flags.split())).decoding
    plain = lrd.DecodingConfig.preset("baseline", gen_length=256)
    assert found == lrd.DecodingConfig.preset("baseline", gen_length=256, **known.blocks.decoding)
    assert found.num_blocks > 1
    assert (found.r_f, found.refines) == (plain.r_f, plain.refines) == (0.0, False)


@pytest.mark.parametrize("name", EMBEDDED)
def test_an_embedded_model_is_known_by_its_name(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Wherever a model is named, a folder of that name in the working directory or not; where the
    installation lacks it, one line says which there are."""
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    other = next(one for one in EMBEDDED if one != name)
    monkeypatch.setitem(EMBEDDED, other, TINY)
    monkeypatch.setitem(EMBEDDED, name, tmp_path / "elsewhere")
    refused = f"^{name}: this installation does not have it; choose {other}$"
    for use in (lrd.load_model, checkpoint_folder, fingerprint):
        with pytest.raises(ValueError, match=refused):
            use(name)
    assert f"{name}: this installation" in str(token_texts({"model": name}, []).why_not)
    shutil.copytree(TINY, tmp_path / "elsewhere")
    assert checkpoint_folder(name) == tmp_path / "elsewhere"
    assert fingerprint(name) == fingerprint(TINY)
    assert lrd.load_model(name, "meta").max_length == lrd.load_model(TINY, "meta").max_length
    assert token_texts({"model": name}, []).why_not is None
    assert models.run(argparse.Namespace()) == 0
    assert f"\n{name:42} llada   chat  embedded" in capsys.readouterr().out
