"""Decodings compared through the whole pipeline: Parquet in, Ray replicas, Parquet out, in turns.

    python -m jobs.bench.through_pipeline                      # blocks with and without a cache
    python -m jobs.bench.through_pipeline --sheets 64 --repeats 3

All turns share one Ray session; a run's rate is that between its first and its last finished row,
so neither Ray's start nor the loading of the model counts. Prints a table (medians), then one JSON
line. The default is worksheets at canvas 256 in blocks of 32, two replicas of 16 slots and one
thread each.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.bench.against_peers import SHEETS, SHEETS_CANVAS, block_settings
from jobs.bench.driver_rows import Watch
from lrd import DecodingConfig
from lrd.models.registry import TINY_SHEETS
from pipeline import run
from pipeline.config import RunConfig
from pipeline.scoring.summary import wilson
from pipeline.scoring.word_sheets import right_answers

VARIANTS: dict[str, dict[str, Any]] = {
    "none": block_settings(kv_cache="none", suffix="all"),
    "prefix": block_settings(kv_cache="prefix", suffix="all"),
    "dual": block_settings(kv_cache="dual", suffix="all"),
    "blocks": block_settings(),
}


def decoded(args: argparse.Namespace, name: str, folder: Path) -> tuple[float, pa.Table]:
    """Run the pipeline once: rows a second, and the rows."""
    decoding = DecodingConfig.preset(**VARIANTS[name], gen_length=SHEETS_CANVAS)
    config = RunConfig(
        model=str(args.model),
        input=str(folder / "in"),
        output=str(folder / f"out-{time.monotonic_ns()}"),
        dtype=args.dtype,
        device="cpu",
        replicas=args.replicas,
        cpus_per_replica=1,
        slots=args.slots,
        decoding=decoding,
    )
    watch = Watch()
    run.generate(config, watch)
    return watch.rows_per_second, pq.read_table(Path(config.output) / "data")


def num_right(rows: pa.Table) -> tuple[int, int]:
    """Right problems, and all."""
    texts, answers = rows["output_text"].to_pylist(), rows["answer"].to_pylist()
    right = [right_answers(text or "", a) for text, a in zip(texts, answers, strict=True)]
    return sum(map(sum, right)), sum(map(len, right))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All variants, in turns."""
    rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
    tables: dict[str, pa.Table] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        sheets = pq.read_table(SHEETS).slice(0, args.sheets)
        pq.write_table(sheets, folder / "in" / "sheets.parquet")
        for turn in range(args.repeats):
            for variant, found in rates.items():
                rate, tables[variant] = decoded(args, variant, folder)
                found.append(rate)
                print(f"turn {turn + 1}: {variant}: {rate:.2f} rows/s", file=sys.stderr)
    return {name: facts_of(tables[name], rates, name) for name in VARIANTS}


def facts_of(rows: pa.Table, rates: Mapping[str, list[float]], name: str) -> dict[str, Any]:
    """A variant's medians; `times_none` is the median of the turns' ratios."""
    right, total = num_right(rows)
    low, high = wilson(right, total)
    ratios = [ours / none for ours, none in zip(rates[name], rates["none"], strict=True)]
    return {
        "rows_per_second": round(median(rates[name]), 2),
        "times_none": round(median(ratios), 2),
        "turns": [round(rate, 2) for rate in rates[name]],
        "right": round(right / total, 4),
        "interval": [round(low, 4), round(high, 4)],
        "problems": total,
        "forwards_per_row": round(mean_of(rows, "num_forwards"), 2),
        "full_passes_per_row": round(mean_of(rows, "full_passes"), 2),
        "positions_per_row": round(mean_of(rows, "positions_computed"), 1),
    }


def mean_of(rows: pa.Table, name: str) -> float:
    """Over decoded rows."""
    values = [value for value in rows[name].to_pylist() if value is not None]
    return sum(values) / len(values)


def main() -> None:
    """Print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, default=TINY_SHEETS)
    parser.add_argument("--sheets", type=int, default=256, help="rows a run [256]")
    parser.add_argument("--repeats", type=int, default=5, help="alternating turns [5]")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    args = parser.parse_args()
    found = measure(args)
    print("| kv_cache | rows/s | times none | right | passes | full | positions |")
    print("|---|---|---|---|---|---|---|")
    for name, facts in found.items():
        print(
            f"| {name} | {facts['rows_per_second']} | {facts['times_none']} | {facts['right']} | "
            f"{facts['forwards_per_row']} | {facts['full_passes_per_row']} | "
            f"{facts['positions_per_row']} |"
        )
    print(json.dumps({"sheets": args.sheets, "dtype": args.dtype, "variants": found}))


if __name__ == "__main__":
    main()
