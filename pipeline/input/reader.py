"""Reads prompt shards and tokenises their prompts, one shard ahead of the driver.

This happens in a thread of its own, so that replicas do not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeGuard

import pyarrow as pa

from lrd.prompts import encode_prompts, fit_prompt
from pipeline.config import RunConfig
from pipeline.input.buckets import bucket_of, choose_lengths, fitting
from pipeline.input.prompt_shards import PromptShards
from pipeline.input.prompt_text import PromptValue, prompts_of
from pipeline.output.open_shard import OpenShard
from pipeline.rows import (
    InputFile,
    Layout,
    Prompt,
    Result,
    reported_schema,
    results_batch,
    row_id,
)

MAX_BUCKETS = 6
"""Most buckets. Fewer mean more padding; with more, buckets often cannot fill a batch."""
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
    ) -> None:
        """tokenizer_of: an object with the model's `.tokenizer`. max_length: the model's positions.
        restore: adds the results of a shard that are on storage already."""
        self._config, self._inputs, self._files = config, inputs, files
        self._tokenizer_of, self._restore = tokenizer_of, restore
        self._max_tokens = max_length - config.decoding.gen_length
        self.lengths = self._choose_lengths()
        """Buckets that sampled prompts need; longer prompts get their own."""
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
        layout = Layout(self._config.num_samples, self._config.columns)
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
        column = shard.prompts[self._config.prompt_column]
        prompts: list[Prompt] = []
        failed: list[Result] = []
        for first in range(0, len(column), ROWS_AT_A_TIME):
            some = prompts_of(column[first : first + ROWS_AT_A_TIME])
            missing = [shard.missing(first + n) for n in range(len(some))]
            owed = [n for n, samples in enumerate(missing) if samples]
            for n, ids in zip(owed, self._encode([some[n] for n in owed]), strict=True):
                self._sort_in(shard.number, first + n, missing[n], ids, prompts, failed)
        schema = reported_schema(self._config.columns)
        return ReadShard(shard, prompts, results_batch(failed, schema))

    def _sort_in(
        self,
        number: int,
        index: int,
        samples: Sequence[int | None],
        ids: list[int] | ValueError,
        prompts: list[Prompt],
        failed: list[Result],
    ) -> None:
        num_tokens = None
        try:
            if isinstance(ids, ValueError):
                raise ids
            num_tokens = len(ids)
            ids = fit_prompt(ids, self._max_tokens, self._config.truncation)
        except ValueError as error:
            names = [row_id(number, index, sample) for sample in samples]
            failed += [Result.failed(n, str(error), num_prompt_tokens=num_tokens) for n in names]
            return
        bucket = fitting(len(ids), self.lengths) or bucket_of(len(ids), self._max_tokens)
        prompts += [Prompt(number, index, ids, bucket, sample) for sample in samples]

    def _encode(
        self, prompts: Sequence[PromptValue | ValueError | None]
    ) -> list[list[int] | ValueError]:
        found = [_why_empty(prompt) for prompt in prompts]
        real = [(n, prompt) for n, prompt in enumerate(prompts) if _has_text(prompt)]
        config = self._config
        encoded = encode_prompts(
            self._tokenizer_of,
            [prompt for _, prompt in real],
            config.prompt_format,
            config.system_prompt,
            config.allow_special_tokens,
        )
        for (n, _), ids in zip(real, encoded, strict=True):
            # A template may render nothing.
            found[n] = ids or ValueError("the prompt has no tokens")
        return found

    def _choose_lengths(self) -> list[int]:
        """Bucket lengths from the prompts of the first, the middle and the last shard.

        Raises ValueError where there are prompts and not one of them can be tokenised.
        Equal at every start of a run, so that a row's bucket does not depend on where an earlier
        driver was interrupted.
        """
        files = self._files
        lengths: list[int] = []
        refused: list[ValueError] = []
        for number in sorted({0, len(files) // 2, len(files) - 1}):
            column = self._config.prompt_column
            sample = self._inputs.read(files[number].name, [column], SAMPLE_ROWS)
            # A row without text fails on its own and says nothing about the others.
            real = [prompt for prompt in prompts_of(sample[column]) if _has_text(prompt)]
            for ids in self._encode(real):
                if isinstance(ids, ValueError):
                    refused.append(ids)
                else:
                    lengths.append(min(len(ids), self._max_tokens))
        if refused and not lengths:
            raise ValueError(
                f"{self._config.input}: none of the {len(refused)} prompts that were sampled "
                f"can be decoded: {refused[0]}"
            )
        return choose_lengths(lengths, MAX_BUCKETS)


def _has_text(prompt: PromptValue | ValueError | None) -> TypeGuard[PromptValue]:
    """Whether a row holds a text that is not blank, or a chat's turns."""
    return (
        bool(prompt.strip())
        if isinstance(prompt, str)
        else isinstance(prompt, list) and bool(prompt)
    )


def _why_empty(prompt: PromptValue | ValueError | None) -> list[int] | ValueError:
    """Why a row that has no text cannot be decoded."""
    if isinstance(prompt, ValueError):
        return prompt
    if prompt is None:
        return ValueError("the prompt is null")
    is_text = isinstance(prompt, str)
    return ValueError("the prompt is empty" if is_text else "the chat has no turns")
