"""Tokenizers trained in tests: the kinds that releases have, each with control tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as pre
from transformers import PreTrainedTokenizerFast

from lrd.models.tokenizer import QWEN2_WORDS

SPECIALS = ["<|mask|>", "<|eos|>", "<|im_start|>", "<|im_end|>", "<|mdm_mask|>", "<unk>"]
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(add_prefix_space: bool, words: str | None = None) -> Tokenizer:
    """BPE over bytes, as GPT-2 (no words), Qwen2 and Llama 3 have it."""
    made = Tokenizer(models.BPE())
    level = pre.ByteLevel(add_prefix_space=add_prefix_space, use_regex=words is None)
    split = [pre.Split(Regex(words), "isolated")] if words else []
    made.pre_tokenizer = pre.Sequence([*split, level])
    made.decoder = decoders.ByteLevel()
    alphabet = pre.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=SPECIALS, initial_alphabet=alphabet
    )
    made.train_from_iterator(corpus(), trainer)
    return made


def nfkc_byte_level() -> Tokenizer:
    """Full-width brackets become plain ones before tokens are looked for."""
    made = byte_level(False, QWEN2_WORDS)
    made.normalizer = normalizers.NFKC()
    made.add_special_tokens([AddedToken("<|folded|>", normalized=True, special=True)])
    return made


def metaspace(scheme: str) -> Tokenizer:
    """BPE over characters behind a ▁, as Llama 2 has it."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    made.pre_tokenizer = pre.Metaspace(prepend_scheme=scheme)
    made.decoder = decoders.Metaspace(prepend_scheme=scheme)
    made.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIALS))
    return made


def unigram() -> Tokenizer:
    """SentencePiece's other model; its vocabulary holds the control tokens as pieces."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIALS, unk_token="<unk>")
    made.train_from_iterator(corpus(), trainer)
    return made


def whole_words() -> Tokenizer:
    """Words between spaces; the control tokens are words like any other."""
    made = Tokenizer(models.WordLevel(unk_token="<unk>"))
    made.pre_tokenizer = pre.WhitespaceSplit()
    made.train_from_iterator(corpus(), trainers.WordLevelTrainer(special_tokens=SPECIALS))
    return made


def eating_space() -> Tokenizer:
    """Control tokens that take in the space around them, as Phi-3's and RoBERTa's do."""
    made = byte_level(False)
    made.add_special_tokens(
        [
            AddedToken("<|im_start|>", lstrip=True, rstrip=True, special=True, normalized=False),
            AddedToken("<|im_end|>", lstrip=True, rstrip=True, special=True, normalized=False),
        ]
    )
    return made


def not_called_special() -> Tokenizer:
    """The turns' tokens were added by hand without `special`, as fine-tunes often do."""
    made = byte_level(False, LLAMA3_WORDS)
    made.add_tokens(
        [
            AddedToken("<|turn|>", special=False),
            AddedToken("<|done|>", special=False, lstrip=True, rstrip=True),
        ]
    )
    return made


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": lambda: byte_level(False),
    "gpt2 with a prefix space": lambda: byte_level(True),
    "qwen2": lambda: byte_level(False, QWEN2_WORDS),
    "llama3": lambda: byte_level(False, LLAMA3_WORDS),
    "nfkc": nfkc_byte_level,
    "metaspace first": lambda: metaspace("first"),
    "metaspace always": lambda: metaspace("always"),
    "unigram": unigram,
    "words": whole_words,
    "eating space": eating_space,
    "not called special": not_called_special,
}


@cache
def made(kind: str) -> Tokenizer:
    """Trained once; not to be changed."""
    return KINDS[kind]()


def tokenizer_of(kind: str, template: str | None, **settings: Any) -> Any:
    """A transformers tokenizer of this kind."""
    inner = Tokenizer.from_str(made(kind).to_str())
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|eos|>",
        mask_token="<|mask|>",
        unk_token="<unk>",
        chat_template=template,
        **settings,
    )


def corpus() -> list[str]:
    """English with code and digits: this project's own pages, and some pipes."""
    root = Path(__file__).parents[2]
    lines = [
        line
        for name in ("README.md", "lrd/README.md", "lrd/models/README.md", "pipeline/README.md")
        for line in (root / name).read_text(encoding="utf-8").splitlines(keepends=True)
    ]
    # So that the brackets of control tokens are merged, as large vocabularies have them.
    return [*lines, *["x = a <| f |> b\n"] * 100]
