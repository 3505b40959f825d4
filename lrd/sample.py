"""A sample: a decoded canvas with its statistics, read from the state of its batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lrd.canvases import Canvases, StopReason, sent
from lrd.models.protocol import DiffusionModel, eos_ids


@dataclass(frozen=True, slots=True)
class Sample:
    """A decoded canvas, and the passes and reasons that led to it."""

    key: Any
    canvas: list[int]
    """All gen_length token ids."""
    text: str | None
    """The tokens before the first EOS; None where the model has no tokenizer."""
    num_output_tokens: int
    """Tokens before the first EOS: the paper's effective tokens."""
    commit_step: list[int]
    """1-based pass that committed each position; 0 where none did and EOS filled the rest."""
    token_confidence: list[float | None]
    """Probability of each position's token in the pass that committed it; None behind the first
    EOS, and where no pass committed it."""
    num_forwards: int
    refine_steps: int
    decode_steps: int
    full_passes: int
    """Passes that fed prompt and canvas; with a cache the others fed their block."""
    positions_computed: int
    """Columns that went through the model, over all passes; padding is not counted."""
    blocks: int
    """Blocks that were decoded, the last one included."""
    stop_reason: Literal["converged", "complete", "eos", "failed"]
    """How the last block ended."""
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
    def mean_confidence(self) -> float | None:
        """Over the tokens before the first EOS; None where there are none."""
        known = self._confidences()
        return sum(known) / len(known) if known else None

    @property
    def min_confidence(self) -> float | None:
        """The least among them."""
        return min(self._confidences(), default=None)

    def _confidences(self) -> list[float]:
        return [p for p in self.token_confidence[: self.num_output_tokens] if p is not None]


class Readout:
    """Some rows of the canvases, on the host, from which samples are made."""

    def __init__(self, state: Canvases, rows: list[int]) -> None:
        """rows: those of samples that have ended; waits for the device."""
        chosen = sent(rows, state.stop_B.device)
        fields = {name: value[chosen] for name, value in state.outcomes()}
        self._fields = dict(zip(fields, on_host(*fields.values()), strict=True))

    def sample(self, number: int, model: DiffusionModel, key: Any, seconds: float) -> Sample:
        """The sample of the row with this number among those that were read."""
        of: dict[str, Any] = {name: value[number].tolist() for name, value in self._fields.items()}
        canvas = of["canvas_BG"]
        ends = eos_ids(model)
        length = next((n for n, token in enumerate(canvas) if token in ends), len(canvas))
        num_forwards = of["refine_steps_B"] + of["decode_steps_B"]
        num_mixed, reason = of["mix_weight_count_B"], StopReason(of["stop_B"])
        failed = reason is StopReason.FAILED
        text = None
        if model.tokenizer is not None:
            text = model.tokenizer.decode(canvas[:length], skip_special_tokens=True)
        return Sample(
            key=key,
            canvas=canvas,
            text=text,
            num_output_tokens=length,
            commit_step=of["commit_step_BG"],
            token_confidence=[
                p if step and n <= length else None
                for n, (p, step) in enumerate(
                    zip(of["confidence_BG"], of["commit_step_BG"], strict=True)
                )
            ],
            num_forwards=num_forwards,
            refine_steps=of["refine_steps_B"],
            decode_steps=of["decode_steps_B"],
            full_passes=of["full_passes_B"],
            positions_computed=of["positions_computed_B"],
            blocks=of["block_B"] + 1,
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
