"""The settings of a run from the command line: flags made from the pydantic models, so that no
setting is written down twice, and the TOML file of `--config`.
"""

from __future__ import annotations

import argparse
import codecs
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from jobs.output import did_you_mean
from lrd.config import ALL_PRESETS, DecodingConfig
from pipeline.config import FIELDS, RunConfig, shown

UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """`--config`, `--preset`, and a flag for every field of RunConfig and DecodingConfig."""
    parser.add_argument(
        "--config", metavar="RUN.toml", help="file of settings; those of [decoding] as a table"
    )
    parser.add_argument("--preset", choices=sorted(ALL_PRESETS), help="decoding preset [fast]")
    add_model_flags(parser, RunConfig, exclude={"decoding"})
    add_model_flags(parser.add_argument_group("decoding"), DecodingConfig)


def run_config(args: argparse.Namespace) -> RunConfig:
    """The settings of preset, file and flags; each overrides the one before.

    Raises ValueError for an unknown or impossible setting, and a file that cannot be read.
    """
    settings = read_run_file(args.config) if args.config else {}
    decoding = settings.pop("decoding", {})
    if args.config:
        _refuse_unknown(args.config, settings, decoding)
    preset = settings.pop("preset", "fast")
    if not isinstance(preset, str):
        raise ValueError(
            f"{args.config}: preset is {preset!r}; expected a name in quotes: "
            f"{', '.join(ALL_PRESETS)}"
        )
    with in_one_line():
        settings["decoding"] = DecodingConfig.preset(
            args.preset or preset, **{**decoding, **given(args, DecodingConfig)}
        )
        return RunConfig(**{**settings, **given(args, RunConfig)})


def read_run_file(path: str) -> dict[str, Any]:
    """The settings of a TOML file in UTF-8, with or without a byte-order mark.

    Raises ValueError that names the file where it cannot be read.
    """
    try:
        content = Path(path).read_bytes()
        if content.startswith(UTF_16):
            raise ValueError(f"{path}: is UTF-16; save it as UTF-8")
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}: line {line} is not UTF-8; save the file as UTF-8") from error
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from error


def _refuse_unknown(path: str, settings: dict[str, Any], decoding: Any) -> None:
    """ValueError where a run file has names that are not settings, or are of the other table."""
    if not isinstance(decoding, dict):
        raise ValueError(f"{path}: decoding is not a table; write its settings below [decoding]")
    of_run = {"preset", *FIELDS, *(RunConfig.model_fields.keys() - {"decoding"})}
    of_decoding = set(DecodingConfig.model_fields)
    found = [
        *_unknown(settings, of_run, of_decoding, "below [decoding]"),
        *_unknown(decoding, of_decoding, of_run, "above [decoding]"),
    ]
    if found:
        raise ValueError(f"{path}: {'; '.join(found)}; see lrd generate --help")


def _unknown(names: Iterable[str], known: set[str], others: set[str], place: str) -> Iterator[str]:
    """What is said of each name that is not known. others: names that belong to `place`."""
    for name in names:
        if name in others - known:
            yield f"{name}: no such setting here; write it {place}"
        elif name not in known:
            yield f"{name}: no such setting{did_you_mean(name, known)}"


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
        has_default = not field.is_required() and field.default_factory is None
        if has_default and field.default not in (None, ()):
            help_text += f" [{field.default}]"
        if bool in kinds:
            options["action"] = argparse.BooleanOptionalAction
        elif all(get_origin(kind) is tuple for kind in kinds - {type(None)}):
            options |= {"action": "append", "metavar": "TEXT"}
        else:
            options["metavar"] = "|".join(_words(field.annotation)) or shown(name).upper()
        parser.add_argument(flag_of(name), help=help_text, **options)


def flag_of(name: str) -> str:
    """The flag of a setting's field."""
    return "--" + shown(name).replace("_", "-")


def given(args: argparse.Namespace, model: type[BaseModel]) -> dict[str, Any]:
    """The fields of `model` that were given, `none` as None; pydantic parses the rest."""
    prefix = f"{model.__name__}."
    found = {
        key.removeprefix(prefix): value
        for key, value in vars(args).items()
        if key.startswith(prefix)
    }
    return {name: parsed(model, name, value) for name, value in found.items()}


def parsed(model: type[BaseModel], name: str, value: Any) -> Any:
    """A flag's value for a field of `model`: `none` as None where the field may be that, and a
    number where it is a word or a number."""
    return _parse(value, _kinds(model.model_fields[name].annotation))


@contextmanager
def in_one_line() -> Iterator[None]:
    """Pydantic's ValidationError as a ValueError of one line that names each setting."""
    try:
        yield
    except ValidationError as error:
        raise ValueError(one_line(error)) from error


def one_line(error: ValidationError) -> str:
    """Pydantic's findings as one line that names each setting."""
    parts = []
    for finding in error.errors():
        where = shown(".".join(map(str, finding["loc"][:1])))
        message = finding["msg"].removeprefix("Value error, ")
        if finding["type"] == "extra_forbidden":
            message = "no such setting; see lrd generate --help"
        elif finding["type"] == "missing":
            message = f"is needed; give {flag_of(where)}"
        elif finding["type"] == "string_unicode":
            message = f"{finding['input']!r} holds bytes that are not UTF-8; rename it"
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
