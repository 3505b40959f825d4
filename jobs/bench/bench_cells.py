"""Measures a model in this process: an engine for each number of slots and canvas, whose passes are
timed one by one, over repetitions of the same rows.
"""

from __future__ import annotations

import ctypes
import gc
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from jobs.bench.bench_prompts import Prompts
from jobs.bench.gpu_models import num_flops
from jobs.bench.peaks import Peak
from lrd import DecodingConfig, Engine, Request, Sample
from lrd.config import PassRows
from lrd.engine import is_out_of_memory, row_seed
from lrd.memory import memory_of
from lrd.models.checkpoint import LoadedModel
from lrd.models.protocol import DiffusionModel

PERCENTILES = (50, 90, 99)
ROWS_A_SLOT, LEAST_ROWS = 4, 16
RESET = Path("/proc/self/clear_refs")
"""A 5 written here resets a process's peak to what is resident (Linux)."""
STATUS = Path("/proc/self/status")


class Cell(NamedTuple):
    """What is measured on its own: slots, and positions of a canvas."""

    slots: int
    canvas: int

    def __str__(self) -> str:
        return f"slots {self.slots}, canvas {self.canvas}"


class LeftOutError(Exception):
    """A cell has no figures, and why."""


@dataclass(frozen=True, slots=True)
class Spread:
    """One figure of every repetition."""

    values: tuple[float, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "median": rounded(median(self.values)),
            "min": rounded(min(self.values)),
            "max": rounded(max(self.values)),
            "all": [rounded(value) for value in self.values],
        }


def rounded(value: float) -> float:
    """Five significant digits."""
    return float(f"{value:.5g}")


def rows_of(cell: Cell, rows_a_slot: int | None, fixed_passes: bool) -> int:
    """Prompts of a repetition. Where no number is given: enough that slots are at different passes
    and that cells of few slots decode the same rows; one a slot where all take the same passes."""
    if rows_a_slot is not None:
        return rows_a_slot * cell.slots
    return cell.slots if fixed_passes else max(LEAST_ROWS, ROWS_A_SLOT * cell.slots)


@dataclass(frozen=True, slots=True)
class Setup:
    """What all cells of a run share."""

    model: DiffusionModel
    decodings: Mapping[int, DecodingConfig]
    """By canvas."""
    prompts: Prompts
    pass_rows: PassRows
    peak: Peak
    rows_a_slot: int | None
    repeat: int
    fixed_passes: bool
    """Whether every row takes the same passes, because the settings say so."""
    deadline: float
    """By `time.monotonic`; nothing goes on after it."""
    tell: Callable[[str], None] = lambda line: None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.embedding_table.device

    def rows(self, cell: Cell) -> int:
        """Prompts of a repetition."""
        return rows_of(cell, self.rows_a_slot, self.fixed_passes)


@dataclass(slots=True)
class Turn:
    """All rows decoded once."""

    seconds: float = 0.0
    samples: list[Sample] = field(default_factory=list)
    pass_seconds: list[float] = field(default_factory=list)
    """Of the passes with every slot busy."""
    first_pass: float = 0.0
    num_passes: int = 0

    def mean(self, name: str) -> float:
        """Of a sample's field, over all rows."""
        return sum(getattr(sample, name) for sample in self.samples) / len(self.samples)

    @property
    def pass_mean(self) -> float:
        return sum(self.pass_seconds) / len(self.pass_seconds)

    def rows_per_second(self, slots: int) -> float:
        """While every slot is busy: each pass takes as many rows one pass further."""
        return slots / (self.pass_mean * self.mean("num_forwards"))


def warm_up(setup: Setup) -> float:
    """Seconds of the model's very first pass, of one slot: libraries are loaded in it, kernels
    chosen or compiled, and weights come into memory."""
    config = setup.decodings[min(setup.decodings)]
    began = time.perf_counter()
    engine = Engine(setup.model, config, 1, setup.prompts.columns, pass_rows=setup.pass_rows)
    engine.submit(Request(0, setup.prompts.ids[0], 0))
    engine.step()
    return time.perf_counter() - began


def measure(setup: Setup, cell: Cell) -> dict[str, Any]:
    """A cell's figures. Raises LeftOutError where there are none."""
    try:
        return _measure(setup, cell)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0][:200]
    # Only here: the error's traceback holds the tensors of the pass.
    release(setup.device)
    raise LeftOutError(f"out of memory: {reason}")


def _measure(setup: Setup, cell: Cell) -> dict[str, Any]:
    config = setup.decodings[cell.canvas]
    memory = Memory(setup.device)
    memory.begin()
    engine = Engine(
        setup.model, config, cell.slots, setup.prompts.columns, pass_rows=setup.pass_rows
    )
    warm = _turn(setup, engine, cell)
    turns: list[Turn] = []
    memory.end()
    for number in range(1, setup.repeat + 1):
        longest = max([warm.seconds - warm.first_pass, *(turn.seconds for turn in turns)])
        if time.monotonic() + longest > setup.deadline:
            break
        turns.append(_turn(setup, engine, cell))
        setup.tell(f"{cell}: repetition {number} of {setup.repeat}")
    if not turns:
        raise LeftOutError(
            f"its warm-up took {warm.seconds:.1f} s, and a repetition does not fit the rest of "
            "--seconds"
        )
    memory.end()
    return facts(setup, cell, engine, warm, turns) | {"memory": _memory(setup, cell, memory)}


def _turn(setup: Setup, engine: Engine, cell: Cell) -> Turn:
    """Decode the cell's rows, always the same ones."""
    turn, ids = Turn(), setup.prompts.ids
    for row in range(setup.rows(cell)):
        engine.submit(Request(row, ids[row % len(ids)], row_seed(engine.config.seed, row)))
    began = time.perf_counter()
    while engine.busy:
        if time.monotonic() > setup.deadline:
            raise LeftOutError("it was not done when the time of --seconds was over")
        all_busy = engine.num_busy + engine.num_waiting >= cell.slots
        start = time.perf_counter()
        turn.samples += engine.step()
        if setup.device.type == "cuda":
            torch.cuda.synchronize(setup.device)
        seconds = time.perf_counter() - start
        turn.first_pass = turn.first_pass or seconds
        turn.num_passes += 1
        if all_busy:
            turn.pass_seconds.append(seconds)
        if engine.oom_events:
            raise LeftOutError(engine.oom_events[0])
    turn.seconds = time.perf_counter() - began
    if failed := [sample.error for sample in turn.samples if sample.error is not None]:
        raise LeftOutError(f"{len(failed)} of {len(turn.samples)} rows failed: {failed[0]}")
    return turn


def facts(
    setup: Setup, cell: Cell, engine: Engine, warm: Turn, turns: Sequence[Turn]
) -> dict[str, Any]:
    """The figures of a cell's repetitions, but for its memory."""
    last, num_columns = turns[-1], engine.num_columns
    rates = [turn.rows_per_second(cell.slots) for turn in turns]
    tokens = cell.canvas if setup.fixed_passes else last.mean("num_output_tokens")
    times = sorted(1e3 * s for turn in turns for s in turn.pass_seconds)
    computed = sum(one.num_forwards for one in last.samples) * num_columns
    fed = sum(one.num_forwards * prompt_length(setup, one) for one in last.samples)
    fed += sum(one.num_forwards * cell.canvas for one in last.samples)
    return {
        "slots": cell.slots,
        "canvas": cell.canvas,
        "rows": len(last.samples),
        "repetitions": len(turns),
        "pass_ms": Spread(tuple(1e3 * turn.pass_mean for turn in turns)).as_json(),
        "pass_percentiles_ms": {f"p{p}": rounded(percentile(times, p)) for p in PERCENTILES},
        "passes_timed": len(times),
        "rows_per_second": Spread(tuple(rates)).as_json(),
        "rows_per_second_with_tail": Spread(
            tuple(len(turn.samples) / turn.seconds for turn in turns)
        ).as_json(),
        "tokens_per_second": Spread(tuple(rate * tokens for rate in rates)).as_json(),
        "tokens_per_row": rounded(tokens),
        "tokens_are": "canvas" if setup.fixed_passes else "effective",
        "forwards_per_row": rounded(last.mean("num_forwards")),
        "full_passes_per_row": rounded(last.mean("full_passes")),
        "positions_per_row": rounded(last.mean("positions_computed")),
        "padding_share": round(1 - fed / computed, 4),
        **mfu(setup, cell, last, rates),
        "warmup": {
            "seconds": rounded(warm.seconds),
            "passes": warm.num_passes,
            "first_pass_ms": rounded(1e3 * warm.first_pass),
        },
    }


def prompt_length(setup: Setup, sample: Sample) -> int:
    """Tokens of a sample's prompt."""
    ids = setup.prompts.ids
    return len(ids[sample.key % len(ids)])


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent of the values do not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def mfu(setup: Setup, cell: Cell, turn: Turn, rates: Sequence[float]) -> dict[str, Any]:
    """Share of the device's peak that the rows' products take, or why it is left out.

    Counted is what a GPU computes for rows: every position of their block is read in each of their
    passes. Neither padding is counted nor the columns that a cache saves.
    """
    model, config = setup.model, setup.decodings[cell.canvas]
    reason = setup.peak.reason
    if not isinstance(model, LoadedModel):
        reason = reason or "the products of another package's model are not known"
    if config.cfg_scale:
        reason = reason or "passes under guidance are two, one of which has another prompt"
    if reason or setup.peak.tflops is None or not isinstance(model, LoadedModel):
        return {"mfu": None, "mfu_reason": reason}
    flops = 0
    for one in turn.samples:
        # Under a cache how many keys a column meets changes from pass to pass.
        keys = 0 if config.feeds_some else prompt_length(setup, one) + cell.canvas
        num_read = one.num_forwards * config.block_tokens
        flops += num_flops(model.transformer.config, one.positions_computed, keys, num_read)
    flops_a_row = flops / len(turn.samples)
    shares = tuple(rate * flops_a_row / (1e12 * setup.peak.tflops) for rate in rates)
    note = "attention's products are not counted" if config.feeds_some else None
    return {"mfu": Spread(shares).as_json(), "mfu_reason": note}


# Memory.


class Memory:
    """Peak of what tensors take beside what was there before, in bytes.

    On CUDA torch's allocator tells it. On Linux with glibc it is the growth of this process's
    resident memory, after what was freed before has been given back to the system: the buffers of
    libraries and of the interpreter are in it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0
        self.peak: int | None = None

    @property
    def how(self) -> str:
        if self._device.type == "cuda":
            return "torch's peak of allocated memory"
        if _can_reset():
            return "growth of the process's resident memory, libraries' buffers included"
        return "left out: only Linux with glibc tells a process its peak since a moment"

    def begin(self) -> None:
        """Count from here on."""
        release(self._device)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif _can_reset():
            self._before = _status_bytes("VmRSS")
            RESET.write_text("5")

    def end(self) -> None:
        """Note the peak until now; it may be noted again later."""
        if self._device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self._device)
        elif self.peak is None and _can_reset():
            self.peak = max(0, _status_bytes("VmHWM") - self._before)


def _memory(setup: Setup, cell: Cell, memory: Memory) -> dict[str, Any]:
    """The formula's bytes beside those that were measured: with the weights on CUDA, without them
    on a CPU, whose process had them before."""
    config = setup.decodings[cell.canvas]
    need = memory_of(setup.model, config, setup.prompts.columns, cell.slots)
    on_cuda = setup.device.type == "cuda"
    return {
        "formula_bytes": need.total if on_cuda else need.beside_weights,
        "measured_bytes": memory.peak,
        "weights_bytes": need.weights,
        "with_weights": on_cuda,
        "how": memory.how,
    }


def release(device: torch.device) -> None:
    """Give what nothing uses any more back to the device, or to the system."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif trim := _trim():
        trim(0)


def _can_reset() -> bool:
    return RESET.exists() and _trim() is not None


def _trim() -> Any:
    """glibc's malloc_trim; None elsewhere."""
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def _status_bytes(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text())
    assert found is not None
    return int(found[1]) * 1024


# A grid of cells.


def grid(slots: Sequence[int], canvases: Sequence[int]) -> list[Cell]:
    """All combinations, those of little work first, so that a budget leaves out the largest."""
    cells = {Cell(s, c) for s in slots for c in canvases}
    return sorted(cells, key=lambda cell: (cell.slots * cell.canvas, cell))


def each(
    cells: Sequence[Cell], measure_one: Callable[[Cell], dict[str, Any]], deadline: float
) -> Iterator[dict[str, Any]]:
    """Each cell's figures, as soon as they are there; a `reason` in place of them where it has
    none. deadline: by `time.monotonic`; no cell is begun after it."""
    for cell in cells:
        try:
            if time.monotonic() >= deadline:
                raise LeftOutError("the time of --seconds was over before it began")
            yield measure_one(cell)
        except LeftOutError as error:
            yield {**cell._asdict(), "reason": str(error)}
