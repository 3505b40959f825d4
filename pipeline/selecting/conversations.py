"""Prompts and answers as chats, in the forms that trl's SFTTrainer and DPOTrainer read.

    messages     [{"role": "user", "content": …}, {"role": "assistant", "content": …}]
    preference   prompt [{"role": "user", …}], chosen and rejected [{"role": "assistant", …}]

As of trl's "Dataset formats and types": conversational language modeling, and conversational
preference with an explicit prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from lrd.chats import chat_of
from pipeline.input.prompt_text import (
    PROMPT_KINDS,
    PromptValue,
    is_chat,
    is_text,
    prompts_of,
    texts,
)
from pipeline.selecting.run_rows import Mask, RunRows

Turn = dict[str, str]
"""`{"role": "user", "content": "Hi"}`."""
TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
MESSAGES = pa.schema([("row_id", pa.string()), ("messages", TURNS)])
PREFERENCE = pa.schema(
    [
        *(("prompt", TURNS), ("chosen", TURNS), ("rejected", TURNS)),
        *(("chosen_row_id", pa.string()), ("rejected_row_id", pa.string())),
    ]
)
MEANINGS = {
    "messages": "prompt and answer as a chat",
    "prompt": "the prompt as a chat",
    "chosen": "the better answer",
    "rejected": "the worse answer",
    "chosen_row_id": "row of the better answer",
    "rejected_row_id": "row of the worse answer",
}
"""Of the columns that these forms add."""


class Exchange(NamedTuple):
    """A row's prompt and answer."""

    number: int
    """Of the row in its run."""
    row_id: str
    prompt: PromptValue
    answer: str
    system: str | None
    """Its system prompt, for a chat without a system turn."""


def exchanges(rows: RunRows, kept: Mask) -> Iterator[Exchange]:
    """Prompt and answer of each kept row, which is an ok one; the prompt as the run has read it.

    Raises ValueError for a prompt column that holds no prompts.
    """
    column = str(rows.manifest.settings.get("prompt_column", "prompt"))
    kind = rows.field(column).type
    if not (is_text(kind) or is_chat(kind)):
        raise ValueError(f"the prompt column {column!r} holds {kind}; expected {PROMPT_KINDS}")
    run_wide = system_prompt(rows.manifest.settings)
    columns = ["row_id", column, "output_text"]
    if "system_prompt" in rows.manifest.settings.get("row_settings", ()):
        columns.append("system_prompt")
    for first, batch in rows.batches(columns, kept):
        ids, answers = batch[0].to_pylist(), batch[2].to_pylist()
        prompts = prompts_of(pa.chunked_array([batch[1]]))
        own = texts(pa.chunked_array([batch[3]])) if len(columns) > 3 else [None] * len(ids)
        for n in np.flatnonzero(kept[first : first + batch.num_rows]).tolist():
            prompt = prompts[n]
            system = run_wide if own[n] is None else own[n]
            # Others are failed rows.
            assert isinstance(prompt, str | list) and not isinstance(system, ValueError)
            yield Exchange(first + n, ids[n], prompt, answers[n], system)


def conversation(row: Exchange) -> tuple[list[Turn], Turn]:
    """The turns before the answer, and the answer's turn: those that the run gave its template.

    An answer that continues a last turn of the assistant becomes one turn with it.
    """
    chat = chat_of(row.prompt, row.system)
    turns = [
        {"role": role, "content": text} for role, text in zip(chat.roles, chat.texts, strict=True)
    ]
    begun = turns.pop()["content"] if chat.is_continued else ""
    return turns, {"role": "assistant", "content": begun + row.answer}


def system_prompt(settings: dict[str, Any]) -> str | None:
    """The system prompt that a run put in front of its prompts; raw prompts have none."""
    return None if settings.get("prompt_format") == "raw" else settings.get("system_prompt")


def messages(found: Sequence[Exchange]) -> pa.Table:
    """Exchanges as rows of `MESSAGES`."""
    chats = [conversation(row) for row in found]
    columns = {
        "row_id": [row.row_id for row in found],
        "messages": [[*turns, answer] for turns, answer in chats],
    }
    return pa.table(columns, MESSAGES)


def preferences(found: Sequence[tuple[Exchange, Exchange]]) -> pa.Table:
    """Pairs of a better and a worse answer to one prompt as rows of `PREFERENCE`."""
    better = [conversation(best) for best, _ in found]
    worse = [conversation(worst) for _, worst in found]
    columns = {
        "prompt": [turns for turns, _ in better],
        "chosen": [[answer] for _, answer in better],
        "rejected": [[answer] for _, answer in worse],
        "chosen_row_id": [best.row_id for best, _ in found],
        "rejected_row_id": [worst.row_id for _, worst in found],
    }
    return pa.table(columns, PREFERENCE)
