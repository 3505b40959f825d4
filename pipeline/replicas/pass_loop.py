"""Runs a replica's forward passes in a thread: takes requests, reports finished samples. A preview
runs them one by one in its own.

Each bucket with prompts in flight has an engine of its own. Together the engines decode at most as
many canvases as the replica has slots.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Protocol

import torch

from lrd import Request, Sample
from lrd.engine import is_out_of_memory
from pipeline import faults
from pipeline.observe.metrics import PassMetrics
from pipeline.rows import Bucket, Phase

Report = Callable[[Sample | Request | str | Exception | Phase], None]
"""Called in the thread with a finished sample, a request that is returned, an event's text, the
exception of a pass, or the phase that begins."""


class NoRoomError(RuntimeError):
    """There is no memory for one slot of a bucket, although nothing else of this replica takes any;
    a new replica would meet the same."""

    def __init__(self, bucket: Bucket, reason: str) -> None:
        super().__init__(bucket, reason)
        self.bucket, self.reason = bucket, reason

    def __str__(self) -> str:
        return (
            f"no memory for one slot of {self.bucket.prompt} prompt tokens and a canvas of "
            f"{self.bucket.canvas} ({self.reason}); use a GPU with more memory, one replica a "
            "GPU, --dtype int8, --kv-cache none, or a shorter --gen-length"
        )


@dataclass(frozen=True, slots=True)
class Room:
    """The slots of a bucket that memory had room for."""

    slots: int
    beside: bool
    """Whether other engines held memory when that was found out."""
    num_gone: int
    """Engines that had been dropped by then."""


class SlotEngine(Protocol):
    """What a replica asks of an engine: `lrd.Engine`, or slots that only take their time."""

    num_slots: int
    max_busy: int
    """Slots that may hold a prompt in the next pass."""
    num_slot_passes: int
    """Canvases that went through the model, over all passes."""
    oom_events: list[str]
    """How often memory ran out since they were last cleared, a line each."""

    @property
    def busy(self) -> bool:
        """Whether any prompt waits or is being decoded."""

    @property
    def num_busy(self) -> int:
        """Slots that hold a prompt."""

    @property
    def num_waiting(self) -> int:
        """Prompts that no slot has taken yet."""

    def submit(self, request: Request) -> None:
        """Queue a prompt."""

    def step(self) -> list[Sample]:
        """One pass; the samples that have ended."""

    def return_waiting(self) -> list[Request]:
        """Take back the prompts that no slot has taken yet."""


class PassLoop:
    """The thread and its engines; `give` and `return_waiting` may be called from other threads."""

    def __init__(
        self,
        name: str,
        num_slots: int,
        num_threads: int,
        fitting_slots: Callable[[Bucket], int],
        new_engine: Callable[[Bucket, int], SlotEngine],
        report: Report,
        compiles: bool = False,
        threaded: bool = True,
    ) -> None:
        """name: the replica's. num_threads: torch's, for computing. fitting_slots: bucket → slots
        that memory has room for. new_engine: (bucket, slots) → an engine. compiles: whether the
        first pass of a shape may take long, because kernels are compiled or chosen in it.
        threaded: False: nothing runs but in calls of `step`."""
        self._name, self._num_slots, self._num_threads = name, num_slots, num_threads
        self._fitting_slots, self._new_engine, self._report = fitting_slots, new_engine, report
        self._orders: SimpleQueue[Callable[[], None]] = SimpleQueue()
        """Calls to make before the next pass."""
        self._engines: list[tuple[Bucket, SlotEngine]] = []
        """Bucket and engine, in the order in which their prompts were given."""
        self._rooms: dict[Bucket, Room] = {}
        """By bucket."""
        self._num_gone = 0
        """Engines that were dropped."""
        self._compiles = compiles
        self._shapes: set[tuple[Bucket, int]] = set()
        """Bucket and number of rows of the passes that have ended."""
        self._early: dict[int, tuple[Bucket, list[Request]]] = {}
        """Batches that arrived before one with a smaller number."""
        self._num_begun = 0
        self.phase = Phase.DECODING
        """What the thread is doing now."""
        self.num_passes = 0
        self.num_canvases = 0
        """Canvases that went through the model, over all passes and engines; not those of
        `fitting_slots`."""
        self.pass_seconds = 0.0
        """Sum over all passes, by the host's clock; not those of `fitting_slots`."""
        self.longest_pass = 0.0
        """Seconds, without the passes that may have compiled. By the host's clock: a pass has ended
        on the device when `step` returns."""
        self._metrics = PassMetrics(name, num_slots)
        if threaded:
            threading.Thread(target=self._work, name="passes", daemon=True).start()

    def give(self, number: int, bucket: Bucket, requests: list[Request]) -> None:
        """Decode a batch of one bucket. Batches may arrive out of order; slots are filled in the
        order of the numbers."""
        self._orders.put(partial(self._arrive, number, bucket, requests))

    def return_waiting(self) -> None:
        """Return the requests that have no slot yet."""
        self._orders.put(self._return_waiting)

    def _work(self) -> None:
        # torch keeps this number for each thread.
        torch.set_num_threads(self._num_threads)
        while True:
            try:
                self.step()
            except Exception as error:
                self._engines.clear()
                self._report(error)

    def step(self) -> None:
        """Take what was given, and run one pass; waits for requests where there are none.

        Raises what the pass raises.
        """
        self._run_orders()
        self._run_pass()

    def _run_orders(self) -> None:
        """Make the calls that were ordered; wait for one while there is nothing to decode."""
        while not self._orders.empty() or not any(engine.busy for _, engine in self._engines):
            self._orders.get()()

    def _arrive(self, number: int, bucket: Bucket, requests: list[Request]) -> None:
        self._early[number] = bucket, requests
        while self._num_begun in self._early:
            self._begin(*self._early.pop(self._num_begun))

    def _begin(self, bucket: Bucket, requests: list[Request]) -> None:
        self._num_begun += 1
        engine = self._engine(bucket)
        for request in requests:
            engine.submit(request)

    def _return_waiting(self) -> None:
        for _, engine in self._engines:
            for request in engine.return_waiting():
                self._report(request)

    def _run_pass(self) -> None:
        """One pass of every engine. They share the replica's slots, and the first engine takes its
        slots first: so the rows in slots are always the ones that were given first, which is how
        the driver knows them after a death."""
        faults.at("replica.pass", self._name)
        began, num_canvases = time.monotonic(), self.num_canvases
        num_free = self._num_slots
        finished: list[Sample] = []
        compiled = False
        for bucket, engine in self._engines:
            engine.max_busy = max(0, num_free)
            num_free -= engine.num_busy + engine.num_waiting
            compiled |= self._is_new_shape(bucket, engine)
            finished += self._step(bucket, engine)
        seconds = time.monotonic() - began
        if not compiled:
            self.longest_pass = max(self.longest_pass, seconds)
        self.num_passes += 1
        self.pass_seconds += seconds
        for sample in finished:
            self._report(sample)
        busy: Counter[int] = Counter()
        for bucket, engine in self._engines:
            busy[bucket.prompt] += engine.num_busy
        self._metrics.passed(seconds, busy, self.num_canvases - num_canvases)

    def _step(self, bucket: Bucket, engine: SlotEngine) -> list[Sample]:
        """An engine's pass, and what is noted of it."""
        before, shape = engine.num_slot_passes, self._shape(bucket, engine)
        try:
            is_new = self._is_new_shape(bucket, engine)
            with self._in_phase(Phase.COMPILING if is_new else Phase.DECODING):
                finished = engine.step()
        except RuntimeError as error:
            # An engine halves its slots itself, so this one had a single slot.
            if is_out_of_memory(error) and len(self._engines) == 1:
                raise NoRoomError(bucket, _first_line(error)) from None
            raise
        self._shapes.add(shape)
        self.num_canvases += engine.num_slot_passes - before
        if engine.oom_events:
            self._note_room(bucket, engine.num_slots, beside=len(self._engines) > 1)
        for text in engine.oom_events:
            self._report(text)
        engine.oom_events = []
        return finished

    def _shape(self, bucket: Bucket, engine: SlotEngine) -> tuple[Bucket, int]:
        """Bucket and rows of the engine's next pass."""
        wanted = engine.num_busy + engine.num_waiting
        return bucket, min(wanted, engine.num_slots, max(engine.max_busy, engine.num_busy))

    def _is_new_shape(self, bucket: Bucket, engine: SlotEngine) -> bool:
        shape = self._shape(bucket, engine)
        return self._compiles and shape[1] > 0 and shape not in self._shapes

    @contextmanager
    def _in_phase(self, phase: Phase) -> Iterator[None]:
        """Tell the driver what the thread does, before and after: it may take longer than passes do
        and no pass ends meanwhile."""
        if phase == self.phase:
            yield
            return
        before = self.phase
        self._begin_phase(phase)
        try:
            yield
        finally:
            self._begin_phase(before)

    def _begin_phase(self, phase: Phase) -> None:
        self.phase = phase
        self._report(phase)

    def _engine(self, bucket: Bucket) -> SlotEngine:
        """The last engine if it has this bucket, else a new or idle one behind all busy ones: in an
        engine further ahead these prompts would get slots before others that were given earlier."""
        if self._engines and self._engines[-1][0] == bucket:
            return self._engines[-1][1]
        own = self._drop_idle(bucket)
        if bucket not in self._rooms or self._has_more_room(bucket):
            self._num_gone += own is not None
            own = None  # Its memory is wanted for the larger one.
            self._find_room(bucket)
        if own is None:
            own = self._new_engine(bucket, self._rooms[bucket].slots)
        self._engines.append((bucket, own))
        return own

    def _drop_idle(self, bucket: Bucket) -> SlotEngine | None:
        """Drop the engines that are idle; one of this bucket is returned instead."""
        own = next((e for b, e in self._engines if b == bucket and not e.busy), None)
        busy = [(b, engine) for b, engine in self._engines if engine.busy]
        self._num_gone += len(self._engines) - len(busy) - (own is not None)
        self._engines = busy
        return own

    def _has_more_room(self, bucket: Bucket) -> bool:
        """Whether slots were limited beside other engines, and one has gone since then."""
        room = self._rooms[bucket]
        limited = room.slots < self._num_slots and room.beside
        return limited and self._num_gone > room.num_gone

    def _find_room(self, bucket: Bucket) -> None:
        """Find out how many slots of a bucket memory has room for.

        Raises NoRoomError where it has none for one slot, and nothing else holds any.
        """
        found = self._probed(bucket)
        if found is None:
            # Later the others will have ended; their rows come first.
            while any(engine.busy for _, engine in self._engines):
                self._run_pass()
            self._num_gone += len(self._engines)
            self._engines.clear()
            found = self._probed(bucket)
            assert found is not None
        before = self._rooms.get(bucket)
        self._note_room(bucket, found, beside=bool(self._engines))
        changed = before is None or before.slots != found
        if changed and (found < self._num_slots or before is not None):
            self._report(f"memory for {found} of {self._num_slots} slots in bucket {bucket}")

    def _probed(self, bucket: Bucket) -> int | None:
        """`fitting_slots`; None where there is no memory for one slot beside the other engines."""
        try:
            with self._in_phase(Phase.PREPARING):
                return self._fitting_slots(bucket)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if not self._engines:
                raise NoRoomError(bucket, _first_line(error)) from None
        return None  # Only here: the error's traceback holds the tensors of the pass.

    def _note_room(self, bucket: Bucket, num_slots: int, *, beside: bool) -> None:
        self._rooms[bucket] = Room(num_slots, beside, self._num_gone)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].strip() or type(error).__name__
