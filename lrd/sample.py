"""A sample: a decoded canvas with its statistics, read from the state of its batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lrd.canvases import Canvases, StopReason, sent
from lrd.models.protocol import DiffusionModel, eos_ids
from lrd.templates import Scaffold


@dataclass(frozen=True, slots=True)
class Spent:
    """Passes of a sample in canvases that were too short for it."""

    refine_steps: int
    decode_steps: int
    full_passes: int
    positions_computed: int
    kl_trace: list[float]
    entropy_trace: list[float]
    seconds: float
    num_uncommits: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """A decoded canvas, and the passes and reasons that led to it."""

    key: Any
    canvas: list[int]
    """All token ids of its canvas."""
    text: str | None
    """The tokens before the first EOS, of a scaffold its text; None where the model has no
    tokenizer."""
    num_output_tokens: int
    """Tokens before the first EOS: the paper's effective tokens. Of a scaffold its fixed tokens,
    and those of each hole before the hole's first EOS."""
    kept: list[bool]
    """Which positions belong to the answer: those that `num_output_tokens` counts."""
    commit_step: list[int]
    """1-based pass that committed each position; 0 for fixed tokens, and where none did and EOS
    filled the rest."""
    token_confidence: list[float | None]
    """Probability of each position's token in the pass that committed it, 1 for fixed tokens; None
    behind the first EOS (of a hole), and where no pass committed it."""
    num_forwards: int
    refine_steps: int
    decode_steps: int
    full_passes: int
    """Passes that fed prompt and canvas; with a cache the others fed their block."""
    positions_computed: int
    """Columns that went through the model, over all passes; padding is not counted."""
    blocks: int
    """Blocks that were decoded, the last one included."""
    num_uncommits: int
    """Times that a committed position was opened again; `commit_step` names the last commit."""
    stop_reason: Literal["converged", "complete", "eos", "failed", "grow"]
    """How the last block ended; grow: it is to be decoded in a longer canvas, and this is no
    answer."""
    open_at_stop: int
    """Positions that early stops committed unsettled, over all blocks."""
    max_entropy_at_stop: float
    """Largest entropy among them, nats; 0 where there are none."""
    refine_converged: bool
    """Every refinement phase ended by tau_refine; False where there was none."""
    kl_trace: list[float]
    """D_t of Eq. 6 a pass, nats; NaN in a block's first pass."""
    entropy_trace: list[float]
    """Mean entropy of the open positions a pass, nats."""
    mean_mix_weight: float
    """Mean α of all soft embeddings that were formed; 0 where there were none."""
    error: str | None
    """Why the sample failed."""
    seconds: float
    """Wall time in its slot; passes are shared with the other slots."""

    @property
    def canvas_length(self) -> int:
        """Positions of its canvas."""
        return len(self.canvas)

    @property
    def spent(self) -> Spent:
        """The passes that it took."""
        return Spent(
            self.refine_steps,
            self.decode_steps,
            self.full_passes,
            self.positions_computed,
            self.kl_trace,
            self.entropy_trace,
            self.seconds,
            self.num_uncommits,
        )

    def after(self, spent: Spent | None) -> Sample:
        """The sample with the passes that were spent on shorter canvases before."""
        if spent is None:
            return self
        num_before = spent.refine_steps + spent.decode_steps
        return replace(
            self,
            num_forwards=self.num_forwards + num_before,
            refine_steps=self.refine_steps + spent.refine_steps,
            decode_steps=self.decode_steps + spent.decode_steps,
            full_passes=self.full_passes + spent.full_passes,
            positions_computed=self.positions_computed + spent.positions_computed,
            kl_trace=[*spent.kl_trace, *self.kl_trace],
            entropy_trace=[*spent.entropy_trace, *self.entropy_trace],
            commit_step=[step + num_before if step else 0 for step in self.commit_step],
            seconds=self.seconds + spent.seconds,
            num_uncommits=self.num_uncommits + spent.num_uncommits,
        )

    @property
    def mean_confidence(self) -> float | None:
        """Over the tokens of the answer that a pass committed; None where there are none."""
        known = self._confidences()
        return sum(known) / len(known) if known else None

    @property
    def min_confidence(self) -> float | None:
        """The least among them."""
        return min(self._confidences(), default=None)

    def _confidences(self) -> list[float]:
        places = zip(self.token_confidence, self.kept, self.commit_step, strict=True)
        return [p for p, kept, step in places if kept and step and p is not None]


class Readout:
    """Some rows of the canvases, on the host, from which samples are made."""

    def __init__(self, state: Canvases, rows: list[int]) -> None:
        """rows: those of samples that have ended; waits for the device."""
        chosen = sent(rows, state.stop_B.device)
        fields = {name: value[chosen] for name, value in state.outcomes()}
        self._fields = dict(zip(fields, on_host(*fields.values()), strict=True))

    def sample(
        self,
        number: int,
        model: DiffusionModel,
        key: Any,
        seconds: float,
        scaffold: Scaffold | None = None,
    ) -> Sample:
        """The sample of the row with this number among those that were read. scaffold: the canvas
        that it began with."""
        of: dict[str, Any] = {name: value[number].tolist() for name, value in self._fields.items()}
        length = of["length_B"]
        canvas, commit_step = of["canvas_BG"][:length], of["commit_step_BG"][:length]
        scaffold = scaffold or Scaffold.open(length, model.mask_id)
        ends = {*eos_ids(model)}
        if not scaffold.is_open:
            ends.add(model.pad_id)
        kept = scaffold.kept(canvas, ends)
        num_forwards = of["refine_steps_B"] + of["decode_steps_B"]
        num_mixed, reason = of["mix_weight_count_B"], StopReason(of["stop_B"])
        failed = reason is StopReason.FAILED
        text = None
        if model.tokenizer is not None:
            text = scaffold.text(canvas, model.tokenizer, ends)
        return Sample(
            key=key,
            canvas=canvas,
            text=text,
            num_output_tokens=sum(kept),
            kept=kept,
            commit_step=commit_step,
            token_confidence=_confidences(
                scaffold, kept, commit_step, of["confidence_BG"][:length]
            ),
            num_forwards=num_forwards,
            refine_steps=of["refine_steps_B"],
            decode_steps=of["decode_steps_B"],
            full_passes=of["full_passes_B"],
            positions_computed=of["positions_computed_B"],
            blocks=of["blocks_B"],
            num_uncommits=of["num_uncommits_B"],
            stop_reason=reason.name.lower(),  # type: ignore[arg-type]
            open_at_stop=of["open_at_stop_B"],
            max_entropy_at_stop=of["max_entropy_at_stop_B"],
            refine_converged=of["all_phases_converged_B"],
            kl_trace=of["kl_trace_BT"][:num_forwards],
            entropy_trace=of["entropy_trace_BT"][:num_forwards],
            mean_mix_weight=of["mix_weight_sum_B"] / num_mixed if num_mixed else 0.0,
            seconds=seconds,
            error=f"non-finite logits in pass {num_forwards}" if failed else None,
        )


def _confidences(
    scaffold: Scaffold, kept: list[bool], commit_step: list[int], confidence: list[float]
) -> list[float | None]:
    """Of fixed tokens 1; of each hole those of its text and of the EOS that ends it."""
    found: list[float | None] = [1.0] * len(kept)
    for hole in scaffold.holes:
        for at in range(hole.start, hole.end):
            told = kept[at] or at == hole.start or kept[at - 1]
            found[at] = confidence[at] if told and commit_step[at] else None
    return found


def on_host(*tensors: Tensor) -> list[Tensor]:
    """Copies in the host's memory; waits once for all. The thread sleeps meanwhile, so that a
    replica's other threads have its core."""
    if not tensors[0].is_cuda:
        return list(tensors)
    copies = [x.to("cpu", non_blocking=True) for x in tensors]
    arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    arrived.record(torch.cuda.current_stream(tensors[0].device))
    arrived.synchronize()
    return copies
