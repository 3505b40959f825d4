"""What all commands share: exit codes, output streams, log format, progress, signals, last lines.

    lrd generate … --log-format json        # or LRD_LOG_FORMAT=json in the environment

As JSON every line on stderr is one object with time (UTC), level and event, then that event's
facts: those of the run's events.jsonl, ids of finished rows, progress, the closing figures. What
libraries and the interpreter write to stderr becomes events named `message`.

What is printed never changes what a command has done nor its exit code: a stream that is closed,
full or has lost its reader drops the text, and a character that the stream's encoding lacks is
written as a backslash escape.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

if TYPE_CHECKING:
    from types import TracebackType

    from jobs.screen import Screen
    from pipeline.config import RunConfig
    from pipeline.observe.eta import Progress
    from pipeline.output.statistics import Summary

OK, WRONG, BAD_SETTINGS, FAILED_ROWS, INTERRUPTED = 0, 1, 2, 3, 75
"""Exit codes; README.md has their meaning. WRONG: `lrd verify` has findings."""
CONTINUES = "finished rows are safe, the same command continues"
VARIABLE = "LRD_LOG_FORMAT"
FORMATS = ("text", "json")
LOG = logging.getLogger("lrd")
"""The events of a run (`pipeline/observe/events.py`)."""
WARNINGS = logging.getLogger("py.warnings")
LINE_SECONDS = 5.0
"""Seconds between two lines of progress where there is no terminal, and before the first one."""
ERRORS_SHOWN = 5
screens: list[Screen | None] = []
"""Frames that terminals show now; what is printed goes above the last one."""

Run = Callable[[argparse.Namespace], int]


# Streams.


class _Descriptor(io.FileIO):
    """An open file descriptor; text that cannot be written to it is dropped."""

    lost = False
    """Whether text was dropped."""

    def write(self, data: Any) -> int:
        try:
            while (written := super().write(data)) is None:
                select.select([], [self], [])  # It does not block, and is full for the moment.
        except OSError:
            self.lost = True
            return len(data)
        return written


class Stream(io.TextIOWrapper):
    """Standard output or error of this process."""

    def __init__(self, descriptor: int, encoding: str) -> None:
        self.descriptor = _Descriptor(descriptor, "w", closefd=False)
        super().__init__(
            io.BufferedWriter(self.descriptor),
            encoding=encoding,
            errors="backslashreplace",
            line_buffering=descriptor == 2 or self.descriptor.isatty(),
        )
        self.as_json = False
        self._is_terminal = self.descriptor.isatty()
        self._rest = ""
        self._lock = threading.RLock()

    def write(self, text: str) -> int:
        """As JSON, whole lines become one object each and the rest waits for its line's end."""
        if not self.as_json:
            return self._print(text)
        with self._lock:
            *lines, self._rest = re.split(r"[\r\n]", self._rest + text)
            for line in filter(str.strip, lines):
                self.write_line(as_line(line))
        return len(text)

    def write_line(self, line: str) -> None:
        """A line as it is, whatever the format."""
        self._print(line + "\n")

    def _print(self, text: str) -> int:
        screen = screens[-1] if screens and self._is_terminal else None
        if screen is None:
            return super().write(text)
        with screen.above(text):
            return super().write(text)


def take_streams() -> None:
    """Replace this process's stdout and stderr by streams that never fail."""
    # A descriptor that is closed would be given to the next file that is opened, and what
    # libraries and child processes print would end up in it.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    columns = os.environ.get("COLUMNS", "1")
    if not columns.isdecimal() or int(columns) == 0:
        del os.environ["COLUMNS"]  # Rich would draw nothing.
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__"):  # Else a test has put its own there.
            if stream is not None:
                with suppress(OSError):
                    stream.flush()
            setattr(sys, name, Stream(number, getattr(stream, "encoding", None) or "utf-8"))


def reader_is_gone() -> bool:
    """Whether nobody reads stdout any more."""
    return isinstance(sys.stdout, Stream) and sys.stdout.descriptor.lost


def flush() -> None:
    """Write out what is buffered; with streams of this module that cannot fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, Stream) and stream.as_json:
            stream.write("\n")
        stream.flush()


# Lines on stderr.


def add_log_format(parser: argparse.ArgumentParser) -> None:
    """The flag that every command has."""
    parser.add_argument(
        "--log-format",
        type=str.lower,
        choices=FORMATS,
        help=f"format of the lines on stderr [${VARIABLE}, else text]",
    )


def add_price(parser: argparse.ArgumentParser) -> None:
    """The flag for the price by which costs are counted."""
    parser.add_argument(
        "--price-per-gpu-hour", type=float, metavar="X", help="also say what rows cost"
    )


def set_log_format(log_format: str | None) -> None:
    """Write lines on stderr as text or JSON from here on. None: as the environment has it.

    Raises ValueError for an unknown format.
    """
    log_format = (log_format or os.environ.get(VARIABLE) or "text").lower()
    if log_format not in FORMATS:
        raise ValueError(f"{VARIABLE} is {log_format!r}; expected {' or '.join(FORMATS)}")
    as_json = log_format == "json"
    for logger in (LOG, WARNINGS):
        logger.handlers.clear()
        logger.propagate = not as_json
        if as_json:
            logger.addHandler(_JsonHandler())
    LOG.setLevel(logging.INFO if as_json else logging.NOTSET)
    logging.captureWarnings(as_json)
    sys.excepthook = _log_exception if as_json else sys.__excepthook__
    if isinstance(sys.stderr, Stream):
        sys.stderr.as_json = as_json


def is_json() -> bool:
    """Whether lines on stderr are JSON now."""
    return bool(LOG.handlers)


def tell(line: str) -> None:
    """Write a line to stderr, in the format that is set."""
    _write_line(as_line(line))


def log_event(at: datetime, event: str, facts: dict[str, Any]) -> None:
    """Write an event of a time to stderr; lines are JSON."""
    _write_line(_json(at, "info", event, facts))


def encoding_of(descriptor: int) -> str:
    """The encoding of stdout or stderr."""
    return getattr(sys.stdout if descriptor == 1 else sys.stderr, "encoding", None) or "utf-8"


def as_line(text: str) -> str:
    """A text as a line of the format that is set."""
    return _json(datetime.now(UTC), "info", "message", {"text": text}) if is_json() else text


def _write_line(line: str) -> None:
    if isinstance(sys.stderr, Stream):
        sys.stderr.write_line(line)
    else:
        print(line, file=sys.stderr, flush=True)


class _JsonHandler(logging.Handler):
    """Writes a record as one line of JSON."""

    def emit(self, record: logging.LogRecord) -> None:
        at = datetime.fromtimestamp(record.created, UTC)
        facts = dict(getattr(record, "facts", {}))
        event = record.getMessage()
        if record.name == WARNINGS.name:
            event, facts = "warning", {"text": event.strip()}
        if record.exc_info:
            facts["traceback"] = logging.Formatter().formatException(record.exc_info)
        _write_line(_json(at, record.levelname.lower(), event, facts))


def _json(at: datetime, level: str, event: str, facts: dict[str, Any]) -> str:
    line = {"time": at.isoformat(timespec="milliseconds"), "level": level, "event": event}
    return json.dumps({**line, **facts}, default=str)


def _log_exception(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    LOG.critical("unexpected error", exc_info=(kind, error, traceback))


# How commands end.


class Parser(argparse.ArgumentParser):
    """Refuses a wrong call in one line, in the format that is set."""

    def error(self, message: str) -> NoReturn:
        tell(f"{self.prog}: {message}; see {self.prog} --help")
        sys.exit(BAD_SETTINGS)


def command(
    job: str,
    *,
    storage: tuple[int, str] = (BAD_SETTINGS, "{}"),
    interrupt: tuple[int, str | None] = (INTERRUPTED, "interrupted"),
) -> Callable[[Run], Run]:
    """Decorates a command's `run`: an error that the user can mend is one line and an exit code.

    job: how the line begins. storage: exit code and text for an OSError, which stands for {}.
    interrupt: exit code and text for Ctrl-C; None: no line.
    """

    def decorate(run: Run) -> Run:
        @wraps(run)
        def ended(args: argparse.Namespace) -> int:
            try:
                set_log_format(getattr(args, "log_format", None))
                return run(args)
            except UnicodeEncodeError as error:
                return refuse(job, not_a_name(error.object))
            except ValueError as error:
                return refuse(job, str(error))
            except OSError as error:
                code, text = storage
                return refuse(job, text.format(error), code)
            except KeyboardInterrupt:
                code, line = interrupt
                return refuse(job, line, code) if line else code
            except Exception as error:
                if not isinstance(error, _run_stopped()):
                    raise
                return refuse(job, f"{error}; {CONTINUES}", INTERRUPTED)

        return ended

    return decorate


def decoding_command(job: str) -> Callable[[Run], Run]:
    """As `command`, for one that decodes: what is interrupted can be continued."""
    failed = "storage failed: {}; what was written before is safe, the same command continues"
    return command(
        job,
        storage=(INTERRUPTED, failed),
        interrupt=(INTERRUPTED, f"interrupted; {CONTINUES}"),
    )


def refuse(job: str, reason: str, code: int = BAD_SETTINGS) -> int:
    """Say in one line why a command ended; its exit code."""
    tell(f"{job}: {' '.join(reason.splitlines())}")
    return code


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean --gen-length?)` where a known name is spelled much like the word."""
    nearest = get_close_matches(word, sorted(known), n=1, cutoff=0.75)
    return f" (did you mean {nearest[0]}?)" if nearest else ""


def not_a_name(path: str) -> str:
    """Why a path with undecodable bytes is refused: storage names files in UTF-8."""
    encoding = sys.getfilesystemencoding()
    fix = "rename it" if encoding == "utf-8" else "set PYTHONUTF8=1, or a locale of UTF-8"
    return f"{os.fsencode(path)!r}: is not a name in {encoding}; {fix}"


def _run_stopped() -> type[Exception]:
    """The error of a run that was stopped, imported only once something was raised."""
    from pipeline.replicas.deaths import RunStoppedError

    return RunStoppedError


class Stoppable(Protocol):
    """What can end early and keep what is finished, such as a driver."""

    def stop(self) -> None: ...


def handle_signals(job: str, driver: Stoppable) -> None:
    """The first SIGINT or SIGTERM stops the driver, which stores finished rows; the second one
    ends the process at once."""
    stopped = False

    def stop(signum: int, frame: object) -> None:
        nonlocal stopped
        if stopped:
            _tell_in_handler(f"{job}: ended at once; rows since the last flush are decoded again")
            _exit_at_once()
        stopped = True
        _tell_in_handler(f"{job}: storing finished rows; a second signal ends it at once")
        driver.stop()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)


def default_signals() -> None:
    """Between runs nothing has to be stored: a signal raises KeyboardInterrupt."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _exit_at_once() -> NoReturn:
    """End this process and those it started: a local Ray would end too, but after a minute."""
    import psutil

    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    os._exit(INTERRUPTED)


def _tell_in_handler(line: str) -> None:
    """A line on stderr from within a signal handler, where a buffered stream may be half way
    through another."""
    if screens and screens[-1] is not None:
        screens[-1].say_at_once(line)
        return
    before = "" if is_json() else "\r"
    with suppress(OSError):
        os.write(2, f"{before}{as_line(line)}\n".encode(errors="backslashreplace"))


# A run and its end.


def decode(job: str, config: RunConfig, *, retry_failed: bool = False) -> int:
    """Run `config` with a display, signal handlers and closing lines; the exit code.

    Raises as `pipeline.run.generate`.
    """
    from jobs.dashboard import Display
    from pipeline.observe.stages import stage

    with stage("loading torch and Ray"):
        from pipeline.run import generate

    with Display(job, f"{config.model} → {config.output}") as display:
        began = time.monotonic()

        def handle(driver: Stoppable) -> None:
            handle_signals(job, driver)
            display.accepted()

        summary = generate(config, display.show, handle, retry_failed=retry_failed)
    seconds = time.monotonic() - began
    if is_json():
        facts = {**asdict(summary), "seconds": seconds, "output": config.output}
        LOG.info("run finished", extra={"facts": facts})
    else:
        print("\n".join(closing_lines(summary, config.output, seconds, display.progress)))
    return FAILED_ROWS if summary.num_failed else OK


def closing_lines(
    summary: Summary, output: str, seconds: float, progress: Progress | None = None
) -> list[str]:
    """What a run has done, for people. progress: the last one of its driver."""
    from jobs.dashboard import speed
    from pipeline.storage import uris

    num_ok = summary.num_rows - summary.num_failed
    lines = [f"{summary.num_rows} rows, {summary.num_failed} failed, {seconds:.1f} s"]
    if num_ok:
        positions = summary.num_positions
        lines += [
            means_per_row(
                summary.num_forwards / num_ok,
                None if positions is None else positions / num_ok,
                summary.num_output_tokens / num_ok,
            ),
            f"stop reasons: {counts(summary.stop_reasons)}",
        ]
    if progress is not None and (parts := speed(progress)):
        lines.append(f"speed: {', '.join(parts)}")
    if summary.canvases_per_forward is not None:
        lines.append(f"canvases computed per forward: {summary.canvases_per_forward:.2f}")
    if summary.num_unsure_stops:
        lines.append(
            f"warning: {summary.num_unsure_stops} early stops committed positions that were "
            "still uncertain; set --stop-max-entropy, or lower --tau-decode"
        )
    lines += [f"  {n} x {reason}" for reason, n in list(summary.errors.items())[:ERRORS_SHOWN]]
    return [*lines, f"results: {uris.child(output, 'data')}"]


def means_per_row(forwards: float, positions: float | None, tokens: float) -> str:
    """What a row took on average, in a line that 80 columns hold. positions: None: not kept."""
    computed = "" if positions is None else f"{positions:,.0f} positions computed, "
    return f"per row, mean: {forwards:.1f} forwards, {computed}{tokens:.1f} effective tokens"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 120:
        return f"{minutes} min"
    hours = round(minutes / 60)
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"


def counts(counted: dict[str, int]) -> str:
    """`complete 5, converged 2`."""
    return ", ".join(f"{name} {count}" for name, count in counted.items())
