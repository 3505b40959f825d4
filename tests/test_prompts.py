"""Text → ids: both families' templates, raw prompts, what is refused, what is cut."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lrd.models.tokenizer import load_tokenizer, token_id
from lrd.prompts import encode_prompt, fit_prompt

LLAMA3_TEMPLATE = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CHATML_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "{{ messages[0]['content'] }}"
)
LLAMA3_TOKENS = ["<|startoftext|>", "<|endoftext|>", "<|start_header_id|>", "<|end_header_id|>"]
LLAMA3_TOKENS += ["<|eot_id|>", "<|mdm_mask|>"]
TEXT = "Ann has 3 apples.\n  She eats two — how many are left?"
MERGES = [("a", "p"), ("ap", "p"), ("h", "a"), ("Ġ", "ha"), ("Ġ", "app"), ("l", "e")]


def byte_vocabulary() -> dict[str, int]:
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in MERGES)]
    return {letter: number for number, letter in enumerate(letters)}


def llada_tokenizer(folder: Path, template: str | None, **settings: Any) -> Any:
    """Files as a LLaDA release has them: tokenizer.json and its settings."""
    inner = Tokenizer(models.BPE(vocab=byte_vocabulary(), merges=MERGES))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(LLAMA3_TOKENS)
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        chat_template=template,
        **settings,
    )
    made.save_pretrained(folder)
    return load_tokenizer(folder)


def dream_files(folder: Path, first_id: int | None = None, **settings: Any) -> None:
    """Files as a Dream release has them: a class of its own, no tokenizer.json."""
    vocabulary = byte_vocabulary()
    first = len(vocabulary) if first_id is None else first_id
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|beginoftext|>", "<|mask|>"]
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = "\n".join(" ".join(pair) for pair in MERGES)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    config = {
        "added_tokens_decoder": {
            str(first + n): {
                "content": name,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "single_word": False,
                "special": True,
            }
            for n, name in enumerate(names)
        },
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "tokenizer_class": "DreamTokenizer",
        "bos_token": "<|beginoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "mask_token": {"content": "<|mask|>", "special": True},
        "chat_template": CHATML_TEMPLATE,
        **settings,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def holder(tokenizer: Any) -> Any:
    return SimpleNamespace(tokenizer=tokenizer)


# Formats


def test_llada_chat_has_one_bos_and_opens_the_answer(tmp_path: Path) -> None:
    tokenizer = llada_tokenizer(tmp_path, LLAMA3_TEMPLATE, add_bos_token=True)
    ids = encode_prompt(holder(tokenizer), TEXT, "chat")
    start, bos = (token_id(tokenizer, t) for t in ("<|start_header_id|>", "<|startoftext|>"))
    assert ids.count(bos) == 1
    assert ids[0] == bos
    assert ids.count(start) == 2
    assert tokenizer.decode(ids) == (
        f"<|startoftext|><|start_header_id|>user<|end_header_id|>\n\n{TEXT}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_system_prompt_is_the_first_turn(tmp_path: Path) -> None:
    tokenizer = llada_tokenizer(tmp_path, LLAMA3_TEMPLATE)
    ids = encode_prompt(holder(tokenizer), TEXT, "auto", "Be brief.")
    text = tokenizer.decode(ids)
    assert text.index("system<|end_header_id|>\n\nBe brief.<|eot_id|>") < text.index("user<|")


def test_dream_chat_from_files_without_its_code(tmp_path: Path) -> None:
    dream_files(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    ids = encode_prompt(holder(tokenizer), TEXT, "chat", "Be brief.")
    assert tokenizer.decode(ids) == (
        f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{TEXT}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert ids.count(token_id(tokenizer, "<|im_start|>")) == 3


def test_auto_is_chat_exactly_where_there_is_a_template(tmp_path: Path) -> None:
    chat, base = tmp_path / "chat", tmp_path / "base"
    with_template = holder(llada_tokenizer(chat, LLAMA3_TEMPLATE))
    without = holder(llada_tokenizer(base, None))
    assert encode_prompt(with_template, TEXT) == encode_prompt(with_template, TEXT, "chat")
    assert encode_prompt(without, TEXT) == encode_prompt(without, TEXT, "raw")
    assert encode_prompt(with_template, TEXT, "raw") == encode_prompt(without, TEXT, "raw")
    assert without.tokenizer.decode(encode_prompt(without, TEXT)) == TEXT


def test_raw_has_a_bos_where_the_tokenizer_asks_for_one(tmp_path: Path) -> None:
    plain, asking, nameless = tmp_path / "plain", tmp_path / "asking", tmp_path / "nameless"
    for folder in (plain, asking, nameless):
        folder.mkdir()
    dream_files(plain)
    dream_files(asking, add_bos_token=True)
    ids = encode_prompt(holder(load_tokenizer(plain)), TEXT, "raw")
    tokenizer = load_tokenizer(asking)
    assert encode_prompt(holder(tokenizer), TEXT, "raw") == [tokenizer.bos_token_id, *ids]
    stub = SimpleNamespace(encode=lambda *_, **__: ids, add_bos_token=True, bos_token_id=None)
    with pytest.raises(ValueError, match=r"bos_token in tokenizer_config.json"):
        encode_prompt(holder(stub), TEXT, "raw")


def test_refusals_say_what_to_do(tmp_path: Path) -> None:
    base = holder(llada_tokenizer(tmp_path / "base", None))
    strict = holder(llada_tokenizer(tmp_path / "strict", NO_SYSTEM_TEMPLATE))
    with pytest.raises(ValueError, match="no tokenizer; give token ids"):
        encode_prompt(holder(None), TEXT)
    with pytest.raises(ValueError, match="no chat template; use prompt format raw"):
        encode_prompt(base, TEXT, "chat")
    with pytest.raises(ValueError, match="drop the system prompt"):
        encode_prompt(base, TEXT, "auto", "Be brief.")
    with pytest.raises(ValueError, match=r"refuses these turns .*drop the system prompt"):
        encode_prompt(strict, TEXT, "chat", "Be brief.")
    with pytest.raises(ValueError, match="choose auto, chat or raw"):
        encode_prompt(base, TEXT, "chatml")


# Length


def test_fit_prompt() -> None:
    assert fit_prompt([1, 2, 3], 3, "fail") == [1, 2, 3]
    assert fit_prompt([1, 2, 3], 2, "keep_last") == [2, 3]
    assert fit_prompt([1], 2, "keep_last") == [1]
    with pytest.raises(ValueError, match=r"3 tokens, 2 fit; .*keep_last"):
        fit_prompt([1, 2, 3], 2, "fail")
    with pytest.raises(ValueError, match="lower gen_length"):
        fit_prompt([1, 2, 3], 0, "keep_last")
    with pytest.raises(ValueError, match="choose fail or keep_last"):
        fit_prompt([1, 2, 3], 5, "first")


# Dream's tokenizer


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        "It's 12345 apples,   isn't it?\n\n\tx  ",
        "naïve café — 東京 \u00c5 A\u030a",  # the last two are one letter after NFC
        "<|im_start|>user\nhi<|im_end|>",
        "",
    ],
)
def test_dream_tokenizer_is_qwen2s(tmp_path: Path, text: str) -> None:
    from transformers import Qwen2Tokenizer

    dream_files(tmp_path)
    ours = load_tokenizer(tmp_path)
    theirs = Qwen2Tokenizer(vocab=byte_vocabulary(), merges=MERGES)
    theirs.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    assert ours.encode(text, add_special_tokens=False) == theirs.encode(
        text, add_special_tokens=False
    )


def test_dream_special_ids_are_the_files(tmp_path: Path) -> None:
    """Ids come from tokenizer_config.json, also where they leave a gap behind vocab.json."""
    first = len(byte_vocabulary()) + 100
    dream_files(tmp_path, first_id=first)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == first
    assert token_id(tokenizer, "<|im_end|>") == first + 2
    assert tokenizer.bos_token_id == first + 3
    assert tokenizer.mask_token_id == first + 4
    assert tokenizer.decode([first, *byte_ids(tokenizer, "ha")], skip_special_tokens=True) == "ha"


def byte_ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return found


def test_contradictory_tokenizer_files_are_refused(tmp_path: Path) -> None:
    dream_files(tmp_path, first_id=3)
    with pytest.raises(ValueError, match=r"token 3 is .* among the added tokens"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json.*download"):
        load_tokenizer(tmp_path)


def test_folder_without_tokenizer(tmp_path: Path) -> None:
    assert load_tokenizer(tmp_path) is None
