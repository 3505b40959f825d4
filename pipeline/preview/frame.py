"""One canvas after one of its passes, on the host: what a preview draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from lrd import DecodingConfig, Engine
from lrd.beliefs import entropy
from lrd.canvases import Canvases, StopReason
from lrd.models.protocol import eos_ids
from lrd.sample import Spent
from pipeline.preview.token_texts import token_texts
from pipeline.rows import Prompt

Phase = Literal["refining", "decoding", "looking"]
"""looking: the pass that asks only whether the canvas is long enough."""


POSITIONS_AT_A_TIME = 32
"""Positions whose beliefs are made at a time: a float32 each of all the vocabulary."""


class Cell(NamedTuple):
    """One position of a canvas."""

    text: str | None
    """Of its token; None while the position is open."""
    step: int
    """1-based pass that committed it; 0 for fixed tokens, and where EOS filled the rest."""
    entropy: float | None
    """Of an open position in the last pass, nats; None where that has not read it."""
    is_end: bool = False
    """Whether the token ends an answer."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A canvas after a pass."""

    row_id: str
    cells: list[Cell]
    phase: Phase
    """Of the pass."""
    block: int
    """Of the pass."""
    block_tokens: int
    refine_steps: int
    decode_steps: int
    kl_trace: list[float]
    """D_t of each pass, nats; NaN in a block's first."""
    entropy_trace: list[float]
    """Mean entropy of the open positions, each pass."""
    seconds: float
    """Of all passes."""
    stop: str | None = None
    """Why it has ended."""

    @property
    def num_passes(self) -> int:
        return self.refine_steps + self.decode_steps

    @property
    def num_blocks(self) -> int:
        return math.ceil(len(self.cells) / self.block_tokens)

    @property
    def num_open(self) -> int:
        return sum(cell.text is None for cell in self.cells)

    @property
    def num_tokens(self) -> int:
        """Committed tokens that are not behind the first end of the answer."""
        found = [cell for cell in self.cells if cell.text is not None]
        return next((n for n, cell in enumerate(found) if cell.is_end), len(found))


NOTHING_SPENT = Spent(0, 0, 0, 0, [], [], 0.0)


def frame_of(engine: Engine, prompt: Prompt, seconds: float, before: Frame | None = None) -> Frame:
    """The canvas of the engine's first slot, after a pass. before: the frame of the pass before."""
    model, state, K = engine.model, engine.canvases, engine.config.block_tokens
    spent = prompt.spent or NOTHING_SPENT
    num_before = spent.refine_steps + spent.decode_steps
    refine, decode, length, block, stop = torch.stack(
        [state.refine_steps_B, state.decode_steps_B, state.length_B, state.block_B, state.stop_B]
    )[:, 0].tolist()
    ids = state.canvas_BG[0, :length].tolist()
    steps = state.commit_step_BG[0, :length].tolist()
    unsure = _entropies(engine.config, state, block, model.mask_id)
    texts = token_texts(model.tokenizer, [None if i == model.mask_id else i for i in ids])
    ends = {*eos_ids(model), model.pad_id}
    cells = [
        Cell(text, step and step + num_before, unsure.get(n), index in ends)
        for n, (index, text, step) in enumerate(zip(ids, texts, steps, strict=True))
    ]
    # Where a pass has filled earlier blocks again too, its own is the last.
    committed = [n // K for n, step in enumerate(steps) if step == refine + decode]
    looks = engine.config.looks and refine + decode == 1
    refine_before = spent.refine_steps if before is None else before.refine_steps
    phase: Phase = "refining" if spent.refine_steps + refine > refine_before else "decoding"
    return Frame(
        row_id=prompt.row_id,
        cells=cells,
        phase="looking" if looks else phase,
        block=max(committed, default=block),
        block_tokens=K,
        refine_steps=spent.refine_steps + refine,
        decode_steps=spent.decode_steps + decode,
        kl_trace=[*spent.kl_trace, *state.kl_trace_BT[0, : refine + decode].tolist()],
        entropy_trace=[
            *spent.entropy_trace,
            *state.entropy_trace_BT[0, : refine + decode].tolist(),
        ],
        seconds=seconds,
        stop=None if stop == StopReason.RUNNING else StopReason(stop).name.lower(),
    )


def _entropies(
    config: DecodingConfig, state: Canvases, block: int, mask_id: int
) -> dict[int, float]:
    """The entropy of each open position that the last pass has read, from the beliefs that are kept
    for the next pass; those that were opened again are read in that one."""
    if not state.pass_in_block_B[0]:
        return {}  # The block's first pass is the next one.
    first = 0 if config.reads_canvas else block * config.block_tokens
    end = (block + 1) * config.block_tokens
    is_open = state.canvas_BG[0, first:end] == mask_id
    if "reopened" in state.kept:
        is_open &= ~state.kept["reopened"][0, : end - first]
    places = is_open.nonzero()[:, 0]
    found = [
        nats
        for some in torch.split(places, POSITIONS_AT_A_TIME)
        for nats in entropy(state.past.log_beliefs(0, some)).tolist()
    ]
    pairs = zip(places.tolist(), found, strict=True)
    return {first + place: nats for place, nats in pairs if math.isfinite(nats)}


def answer_parts(cells: Sequence[Cell], answer: str) -> list[tuple[str, int]]:
    """The answer in parts, each with the pass that committed it; in one part, of pass 0, where it
    is not the tokens' own text (numbers of a template are rewritten, say)."""
    parts: list[tuple[str, int]] = []
    left = answer
    for cell in cells:
        if cell.is_end or not left:
            break
        text = cell.text or ""
        if not left.startswith(text):
            # A stop text may begin within a token.
            text = text[: len(left)] if text.startswith(left) else ""
        if not text and cell.text:
            break
        parts.append((text, cell.step))
        left = left[len(text) :]
    return [(answer, 0)] if left else parts
