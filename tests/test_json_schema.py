"""JSON Schemas as templates: whatever tokens are drawn, the answer parses and validates."""

from __future__ import annotations

import json
import random
import time
from types import SimpleNamespace
from typing import Any, Literal

import jsonschema
import pytest
import torch
from helpers.few import spread
from helpers.made_tokenizers import tokenizer_of
from pydantic import BaseModel, Field
from tokenizers import Tokenizer, decoders, models
from tokenizers import pre_tokenizers as pre
from transformers import PreTrainedTokenizerFast

from lrd import DecodingConfig, Engine, Request, load_model
from lrd.allowed_tokens import MAX_CLASSES, TokenClasses
from lrd.choices import NOT_YET
from lrd.json_schema import JsonChecker, JsonForm, json_form

ROOM = 4000
"""Positions of a canvas in which every schema of this file fits."""


class Address(BaseModel):
    """An address."""

    street: str = Field(max_length=30, min_length=1)
    number: int = Field(ge=1, le=400)


class Colour(BaseModel):
    """A colour of one of three names."""

    name: Literal["red", "green", "reddish green"]
    share: float = Field(ge=0)


class Person(BaseModel):
    """What pydantic writes for nested and optional models."""

    name: str = Field(json_schema_extra={"x-tokens": 9})
    age: int | None = Field(default=None, ge=0)
    home: Address
    work: Address | None = None
    colours: tuple[Colour, Colour]
    retired: bool = False
    nick: str | None = Field(default=None, max_length=5, json_schema_extra={"x-tokens": 3})


def thing(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


TEXT: dict[str, Any] = {"type": "string"}
SCHEMAS: dict[str, dict[str, Any]] = {
    "five fields": {
        **thing(
            name={"type": "string", "maxLength": 20},
            age={"type": "integer", "minimum": 0, "maximum": 120},
            height={"type": "number"},
            married={"type": "boolean"},
            level={"enum": ["low", "middle", "high"]},
        ),
        "required": ["name", "age", "height", "married", "level"],
        "additionalProperties": False,
    },
    "pydantic": Person.model_json_schema(),
    "text": TEXT,
    "exact length": {"type": "string", "minLength": 7, "maxLength": 7},
    "at least": {"type": "string", "minLength": 30},
    "at most": {"type": "string", "maxLength": 3},
    "one character": {"type": "string", "minLength": 1, "maxLength": 1, "x-tokens": 8},
    "short with room": {"type": "string", "maxLength": 2, "x-tokens": 12},
    "no characters": thing(a={"type": "string", "maxLength": 0}, b=TEXT),
    "integer": {"type": "integer"},
    "long integer": {"type": "integer", "x-tokens": 100},
    "not below zero": {"type": "integer", "minimum": 0},
    "range": {"type": "integer", "minimum": -500, "maximum": 500},
    "exclusive range": {"type": "integer", "exclusiveMinimum": -1.5, "exclusiveMaximum": 7},
    "multiples": {"type": "integer", "minimum": 3, "maximum": 1000, "multipleOf": 7},
    "number": {"type": "number"},
    "long number": {"type": "number", "minimum": 0, "x-tokens": 100},
    "boolean": {"type": "boolean"},
    "beside null": {"type": ["null", "integer"]},
    "null and more": thing(a={"type": "null"}, b={"anyOf": [{"type": "null"}]}, c=TEXT),
    "constants": thing(a={"const": {"x": [1, "\"\\ \n"]}}, b={"const": None}, c=TEXT),
    "enum of all kinds": {
        "enum": [None, True, 1, -1.5, "", "a", "ab", "\"\\ \n", [1, {}], {"b": "é"}],
    },
    "enum of texts": {"enum": ["", "a", "aa", "aaaa", "東京", "\"", "\t"]},
    "enum with a pattern": {"enum": ["ab", "b", "ba"], "type": "string", "pattern": "^b"},
    "equal values": {"enum": [1, 1.0, True, "1"]},
    "many alternatives": {"enum": [f"{n * 7919 % 1000:03d} of {n}" for n in range(300)]},
    "array": {"type": "array", "items": {"type": "integer"}, "minItems": 4, "maxItems": 4},
    "empty array": thing(a={"type": "array", "maxItems": 0}, b=TEXT),
    "tuple": {"type": "array", "prefixItems": [TEXT, {"type": "boolean"}], "items": False},
    "tuple and more": {
        "type": "array",
        "prefixItems": [TEXT],
        "items": {"type": "integer"},
        "minItems": 3,
        "maxItems": 3,
        "uniqueItems": False,
    },
    "tables": {
        "type": "array",
        "items": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
        "minItems": 2,
        "maxItems": 2,
    },
    "nested": thing(a=thing(b=thing(c={"type": "boolean"}, d=thing())), e=TEXT),
    "names": thing(**{'a"b': TEXT, "é \n": {"type": "boolean"}, "<|eos|>": TEXT, "[[3]]": TEXT}),
    "references": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$id": "https://example.org/form",
        "definitions": {"a/b": {"$ref": "#/definitions/c"}, "c": {"type": "integer"}},
        **thing(x={"$ref": "#/definitions/a~1b"}, y={"$ref": "#/definitions/c"}),
    },
    "annotations": {
        "title": "T",
        "description": "D",
        "default": {},
        "x-order": 1,
        **thing(a={**TEXT, "examples": ["b"], "$comment": "c", "deprecated": True}),
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny() -> Any:
    return load_model("tiny", "meta")


def model_of(tokenizer: Any) -> Any:
    names = tokenizer.get_vocab()
    return SimpleNamespace(
        tokenizer=tokenizer,
        mask_id=names["<|mask|>"],
        eos_id=names["<|eos|>"],
        pad_id=names["<|im_end|>"],
        eot_id=None,
        # Rows that are not tokens, as releases have them.
        embedding_table=torch.zeros(len(tokenizer) + 13, 1, device="meta"),
    )


def broken_characters() -> Any:
    """Single bytes, so that nearly every character is in pieces."""
    alphabet = sorted(pre.ByteLevel.alphabet())
    names = ["<|mask|>", "<|eos|>", "<|im_end|>", *alphabet]
    pairs = [(a, b) for a in alphabet[100:140] for b in alphabet[100:140]]
    names += [a + b for a, b in pairs]
    inner = Tokenizer(models.BPE(vocab={name: n for n, name in enumerate(names)}, merges=pairs))
    inner.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|eos|>",
        mask_token="<|mask|>",
        additional_special_tokens=["<|im_end|>"],
    )


def byte_fallback() -> Any:
    """Pieces behind a ▁ and single bytes such as <0xE6>, as Llama 2 has them."""
    names = ["<unk>", "<|mask|>", "<|eos|>", "<|im_end|>", *(f"<0x{n:02X}>" for n in range(256))]
    texts = [chr(n) for n in range(33, 127)] + ["▁", "é", "▁the", "▁12", "12", '"}', ', "', "東"]
    names += texts
    inner = Tokenizer(
        models.BPE(
            vocab={name: n for n, name in enumerate(names)},
            merges=[],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    inner.pre_tokenizer = pre.Metaspace(prepend_scheme="first")
    steps = (decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse())
    inner.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|eos|>",
        mask_token="<|mask|>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_end|>"],
    )


TOKENIZERS: dict[str, Any] = {
    "tiny": None,
    "llama3": lambda: tokenizer_of("llama3", None),
    "gpt2 with a prefix space": lambda: tokenizer_of("gpt2 with a prefix space", None),
    "cleans spaces": lambda: tokenizer_of("gpt2", None, clean_up_tokenization_spaces=True),
    "single bytes": broken_characters,
    "byte fallback": byte_fallback,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def model(request: Any, tiny: Any) -> Any:
    make = TOKENIZERS[request.param]
    return tiny if make is None else model_of(make())


class Filler:
    """Fills a scaffold as a decoder may: any open position that has a class, in any order, with
    any token of it."""

    def __init__(self, form: JsonForm, model: Any) -> None:
        self.form, self.model = form, model
        self._tokens = [row.nonzero()[:, 0].tolist() for row in form.allowed()]

    def fill(self, rng: random.Random, ends: float = 0.1) -> str:
        """ends: how often a hole that may end here does."""
        scaffold, mask_id = self.form.scaffold, self.model.mask_id
        canvas = list(scaffold.ids)
        while open_at := [n for n, index in enumerate(canvas) if index == mask_id]:
            classes = scaffold.next_classes(canvas, mask_id)
            may = [n for n in open_at if classes[n] != NOT_YET]
            assert may, "nothing can be committed"
            for n in rng.sample(may, rng.randint(1, len(may))):
                assert classes[n] > 0, "an open position that may take any token"
                canvas[n] = self._token(rng, classes[n], ends)
        return scaffold.text(canvas, self.model.tokenizer, self.form.classes.ends)

    def _token(self, rng: random.Random, number: int, ends: float) -> int:
        tokens = self._tokens[number]
        stopping = [index for index in (self.model.eos_id, self.model.pad_id) if index in tokens]
        return rng.choice(stopping if stopping and rng.random() < ends else tokens)


@pytest.mark.parametrize("name", spread(SCHEMAS, every=3))
def test_every_answer_parses_and_validates(model: Any, name: str) -> None:
    schema = SCHEMAS[name]
    filler = Filler(json_form(schema, model, ROOM), model)
    checker = JsonChecker(schema)
    rng = random.Random(name)
    for number in range(24):
        text = filler.fill(rng, ends=(0, 0.1, 1)[number % 3])
        found, fault = checker.read(text)
        assert fault is None, (text, fault)
        assert found is not None
        value = json.loads(text)
        jsonschema.validate(value, schema)
        assert json.loads(found) == value
        assert "\n" not in found


def test_thousands_of_answers_of_five_fields(tiny: Any) -> None:
    schema = SCHEMAS["five fields"]
    filler = Filler(json_form(schema, tiny, 128), tiny)
    rng = random.Random(5)
    values = [json.loads(filler.fill(rng)) for _ in range(3000)]
    for value in values:
        jsonschema.validate(value, schema)
    # All that the schema leaves open is reached.
    assert {value["level"] for value in values} == {"low", "middle", "high"}
    ages = {value["age"] for value in values}
    assert ages >= set(range(100))
    assert 100 <= max(ages) <= 120
    assert {value["married"] for value in values} == {True, False}
    assert min(len(value["name"]) for value in values) == 0
    assert max(len(value["name"]) for value in values) == 20
    assert min(value["height"] for value in values) < 0 < max(value["height"] for value in values)


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "range", "optional"]
    kind = rng.choice(kinds + (["object", "array", "tuple"] * 2 if depth < 3 else []))
    inner = (
        [random_schema(rng, depth + 1) for _ in range(rng.randint(1, 3))] if depth < 3 else [TEXT]
    )
    least = rng.randint(0, 5)
    low = rng.randint(-2000, 2000)
    made: dict[str, dict[str, Any]] = {
        "string": {"type": "string", "minLength": least, "maxLength": least + rng.randint(0, 9)},
        "integer": {"type": "integer", "x-tokens": rng.randint(1, 8)},
        "number": {"type": "number", **({"minimum": 0} if rng.random() < 0.5 else {})},
        "boolean": {"type": "boolean"},
        "null": {"type": "null"},
        "enum": {"enum": rng.sample([None, 0, 10, 100, "a", "ab", "b c", [], [1], {}], 3)},
        "range": {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 50)},
        "optional": {"anyOf": [{"type": "null"}, inner[0]]},
        "object": thing(**{rng.choice("abcde") * n: one for n, one in enumerate(inner, 1)}),
        "array": {"type": "array", "items": inner[0], "minItems": 2, "maxItems": 2},
        "tuple": {"type": "array", "prefixItems": inner},
    }
    return made[kind]


@pytest.mark.parametrize(
    "seed", [*range(12), *(pytest.param(n, marks=pytest.mark.slow) for n in range(12, 40))]
)
def test_answers_of_random_schemas_validate(seed: int, model: Any) -> None:
    rng = random.Random(seed)
    schema = thing(open=TEXT, more=random_schema(rng), last=random_schema(rng))
    filler = Filler(json_form(schema, model, ROOM), model)
    for _ in range(10):
        jsonschema.validate(json.loads(filler.fill(rng)), schema)


# What a canvas looks like.


def shape(schema: dict[str, Any], model: Any) -> str:
    """The fixed text, and the number of positions of each hole."""
    scaffold = json_form(schema, model, ROOM).scaffold
    parts = scaffold.parts
    return "".join(p if isinstance(p, str) else f"⟨{p.end - p.start}⟩" for p in parts)


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (thing(b=TEXT, a={"type": "integer"}), '{"b": "⟨16⟩", "a": ⟨1⟩⟨6⟩}'),
        ({"type": "integer", "minimum": 0}, "⟨6⟩"),
        ({"type": "number"}, "⟨1⟩⟨6⟩.⟨2⟩"),
        ({"type": "number", "minimum": 0, "x-tokens": 2}, "⟨2⟩.⟨2⟩"),
        ({"type": "string", "maxLength": 5}, '"⟨5⟩"'),
        ({"type": "string", "maxLength": 50}, '"⟨16⟩"'),
        ({"type": "string", "maxLength": 50, "x-tokens": 40}, '"⟨40⟩"'),
        ({"type": "string", "minLength": 20}, '"⟨20⟩"'),
        ({"type": "array", "prefixItems": [TEXT, {"const": 2}]}, '["⟨16⟩", 2]'),
        ({"type": "integer", "minimum": 1, "maximum": 9}, "⟨1⟩"),
        ({"anyOf": [{"type": "null"}, TEXT], "x-tokens": 3}, '"⟨3⟩"'),
        ({"$defs": {"n": TEXT}, "$ref": "#/$defs/n", "x-tokens": 3}, '"⟨3⟩"'),
    ],
)
def test_holes_have_the_sizes_that_the_schema_says(
    schema: dict[str, Any], expected: str, tiny: Any
) -> None:
    assert shape(schema, tiny) == expected


def test_a_choice_of_single_tokens_needs_no_look_between_passes(tiny: Any) -> None:
    digits = json_form({"type": "integer", "minimum": 1, "maximum": 9}, tiny, ROOM)
    assert not digits.scaffold.has_choices
    words = json_form({"enum": ["dollars are three", "stamps are three"]}, tiny, ROOM)
    assert words.scaffold.has_choices


def test_a_filler_reads_as_an_empty_string_where_it_may_be_empty(tiny: Any) -> None:
    ids = tiny.tokenizer("<none>", add_special_tokens=False)["input_ids"]
    for least, expected in [(0, '""'), (1, '"<none>"')]:
        schema = {"type": "string", "minLength": least, "x-tokens": len(ids)}
        form = json_form(schema, tiny, ROOM, filler="<none>")
        (quote, *_, end) = form.scaffold.ids
        text = form.scaffold.text([quote, *ids, end], tiny.tokenizer, form.classes.ends)
        assert text == expected


# What is refused.

REFUSED: list[tuple[Any, str]] = [
    ([], "$: is a list; expected an object"),
    (None, "$: is null; expected an object"),
    (True, "$: is a bool; expected an object"),
    ({}, "$: allows any value; give it a type"),
    ({"title": "x"}, "$: has no type"),
    ({"type": "text"}, "$.type: 'text' is not valid"),
    ({"type": "string", "minLength": -1}, "$.minLength: -1 is less than the minimum"),
    ({"type": "string", "maxLength": float("inf")}, "$: holds NaN or Infinity"),
    ({"type": "string", "title": "\ud800"}, "half of a surrogate pair"),
    ({"$schema": "http://json-schema.org/draft-04/schema#", **TEXT}, "draft before 6"),
    (thing(), "$: the schema leaves nothing open"),
    ({"const": 1}, "$: the schema leaves nothing open"),
    (thing(a=thing(b=True)), "$.properties.a.properties.b: allows any value"),
    (thing(a={"type": ["string", "integer"]}), "$.properties.a: has 2 types beside null"),
    (thing(a={"type": "string", "pattern": "^a"}), "$.properties.a: pattern cannot be guaranteed"),
    (thing(a={"type": "string", "format": "date"}), "$.properties.a: format cannot be guaranteed"),
    ({"type": "string", "minLength": 5, "maxLength": 4}, "$: minLength 5 is above maxLength 4"),
    ({"type": "string", "minLength": 5, "x-tokens": 4}, "$: 4 tokens cannot hold a minLength of 5"),
    ({"type": "string", "x-tokens": 0}, "$: a hole of 0 tokens; set x-tokens from 1"),
    ({"type": "string", "x-tokens": "9"}, "$: a hole of 9 tokens; set x-tokens from 1"),
    ({"type": "string", "x-tokens": 10**12}, "set x-tokens from 1 to 65,536"),
    ({"type": "string", "minLength": 10**12}, "set x-tokens from 1 to 65,536"),
    ({"type": "integer", "x-tokens": 101}, "set x-tokens from 1 to 100"),
    ({"type": "boolean", "x-tokens": 3}, "$: x-tokens cannot be guaranteed with type boolean"),
    ({"enum": [1, 2], "x-tokens": 3}, "$: x-tokens does not go with a list of values"),
    ({"type": "integer", "minimum": 5}, "$: minimum 5 cannot be guaranteed; set it to 0"),
    ({"type": "integer", "maximum": 5}, "$: maximum cannot be guaranteed"),
    ({"type": "integer", "exclusiveMinimum": 0}, "$: exclusiveMinimum cannot be guaranteed"),
    ({"type": "integer", "multipleOf": 5}, "$: multipleOf cannot be guaranteed"),
    ({"type": "integer", "minimum": 0, "maximum": 1001}, "$: bounds 0 and 1001 are over 1,000"),
    ({"type": "integer", "minimum": 2, "maximum": 1}, "$: the schema takes none of its own values"),
    ({"type": "number", "minimum": 0, "maximum": 1}, "$: maximum cannot be guaranteed"),
    ({"enum": ["a"], "type": "integer"}, "$: the schema takes none of its own values"),
    ({"enum": ["a", "b"], "pattern": "("}, "$.pattern: '(' is not a 'regex'"),
    ({"enum": ["a", "b"], "$ref": "https://example.org/x"}, "$: cannot be evaluated"),
    ({"type": "array", "items": TEXT}, "$: has no fixed length"),
    ({"type": "array", "items": TEXT, "minItems": 2}, "$: has no fixed length"),
    ({"type": "array", "prefixItems": [TEXT], "minItems": 2}, "$: has no fixed length"),
    ({"type": "array", "items": TEXT, "minItems": 10**9, "maxItems": 10**9}, "over 10,000 values"),
    ({"type": "array", "minItems": 1, "maxItems": 1}, "$.items: allows any value"),
    (
        {"type": "array", "items": TEXT, "minItems": 2, "maxItems": 2, "uniqueItems": True},
        "$: uniqueItems cannot be guaranteed",
    ),
    (
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "type": "array",
            "prefixItems": [TEXT],
        },
        "$: prefixItems is of draft 2020-12",
    ),
    ({**thing(a=TEXT), "required": ["a", "b"]}, "$: requires 'b'; add it to its properties"),
    ({**thing(a=TEXT), "minProperties": 2}, "$: minProperties cannot be guaranteed"),
    ({**thing(a=TEXT), "patternProperties": {}}, "$: patternProperties cannot be guaranteed"),
    ({"oneOf": [TEXT]}, "$: oneOf cannot be guaranteed"),
    ({"allOf": [TEXT]}, "$: allOf cannot be guaranteed"),
    ({**TEXT, "not": {}}, "$: not cannot be guaranteed"),
    ({"anyOf": [TEXT, {"type": "integer"}]}, "$: anyOf has 2 schemas beside null"),
    ({"anyOf": [TEXT], "type": "string"}, "$: type cannot be guaranteed with anyOf"),
    ({"$ref": "#/$defs/a"}, "$: '#/$defs/a' is not among the schema's $defs"),
    ({"$ref": "https://example.org/a.json"}, "is not among the schema's $defs"),
    (
        {"$defs": {"a": thing(b={"$ref": "#/$defs/a"})}, "$ref": "#/$defs/a"},
        "$.$defs.a.properties.b: '#/$defs/a' contains itself",
    ),
    (thing(a={**TEXT, "$id": "x"}), "$.properties.a: $id belongs to the root"),
    (thing(**{f"p{n}": TEXT for n in range(500)}), "$: the schema takes"),
]


@pytest.mark.parametrize(("schema", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_cannot_be_guaranteed_is_refused_in_one_line(
    schema: Any, words: str, tiny: Any
) -> None:
    with pytest.raises(ValueError) as refused:
        json_form(schema, tiny, ROOM)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


def test_deep_and_wide_schemas_are_refused_soon(tiny: Any) -> None:
    deep: dict[str, Any] = TEXT
    for _ in range(3000):
        deep = thing(a=deep)
    definitions = {f"d{n}": thing(a={"$ref": f"#/$defs/d{n + 1}"}, b={"$ref": f"#/$defs/d{n + 1}"})
                   for n in range(40)}  # fmt: skip
    wide = {"$defs": {**definitions, "d40": TEXT}, "$ref": "#/$defs/d0"}
    begun = time.monotonic()
    for schema, words in [(deep, "nests too deeply"), (wide, "over 10,000 values")]:
        with pytest.raises(ValueError, match=words):
            json_form(schema, tiny, ROOM)
    assert time.monotonic() - begun < 20


def test_a_schema_longer_than_the_canvas_is_refused(tiny: Any) -> None:
    with pytest.raises(ValueError, match="gen_length is 16; raise gen_length"):
        json_form(SCHEMAS["five fields"], tiny, 16)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "is not JSON"),
        ('{"a": NaN}', "is not JSON: NaN is not a JSON number"),
        ('{"a": "1"}', "$.a: '1' is not of type 'integer'"),
        ('{"b": 1}', "$: 'a' is a required property"),
        ("[" * 100_000, "is not JSON"),
        ('{"a": "' + "x\\n" * 1000 + '"}', "$.a: 'x"),
    ],
)
def test_answers_that_are_not_of_the_form_have_a_reason(text: str, fault: str) -> None:
    checker = JsonChecker({**thing(a={"type": "integer"}), "required": ["a"]})
    found, reason = checker.read(text)
    assert found is None
    assert reason is not None
    assert fault in reason
    assert "\n" not in reason
    assert len(reason) < 400


def test_tokens_of_a_string_may_stand_in_one_as_they_are(model: Any) -> None:
    """Escaping would keep the answer valid, but such a token was meant to end the string."""
    classes = TokenClasses(model)
    number = classes.number("string")
    allowed = set(classes.table()[number].nonzero()[:, 0].tolist()) - classes.ends
    texts = [model.tokenizer.decode([index]) for index in allowed]
    assert len(texts) > 20
    assert not [text for text in texts if any(c in '"\\' or c < " " for c in text)]


def test_more_sets_of_tokens_than_memory_should_hold_are_refused(tiny: Any) -> None:
    classes = TokenClasses(tiny)
    numbers = [classes.number(frozenset({n})) for n in range(MAX_CLASSES - 1)]
    assert numbers == list(range(1, MAX_CLASSES))
    assert classes.number(frozenset({7})) == 8, "the same set has one number"
    with pytest.raises(ValueError, match="more than 2,048 sets of tokens; give fewer"):
        classes.number(frozenset({MAX_CLASSES}))


# Large vocabularies.


def large_model() -> Any:
    """A vocabulary of 152,000 tokens, as Dream's and LLaDA's."""
    alphabet = sorted(pre.ByteLevel.alphabet())
    rng = random.Random(0)
    names = dict.fromkeys(["<|mask|>", "<|eos|>", "<|im_end|>", *alphabet])
    while len(names) < 152_000:
        names["".join(rng.choices(alphabet, k=rng.randint(2, 8)))] = None
    inner = Tokenizer(models.BPE(vocab={name: n for n, name in enumerate(names)}, merges=[]))
    inner.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return model_of(
        PreTrainedTokenizerFast(
            tokenizer_object=inner,
            eos_token="<|eos|>",
            mask_token="<|mask|>",
            additional_special_tokens=["<|im_end|>"],
        )
    )


@pytest.mark.slow
def test_a_large_vocabulary_takes_seconds() -> None:
    model = large_model()
    begun = time.process_time()
    form = json_form(SCHEMAS["five fields"], model, ROOM)
    allowed = form.allowed()
    assert time.process_time() - begun < 20
    assert allowed.shape == (allowed.shape[0], 152_013)
    assert allowed[0].all()
    assert not allowed[1:, 152_000:].any()
    assert not allowed[1:, model.mask_id].any()
    rng = random.Random(1)
    filler = Filler(form, model)
    for _ in range(30):
        jsonschema.validate(json.loads(filler.fill(rng)), SCHEMAS["five fields"])


# The engine.

DECODINGS: dict[str, dict[str, Any]] = {
    "fast": {},
    "drawn": {"temperature": 1.5},
    "baseline, two a pass": {"preset": "baseline", "tokens_per_step": 2, "temperature": 1.0},
    "blocks with a cache": {"preset": "blocks", "block_length": 16},
    "steps": {"preset": "baseline", "steps": 8, "confidence": "margin"},
    "confident": {"preset": "baseline", "confidence_threshold": 0.5, "block_length": 32},
}


@pytest.fixture(scope="module")
def random_tiny() -> Any:
    """tiny's tokenizer over random weights, which know nothing of JSON."""
    model = load_model("tiny", "cpu")
    generator = torch.Generator().manual_seed(3)
    weights = [weight for weight in model.transformer.parameters() if weight.dim() > 1]
    for weight in weights:
        weight.copy_(torch.randn(weight.shape, generator=generator) * weight.shape[-1] ** -0.5)
    return model


@pytest.mark.parametrize("name", DECODINGS)
def test_the_engine_writes_json_with_random_weights(random_tiny: Any, name: str) -> None:
    settings = dict(DECODINGS[name])
    config = DecodingConfig.preset(settings.pop("preset", "fast"), gen_length=128, **settings)
    answers = 0
    for schema in (SCHEMAS["five fields"], SCHEMAS["enum of all kinds"]):
        form = json_form(schema, random_tiny, 128)
        engine = Engine(random_tiny, config, 3, 12, allowed=form.allowed())
        for seed in range(5):
            engine.submit(Request(seed, [5 + seed] * (1 + seed), seed, form.scaffold))
        while engine.busy:
            for sample in engine.step():
                assert sample.error is None
                jsonschema.validate(json.loads(sample.text or ""), schema)
                assert sample.canvas_length == len(form.scaffold.ids)
                answers += 1
    assert answers == 10
