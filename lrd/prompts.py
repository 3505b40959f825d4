"""A prompt, text or chat → token ids, by the checkpoint's own tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lrd.chats import Chat, Messages, chat_of
from lrd.config import PromptFormat, Truncation
from lrd.models.protocol import DiffusionModel
from lrd.special_text import ChatReader, as_text, special_ids

NO_SYSTEM_TURN = (
    "a raw prompt has no system turn; drop the system prompt, write it into the prompt, or use "
    "prompt format chat with a chat model"
)
MAX_REASON = 300
"""Characters of a template's error about a chat, which may repeat the whole chat."""


def encode_prompt(
    model: DiffusionModel,
    prompt: str | Messages,
    prompt_format: PromptFormat = "auto",
    system_prompt: str | None = None,
    allow_special_tokens: bool = False,
) -> list[int]:
    """Token ids of a prompt.

    prompt: a text, which is the user's turn, or a chat: a list of {role, content} whose roles are
    system, user and assistant. Where the last turn of a chat is the assistant's, the ids end with
    its content, so that the answer continues it.
    prompt_format: `chat` renders the turns by the tokenizer's chat template and opens the
    assistant's; `raw` tokenises a text as it is, behind a bos where the tokenizer's settings ask
    for one (add_bos_token); `auto` is `chat` exactly where the tokenizer has a chat template.
    system_prompt: the first turn of a chat that has no system turn. allow_special_tokens:
    whether `<|im_end|>` and the like in any turn's text are special tokens; else they are text,
    and only the template's own are special.
    Raises ValueError where the model has no tokenizer, `chat` or a chat has no template, a turn is
    not {role, content}, the template fails on the turns or the model has no embedding for a token,
    and where a system prompt is given to a raw prompt.
    """
    (ids,) = encode_prompts(model, [prompt], prompt_format, system_prompt, allow_special_tokens)
    if isinstance(ids, ValueError):
        raise ids
    return ids


def encode_prompts(
    model: DiffusionModel,
    prompts: Sequence[str | Messages],
    prompt_format: PromptFormat = "auto",
    system_prompt: str | Sequence[str | None] | None = None,
    allow_special_tokens: bool = False,
) -> list[list[int] | ValueError]:
    """Token ids of many prompts at once, as `encode_prompt` has them.

    system_prompt: one for all, or a list with one for each prompt. A prompt that cannot be encoded
    has its ValueError in the list. Raises ValueError for what is wrong with all of them.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError("the model has no tokenizer; give token ids instead of text")
    if prompt_format not in ("auto", "chat", "raw"):
        raise ValueError(f"prompt format {prompt_format!r}; choose auto, chat or raw")
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if prompt_format == "chat" and not has_template:
        raise ValueError(
            "the tokenizer has no chat template; use prompt format raw, or put the release's "
            "chat_template.jinja beside its tokenizer files"
        )
    is_chat = has_template and prompt_format != "raw"
    if isinstance(system_prompt, str) and not is_chat:
        raise ValueError(NO_SYSTEM_TURN)
    if system_prompt is None or isinstance(system_prompt, str):
        system_prompt = [system_prompt] * len(prompts)
    special = frozenset[int]() if allow_special_tokens else special_ids(model)
    if is_chat:
        found = _chat_ids(tokenizer, prompts, system_prompt, special)
    else:
        found = _raw_ids(tokenizer, prompts, system_prompt, special)
    return [_within_table(model, ids) for ids in found]


def encode_texts(
    model: DiffusionModel, texts: Sequence[str], allow_special_tokens: bool = False
) -> list[list[int] | ValueError]:
    """Token ids of texts as they are, each read apart from the others: without bos or template.

    allow_special_tokens: as for `encode_prompt`. A text that cannot be encoded has its ValueError
    in the list.
    """
    if model.tokenizer is None:
        raise ValueError("the model has no tokenizer; give token ids instead of text")
    special = frozenset[int]() if allow_special_tokens else special_ids(model)
    found = _text_ids(model.tokenizer, texts, special)
    return [_within_table(model, ids) for ids in found]


def fit_prompt(ids: Sequence[int], max_tokens: int, truncation: Truncation) -> list[int]:
    """The prompt, if it has at most max_tokens tokens.

    A longer one raises ValueError under `fail` and keeps its last tokens under `keep_last`.
    """
    if max_tokens < 1:
        raise ValueError(
            f"{max_tokens} tokens are left for the prompt; lower gen_length or use a model with "
            "more positions"
        )
    if truncation not in ("fail", "keep_last"):
        raise ValueError(f"truncation {truncation!r}; choose fail or keep_last")
    if len(ids) > max_tokens and truncation == "fail":
        raise ValueError(
            f"the prompt has {len(ids)} tokens, {max_tokens} fit; shorten it, lower gen_length, "
            "or set truncation to keep_last"
        )
    return list(ids[-max_tokens:])


def _chat_ids(
    tokenizer: Any,
    prompts: Sequence[str | Messages],
    system_prompts: Sequence[str | None],
    special: frozenset[int],
) -> list[list[int] | ValueError]:
    """The rendered chat writes its own bos and headers, so the tokenizer must add none."""
    pairs = zip(prompts, system_prompts, strict=True)
    rendered = [_rendered(tokenizer, prompt, system_prompt) for prompt, system_prompt in pairs]
    good = [one for one in rendered if not isinstance(one, ValueError)]
    encoded = iter(_ids(tokenizer, [text for _, text in good]))
    reader = ChatReader(tokenizer, special) if special else None
    found: list[list[int] | ValueError] = []
    for one in rendered:
        try:
            if isinstance(one, ValueError):
                raise one
            ids = next(encoded)
            if reader and isinstance(ids, list):
                ids = reader.read(*one, ids)
        except ValueError as error:
            ids = error
        found.append(ids)
    return found


def _rendered(
    tokenizer: Any, prompt: str | Messages, system_prompt: str | None
) -> tuple[Chat, str] | ValueError:
    """A prompt's chat, and the text that the template makes of it; or why there is none."""
    try:
        chat = chat_of(prompt, system_prompt)
    except ValueError as error:
        return error
    try:
        return chat, chat.render(tokenizer)
    # A template is a program that came with the checkpoint: it may raise anything.
    except Exception as error:
        return _refused(error, is_text=isinstance(prompt, str))


def _refused(error: Exception, *, is_text: bool) -> ValueError:
    from jinja2 import TemplateError

    words = " ".join(str(error).split())
    way_out = "drop the system prompt or use prompt format raw"
    if not is_text:
        words = words if len(words) <= MAX_REASON else f"{words[:MAX_REASON]}…"
        way_out = "change the turns to those that it takes"
    if not isinstance(error, TemplateError):
        words = f"{type(error).__name__}: {words}"
    return ValueError(f"the chat template refuses these turns ({words}); {way_out}")


def _raw_ids(
    tokenizer: Any,
    prompts: Sequence[str | Messages],
    system_prompts: Sequence[str | None],
    special: frozenset[int],
) -> list[list[int] | ValueError]:
    bos: list[int] = []
    if getattr(tokenizer, "add_bos_token", False):
        if tokenizer.bos_token_id is None:
            raise ValueError(
                "the tokenizer's settings ask for a bos (add_bos_token) but name none; "
                "set bos_token in tokenizer_config.json, or add_bos_token to false"
            )
        bos = [int(tokenizer.bos_token_id)]
    encoded = iter(
        _text_ids(tokenizer, [text for text in prompts if isinstance(text, str)], special)
    )
    found: list[list[int] | ValueError] = []
    for prompt, system_prompt in zip(prompts, system_prompts, strict=True):
        if not isinstance(prompt, str):
            found.append(
                ValueError(
                    "the prompt is a chat, which only a chat template can render; use prompt "
                    "format chat with a chat model"
                )
            )
            continue
        ids = next(encoded)
        if system_prompt is not None:
            ids = ValueError(NO_SYSTEM_TURN)
        found.append([*bos, *ids] if isinstance(ids, list) else ids)
    return found


def _text_ids(
    tokenizer: Any, texts: Sequence[str], special: frozenset[int]
) -> list[list[int] | ValueError]:
    """Ids of texts in which nothing is special."""
    found = _ids(tokenizer, texts)
    for number, ids in enumerate(found):
        if isinstance(ids, list) and not special.isdisjoint(ids):
            try:
                found[number] = as_text(tokenizer, texts[number], special)
            except ValueError as error:
                found[number] = error
    return found


def _ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int] | ValueError]:
    if not texts:
        return []
    try:
        return _tokenised(tokenizer, list(texts))
    # One text that the tokenizer cannot take must not fail the others.
    except Exception as error:
        if len(texts) > 1:
            return [ids for text in texts for ids in _ids(tokenizer, [text])]
        words = " ".join(str(error).split())
        return [ValueError(f"the tokenizer fails on it ({type(error).__name__}: {words})")]


def _tokenised(tokenizer: Any, texts: list[str]) -> list[list[int] | ValueError]:
    """Ids of texts as they are: no special tokens are added, nothing is cut or padded."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        # Not verbose: it would warn of prompts beyond a length that is not the model's to say.
        found = tokenizer(texts, add_special_tokens=False, verbose=False)
        ids: list[list[int] | ValueError] = found["input_ids"]
        return ids
    # The tokenizer itself makes masks and lists of every text that nobody reads, half of the cost.
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = bool(getattr(tokenizer, "split_special_tokens", False))
    return [one.ids for one in backend.encode_batch_fast(texts, add_special_tokens=False)]


def _within_table(model: DiffusionModel, ids: list[int] | ValueError) -> list[int] | ValueError:
    """The ids, or an error where one has no embedding and would make the forward pass fail."""
    table = getattr(model, "embedding_table", None)
    if table is None or isinstance(ids, ValueError) or not ids or max(ids) < len(table):
        return ids
    token = model.tokenizer.convert_ids_to_tokens([max(ids)])[0]
    return ValueError(
        f"the prompt holds {token!r}, token {max(ids)}, and the model has {len(table)} "
        "embeddings; take it out, or use the tokenizer that belongs to the model"
    )
