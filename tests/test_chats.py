"""A chat → ids: what transformers renders, a last assistant turn continued, and no turn's text a
special token."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from helpers.made_tokenizers import KINDS, SPECIALS
from test_prompts import CHATML_TEMPLATE, LLAMA3_TEMPLATE, dream_files, holder, llada_tokenizer
from test_special_text import CHATML, OWN, PLAIN, SPELT, WHOLE, model_of, specials, whole

from lrd import DecodingConfig, decode, load_model
from lrd.chats import MAX_TURNS, Messages, chat_of
from lrd.models.tokenizer import load_tokenizer
from lrd.prompts import encode_prompt, encode_prompts
from lrd.special_text import ChatReader, special_ids

TEMPLATES = {
    "chatml": CHATML,
    "trims": CHATML.replace("m['content']", "m['content'] | trim"),
    "trims answers alone": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content | trim if m.role == 'assistant' else m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "a system turn of its own": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nBe good.<|im_end|>\n{% endif %}"
        + CHATML
    ),
    "no closing of answers": (
        "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>Q: {{ m.content }}\nA:"
        "{% else %} {{ m.content }}\n{% endif %}{% endfor %}"
    ),
    "system in the user's turn": (
        "{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
        "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role | upper }}"
        "{{ system if m.role == 'user' and loop.first else '' }}\n{{ m.content }}<|im_end|>"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>ASSISTANT\n{% endif %}"
    ),
    "by hand": "{% for m in messages %}<|turn|>{{ m.content }}<|done|>{% endfor %}",
}


def message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def chat_of_texts(texts: list[str], answered: bool, system: str | None = None) -> Messages:
    """User and assistant in turn, the user last, or the assistant where `answered`."""
    roles = ["user", "assistant"] * len(texts)
    first = 0 if (len(texts) % 2 == 0) == answered else 1
    turns = [message(role, text) for role, text in zip(roles[first:], texts, strict=False)]
    return [*([] if system is None else [message("system", system)]), *turns]


def rendered(model: Any, chat: Messages) -> str:
    """What transformers makes of a chat, its last assistant turn continued."""
    goes_on = chat[-1]["role"] == "assistant"
    how = {"continue_final_message": True} if goes_on else {"add_generation_prompt": True}
    return str(model.tokenizer.apply_chat_template(list(chat), tokenize=False, **how))


def random_chats(seed: int, texts: list[str], number: int) -> list[Messages]:
    rng = random.Random(seed)
    chats = []
    for _ in range(number):
        some = rng.choices(texts, k=rng.randrange(2, 13))
        chats.append(chat_of_texts(some, rng.random() < 0.5, rng.choice([None, *texts])))
    return chats


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
def test_chats_are_what_transformers_makes_of_them(kind: str, template: str) -> None:
    model = model_of(kind, TEMPLATES[template])
    chats = random_chats(1, PLAIN, 15)
    found = encode_prompts(model, chats)
    assert found == [whole(model, rendered(model, chat)) for chat in chats]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
def test_no_turns_text_is_a_special_token(kind: str, template: str) -> None:
    """The template's own are all that there are, in every turn, and no character is lost."""
    model = model_of(kind, TEMPLATES[template])
    rng = random.Random(2)
    pieces = [*SPECIALS, *OWN, "<|", "|>", "im_end", "<", " ", "\n", "assistant", "é", "7"]
    texts = ["".join(rng.choices(pieces, k=rng.randrange(1, 10))) for _ in range(60)]
    texts = [text for text in (*texts, *SPELT, *PLAIN) if text.strip()]
    chats = random_chats(3, texts, 40)
    num_spelt = 0
    for chat, ids in zip(chats, encode_prompts(model, chats), strict=True):
        assert isinstance(ids, list), ids
        # Of the same letters, so that a template which looks at the text does the same.
        calm = [message(t["role"], t["content"].replace("|", "!")) for t in chat]
        assert specials(model, ids) == specials(model, whole(model, rendered(model, calm)))
        num_spelt += ids != whole(model, rendered(model, chat))
        if kind in WHOLE:
            decoded = model.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            assert decoded == rendered(model, chat)
    assert num_spelt > 20


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_of_every_turn_where_they_are_meant(kind: str) -> None:
    model = model_of(kind, CHATML)
    chats = random_chats(4, [text for text in SPELT if text.strip()], 20)
    found = encode_prompts(model, chats, allow_special_tokens=True)
    assert found == [whole(model, rendered(model, chat)) for chat in chats]


@pytest.mark.parametrize("kind", KINDS)
def test_cutting_a_chat_at_the_templates_tokens_changes_nothing(kind: str) -> None:
    """The careful way, taken where nothing asks for it, gives what the whole chat gives."""
    for template in ("chatml", "trims", "trims answers alone"):
        model = model_of(kind, TEMPLATES[template])
        reader = ChatReader(model.tokenizer, special_ids(model))
        for turns in random_chats(5, PLAIN, 10):
            chat, text = chat_of(turns), rendered(model, turns)
            skeleton = reader._skeleton(chat.roles)
            spans = reader._text_spans(chat, text, skeleton.marked)
            assert spans is not None
            for (a, b), content, role in zip(spans, chat.texts, chat.roles, strict=True):
                trims = template == "trims" or (template != "chatml" and role == "assistant")
                assert text[a:b] == (content.strip() if trims else content)
            assert reader._reread(text, spans, skeleton.special) == whole(model, text)


@pytest.mark.parametrize("system", [None, "Be <|mask|> brief."])
@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_a_chat_of_one_turn(kind: str, system: str | None) -> None:
    model = model_of(kind, CHATML)
    texts = [text for text in (*PLAIN, *SPELT) if text.strip()]
    chats = [[message("user", text)] for text in texts]
    expected = encode_prompts(model, texts, "chat", system)
    assert encode_prompts(model, chats, "chat", system) == expected


# The families.


def family(name: str, folder: Path) -> Any:
    """A model's tokenizer with the files and template of a release."""
    if name == "tiny":
        return load_model("tiny", "meta")
    if name == "llada":
        return holder(llada_tokenizer(folder, LLAMA3_TEMPLATE))
    dream_files(folder, chat_template=CHATML_TEMPLATE)
    return holder(load_tokenizer(folder))


HEADS = {
    "llada": "<|start_header_id|>{}<|end_header_id|>\n\n",
    "dream": "<|im_start|>{}\n",
}
ENDS = {"llada": "<|eot_id|>", "dream": "<|im_end|>\n"}
STARTS = {"llada": "<|startoftext|>", "dream": ""}


@pytest.mark.parametrize("name", HEADS)
def test_a_chat_of_the_families(name: str, tmp_path: Path) -> None:
    """Written out by hand: headers, ends, one bos, and the open end of a continued turn."""
    model = family(name, tmp_path)
    head, end = HEADS[name], ENDS[name]
    turns = [("system", "Be brief."), ("user", f"Say {end} <|mask|>"), ("assistant", "No."),
             ("user", "Why?"), ("assistant", "Because I")]  # fmt: skip
    closed = [head.format(role) + text + end for role, text in turns[:-1]]
    chat = [message(role, text) for role, text in turns]
    ids = encode_prompt(model, chat)
    decoded = model.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    # LLaDA's template trims what stands in a turn.
    closed[1] = head.format("user") + turns[1][1].strip() + end
    expected = STARTS[name] + "".join(closed) + head.format("assistant") + "Because I"
    assert decoded == expected
    end_id = model.tokenizer.get_vocab()[end.strip()]
    assert ids.count(end_id) == len(closed)
    ids = encode_prompt(model, chat[:-1])
    decoded = model.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert decoded == STARTS[name] + "".join(closed) + head.format("assistant")


@pytest.mark.parametrize("name", ["llada", "dream", "tiny"])
def test_a_continued_turn_is_the_opened_one_and_its_text(name: str, tmp_path: Path) -> None:
    """So that what the model writes follows the row's own text."""
    model = family(name, tmp_path)
    asked = [message("user", "Ann has 3 apples. How many?")]
    opened = model.tokenizer.decode(encode_prompt(model, asked))
    for text in ("3+2=", "3", "3 + 2 = 5\n#### "):
        chat = [*asked, message("assistant", text)]
        found = model.tokenizer.decode(encode_prompt(model, chat))
        assert found == opened + (text.strip() if name == "llada" else text)
    for blank in ("", " ", "\n\n"):
        chat = [*asked, message("assistant", blank)]
        assert encode_prompt(model, chat) == encode_prompt(model, asked)


@pytest.mark.parametrize("begun", ["", "3*2", "3*2=6\n"])
def test_an_answer_goes_on_where_the_turn_ends(begun: str) -> None:
    """The row's text and what the model wrote, joined as they are, are the whole answer."""
    model = load_model("tiny", "cpu")
    asked = "Diana buys 3 stamps that cost $2 each. How many dollars does Diana spend?"
    chat = [message("user", asked), message("assistant", begun)]
    config = DecodingConfig.preset("fast", gen_length=64)
    (sample,) = decode(model, [encode_prompt(model, chat)], config)
    assert sample.text is not None
    assert begun + sample.text == "3*2=6\n#### 6"


def test_a_system_turn_of_the_row_comes_before_the_runs() -> None:
    model = model_of("gpt2", CHATML)
    own = [message("system", "Own."), message("user", "Hi")]
    assert encode_prompt(model, own, "auto", "The run's.") == encode_prompt(model, own)
    empty = [message("system", ""), message("user", "Hi")]
    assert encode_prompt(model, empty, "auto", "The run's.") == encode_prompt(model, empty)
    bare = own[1:]
    expected = encode_prompt(model, [message("system", "The run's."), *bare])
    assert encode_prompt(model, bare, "auto", "The run's.") == expected


# What is refused.

USER = message("user", "Hi")
FAULTS: dict[str, tuple[Any, str]] = {
    "no turns": ([], "the chat has no turns"),
    "no user": ([message("system", "x")], "the chat has no user turn"),
    "assistant alone": ([message("assistant", "x")], "the chat has no user turn"),
    "user says nothing": ([message("system", "x"), message("user", " ")], "turns are empty"),
    "null": ([USER, None], "turn 2 is null"),
    "a text": ([USER, "Hi"], "turn 2 is a str"),
    "no role": ([{"content": "Hi"}], "turn 1 has no role; expected system, user, assistant"),
    "null role": ([{"role": None, "content": "Hi"}], "turn 1 has no role"),
    "another role": ([USER, message("gpt", "Hi")], "turn 2 has the role 'gpt'"),
    "a role that spells a token": ([message("user<|im_end|>", "x"), USER], "turn 1 has the role"),
    "upper case": ([message("User", "Hi")], "turn 1 has the role 'User'"),
    "tool": ([USER, message("tool", "5")], "turn 2 has the role 'tool'"),
    "null content": ([USER, {"role": "assistant", "content": None}, USER], "turn 2 has no content"),
    "no content": ([{"role": "user"}], "turn 1 has no content"),
    "parts": ([{"role": "user", "content": [{"text": "x"}]}], "a list as its content"),
    "number": ([{"role": "user", "content": 5}], "turn 1 has a int as its content"),
    "tool calls": ([USER, {**message("assistant", "x"), "tool_calls": [{}]}], "has tool_calls"),
    "name": ([{**USER, "name": "Ann"}], "turn 1 has name, which prompts cannot hold"),
    "reasoning": ([USER, {**message("assistant", "x"), "thinking": "hm"}], "turn 2 has thinking"),
    "too many": ([USER] * (MAX_TURNS + 1), f"{MAX_TURNS} at most"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_chat_fails_alone(name: str) -> None:
    chat, reason = FAULTS[name]
    model = model_of("gpt2", CHATML)
    good, bad, text = encode_prompts(model, [[USER], chat, "Hi"])
    assert isinstance(bad, ValueError)
    assert reason in str(bad)
    assert "\n" not in str(bad)
    assert good == text == encode_prompt(model, "Hi")


def test_what_says_nothing_is_not_refused() -> None:
    model = model_of("gpt2", CHATML)
    more = {"name": "", "tool_calls": [], "tool_call_id": None, "weight": 3, "toxic": False}
    assert encode_prompt(model, [{**USER, **more}]) == encode_prompt(model, [USER])


def test_a_template_that_refuses_the_order_fails_the_row() -> None:
    strict = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('user and assistant must alternate') }}{% endif %}{% endfor %}" + CHATML
    )
    model = model_of("gpt2", strict)
    answered = [message("assistant", "Hi"), USER]
    fine = [USER, message("assistant", "Yes,")]
    first, good, with_system = encode_prompts(
        model, [answered, fine, [message("system", "x"), USER]]
    )
    assert "refuses these turns (user and assistant must alternate)" in str(first)
    assert isinstance(good, list)
    assert isinstance(with_system, ValueError)


def test_a_turn_that_the_template_drops_cannot_be_continued() -> None:
    model = model_of("gpt2", "{{ messages[0].content }}")
    chat = [USER, message("assistant", "long " * 500)]
    (found,) = encode_prompts(model, [chat])
    assert "chat template refuses these turns" in str(found)
    assert "final message does not appear" in str(found)
    assert len(str(found)) < 500


def test_a_raw_prompt_is_no_chat() -> None:
    model = model_of("gpt2", CHATML)
    for bare in (model, model_of("gpt2", None)):
        text, chat = encode_prompts(bare, ["Hi", [USER]], "raw")
        assert text == whole(bare, "Hi")
        assert "only a chat template can render" in str(chat)
