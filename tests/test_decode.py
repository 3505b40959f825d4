"""`lrd.decode`: prompts in, samples in the same order out, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from helpers.random_model import EOS, LIVELY, VOCABULARY, random_model

import lrd
from lrd.models.checkpoint import LoadedModel
from lrd.models.registry import TINY

PROMPTS = [[3, 1, 4, 1, 5, 9], [2], [7, 7, 7, 20, 30, 40], [8, 9], [1, 2, 3, 4]]
CONFIG = lrd.DecodingConfig(
    gen_length=12, r_f=0.3, max_refine_steps=3, tau_refine=0.05, entropy_threshold=0.9
)


def test_decode_draws_by_the_runs_seed_and_the_index(model: LoadedModel) -> None:
    warm = CONFIG.model_copy(update={"temperature": 0.8})
    first = lrd.decode(model, PROMPTS, warm, batch_size=2)
    again = lrd.decode(model, PROMPTS, warm, batch_size=5)
    other = lrd.decode(model, PROMPTS, warm.model_copy(update={"seed": 1}))
    assert [s.canvas for s in first] == [s.canvas for s in again]
    assert [s.canvas for s in first] != [s.canvas for s in other]


def test_decode_keeps_the_order_of_the_prompts(model: LoadedModel) -> None:
    samples = lrd.decode(model, PROMPTS, CONFIG, batch_size=3)
    assert [sample.key for sample in samples] == list(range(len(PROMPTS)))
    forwards = [sample.num_forwards for sample in samples]
    assert forwards != sorted(forwards), "or the order in which they end would be the same"
    for sample, prompt in zip(samples, PROMPTS, strict=True):
        assert sample.canvas == lrd.decode(model, [prompt], CONFIG)[0].canvas
    assert lrd.decode(model, [], CONFIG) == []


def test_prompts_that_cannot_be_decoded_are_refused(model: LoadedModel) -> None:
    too_long = [1] * (model.max_length - CONFIG.gen_length + 1)
    for prompts, words in (
        ([[1, 2], []], "no tokens"),
        ([too_long], f"exceed the model's {model.max_length} positions"),
        ([[1, VOCABULARY]], f"token id {VOCABULARY}"),
        ([[-1]], "token id -1"),
        (["words"], "no tokenizer"),
    ):
        with pytest.raises(ValueError, match=words):
            lrd.decode(model, prompts, CONFIG)
    (longest,) = lrd.decode(model, [too_long[1:]], CONFIG)
    assert longest.error is None


class Letters:
    """A tokenizer: a is 0, b is 1, and so on."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [ord(letter) - ord("a") for letter in text]

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join(chr(ord("a") + token) for token in ids)


def test_text_is_what_stands_before_the_first_eos() -> None:
    model = random_model(**LIVELY, tokenizer=Letters())
    samples = lrd.decode(model, ["bad", "egg", "fee"], CONFIG)
    by_ids = lrd.decode(model, [[1, 0, 3], [4, 6, 6], [5, 4, 4]], CONFIG)
    assert [s.canvas for s in samples] == [s.canvas for s in by_ids]
    for sample in samples:
        before = sample.canvas[: [*sample.canvas, EOS].index(EOS)]
        assert sample.text == Letters().decode(before, True)
        assert sample.num_output_tokens == len(before)
    assert any(0 < s.num_output_tokens < CONFIG.gen_length for s in samples)
    without = lrd.decode(random_model(seed=5), [[1]], CONFIG)
    assert without[0].text is None


def test_without_settings_the_preset_fast_is_used(model: LoadedModel) -> None:
    long = random_model(seed=0, max_length=200)
    (sample,) = lrd.decode(long, [[1, 2, 3]])
    (expected,) = lrd.decode(long, [[1, 2, 3]], lrd.DecodingConfig.preset("fast"))
    assert (sample.canvas, sample.commit_step) == (expected.canvas, expected.commit_step)
    with pytest.raises(ValueError, match="gen_length 128 exceed"):
        lrd.decode(model, [[1, 2, 3]])


@pytest.mark.skipif(not (TINY / "model.safetensors").is_file(), reason="tiny's weights are absent")
def test_the_readmes_snippets_run(capsys: pytest.CaptureFixture[str]) -> None:
    readme = Path(lrd.__file__).with_name("README.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert snippets
    scope: dict[str, Any] = {}
    for snippet in snippets:
        exec(snippet, scope)
    assert capsys.readouterr().out.strip()
