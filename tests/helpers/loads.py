"""`python loads.py MODEL COUNT…`: so many replicas load a model at once, each a process of its own.

Prints a JSON list for each count: the bytes that each replica had the storage read for it. What the
kernel has in memory already counts for nobody.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil

from lrd import DecodingConfig
from pipeline.replicas.replica import Replica, ReplicaSettings


def bytes_read(
    model: str, *counts: int, environment: dict[str, str] | None = None
) -> list[list[int]]:
    """Bytes that each of so many replicas had read for it, for each count, one after the other."""
    ran = subprocess.run(
        [sys.executable, __file__, model, *map(str, counts)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[list[int]] = json.loads(ran.stdout)
    assert min(map(min, found)) >= 0, ran.stderr
    return found


def load(model: str) -> int:
    """Load a replica's model; the bytes read."""
    settings = ReplicaSettings(
        model=model,
        revision=None,
        device="cpu",
        dtype="float32",
        decoding=DecodingConfig(),
        slots=1,
        threads=1,
    )
    before = psutil.Process().io_counters().read_bytes
    Replica("it", settings).load()
    return int(psutil.Process().io_counters().read_bytes - before)


def together(model: str, count: int) -> list[int]:
    """Load so many at once; the bytes that each read."""
    pipes = []
    for _ in range(count):
        ours, theirs = os.pipe()
        if os.fork() == 0:
            os.write(theirs, str(load(model)).encode())
            os._exit(0)
        os.close(theirs)
        pipes.append(ours)
    # A child that failed has written nothing.
    return [int(os.read(pipe, 64) or "-1") for pipe in pipes]


def forget(file: Path) -> None:
    """Drop a file's pages from memory."""
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def main() -> None:
    """Load for each count, from the disk where the model is a folder."""
    model, counts = sys.argv[1], sys.argv[2:]
    found = []
    for count in counts:
        for file in Path(model).glob("*.safetensors"):
            forget(file)
        found.append(together(model, int(count)))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
