"""Checkpoints as people have them: each loads rightly, or one line names the file and the field."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoints import SMALL, SMALL_DREAM, SMALL_LLADA, random_tensors, shard, write
from helpers.made_tokenizers import tokenizer_of

import lrd
from lrd.models import weights
from lrd.models.checkpoint import fingerprint
from lrd.models.files import LFS_HEAD
from lrd.models.hub import FILES
from lrd.models.tokenizer import TEXT_FILES, load_tokenizer

INDEX = "model.safetensors.index.json"
POINTER = LFS_HEAD + b"v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"


def refusal(folder: Path, *parts: str, read: Callable[[Path], Any] = lrd.load_model) -> str:
    """The one line that loading is refused with; it names the folder and these parts."""
    with pytest.raises(ValueError) as refused:
        read(folder)
    line = str(refused.value)
    assert "\n" not in line
    assert str(folder) in line
    for part in parts:
        assert part in line
    return line


def with_config(folder: Path, config: dict[str, Any]) -> Path:
    """The small checkpoint of the config's family under another config.json."""
    name = "dream" if "hidden_size" in config else "llada"
    write(folder, SMALL[name], random_tensors(SMALL[name]))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# Values of another type

SIZES = {
    "llada": (
        *("d_model", "n_layers", "n_heads", "n_kv_heads", "mlp_hidden_size", "mlp_ratio"),
        *("vocab_size", "max_sequence_length"),
    ),
    "dream": (
        *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
        *("intermediate_size", "vocab_size", "max_position_embeddings"),
    ),
}
SWITCHES = {
    "llada": ("weight_tying", "include_qkv_bias", "scale_logits", "multi_query_attention"),
    "dream": ("tie_word_embeddings",),
}
WRONG: dict[str, list[Any]] = {
    "size": ["5", True, 1.5, [], {}, -1, 0, 10**30, "", math.nan],
    "switch": ["false", 1, 0, [], {}, 1.0],
    "epsilon": ["1e-5", True, [], {}, -1.0, math.nan, math.inf],
    "id": ["5", True, 1.5, {}, -1, 48, [[1]], 10**30],
    "theta": ["1e4", True, [], 0, -1.0, math.nan, math.inf],
}
FIELDS = [
    *((name, field, "size") for name in SMALL for field in SIZES[name]),
    *((name, field, "switch") for name in SMALL for field in SWITCHES[name]),
    *((name, "rms_norm_eps", "epsilon") for name in SMALL),
    *((name, "rope_theta", "theta") for name in SMALL),
    *((name, f"{role}_token_id", "id") for name in SMALL for role in ("mask", "eos", "pad")),
]


@pytest.mark.parametrize(("name", "field", "kind"), FIELDS)
def test_a_value_of_another_type_is_named(name: str, field: str, kind: str, tmp_path: Path) -> None:
    folder = with_config(tmp_path, SMALL[name])
    for value in WRONG[kind]:
        (folder / "config.json").write_text(json.dumps({**SMALL[name], field: value}))
        refusal(folder, "config.json", field)


@pytest.mark.parametrize("name", SMALL)
def test_null_is_absent(name: str, tmp_path: Path) -> None:
    needed = {*SIZES[name], "rms_norm_eps", "rope_theta", "mask_token_id", "eos_token_id"}
    needed -= (
        {"n_kv_heads", "mlp_hidden_size", "mlp_ratio", "vocab_size"} if name == "llada" else set()
    )
    for field in [*SMALL[name], *SWITCHES[name]]:
        folder = with_config(tmp_path, {**SMALL[name], field: None})
        # Without the last two, another shape is built than that of the weights.
        if field in needed:
            refusal(folder, "config.json", field)
        elif field not in ("model_type", "mlp_hidden_size", "embedding_size"):
            lrd.load_model(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": 5, "architectures": None},
        {"model_type": True},
        {"architectures": "LLaDAModelLM"},
        {"architectures": 5},
        {"architectures": [["LLaDAModelLM"]]},
        {"architectures": {"LLaDAModelLM": 1}},
        {"d_model": 12, "n_heads": 4, "n_kv_heads": 4},  # heads of width 3
        {"mlp_hidden_size": None, "mlp_ratio": None},
        {"embedding_size": None, "vocab_size": None},
        {"eos_token_id": []},
        {"eos_token_id": [38, None]},
        {"eos_token_id": [38, 39]},  # [MASK] would end the answer
        {"mask_token_id": [39]},
    ],
)
def test_fields_that_make_no_model(change: dict[str, Any], tmp_path: Path) -> None:
    field = next(iter(change))
    said = refusal(with_config(tmp_path, {**SMALL_LLADA, **change}))
    assert any(
        name in said for name in (field, field.removesuffix("_hidden_size"), "vocab_size", "width")
    )


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "5", '"x"', "[" * 100_000])
def test_a_config_that_is_not_an_object(text: str, tmp_path: Path) -> None:
    folder = with_config(tmp_path, SMALL_LLADA)
    (folder / "config.json").write_text(text)
    refusal(folder, "config.json", "download it again")


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    folder = with_config(tmp_path, SMALL_LLADA)
    (folder / "config.json").write_text(json.dumps(SMALL_LLADA), encoding="utf-8-sig")
    lrd.load_model(folder)


# Indexes


@pytest.mark.parametrize(
    ("index", "part"),
    [
        ({"weight_map": {"a": 5}}, "weight_map.a is 5; expected text"),
        ({"weight_map": {"a": None}}, "weight_map.a is None; expected text"),
        ({"weight_map": {"a": True, "b": "x"}}, "weight_map.a is True; expected text"),
        ({"weight_map": {"a": ["x"]}}, "weight_map.a"),
        ({"weight_map": {}}, "weight_map"),
        ({"weight_map": None}, "weight_map"),
        ({"weight_map": []}, "weight_map"),
        ({"weight_map": "x"}, "weight_map"),
        ([], "JSON object"),
        (None, "JSON object"),
        (True, "JSON object"),
        ("5", "JSON object"),
    ],
)
@pytest.mark.parametrize("read", [lrd.load_model, fingerprint])
def test_an_index_of_another_shape(
    index: Any, part: str, read: Callable[[Path], Any], tmp_path: Path
) -> None:
    folder = with_config(tmp_path, SMALL_LLADA)
    (folder / INDEX).write_text(json.dumps(index))
    refusal(folder, INDEX, "not an index of shards", part, read=read)


@pytest.mark.parametrize(
    "name",
    [
        "../other/{}",
        "sub/../../other/{}",
        "../{folder}/../other/{}",
        "./../other/{}",
        "{other}/{}",
        "..",
        "../other",
        "linked-{}",
        "linked/{}",
    ],
)
@pytest.mark.parametrize("read", [lrd.load_model, fingerprint])
def test_an_index_does_not_lead_out_of_its_folder(
    name: str, read: Callable[[Path], Any], tmp_path: Path
) -> None:
    """The file is there and right; but it is not the checkpoint's."""
    tensors = random_tensors(SMALL_LLADA)
    other = write(tmp_path / "other", SMALL_LLADA, tensors)
    folder = write(tmp_path / "folder", SMALL_LLADA, tensors)
    shard(folder, tensors, 2)
    first = "model-00001-of-00002.safetensors"
    (folder / first).rename(other / first)
    (folder / "sub").mkdir()
    (folder / f"linked-{first}").symlink_to(other / first)
    (folder / "linked").symlink_to(other)
    named = name.replace("{}", first).format(folder=folder.name, other=other)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = {k: named if v == first else v for k, v in index["weight_map"].items()}
    (folder / INDEX).write_text(json.dumps(index))
    refusal(folder, INDEX, repr(named), "leads out", read=read)


@pytest.mark.parametrize("name", ["../../blobs/{}", "{blobs}/{}", "../../../b/{}"])
def test_an_index_of_a_hub_cache_does_not_lead_out_either(name: str, tmp_path: Path) -> None:
    """huggingface_hub's own links are followed, paths out of the snapshot are not."""
    folder = write(tmp_path / "a" / "snapshots" / "0123", SMALL_LLADA, random_tensors(SMALL_LLADA))
    blobs = tmp_path / "a" / "blobs"
    blobs.mkdir()
    (tmp_path / "b").symlink_to(blobs)
    (folder / "model.safetensors").rename(blobs / "model.safetensors")
    named = name.replace("{}", "model.safetensors").format(blobs=blobs)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": named}}))
    refusal(folder, INDEX, repr(named), "leads out")


@pytest.mark.parametrize("way", ["plain", "dot", "below", "link inside", "folder is a link", "hub"])
def test_shards_inside_the_folder_load(way: str, tmp_path: Path) -> None:
    tensors = random_tensors(SMALL_LLADA)
    folder = write(tmp_path / "models--a--b" / "snapshots" / "0123", SMALL_LLADA, tensors)
    expected = lrd.load_model(folder).embedding_table
    shard(folder, tensors, 2)
    first = "model-00001-of-00002.safetensors"
    named = {"dot": f"./{first}", "below": f"below/{first}"}.get(way, first)
    if way == "below":
        (folder / "below").mkdir()
        (folder / first).rename(folder / named)
    elif way == "link inside":
        (folder / first).rename(folder / "real.safetensors")
        (folder / first).symlink_to("real.safetensors")
    elif way == "hub":
        blobs = folder.parents[1] / "blobs"
        blobs.mkdir()
        for file in list(folder.iterdir()):
            file.rename(blobs / f"digest-of-{file.name}")
            file.symlink_to(f"../../blobs/digest-of-{file.name}")
    text = (folder / INDEX).read_text().replace(first, named)
    (folder / INDEX).write_text(text)
    if way == "folder is a link":
        (tmp_path / "link").symlink_to(folder)
        folder = tmp_path / "link"
    assert torch.equal(lrd.load_model(folder).embedding_table, expected)
    assert len(fingerprint(folder)) == 64


# Git LFS pointers and other encodings


def whole_checkpoint(folder: Path) -> Path:
    """With each file that loading may read: a tokenizer, a template of its own, two shards."""
    config = {**SMALL_LLADA, "vocab_size": 800, "embedding_size": 800}
    tensors = random_tensors(config)
    write(folder, config, tensors)
    shard(folder, tensors, 2)
    tokenizer_of("gpt2", "{{ messages[0].content }}").save_pretrained(folder)
    assert (folder / "chat_template.jinja").is_file()
    (folder / "special_tokens_map.json").write_text("{}")
    return folder


FILES_READ = [
    *("config.json", INDEX, "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    *("special_tokens_map.json", "generation_config.json"),
]


@pytest.mark.parametrize("name", [*FILES_READ, "model-00002-of-00002.safetensors"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_pointer_in_the_place_of_a_file(name: str, device: str, tmp_path: Path) -> None:
    folder = whole_checkpoint(tmp_path)
    lrd.load_model(folder, device)
    (folder / name).write_bytes(POINTER)
    refusal(folder, name, "git lfs pull", read=lambda path: lrd.load_model(path, device))


@pytest.mark.parametrize("name", FILES_READ)
@pytest.mark.parametrize("content", [b"\xff\xfe{\x00}\x00", b"caf\xe9 {{ x }}", b"\x80\x81"])
def test_a_file_that_is_not_utf8(name: str, content: bytes, tmp_path: Path) -> None:
    folder = whole_checkpoint(tmp_path)
    (folder / name).write_bytes(content)
    refusal(folder, name, "UTF-8", "git lfs pull")


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "added_tokens.json"])
@pytest.mark.parametrize("content", [POINTER, b"caf\xe9"])
def test_dreams_tokenizer_files(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    load_tokenizer(tmp_path)
    (tmp_path / name).write_bytes(content)
    refusal(tmp_path, name, "git lfs pull", read=load_tokenizer)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", '{"model": 5}'),
        ("tokenizer.json", "not JSON"),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": 5}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}'),
        ("tokenizer_config.json", '{"chat_template": [5]}'),
    ],
)
@pytest.mark.parametrize("files", ["llada", "dream"])
def test_tokenizer_files_of_another_shape(
    files: str, name: str, content: str, tmp_path: Path
) -> None:
    """Whatever the tokenizer libraries raise becomes one line with the folder."""
    if files == "dream":
        (tmp_path / "vocab.json").write_text('{"a": 0}')
        (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    else:
        tokenizer_of("gpt2", None).save_pretrained(tmp_path)
    (tmp_path / name).write_text(content)
    said = ""
    try:
        load_tokenizer(tmp_path)
    except ValueError as error:
        said = str(error)
    # A library may read it as nothing.
    assert not said or str(tmp_path) in said
    assert "\n" not in said


def test_all_that_is_read_is_checked_and_downloaded() -> None:
    from fnmatch import fnmatch

    for name in {*TEXT_FILES, *FILES_READ}:
        assert any(fnmatch(name, pattern) for pattern in FILES)


# RoPE


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
    "change",
    [
        {"rope_theta": 1234.5},
        {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1234.5}},
        {"rope_theta": None, "rope_parameters": {"rope_theta": 1234.5}},
        {"rope_theta": 1234.5, "rope_parameters": {"rope_type": "default", "rope_theta": 1234.5}},
        {"rope_theta": 1234.5, "rope_scaling": {"type": "default"}},
        {"rope_theta": 1234.5, "rope_scaling": {"rope_type": "default", "factor": None}},
        {"rope_theta": 1234.5, "rope_scaling": None, "rope_parameters": None},
        {"rope_theta": 1234.5, "partial_rotary_factor": 1.0},
        {"rope_theta": None, "rope_scaling": {"rope_type": "default", "rope_theta": 1234.5}},
    ],
)
def test_ropes_base_is_read_where_it_stands(
    name: str, change: dict[str, Any], tmp_path: Path
) -> None:
    model = lrd.load_model(with_config(tmp_path, {**SMALL[name], **change}))
    assert model.transformer.config.rope_theta == 1234.5


SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    {"type": "yarn", "factor": 4.0},
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0},
    {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]},
    {"rope_type": "proportional"},
    {"type": "mrope", "mrope_section": [16, 24, 24]},
    {"factor": 2.0},
    {"partial_rotary_factor": 0.5},
    {"full_attention": {"rope_type": "default", "rope_theta": 1e6}},
]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("part", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda one: next(iter(one.items())))
def test_other_ropes_are_refused_by_name(
    name: str, part: str, scaling: dict[str, Any], tmp_path: Path
) -> None:
    folder = with_config(tmp_path, {**SMALL[name], part: scaling})
    first, value = next(iter(scaling.items()))
    refusal(folder, "config.json", f"{part}.{first} = {value!r}", "not built")


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}}, "rope_parameters.rope_theta"),
        ({"rope_theta": None}, "no 'rope_theta'"),
        ({"rope_theta": None, "rope_parameters": {}}, "no 'rope_theta'"),
        ({"rope_parameters": "yarn"}, "rope_parameters is 'yarn'; expected an object"),
        ({"rope_scaling": [1]}, "rope_scaling is [1]; expected an object"),
        ({"rope_scaling": 2.0}, "rope_scaling is 2.0; expected an object"),
        ({"partial_rotary_factor": 0.25}, "partial_rotary_factor = 0.25"),
        ({"rotary_pct": 0.25}, "rotary_pct = 0.25"),
        ({"rope_type": "yarn"}, "rope_type = 'yarn'"),
        ({"rope_scaling_factor": 4.0}, "rope_scaling_factor = 4.0"),
        ({"rope_theta": None, "rope_parameters": {"rope_theta": "1e4"}}, "rope_theta is '1e4'"),
    ],
)
def test_rope_settings_that_differ_or_are_wrong(
    name: str, change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    refusal(with_config(tmp_path, {**SMALL[name], **change}), "config.json", said)


# Tensors beside those that are needed

HEADS = {
    "llada": ("weight_tying", "model.transformer.ff_out.weight", "model.transformer.wte.weight"),
    "dream": ("tie_word_embeddings", "lm_head.weight", "model.embed_tokens.weight"),
}


def frequencies(config: dict[str, Any], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    width = 32 // 4
    return torch.tensor([config["rope_theta"] ** (-n / width) for n in range(0, width, 2)]).to(
        dtype
    )


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", SMALL)
def test_tensors_that_repeat_what_is_there(name: str, device: str, tmp_path: Path) -> None:
    switch, head, table = HEADS[name]
    config = {**SMALL[name], switch: True}
    tensors = {k: v.bfloat16() for k, v in random_tensors(config).items()}
    plain = lrd.load_model(write(tmp_path / "plain", config, tensors), device)
    more = {
        head: tensors[table].clone(),
        "model.rotary_emb.inv_freq": frequencies(config),
        "model.layers.0.self_attn.rotary_emb.inv_freq": frequencies(config, torch.bfloat16),
        "model.layers.1.self_attn.rotary_emb.inv_freq": frequencies(config, torch.float16),
        "model.rotary_emb.original_inv_freq": frequencies(config),
    }
    both = lrd.load_model(write(tmp_path / "both", config, {**tensors, **more}), device)
    assert plain.unused_tensors == []
    assert both.unused_tensors == sorted(more)
    if device == "cpu":
        ids = torch.arange(12).view(2, 6)
        assert torch.equal(plain.logits(plain.embed(ids)), both.logits(both.embed(ids)))
    wider = {**more, head: tensors[table].float()}  # the same numbers in another type
    lrd.load_model(write(tmp_path / "wider", config, {**tensors, **wider}), device)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("what", ["number", "last number", "nan", "shape", "packed", "cast"])
def test_a_second_head_that_differs_is_refused(
    what: str, name: str, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "ROWS_AT_A_TIME", 7)  # of 48
    switch, head, table = HEADS[name]
    config = {**SMALL[name], switch: True}
    tensors = random_tensors(config)
    other = tensors[table].clone()
    if what == "number":
        other[3, 5] += 1e-6
    elif what == "last number":
        other[-1, -1] = -other[-1, -1]
    elif what == "nan":
        other[0, 0] = tensors[table][0, 0] = math.nan
    elif what == "shape":
        other = other[:-1].clone()
    elif what == "packed":
        other = other.to(torch.int8)
    else:
        other = other.bfloat16()
    folder = write(tmp_path, config, {**tensors, head: other})
    refusal(folder, f"1 extra: {head}", read=lambda path: lrd.load_model(path, device))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.rotary_emb.inv_freq", lambda x: x / 4),  # linear scaling
        ("model.rotary_emb.inv_freq", lambda x: torch.cat([x[:2], x[2:] / 4])),  # yarn
        ("model.rotary_emb.inv_freq", lambda x: x[:-1].clone()),
        ("model.rotary_emb.inv_freq", lambda x: (x * 100).to(torch.int32)),
        ("model.rotary_emb.inv_freq", lambda x: x * math.nan),
        ("model.rotary_emb.cos_cached", lambda x: x),
        ("model.layers.0.self_attn.bias", lambda x: x),
        ("score.weight", lambda x: x),
    ],
)
def test_tensors_that_mean_something_are_refused(
    name: str, change: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path
) -> None:
    tensors = {**random_tensors(SMALL_DREAM), name: change(frequencies(SMALL_DREAM))}
    refusal(write(tmp_path, SMALL_DREAM, tensors), f"1 extra: {name}")


def test_an_untied_head_is_not_a_repetition(tmp_path: Path) -> None:
    """Without the switch the head is the model's own, equal or not."""
    tensors = random_tensors(SMALL_DREAM)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    model = lrd.load_model(write(tmp_path, SMALL_DREAM, tensors))
    assert model.unused_tensors == []


# EOS


@pytest.mark.parametrize(
    ("stated", "generation", "expected"),
    [
        (38, None, (38,)),
        ([38], None, (38,)),
        ([38, 37], None, (38, 37)),
        ([37, 38, 37], None, (37, 38)),
        (38, {}, (38,)),
        (38, {"eos_token_id": None}, (38,)),
        (38, {"eos_token_id": 38}, (38,)),
        (38, {"eos_token_id": [38]}, (38,)),
        (38, {"eos_token_id": 37}, (38, 37)),
        (38, {"eos_token_id": [37, 38, 36]}, (38, 37, 36)),
        ([38, 37], {"eos_token_id": [36, 37]}, (38, 37, 36)),
    ],
)
def test_every_eos_that_the_files_name(
    stated: Any, generation: Any, expected: tuple[int, ...], tmp_path: Path
) -> None:
    folder = with_config(tmp_path, {**SMALL_LLADA, "eos_token_id": stated})
    before = fingerprint(folder)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    model = lrd.load_model(folder)
    assert model.eos_ids == expected
    assert (model.eos_id, model.pad_id) == (expected[0], 38)
    named = [stated] if isinstance(stated, int) else stated
    # The file is part of what decides results exactly where it adds an id.
    assert (fingerprint(folder) == before) == (set(expected) == set(named))


@pytest.mark.parametrize("wrong", ["38", True, [37, "x"], 48, -1, [[37]], {"a": 1}])
def test_an_eos_of_another_type_in_the_second_file(wrong: Any, tmp_path: Path) -> None:
    folder = with_config(tmp_path, SMALL_LLADA)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": wrong}))
    refusal(folder, "eos_token_id")


# Vocabularies beyond the table


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_another_models_tokenizer_is_refused_at_once(device: str, tmp_path: Path) -> None:
    folder = with_config(tmp_path, SMALL_LLADA)
    tokenizer_of("gpt2", None).save_pretrained(folder)
    said = refusal(folder, "48 embeddings", read=lambda path: lrd.load_model(path, device))
    assert re.search(r"vocabulary has ids up to \d+", said)
