"""Measures `lrd generate` itself: Parquet in, Ray replicas, Parquet out, in a temporary folder."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from jobs import output
from jobs.bench.bench_cells import Cell, LeftOutError, Spread, rounded
from jobs.bench.bench_prompts import Prompts
from lrd import DecodingConfig
from pipeline import run
from pipeline.cluster import connect
from pipeline.config import RunConfig
from pipeline.driver import Driver
from pipeline.observe.eta import Progress
from pipeline.replicas import nodes
from pipeline.replicas.deaths import RunStoppedError
from pipeline.replicas.placement import TYPE, place

ROWS_A_SHARD = 5000
ROWS_A_SLOT = 32
"""Where no number is said: replicas report rows many at a time, and their tails have idle slots."""
COUNTS = ("num_forwards", "full_passes", "positions_computed", "num_output_tokens")


class Watch:
    """The driver's rate and memory while it runs."""

    def __init__(self) -> None:
        self.first: tuple[float, int] | None = None
        self.last = (0.0, 0)
        self.memory: list[tuple[int, int]] = []
        """Rows done and resident bytes."""
        self._process = psutil.Process()
        self._sampled_at = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if not progress.num_done:
            return
        self.first = self.first or (now, progress.num_done)
        self.last = now, progress.num_done
        if now - self._sampled_at >= 1:
            self._sampled_at = now
            self.memory.append((progress.num_done, self._process.memory_info().rss))

    @property
    def num_rows(self) -> int:
        """Rows that came after the first report of any, over which the rate is."""
        return 0 if self.first is None else self.last[1] - self.first[1]

    @property
    def rows_per_second(self) -> float:
        assert self.first is not None
        return self.num_rows / max(1e-9, self.last[0] - self.first[0])


@dataclass(slots=True)
class Cluster:
    """What all cells of a run through the pipeline share."""

    config: RunConfig
    decodings: Mapping[int, DecodingConfig]
    """By canvas."""
    prompts: Prompts
    rows_a_slot: int | None
    repeat: int
    fixed_passes: bool
    deadline: float
    tell: Callable[[str], None] = lambda line: None
    replicas: int = field(default=1, init=False)
    device: str = field(default="cpu", init=False)
    dtype: str = field(default="float32", init=False)
    machine: dict[str, Any] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Joins or starts the cluster. Raises ValueError where replicas do not fit."""
        connect(self.config)
        there = list(nodes.alive().values())
        placement = place(self.config, there)
        self.replicas = placement.size(there)
        self.device, self.dtype = placement.device, placement.dtype
        kinds = {name.removeprefix(TYPE) for one in there for name in one if name.startswith(TYPE)}
        self.machine = {
            "device": ", ".join(sorted(kinds)) or placement.device,
            "nodes": len(there),
            "cpus": sum(one.get("CPU", 0.0) for one in there),
            "gpus": sum(one.get("GPU", 0.0) for one in there),
            "cpus_per_replica": placement.resources["num_cpus"],
        }

    def measure(self, cell: Cell) -> dict[str, Any]:
        """A cell's figures; raises LeftOutError where there are none."""
        found: list[tuple[Watch, float, pa.Table]] = []
        for number in range(1, self.repeat + 1):
            longest = max((seconds for _, seconds, _ in found), default=0.0)
            if found and time.monotonic() + longest > self.deadline:
                break
            found.append(self._run(cell))
            self.tell(f"{cell}: run {number} of {self.repeat}")
        *_, (_, _, rows) = found
        means = {name: sum(rows[name].to_pylist()) / len(rows) for name in COUNTS}
        tokens = cell.canvas if self.fixed_passes else means["num_output_tokens"]
        rates = [watch.rows_per_second for watch, _, _ in found]
        return {
            **cell._asdict(),
            "rows": len(rows),
            "repetitions": len(found),
            "rows_per_second": Spread(tuple(rates)).as_json(),
            "rows_timed": [watch.num_rows for watch, _, _ in found],
            "tokens_per_second": Spread(tuple(rate * tokens for rate in rates)).as_json(),
            "tokens_per_row": rounded(tokens),
            "tokens_are": "canvas" if self.fixed_passes else "effective",
            "forwards_per_row": rounded(means["num_forwards"]),
            "full_passes_per_row": rounded(means["full_passes"]),
            "positions_per_row": rounded(means["positions_computed"]),
            "run_seconds": Spread(tuple(seconds for _, seconds, _ in found)).as_json(),
        }

    def _run(self, cell: Cell) -> tuple[Watch, float, pa.Table]:
        """One run of the pipeline: its rate, its seconds, its rows."""
        watch, drivers = Watch(), list[Driver]()

        def begun(driver: Driver) -> None:
            output.default_signals()  # Ray has put its own in their place.
            drivers.append(driver)

        def progressed(progress: Progress) -> None:
            watch(progress)
            if time.monotonic() > self.deadline:
                drivers[0].stop()

        with tempfile.TemporaryDirectory(prefix="lrd-bench-") as name:
            folder = Path(name)
            number = (self.rows_a_slot or ROWS_A_SLOT) * cell.slots * self.replicas
            write_prompts(folder / "in", self.prompts, self.config.prompt_column, number)
            config = self.config.model_copy(
                update={
                    "input": str(folder / "in"),
                    "output": str(folder / "out"),
                    "slots": cell.slots,
                    "decoding": self.decodings[cell.canvas],
                }
            )
            began = time.monotonic()
            try:
                run.generate(config, progressed, begun)
            except RunStoppedError as error:
                if time.monotonic() <= self.deadline:
                    raise
                raise LeftOutError("it was not done when the time of --seconds was over") from error
            seconds = time.monotonic() - began
            rows = pq.read_table(folder / "out" / "data", columns=["status", "error", *COUNTS])
        return watch, seconds, _checked(watch, rows)


def _checked(watch: Watch, rows: pa.Table) -> pa.Table:
    """The rows, if a rate can be made of them."""
    failed = [error for error in rows["error"].to_pylist() if error is not None]
    if failed:
        raise LeftOutError(f"{len(failed)} of {len(rows)} rows failed: {failed[0]}")
    if 2 * watch.num_rows < len(rows):
        raise LeftOutError(
            f"{len(rows) - watch.num_rows} of {len(rows)} rows were finished when the driver first "
            "looked, which leaves too few to time; raise --rows-a-slot"
        )
    return rows


def write_prompts(folder: Path, prompts: Prompts, column: str, number: int) -> None:
    """Prompt shards of `number` rows, the prompts repeatedly."""
    folder.mkdir()
    values = [prompts.values[n % len(prompts.values)] for n in range(number)]
    for first in range(0, number, ROWS_A_SHARD):
        table = pa.table({column: values[first : first + ROWS_A_SHARD]})
        pq.write_table(table, folder / f"{first:09d}.parquet")
