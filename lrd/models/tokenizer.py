"""The tokenizer of a checkpoint folder, from its files alone.

LLaDA releases hold a tokenizer.json. Dream releases hold vocab.json
and merges.txt and name a class of their own, whose code would have to be run; it is Qwen2's
byte-level BPE, built here from the files instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lrd.models.files import read_object, read_text

TEXT_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja"),
)
SPECIAL_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "mask_token")

QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # English contractions
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"  # letters, with one leading space or sign
    r"|\p{N}"  # digits one by one
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"  # signs
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"  # line ends, other space
)
"""How Qwen2 splits text before BPE, as for the training of its vocabulary."""


def load_tokenizer(folder: Path) -> Any:
    """The folder's transformers tokenizer, or None where it has none.

    Raises ValueError where its files cannot be read or do not fit together.
    """
    is_fast = (folder / "tokenizer.json").is_file()
    if not is_fast and not all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        return None
    for name in TEXT_FILES:
        if (folder / name).is_file():
            read_text(folder / name)
    try:
        if not is_fast:
            return _qwen2_tokenizer(folder)
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(folder)
    except ValueError as error:
        if str(folder) in str(error):
            raise
        raise ValueError(_broken(folder, error)) from error
    # The libraries may raise any exception for broken files.
    except Exception as error:
        raise ValueError(_broken(folder, error)) from error


def _broken(folder: Path, error: Exception) -> str:
    words = " ".join(str(error).split())
    return (
        f"{folder}: the tokenizer's files do not make a tokenizer ({type(error).__name__}: "
        f"{words}); download them again"
    )


def refuse_foreign(tokenizer: Any, table_rows: int) -> None:
    """ValueError where the vocabulary reaches beyond the model's table of embeddings.

    Tokens that were added to the vocabulary may: prompts that hold one fail by themselves.
    """
    if tokenizer is None:
        return
    added = tokenizer.get_added_vocab()
    last = max((i for token, i in tokenizer.get_vocab().items() if token not in added), default=0)
    if last >= table_rows:
        raise ValueError(
            f"the tokenizer's vocabulary has ids up to {last} and the model {table_rows} "
            "embeddings: it is another model's; put this checkpoint's own tokenizer files there"
        )


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

    settings = read_object(folder / "tokenizer_config.json")
    vocabulary = read_object(folder / "vocab.json")
    added = _added_tokens(folder, settings)
    ids = {index: token for token, index in vocabulary.items()}
    for index, entry in added.items():
        if ids.get(index, entry["content"]) != entry["content"]:
            raise ValueError(
                f"{folder}: token {index} is {ids[index]!r} in vocab.json and "
                f"{entry['content']!r} among the added tokens; download both files again"
            )
        vocabulary[entry["content"]] = index  # Known to BPE under exactly its id.
    lines = read_text(folder / "merges.txt").split("\n")
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
        listed = read_object(folder / "added_tokens.json")
        return {index: {"content": token} for token, index in listed.items()}
    return {}


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return read_text(file)
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = next((t["template"] for t in template if t["name"] == "default"), None)
    return template


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)
