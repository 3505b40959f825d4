"""Reads what prompts say as text, also where it spells a special token such as `<|im_end|>`.

A special token in a prompt could mask the prompt itself, end its turn or open another one. Those
that the chat template writes stay special; those that a text spells become ordinary tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Any

from lrd.chats import Chat
from lrd.models.protocol import DiffusionModel, eos_ids

MARKS = [chr(code) for code in range(0xE000, 0xF900)]
"""Private-use characters: each stands for a turn's text while the template is looked at."""
BRACKETED = re.compile(r"<.+>|\[.+\]|\{.+\}", re.DOTALL)
"""What a control token looks like where the tokenizer does not call it special."""


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


@dataclass(frozen=True, slots=True)
class _Skeleton:
    """What a template writes around the texts of chats with the same roles."""

    marked: str | None
    """The rendered chat with a mark in place of each text; None where the template refuses it."""
    special: frozenset[int]
    """Ids that no text may become."""
    expected: list[int] | None
    """The template's own special tokens, in order."""


class ChatReader:
    """Token ids of chats rendered by one template, in which the turns' texts are text."""

    def __init__(self, tokenizer: Any, special: frozenset[int]) -> None:
        """special: ids that no text may become; bracketed tokens that the template writes are added
        to them."""
        self._tokenizer, self._special = tokenizer, special
        self._added = getattr(tokenizer, "added_tokens_decoder", {})
        # A letter beside such a token hides it, so that counting does not tell all.
        self._fragile = [token.content for token in self._added.values() if token.single_word]
        self._skeletons: dict[tuple[str, ...], _Skeleton] = {}

    def read(self, chat: Chat, rendered: str, ids: list[int]) -> list[int]:
        """The ids of a rendered chat. ids: as the tokenizer reads the whole, returned as they are
        where no text spells a special token.

        Raises ValueError where a text's special tokens cannot be told from the template's.
        """
        skeleton = self._skeleton(chat.roles)
        special, texts = skeleton.special, chat.texts
        hides = any(word in text for word in self._fragile for text in texts)
        if not hides and _among(ids, special) == skeleton.expected:
            return ids
        spans = None
        if getattr(self._tokenizer, "is_fast", False):
            spans = self._text_spans(chat, rendered, skeleton.marked)
        # What a template makes of a text may hold special tokens of its own.
        if spans is not None and all(any(rendered[a:b] in t for t in texts) for a, b in spans):
            return self._reread(rendered, spans, special)
        spelt = {index for text in texts for index in _among(self._ids(text), special)}
        if spelt:
            raise ValueError(
                f"the prompt holds {_names(self._tokenizer, spelt)} and the chat template changes "
                "the text, so that it cannot be told from the template's own; take it out, or set "
                "allow_special_tokens"
            )
        return ids

    def _skeleton(self, roles: tuple[str, ...]) -> _Skeleton:
        if roles not in self._skeletons:
            self._skeletons[roles] = self._new_skeleton(roles)
        return self._skeletons[roles]

    def _new_skeleton(self, roles: tuple[str, ...]) -> _Skeleton:
        try:
            marked = Chat(roles, tuple(MARKS[: len(roles)])).render(self._tokenizer)
        # A template that wants more of a text than one character.
        except Exception:
            return _Skeleton(None, self._special, None)
        ids = self._ids(marked)
        added = self._added
        own = {n for n in ids if n in added and BRACKETED.fullmatch(added[n].content)}
        # The mark may be an unknown character.
        special = self._special | own - {getattr(self._tokenizer, "unk_token_id", None)}
        return _Skeleton(marked, special, _among(ids, special))

    def _reread(
        self, chat: str, spans: Sequence[tuple[int, int]], special: frozenset[int]
    ) -> list[int]:
        """The chat, cut at the template's special tokens; a part that holds others is read as
        text, every other part stays as it was."""
        whole = self._tokenizer(
            chat, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        found: list[int] = []
        part: list[int] = []
        begin = 0

        def end_part(end: int) -> None:
            is_text = special.isdisjoint(part)
            found.extend(part if is_text else as_text(self._tokenizer, chat[begin:end], special))
            part.clear()

        for index, (first, last) in zip(whole["input_ids"], whole["offset_mapping"], strict=True):
            if index not in special or _overlaps(_core(chat, (first, last)), spans):
                part.append(index)
                continue
            end_part(first)
            found.append(index)
            begin = last
        end_part(len(chat))
        return found

    def _text_spans(
        self, chat: Chat, rendered: str, marked: str | None
    ) -> list[tuple[int, int]] | None:
        """Where the turns' texts stand in a rendered chat, whatever the template made of them;
        None where that cannot be said."""
        if marked is None:
            return None
        marks = MARKS[: len(chat.texts)]
        pieces = re.split(f"([{''.join(marks)}])", marked)
        texts = dict(zip(marks, chat.texts, strict=True))
        if "".join(texts.get(piece, piece) for piece in pieces) != rendered:
            found = self._changed_texts(chat, rendered)
            if found is None:
                return None
            texts = dict(zip(marks, found, strict=True))
        spans, at = [], 0
        for piece in pieces:
            end = at + len(texts.get(piece, piece))
            if piece in texts:
                spans.append((at, end))
            at = end
        return spans

    def _changed_texts(self, chat: Chat, rendered: str) -> list[str] | None:
        """What the template makes of each text: turn by turn takes the place of its mark, and the
        renderings before and after are compared. None where these differ in more."""
        used = set("".join(chat.texts))
        marks = [mark for mark in MARKS if mark not in used][: len(chat.texts)]
        steps = (
            replace(chat, texts=(*chat.texts[:number], *marks[number:])).render(self._tokenizer)
            for number in range(len(chat.texts))
        )
        try:
            found = [
                _between(before.split(mark), after)
                for mark, (before, after) in zip(
                    marks, pairwise(chain(steps, [rendered])), strict=True
                )
            ]
        except Exception:  # As for the marks alone.
            return None
        texts = [text for text in found if text is not None]
        return texts if len(texts) == len(chat.texts) else None

    def _ids(self, text: str) -> list[int]:
        found = self._tokenizer(text, add_special_tokens=False, verbose=False)
        ids: list[int] = found["input_ids"]
        return ids


def _among(ids: Iterable[int], special: frozenset[int]) -> list[int]:
    return [index for index in ids if index in special]


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
