"""Check and measure a GPU: one command for a bare machine with torch; no checkpoint is read.

    python -m jobs.bench.gpu                     # everything, at most eight minutes
    python -m jobs.bench.gpu --stages steps caches --out found.jsonl
    python -m jobs.bench.gpu --device cpu        # rehearses every stage at small shapes

Random weights at the shapes of LLaDA-8B and Dream-7B. Stages, each in a process of its own and
held to its time: machine (rates of products, copies, attention), golden (the originals' records,
where the tests and pytest are there), syncs (nothing in a pass waits for the device), steps
(forward pass, MFU, LRD step against baseline step, memory against the formula), caches (dual
block cache), beliefs (the kernels against the plain functions), rows (what a result depends on),
profile (kernels), compile, graphs. Every measurement is printed as one JSON line as soon as it is
there, and appended to --out; the last line is one JSON object with the settings and how each stage
ended. Needs neither ray nor datasets.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from jobs.bench.gpu_stages import STAGES, Bench, Found
from jobs.output import BAD_SETTINGS, OK, WRONG, Parser, command

GRACE = 3.0
"""Seconds that a stage gets beyond its own before its process is killed."""


def run_stage(name: str, device: str, seconds: float) -> int:
    """Measure one stage in this process and print a line a measurement; returns the exit code."""
    if device == "cpu":
        torch.set_num_threads(1)  # Small shapes gain nothing by more.
    bench = Bench(device, seconds, time.monotonic())
    num_wrong = 0
    for found in STAGES[name][0](bench):
        at = round(time.monotonic() - bench.began, 1)
        print(json.dumps({"stage": name, **found, "at": at}), flush=True)
        num_wrong += is_wrong(found)
    if num_wrong:
        print(f"{num_wrong} of its lines say that something is wrong", file=sys.stderr)
    return WRONG if num_wrong else OK


def is_wrong(found: Found) -> bool:
    """Whether a measurement says that something does not hold. Times are not judged, and a case
    that a small GPU has no memory for is left out."""
    return (
        "error" in found
        or found.get("waits", False)
        or found.get("code", 0) != 0
        or not found.get("tokens_equal", True)
    )


def lines_of(words: list[str], seconds: float) -> Iterator[str]:
    """The lines that a process prints, as they come; the last one says how it ended: `ok`,
    `late` (killed, with all that it has started) or `failed: …`."""
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        ) as child,
    ):
        assert child.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            kill_group(child.pid)

        timer = threading.Timer(seconds, end)
        timer.start()
        try:
            yield from (line.rstrip("\n") for line in child.stdout)
            code = child.wait()
        finally:  # Also where Ctrl-C ends this process.
            timer.cancel()
            kill_group(child.pid)
        errors.seek(0)
        *_, last = ["", *errors.read().strip().splitlines()]
    if late.is_set():
        yield "late"
    else:
        yield "ok" if code == 0 else f"failed: {last[:300] or f'exit code {code}'}"


def kill_group(pid: int) -> None:
    """End a process that has a session of its own, and all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


@command("bench.gpu")
def run(args: argparse.Namespace) -> int:
    """Run the stages one after the other."""
    if args.device == "cuda" and not torch.cuda.is_available():
        print("bench.gpu: torch finds no CUDA device here; run it on one, or rehearse with "
              "--device cpu", file=sys.stderr)  # fmt: skip
        return BAD_SETTINGS
    if args.stage:
        return run_stage(args.stage, args.device, args.seconds)
    ended: dict[str, str] = {}
    for name in args.stages:
        seconds = STAGES[name][1] * args.scale
        words = [sys.executable, "-m", "jobs.bench.gpu", "--device", args.device]
        words += ["--stage", name, "--seconds", str(seconds)]
        *found, ended[name] = told(words, seconds + GRACE, args.out)
        if not found and ended[name] == "ok":
            ended[name] = "failed: it measured nothing"
    closing = {"device": args.device, "torch": torch.__version__, "stages": ended}
    if args.device == "cuda":
        closing["device"] = torch.cuda.get_device_name()
    print(json.dumps(closing))
    if args.out:
        append(args.out, json.dumps(closing))
    return OK if all(end == "ok" for end in ended.values()) else WRONG


def told(words: list[str], seconds: float, out: str | None) -> list[str]:
    """All lines of a stage, each printed and kept at once; the last says how it ended."""
    lines = []
    for line in lines_of(words, seconds):
        lines.append(line)
        if line.startswith("{"):
            print(line, flush=True)
            if out:
                append(out, line)
    if lines[-1] != "ok":
        print(f"bench.gpu: stage {words[-3]}: {lines[-1]}", file=sys.stderr, flush=True)
    return lines


def append(out: str, line: str) -> None:
    """A line at the end of a file."""
    with Path(out).open("a") as file:
        file.write(line + "\n")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = Parser(prog="python -m jobs.bench.gpu", description=__doc__.partition("\n")[0])
    made.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    made.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    made.add_argument("--scale", type=float, default=1.0, help="of every stage's time [1: 460 s]")
    made.add_argument("--out", metavar="FILE.jsonl", help="measurements are appended to it")
    made.add_argument("--stage", choices=list(STAGES), help="this one alone, in this process")
    made.add_argument("--seconds", type=float, default=60.0, help="of --stage")
    return made


if __name__ == "__main__":
    sys.exit(run(parser().parse_args()))
