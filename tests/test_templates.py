"""Templates: the canvas of a text with holes, what its answer reads as, and what is refused."""

from __future__ import annotations

import json
import pickle
import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.made_tokenizers import KINDS, tokenizer_of

from lrd import load_model
from lrd.choices import NOT_YET, Choices
from lrd.templates import Hole, Scaffold, TemplateReader, blanks_of

ENDS = {1, 2}


@pytest.fixture(scope="module")
def tiny() -> Any:
    return load_model("tiny", "meta")


def model_of(kind: str, chat_template: str | None = None) -> Any:
    tokenizer = tokenizer_of(kind, chat_template)
    names = tokenizer.get_vocab()
    return SimpleNamespace(
        tokenizer=tokenizer,
        mask_id=names["<|mask|>"],
        eos_id=names["<|eos|>"],
        pad_id=names["<|eos|>"],
        eot_id=None,
        embedding_table=torch.zeros(len(tokenizer), 1, device="meta"),
    )


def fill(scaffold: Scaffold, tokens: list[int], mask_id: int) -> list[int]:
    """The canvas with its open positions filled in order."""
    left = iter(tokens)
    return [next(left) if index == mask_id else index for index in scaffold.ids]


def sizes(scaffold: Scaffold) -> list[int]:
    return [hole.end - hole.start for hole in scaffold.holes]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("[[12]]", [12]),
        ("a [[3]] b [[1]]", [3, 1]),
        ("[[3]][[2]]", [3, 2]),
        ("[[007]]", [7]),
        ("[[x]] [[1.5]] [[-1]] [[ 2 ]] [[]] [[1] [2]] [[4]]", [4]),
        ("[[[2]]]", [2]),
        ("é [[٣]] [[5]]", [5]),
    ],
)
def test_holes_are_numbers_in_two_brackets(tiny: Any, template: str, expected: list[int]) -> None:
    scaffold = TemplateReader(tiny, 200).read(template)
    assert sizes(scaffold) == expected
    open_at = {n for n, index in enumerate(scaffold.ids) if index == tiny.mask_id}
    assert open_at == {n for hole in scaffold.holes for n in range(hole.start, hole.end)}
    assert scaffold.classes is None
    assert not scaffold.has_choices
    assert scaffold.next_classes(scaffold.ids, tiny.mask_id) == [0] * len(scaffold.ids)


@pytest.mark.parametrize(
    ("template", "gen_length", "expected"),
    [
        ("[[*]]", 10, [10]),
        ("[[*]][[*]]", 10, [5, 5]),
        ("[[*]][[*]][[*]]", 11, [4, 4, 3]),
        ("[[3]][[*]][[*]]", 10, [3, 4, 3]),
        ("[[9]][[*]]", 10, [9, 1]),
    ],
)
def test_stars_share_what_is_left(
    tiny: Any, template: str, gen_length: int, expected: list[int]
) -> None:
    scaffold = TemplateReader(tiny, gen_length).read(template)
    assert sizes(scaffold) == expected
    assert len(scaffold.ids) == gen_length


def test_fixed_text_counts_before_stars_share(tiny: Any) -> None:
    reader = TemplateReader(tiny, 30)
    fixed = len(reader.encode(['{"a": "'])['{"a": "'])
    scaffold = reader.read('{"a": "[[*]]')
    assert sizes(scaffold) == [30 - fixed]


REFUSED = {
    "": "no hole",
    "no hole at all": "no hole",
    "[[x]]": "no hole",
    "a [[0]] b [[3]]": "[[0]] has no positions",
    "[[000]]": "[[000]] has no positions",
    "[[65]]": "takes 65 positions (0 of them fixed text) and gen_length is 64",
    "[[99999999999999999999]]": "longer than any canvas",
    "[[" + "9" * 5000 + "]]": "longer than any canvas",
    "[[64]][[*]]": "and 1 more for [[*]]",
    "words " * 100 + "[[1]]": "gen_length is 64",
}


@pytest.mark.parametrize("template", REFUSED)
def test_what_makes_no_canvas_is_refused_in_one_line(tiny: Any, template: str) -> None:
    with pytest.raises(ValueError) as refused:
        TemplateReader(tiny, 64).read(template)
    assert REFUSED[template] in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["<|mask|>", "<|eos|> and <|pad|>", "a<|answer|>b"])
def test_special_tokens_of_a_template_are_text(tiny: Any, text: str) -> None:
    template = f"{text}[[2]]"
    scaffold = TemplateReader(tiny, 64).read(template)
    special = {tiny.mask_id, tiny.eos_id, tiny.pad_id, 3, 4}
    assert special.isdisjoint(scaffold.ids[:-2])
    canvas = fill(scaffold, [tiny.eos_id] * 2, tiny.mask_id)
    assert scaffold.text(canvas, tiny.tokenizer, ENDS) == text


def test_special_tokens_may_be_allowed_but_the_mask(tiny: Any) -> None:
    reader = TemplateReader(tiny, 64, allow_special_tokens=True)
    assert reader.read("<|answer|>[[2]]").ids == (4, 0, 0)
    with pytest.raises(ValueError, match=r"mask token in '<\|mask\|>'; write \[\[1\]\]"):
        reader.read("<|mask|>[[2]]")


@pytest.mark.parametrize(
    ("kind", "text"), [("unigram", "東京"), ("metaspace first", "東京"), ("words", "a <|eos|> ")]
)
def test_text_without_tokens_is_refused(kind: str, text: str) -> None:
    words = f"the template holds {text!r}, which this tokenizer has no tokens for"
    with pytest.raises(ValueError, match=re.escape(words)):
        TemplateReader(model_of(kind), 64).read(f"{text}[[3]]")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("words", "unigram")])
def test_fixed_text_is_kept_to_the_letter(kind: str) -> None:
    """Also where the tokenizer folds, adds or drops characters."""
    model = model_of(kind)
    knows_all = "metaspace" not in kind
    pieces = ['{ "ﬁrst":  "' if knows_all else '{ "first":  "', '",  "b": ', " } "]
    scaffold = TemplateReader(model, 200).read("[[2]]".join(pieces))
    canvas = fill(scaffold, [model.eos_id] * 4, model.mask_id)
    assert scaffold.text(canvas, model.tokenizer, {model.eos_id}) == "".join(pieces)


def test_a_hole_ends_at_its_first_eos_or_pad(tiny: Any) -> None:
    (a, b) = tiny.tokenizer("7 8", add_special_tokens=False)["input_ids"][::2]
    scaffold = TemplateReader(tiny, 64).read("x[[3]]y[[2]]z")
    for tokens, text, kept in [
        ([a, b, a, b, b], "x787y88z", [1, 1, 1, 1, 1, 1, 1, 1]),
        ([a, 1, b, 2, b], "x7yz", [1, 1, 0, 0, 1, 0, 0, 1]),
        ([1, 1, 1, a, 2], "xy7z", [1, 0, 0, 0, 1, 1, 0, 1]),
    ]:
        canvas = fill(scaffold, tokens, tiny.mask_id)
        assert scaffold.text(canvas, tiny.tokenizer, ENDS) == text
        assert scaffold.kept(canvas, ENDS) == [bool(one) for one in kept]


def test_an_open_scaffold_reads_as_a_canvas_without_one(tiny: Any) -> None:
    scaffold = Scaffold.open(4, tiny.mask_id)
    assert scaffold.ids == (0, 0, 0, 0)
    assert scaffold.eos_from == 0
    canvas = [*tiny.tokenizer("Ann eats", add_special_tokens=False)["input_ids"][:3], 1]
    expected = tiny.tokenizer.decode(canvas[:3], skip_special_tokens=True)
    assert scaffold.text(canvas, tiny.tokenizer, {1}) == expected


@pytest.mark.parametrize(
    ("template", "eos_from"), [("x[[2]]", 1), ("[[2]]x", 3), ("[[2]][[1]]", 2)]
)
def test_an_eos_may_end_the_sample_in_a_last_hole_alone(
    tiny: Any, template: str, eos_from: int
) -> None:
    assert TemplateReader(tiny, 64).read(template).eos_from == eos_from


def test_a_filler_reads_as_empty(tiny: Any) -> None:
    filler = tiny.tokenizer(" <none> ", add_special_tokens=False)["input_ids"]
    more = tiny.tokenizer(" <none>s", add_special_tokens=False)["input_ids"]
    size = max(len(filler), len(more))
    for how, expected in [("<none>", ["[]", "[ <none>s]"]), (None, ["[ <none> ]", "[ <none>s]"])]:
        scaffold = TemplateReader(tiny, 64, filler=how).read(f"[[[{size}]]]")
        for ids, text in zip([filler, more], expected, strict=True):
            canvas = fill(scaffold, ids + [1] * size, tiny.mask_id)
            assert scaffold.text(canvas, tiny.tokenizer, ENDS) == text


@pytest.mark.parametrize(
    ("hole", "written", "text"),
    [
        (Hole(0, 6, "integer"), "0012", "12"),
        (Hole(0, 6, "integer"), "000", "0"),
        (Hole(0, 6, "integer"), "", "0"),
        (Hole(0, 6, "digits"), "0050", "0050"),
        (Hole(0, 6, "text", max_chars=2), "abcd", "ab"),
        (Hole(0, 6, "string"), 'a"b', 'a\\"b'),
        (Hole(0, 6, "text"), 'a"b', 'a"b'),
    ],
)
def test_how_a_hole_is_read(tiny: Any, hole: Hole, written: str, text: str) -> None:
    ids = tiny.tokenizer(written, add_special_tokens=False)["input_ids"]
    scaffold = Scaffold((0,) * 6, (hole,))
    assert scaffold.text([*ids, *[1] * (6 - len(ids))], tiny.tokenizer, ENDS) == text


def test_blanks_of_keeps_what_is_no_hole() -> None:
    parts = blanks_of("a[[2]][[x]]")
    assert [part for part in parts if isinstance(part, str)] == ["a", "[[x]]"]


def tree(alternatives: dict[str, list[int]]) -> tuple[Choices, dict[frozenset[int], int]]:
    numbers: dict[frozenset[int], int] = {}
    choices = Choices.of(
        alternatives, 1, lambda ids: numbers.setdefault(frozenset(ids), len(numbers) + 1)
    )
    return choices, numbers


def test_a_choice_opens_position_by_position() -> None:
    choices, numbers = tree({"ab": [10, 11, 12], "ac": [10, 13, 14], "z": [20]})
    own = {number: set(ids) for ids, number in numbers.items()}

    def classes(*ids: int) -> list[Any]:
        return [own.get(n, n) for n in choices.next_classes(ids, 0)]

    assert choices.size == 3
    assert classes(0, 0, 0) == [{10, 20}, NOT_YET, NOT_YET]
    assert classes(10, 0, 0)[1:] == [{11, 13}, NOT_YET]
    assert classes(10, 13, 0)[2:] == [{14}]
    # One alternative is left: all that is open may be committed at once.
    assert classes(20, 0, 0)[1:] == [{1}, {1}]
    assert classes(20, 0, 1)[1:2] == [{1}]
    assert choices.text([10, 13, 14]) == "ac"
    assert choices.text([20, 1, 1]) == "z"
    assert choices.text([10, 0, 14]) is None


def test_tokens_that_all_alternatives_share_are_open_at_once() -> None:
    choices, numbers = tree({"a": [5, 6, 7, 9], "b": [5, 6, 8]})
    own = {number: set(ids) for ids, number in numbers.items()}
    found = [own.get(n, n) for n in choices.next_classes([0, 0, 0, 0], 0)]
    assert found == [{5}, {6}, {7, 8}, NOT_YET]


def test_alternatives_of_the_same_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="'a' and 'b' are the same tokens"):
        tree({"a": [5], "b": [5, 1], "c": [6, 6]})


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_commits_reaches_an_alternative(seed: int) -> None:
    """Every position that has a class can be committed next; every alternative can be reached."""
    rng = random.Random(seed)
    drawn = {tuple(rng.choices((10, 11, 12), k=rng.randint(1, 5))) for _ in range(12)}
    alternatives = {str(ids): list(ids) for ids in sorted(drawn)}
    choices, numbers = tree(alternatives)
    own = {number: sorted(ids) for ids, number in numbers.items()}
    reached = set()
    for _ in range(300):
        ids = [0] * choices.size
        while 0 in ids:
            classes = choices.next_classes(ids, 0)
            may = [n for n, index in enumerate(ids) if index == 0 and classes[n] != NOT_YET]
            assert may, "nothing can be committed"
            for n in rng.sample(may, rng.randint(1, len(may))):
                ids[n] = rng.choice(own[classes[n]])
        reached.add(choices.text(ids))
    assert reached == set(alternatives)


def test_the_readmes_example_runs() -> None:
    page = (Path(__file__).parents[1] / "lrd" / "README.md").read_text()
    (code,) = re.findall(r"## Templates\n\n```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    step, answer = names["texts"]
    assert step.startswith("Step 1: ")
    assert "\n#### " in step
    assert list(json.loads(answer)) == ["apples"]
    assert json.loads(answer)["apples"] >= 0


def test_a_scaffold_travels(tiny: Any) -> None:
    scaffold = TemplateReader(tiny, 64, filler="<none>").read("a[[3]]b")
    assert pickle.loads(pickle.dumps(scaffold)) == scaffold
    assert hash(scaffold) == hash(pickle.loads(pickle.dumps(scaffold)))
