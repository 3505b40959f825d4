"""Slots: prompts in, finished samples out, a freed slot refilled at the next pass.

Knows nothing of Ray, files or row ids: whoever submits a prompt names it with a key of his own.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from lrd.config import DecodingConfig
from lrd.decoding import Canvases, StopReason, step
from lrd.models.protocol import DiffusionModel

PaddingSide = Literal["left", "right"]

PASSES_A_READ = 4
"""Passes between two looks at which samples have ended, where a look waits for the device."""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt that waits for a slot."""

    key: Any
    prompt: list[int]
    seed: int


@dataclass(frozen=True, slots=True)
class Sample:
    """A decoded canvas and how it came about."""

    key: Any
    canvas: list[int]
    """All gen_length token ids."""
    text: str | None
    """The tokens before the first EOS; None where the model has no tokenizer."""
    num_output_tokens: int
    """Tokens before the first EOS: the paper's effective tokens."""
    commit_step: list[int]
    """1-based pass that committed each position; 0 where EOS filled the rest undecoded."""
    num_forwards: int
    refine_steps: int
    decode_steps: int
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
    """Wall time in its slot, shared with the other slots."""


class Engine:
    """A fixed number of slots for canvases of one shape.

    Every pass runs all busy slots together. A sample's result does not depend on the others:
    masks keep the padding out and every decision is the sample's own.
    """

    def __init__(
        self,
        model: DiffusionModel,
        config: DecodingConfig,
        num_slots: int,
        prompt_length: int,
        padding_side: PaddingSide = "left",
        passes_a_read: int | None = None,
    ) -> None:
        """prompt_length: tokens of the longest prompt that will be submitted. passes_a_read:
        how often ended samples are looked for; every pass on a CPU, where looking is free.

        Raises ValueError where prompt and canvas exceed the model's positions.
        """
        if num_slots < 1:
            raise ValueError(f"{num_slots} slots; at least 1 is needed")
        if prompt_length + config.gen_length > model.max_length:
            raise ValueError(
                f"{prompt_length} prompt tokens and gen_length {config.gen_length} exceed the "
                f"model's {model.max_length} positions"
            )
        self.model, self.config = model, config
        self.num_slots = num_slots
        self.max_busy = num_slots
        """Slots that may be filled now; whoever runs several engines shares them out."""
        self.num_columns = prompt_length + config.gen_length
        self.padding_side = padding_side
        self.num_passes = 0
        self.num_slot_passes = 0
        """Canvases that went through the model, over all passes."""
        self.setbacks: list[str] = []
        """What was said when slots were given up for want of memory."""
        on_cpu = model.embedding_table.device.type == "cpu"
        self._passes_a_read = passes_a_read or (1 if on_cpu else PASSES_A_READ)
        self._waiting: deque[Request] = deque()
        self._slots: list[Request | None] = []
        self._placed_at: list[float] = []
        self._generators: list[torch.Generator | None] = []
        self.canvases = Canvases.empty(model, config, 0, self.num_columns)

    @property
    def busy(self) -> bool:
        """Whether any prompt waits or is being decoded."""
        return bool(self._waiting) or any(self._slots)

    @property
    def num_busy(self) -> int:
        """Slots that hold a prompt."""
        return sum(request is not None for request in self._slots)

    @property
    def num_waiting(self) -> int:
        """Prompts that no slot has taken yet."""
        return len(self._waiting)

    def give_back(self) -> list[Request]:
        """Take back the prompts that no slot has taken yet, in their order."""
        waiting = list(self._waiting)
        self._waiting.clear()
        return waiting

    def submit(self, request: Request) -> None:
        """Queue a prompt. A [MASK] in it is context like any token and is never written.

        Raises ValueError where it is empty, longer than the slots or holds an unknown id.
        """
        if not request.prompt:
            raise ValueError("the prompt has no tokens")
        if len(request.prompt) + self.config.gen_length > self.num_columns:
            raise ValueError(
                f"{len(request.prompt)} prompt tokens exceed the slots' "
                f"{self.num_columns - self.config.gen_length}"
            )
        # On a GPU an index out of range takes the whole process down.
        num_tokens = self.model.embedding_table.shape[0]
        for token in request.prompt:
            if not 0 <= token < num_tokens:
                raise ValueError(
                    f"the prompt holds token id {token}; the model's ids go from 0 to "
                    f"{num_tokens - 1}"
                )
        self._waiting.append(request)

    @torch.inference_mode()
    def step(self) -> list[Sample]:
        """One forward pass for all busy slots; the samples that it finished. Idle: no pass.

        Where memory runs out half the slots are given up, and the prompts in them start anew.
        """
        if not self.busy:
            return []
        setback = None
        try:
            self._fill_slots()
            if not self._slots:
                return []
            step(self.model, self.config, self.canvases, self._draw())
        except RuntimeError as error:
            if not _is_out_of_memory(error) or len(self._slots) == 1:
                raise
            setback = str(error).partition("\n")[0]
        # Only here: the error's traceback holds the tensors of the pass.
        if setback is not None:
            self._give_up_slots(setback)
            return []
        self.num_passes += 1
        self.num_slot_passes += len(self._slots)
        if self.num_passes % self._passes_a_read:
            return []
        return self._take_finished()

    def _give_up_slots(self, setback: str) -> None:
        """Half of the slots that were too many; a sample depends on its prompt and seed alone,
        so what was begun can begin again."""
        too_many = len(self._slots)
        self.num_slots = too_many // 2
        self._waiting.extendleft(request for request in reversed(self._slots) if request)
        self._slots, self._placed_at, self._generators = [], [], []
        device = self.model.embedding_table.device
        self.canvases = Canvases.empty(self.model, self.config, 0, self.num_columns)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        self.setbacks.append(
            f"out of memory with {too_many} slots of {self.num_columns} positions, "
            f"going on with {self.num_slots}: {setback}"
        )

    def _fill_slots(self) -> None:
        """Waiting prompts into free slots; a slot that stays free is not computed."""
        num_free = self._slots.count(None)
        num_slots = min(self.num_slots, self.max_busy)
        num_new = min(num_slots - len(self._slots), len(self._waiting) - num_free)
        if num_new > 0:
            self.canvases.append(Canvases.empty(self.model, self.config, num_new, self.num_columns))
            self._slots += [None] * num_new
            self._placed_at += [0.0] * num_new
            self._generators += [None] * num_new
        for row, request in enumerate(self._slots):
            if request is None and self._waiting and self.num_busy < num_slots:
                request = self._waiting.popleft()
                self.canvases.place(row, request.prompt, self.model, self.config, self.padding_side)
                self._slots[row] = request
                self._placed_at[row] = time.monotonic()
                self._generators[row] = self._generator(request.seed)
        busy = [row for row, request in enumerate(self._slots) if request]
        if len(busy) < len(self._slots):
            self.canvases.keep(busy)
            self._slots = [self._slots[row] for row in busy]
            self._placed_at = [self._placed_at[row] for row in busy]
            self._generators = [self._generators[row] for row in busy]
        prompt_room = self.num_columns - self.config.gen_length
        self.canvases.has_padding = any(
            len(request.prompt) < prompt_room for request in self._slots if request
        )

    def _generator(self, seed: int) -> torch.Generator | None:
        if self.config.temperature == 0:
            return None
        device = self.model.embedding_table.device
        return torch.Generator(device=device).manual_seed(seed)

    def _draw(self) -> torch.Tensor | None:
        """Each slot's own uniform numbers [B, K, V] in (0, 1), where sampling needs them."""
        if self.config.temperature == 0:
            return None
        table = self.model.embedding_table
        shape = (self.config.block_tokens, table.shape[0])
        draws = [
            torch.rand(shape, generator=generator, device=table.device, dtype=torch.float64)
            for generator in self._generators
        ]
        # rand may draw 0, whose logarithm would make a token certain.
        return torch.stack(draws).clamp(min=torch.finfo(torch.float64).tiny)

    def _take_finished(self) -> list[Sample]:
        reasons = self.canvases.stop_B.tolist()
        samples = []
        for row, request in enumerate(self._slots):
            if request is not None and reasons[row] != StopReason.RUNNING:
                samples.append(self._sample(row, request, StopReason(reasons[row])))
                self._slots[row] = None
        return samples

    def _sample(self, row: int, request: Request, reason: StopReason) -> Sample:
        state, model = self.canvases, self.model
        canvas = state.canvas_BG[row].tolist()
        length = canvas.index(model.eos_id) if model.eos_id in canvas else len(canvas)
        refine_steps, decode_steps = int(state.refine_steps_B[row]), int(state.decode_steps_B[row])
        num_forwards = refine_steps + decode_steps
        num_mixed = int(state.mix_weight_count_B[row])
        failed = reason is StopReason.FAILED
        text = None
        if model.tokenizer is not None:
            text = model.tokenizer.decode(canvas[:length], skip_special_tokens=True)
        return Sample(
            key=request.key,
            canvas=canvas,
            text=text,
            num_output_tokens=length,
            commit_step=state.commit_step_BG[row].tolist(),
            num_forwards=num_forwards,
            refine_steps=refine_steps,
            decode_steps=decode_steps,
            blocks=int(state.block_B[row]) + 1,
            stop_reason=reason.name.lower(),  # type: ignore[arg-type]
            open_at_stop=int(state.open_at_stop_B[row]),
            max_entropy_at_stop=float(state.max_entropy_at_stop_B[row]),
            refine_converged=bool(state.all_phases_converged_B[row]),
            kl_trace=state.kl_trace_BT[row, :num_forwards].tolist(),
            entropy_trace=state.entropy_trace_BT[row, :num_forwards].tolist(),
            mean_mix_weight=float(state.mix_weight_sum_B[row]) / num_mixed if num_mixed else 0.0,
            seconds=time.monotonic() - self._placed_at[row],
            error=f"non-finite logits in pass {num_forwards}" if failed else None,
        )


def _is_out_of_memory(error: RuntimeError) -> bool:
    """CUDA has a class for it, the CPU's allocator only words."""
    words = str(error).lower()
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "out of memory" in words
        or "can't allocate memory" in words
    )


def row_seed(seed: int, row_id: str | int) -> int:
    """A row's own seed: a hash of the run's seed and the row's id (63 bits)."""
    digest = hashlib.blake2b(f"{seed}/{row_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def decode(
    model: DiffusionModel,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    config: DecodingConfig | None = None,
    *,
    batch_size: int = 16,
    padding_side: PaddingSide = "left",
) -> list[Sample]:
    """Decode prompts and return their samples in the same order; a sample's key is its index.

    prompts: lists of token ids, or strings for the model's tokenizer (taken as they are, no
    chat template). config: the preset `fast` where none is given. batch_size: slots, that is
    how many prompts are decoded at a time; results do not depend on it.
    Raises ValueError for an empty prompt, one too long for the model's positions, and strings
    where the model has no tokenizer.
    """
    config = config or DecodingConfig.preset("fast")
    token_ids: list[list[int]] = []
    for prompt in prompts:
        if isinstance(prompt, str):
            if model.tokenizer is None:
                raise ValueError("the model has no tokenizer; give lists of token ids")
            prompt = model.tokenizer.encode(prompt, add_special_tokens=False)
        token_ids.append([int(token) for token in prompt])
    if not token_ids:
        return []
    engine = Engine(model, config, batch_size, max(map(len, token_ids)), padding_side)
    for index, ids in enumerate(token_ids):
        engine.submit(Request(index, ids, row_seed(config.seed, index)))
    samples: list[Sample] = []
    while engine.busy:
        samples += engine.step()
    return sorted(samples, key=lambda sample: int(sample.key))
