"""Reads what prompts say as text, also where it spells a special token such as `<|im_end|>`.

A special token in a prompt could mask the prompt itself, end its turn or open another one. Those
that the chat template writes stay special; those that a text spells become ordinary tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

from lrd.models.protocol import DiffusionModel, eos_ids

USER, SYSTEM = "\ue000", "\ue001"
"""Private-use characters that stand for a turn's text while the template is looked at."""
BRACKETED = re.compile(r"<.+>|\[.+\]|\{.+\}", re.DOTALL)
"""What a control token looks like where the tokenizer does not call it special."""

Render = Callable[[str, str | None], str]
"""The user's text and the system prompt → the rendered chat."""


def special_ids(model: DiffusionModel) -> frozenset[int]:
    """Ids that no text may become: the tokenizer's special tokens, [MASK] and what ends a turn.

    Without the token of unknown characters, which is what some texts are.
    """
    tokenizer = model.tokenizer
    added = getattr(tokenizer, "added_tokens_decoder", {})
    roles = {getattr(model, "mask_id", None), getattr(model, "eot_id", None)}
    if hasattr(model, "eos_id"):
        roles.update(eos_ids(model))
    # Where EOS serves as the unknown token (GPT-2), no text is unknown.
    for role in ("bos_token_id", "eos_token_id", "mask_token_id"):
        roles.add(getattr(tokenizer, role, None))
    special = {index for index, token in added.items() if token.special}
    special.discard(getattr(tokenizer, "unk_token_id", None))
    return frozenset(special | {index for index in roles if index is not None})


def as_text(tokenizer: Any, text: str, special: frozenset[int]) -> list[int]:
    """Token ids of a text in which nothing is special.

    Raises ValueError where the tokenizer has no such reading of it.
    """
    plain = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    ids: list[int] = tokenizer(text, **plain)["input_ids"]
    if special.isdisjoint(ids):
        return ids
    # In the vocabulary like a word, or added without being called special: cut it in two.
    if getattr(tokenizer, "is_fast", False):
        found = tokenizer(text, return_offsets_mapping=True, **plain)
        pairs = zip(found["input_ids"], found["offset_mapping"], strict=True)
        cuts = [_core(text, span)[0] + 1 for index, span in pairs if index in special]
        pieces = [text[a:b] for a, b in pairwise([0, *cuts, len(text)]) if a < b]
        ids = [index for piece in tokenizer(pieces, **plain)["input_ids"] for index in piece]
    left = special.intersection(ids)
    if left:
        raise ValueError(
            f"the prompt holds {_names(tokenizer, left)}, which this tokenizer cannot read as "
            "text; take it out, or set allow_special_tokens"
        )
    return ids


class ChatReader:
    """Token ids of chats rendered by one template, in which the turns' texts are text."""

    def __init__(
        self, tokenizer: Any, render: Render, system: str | None, special: frozenset[int]
    ) -> None:
        self._tokenizer, self._system, self._special = tokenizer, system, special
        added = getattr(tokenizer, "added_tokens_decoder", {})
        # A letter beside such a token hides it, so that counting does not tell all.
        self._fragile = [token.content for token in added.values() if token.single_word]
        self._marked: str | None = None
        self._expected: list[int] | None = None
        try:
            self._marked = render(USER, None if system is None else SYSTEM)
            self._with_system = render(USER, system)
        # A template that wants more of a text than one character.
        except Exception:
            return
        ids = self._ids(self._marked)
        own = {n for n in ids if n in added and BRACKETED.fullmatch(added[n].content)}
        # The mark may be an unknown character.
        self._special |= own - {getattr(tokenizer, "unk_token_id", None)}
        self._expected = self._specials(ids)

    def read(self, chat: str, text: str, ids: list[int]) -> list[int]:
        """The ids of a rendered chat. text: the user's. ids: as the tokenizer reads the whole,
        returned as they are where no text spells a special token.

        Raises ValueError where a text's special tokens cannot be told from the template's.
        """
        if self._specials(ids) == self._expected and not any(w in text for w in self._fragile):
            return ids
        texts = (text, self._system or "")
        spans = self._text_spans(chat) if getattr(self._tokenizer, "is_fast", False) else None
        # What a template makes of a text may hold special tokens of its own.
        if spans is not None and all(any(chat[a:b] in one for one in texts) for a, b in spans):
            return self._reread(chat, spans)
        spelt = {index for one in texts for index in self._specials(self._ids(one))}
        if spelt:
            raise ValueError(
                f"the prompt holds {_names(self._tokenizer, spelt)} and the chat template changes "
                "the text, so that it cannot be told from the template's own; take it out, or set "
                "allow_special_tokens"
            )
        return ids

    def _reread(self, chat: str, spans: list[tuple[int, int]]) -> list[int]:
        """The chat, cut at the template's special tokens; a part that holds others is read as
        text, every other part stays as it was."""
        whole = self._tokenizer(
            chat, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        found: list[int] = []
        part: list[int] = []
        begin = 0

        def end_part(end: int) -> None:
            is_text = self._special.isdisjoint(part)
            found.extend(part if is_text else self._as_text(chat[begin:end]))
            part.clear()

        for index, (first, last) in zip(whole["input_ids"], whole["offset_mapping"], strict=True):
            if index not in self._special or _overlaps(_core(chat, (first, last)), spans):
                part.append(index)
                continue
            end_part(first)
            found.append(index)
            begin = last
        end_part(len(chat))
        return found

    def _text_spans(self, chat: str) -> list[tuple[int, int]] | None:
        """Where the turns' texts stand in a rendered chat, whatever the template made of them;
        None where that cannot be said."""
        if self._marked is None:
            return None
        system = _between(self._marked.split(SYSTEM), self._with_system)
        user = _between(self._with_system.split(USER), chat)
        if system is None or user is None:
            return None
        texts = {SYSTEM: system, USER: user}
        spans, at = [], 0
        for part in re.split(f"([{USER}{SYSTEM}])", self._marked):
            end = at + len(texts.get(part, part))
            if part in texts:
                spans.append((at, end))
            at = end
        return spans

    def _as_text(self, text: str) -> list[int]:
        return as_text(self._tokenizer, text, self._special)

    def _ids(self, text: str) -> list[int]:
        found = self._tokenizer(text, add_special_tokens=False, verbose=False)
        ids: list[int] = found["input_ids"]
        return ids

    def _specials(self, ids: Iterable[int]) -> list[int]:
        return [index for index in ids if index in self._special]


def _between(pieces: list[str], whole: str) -> str | None:
    """The one text that joins the pieces to the whole; None where there is none."""
    gaps = len(pieces) - 1
    room = len(whole) - sum(map(len, pieces))
    if room < 0 or (room % gaps if gaps else room):
        return None
    text = whole[len(pieces[0]) :][: room // gaps] if gaps else ""
    return text if text.join(pieces) == whole else None


def _core(text: str, span: tuple[int, int]) -> tuple[int, int]:
    """A token's characters without the space that it takes in on either side."""
    first, last = span
    inner = text[first:last]
    return last - len(inner.lstrip()), first + len(inner.rstrip())


def _overlaps(span: tuple[int, int], others: Iterable[tuple[int, int]]) -> bool:
    return any(span[0] < last and first < span[1] for first, last in others)


def _names(tokenizer: Any, ids: Iterable[int]) -> str:
    return ", ".join(map(repr, tokenizer.convert_ids_to_tokens(sorted(ids))))
