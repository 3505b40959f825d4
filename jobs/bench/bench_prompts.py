"""The prompts that `lrd bench` decodes: the embedded models' example problems, rows of an input, or
random tokens where there is neither.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from lrd.models.registry import EMBEDDED
from lrd.prompts import encode_prompts, fit_prompt
from lrd.special_text import special_ids
from pipeline.config import RunConfig
from pipeline.input import input_files, prompt_shards
from pipeline.input.prompt_text import PromptValue, prompts_of

EXAMPLES = {"tiny": "examples", "tiny_sheets": "example_sheets"}
"""Embedded model → the folder of problems that it was trained for."""
RANDOM_TOKENS = 128

Source = Literal["examples", "input", "random"]


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts, as ids for an engine and as text for the pipeline."""

    source: Source
    where: str
    """Folder or input that they were read from; of random ones what they are."""
    ids: list[list[int]]
    values: list[PromptValue]
    """The same as texts or chats. Random ones may have other ids once they are tokenised again."""
    columns: int
    """Prompt columns of a slot."""
    num_left_out: int = 0
    """Prompts that were read and are not used: too long, or not to be tokenised."""

    @property
    def are_real(self) -> bool:
        """Whether a model's passes and answers mean something."""
        return self.source != "random"

    def as_json(self) -> dict[str, Any]:
        """What the result line says of them."""
        lengths = [len(ids) for ids in self.ids]
        return {
            "source": self.source,
            "where": self.where,
            "number": len(lengths),
            "left_out": self.num_left_out,
            "columns": self.columns,
            "tokens": {
                "min": min(lengths),
                "mean": round(sum(lengths) / len(lengths), 1),
                "max": max(lengths),
            },
            "digest": hashlib.sha256(json.dumps(self.ids).encode()).hexdigest()[:16],
        }


def prompts_for(
    config: RunConfig,
    given: str | None,
    face: Any,
    number: int,
    room: int,
    num_tokens: int | None,
) -> Prompts:
    """At most `number` prompts.

    given: the input of the settings, if any. face: the model without weights. room: the tokens that
    the model's positions leave beside the largest canvas. num_tokens: of a slot's prompt; longer
    prompts are left out, random ones have exactly so many. Raises ValueError where none is left.
    """
    if room < 1:
        raise ValueError(
            f"the largest canvas leaves no room for a prompt in the model's {face.max_length} "
            "positions; lower --canvas"
        )
    if num_tokens is not None and num_tokens > room:
        raise ValueError(
            f"--prompt-tokens is {num_tokens}, and the largest canvas leaves room for {room} in "
            f"the model's {face.max_length} positions; lower one of them"
        )
    folder = None if given else _examples(config.model)
    if given is None and folder is None:
        return _random(face, number, num_tokens or min(RANDOM_TOKENS, room))
    source: Source = "input" if given else "examples"
    found = _read(
        config, source, given or str(folder), face, number, num_tokens or room, num_tokens
    )
    return found if folder is None else replace(found, where=f"jobs/{folder.name}")


def _examples(model: str) -> Path | None:
    """The example problems of an embedded model, by its name or its folder."""
    for name, folder in EMBEDDED.items():
        if model == name or ("://" not in model and Path(model).resolve() == folder):
            return Path(__file__).parents[1] / EXAMPLES[name]
    return None


def _read(
    config: RunConfig,
    source: Source,
    where: str,
    face: Any,
    number: int,
    longest: int,
    columns: int | None,
) -> Prompts:
    column = config.prompt_column if source == "input" else "prompt"
    ids: list[list[int]] = []
    values: list[PromptValue] = []
    num_left_out, reason = 0, "it has no rows"
    for some in _rows(where, column, number):
        for value, encoded in zip(some, _encoded(config, face, some), strict=True):
            try:
                if isinstance(value, ValueError):
                    raise value
                if isinstance(encoded, ValueError):
                    raise encoded
                ids.append(fit_prompt(encoded, longest, config.truncation))
                values.append(value)
            except ValueError as error:
                num_left_out, reason = num_left_out + 1, str(error)
            if len(ids) == number:
                break
        if len(ids) == number:
            break
    if not ids:
        limit = f" in {columns} tokens (--prompt-tokens)" if columns else ""
        raise ValueError(f"{where}: holds no prompt that can be decoded{limit}: {reason}")
    used = columns or max(map(len, ids))
    return Prompts(source, where, ids, values, used, num_left_out)


def _rows(where: str, column: str, number: int) -> Iterator[list[PromptValue | ValueError]]:
    """Prompts a shard at a time, no more of each than are wanted."""
    found = input_files.find(where)
    for name in found.names:
        inputs = prompt_shards.inspect(replace(found, names=[name]), column)
        # A few more, since some may be too long.
        table = inputs.read(name, [column], 4 * number)
        yield [
            ValueError("the prompt is null") if value is None else value or ValueError("is empty")
            for value in prompts_of(table[column])
        ]


def _encoded(
    config: RunConfig, face: Any, values: Sequence[PromptValue | ValueError]
) -> list[list[int] | ValueError]:
    real = [value for value in values if not isinstance(value, ValueError)]
    encoded = iter(
        encode_prompts(
            face, real, config.prompt_format, config.system_prompt, config.allow_special_tokens
        )
    )
    return [value if isinstance(value, ValueError) else next(encoded) for value in values]


def _random(face: Any, number: int, num_tokens: int) -> Prompts:
    """Uniformly random tokens that are not special ones."""
    special = {face.mask_id, face.eos_id, *(special_ids(face) if face.tokenizer else ())}
    known = len(face.embedding_table)
    if face.tokenizer is not None:  # A table may have rows that no token uses.
        known = min(known, len(face.tokenizer))
    choices = torch.tensor([token for token in range(known) if token not in special])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(choices), (number, num_tokens), generator=generator)
    ids = choices[drawn].tolist()
    texts = [] if face.tokenizer is None else [face.tokenizer.decode(one) for one in ids]
    return Prompts("random", f"uniformly random tokens, {num_tokens} each", ids, texts, num_tokens)
