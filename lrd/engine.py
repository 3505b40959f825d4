"""The engine: prompts in, finished samples out, a freed slot refilled at the next pass.

Continuous batching for diffusion: one call of `Engine.step` is one forward pass of all slots.
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Iterator, Sequence

import torch

from lrd.canvases import Canvases
from lrd.config import DecodingConfig, PassRows
from lrd.models.protocol import (
    DiffusionModel,
    is_cached,
    missing_for_cache,
    wants_fixed_shapes,
)
from lrd.sample import Sample
from lrd.slots import PaddingSide, Request, Slots
from lrd.templates import Scaffold

__all__ = ["Engine", "PaddingSide", "Request", "Sample", "decode", "row_seed"]


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
        fixed_shapes: bool | None = None,
        padded: bool = True,
        pass_rows: PassRows = "busy",
        allowed: torch.Tensor | None = None,
        row_temperatures: bool = False,
    ) -> None:
        """prompt_length: tokens of the longest prompt that will be submitted. fixed_shapes: passes
        have few shapes, and nothing in a pass waits for the device; on by default off the CPU and
        for a compiled model. padded: whether prompts may be shorter than prompt_length; where none
        is, and no canvas, a GPU's kernels without a mask are faster. pass_rows: with fixed shapes
        `all` computes free slots too, so that how many prompts share a pass never changes its
        kernels. allowed: bool [C, V], which tokens positions of a scaffold's class c may take, any
        of class 0. row_temperatures: requests may have temperatures of their own.

        Raises ValueError where prompt and canvas exceed the model's positions.
        """
        if num_slots < 1:
            raise ValueError(f"{num_slots} slots; at least 1 is needed")
        if prompt_length + config.gen_length > model.max_length:
            raise ValueError(
                f"{prompt_length} prompt tokens and gen_length {config.gen_length} exceed the "
                f"model's {model.max_length} positions"
            )
        if row_temperatures and config.credit_alpha > 0:
            raise ValueError(
                "credit_alpha needs temperature 0; rows have temperatures of their own"
            )
        refuse_without_cache(model, config)
        self.model, self.config = model, config
        self.num_slots = num_slots
        self.max_busy = num_slots
        """Slots that may be filled now; callers that run several engines divide slots by it."""
        self.num_columns = prompt_length + config.gen_length
        self.padding_side = padding_side
        self.fixed_shapes = wants_fixed_shapes(model) if fixed_shapes is None else fixed_shapes
        self._padded = padded
        self._pass_rows = pass_rows
        self._allowed, self._row_temperatures = allowed, row_temperatures
        self.num_passes = 0
        self.num_slot_passes = 0
        """Canvases that went through the model, over all passes."""
        self.oom_events: list[str] = []
        """A line for each time that slots were halved because memory ran out."""
        self._waiting: deque[Request] = deque()
        self._slots = self._new_slots()

    def _new_slots(self) -> Slots:
        return Slots(
            self.model,
            self.config,
            self.num_slots,
            self.num_columns,
            self.padding_side,
            self.fixed_shapes,
            self._padded,
            self._pass_rows,
            self._allowed,
            self._row_temperatures,
        )

    @property
    def canvases(self) -> Canvases:
        """The state of all rows."""
        return self._slots.canvases

    @property
    def busy(self) -> bool:
        """Whether any prompt waits or is being decoded."""
        return bool(self._waiting) or self.num_busy > 0

    @property
    def num_busy(self) -> int:
        """Slots that hold a prompt."""
        return self._slots.num_busy

    @property
    def num_waiting(self) -> int:
        """Prompts that no slot has taken yet."""
        return len(self._waiting)

    def return_waiting(self) -> list[Request]:
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
        length = self.config.gen_length
        if request.scaffold is not None:
            self._check_scaffold(request.scaffold)
            length = len(request.scaffold.ids)
        if request.temperature is not None and not self._row_temperatures:
            raise ValueError("a temperature of its own needs an engine with row_temperatures")
        if not self._padded and len(request.prompt) + length < self.num_columns:
            raise ValueError(
                f"{len(request.prompt)} prompt tokens and a canvas of {length} leave padding in "
                "the slots"
            )
        # On a GPU an index out of range takes the whole process down.
        num_tokens = self.model.embedding_table.shape[0]
        for token in (*request.prompt, *(request.scaffold.ids if request.scaffold else ())):
            if not 0 <= token < num_tokens:
                raise ValueError(
                    f"the prompt holds token id {token}; the model's ids go from 0 to "
                    f"{num_tokens - 1}"
                )
        self._waiting.append(request)

    def _check_scaffold(self, scaffold: Scaffold) -> None:
        if len(scaffold.ids) > self.config.gen_length:
            raise ValueError(
                f"the canvas has {len(scaffold.ids)} positions, more than gen_length "
                f"{self.config.gen_length}"
            )
        if self.model.mask_id not in scaffold.ids:
            raise ValueError("nothing in the canvas is open")
        if self.config.grows:
            raise ValueError("a canvas of its own has its length; drop max_gen_length")
        known = 1 if self._allowed is None else len(self._allowed)
        if max(scaffold.classes or (0,)) >= known:
            raise ValueError("the canvas has classes of tokens that the engine was not given")

    @torch.inference_mode()
    def step(self) -> list[Sample]:
        """One forward pass for all busy slots; returns samples that have ended. No pass while idle.

        Where memory runs out the slots are halved, and the prompts in them restart.
        """
        if not self.busy:
            return []
        out_of_memory = None
        try:
            self._slots.fill(self._waiting, min(self.num_slots, self.max_busy))
            if not self.num_busy:
                return []
            num_rows = self._slots.advance()
            ended = self._slots.collect()
        except RuntimeError as error:
            if not is_out_of_memory(error) or self._num_in_memory() == 1:
                raise
            out_of_memory = str(error).partition("\n")[0]
        # Only here: the error's traceback holds the tensors of the pass.
        if out_of_memory is not None:
            self._halve_slots(out_of_memory)
            return []
        self.num_passes += 1
        self.num_slot_passes += num_rows
        return ended

    def _num_in_memory(self) -> int:
        """Slots that there was no memory for. A CPU's passes are as large as the busy rows need."""
        return self.num_slots if self.fixed_shapes or self.num_busy < 2 else self.num_busy

    def _halve_slots(self, out_of_memory: str) -> None:
        """Go on with half of the slots. A sample depends on its prompt and seed alone, so prompts
        that were being decoded can restart."""
        too_many = self._num_in_memory()
        self.num_slots = too_many // 2
        self._waiting.extendleft(reversed(self._slots.requests()))
        # Free the old slots before the new ones are allocated.
        del self._slots
        if self.model.embedding_table.is_cuda:
            torch.cuda.empty_cache()
        self._slots = self._new_slots()
        self.oom_events.append(
            f"out of memory with {too_many} slots of {self.num_columns} positions, "
            f"going on with {self.num_slots}: {out_of_memory}"
        )


def refuse_without_cache(model: DiffusionModel, config: DecodingConfig) -> None:
    """Raises ValueError where the settings need a model that can keep keys and values, or compute
    columns with a mask each, and this one cannot."""
    if config.reopen == "shadow":
        refuse_without_shadow(model)
    missing = missing_for_cache(model) if config.feeds_some else []
    if missing:
        raise ValueError(
            f"kv_cache {config.kv_cache} and suffix {config.suffix} need a model with the members "
            f"of lrd.models.protocol.CachedModel, and {type(model).__name__} has no "
            f"{', '.join(missing)}; set kv_cache to none and suffix to all"
        )


def refuse_without_shadow(model: DiffusionModel) -> None:
    """Raises ValueError where a model cannot feed shadow columns (`lrd/shadow.py`)."""
    missing = missing_for_cache(model)
    if missing:
        raise ValueError(
            "reopen shadow needs a model with the members of lrd.models.protocol.CachedModel, and "
            f"{type(model).__name__} has no {', '.join(missing)}; set reopen to drop, or choose "
            "another decoder"
        )
    assert is_cached(model)
    if model.feeds_before:
        raise ValueError(
            "reopen shadow needs a model whose positions predict themselves, as LLaDA's do; this "
            "one predicts the next position, as Dream does: set reopen to drop, or choose another "
            "decoder"
        )


MEMORY_WORDS = re.compile(
    r"out[ _]of[ _]memory|(can't|cannot|could not) allocate memory|not enough memory|bad_alloc"
    r"|cudaErrorMemoryAllocation|hipErrorOutOfMemory|STATUS_ALLOC_FAILED|ALLOCATION_FAILED",
    re.IGNORECASE,
)
"""How CUDA, its libraries (`CUBLAS_STATUS_ALLOC_FAILED`, `CUDNN_STATUS_ALLOC_FAILED`), Triton and
the CPU's allocator say that memory ran out."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, which fewer slots would mend.

    torch has a class of error for its own allocator alone; libraries that allocate themselves have
    only words. Triton's `OutOfResources` is not meant: it is the shared memory or registers of one
    kernel, which do not depend on the number of slots.
    """
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and MEMORY_WORDS.search(str(error)) is not None
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
    scaffolds: Sequence[Scaffold | None] | None = None,
) -> list[Sample]:
    """Decode prompts and return their samples in the same order; a sample's key is its index.

    prompts: lists of token ids, or strings for the model's tokenizer (taken as they are, no
    chat template; `<|im_end|>` and the like in them are special tokens). config: the preset
    `fast` where none is given. batch_size: slots, that is how many prompts are decoded at a
    time; results do not depend on it. scaffolds: canvases with fixed tokens, a prompt; None: all
    is open.
    Raises ValueError for an empty prompt, one too long for the model's positions, and strings
    where the model has no tokenizer.
    """
    config = config or DecodingConfig.preset("fast")
    given = scaffolds or [None] * len(prompts)
    requests = [
        Request(index, _token_ids(model, prompts[index]), row_seed(config.seed, index), scaffold)
        for index, scaffold in enumerate(given)
    ]
    samples: dict[int, Sample] = {}
    for gen_length in config.canvases:
        grown = [n for n, sample in samples.items() if sample.stop_reason == "grow"]
        waiting = [requests[n] for n in grown] if samples else requests
        for sample in _decoded(model, waiting, config.at(gen_length), batch_size, padding_side):
            before = samples.get(sample.key)
            samples[sample.key] = sample.after(before.spent if before else None)
    return [samples[index] for index in range(len(requests))]


def _decoded(
    model: DiffusionModel,
    requests: list[Request],
    config: DecodingConfig,
    batch_size: int,
    padding_side: PaddingSide,
) -> Iterator[Sample]:
    """The samples of requests in canvases of one length."""
    if not requests:
        return
    longest = max(len(one.prompt) for one in requests)
    engine = Engine(model, config, min(batch_size, len(requests)), longest, padding_side)
    for request in requests:
        engine.submit(request)
    while engine.busy:
        yield from engine.step()


def _token_ids(model: DiffusionModel, prompt: str | Sequence[int]) -> list[int]:
    if isinstance(prompt, str):
        if model.tokenizer is None:
            raise ValueError("the model has no tokenizer; give lists of token ids")
        prompt = model.tokenizer.encode(prompt, add_special_tokens=False)
    return [int(token) for token in prompt]
