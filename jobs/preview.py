"""Watch a few prompts being decoded, in this process and without Ray; writes nothing.

    lrd preview --input PROMPTS [--config RUN.toml] [settings] [--rows 3]
    lrd preview --text "Tom has 3 apples and buys 2. How many?" [settings]
    lrd preview --chat [settings]

The settings are those of `lrd generate`, and what is shown is what that writes for these rows. The
last line is its command.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jobs import output
from jobs.flags import add_run_flags, given, read_run_file, run_config
from pipeline.config import RunConfig

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.text import Text

    from pipeline.preview.canvas_screen import Screen
    from pipeline.preview.chosen_rows import ChosenRow
    from pipeline.preview.frame import Frame
    from pipeline.preview.in_process import InProcess

JOB = "lrd preview"
NUM_ROWS = 3
PASS_SECONDS = 0.08
"""Each pass of a small model is shown so long."""
END_PASSES = 8
"""The last frame is shown for as long as so many passes."""
REFRESHES = 8
"""A second, while a pass takes long."""
PROMPT_WIDTH = 100
"""Columns of a prompt where there is no terminal."""
NO_INPUT = "PROMPTS"
"""Stands for the input in the closing command where none is named."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `lrd generate`, and what to show."""
    add_run_flags(parser)
    shown = parser.add_argument_group("preview")
    shown.add_argument("--rows", type=int, metavar="N", help=f"prompts to decode [{NUM_ROWS}]")
    shown.add_argument("--text", metavar="PROMPT", help="decode this prompt; needs no --input")
    shown.add_argument(
        "--chat",
        action="store_true",
        help="read turns from the terminal, each answer becomes the assistant's turn; an empty "
        "line ends it",
    )
    shown.add_argument(
        "--no-live", action="store_true", help="print answers and figures alone, on a terminal too"
    )
    shown.add_argument(
        "--pass-seconds",
        type=float,
        default=PASS_SECONDS,
        metavar="S",
        help=f"show each pass for so long at least, on a terminal [{PASS_SECONDS}]",
    )


@output.command(JOB)
def run(args: argparse.Namespace) -> int:
    """Decode and show; the exit code: that of a run of these rows."""
    _check(args)
    config = _config(args)
    output.default_signals()  # A SIGTERM has to leave the terminal as it was.
    view = View(live=not args.no_live, pass_seconds=args.pass_seconds)
    view.note(f"{JOB}: reading prompts, loading {config.model}")
    from pipeline.preflight import refuse_secrets

    refuse_secrets(config)
    is_given = args.text is not None or args.chat
    all_ok = _show_given(config, args, view) if is_given else _show_rows(config, args, view)
    print(command(args))
    return output.OK if all_ok else output.FAILED_ROWS


def _check(args: argparse.Namespace) -> None:
    if args.rows is not None and args.rows < 1:
        raise ValueError(f"--rows is {args.rows}; at least 1 is needed")
    if args.rows is not None and (args.chat or args.text is not None):
        raise ValueError("--rows counts prompts of the input; drop it, or --text and --chat")
    if args.text is not None and not args.text.strip():
        raise ValueError("--text is empty; write a prompt behind it")
    if not 0 <= args.pass_seconds < float("inf"):
        raise ValueError(f"--pass-seconds is {args.pass_seconds}; 0 or more seconds are needed")


def _config(args: argparse.Namespace) -> RunConfig:
    """The run's settings. Places that a preview does not need and nobody has named get a name in
    `args`, which the closing command then has."""
    named = given(args, RunConfig)
    if args.config:
        named = {**read_run_file(args.config), **named}
    if "output" not in named:
        setattr(args, "RunConfig.output", _new_folder())
    if "input" not in named and (args.chat or args.text is not None):
        setattr(args, "RunConfig.input", NO_INPUT)
    return run_config(args)


def _new_folder() -> str:
    """`out`, or the first of `out-2`, `out-3` … that does not exist."""
    names = ("out", *(f"out-{n}" for n in range(2, 1000)))
    return next((name for name in names if not os.path.lexists(name)), "NEW_FOLDER")


def _show_rows(config: RunConfig, args: argparse.Namespace, view: View) -> bool:
    """Decode the first rows of the input; whether all of them are ok."""
    from pipeline.preflight import check
    from pipeline.preview.chosen_rows import choose_rows, first_shards

    num_rows = NUM_ROWS if args.rows is None else args.rows
    checked = check(config, first_shards(config, num_rows))
    for line in checked.notes:
        output.tell(line)
    chosen = choose_rows(config, checked, num_rows)
    if not chosen:
        print("the input has no rows")
        return True
    replica = _loaded(config, checked.form.schema)
    titles = [f"row {n} of {len(chosen)}: {row.row_id}" for n, row in enumerate(chosen, 1)]
    ended = [view.row(replica, *pair) for pair in zip(chosen, titles, strict=True)]
    return all(row["status"] == "ok" for row in ended)


def _show_given(config: RunConfig, args: argparse.Namespace, view: View) -> bool:
    """Decode `--text`, with `--chat` turn after turn; whether all could be decoded."""
    from pipeline.preflight import check
    from pipeline.preview.chosen_rows import choose_rows, given_prompt

    column = config.prompt_column
    # Columns with rows' own settings and templates are the input's.
    own = {
        "row_settings": (),
        "template_column": None,
        "input": "--chat" if args.chat else "--text",
    }
    config = config.model_copy(update=own)
    turns: list[dict[str, Any]] = []
    text = args.text
    first = [{"role": "user", "content": text or "?"}] if args.chat else text
    checked = check(config, given_prompt(first, column))
    replica = _loaded(config, checked.form.schema)
    while True:
        if text is None and not (text := view.ask()):
            return True
        turns.append({"role": "user", "content": text})
        prompt = given_prompt(turns if args.chat else text, column)
        (chosen,) = choose_rows(config, replace(checked, inputs=prompt), 1)
        title = f"turn {len(turns) // 2 + 1}" if args.chat else "prompt"
        row = view.row(replica, chosen, title)
        if row["status"] != "ok" or not args.chat:
            return bool(row["status"] == "ok")
        turns.append({"role": "assistant", "content": row["output_text"]})
        text = None


def _loaded(config: RunConfig, schema: Any) -> InProcess:
    from pipeline.preview.in_process import InProcess, settings_here

    replica = InProcess(settings_here(config, schema))
    replica.load()
    return replica


class View:
    """Shows rows on stdout: each canvas live where that is a terminal, then answer and figures."""

    def __init__(self, *, live: bool, pass_seconds: float) -> None:
        from rich.console import Console

        self._console = Console(file=sys.stdout, highlight=False)
        self._pass_seconds = pass_seconds
        # With FORCE_COLOR rich takes any stream for a terminal.
        is_terminal = sys.stdout.isatty() and self._console.is_terminal
        self._width = self._console.width - 1 if is_terminal else PROMPT_WIDTH
        dumb = self._console.is_dumb_terminal or output.is_json()
        self._live = live and is_terminal and not dumb

    def note(self, line: str) -> None:
        """Tell somebody who waits at a terminal what is going on."""
        if sys.stderr.isatty():
            output.tell(line)

    def ask(self) -> str | None:
        """The next turn; None where a line is empty, and at the end."""
        if sys.stdin is None:
            return None
        at_terminal = sys.stdin.isatty()
        if at_terminal:
            print("you> ", end="", flush=True)
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError as error:
            encoding = sys.stdin.encoding
            raise ValueError(f"stdin is not text in {encoding}; write it in {encoding}") from error
        if at_terminal and not line.endswith("\n"):
            print()
        return line.strip() or None

    def row(self, replica: InProcess, row: ChosenRow, title: str) -> dict[str, Any]:
        """Decode a row and show it; what a run writes for it, or its status and error alone."""
        from pipeline.preview.canvas_screen import Screen
        from pipeline.preview.row_lines import ended_lines, prompt_line, refused_lines

        screen = Screen(title, prompt_line(row.value), self._console.encoding)
        if row.prompt is None:
            self._print(refused_lines(screen, row.error or "", self._width))
            return {"status": "failed", "error": row.error}
        with self._shown(screen) as show:
            decoded = replica.decode(row.prompt, show)
        self._print(ended_lines(screen, decoded, self._width))
        return decoded.row

    def _print(self, lines: Sequence[Text]) -> None:
        for line in lines:
            self._console.print(line, soft_wrap=True)
        self._console.print()
        output.flush()

    @contextmanager
    def _shown(self, screen: Screen) -> Iterator[Callable[[Frame], None]]:
        """Where frames go: over each other on a screen of their own, or nowhere."""
        if not self._live:
            yield lambda frame: None
            return
        from rich.live import Live

        picture = Picture(screen)
        with Live(
            picture,
            console=self._console,
            screen=True,
            refresh_per_second=REFRESHES,
            redirect_stdout=False,
            redirect_stderr=False,
        ) as display:

            def show(frame: Frame) -> None:
                picture.take(frame)
                display.refresh()
                time.sleep(self._pass_seconds * (1 if frame.stop is None else END_PASSES))
                picture.take(frame)

            yield show


class Picture:
    """The screen of a row in the terminal's size of the moment, for rich."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._frame: Frame | None = None
        self._since = time.monotonic()

    def take(self, frame: Frame) -> None:
        """Show this frame from here on."""
        self._frame, self._since = frame, time.monotonic()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # The last column stays free: terminals differ in when they wrap a line that is full.
        size = console.size
        waited = time.monotonic() - self._since
        yield from self._screen.lines(self._frame, size.width - 1, size.height, waited)


def command(args: argparse.Namespace) -> str:
    """The `lrd generate` command with the same settings, quoted for a shell."""
    parser = argparse.ArgumentParser(add_help=False)
    add_run_flags(parser)
    words = ["lrd", "generate"]
    for action in parser._actions:
        value = getattr(args, action.dest, None)
        if value is None:
            continue
        flag, *others = action.option_strings
        if isinstance(value, bool):
            words.append(flag if value else others[0])
            continue
        for one in value if isinstance(value, list) else [value]:
            # A value that begins with a dash would be taken for a flag.
            words += [f"{flag}={one}"] if str(one).startswith("-") else [flag, str(one)]
    return " ".join(map(quoted, words))


def quoted(word: str) -> str:
    """The word for a POSIX shell; with control characters, as bash and zsh write them."""
    if word.isprintable():
        return shlex.quote(word)
    escaped = word.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + "".join(c if c.isprintable() else _escape(c) for c in escaped) + "'"


def _escape(char: str) -> str:
    return f"\\U{ord(char):08x}"
