"""`lrd NAME`: finds a command by its name and runs it.

Only the module of the command that was named is imported, so that help and refusals come at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import import_module
from typing import Any

from jobs import live, output
from pipeline import faults
from pipeline.import_path import named_folders, safe_folders
from pipeline.observe.stages import stage

COMMANDS = {
    "generate": "decode prompt shards into a result dataset",
    "submit": "run generate as a job on a Ray cluster, and follow it",
    "preview": "watch a few prompts being decoded here, without Ray",
    "plan": "say what generate would do, without doing it",
    "status": "say where a run stands, from its files alone",
    "verify": "read a whole result dataset and name all that is wrong with it",
    "retry-failed": "decode a run's failed rows once more",
    "prepare": "make prompt shards from Parquet, JSONL, CSV or a hub dataset",
    "evaluate": "score a result dataset against its references",
    "select": "write the rows of a run that are worth keeping as a new dataset",
    "bench": "measure the throughput of a model and settings on this machine or cluster",
    "tune": "find a checkpoint's settings: sweep them over a sample of a task",
    "report": "write a report on a run: one HTML file, and figures for papers",
    "reproduce": "make the paper's tables and figures, decoded through the pipeline",
    "publish": "make a dataset in the hub's layout from a finished run",
    "models": "list the models that are known by name",
}
"""What each command does; `retry-failed` is the module `jobs.retry_failed`."""
AT_ONCE = {"models", "-h", "--help"}
"""Words of a command line that is answered before anything has to be shown."""


def main(*before: str) -> None:
    """The console script. before: words in front of the command line's own."""
    sys.path[:] = safe_folders(sys.path, named_folders())  # `python -m` puts the working one first.
    output.take_streams()
    code = run([*before, *sys.argv[1:]])
    output.flush()
    sys.exit(code)


def run(words: Sequence[str]) -> int:
    """Run `lrd WORDS`; its exit code. Raises SystemExit for --help and for a wrong call."""
    name = next((word for word in words if not word.startswith("-")), "")
    job = f"lrd {name}" if name in COMMANDS else "lrd"
    asked = argparse.Namespace(log_format=_asked_format(words))
    return output.command(job)(lambda _: _run(words))(asked)


def _run(words: Sequence[str]) -> int:
    for word in words:
        if word != word.encode(errors="replace").decode():  # Bytes that cannot be decoded.
            raise ValueError(output.not_a_name(word))
    name = next((word for word in words if not word.startswith("-")), "")
    if name and name not in COMMANDS:
        hint = output.did_you_mean(name, COMMANDS)
        raise ValueError(f"{name}: no such command{hint}; see lrd --help")
    with ExitStack() as shown:
        if name in COMMANDS and not AT_ONCE & set(words):
            shown.enter_context(live.shown(f"lrd {name}"))
        with stage("starting"):  # Imports may take longer than anyone waits without a sign.
            flags = parser(words)
            args, rest = flags.parse_known_args(words)
        if rest:
            hints = (
                output.did_you_mean(word.partition("=")[0], flags_of(flags, name)) for word in rest
            )
            hint = next(filter(None, hints), "")
            raise ValueError(
                f"unrecognized arguments: {' '.join(rest)}{hint}; see lrd {args.command} --help"
            )
        faults.wanted()  # A malformed LRD_FAULTS is refused before anything is done.
        code: int = args.run(args)
        return code


def parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of a command line, whose first word that is not a flag names the command."""
    made = output.Parser(
        prog="lrd", description="Latent Refinement Decoding as a batch-generation pipeline."
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    name = next((word for word in words if not word.startswith("-")), "")
    for known, what in COMMANDS.items():
        command = commands.add_parser(known, help=what, description=f"{what[0].upper()}{what[1:]}.")
        if known == name:
            module = module_of(name)
            module.add_arguments(command)
            output.add_log_format(command)
            command.set_defaults(run=module.run)
    return made


def flags_of(made: argparse.ArgumentParser, name: str) -> set[str]:
    """All flags of the command `name` of that parser."""
    [commands] = (a for a in made._actions if isinstance(a, argparse._SubParsersAction))
    return set(commands.choices[name]._option_string_actions)


def module_of(name: str) -> Any:
    """The module of a command: `add_arguments(parser)` and `run(args) -> exit code`."""
    return import_module(f"jobs.{name.replace('-', '_')}")


def _asked_format(words: Sequence[str]) -> str | None:
    """What `--log-format` names, before the other words are read, so that what is wrong with them
    is said in that format; None where that is wrong itself."""
    asked = None
    for word, following in zip(words, [*words[1:], ""], strict=False):
        flag, equals, value = word.partition("=")
        if flag == "--log-format":
            asked = (value if equals else following).lower()
    return asked if asked in output.FORMATS else None


if __name__ == "__main__":
    main()
