"""One slotted dataclass an arrow: what the driver sends a replica and what comes back.

Knows nothing of files or Ray.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lrd import Sample


@dataclass(frozen=True, slots=True)
class Prompt:
    """One input row, tokenised: from the driver to a replica."""

    shard: int
    index: int
    """Row number inside its shard."""
    token_ids: list[int]
    bucket: int
    """Prompt tokens that its slot holds."""
    begun: int = 0
    """Replicas that ended while it was in one of their slots, whoever's fault that was."""
    suspect: bool = False
    """Whether it was in a slot at a death that no lost machine explains: it is tried apart."""
    deaths_alone: int = 0
    """Deaths of replicas that held nothing else, and that no lost machine explains."""

    @property
    def row_id(self) -> str:
        return row_id(self.shard, self.index)


@dataclass(frozen=True, slots=True)
class Result:
    """One output row without the input's columns; `None` where a failed row has no value.

    The fields are the added columns of the result dataset, in order (`pipeline/parquet.py`).
    """

    row_id: str
    status: str
    """ok or failed."""
    error: str | None
    output_text: str | None
    output_token_ids: list[int] | None
    """All gen_length ids of the canvas."""
    num_output_tokens: int | None
    """Tokens before the first EOS."""
    num_prompt_tokens: int | None
    num_forwards: int | None
    refine_steps: int | None
    decode_steps: int | None
    blocks: int | None
    stop_reason: str
    """converged, complete, eos or failed."""
    open_at_stop: int | None
    max_entropy_at_stop: float | None
    refine_converged: bool | None
    kl_trace: list[float | None] | None
    """D_t of Eq. 6 a forward; null in a block's first."""
    entropy_trace: list[float] | None
    """Mean entropy of open positions a forward."""
    commit_step: list[int] | None
    """Forward that committed each canvas position; 0 where EOS filled the rest."""
    mean_mix_weight: float | None
    bucket: int | None
    seconds: float | None
    """Wall time in its slot, shared with the slot's neighbours."""
    replica: str | None
    attempts: int
    """Times the row got a slot; 0 where it never could."""

    @classmethod
    def of_sample(cls, sample: Sample, prompt: Prompt, *, replica: str) -> Result:
        """The row of a decoded sample."""
        ok = sample.stop_reason != "failed"
        return cls(
            row_id=prompt.row_id,
            status="ok" if ok else "failed",
            error=sample.error,
            output_text=sample.text if ok else None,
            output_token_ids=sample.canvas if ok else None,
            num_output_tokens=sample.num_output_tokens if ok else None,
            num_prompt_tokens=len(prompt.token_ids),
            num_forwards=sample.num_forwards,
            refine_steps=sample.refine_steps,
            decode_steps=sample.decode_steps,
            blocks=sample.blocks,
            stop_reason=sample.stop_reason,
            open_at_stop=sample.open_at_stop,
            max_entropy_at_stop=sample.max_entropy_at_stop if ok else None,
            refine_converged=sample.refine_converged,
            kl_trace=[None if math.isnan(kl) else kl for kl in sample.kl_trace] if ok else None,
            entropy_trace=sample.entropy_trace if ok else None,
            commit_step=sample.commit_step if ok else None,
            mean_mix_weight=sample.mean_mix_weight if ok else None,
            bucket=prompt.bucket,
            seconds=sample.seconds,
            replica=replica,
            attempts=prompt.begun + 1,
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
            output_text=None,
            output_token_ids=None,
            num_output_tokens=None,
            num_prompt_tokens=num_prompt_tokens,
            num_forwards=None,
            refine_steps=None,
            decode_steps=None,
            blocks=None,
            stop_reason="failed",
            open_at_stop=None,
            max_entropy_at_stop=None,
            refine_converged=None,
            kl_trace=None,
            entropy_trace=None,
            commit_step=None,
            mean_mix_weight=None,
            bucket=bucket,
            seconds=None,
            replica=None,
            attempts=attempts,
        )


@dataclass(frozen=True, slots=True)
class Rows:
    """Finished rows on their way to the driver, as `parquet.message` writes them."""

    content: bytes


@dataclass(frozen=True, slots=True)
class Notice:
    """What a replica has to tell beside rows; the driver keeps it among the run's events."""

    text: str


@dataclass(frozen=True, slots=True)
class Pulse:
    """A sign of life between rows: a pass has ended."""

    longest_pass: float
    """Seconds, over all passes of the replica."""


@dataclass(frozen=True, slots=True)
class HandedBack:
    """Rows of a unit that a drained replica has not begun and will not."""

    row_ids: list[str]


def row_id(shard: int, index: int) -> str:
    """A row's name in the whole run: shard and row number, in the input's order."""
    return f"{shard:05d}-{index:08d}"


def row_index(row_id: str) -> int:
    """The row number inside its shard."""
    return int(row_id.partition("-")[2])
