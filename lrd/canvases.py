"""The state of a batch of canvases, one row a sample: placed and moved by row.

`decoding.py` advances it.

Legend: B samples, L columns (prompt, canvas, padding), G canvas positions, D width, T passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from lrd.config import DecodingConfig
from lrd.decoders import rules_of
from lrd.draws import signed
from lrd.models.kv_cache import KVCache
from lrd.models.protocol import DiffusionModel, is_cached, wants_fixed_shapes
from lrd.previous_beliefs import PastBeliefs
from lrd.suffix import FedPositions
from lrd.templates import Scaffold


class StopReason(IntEnum):
    """Why a sample ended; `running` while it has not."""

    RUNNING = 0
    COMPLETE = 1
    CONVERGED = 2
    EOS = 3
    FAILED = 4
    GROW = 5
    """The canvas is too short; the sample is decoded again in a longer one."""


@dataclass(frozen=True, slots=True)
class AllowedTokens:
    """Which tokens positions of each class may take."""

    allowed_CV: Tensor
    """bool; class 0 may take any."""


@dataclass(slots=True)
class Canvases:
    """State of B samples; every tensor's first dimension is B."""

    embeds_BLD: Tensor
    attention_mask_BL: Tensor
    start_B: Tensor
    """Column of each sample's first canvas position."""
    prompt_B: Tensor
    """Tokens of each sample's prompt."""
    seed_B: Tensor
    """What each sample's draws are made of, at temperature > 0."""
    length_B: Tensor
    """Canvas positions of each sample; what lies behind them holds EOS and is never read."""
    eos_from_B: Tensor
    """First canvas position of each sample from which on an EOS may end it."""
    canvas_BG: Tensor
    """Token ids; [MASK] where open."""
    commit_step_BG: Tensor
    """1-based pass that committed a position; 0 while open, where the token was there from the
    start, and where EOS filled the rest."""
    confidence_BG: Tensor
    """Probability of a committed token in the pass that committed it; 0 elsewhere."""
    stop_B: Tensor
    """StopReason."""
    block_B: Tensor
    blocks_B: Tensor
    """Blocks that were begun."""
    num_at_start_B: Tensor
    """Open positions before the block's first decode pass."""
    pass_in_block_B: Tensor
    refining_B: Tensor
    phase_steps_B: Tensor
    """Refinement passes of the current phase."""
    decode_in_block_B: Tensor
    calm_B: Tensor
    """Consecutive decode passes below tau_decode."""
    divergence_B2: Tensor
    """`decoding.divergences` of the pass before, where the monitor is their change."""
    refine_steps_B: Tensor
    decode_steps_B: Tensor
    full_passes_B: Tensor
    """Passes that fed prompt and canvas."""
    positions_computed_B: Tensor
    """Columns that went through the model, over all passes; padding is not counted."""
    all_phases_converged_B: Tensor
    open_at_stop_B: Tensor
    max_entropy_at_stop_B: Tensor
    num_uncommits_B: Tensor
    """Times that a position which was committed before a pass was open after it."""
    mix_weight_sum_B: Tensor
    mix_weight_count_B: Tensor
    kl_trace_BT: Tensor
    entropy_trace_BT: Tensor
    past: PastBeliefs
    """Beliefs of the pass before."""
    fed: FedPositions
    """Canvas positions that the passes of each block feed."""
    kept: dict[str, Tensor] = field(default_factory=dict)
    """What decoders remember of samples [B, …] by name: `Rule.keeps`."""
    class_BG: Tensor | None = None
    """Class of the tokens that a position may take, a row of `allowed`; NOT_YET: it may not be
    committed in the next pass. None: every position may take any token."""
    temperature_B: Tensor | None = None
    """Where samples have their own, float64."""
    allowed: AllowedTokens | None = None
    cache: KVCache | None = None
    """Keys and values, where a block's passes keep them."""
    has_padding: bool = True
    """Whether any row has columns of padding."""
    fixed_shapes: bool = False
    """Whether a pass must not read values of tensors on the host, nor let shapes depend on them."""
    full_passes: list[tuple[Tensor, int]] = field(default_factory=list)
    """With fixed shapes and a cache: rows [R] whose next pass is a full one, and how many columns
    it feeds (`full_passes.py`)."""
    only_full: bool = False
    """With fixed shapes and a cache: whether every row that runs is in `full_passes`."""
    num_open: int | None = None
    """With fixed shapes: how many positions the head is asked for, at least those that are open;
    None: all of the blocks."""

    @property
    def mask(self) -> Tensor | None:
        """The attention mask; None without padding, which avoids a slower kernel on a GPU."""
        return self.attention_mask_BL if self.has_padding else None

    @classmethod
    def empty(
        cls,
        model: DiffusionModel,
        config: DecodingConfig,
        num_samples: int,
        num_columns: int,
        fixed_shapes: bool | None = None,
        allowed_CV: Tensor | None = None,
        row_temperatures: bool = False,
    ) -> Canvases:
        """B canvases without prompts: `stop` is COMPLETE until a prompt is placed.

        fixed_shapes: by default chosen by the model and its device (`wants_fixed_shapes`).
        allowed: bool, which tokens positions of class c may take; class 0 may take any.
        row_temperatures: samples may have a temperature of their own.
        """
        B, L, T = num_samples, num_columns, config.max_forwards
        table = model.embedding_table
        device = table.device
        cache = None
        if config.caches and is_cached(model):
            cache = model.new_cache(B, L)
        kept = {
            name: torch.zeros(B, *shape, dtype=dtype, device=device)
            for rule in rules_of(config)
            for name, (shape, dtype) in rule.keeps(config).items()
        }

        def integers(*shape: int, fill: int = 0) -> Tensor:
            return torch.full(shape, fill, dtype=torch.long, device=device)

        def floats(*shape: int, fill: float = 0.0) -> Tensor:
            return torch.full(shape, fill, dtype=torch.float32, device=device)

        return cls(
            embeds_BLD=torch.zeros(B, L, table.shape[1], dtype=table.dtype, device=device),
            attention_mask_BL=integers(B, L, fill=1),
            start_B=integers(B),
            prompt_B=integers(B),
            seed_B=integers(B),
            length_B=integers(B, fill=config.gen_length),
            eos_from_B=integers(B),
            canvas_BG=integers(B, config.gen_length, fill=model.mask_id),
            commit_step_BG=integers(B, config.gen_length),
            confidence_BG=floats(B, config.gen_length),
            stop_B=integers(B, fill=StopReason.COMPLETE),
            block_B=integers(B),
            blocks_B=integers(B),
            num_at_start_B=integers(B),
            pass_in_block_B=integers(B),
            refining_B=torch.zeros(B, dtype=torch.bool, device=device),
            phase_steps_B=integers(B),
            decode_in_block_B=integers(B),
            calm_B=integers(B),
            divergence_B2=floats(B, 2, fill=float("nan")),
            refine_steps_B=integers(B),
            decode_steps_B=integers(B),
            full_passes_B=integers(B),
            positions_computed_B=integers(B),
            all_phases_converged_B=torch.ones(B, dtype=torch.bool, device=device),
            open_at_stop_B=integers(B),
            max_entropy_at_stop_B=floats(B),
            num_uncommits_B=integers(B),
            mix_weight_sum_B=floats(B),
            mix_weight_count_B=integers(B),
            kl_trace_BT=floats(B, T, fill=float("nan")),
            entropy_trace_BT=floats(B, T, fill=float("nan")),
            past=PastBeliefs(B, config.window_tokens, table.shape[0], device),
            fed=FedPositions.of(config, device),
            kept=kept,
            class_BG=None if allowed_CV is None else integers(B, config.gen_length),
            temperature_B=floats(B).double() if row_temperatures else None,
            allowed=None if allowed_CV is None else AllowedTokens(allowed_CV.to(device)),
            cache=cache,
            fixed_shapes=wants_fixed_shapes(model) if fixed_shapes is None else fixed_shapes,
        )

    def place(
        self,
        row: int,
        prompt: list[int],
        model: DiffusionModel,
        config: DecodingConfig,
        padding_side: str,
        seed: int = 0,
        scaffold: Scaffold | None = None,
        temperature: float | None = None,
    ) -> None:
        """Put a prompt and a canvas into row `row`, in place of what was there.

        seed: the sample's own, of 64 bits. scaffold: the canvas; None: all of it is open.
        temperature: the sample's own, where rows may have one.
        Raises ValueError where prompt and canvas have more tokens than there are columns.
        """
        L, used = self.attention_mask_BL.shape[1], len(prompt) + config.gen_length
        if used > L:
            raise ValueError(f"{len(prompt)} prompt tokens do not fit {L - config.gen_length}")
        first, device = L - used if padding_side == "left" else 0, self.embeds_BLD.device
        canvas = [model.mask_id] * config.gen_length if scaffold is None else list(scaffold.ids)
        end = first + len(prompt) + len(canvas)
        canvas_G = sent(canvas + [model.eos_id] * (config.gen_length - len(canvas)), device)
        ids = [model.pad_id] * first + prompt + canvas + [model.pad_id] * (L - end)
        self.embeds_BLD[row] = model.embed(sent(ids, device)[None])[0]
        self.attention_mask_BL[row] = 0
        self.attention_mask_BL[row, first:end] = 1
        self.start_B[row] = first + len(prompt)
        self.prompt_B[row] = len(prompt)
        self.seed_B[row] = signed(seed)
        self.length_B[row] = len(canvas)
        self.eos_from_B[row] = 0 if scaffold is None else scaffold.eos_from
        self.canvas_BG[row] = canvas_G
        if self.class_BG is not None:
            self.class_BG[row] = 0
            if scaffold is not None and scaffold.classes is not None:
                self.class_BG[row, : len(canvas)] = sent(
                    scaffold.next_classes(canvas, model.mask_id), device
                )
        if self.temperature_B is not None:
            self.temperature_B[row] = config.temperature if temperature is None else temperature
        self.block_B[row] = first_block(config, canvas, model.mask_id)
        self.blocks_B[row] = int(not config.looks)
        for counter in (
            self.commit_step_BG,
            self.confidence_BG,
            self.num_at_start_B,
            self.pass_in_block_B,
            self.phase_steps_B,
            self.decode_in_block_B,
            self.calm_B,
            self.refine_steps_B,
            self.decode_steps_B,
            self.full_passes_B,
            self.positions_computed_B,
            self.open_at_stop_B,
            self.max_entropy_at_stop_B,
            self.num_uncommits_B,
            self.mix_weight_sum_B,
            self.mix_weight_count_B,
            *self.kept.values(),
        ):
            counter[row] = 0
        for hole in scaffold.holes if scaffold is not None and "held" in self.kept else ():
            if hole.choices is not None:
                self.kept["held"][row, hole.start : hole.end] = True
        self.divergence_B2[row] = float("nan")
        self.kl_trace_BT[row] = float("nan")
        self.entropy_trace_BT[row] = float("nan")
        self.refining_B[row] = config.refines
        self.all_phases_converged_B[row] = config.refines
        self.stop_B[row] = StopReason.RUNNING

    def first(self, num_rows: int) -> Canvases:
        """The first rows, as views; `take` writes back what a pass has replaced."""
        if num_rows == len(self.stop_B):
            return self
        views: dict[str, Any] = {name: value[:num_rows] for name, value in self._tensors()}
        kept = {name: value[:num_rows] for name, value in self.kept.items()}
        return replace(self, **views, kept=kept)

    def take(self, part: Canvases) -> None:
        """Write the rows of `part`, made by `first`, where they are not in this state's memory."""
        if part is self:
            return
        found = {**dict(part._tensors()), **part.kept}
        every = {**dict(self._tensors()), **self.kept}
        pairs = [(value[: len(part.stop_B)], found[name]) for name, value in every.items()]
        moved = [(own, new) for own, new in pairs if own.data_ptr() != new.data_ptr()]
        torch._foreach_copy_([own for own, _ in moved], [new for _, new in moved])

    def move(self, old: int, new: int) -> None:
        """Put what is in row `old` into row `new`; the old one holds no sample any more."""
        self.past.move(old, new)
        if self.cache is not None:
            self.cache.move(old, new)
        for value in (*dict(self._tensors()).values(), *self.kept.values()):
            value[new] = value[old]
        self.stop_B[old] = StopReason.COMPLETE

    def outcomes(self) -> Iterator[tuple[str, Tensor]]:
        """The fields that a sample is made of, by name."""
        inner = {
            *("embeds_BLD", "attention_mask_BL", "start_B", "prompt_B", "seed_B", "eos_from_B"),
            *("refining_B", "calm_B", "divergence_B2", "num_at_start_B", "block_B"),
            *("class_BG", "temperature_B"),
        }
        return (named for named in self._tensors() if named[0] not in inner)

    def _tensors(self) -> list[tuple[str, Tensor]]:
        every = ((one.name, getattr(self, one.name)) for one in fields(self))
        return [(name, value) for name, value in every if isinstance(value, Tensor)]


def first_block(config: DecodingConfig, canvas: Sequence[int], mask_id: int) -> int:
    """The block of a sample's first pass: the first that has an open position; the last one of all
    where that pass looks whether the canvas is long enough."""
    if config.looks:
        return config.num_blocks - 1
    return canvas.index(mask_id) // config.block_tokens


def sent(ids: list[int], device: torch.device) -> Tensor:
    """Token ids on the device; from pinned memory, so that the host does not wait for the copy."""
    on_host = torch.tensor(ids, dtype=torch.long, pin_memory=device.type == "cuda")
    return on_host.to(device, non_blocking=True)
