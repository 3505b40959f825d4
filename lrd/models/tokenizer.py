"""The tokenizer of a checkpoint folder, from its files alone.

Knows nothing of models. LLaDA releases hold a tokenizer.json. Dream releases hold vocab.json
and merges.txt and name a class of their own, whose code would have to be run; it is Qwen2's
byte-level BPE, built here from the files instead.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SPECIAL_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "mask_token")

QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # English contractions
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"  # letters, with one leading space or sign
    r"|\p{N}"  # digits one by one
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"  # signs
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"  # line ends, other space
)
"""How Qwen2 splits text before BPE; part of what its vocabulary was made with."""


def load_tokenizer(folder: Path) -> Any:
    """The folder's transformers tokenizer, or None where it has none.

    Raises ValueError where its files do not fit together.
    """
    if (folder / "tokenizer.json").is_file():
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(folder)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _qwen2_tokenizer(folder)
    return None


def token_id(tokenizer: Any, token: str) -> int | None:
    """The id of a token that the vocabulary holds as one, or None."""
    if tokenizer is None:
        return None
    found = tokenizer.get_vocab().get(token)
    return None if found is None else int(found)


def _qwen2_tokenizer(folder: Path) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
    from tokenizers import pre_tokenizers as pre
    from transformers import PreTrainedTokenizerFast

    settings = _read_json(folder / "tokenizer_config.json")
    vocabulary = _read_json(folder / "vocab.json")
    added = _added_tokens(folder, settings)
    ids = {index: token for token, index in vocabulary.items()}
    for index, entry in added.items():
        if ids.get(index, entry["content"]) != entry["content"]:
            raise ValueError(
                f"{folder}: token {index} is {ids[index]!r} in vocab.json and "
                f"{entry['content']!r} among the added tokens; download both files again"
            )
        vocabulary[entry["content"]] = index  # Known to BPE under exactly its id.
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    pairs = [line.partition(" ") for line in lines if line and not line.startswith("#version")]
    merges = [(first, second) for first, _, second in pairs]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre.Sequence(
        [
            pre.Split(Regex(QWEN2_WORDS), behavior="isolated"),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    flags = ("lstrip", "rstrip", "normalized", "single_word")
    for _, entry in sorted(added.items()):
        special = bool(entry.get("special", True))
        token = AddedToken(
            entry["content"], special=special, **{f: bool(entry.get(f, False)) for f in flags}
        )
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])
    roles = {role: _content(settings[role]) for role in SPECIAL_ROLES if settings.get(role)}
    build: Any = PreTrainedTokenizerFast  # transformers leaves it untyped
    return build(
        tokenizer_object=tokenizer,
        chat_template=_chat_template(folder, settings),
        add_bos_token=bool(settings.get("add_bos_token", False)),
        clean_up_tokenization_spaces=False,
        **roles,
    )


def _added_tokens(folder: Path, settings: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Id → token and its flags, from tokenizer_config.json or the older added_tokens.json."""
    if "added_tokens_decoder" in settings:
        return {int(index): entry for index, entry in settings["added_tokens_decoder"].items()}
    if (folder / "added_tokens.json").is_file():
        listed = _read_json(folder / "added_tokens.json")
        return {index: {"content": token} for token, index in listed.items()}
    return {}


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = next((t["template"] for t in template if t["name"] == "default"), None)
    return template


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: {error}; download the tokenizer's files again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file}: not a JSON object; download the tokenizer's files again")
    return found
