"""The rows that a preview decodes: the input's first ones, or a prompt that is given as text.

They are read and tokenised by the run's own reader, so that they are what a run decodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from pipeline.config import RunConfig
from pipeline.input import input_files, prompt_shards
from pipeline.input.prompt_shards import PromptShards
from pipeline.input.prompt_text import PromptValue, Turn, prompts_of
from pipeline.input.reader import Reader
from pipeline.output.open_shard import OpenShard
from pipeline.preflight import Checked
from pipeline.rows import InputFile, Layout, Prompt, row_id
from pipeline.storage.storage import Storage, refused_as_settings

CHATS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


@dataclass(frozen=True, slots=True)
class ChosenRow:
    """One row to show."""

    row_id: str
    value: PromptValue | ValueError | None
    """Its prompt column."""
    prompt: Prompt | None
    """None where it cannot be decoded."""
    error: str | None = None
    """Why it cannot."""


@dataclass(frozen=True, slots=True)
class GivenPrompts(PromptShards):
    """Prompts that are in no file."""

    table: pa.Table

    def read(
        self, name: str, columns: Sequence[str] | None = None, limit: int | None = None
    ) -> pa.Table:
        """As of a shard that holds the table."""
        found = self.table if columns is None else self.table.select(list(columns))
        return found.slice(0, limit)


def given_prompt(prompt: str | list[Turn], prompt_column: str) -> GivenPrompts:
    """An input of one row, without a file: a text or a chat."""
    kind = pa.string() if isinstance(prompt, str) else CHATS
    table = pa.table({prompt_column: pa.array([prompt], kind)})
    file = InputFile("prompt", 1, "")
    return GivenPrompts(Storage("."), [file], table.schema, [], [], prompt_column, table)


@refused_as_settings()
def first_shards(config: RunConfig, num_rows: int) -> PromptShards:
    """The first shards of the input, as many as have so many rows. Others are not opened.

    Raises ValueError, naming the file, as `prompt_shards.inspect`.
    """
    found = input_files.find(config.input)
    num_files = 1
    while True:
        some = replace(found, names=found.names[:num_files])
        inputs = prompt_shards.inspect(some, config.prompt_column)
        enough = sum(file.num_rows for file in inputs.files) >= num_rows
        if enough or num_files >= len(found.names):
            return inputs
        num_files *= 2


@refused_as_settings()
def choose_rows(config: RunConfig, checked: Checked, num_rows: int) -> list[ChosenRow]:
    """The first rows of the input, tokenised; of several samples each row's first.

    Raises ValueError where none of the sampled rows can be tokenised.
    """
    inputs = checked.inputs
    reader = Reader(
        config, inputs, inputs.files, checked.face, checked.face.max_length, form=checked.form
    )
    layout = Layout.planned(config)
    chosen: list[ChosenRow] = []
    for number, file in enumerate(inputs.files):
        table = inputs.read(file.name, limit=num_rows - len(chosen))
        found = reader.encode(OpenShard(number, table, layout))
        prompts = {prompt.row_id: prompt for prompt in found.prompts}
        errors = {row["row_id"]: row["error"] for row in found.failed.to_pylist()}
        for index, value in enumerate(prompts_of(table[config.prompt_column])):
            name = row_id(number, index, layout.samples[0])
            chosen.append(ChosenRow(name, value, prompts.get(name), errors.get(name)))
        if len(chosen) >= num_rows:
            break
    reader.close()
    return chosen
