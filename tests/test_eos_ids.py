"""Models with several EOS tokens: each ends an answer, and one alone is as it always was."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from helpers.random_model import EOS, LIVELY, PAD, VOCABULARY, random_model

import lrd
from lrd.models.checkpoint import LoadedModel
from lrd.models.protocol import eos_ids
from lrd.sample import Sample

PROMPTS = [[n, 3 * n % 40, 7] for n in range(1, 25)]
BLOCKS: dict[str, Any] = {"gen_length": 24, "block_length": 8, "entropy_threshold": 0.9}
SETTINGS: dict[str, dict[str, Any]] = {
    "baseline": {**BLOCKS, "r_f": 0.0, "max_refine_steps": 0},
    "refined": {**BLOCKS, "r_f": 0.3, "max_refine_steps": 3},
    "sampled": {**BLOCKS, "temperature": 0.7},
    "eos last": {
        **{name: BLOCKS[name] for name in ("gen_length", "block_length")},
        "r_f": 0.0,
        "max_refine_steps": 0,
        "steps": 24,
        "confidence": "probability",
        "confidence_eos_eot_inf": True,
    },
}


def model_with(*ids: int, eot_id: int | None = None) -> LoadedModel:
    model = random_model(**LIVELY)
    model.eos_ids = ids
    model.eos_id = ids[0]
    model.eot_id = eot_id
    return model


def decode(model: LoadedModel, settings: dict[str, Any]) -> list[Sample]:
    return lrd.decode(model, PROMPTS, lrd.DecodingConfig(**settings))


@pytest.mark.parametrize("name", SETTINGS)
def test_any_of_them_ends_an_answer(name: str) -> None:
    """With a token first that is never written, all is as with EOS alone but for the fill."""
    last = name == "eos last"
    alone = decode(model_with(EOS, eot_id=PAD if last else None), SETTINGS[name])
    both = decode(model_with(PAD, EOS), SETTINGS[name])
    assert all(PAD not in sample.canvas for sample in alone), "or it would not be the fill alone"
    for one, other in zip(alone, both, strict=True):
        filled = [
            PAD if step == 0 else t for t, step in zip(one.canvas, one.commit_step, strict=True)
        ]
        assert other.canvas == filled
        assert other.commit_step == one.commit_step
        assert other.stop_reason == one.stop_reason
        assert other.num_output_tokens == one.num_output_tokens
    assert any(0 < s.num_output_tokens < 24 for s in both)
    assert any(s.stop_reason == "eos" for s in both)


def test_the_first_of_them_in_the_canvas_ends_the_text() -> None:
    settings = {"gen_length": 24, "entropy_threshold": 0.9}
    alone = decode(model_with(EOS), settings)
    written = [token for sample in alone for token in sample.canvas if token != EOS]
    other = max(set(written), key=written.count)
    both = decode(model_with(EOS, other), settings)
    assert [s.canvas for s in both] == [s.canvas for s in alone]
    for sample in both:
        ends = [n for n, token in enumerate(sample.canvas) if token in (EOS, other)]
        assert sample.num_output_tokens == min(ends, default=24)
    assert [s.num_output_tokens for s in both] != [s.num_output_tokens for s in alone]


def test_none_of_them_is_written_where_eos_is_forbidden() -> None:
    settings = {**SETTINGS["baseline"], "logits_eos_inf": True}
    plain = {token for s in decode(model_with(EOS), settings) for token in s.canvas}
    assert EOS not in plain
    others = sorted(plain)[:5]
    found = {t for s in decode(model_with(EOS, *others), settings) for t in s.canvas}
    assert not found & {EOS, *others}
    assert found


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"eos_id": 5}, (5,)),
        ({"eos_id": 5, "eos_ids": (5,)}, (5,)),
        ({"eos_id": 5, "eos_ids": [5, 6]}, (5, 6)),
        ({"eos_id": 6, "eos_ids": (5, 6)}, (6, 5)),
        ({"eos_id": 7, "eos_ids": (5, 6)}, (7,)),
        ({"eos_id": 5, "eos_ids": ()}, (5,)),
    ],
)
def test_models_of_other_packages(members: dict[str, Any], expected: tuple[int, ...]) -> None:
    assert eos_ids(SimpleNamespace(**members)) == expected
    assert max(expected) < VOCABULARY
