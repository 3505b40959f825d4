"""How many rows a second the driver can handle, with replicas that have no model.

    python -m jobs.bench.driver_rows --rows 200000                     # through 2 null replicas
    python -m jobs.bench.driver_rows --replicas 64 --share 16 --slots 16 --latency 20 --rows 6000

Everything but the model is real: Parquet in, tokenising, Ray, segments, shards. Slots of
simulated replicas (`jobs/bench/simulated.py`) end after a time sampled from measured forwards;
`busy` is the share of the time in which slots were occupied. Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.bench.cluster_cells import Watch
from jobs.bench.simulated import Latencies, SimulatedActors
from jobs.tiny.problems import problems
from lrd import DecodingConfig
from pipeline import run
from pipeline.config import RunConfig
from pipeline.driver import Driver
from pipeline.rows import LEVELS

FORWARDS = Path(__file__).parents[1] / "benchmarks" / "forwards.csv"


def write_prompts(folder: Path, num_rows: int, rows_a_shard: int) -> None:
    """Word problems, the same few thousand repeatedly."""
    folder.mkdir()
    questions = cycle([p.question for p in islice(problems("test", seed=1), 5000)])
    for number, first in enumerate(range(0, num_rows, rows_a_shard)):
        part = list(islice(questions, min(rows_a_shard, num_rows - first)))
        pq.write_table(pa.table({"prompt": part}), folder / f"{number:05d}.parquet")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run the pipeline once; its measurements."""
    watch = Watch()
    drivers: list[Driver] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_prompts(folder / "in", args.rows, args.rows_a_shard)
        (folder / "reports").mkdir()
        reports = folder / "reports" if args.latency else None
        latencies = Latencies.measured(args.forwards, args.latency)
        actors = SimulatedActors(latencies, reports, args.share)
        config = RunConfig(
            input=str(folder / "in"),
            output=str(folder / "out"),
            device="cpu",
            replicas=args.replicas,
            cpus_per_replica=args.cpus_per_replica,
            slots=args.slots,
            num_samples=args.num_samples,
            columns=args.columns,
            decoding=DecodingConfig.preset(
                "fast", gen_length=args.gen_length, temperature=float(args.num_samples > 1)
            ),
        )
        began, cpu = time.monotonic(), time.process_time()
        summary = run.generate(config, watch, drivers.append, actors=actors)
        seconds, cpu = time.monotonic() - began, time.process_time() - cpu
        num_rows = args.rows * args.num_samples
        assert (summary.num_rows, summary.num_failed) == (num_rows, 0)
        found = [json.loads(path.read_text()) for path in (folder / "reports").iterdir()]
    occupied = sum(fact["slot_seconds"] for fact in found)
    available = sum(fact["seconds"] for fact in found) * args.slots * args.share
    return {
        "rows": args.rows,
        "num_samples": args.num_samples,
        "columns": args.columns,
        "replicas": args.replicas,
        "processes": -(-args.replicas // args.share),
        "slots": args.slots,
        "gen_length": args.gen_length,
        "mean_latency": args.latency,
        "seconds": round(seconds, 1),
        "rows_per_second": round(watch.rows_per_second, 1),
        "driver_cores": round(cpu / seconds, 3),
        "driver_cpu_us_per_row": round(1e6 * cpu / num_rows, 1),
        "busy": round(occupied / available, 4) if available else None,
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
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
    parser.add_argument("--num-samples", type=int, default=1, help="of each row")
    parser.add_argument("--columns", choices=LEVELS, default="full")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--share", type=int, default=1, help="simulated replicas a process")
    parser.add_argument("--cpus-per-replica", type=float, default=0.02)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--gen-length", type=int, default=256, help="canvas of a row, in tokens")
    parser.add_argument("--latency", type=float, default=0.0, help="mean seconds a row; 0: none")
    parser.add_argument(
        "--forwards", type=Path, default=FORWARDS, help="CSV of num_forwards and rows"
    )
    facts = measure(parser.parse_args())
    for name, value in facts.items():
        print(f"{name:16} {value}")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
