"""A JSON Schema as a template: every answer parses, and validates against the schema.

What a schema fixes (braces, names, commas) is the scaffold's fixed text; what it leaves open are
holes whose tokens come from classes (`allowed_tokens`). A keyword whose keeping that cannot
guarantee is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jsonschema
from jsonschema.validators import validator_for
from referencing import Registry
from torch import Tensor

from lrd.allowed_tokens import TokenClasses
from lrd.choices import Choices
from lrd.models.protocol import DiffusionModel
from lrd.templates import Blank, Hole, Scaffold, TemplateReader

STRING_TOKENS = 16
"""Positions of a string, where neither x-tokens nor maxLength says it."""
INTEGER_TOKENS = 6
FRACTION_TOKENS = 2
"""Positions behind a number's point."""
MAX_TOKENS = 65_536
MAX_NUMBER_TOKENS = 100
"""Of at most three digits each: what they write is within the range of a float."""
MAX_VALUES = 10_000
"""Values of an answer, all levels together."""
MAX_RANGE = 1000
"""Between the bounds of an integer that is chosen from a list."""
MAX_WORDS = 300
"""Characters of a validator's message, which may repeat the whole answer."""

ANNOTATIONS = frozenset(
    {
        *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
        *("$comment", "$defs", "definitions"),
    }
)
DRAFTS = (
    *(jsonschema.Draft202012Validator, jsonschema.Draft201909Validator),
    *(jsonschema.Draft7Validator, jsonschema.Draft6Validator),
)
AT_ROOT = frozenset({"$schema", "$id"})
LOWER, UPPER = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
KEYWORDS: dict[str, frozenset[str]] = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
    "string": frozenset({"minLength", "maxLength", "x-tokens"}),
    "integer": frozenset({"minimum", "x-tokens"}),
    "number": frozenset({"minimum", "x-tokens"}),
    "boolean": frozenset(),
    "null": frozenset(),
}
"""What each type may say beside annotations. An integer within two bounds, an enum and a const may
say anything, as their alternatives are validated one by one."""

EXAMPLE = '{"type": "string"}'

Part = str | Blank


@dataclass(frozen=True, slots=True)
class JsonForm:
    """The canvas of answers to a schema, and the tokens that its positions may take."""

    scaffold: Scaffold
    classes: TokenClasses

    def allowed(self) -> Tensor:
        """bool [C, V]: which tokens each class of `scaffold.classes` may take."""
        return self.classes.table()


def json_form(
    schema: Any, model: DiffusionModel, gen_length: int, filler: str | None = None
) -> JsonForm:
    """The canvas of a schema, which is JSON as Python's json module reads it.

    filler: a string that is exactly this reads as empty, where it may be.
    Raises ValueError that names the schema's path for what is not a JSON Schema, and for what it
    asks that no canvas can guarantee; and where the canvas is longer than gen_length.
    """
    reader = TemplateReader(model, gen_length, filler=filler)
    writer = _Writer(schema, reader, TokenClasses(model))
    try:
        parts = list(writer.value(schema, "$", ()))
    except RecursionError as error:
        raise ValueError("the schema nests too deeply; flatten it") from error
    if all(isinstance(part, str) for part in parts):
        raise ValueError("$: the schema leaves nothing open; give it a property that varies")
    try:
        return JsonForm(reader.lay_out(parts), writer.classes)
    except ValueError as error:
        raise ValueError(f"$: {_of_schema(error)}") from error


class JsonChecker:
    """Parses and validates answers."""

    def __init__(self, schema: Any) -> None:
        """Raises ValueError for what is not a JSON Schema."""
        self._validator = validator_of(schema)

    def read(self, text: str) -> tuple[str | None, str | None]:
        """The answer as compact JSON, or why there is none."""
        try:
            value = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            return None, f"is not JSON: {_one_line(error)}"
        fault = jsonschema.exceptions.best_match(self._validator.iter_errors(value))
        if fault is not None:
            return None, f"{fault.json_path}: {_one_line(fault.message)}"
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")), None


def validator_of(schema: Any) -> Any:
    """The library's validator for a schema, of the draft that its $schema names.

    Raises ValueError that names the path where it is not a JSON Schema.
    """
    if not isinstance(schema, Mapping):
        raise ValueError(f"$: is {_kind(schema)}; expected an object that is a JSON Schema")
    try:
        json.dumps(schema, allow_nan=False, ensure_ascii=False).encode()
        validator = validator_for(schema, default=jsonschema.Draft202012Validator)
        validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ValueError(f"{error.json_path}: {_one_line(error.message)}") from error
    except UnicodeEncodeError as error:
        raise ValueError("$: holds half of a surrogate pair; write the whole character") from error
    except RecursionError as error:
        raise ValueError("the schema nests too deeply; flatten it") from error
    except ValueError as error:
        raise ValueError("$: holds NaN or Infinity, which JSON has not; take it out") from error
    if validator not in DRAFTS:
        raise ValueError("$.$schema: is a draft before 6; write the schema in draft 2020-12")
    # Without what jsonschema would fetch from the network.
    return validator(schema, registry=Registry())


class _Writer:
    """Writes the parts of one schema's answers."""

    def __init__(self, schema: Any, reader: TemplateReader, classes: TokenClasses) -> None:
        self._validator = validator_of(schema)
        self._root = schema
        self._reader, self.classes = reader, classes
        self._num_values = 0

    def value(self, schema: Any, path: str, refs: tuple[str, ...]) -> Iterator[Part]:
        """The parts of one value. refs: the definitions that led here."""
        self._num_values += 1
        if self._num_values > MAX_VALUES:
            raise ValueError(f"{path}: answers have over {MAX_VALUES:,} values; make it smaller")
        if not isinstance(schema, Mapping) or not schema:
            raise ValueError(f"{path}: allows any value; give it a type, as in {EXAMPLE}")
        if path != "$" and not AT_ROOT.isdisjoint(schema):
            raise ValueError(
                f"{path}: {_names(AT_ROOT & set(schema))} belongs to the root; drop it"
            )
        if "const" in schema or "enum" in schema:
            yield from self._listed(schema, path)
        elif "$ref" in schema:
            yield from self._referred(schema, path, refs)
        elif "anyOf" in schema:
            yield from self._optional(schema, path, refs)
        else:
            yield from self._typed(schema, path, refs)

    def _typed(self, schema: Mapping[str, Any], path: str, refs: tuple[str, ...]) -> Iterator[Part]:
        kind = _type_of(schema, path)
        if kind == "integer" and _has(schema, LOWER) and _has(schema, UPPER):
            yield from self._ranged(schema, path)
            return
        _refuse_others(schema, KEYWORDS[kind] | {"type"}, path, f"type {kind}")
        if kind == "object":
            yield from self._object(schema, path, refs)
        elif kind == "array":
            yield from self._array(schema, path, refs)
        elif kind == "string":
            yield from self._string(schema, path)
        elif kind == "boolean":
            yield self._choice(["true", "false"], path)
        elif kind == "null":
            yield "null"
        else:
            yield from self._number(schema, path, is_integer=kind == "integer")

    def _object(
        self, schema: Mapping[str, Any], path: str, refs: tuple[str, ...]
    ) -> Iterator[Part]:
        properties = schema.get("properties", {})
        missing = [name for name in schema.get("required", ()) if name not in properties]
        if missing:
            raise ValueError(f"{path}: requires {missing[0]!r}; add it to its properties")
        yield "{"
        for number, (name, inner) in enumerate(properties.items()):
            yield (", " if number else "") + f"{_json(name)}: "
            yield from self.value(inner, f"{path}.properties.{name}", refs)
        yield "}"

    def _array(self, schema: Mapping[str, Any], path: str, refs: tuple[str, ...]) -> Iterator[Part]:
        prefix = schema.get("prefixItems", [])
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        size = int(least) if least == most else len(prefix)
        if not (least <= size and (most is None or size <= most)) or (
            least != most and "prefixItems" not in schema
        ):
            raise ValueError(
                f"{path}: has no fixed length; set minItems and maxItems to the same number"
            )
        if prefix and not isinstance(self._validator, jsonschema.Draft202012Validator):
            raise ValueError(f"{path}: prefixItems is of draft 2020-12; set $schema to that")
        yield "["
        for number in range(size):
            yield ", " if number else ""
            if number < len(prefix):
                yield from self.value(prefix[number], f"{path}.prefixItems[{number}]", refs)
            else:
                yield from self.value(schema.get("items", {}), f"{path}.items", refs)
        yield "]"

    def _string(self, schema: Mapping[str, Any], path: str) -> Iterator[Part]:
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        if most is not None and least > most:
            raise ValueError(f"{path}: minLength {least} is above maxLength {most}; lower it")
        if most == 0:
            yield '""'
            return
        default = STRING_TOKENS if most is None else min(STRING_TOKENS, most)
        size = _tokens(schema, int(max(default, least)), MAX_TOKENS, path)
        if size < least:
            raise ValueError(
                f"{path}: {size} tokens cannot hold a minLength of {least}; set x-tokens to "
                f"{least} or more"
            )
        whole = (self.classes.number("character"),) * int(least) if least else ()
        rest = size - len(whole)
        classes = (*whole, *((self.classes.number("string"),) * rest if rest else ()))
        hole = Hole(0, size, "string", None if most is None else int(most), min_chars=int(least))
        yield '"'
        yield Blank(size, hole, classes)
        yield '"'

    def _number(self, schema: Mapping[str, Any], path: str, is_integer: bool) -> Iterator[Part]:
        if schema.get("minimum", 0) != 0:
            raise ValueError(
                f"{path}: minimum {schema['minimum']} cannot be guaranteed; set it to 0, give an "
                f"integer both bounds at most {MAX_RANGE:,} apart, or drop it"
            )
        size = _tokens(schema, INTEGER_TOKENS, MAX_NUMBER_TOKENS, path)
        if "minimum" not in schema:
            yield self._choice(["-", ""], path)
        yield self._digits(size, "integer")
        if not is_integer:
            yield "."
            yield self._digits(FRACTION_TOKENS, "digits")

    def _digits(self, size: int, reads_as: Any) -> Blank:
        first, later = self.classes.number("first digit"), self.classes.number("digit")
        return Blank(size, Hole(0, size, reads_as), (first, *(later,) * (size - 1)))

    def _ranged(self, schema: Mapping[str, Any], path: str) -> Iterator[Part]:
        """An integer between two bounds, as one of a list."""
        low = max(_bounds(schema, LOWER, math.ceil, lambda x: math.floor(x) + 1))
        high = min(_bounds(schema, UPPER, math.floor, lambda x: math.ceil(x) - 1))
        if high - low > MAX_RANGE:
            raise ValueError(
                f"{path}: bounds {low} and {high} are over {MAX_RANGE:,} apart and cannot be "
                "guaranteed; bring them closer, or set minimum 0 alone"
            )
        yield from self._listed({"enum": list(range(low, high + 1)), **schema}, path)

    def _listed(self, schema: Mapping[str, Any], path: str) -> Iterator[Part]:
        """One of the values of an enum or a const that the schema's other keywords take."""
        if "x-tokens" in schema:
            raise ValueError(f"{path}: x-tokens does not go with a list of values; drop it")
        own = "const" if "const" in schema else "enum"
        listed = [schema[own]] if own == "const" else schema[own]
        others = {name: rule for name, rule in schema.items() if name != own}
        values = [value for value in listed if self._takes(others, value, path)]
        texts = list(dict.fromkeys(map(_json, values)))
        if not texts:
            raise ValueError(f"{path}: the schema takes none of its own values; correct it")
        if len(texts) == 1:
            yield texts[0]
        elif all(isinstance(value, str) for value in values):
            yield '"'
            yield self._choice([text[1:-1] for text in texts], path)
            yield '"'
        else:
            yield self._choice(texts, path)

    def _takes(self, schema: Mapping[str, Any], value: Any, path: str) -> bool:
        try:
            return bool(self._validator.evolve(schema=schema).is_valid(value))
        # A pattern or a reference of the user's own may make the library raise anything.
        except Exception as error:
            raise ValueError(f"{path}: cannot be evaluated ({_one_line(error)})") from error

    def _choice(self, texts: list[str], path: str) -> Blank:
        model = self._reader.model
        try:
            choices = Choices.of(
                self._reader.encode(texts),
                model.eos_id,
                lambda ids: self.classes.number(frozenset(ids)),
            )
        except ValueError as error:
            raise ValueError(f"{path}: {_of_schema(error)}") from error
        ids = [model.mask_id] * choices.size
        classes = tuple(choices.next_classes(ids, model.mask_id))
        return Blank(len(ids), Hole(0, len(ids), choices=choices), classes)

    def _optional(
        self, schema: Mapping[str, Any], path: str, refs: tuple[str, ...]
    ) -> Iterator[Part]:
        """anyOf of one schema and null: the schema."""
        _refuse_others(schema, frozenset({"anyOf", "x-tokens"}), path, "anyOf")
        others = [(n, one) for n, one in enumerate(schema["anyOf"]) if not _is_null(one)]
        if len(others) > 1:
            raise ValueError(
                f"{path}: anyOf has {len(others)} schemas beside null; keep one of them"
            )
        number, inner = others[0] if others else (0, schema["anyOf"][0])
        yield from self.value(_with_tokens(inner, schema), f"{path}.anyOf[{number}]", refs)

    def _referred(
        self, schema: Mapping[str, Any], path: str, refs: tuple[str, ...]
    ) -> Iterator[Part]:
        _refuse_others(schema, frozenset({"$ref", "x-tokens"}), path, "$ref")
        ref = schema["$ref"]
        group, _, name = ref.removeprefix("#/").partition("/")
        definitions = self._root.get(group, {}) if group in ("$defs", "definitions") else {}
        name = name.replace("~1", "/").replace("~0", "~")
        if not ref.startswith("#/") or name not in definitions:
            raise ValueError(f"{path}: {ref!r} is not among the schema's $defs; add it there")
        if ref in refs:
            raise ValueError(f"{path}: {ref!r} contains itself; unroll it to a fixed depth")
        inner = _with_tokens(definitions[name], schema)
        yield from self.value(inner, f"$.{group}.{name}", (*refs, ref))


def _type_of(schema: Mapping[str, Any], path: str) -> str:
    """The schema's one type beside null."""
    kinds = schema.get("type")
    for name in ("oneOf", "allOf", "not", "if"):
        if name in schema:
            raise ValueError(
                f"{path}: {name} cannot be guaranteed; write out the one schema that is meant"
            )
    if kinds is None:
        raise ValueError(f"{path}: has no type; name one of {', '.join(KEYWORDS)}")
    if isinstance(kinds, list):
        others = [kind for kind in kinds if kind != "null"]
        if len(others) > 1:
            raise ValueError(f"{path}: has {len(others)} types beside null; keep one of them")
        kinds = others[0] if others else "null"
    return str(kinds)


def _refuse_others(schema: Mapping[str, Any], known: frozenset[str], path: str, what: str) -> None:
    others = {
        name
        for name in schema
        if name not in known | ANNOTATIONS | AT_ROOT
        and not (name.startswith("x-") and name != "x-tokens")
        and not (name == "uniqueItems" and schema[name] is False)
    }
    if others:
        raise ValueError(
            f"{path}: {_names(others)} cannot be guaranteed with {what}; drop it, and choose "
            "among the answers afterwards"
        )


def _with_tokens(inner: Any, outer: Mapping[str, Any]) -> Any:
    """A schema with the x-tokens of the one that leads to it."""
    if "x-tokens" in outer and isinstance(inner, Mapping):
        return {**inner, "x-tokens": outer["x-tokens"]}
    return inner


def _tokens(schema: Mapping[str, Any], default: int, most: int, path: str) -> int:
    """Positions of a hole: x-tokens, or the default."""
    found = schema.get("x-tokens", default)
    if not isinstance(found, int) or isinstance(found, bool) or not 1 <= found <= most:
        raise ValueError(f"{path}: a hole of {found} tokens; set x-tokens from 1 to {most:,}")
    return found


def _bounds(
    schema: Mapping[str, Any], names: tuple[str, str], inclusive: Any, exclusive: Any
) -> list[int]:
    pairs = zip(names, (inclusive, exclusive), strict=True)
    return [nearest(schema[name]) for name, nearest in pairs if name in schema]


def _has(schema: Mapping[str, Any], names: Sequence[str]) -> bool:
    return any(name in schema for name in names)


def _is_null(schema: Any) -> bool:
    return isinstance(schema, Mapping) and schema.get("type") == "null"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _kind(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


def _names(names: set[str] | frozenset[str]) -> str:
    return ", ".join(sorted(names))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _of_schema(error: ValueError) -> str:
    """A template's error as the schema's that made the template."""
    return str(error).replace("the template ", "the schema ", 1)


def _one_line(words: object) -> str:
    text = " ".join(str(words).split())
    return text if len(text) <= MAX_WORDS else f"{text[:MAX_WORDS]}…"
