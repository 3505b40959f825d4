"""The dataclasses that travel between the driver and a replica: prompts there, results back.

`Result` is the one place where a column of the result dataset is written down: its name, Arrow
type and meaning. The schema, the dataset card and the README's table are made from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from lrd import Sample


@dataclass(frozen=True, slots=True)
class InputFile:
    """One prompt shard as planned."""

    name: str
    """Its path under the input's folder."""
    num_rows: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """One input row, tokenised: from the driver to a replica."""

    shard: int
    index: int
    """Row number in its shard."""
    token_ids: list[int]
    bucket: int
    """Prompt tokens that its slot has room for."""
    begun: int = 0
    """Replicas that ended while it was in one of their slots, whatever the cause."""
    suspect: bool = False
    """Whether it was in a slot at a death that no lost node explains. Suspects are tried apart
    from other rows."""
    deaths_alone: int = 0
    """Deaths of replicas that held no other row, and that no lost node explains."""

    @property
    def row_id(self) -> str:
        return row_id(self.shard, self.index)


def column(kind: pa.DataType, meaning: str) -> Any:
    """A field of `Result` with the Arrow type and the meaning of its column; None by default."""
    return field(default=None, metadata={"type": kind, "meaning": meaning})


INTS, FLOATS = pa.list_(pa.int32()), pa.list_(pa.float32())


@dataclass(frozen=True, slots=True)
class Result:
    """One output row without the input's columns; None where a failed row has no value."""

    row_id: str = column(pa.string(), "shard and row number; ids sort in the input's order")
    status: str = column(pa.string(), "ok, or failed")
    error: str | None = column(pa.string(), "why a row failed")
    output_text: str | None = column(pa.string(), "the answer, up to the first EOS")
    output_token_ids: list[int] | None = column(INTS, "the whole canvas, `gen_length` ids")
    num_output_tokens: int | None = column(
        pa.int32(), "tokens before the first EOS: the paper's effective tokens"
    )
    num_prompt_tokens: int | None = column(
        pa.int32(), "tokens of the prompt with its template, as decoded"
    )
    num_forwards: int | None = column(pa.int32(), "forward passes: `refine_steps` + `decode_steps`")
    refine_steps: int | None = column(pa.int32(), "passes that only refined beliefs (phase 1)")
    decode_steps: int | None = column(pa.int32(), "passes that committed tokens (phase 2)")
    full_passes: int | None = column(
        pa.int32(),
        "passes that went through prompt and canvas; the others computed their block alone",
    )
    positions_computed: int | None = column(
        pa.int64(),
        "positions that went through the model, over all passes; padding is not counted",
    )
    blocks: int | None = column(pa.int32(), "blocks that were decoded")
    stop_reason: str = column(
        pa.string(), "complete, converged (early stop), eos (filled behind an EOS) or failed"
    )
    open_at_stop: int | None = column(
        pa.int32(), "positions that an early stop committed while they were still open"
    )
    max_entropy_at_stop: float | None = column(
        pa.float32(), "largest entropy among those positions, nats; 0 where there were none"
    )
    refine_converged: bool | None = column(
        pa.bool_(), "whether every refinement phase converged before `max_refine_steps`"
    )
    kl_trace: list[float | None] | None = column(
        FLOATS, "D_t of Eq. 6 a pass, nats; null in a block's first"
    )
    entropy_trace: list[float] | None = column(
        FLOATS, "mean entropy of the open positions a pass, nats"
    )
    commit_step: list[int] | None = column(
        INTS, "the pass that committed each canvas position; 0 where EOS filled the rest"
    )
    mean_mix_weight: float | None = column(pa.float32(), "mean weight α of the soft embeddings")
    bucket: int | None = column(pa.int32(), "prompt tokens that the row's slot held")
    seconds: float | None = column(
        pa.float32(), "wall time in its slot, shared with the slot's neighbours"
    )
    replica: str | None = column(pa.string(), "which replica decoded it")
    attempts: int = column(pa.int32(), "times it got a slot; 0 where it never could")

    @classmethod
    def of_sample(cls, sample: Sample, prompt: Prompt, *, replica: str) -> Result:
        """The row of a decoded sample."""
        if sample.stop_reason == "failed":
            output: dict[str, Any] = {"status": "failed"}
        else:
            output = {
                "status": "ok",
                "output_text": sample.text,
                "output_token_ids": sample.canvas,
                "num_output_tokens": sample.num_output_tokens,
                "max_entropy_at_stop": sample.max_entropy_at_stop,
                "kl_trace": [None if math.isnan(kl) else kl for kl in sample.kl_trace],
                "entropy_trace": sample.entropy_trace,
                "commit_step": sample.commit_step,
                "mean_mix_weight": sample.mean_mix_weight,
            }
        return cls(
            row_id=prompt.row_id,
            error=sample.error,
            num_prompt_tokens=len(prompt.token_ids),
            num_forwards=sample.num_forwards,
            refine_steps=sample.refine_steps,
            decode_steps=sample.decode_steps,
            full_passes=sample.full_passes,
            positions_computed=sample.positions_computed,
            blocks=sample.blocks,
            stop_reason=sample.stop_reason,
            open_at_stop=sample.open_at_stop,
            refine_converged=sample.refine_converged,
            bucket=prompt.bucket,
            seconds=sample.seconds,
            replica=replica,
            attempts=prompt.begun + 1,
            **output,
        )

    @classmethod
    def failed(
        cls,
        row_id: str,
        error: str,
        *,
        num_prompt_tokens: int | None = None,
        bucket: int | None = None,
        attempts: int = 0,
    ) -> Result:
        """The row of a prompt that could not be decoded."""
        return cls(
            row_id=row_id,
            status="failed",
            error=error,
            num_prompt_tokens=num_prompt_tokens,
            stop_reason="failed",
            bucket=bucket,
            attempts=attempts,
        )


COLUMNS: tuple[Field[Any], ...] = fields(Result)
RESULT_SCHEMA = pa.schema([(column.name, column.metadata["type"]) for column in COLUMNS])
"""The columns that a run adds to the input's, in order."""
MEANINGS: dict[str, str] = {column.name: column.metadata["meaning"] for column in COLUMNS}


def results_batch(results: Sequence[Result]) -> pa.RecordBatch:
    """Results as rows of `RESULT_SCHEMA`."""
    rows = [{name: getattr(result, name) for name in MEANINGS} for result in results]
    # One conversion for all columns: column by column one row takes three times as long.
    return pa.RecordBatch.from_struct_array(pa.array(rows, pa.struct(list(RESULT_SCHEMA))))


Key = tuple[int, int]
"""A row as driver and replica name it: the batch's number, and the row's index in the batch."""


@dataclass(frozen=True, slots=True)
class Report:
    """What happened in a replica since its last report."""

    finished: list[Key]
    content: bytes
    """The finished rows in that order, as one Arrow message of `RESULT_SCHEMA`: Ray would take
    2 ms to pickle and get a table of one row, a message takes 0.1 ms."""
    returned: list[Key]
    """Rows that a draining replica has not begun and will not."""
    events: list[str]
    """Texts for the run's events."""
    num_passes: int
    """Passes that have ended: while the number grows, the replica is alive."""
    longest_pass: float
    """Seconds, over all passes of the replica."""

    @classmethod
    def of(cls, results: Sequence[Result], **values: Any) -> Report:
        """A report of these finished rows."""
        content = results_batch(results).serialize().to_pybytes() if results else b""
        return cls(content=content, **values)

    def rows(self) -> pa.RecordBatch:
        """The finished rows, read in place."""
        return pa.ipc.read_record_batch(self.content, RESULT_SCHEMA)


def row_id(shard: int, index: int) -> str:
    """A row's name in the whole run: shard and row number, `00003-00000042`.

    Names sort as text in the input's order: a number of more digits than these begins with a
    letter, `a` for one more, `b` for two (`a123456-00000042`).
    """
    return f"{_sortable(shard, 5)}-{_sortable(index, 8)}"


def _sortable(number: int, width: int) -> str:
    digits = f"{number:0{width}d}"
    more = len(digits) - width
    return f"{chr(ord('a') + more - 1)}{digits}" if more else digits


def prompt_id(row_id: str) -> str:
    """The part of a row's name that all samples of its prompt share: `00003-00000042` of
    `00003-00000042-2`, and of `00003-00000042` itself."""
    return "-".join(row_id.split("-", 2)[:2])


def row_index(row_id: str) -> int:
    """The row number inside its shard."""
    return int(row_id.partition("-")[2].lstrip("abcdefgh"))
