"""A prompt's text → token ids, as the checkpoint's own tokenizer and chat template have it.

Knows nothing of decoding, files or batches. No token id is written here: all come from the
tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lrd.config import PromptFormat, Truncation
from lrd.models.protocol import DiffusionModel


def encode_prompt(
    model: DiffusionModel,
    text: str,
    prompt_format: PromptFormat = "auto",
    system_prompt: str | None = None,
) -> list[int]:
    """Token ids of a prompt.

    prompt_format: `chat` renders `text` as the user's turn by the tokenizer's chat template
    and opens the assistant's; `raw` tokenises the text as it is, behind a bos where the
    tokenizer's settings ask for one (add_bos_token); `auto` is `chat` exactly where the
    tokenizer has a chat template. system_prompt: the chat's first turn.
    Raises ValueError where the model has no tokenizer, `chat` has no template or the template
    refuses the turns, and where a system prompt is given to a raw prompt.
    """
    (ids,) = encode_prompts(model, [text], prompt_format, system_prompt)
    if isinstance(ids, ValueError):
        raise ids
    return ids


def encode_prompts(
    model: DiffusionModel,
    texts: Sequence[str],
    prompt_format: PromptFormat = "auto",
    system_prompt: str | None = None,
) -> list[list[int] | ValueError]:
    """Token ids of many prompts at once, as `encode_prompt` has them.

    Where the template refuses a prompt's turns, the error stands in its place. Raises ValueError
    for what is wrong with all of them.
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
    if has_template and prompt_format != "raw":
        return _chat_ids(tokenizer, texts, system_prompt)
    if system_prompt is not None:
        raise ValueError(
            "a raw prompt has no system turn; drop the system prompt, write it into the prompt, "
            "or use prompt format chat with a chat model"
        )
    return _raw_ids(tokenizer, texts)


def fit_prompt(ids: Sequence[int], max_tokens: int, truncation: Truncation) -> list[int]:
    """The prompt where it has at most max_tokens tokens.

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
    tokenizer: Any, texts: Sequence[str], system_prompt: str | None
) -> list[list[int] | ValueError]:
    """The rendered chat writes its own bos and headers, so the tokenizer must add none."""
    # transformers renders templates with jinja2, so it is there wherever a template is.
    from jinja2 import TemplateError

    rendered: list[str] = []
    refused: dict[int, ValueError] = {}
    for index, text in enumerate(texts):
        turns = [{"role": "user", "content": text}]
        if system_prompt is not None:
            turns.insert(0, {"role": "system", "content": system_prompt})
        try:
            rendered.append(
                tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            )
        except TemplateError as error:
            refused[index] = ValueError(
                f"the chat template refuses these turns ({error}); "
                "drop the system prompt or use prompt format raw"
            )
    ids = iter(_ids(tokenizer, rendered))
    return [refused[n] if n in refused else next(ids) for n in range(len(texts))]


def _raw_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int] | ValueError]:
    bos: list[int] = []
    if getattr(tokenizer, "add_bos_token", False):
        if tokenizer.bos_token_id is None:
            raise ValueError(
                "the tokenizer's settings ask for a bos (add_bos_token) but name none; "
                "set bos_token in tokenizer_config.json, or add_bos_token to false"
            )
        bos = [int(tokenizer.bos_token_id)]
    return [[*bos, *ids] for ids in _ids(tokenizer, texts)]


def _ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    # Not verbose: it would warn of prompts beyond a length that is not the model's to say.
    found = tokenizer(list(texts), add_special_tokens=False, verbose=False)
    ids: list[list[int]] = found["input_ids"]
    return ids
