"""Reads prompt shards and tokenises their prompts, one shard ahead of the driver.

This happens in a thread of its own, so that replicas do not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import pyarrow as pa

from lrd.prompts import encode_prompts, fit_prompt
from lrd.templates import Scaffold
from pipeline.config import RunConfig
from pipeline.input.buckets import Shapes, choose_lengths
from pipeline.input.prompt_shards import PromptShards
from pipeline.input.prompt_text import PromptValue, prompts_of
from pipeline.input.row_settings import OwnSettings, RowSettingsReader
from pipeline.input.row_templates import FREE, AnswerForm, RowTemplates
from pipeline.output.open_shard import OpenShard
from pipeline.rows import (
    InputFile,
    Layout,
    Prompt,
    Result,
    RowSettings,
    reported_schema,
    results_batch,
    row_id,
)

MAX_LENGTHS = 6
"""Most prompt lengths of slots, and most canvases. Fewer mean more padding; with more, buckets
often cannot fill a batch."""
SAMPLE_ROWS = 500
"""Prompts of a shard that are sampled when the buckets are chosen."""
ROWS_AT_A_TIME = 1000
"""Prompts that are tokenised together."""


@dataclass(frozen=True, slots=True)
class ReadShard:
    """A shard that is ready to be decoded."""

    shard: OpenShard
    prompts: list[Prompt]
    """Prompts without a stored result: every sample of a row, then those of the next."""
    failed: pa.RecordBatch
    """Results of rows that cannot be decoded, as a replica reports them."""


class EmptyPromptError(ValueError):
    """A row has no prompt that could be read."""


class Row(NamedTuple):
    """A row as its columns have it."""

    prompt: PromptValue
    own: OwnSettings
    template: str | None = None
    """Its own; None: the run's, where there is one."""


class EncodedRow(NamedTuple):
    """A row, tokenised."""

    ids: list[int]
    settings: RowSettings
    scaffold: Scaffold | None
    """As of a `Prompt`."""


class Reader:
    """Reads shards by number and tokenises their prompts."""

    def __init__(
        self,
        config: RunConfig,
        inputs: PromptShards,
        files: Sequence[InputFile],
        tokenizer_of: Any,
        max_length: int,
        restore: Callable[[OpenShard], None] = lambda shard: None,
        form: AnswerForm = FREE,
    ) -> None:
        """tokenizer_of: an object with the model's `.tokenizer`, where answers have a form or rows
        a gen_length the model without weights. max_length: the model's positions. restore: adds the
        results of a shard that are on storage already. form: of the answers, where it comes from
        files."""
        self._config, self._inputs, self._files = config, inputs, files
        self._tokenizer_of, self._restore = tokenizer_of, restore
        self._max_length = max_length
        self._growth = config.decoding.canvases[-1] - config.decoding.gen_length
        """Positions by which a row's canvas may grow."""
        self._row_settings = RowSettingsReader(config, max_length)
        self._templates = RowTemplates(config, form, tokenizer_of)
        self._open = cache(lambda length: Scaffold.open(length, tokenizer_of.mask_id))
        columns = [config.prompt_column, *config.row_settings, *self._templates.columns]
        self.columns = list(dict.fromkeys(columns))
        """Input columns that are read."""
        self.shapes = self._choose_shapes()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="reader")
        self._ahead: Future[ReadShard] | None = None

    def ahead(self, number: int) -> ReadShard | None:
        """The shard, or None while it is being read: call again for the same shard until it is
        there."""
        if self._ahead is None:
            self._ahead = self._pool.submit(self.read, number)
        if not self._ahead.done():
            return None
        ready, self._ahead = self._ahead, None
        return ready.result()

    def close(self) -> None:
        """Cancel what is being read."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def read(self, number: int) -> ReadShard:
        """A shard's prompts without a stored result, and failed rows for those not to be decoded.

        Raises ValueError where the file has changed since the run was planned.
        """
        planned = self._files[number]
        layout = Layout.planned(self._config)
        shard = OpenShard(number, self._inputs.read(planned.name), layout)
        if shard.prompts.num_rows != planned.num_rows:
            raise ValueError(
                f"{self._inputs.storage.path(planned.name)}: has {shard.prompts.num_rows} rows, "
                f"{planned.num_rows} when the run began; restore the file"
            )
        self._restore(shard)
        return self.encode(shard)

    def encode(self, shard: OpenShard) -> ReadShard:
        """Tokenise the prompts of a shard that have no result yet, each once for all samples."""
        prompts: list[Prompt] = []
        failed: list[Result] = []
        for first in range(0, shard.prompts.num_rows, ROWS_AT_A_TIME):
            some = self._rows(shard.prompts.slice(first, ROWS_AT_A_TIME))
            missing = [shard.missing(first + n) for n in range(len(some))]
            owed = [n for n, samples in enumerate(missing) if samples]
            for n, row in zip(owed, self._encode([some[n] for n in owed]), strict=True):
                self._sort_in(shard.number, first + n, missing[n], row, prompts, failed)
        schema = reported_schema(self._config.columns)
        return ReadShard(shard, prompts, results_batch(failed, schema))

    def _sort_in(
        self,
        number: int,
        index: int,
        samples: Sequence[int | None],
        row: EncodedRow | ValueError,
        prompts: list[Prompt],
        failed: list[Result],
    ) -> None:
        num_tokens = None
        try:
            if isinstance(row, ValueError):
                raise row
            num_tokens = len(row.ids)
            gen_length = self._positions(row)
            room = self._max_length - gen_length - self._growth
            ids = fit_prompt(row.ids, room, self._config.truncation)
        except ValueError as error:
            names = [row_id(number, index, sample) for sample in samples]
            failed += [Result.failed(n, str(error), num_prompt_tokens=num_tokens) for n in names]
            return
        bucket = self.shapes.bucket(len(ids), gen_length, self._row_settings.rounded)
        prompts += [
            Prompt(number, index, ids, bucket, sample, settings=row.settings, scaffold=row.scaffold)
            for sample in samples
        ]

    def _positions(self, row: EncodedRow) -> int:
        """Canvas positions of a row."""
        return len(row.scaffold.ids) if row.scaffold else self._config.decoding.gen_length

    def _rows(self, table: pa.Table) -> list[Row | ValueError]:
        """The table's rows; why, for one that has no text or settings that cannot be."""
        prompts = prompts_of(table[self._config.prompt_column])
        columns = (prompts, self._row_settings.read(table), self._templates.read(table))
        rows = [_row(*values) for values in zip(*columns, strict=True)]
        return [row if isinstance(row, ValueError) else self._split(row) for row in rows]

    def _split(self, row: Row) -> Row | ValueError:
        """A row whose prompt has holes: up to the first one, and the rest as its template."""
        try:
            prompt, template = self._templates.split(row.prompt)
        except ValueError as error:
            return error
        return row if template is None else Row(prompt, row.own, template)

    def _encode(self, rows: Sequence[Row | ValueError]) -> list[EncodedRow | ValueError]:
        real = [row for row in rows if not isinstance(row, ValueError)]
        encoded = iter(self._ids(real))
        return [row if isinstance(row, ValueError) else next(encoded) for row in rows]

    def _ids(self, rows: Sequence[Row]) -> list[EncodedRow | ValueError]:
        config = self._config
        system: str | list[str | None] | None = config.system_prompt
        if "system_prompt" in config.row_settings:
            system = [
                config.system_prompt if row.own.system_prompt is None else row.own.system_prompt
                for row in rows
            ]
        encoded = encode_prompts(
            self._tokenizer_of,
            [row.prompt for row in rows],
            config.prompt_format,
            system,
            config.allow_special_tokens,
        )
        found: list[EncodedRow | ValueError] = []
        for row, ids in zip(rows, encoded, strict=True):
            try:
                found.append(self._with_scaffold(row, ids))
            except ValueError as error:
                found.append(error)
        return found

    def _with_scaffold(self, row: Row, ids: list[int] | ValueError) -> EncodedRow:
        if isinstance(ids, ValueError):
            raise ids
        if not ids:  # A chat template may render nothing.
            raise ValueError("the prompt has no tokens")
        gen_length = row.own.gen_length or self._config.decoding.gen_length
        scaffold = self._templates.scaffold(row.template, gen_length)
        if scaffold is None and "gen_length" in self._config.row_settings:
            scaffold = self._open(gen_length)
        return EncodedRow(ids, row.own.settings, scaffold)

    def _choose_shapes(self) -> Shapes:
        """Buckets from rows of the first, the middle and the last shard.

        Raises ValueError where there are prompts and not one of them can be tokenised.
        Equal at every start of a run, so that a row's bucket does not depend on where an earlier
        driver was interrupted.
        """
        files = self._files
        lengths: list[int] = []
        num_blocks: list[int] = []
        block = self._config.decoding.block_length or 1
        refused: list[ValueError] = []
        for number in sorted({0, len(files) // 2, len(files) - 1}):
            sample = self._inputs.read(files[number].name, self.columns, SAMPLE_ROWS)
            # A row without text fails on its own and says nothing about the others.
            real = [row for row in self._rows(sample) if not isinstance(row, EmptyPromptError)]
            for row in self._encode(real):
                if isinstance(row, ValueError):
                    refused.append(row)
                    continue
                gen_length = self._positions(row)
                room = self._max_length - gen_length - self._growth
                lengths.append(min(len(row.ids), room))
                num_blocks.append(-(-gen_length // block))
        if refused and not lengths:
            raise ValueError(
                f"{self._config.input}: none of the {len(refused)} prompts that were sampled "
                f"can be decoded: {refused[0]}"
            )
        canvases = [self._config.decoding.gen_length]
        # Steps are shared out over the run's gen_length.
        has_own = self._templates.is_on and self._config.decoding.steps is None
        if has_own or "gen_length" in self._config.row_settings:
            canvases = [block * n for n in choose_lengths(num_blocks, MAX_LENGTHS)]
        num_positions = self._max_length - self._growth
        return Shapes(choose_lengths(lengths, MAX_LENGTHS), canvases, num_positions)


def _row(
    prompt: PromptValue | ValueError | None,
    own: OwnSettings | ValueError,
    template: str | ValueError | None,
) -> Row | ValueError:
    if prompt is None:
        return EmptyPromptError("the prompt is null")
    if isinstance(prompt, ValueError):
        return EmptyPromptError(*prompt.args)
    if isinstance(prompt, str) and not prompt.strip():
        return EmptyPromptError("the prompt is empty")
    if not prompt:
        return EmptyPromptError("the chat has no turns")
    if isinstance(own, ValueError):
        return own
    return template if isinstance(template, ValueError) else Row(prompt, own, template)
