"""The ways to decode a queue of prompts that `jobs.bench.decode` compares, on the same work.

One prompt at a time, static batches and slots (continuous batching); results and their accuracy.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from jobs.bench.plain_loop import PlainSample, check, decode_plain
from lrd import DecodingConfig, Engine, Request, Sample, decoding, load_model
from lrd.canvases import Canvases, StopReason
from lrd.engine import row_seed
from lrd.models.checkpoint import LoadedModel
from lrd.prompts import encode_prompt
from pipeline.input.buckets import choose_lengths, fitting
from pipeline.scoring import word_sheets

EXAMPLES = Path(__file__).parents[1] / "examples"
SHAPES = 3


@dataclass(slots=True)
class Work:
    """The prompts that every variant decodes, in buckets of one shape, long ones first."""

    model: LoadedModel
    config: DecodingConfig
    prompts: list[list[int]]
    answers: list[str]
    """Final numbers, those of a worksheet with a space between."""
    slots: int
    buckets: dict[int, list[int]] = field(default_factory=dict)
    """Prompt tokens of a slot → indices of prompts."""

    def __post_init__(self) -> None:
        lengths = choose_lengths([len(prompt) for prompt in self.prompts], SHAPES)
        for length in sorted(lengths, reverse=True):
            self.buckets[length] = []
        for index, prompt in enumerate(self.prompts):
            bucket = fitting(len(prompt), lengths)
            assert bucket is not None
            self.buckets[bucket].append(index)

    def requests(self, indices: list[int]) -> list[Request]:
        return [Request(i, self.prompts[i], row_seed(self.config.seed, i)) for i in indices]

    def batches(self) -> Iterator[tuple[int, list[Request]]]:
        """Static batches, each of one bucket."""
        for length, indices in self.buckets.items():
            for first in range(0, len(indices), self.slots):
                yield length, self.requests(indices[first : first + self.slots])


def run_plain(work: Work) -> list[PlainSample]:
    """(a) One prompt at a time."""
    return [decode_plain(work.model, prompt, work.config) for prompt in work.prompts]


def run_static_wait(work: Work) -> int:
    """(b) A batch runs until its slowest sample has ended; its number of passes."""
    passes = 0
    for length, requests in work.batches():
        config, model = work.config, work.model
        state = Canvases.empty(model, config, len(requests), length + config.gen_length)
        for row, request in enumerate(requests):
            state.place(row, request.prompt, model, config, "left")
        with torch.inference_mode():
            while (state.stop_B == StopReason.RUNNING).any():
                decoding.step(model, config, state)
                passes += 1
        state.canvas_BG.tolist()
    return passes


def run_static_drop(work: Work) -> list[Sample]:
    """(b) A batch drops samples that have ended; the next batch starts when all have ended."""
    samples = []
    for length, requests in work.batches():
        engine = Engine(work.model, work.config, len(requests), length)
        samples += drain(engine, requests)
    return samples


@dataclass(slots=True)
class SlotRun:
    """(c) Slots."""

    samples: list[Sample]
    occupancy: float
    """Share of slots that are busy, over the passes while any prompt waits."""
    padding_share: float
    """Share of the computed positions that are padding."""


def run_slots(work: Work) -> SlotRun:
    """(c) A freed slot takes the next prompt."""
    run = SlotRun([], 0.0, 0.0)
    busy = room = padding = columns = 0
    for length, indices in work.buckets.items():
        engine = Engine(work.model, work.config, work.slots, length)
        for request in work.requests(indices):
            engine.submit(request)
        found: list[Sample] = []
        while engine.busy:
            before = engine.num_slot_passes
            found += engine.step()
            if engine.num_waiting:
                busy += engine.num_slot_passes - before
                room += work.slots
        for sample in found:
            padding += sample.num_forwards * (length - len(work.prompts[sample.key]))
        columns += engine.num_slot_passes * engine.num_columns
        run.samples += found
    run.samples.sort(key=lambda sample: int(sample.key))
    run.occupancy = busy / room if room else 1.0
    run.padding_share = padding / columns
    return run


def drain(engine: Engine, requests: list[Request]) -> list[Sample]:
    """The samples of all requests."""
    for request in requests:
        engine.submit(request)
    samples = []
    while engine.busy:
        samples += engine.step()
    return samples


def decisions(sample: Sample | PlainSample) -> tuple[Any, ...]:
    """What must be equal: ids, counts and the stop reason."""
    return (
        sample.canvas,
        sample.num_forwards,
        sample.refine_steps,
        sample.decode_steps,
        sample.stop_reason,
    )


def right_answers(work: Work, canvases: list[list[int]]) -> list[list[bool]]:
    """Whether each prompt's problems have their final answers."""
    tokenizer, eos = work.model.tokenizer, work.model.eos_id
    right = []
    for canvas, answer in zip(canvases, work.answers, strict=True):
        written = canvas[: canvas.index(eos)] if eos in canvas else canvas
        right.append(
            word_sheets.right_answers(tokenizer.decode(written, skip_special_tokens=True), answer)
        )
    return right


def accuracy(work: Work, canvases: list[list[int]]) -> float:
    """Share of problems whose final answer is right."""
    right = [answer for prompt in right_answers(work, canvases) for answer in prompt]
    return sum(right) / len(right)


def read_work(args: argparse.Namespace, dtype: str, folder: Path = EXAMPLES) -> Work:
    """The example prompts of a folder, and the model."""
    rows = [row for file in sorted(folder.glob("*.parquet")) for row in read_rows(file)]
    rows = rows[: args.prompts]
    model = load_model(args.model, dtype=dtype)
    assert isinstance(model, LoadedModel)
    config = DecodingConfig.preset(args.preset, gen_length=args.gen_length)
    check(config)
    prompts = [encode_prompt(model, row["prompt"]) for row in rows]
    return Work(model, config, prompts, [row["answer"] for row in rows], args.slots)


def read_rows(file: Path) -> list[dict[str, Any]]:
    """A Parquet file's rows."""
    rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    return rows
