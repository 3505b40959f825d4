"""Command-line flags read off pydantic models, so that no setting is written down twice.

Knows nothing of what the settings mean.
"""

from __future__ import annotations

import argparse
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined


def add_model_flags(
    parser: Any, model: type[BaseModel], exclude: set[str] | frozenset[str] = frozenset()
) -> None:
    """One `--flag` for each field of `model`; a field that is not given stays out of `given`."""
    for name, field in model.model_fields.items():
        if name in exclude:
            continue
        kinds = _kinds(field.annotation)
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "dest": f"{model.__name__}.{name}"}
        help_text = (field.description or "").replace("%", "%%")
        if field.default not in (None, PydanticUndefined) and field.default_factory is None:
            help_text += f" [{field.default}]"
        if bool in kinds:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["metavar"] = "|".join(_words(field.annotation)) or name.upper()
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, help=help_text, **options)


def given(args: argparse.Namespace, model: type[BaseModel]) -> dict[str, Any]:
    """The fields of `model` that were given, `none` as None; pydantic parses the rest."""
    prefix = f"{model.__name__}."
    found = {
        key.removeprefix(prefix): value
        for key, value in vars(args).items()
        if key.startswith(prefix)
    }
    return {
        name: _parse(value, _kinds(model.model_fields[name].annotation))
        for name, value in found.items()
    }


def one_line(error: ValidationError) -> str:
    """Pydantic's findings as one line that names each setting."""
    parts = []
    for finding in error.errors():
        where = ".".join(map(str, finding["loc"][:1]))
        message = finding["msg"].removeprefix("Value error, ")
        if finding["type"] == "extra_forbidden":
            message = "no such setting; see lrd generate --help"
        elif finding["type"] == "missing":
            message = f"is needed; give --{where.replace('_', '-')}"
        elif where:
            message = f"{message}, not {finding['input']!r}"
        parts.append(f"{where}: {message}" if where else message)
    return "; ".join(dict.fromkeys(parts))


def _parse(value: Any, kinds: set[Any]) -> Any:
    if value == "none" and type(None) in kinds:
        return None
    # `initial | auto | k`: a number is meant where one is written.
    if isinstance(value, str) and int in kinds and value.lstrip("-").isdigit():
        return int(value)
    return value


def _kinds(annotation: Any) -> set[Any]:
    if get_origin(annotation) in (Union, UnionType):
        return {kind for part in get_args(annotation) for kind in _kinds(part)}
    return {annotation}


def _words(annotation: Any) -> list[str]:
    """The words that a Literal allows, in order."""
    if get_origin(annotation) is Literal:
        return [str(word) for word in get_args(annotation)]
    if get_origin(annotation) in (Union, UnionType):
        return [word for part in get_args(annotation) for word in _words(part)]
    return []
