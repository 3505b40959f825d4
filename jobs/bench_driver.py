"""What the driver itself can do: replicas that compute nothing, or that only take their time.

    python -m jobs.bench_driver --rows 200000                     # rows/s through 2 null replicas
    python -m jobs.bench_driver --replicas 64 --share 16 --slots 16 --latency 20 --rows 6000

Everything but the model is real: Parquet in, tokenising, Ray, segments, shards. A simulated
replica is the pipeline's own with engines whose slots end after a sampled time; `busy` is how
much of that time slots were held. Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.word_problems import problems
from lrd import DecodingConfig, Engine, Request, Sample
from pipeline import run
from pipeline.config import RunConfig
from pipeline.driver import Driver
from pipeline.fleet import NewActor, actor_of
from pipeline.progress import Progress
from pipeline.replica import Replica, ReplicaSettings
from pipeline.rows import Prompt

GEN_LENGTH = 16


class Occupancy:
    """How many slots of a process hold a row, over the time in which there was work to be had:
    from its first prompt to its last."""

    def __init__(self, report: Path) -> None:
        self._report = report
        self._num_held, self._slot_seconds = 0, 0.0
        self._began = self._at = 0.0

    def change(self, by: int) -> None:
        """So many slots more hold a row from now on."""
        now = time.monotonic()
        self._slot_seconds += self._num_held * (now - self._at)
        self._num_held, self._at = self._num_held + by, now

    def submitted(self) -> None:
        """More work has come."""
        self.change(0)
        self._began = self._began or self._at
        facts = {"seconds": self._at - self._began, "held": self._slot_seconds}
        self._report.write_text(json.dumps(facts))


class TimedEngine:
    """Slots that hold each prompt for a sampled time; looks like `lrd.Engine` to a replica."""

    def __init__(self, num_slots: int, mean_latency: float, occupancy: Occupancy | None) -> None:
        self.num_slots = self.max_busy = num_slots
        self.setbacks: list[str] = []
        self._mean, self._occupancy = mean_latency, occupancy
        self._waiting: deque[Request] = deque()
        self._ends: dict[Any, tuple[float, float]] = {}
        """Key → when its slot ends, and how long it was held."""

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._ends)

    @property
    def num_busy(self) -> int:
        return len(self._ends)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def give_back(self) -> list[Request]:
        waiting = list(self._waiting)
        self._waiting.clear()
        return waiting

    def submit(self, request: Request) -> None:
        self._waiting.append(request)
        if self._occupancy is not None:
            self._occupancy.submitted()

    def step(self) -> list[Sample]:
        now, before = time.monotonic(), len(self._ends)
        while self._waiting and len(self._ends) < min(self.num_slots, self.max_busy):
            request = self._waiting.popleft()
            seconds = self._mean and random.Random(request.seed).gammavariate(4.0, self._mean / 4)
            self._ends[request.key] = now + seconds, seconds
        self._changed(before)
        if not self._ends:
            return []
        if self._mean:
            time.sleep(max(0.0, min(min(end for end, _ in self._ends.values()) - now, 0.02)))
        now, before = time.monotonic(), len(self._ends)
        done = [key for key, (end, _) in self._ends.items() if end <= now]
        samples = [self._sample(key) for key in done]
        self._changed(before)
        return samples

    def _changed(self, before: int) -> None:
        if self._occupancy is not None and len(self._ends) != before:
            self._occupancy.change(len(self._ends) - before)

    def _sample(self, key: Any) -> Sample:
        _, seconds = self._ends.pop(key)
        return Sample(
            key=key,
            canvas=[1] * GEN_LENGTH,
            text="4+3=7",
            num_output_tokens=0,
            commit_step=[1] * GEN_LENGTH,
            num_forwards=4,
            refine_steps=1,
            decode_steps=3,
            blocks=1,
            stop_reason="complete",
            open_at_stop=0,
            max_entropy_at_stop=0.0,
            refine_converged=True,
            kl_trace=[float("nan"), 0.3, 0.2, 0.1],
            entropy_trace=[0.4, 0.3, 0.2, 0.1],
            mean_mix_weight=0.1,
            error=None,
            seconds=seconds,
        )


def simulated(mean_latency: float, reports: Path | None, share: int) -> NewActor:
    """Replicas without a model. reports: folder for what their slots were held. share: so many
    replicas are one process, which has the slots of all; the driver cannot tell."""

    given = count()

    class SimulatedReplica(Replica):
        occupancy: Occupancy | None = None

        def load(self) -> None:
            if reports and self.occupancy is None:
                self.occupancy = Occupancy(reports / f"{self._name}.json")

        def decode(self, number: int, prompts: list[Prompt]) -> Iterator[Any]:
            # Where several replicas are one, each begins to count at nought.
            yield from super().decode(next(given), prompts)

        def _new_engine(self, bucket: int, num_slots: int) -> Engine:
            engine: Any = TimedEngine(num_slots, mean_latency, self.occupancy)
            return engine

    new_process = actor_of(SimulatedReplica)
    num_started, process = count(), None

    def new_actor(name: str, settings: ReplicaSettings, options: dict[str, Any]) -> Any:
        nonlocal process
        if next(num_started) % share == 0:
            settings = replace(settings, slots=settings.slots * share)
            options = options | {"max_concurrency": options["max_concurrency"] * share}
            process = new_process(name, settings, options)
        return process

    return new_actor


def write_prompts(folder: Path, num_rows: int, rows_a_shard: int) -> None:
    """Word problems, the same few thousand again and again."""
    folder.mkdir()
    questions = cycle([p.question for p in islice(problems("test", seed=1), 5000)])
    for number, first in enumerate(range(0, num_rows, rows_a_shard)):
        part = list(islice(questions, min(rows_a_shard, num_rows - first)))
        pq.write_table(pa.table({"prompt": part}), folder / f"{number:05d}.parquet")


class Watch:
    """The driver's rate and memory while it runs."""

    def __init__(self) -> None:
        self.first: tuple[float, int] | None = None
        self.last = (0.0, 0)
        self.memory: list[tuple[int, int]] = []
        """Rows done and resident bytes."""
        self._process = psutil.Process()
        self._looked_at = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if not progress.num_done:
            return
        self.first = self.first or (now, progress.num_done)
        self.last = now, progress.num_done
        if now - self._looked_at >= 1:
            self._looked_at = now
            self.memory.append((progress.num_done, self._process.memory_info().rss))

    @property
    def rows_per_second(self) -> float:
        assert self.first is not None
        return (self.last[1] - self.first[1]) / max(1e-9, self.last[0] - self.first[0])


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """One run; what was measured."""
    watch = Watch()
    drivers: list[Driver] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_prompts(folder / "in", args.rows, args.rows_a_shard)
        (folder / "reports").mkdir()
        reports = folder / "reports" if args.latency else None
        new_actor = simulated(args.latency, reports, args.share)
        config = RunConfig(
            input=str(folder / "in"),
            output=str(folder / "out"),
            device="cpu",
            replicas=args.replicas,
            cpus_per_replica=args.cpus_per_replica,
            slots=args.slots,
            decoding=DecodingConfig.preset("fast", gen_length=GEN_LENGTH),
        )
        began, cpu = time.monotonic(), time.process_time()
        summary = run.generate(config, watch, drivers.append, new_actor=new_actor)
        seconds, cpu = time.monotonic() - began, time.process_time() - cpu
        assert (summary.num_rows, summary.num_failed) == (args.rows, 0)
        found = [json.loads(path.read_text()) for path in (folder / "reports").iterdir()]
    held = sum(fact["held"] for fact in found)
    could = sum(fact["seconds"] for fact in found) * args.slots * args.share
    return {
        "rows": args.rows,
        "replicas": args.replicas,
        "processes": -(-args.replicas // args.share),
        "slots": args.slots,
        "mean_latency": args.latency,
        "seconds": round(seconds, 1),
        "rows_per_second": round(watch.rows_per_second),
        "driver_cores": round(cpu / seconds, 3),
        "driver_cpu_us_per_row": round(1e6 * cpu / args.rows, 1),
        "busy": round(held / could, 4) if could else None,
        "memory_mib": {rows: round(size / 2**20) for rows, size in _few(watch.memory)},
    }


def _few(memory: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """About ten of the readings, the first and the last among them."""
    step = max(1, len(memory) // 10)
    return memory[::step] + memory[-1:]


def main() -> None:
    """Print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rows-a-shard", type=int, default=5000)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--share", type=int, default=1, help="simulated replicas a process")
    parser.add_argument("--cpus-per-replica", type=float, default=0.02)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--latency", type=float, default=0.0, help="mean seconds a row; 0: none")
    facts = measure(parser.parse_args())
    for name, value in facts.items():
        print(f"{name:16} {value}")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
