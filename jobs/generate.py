"""Decode prompt shards into a result dataset: the main job.

    lrd generate --input PROMPTS --output OUT [--config RUN.toml] [settings]
    python -m jobs.generate …            # the same, for `ray job submit`

Settings come from the preset, then the TOML file, then the flags; each overrides the last.
Knows nothing of decoding or storage.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import tomllib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn, Protocol

import psutil
from pydantic import ValidationError
from ray.exceptions import RayError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jobs import logs
from jobs.flags import add_model_flags, given, one_line
from lrd.config import PRESETS, DecodingConfig
from pipeline.config import RunConfig
from pipeline.observe.eta import Progress as RunProgress
from pipeline.observe.events import record
from pipeline.output.statistics import Summary
from pipeline.replicas.deaths import RunStoppedError
from pipeline.run import generate
from pipeline.storage import uris

OK, BAD_SETTINGS, FAILED_ROWS, INTERRUPTED = 0, 2, 3, 75
LINE_SECONDS = 5.0
"""How often a run without a terminal says where it stands."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags for every field of RunConfig and DecodingConfig, read off the models."""
    parser.add_argument("--config", metavar="RUN.toml", help="settings, [decoding] as a table")
    parser.add_argument("--preset", choices=sorted(PRESETS), help="decoding preset [fast]")
    logs.add_argument(parser)
    add_model_flags(parser, RunConfig, exclude={"decoding"})
    add_model_flags(parser.add_argument_group("decoding"), DecodingConfig)


def settings_from(args: argparse.Namespace) -> RunConfig:
    """RunConfig from preset, file and flags; ValueError for what is unknown or impossible."""
    settings: dict[str, Any] = {}
    if args.config:
        try:
            settings = tomllib.loads(Path(args.config).read_text())
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ValueError(f"{args.config}: {error}") from error
    decoding = settings.pop("decoding", {})
    preset = args.preset or settings.pop("preset", "fast")
    settings.pop("preset", None)
    if not isinstance(decoding, dict):
        raise ValueError(f"{args.config}: decoding is a table: [decoding]")
    try:
        settings["decoding"] = DecodingConfig.preset(
            preset, **{**decoding, **given(args, DecodingConfig)}
        )
        return RunConfig(**{**settings, **given(args, RunConfig)})
    except ValidationError as error:
        raise ValueError(one_line(error)) from error


def run(args: argparse.Namespace) -> int:
    """The job; its exit code."""
    return decode("lrd generate", lambda: settings_from(args), log_format=args.log_format)


def decode(
    job: str,
    settings: Callable[[], RunConfig],
    *,
    retry_failed: bool = False,
    log_format: str | None = None,
) -> int:
    """Decode what is owed with a display and handling of signals; the exit code.

    job: how lines on stderr begin. settings: makes the run's; its ValueError is told in one line.
    log_format: as `jobs.logs.set_up`.
    """

    def work() -> int:
        config = settings()
        with Display() as show:
            began = time.monotonic()
            summary = generate(
                config, show, lambda driver: handle_signals(job, driver), retry_failed=retry_failed
            )
        seconds = time.monotonic() - began
        record("run finished", **asdict(summary), seconds=seconds, output=config.output)
        if not logs.is_json():
            print(describe(summary, config, seconds))
        return FAILED_ROWS if summary.num_failed else OK

    return ended(job, work, log_format)


def ended(job: str, work: Callable[[], int], log_format: str | None = None) -> int:
    """The exit code of a job that decodes; why it ended early is told in one line.

    log_format: as `jobs.logs.set_up`.
    """
    try:
        logs.set_up(log_format)
        return work()
    except ValidationError as error:
        logs.tell(f"{job}: {one_line(error)}")
        return BAD_SETTINGS
    except ValueError as error:
        logs.tell(f"{job}: {error}")
        return BAD_SETTINGS
    except (RunStoppedError, KeyboardInterrupt) as error:
        reason = str(error) or "interrupted"
        logs.tell(f"{job}: {reason}; finished rows are safe, the same command continues")
    except RayError as error:
        reason = str(error).strip().rpartition("\n")[2] or type(error).__name__
        logs.tell(
            f"{job}: Ray failed: {reason}; finished rows are safe, the same command continues"
        )
    except OSError as error:
        logs.tell(
            f"{job}: storage failed: {error}; what was written before is safe, the same command "
            "continues"
        )
    return INTERRUPTED


class Stoppable(Protocol):
    """What ends early and keeps what is finished, as a driver does."""

    def stop(self) -> None: ...


def handle_signals(job: str, driver: Stoppable) -> None:
    """The first SIGINT or SIGTERM stops feeding and keeps what is finished; the second leaves."""
    stopped = False

    def stop(signum: int, frame: object) -> None:
        nonlocal stopped
        if stopped:
            _say(f"{job}: left at once; rows since the last flush are decoded again")
            _leave()
        stopped = True
        _say(f"{job}: keeping what is finished; once more leaves at once")
        driver.stop()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)


def _leave() -> NoReturn:
    """End this process and those it started: a local Ray would end too, but after a minute."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    os._exit(INTERRUPTED)


def _say(line: str) -> None:
    """A line on stderr from within a signal handler, where a buffered stream may be half way
    through another; a terminal gets back the cursor that a bar has hidden."""
    show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
    before = "" if logs.is_json() else f"{show_cursor}\r"
    os.write(2, f"{before}{logs.as_line(line)}\n".encode())


def describe(summary: Summary, config: RunConfig, seconds: float) -> str:
    """The closing lines of a run."""
    num_ok = summary.num_rows - summary.num_failed
    lines = [f"{summary.num_rows} rows, {summary.num_failed} failed, {seconds:.1f} s"]
    if num_ok:
        stops = ", ".join(f"{reason} {n}" for reason, n in summary.stop_reasons.items())
        lines += [
            f"forwards a row: {summary.num_forwards / num_ok:.1f} mean; "
            f"effective tokens a row: {summary.num_output_tokens / num_ok:.1f} mean",
            f"stops: {stops}",
        ]
    if summary.num_unsure_stops:
        lines.append(
            f"warning: {summary.num_unsure_stops} early stops committed positions that were "
            "still unsure; set --stop-max-entropy, or lower --tau-decode"
        )
    lines += [f"  {n} x {reason}" for reason, n in list(summary.errors.items())[:5]]
    lines.append(f"results: {uris.child(config.output, 'data')}")
    return "\n".join(lines)


class Display:
    """Shows a run's progress: a bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bar: Progress | None = None
        if console.is_terminal and not logs.is_json():
            self._bar = Progress(
                TextColumn("rows"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                console=console,
            )
        self._task: Any = None
        self._last = time.monotonic()

    def __enter__(self) -> Any:
        if self._bar is not None:
            self._bar.start()
        return self.show

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, progress: RunProgress) -> None:
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task("", total=progress.num_rows, rate="")
            self._bar.update(self._task, completed=progress.num_done, rate=rates(progress))
        elif time.monotonic() - self._last >= LINE_SECONDS:
            self._last = time.monotonic()
            record("progress", **progress.to_json())
            if not logs.is_json():
                logs.tell(f"{progress.num_done}/{progress.num_rows} rows, {rates(progress)}")


def rates(progress: RunProgress) -> str:
    """Rows a second, mean forwards a row, failed rows and the time left."""
    done_now = progress.num_done - progress.num_done_before
    if not done_now or not progress.seconds:
        return "starting"
    decoded = max(1, done_now - progress.num_failed)
    parts = [
        f"{done_now / progress.seconds:.1f} rows/s",
        f"{progress.num_forwards / decoded:.1f} forwards/row",
    ]
    if progress.seconds_left is not None:
        parts.append(f"{progress.seconds_left:.0f} s left")
    if progress.num_failed:
        parts.append(f"{progress.num_failed} failed")
    return ", ".join(parts)


def main() -> None:
    """`python -m jobs.generate`."""
    parser = argparse.ArgumentParser(prog="lrd generate", description="Decode prompt shards.")
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))


if __name__ == "__main__":
    main()
