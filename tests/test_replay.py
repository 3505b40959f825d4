"""Replays: the same answers, and beliefs that are those of the passes."""

from __future__ import annotations

import math

import pytest
import torch

from lrd import DecodingConfig, decode
from lrd.models.checkpoint import LoadedModel
from lrd.replay import nucleus_sizes, replay

PROMPTS = [[3, 9, 4], [5, 1, 8, 2, 7], [11]]
CONFIGS = [
    DecodingConfig(gen_length=12, max_refine_steps=3, tau_refine=0.0),
    DecodingConfig(gen_length=12, block_length=4, early_stop=True, tau_decode=0.5, top_p=0.6),
    DecodingConfig.preset("fast", gen_length=12),
    DecodingConfig.preset("baseline", gen_length=12),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["fixed", "blocks", "fast", "baseline"])
def test_a_replay_is_the_decoding_itself(model: LoadedModel, config: DecodingConfig) -> None:
    samples = decode(model, PROMPTS, config, batch_size=2)
    found = replay(model, config, PROMPTS, [sample.canvas for sample in samples])
    for one, sample in zip(found, samples, strict=True):
        assert one.token_ids == sample.canvas
        assert len(one.kl_to_final) == len(one.nucleus_share) == sample.num_forwards
        assert all(value >= -1e-6 for value in one.kl_to_final)


def test_the_first_pass_is_as_far_from_the_answer_as_the_plain_model_says(
    model: LoadedModel,
) -> None:
    config = DecodingConfig(gen_length=6, top_p=0.8)
    (sample,) = decode(model, PROMPTS[:1], config)
    (one,) = replay(model, config, PROMPTS[:1], [sample.canvas])
    ids = torch.tensor([PROMPTS[0] + [model.mask_id] * 6])
    places = torch.arange(3, 9)[None]
    logits = model.logits(model.embed(ids), torch.ones_like(ids), places)[0].double()
    logits[:, model.mask_id] = -torch.inf
    p = logits.softmax(-1)
    expected = -sum(math.log(p[n, token]) for n, token in enumerate(sample.canvas)) / 6
    assert one.kl_to_final[0] == pytest.approx(expected, rel=1e-4)
    # All six positions take a mixture after a refinement pass.
    sizes = [size_by_loop(row, 0.8) for row in p.tolist()]
    assert one.nucleus_share[0] == pytest.approx(sum(sizes) / 6 / p.shape[1], rel=1e-5)


def size_by_loop(p: list[float], top_p: float) -> int:
    mass, size = 0.0, 0
    for value in sorted(p, reverse=True):
        mass, size = mass + value, size + 1
        if mass >= top_p:
            return size
    return size


def test_the_last_commit_is_all_that_is_left(model: LoadedModel) -> None:
    config = DecodingConfig.preset("baseline", gen_length=5)
    (sample,) = decode(model, PROMPTS[:1], config)
    (one,) = replay(model, config, PROMPTS[:1], [sample.canvas])
    # One open position, whose token is the most probable of 48: at most log 47 over five.
    assert 0 <= one.kl_to_final[-1] <= math.log(47) / 5
    assert all(math.isnan(share) for share in one.nucleus_share)


def test_sizes_of_nuclei() -> None:
    p = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.25, 0.25, 0.25, 0.25]])
    assert nucleus_sizes(p, 0.75).tolist() == [2, 3]
    assert nucleus_sizes(p, 0.1).tolist() == [1, 1]
    assert nucleus_sizes(p, 1.0).tolist() == [4, 4]


def test_another_draw_is_another_answer(model: LoadedModel) -> None:
    with pytest.raises(ValueError, match="only argmax can be replayed"):
        replay(model, DecodingConfig(gen_length=4, temperature=0.5), PROMPTS, [[0] * 4] * 3)
