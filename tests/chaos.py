"""Kill replicas, nodes and drivers at random instants until enough have died; then compare.

    python tests/chaos.py --kills 100          # `make chaos`; ends with one JSON line

A simulated cluster of several nodes runs `lrd generate` with the embedded model. Processes
are killed by SIGKILL; nodes go without notice; drivers also die while they write segments,
records and shards (pipeline/faults.py). A driver that is gone is started again by the same
command. The dataset that comes out must be that of an undisturbed run to the last bit, in every
column but seconds, replica and attempts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
from helpers.shards import OF_THE_RUN, distinct_questions, write_shards
from ray.cluster_utils import Cluster

ROOT = Path(__file__).resolve().parents[1]
SLOTS, REPLICAS, NODES = 4, 2, 3
WEIGHTS = {"replica": 6, "driver": 3, "node": 1}
"""How often each kind is killed; a node's end takes seconds to be noticed."""
PLACES = ("storage.write", "storage.partial", "storage.written")
FILES = ("data/*", ".run/segments/*", ".run/commits/*", ".run/events.jsonl")


class Run:
    """`lrd generate` as a process that is started again and again."""

    def __init__(
        self, source: Path | str, output: Path | str, address: str, log: Path, *more: str
    ) -> None:
        """more: further flags of `lrd generate`."""
        self.output, self.placed = output, log.with_suffix(".placed")
        self._log = log
        self._command = [
            *(sys.executable, "-m", "jobs.generate", "--address", address),
            *("--input", str(source), "--output", str(output), "--gen-length", "32"),
            *("--replicas", str(REPLICAS), "--cpus-per-replica", "1", "--slots", str(SLOTS)),
            *("--flush-seconds", "1", "--lookahead-shards", "3", "--max-restarts", "1000"),
            *("--max-attempts", "10", *more),
        ]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, faults: list[dict[str, Any]]) -> None:
        watch = [{"at": "replica.place", "do": "log", "path": str(self.placed)}]
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        env = {**os.environ, "LRD_FAULTS": json.dumps(watch + faults), "PYTHONPATH": path}
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(
                self._command, cwd=ROOT, env=env, stdout=log, stderr=log
            )

    def code(self) -> int | None:
        """The exit code; None while it runs."""
        assert self.process is not None
        return self.process.poll()

    def finish(self, faults: list[dict[str, Any]]) -> int:
        """To the end, undisturbed but for a last driver that was set to kill itself; how often one
        did."""
        if self.process is None:
            self.start(faults)
        assert self.process is not None
        num_kills, code = 0, self.process.wait()
        while code == -signal.SIGKILL:
            num_kills += 1
            self.start(faults)
            code = self.process.wait()
        if code:
            raise SystemExit(f"chaos: lrd generate ended with {code}:\n{self.log()}")
        return num_kills

    def log(self) -> str:
        """The last lines that drivers wrote."""
        return "\n".join(self._log.read_text().splitlines()[-20:])


def replicas(address: str) -> list[psutil.Process]:
    """Processes of the replicas that are up in the cluster at this address, and in no other."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or [""]
        if words[0].startswith("ray::Replica"):
            with suppress(psutil.Error):
                raylet = process.parent()
                if raylet is not None and any(address in word for word in raylet.cmdline()):
                    found.append(process)
    return found


class Chaos:
    """Kills until there were enough."""

    def __init__(
        self,
        run: Run,
        cluster: Cluster,
        nodes: list[Any],
        seed: int,
        weights: dict[str, int] = WEIGHTS,
    ) -> None:
        self._run, self._cluster, self._nodes, self._weights = run, cluster, nodes, weights
        self._rng = random.Random(seed)
        self.kills: Counter[str] = Counter()

    def go_on(self, num_kills: int, deadline: float) -> None:
        """Until num_kills, the run's end, or the deadline."""
        self._start()
        while self.kills.total() < num_kills and time.monotonic() < deadline:
            time.sleep(self._rng.uniform(0.2, 3.0))
            code = self._run.code()
            if code == -signal.SIGKILL:  # It died where it wrote.
                self.kills["driver"] += 1
                self._start()
            elif code == 0:
                print("the run ended before there were enough kills", file=sys.stderr)
                return
            elif code is not None:
                raise SystemExit(f"chaos: the driver ended with {code}:\n{self._run.log()}")
            else:
                (kind,) = self._rng.choices(list(self._weights), list(self._weights.values()))
                self.kills[kind] += getattr(self, f"_kill_{kind}")()

    def end(self) -> None:
        """Let the run come to its end."""
        self.kills["driver"] += self._run.finish([])

    def _start(self) -> None:
        faults: list[dict[str, Any]] = [{"at": "replica.pass", "do": "slow", "seconds": 0.1}]
        if self._rng.random() < 0.6:
            place, file = self._rng.choice(PLACES), self._rng.choice(FILES)
            faults.append({"at": place, "match": file, "do": "kill", "chance": 0.3})
        self._run.start(faults)

    def _kill_replica(self) -> bool:
        up = replicas(self._cluster.address)
        if up:
            self._rng.choice(up).kill()
        return bool(up)

    def _kill_driver(self) -> bool:
        # Not before it has begun: nothing would be at stake.
        if not replicas(self._cluster.address):
            return False
        assert self._run.process is not None
        self._run.process.kill()
        self._run.process.wait()
        self._start()
        return True

    def _kill_node(self) -> bool:
        if not replicas(self._cluster.address):
            return False
        node = self._nodes.pop(self._rng.randrange(len(self._nodes)))
        self._cluster.remove_node(node, allow_graceful=False)
        self._nodes.append(self._cluster.add_node(num_cpus=1))
        return True


def compare(ours: Path, theirs: Path) -> tuple[int, int, bool]:
    """Rows lost, rows that are there twice, and whether all columns are equal to the bit."""
    tables = [
        [pq.read_table(path) for path in sorted((folder / "data").glob("*.parquet"))]
        for folder in (ours, theirs)
    ]
    ids, expected = ([i for t in some for i in t["row_id"].to_pylist()] for some in tables)
    lost = len(set(expected) - set(ids))
    pairs = zip(*tables, strict=False)
    same = len(tables[0]) == len(tables[1]) and all(
        a.drop_columns(OF_THE_RUN).equals(b.drop_columns(OF_THE_RUN)) for a, b in pairs
    )
    return lost, len(ids) - len(set(ids)), same


def own_settings(num_rows: int) -> dict[str, list[Any]]:
    """Columns of settings, some of them null, and of templates."""
    values = {
        "gen_length": [None, 16, 32, 48, 64],
        "temperature": [None, 0.7, 3.0],
        "seed": [None, 1, 2, 3],
        "template": ["[[*]]", "a: [[4]], b: [[*]].", "[[6]] = [[3]]"],
    }
    rng = random.Random(num_rows)
    return {name: [rng.choice(some) for _ in range(num_rows)] for name, some in values.items()}


def main() -> None:
    """Print what happened; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--shards", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--num-samples", type=int, default=1, help="of each row, drawn")
    parser.add_argument(
        "--row-settings", action="store_true", help="rows have their own settings and templates"
    )
    parser.add_argument("--preset", default="fast", help="how the rows are decoded")
    parser.add_argument("--limit", type=float, default=2400, help="seconds")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray spells it so)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos") as name:
        folder = Path(name)
        own = own_settings(args.rows) if args.row_settings else {}
        write_shards(folder / "in", distinct_questions(args.rows, seed=11), args.shards, **own)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        try:
            nodes = [cluster.add_node(num_cpus=1) for _ in range(NODES)]
            flags = ["--num-samples", str(args.num_samples), "--preset", args.preset]
            flags += ["--temperature", "2"] if args.num_samples > 1 else []
            if own:
                names = [name for name in own if name != "template"]
                flags += ["--row-settings", ",".join(names), "--template-column", "template"]
            calm = Run(folder / "in", folder / "calm", cluster.address, folder / "calm.log", *flags)
            calm.finish([])
            print(f"undisturbed run: {time.monotonic() - began:.0f} s", file=sys.stderr)
            run = Run(folder / "in", folder / "out", cluster.address, folder / "out.log", *flags)
            chaos = Chaos(run, cluster, nodes, args.seed)
            chaos.go_on(args.kills, began + args.limit)
            chaos.end()
        finally:
            cluster.shutdown()
        lost, duplicated, identical = compare(folder / "out", folder / "calm")
        placed = run.placed.read_text().splitlines()
        num_rows = args.rows * args.num_samples
        recomputed = len(placed) - num_rows
    kills = {kind: chaos.kills[kind] for kind in WEIGHTS}
    for kind, count in kills.items():
        print(f"{kind:8} killed {count} times")
    print(f"rows recomputed / rows: {recomputed} / {num_rows} = {recomputed / num_rows:.3f}")
    print(f"wall time: {time.monotonic() - began:.0f} s")
    result = {
        "kills": kills,
        "rows": num_rows,
        "rows_recomputed": recomputed,
        "lost": lost,
        "duplicated": duplicated,
        "identical": identical,
    }
    print(json.dumps(result), flush=True)
    sys.exit(0 if identical and not lost and not duplicated else 1)


if __name__ == "__main__":
    main()
