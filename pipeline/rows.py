"""The dataclasses that travel between the driver and a replica: prompts there, results back.

`Result` is the one place where a column of the result dataset is written down: its name, Arrow
type, meaning and level. The schemas, the dataset card and the README's table are made from it.
`Layout` says which rows and columns a run's result shards have; `row_id` makes a row's id and
`split_id` takes it apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import pyarrow as pa

from pipeline.config import Columns, RunConfig

if TYPE_CHECKING:
    from lrd import Sample
    from lrd.sample import Spent
    from lrd.templates import Scaffold


@dataclass(frozen=True, slots=True)
class InputFile:
    """One prompt shard as planned."""

    name: str
    """Its path under the input's folder."""
    num_rows: int
    sha256: str


class Bucket(NamedTuple):
    """What a slot has room for; prompts of one bucket share forward passes."""

    prompt: int
    """Prompt tokens."""
    canvas: int
    """Canvas positions."""

    def __str__(self) -> str:
        return f"{self.prompt}+{self.canvas}"


class RowSettings(NamedTuple):
    """What a replica needs of a row's own settings beside its canvas; None: the run's."""

    temperature: float | None = None
    seed: int | None = None


OF_THE_RUN = RowSettings()
"""Of a row that brings none along."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One sample of an input row, tokenised: from the driver to a replica."""

    shard: int
    index: int
    """Row number in its prompt shard."""
    token_ids: list[int]
    """One list for all samples of the row."""
    bucket: Bucket
    sample: int | None = None
    """Which of the row's samples, from 0; None where a row has one."""
    begun: int = 0
    """Replicas that ended while it was in one of their slots, whatever the cause."""
    suspect: bool = False
    """Whether it was in a slot at a death that no lost node explains. Suspects are tried apart
    from other rows."""
    deaths_alone: int = 0
    """Deaths of replicas that held no other row (but samples of the same prompt), and that no lost
    node explains."""
    settings: RowSettings = OF_THE_RUN
    spent: Spent | None = None
    """What it took in canvases that were too short for it."""
    scaffold: Scaffold | None = None
    """Its canvas, where that is not simply the open one of its slot: answers have a form, or rows a
    gen_length of their own. One object for all rows with the same."""

    @property
    def canvas_length(self) -> int:
        """Canvas positions of its own, which its slot may have more of."""
        return self.bucket.canvas if self.scaffold is None else len(self.scaffold.ids)

    @property
    def row_id(self) -> str:
        return row_id(self.shard, self.index, self.sample)

    def moved(self, canvases: Sequence[int], spent: Spent) -> Prompt:
        """The prompt as it is decoded in the next longer one of these canvases."""
        longer = canvases[canvases.index(self.bucket.canvas) + 1]
        return replace(self, bucket=self.bucket._replace(canvas=longer), spent=spent)

    @property
    def row(self) -> tuple[int, int]:
        """The prompt row, the same for all its samples."""
        return self.shard, self.index


def column(kind: pa.DataType, meaning: str, *, level: Columns) -> Any:
    """A field of `Result` with the Arrow type and the meaning of its column; None by default.

    level: the least `--columns` that keeps it: `minimal` for what every run keeps, `standard` for
    other scalars, `full` for traces and lists of tokens.
    """
    return field(default=None, metadata={"type": kind, "meaning": meaning, "level": level})


INTS, FLOATS = pa.list_(pa.int32()), pa.list_(pa.float32())


@dataclass(frozen=True, slots=True)
class Result:
    """One output row without the input's columns; None where a failed row has no value."""

    row_id: str = column(
        pa.string(),
        "shard and row number of its prompt, and its sample where there are several; ids sort "
        "in the order of the rows",
        level="minimal",
    )
    sample: int = column(pa.int32(), "which of the prompt row's samples, from 0", level="minimal")
    status: str = column(pa.string(), "ok, or failed", level="minimal")
    error: str | None = column(pa.string(), "why a row failed", level="minimal")
    output_text: str | None = column(
        pa.string(),
        "the answer, up to the first EOS or the first text of `--stop`; of a template its whole "
        "text, holes filled",
        level="minimal",
    )
    stop_text: str | None = column(
        pa.string(),
        "the text of `--stop` that `output_text` ends before; null where none is there",
        level="minimal",
    )
    output_json: str | None = column(
        pa.string(),
        "the answer as compact JSON that validates against `--schema`; null without a schema, and "
        "where `json_error` says why",
        level="minimal",
    )
    json_error: str | None = column(
        pa.string(),
        "why the answer is not JSON of the form that `--schema` asks for",
        level="minimal",
    )
    output_token_ids: list[int] | None = column(
        INTS, "the whole canvas, `canvas_length` ids", level="full"
    )
    num_output_tokens: int | None = column(
        pa.int32(),
        "tokens before the first EOS: the paper's effective tokens; of a template its fixed "
        "tokens and those of each hole before the hole's EOS",
        level="minimal",
    )
    canvas_length: int | None = column(
        pa.int32(), "positions of the row's canvas", level="standard"
    )
    num_prompt_tokens: int | None = column(
        pa.int32(), "tokens of the prompt with its template, as decoded", level="standard"
    )
    num_forwards: int | None = column(
        pa.int32(), "forward passes: `refine_steps` + `decode_steps`", level="minimal"
    )
    refine_steps: int | None = column(
        pa.int32(), "passes that only refined beliefs (phase 1)", level="standard"
    )
    decode_steps: int | None = column(
        pa.int32(), "passes that committed tokens (phase 2)", level="standard"
    )
    full_passes: int | None = column(
        pa.int32(),
        "passes that went through prompt and canvas; the others computed their block alone",
        level="standard",
    )
    positions_computed: int | None = column(
        pa.int64(),
        "positions that went through the model, over all passes; padding is not counted",
        level="standard",
    )
    blocks: int | None = column(pa.int32(), "blocks that were decoded", level="standard")
    num_uncommits: int | None = column(
        pa.int32(),
        "times that a committed position was opened again; in runs whose `reopen` is not none",
        level="standard",
    )
    stop_reason: str = column(
        pa.string(),
        "complete, converged (early stop), eos (filled behind an EOS) or failed",
        level="minimal",
    )
    open_at_stop: int | None = column(
        pa.int32(),
        "positions that an early stop committed while they were still open",
        level="standard",
    )
    max_entropy_at_stop: float | None = column(
        pa.float32(),
        "largest entropy among those positions, nats; 0 where there were none",
        level="standard",
    )
    refine_converged: bool | None = column(
        pa.bool_(),
        "whether every refinement phase converged before `max_refine_steps`",
        level="standard",
    )
    kl_trace: list[float | None] | None = column(
        FLOATS, "D_t of Eq. 6 a pass, nats; null in a block's first", level="full"
    )
    entropy_trace: list[float] | None = column(
        FLOATS, "mean entropy of the open positions a pass, nats", level="full"
    )
    commit_step: list[int] | None = column(
        INTS,
        "the pass that committed each canvas position, the last one where it was opened again; 0 "
        "for fixed tokens of a template, and where EOS filled the rest",
        level="full",
    )
    token_confidence: list[float | None] | None = column(
        FLOATS,
        "probability of each position's token in the pass that committed it, 1 for fixed tokens of "
        "a template; null behind the first EOS (of a hole), and where EOS filled the rest",
        level="full",
    )
    mean_confidence: float | None = column(
        pa.float32(),
        "mean of `token_confidence` over the tokens before the first EOS (of a hole) that a pass "
        "committed; null where there are none",
        level="minimal",
    )
    min_confidence: float | None = column(
        pa.float32(), "the least of these; null where there are none", level="minimal"
    )
    mean_mix_weight: float | None = column(
        pa.float32(), "mean weight α of the soft embeddings", level="standard"
    )
    bucket: int | None = column(
        pa.int32(), "prompt tokens that the row's slot held", level="standard"
    )
    seconds: float | None = column(
        pa.float32(), "wall time in its slot, shared with the slot's neighbours", level="standard"
    )
    replica: str | None = column(pa.string(), "which replica decoded it", level="standard")
    attempts: int = column(
        pa.int32(), "times it got a slot; 0 where it never could", level="standard"
    )

    @classmethod
    def of_sample(
        cls,
        sample: Sample,
        prompt: Prompt,
        *,
        replica: str,
        stops: Sequence[str] = (),
        read_json: Callable[[str], tuple[str | None, str | None]] | None = None,
    ) -> Result:
        """The row of a decoded sample, its text cut before the first of `stops`.

        read_json: an answer as compact JSON, or why it is none; where the run has a schema.
        """
        if sample.stop_reason == "failed":
            output: dict[str, Any] = {"status": "failed"}
        else:
            text, stop_text = cut_at_stop(sample.text, stops)
            json_text, json_error = read_json(text or "") if read_json else (None, None)
            output = {
                "status": "ok",
                "output_text": text,
                "stop_text": stop_text,
                "output_json": json_text,
                "json_error": json_error,
                "output_token_ids": sample.canvas,
                "num_output_tokens": sample.num_output_tokens,
                "max_entropy_at_stop": sample.max_entropy_at_stop,
                "kl_trace": [None if math.isnan(kl) else kl for kl in sample.kl_trace],
                "entropy_trace": sample.entropy_trace,
                "commit_step": sample.commit_step,
                "token_confidence": sample.token_confidence,
                "mean_confidence": sample.mean_confidence,
                "min_confidence": sample.min_confidence,
                "mean_mix_weight": sample.mean_mix_weight,
            }
        return cls(
            row_id=prompt.row_id,
            sample=prompt.sample or 0,
            error=sample.error,
            num_prompt_tokens=len(prompt.token_ids),
            canvas_length=sample.canvas_length,
            num_forwards=sample.num_forwards,
            refine_steps=sample.refine_steps,
            decode_steps=sample.decode_steps,
            full_passes=sample.full_passes,
            positions_computed=sample.positions_computed,
            blocks=sample.blocks,
            num_uncommits=sample.num_uncommits,
            stop_reason=sample.stop_reason,
            open_at_stop=sample.open_at_stop,
            refine_converged=sample.refine_converged,
            bucket=prompt.bucket.prompt,
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
            sample=split_id(row_id)[2] or 0,
            status="failed",
            error=error,
            num_prompt_tokens=num_prompt_tokens,
            stop_reason="failed",
            bucket=bucket,
            attempts=attempts,
        )


COLUMNS: tuple[Field[Any], ...] = fields(Result)
RESULT_SCHEMA = pa.schema([(column.name, column.metadata["type"]) for column in COLUMNS])
"""The columns that a run adds to the input's, in order, at the level `full`."""
MEANINGS: dict[str, str] = {column.name: column.metadata["meaning"] for column in COLUMNS}
LEVELS: tuple[Columns, ...] = get_args(Columns)
"""Values of `--columns`; each keeps the columns of those before it."""
OF_REOPENING = ("num_uncommits",)
"""Columns of runs whose decoder opens committed positions again; in the others they would be 0."""
COUNTED_LIVE = ("bucket", "seconds", "replica")
"""What the driver's progress and metrics need of a finished row. A replica reports these at every
level; the driver stores them where the level keeps them."""


@cache
def kept_schema(columns: Columns, reopens: bool = False) -> pa.Schema:
    """The columns that a run at this level writes, in order. reopens: see `Layout`."""
    kept = [c.name for c in COLUMNS if _keeps(columns, c)]
    return pa.schema(
        [RESULT_SCHEMA.field(name) for name in kept if reopens or name not in OF_REOPENING]
    )


@cache
def reported_schema(columns: Columns) -> pa.Schema:
    """The columns of a replica's reports at this level: those that a run may keep, and
    `COUNTED_LIVE`."""
    names = [c.name for c in COLUMNS if _keeps(columns, c) or c.name in COUNTED_LIVE]
    return pa.schema([RESULT_SCHEMA.field(name) for name in names])


def _keeps(columns: Columns, column: Field[Any]) -> bool:
    return LEVELS.index(column.metadata["level"]) <= LEVELS.index(columns)


@dataclass(frozen=True, slots=True)
class Layout:
    """Which rows and columns the result shards of a run have.

    A prompt shard of R rows gives a result shard of R · num_samples: all samples of its first row
    in order, then those of the second.
    """

    num_samples: int = 1
    columns: Columns = "full"
    reopens: bool = False
    """Whether its decoder opens committed positions again: then there is `num_uncommits`."""

    @classmethod
    def planned(cls, config: RunConfig) -> Layout:
        """The layout of a run with these settings."""
        return cls(config.num_samples, config.columns, config.decoding.reopen != "none")

    @classmethod
    def of(cls, fingerprint: Mapping[str, Any]) -> Layout:
        """The layout of a run with this fingerprint. Raises ValueError for impossible values."""
        num_samples, columns = fingerprint.get("num_samples", 1), fingerprint.get("columns", "full")
        if type(num_samples) is not int or num_samples < 1:
            raise ValueError(f"num_samples is {num_samples!r}; expected a number of at least 1")
        if columns not in LEVELS:
            raise ValueError(f"columns is {columns!r}; expected {', '.join(LEVELS)}")
        decoding = fingerprint.get("decoding")
        reopen = decoding.get("reopen", "none") if isinstance(decoding, dict) else "none"
        return cls(num_samples, columns, reopen != "none")

    @property
    def settings(self) -> dict[str, Any]:
        """The settings beside the decoding's that it comes from."""
        return {"num_samples": self.num_samples, "columns": self.columns}

    @property
    def facts(self) -> dict[str, Any]:
        """Its entries in a fingerprint: what is not the default, so that the fingerprint of a run
        without these settings is that of versions that had none."""
        default = Layout().settings
        return {name: value for name, value in self.settings.items() if value != default[name]}

    @property
    def schema(self) -> pa.Schema:
        """The result columns."""
        return kept_schema(self.columns, self.reopens)

    @property
    def absent(self) -> list[str]:
        """Columns that the run would have at the level `full`."""
        every = kept_schema("full", self.reopens)
        return [name for name in every.names if name not in self.schema.names]

    @property
    def samples(self) -> Sequence[int | None]:
        """`Prompt.sample` of each sample of a row."""
        return (None,) if self.num_samples == 1 else range(self.num_samples)

    def position(self, index: int, sample: int | None) -> int:
        """Row number in the result shard of a prompt row's sample."""
        return index * self.num_samples + (sample or 0)

    def row_id(self, shard: int, position: int) -> str:
        """The id of a result shard's row."""
        index, sample = divmod(position, self.num_samples)
        return row_id(shard, index, self.samples[sample])


def results_batch(results: Sequence[Result], schema: pa.Schema = RESULT_SCHEMA) -> pa.RecordBatch:
    """Results as rows of a schema, which has columns of `RESULT_SCHEMA`."""
    rows = [{name: getattr(result, name) for name in schema.names} for result in results]
    # One conversion for all columns: column by column one row takes three times as long.
    return pa.RecordBatch.from_struct_array(pa.array(rows, pa.struct(list(schema))))


def cut_at_stop(text: str | None, stops: Sequence[str]) -> tuple[str | None, str | None]:
    """The text before the earliest of the stop texts, and that stop text: the one named first where
    several begin there. The whole text and None where it holds none."""
    if text is None:
        return None, None
    found = [(where, n) for n, stop in enumerate(stops) if (where := text.find(stop)) >= 0]
    if not found:
        return text, None
    where, n = min(found)
    return text[:where], stops[n]


Key = tuple[int, int]
"""A row as driver and replica name it: the batch's number, and the row's index in the batch."""


class Phase(Enum):
    """What a replica's thread does."""

    DECODING = "decoding"
    PREPARING = "preparing"
    """It finds out how many slots of a bucket fit into memory."""
    COMPILING = "compiling"
    """The first pass of a shape, in which kernels may be compiled."""


@dataclass(frozen=True, slots=True)
class Report:
    """What happened in a replica since its last report."""

    finished: list[Key]
    content: bytes
    """The finished rows in that order, as one Arrow message of `reported_schema(columns)`: Ray
    would take 2 ms to pickle and get a table of one row, a message takes 0.1 ms."""
    returned: list[Key]
    """Rows that a draining replica has not begun and will not."""
    events: list[str]
    """Texts for the run's events."""
    num_passes: int
    """Passes that have ended: while the number grows, the replica is alive."""
    longest_pass: float
    """Seconds, over all passes of the replica but those that may have compiled."""
    num_canvases: int = 0
    """Canvases that went through the model in these passes, those of free slots too."""
    pass_seconds: float = 0.0
    """How long these passes took together."""
    phase: Phase = Phase.DECODING
    """What the replica's passes are doing now."""
    columns: Columns = "full"
    moved: list[tuple[Key, Spent]] = field(default_factory=list)
    """Rows that need a longer canvas, with all that they took so far."""

    @classmethod
    def of(cls, results: Sequence[Result], columns: Columns = "full", **values: Any) -> Report:
        """A report of these finished rows."""
        content = b""
        if results:
            content = results_batch(results, reported_schema(columns)).serialize().to_pybytes()
        return cls(content=content, columns=columns, **values)

    def rows(self) -> pa.RecordBatch:
        """The finished rows, read in place."""
        return pa.ipc.read_record_batch(self.content, reported_schema(self.columns))


def row_id(shard: int, index: int, sample: int | None = None) -> str:
    """A row's name in the whole run: shard and row number of its prompt, `00003-00000042`; where
    prompts have several samples, also which one it is, `00003-00000042-2`.

    Names sort as text in the order of the result shards: a number of more digits than these begins
    with a letter, `a` for one more, `b` for two (`a123456-00000042`, `00003-00000042-a17`).
    """
    name = f"{_sortable(shard, 5)}-{_sortable(index, 8)}"
    return name if sample is None else f"{name}-{_sortable(sample, 1)}"


def _sortable(number: int, width: int) -> str:
    digits = f"{number:0{width}d}"
    more = len(digits) - width
    return f"{chr(ord('a') + more - 1)}{digits}" if more else digits


def split_id(row_id: str) -> tuple[int, int, int | None]:
    """Shard, row number and sample (None where it names none) of a row's id."""
    shard, index, *sample = (int(part.lstrip("abcdefgh")) for part in row_id.split("-"))
    return shard, index, sample[0] if sample else None


def prompt_id(row_id: str) -> str:
    """A row's id without its sample: the same for all samples of a prompt."""
    return "-".join(row_id.split("-")[:2])
