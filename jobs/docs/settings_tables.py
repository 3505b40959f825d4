"""Tables that are made from the code for the site: presets, settings, commands."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from jobs.cli import COMMANDS, parser
from lrd.config import PRESETS, DecodingConfig
from pipeline.config import RunConfig
from pipeline.markdown import table

WIDTH = 88
"""Columns of a command's help."""
INTRODUCTION = "Made from `{}`, as it is in this version."


def presets() -> str:
    """Every setting in which presets differ from each other, a column each."""
    made = {name: DecodingConfig.preset(name).model_dump() for name in PRESETS}
    names = [
        name
        for name in DecodingConfig.model_fields
        if len({str(settings[name]) for settings in made.values()}) > 1
    ]
    rows = [
        [f"`{name}`", *(_value(settings[name]) for settings in made.values())] for name in names
    ]
    return _chapter(
        "What the presets set", "lrd/config.py", ["setting", *(f"`{name}`" for name in made)], rows
    )


def decoding_settings() -> str:
    """`[decoding]` of a run file."""
    return _settings(
        "Every decoding setting",
        "lrd/config.py",
        DecodingConfig,
        "Below `[decoding]` in a run file. The defaults are those without a preset; `lrd generate` "
        "begins with the preset `fast`.",
    )


def run_settings() -> str:
    """The settings of a run but for those of the decoding."""
    return _settings(
        "Every setting of a run",
        "pipeline/config.py",
        RunConfig,
        "At the top of a run file, or as flags of `lrd generate`.",
    )


def commands() -> str:
    """What each command does, and its help."""
    listed = "\n".join(f"* [`lrd {name}`](#lrd-{name}): {what}" for name, what in COMMANDS.items())
    helps = "\n\n".join(f"## lrd {name}\n\n```text\n{_help(name)}\n```" for name in COMMANDS)
    return f"{INTRODUCTION.format('lrd COMMAND --help')}\n\n{listed}\n\n{helps}\n"


TABLES: dict[str, Callable[[], str]] = {
    "presets": presets,
    "decoding-settings": decoding_settings,
    "run-settings": run_settings,
    "commands": commands,
}


def _help(name: str) -> str:
    """What `lrd NAME --help` prints."""
    kinds = (action for action in parser([name])._actions)
    (commands,) = (action for action in kinds if isinstance(action, argparse._SubParsersAction))
    command: Any = commands.choices[name]
    command.formatter_class = partial(command.formatter_class, width=WIDTH)
    command.color = False  # From Python 3.14 on it is on where a terminal is.
    return str(command.format_help()).strip()


def _settings(title: str, file: str, model: type[BaseModel], introduction: str) -> str:
    rows = [
        [f"`{name}`", _default(field), field.description or ""]
        for name, field in model.model_fields.items()
        if name != "decoding"
    ]
    return _chapter(title, file, ["setting", "default", "what it is"], rows, introduction)


def _chapter(
    title: str, file: str, header: list[str], rows: list[list[str]], introduction: str = ""
) -> str:
    text = f"{introduction} {INTRODUCTION.format(file)}".strip()
    return f"## {title}\n\n{text}\n\n{table(header, rows)}\n"


def _default(field: FieldInfo) -> str:
    return "" if field.is_required() else _value(field.get_default(call_default_factory=True))


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "`true`" if value else "`false`"
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value)) or "none"
    return f"`{value}`"
