"""The chaos run on an object store: prompts, checkpoint and output lie on a real S3 server, a share
of all requests fails, and replicas and drivers are killed meanwhile.

    python tests/chaos_s3.py --kills 10          # ends with one JSON line

The dataset that comes out must be that of an undisturbed local run to the last bit, in every
column but seconds, replica and attempts, and `lrd verify` has to find it whole, through the same
failing requests.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from chaos import ROOT, SLOTS, Chaos, Run, compare
from helpers import s3
from helpers.shards import distinct_questions, write_shards
from ray.cluster_utils import Cluster

from lrd.models.registry import TINY
from pipeline.storage.storage import Storage

WEIGHTS = {"replica": 3, "driver": 1}
SLOW_SHARE, SLOW_SECONDS = 0.01, 2.0


class AtWork(Chaos):
    """Kills nobody before rows have got slots since the last kill: there is something to lose."""

    _num_placed = 0

    def _kill_replica(self) -> bool:
        return self._is_at_work() and super()._kill_replica()

    def _kill_driver(self) -> bool:
        return self._is_at_work() and super()._kill_driver()

    def _is_at_work(self) -> bool:
        placed = self._run.placed
        num_placed = len(placed.read_text().splitlines()) if placed.exists() else 0
        is_new = num_placed >= self._num_placed + SLOTS
        if is_new:
            self._num_placed = num_placed
        return is_new


def upload(folder: Path, uri: str) -> None:
    storage = Storage(uri)
    for file in folder.iterdir():
        if file.is_file():
            storage.write(file.name, file.read_bytes())


def download(uri: str, folder: Path) -> None:
    storage = Storage(uri)
    folder.mkdir(parents=True)
    for name in storage.names():
        (folder / name).write_bytes(storage.read(name))


def main() -> None:
    """Print what happened; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--rows", type=int, default=800)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--share", type=float, default=0.05, help="of requests that fail")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=float, default=900, help="seconds")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray spells it so)
    began = time.monotonic()
    faults = s3.Faults(seed=args.seed)
    with (
        tempfile.TemporaryDirectory(prefix="chaos") as name,
        s3.server() as upstream,
        s3.proxy(upstream, faults) as address,
        s3.as_environment({**s3.environment(address), "LRD_CACHE": f"{name}/cache"}),
    ):
        s3.make_bucket(upstream, "bucket")
        folder = Path(name)
        write_shards(folder / "in", distinct_questions(args.rows, seed=11), args.shards)
        upload(folder / "in", "s3://bucket/in")
        upload(TINY, "s3://bucket/model")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        try:
            nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
            calm = Run(folder / "in", folder / "calm", cluster.address, folder / "calm.log")
            calm.finish([])
            print(f"undisturbed local run: {time.monotonic() - began:.0f} s", file=sys.stderr)
            faults.reset(args.share)
            faults.slow_share, faults.slow_seconds = SLOW_SHARE, SLOW_SECONDS
            places = ("s3://bucket/in", "s3://bucket/out")
            run = Run(*places, cluster.address, folder / "log", "--model", "s3://bucket/model")
            chaos = AtWork(run, cluster, nodes, args.seed, WEIGHTS)
            chaos.go_on(args.kills, began + args.limit)
            chaos.end()
            verify = [sys.executable, "-m", "jobs.verify", "s3://bucket/out"]
            verified = subprocess.run(verify, cwd=ROOT, check=False).returncode
        finally:
            cluster.shutdown()
        requests, failed, slow = faults.requests, dict(sorted(faults.failed.items())), faults.slow
        faults.reset()
        download("s3://bucket/out/data", folder / "out" / "data")
        lost, duplicated, identical = compare(folder / "out", folder / "calm")
        placed = run.placed.read_text().splitlines()
    result = {
        "requests": requests,
        "failed": failed,
        "slow": slow,
        "kills": {kind: chaos.kills[kind] for kind in WEIGHTS},
        "rows": args.rows,
        "rows_placed": len(set(placed)),
        "rows_recomputed": len(placed) - len(set(placed)),
        "seconds": round(time.monotonic() - began),
        "lost": lost,
        "duplicated": duplicated,
        "identical": identical,
        "verified": verified == 0,
    }
    print(json.dumps(result), flush=True)
    sys.exit(0 if identical and not lost and not duplicated and not verified else 1)


if __name__ == "__main__":
    main()
