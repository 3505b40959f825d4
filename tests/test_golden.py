"""Parity with the originals' own code: logits, baseline samplers, latent refinement."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.cached_reference import Passes
from helpers.few import spread
from helpers.golden import (
    SHARED,
    Record,
    Watched,
    blocks_of_one_pass,
    cases,
    load,
    meta,
    note,
    records,
    sampler_settings,
    skip,
    sure_passes,
)

import lrd
from lrd.commit_rules import gumbel_tokens, scheduled_quota
from lrd.models.checkpoint import LoadedModel

LIMIT = 2e-4
"""Largest error of a float32 logit; their spread is about 4."""
TRACE_LIMIT = 2e-3

DREAMS_CACHE = (
    "Fast-dLLM on Dream commits a block's first position, and it alone, in the full pass and feeds "
    "[start, end) afterwards; here the full pass commits what the rule names and [start - 1, end) "
    "is fed: see test_fast_dllms_cached_rule_on_dream"
)
MASK_WRITTEN = "the original commits [MASK] itself, here it never is"
MASK_IN_PROMPT = (
    "the original writes into a prompt's own [MASK]s, here a prompt stays as it is: its holes are "
    "those of a canvas, see test_scaffolds"
)
NATIVE = "bfloat16 confidences tie: information only"


def test_all_golden_records_are_here() -> None:
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there: only the case in tests/data is compared")
    assert len(cases()) == 11


# Logits


def aligned(model: LoadedModel, raw: torch.Tensor) -> torch.Tensor:
    """An original's logits moved to the position that they predict (Dream's shift)."""
    if not model.transformer.config.logit_shift:
        return raw
    return torch.cat([raw[:, :1], raw[:, :-1]], dim=1)


def error(ours: torch.Tensor, theirs: torch.Tensor, where: torch.Tensor | None = None) -> float:
    assert ours.shape == theirs.shape
    difference = (ours.float() - theirs.float()).abs()
    return float((difference if where is None else difference[where]).max())


@pytest.mark.parametrize("record", records("logits"), ids=str)
def test_logits(record: Record, request: pytest.FixtureRequest) -> None:
    if meta(record.folder)["dtype"] == "bfloat16":
        if not record.has("logits_float32_compute"):
            skip(request, record, "native bfloat16 logits; see test_native_bfloat16_logits")
        model, worst = record.model, 0.0
        ids = record.tensor("input_ids")
        theirs = aligned(model, record.tensor("logits_float32_compute"))
        worst = error(model.logits(model.embed(ids)), theirs)
    else:
        worst = float32_error(record)
    note(request, record, **{"logit error": worst})
    assert worst < LIMIT


def float32_error(record: Record) -> float:
    """The largest error over everything that the record holds."""
    model, kind = record.model, record.entry["kind"]
    if kind == "inputs_embeds":
        ours = model.logits(record.tensor("inputs_embeds"))
        return error(ours, aligned(model, record.tensor("logits")))
    if kind == "approximate_kv_cache":
        ours = model.logits(model.embed(record.tensor("input_ids_after")))
        return error(ours, aligned(model, record.tensor("nocache_logits")))
    embeds = model.embed(record.tensor("input_ids"))
    if kind == "single":
        worst = error(model.logits(embeds), aligned(model, record.tensor("logits")))
        if record.has("hidden_states"):
            worst = max(worst, error(hidden_states(model, embeds), record.tensor("hidden_states")))
        return worst
    assert kind == "left_padded_batch"
    mask = record.tensor("attention_mask")
    # The original takes a padded row's first logits from the padding before it: with Dream's
    # shift that position is compared with the row alone only.
    real = (mask.cumsum(-1) > (1 if model.transformer.config.logit_shift else 0)) & mask.bool()
    ours = model.logits(embeds, mask)
    honoured = ("logits_mask_honoured", "logits_hf", "logits_fastdllm")
    worst = max(
        error(ours, aligned(model, record.tensor(part)), real)
        for part in honoured
        if record.has(part)
    )
    if record.has("logits_mask_ignored"):
        worst = max(worst, error(model.logits(embeds), record.tensor("logits_mask_ignored")))
    for row, length in enumerate(mask.sum(-1).tolist()):
        alone = model.logits(embeds[row : row + 1, -length:])
        worst = max(
            worst,
            error(alone, aligned(model, record.tensor(f"alone{row}.logits"))),
            error(alone, ours[row : row + 1, -length:]),
        )
    return worst


def hidden_states(model: LoadedModel, embeds: torch.Tensor) -> torch.Tensor:
    """The input of every block, then the output of the final norm [layers + 1, L, D]."""
    seen: list[torch.Tensor] = []
    hooks = [
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
        for block in model.transformer.blocks
    ]
    with torch.no_grad():
        final = model.transformer.hidden(embeds)
    for hook in hooks:
        hook.remove()
    return torch.stack([*seen, final[0]])


@pytest.mark.parametrize(
    "record", [r for r in records("logits") if meta(r.folder)["dtype"] == "bfloat16"], ids=str
)
def test_native_bfloat16_logits(record: Record) -> None:
    """bfloat16 keeps 8 bits: errors of two steps at the size of the largest logit, at most."""
    model = load(record.folder, "bfloat16")
    mask = None
    if record.has("inputs_embeds"):
        embeds = record.tensor("inputs_embeds").bfloat16()
    else:
        embeds = model.embed(record.tensor("input_ids"))
    if record.has("attention_mask"):
        mask = record.tensor("attention_mask")
    parts = [p for p in ("logits", "logits_mask_honoured", "logits_hf") if record.has(p)]
    theirs = aligned(model, record.tensor(parts[0]))
    ours = model.logits(embeds, mask)
    where = None if mask is None else mask.cumsum(-1) > 1
    assert ours.dtype == torch.bfloat16
    spacing = float(theirs.float().abs().max()) * 2**-7
    assert error(ours, theirs, where) <= 2 * spacing


# Baseline samplers


def samplers() -> list[Record]:
    return [r for r in records("generate") if r.name not in ("gumbel", "loglik")]


@pytest.mark.parametrize("record", spread(samplers()))
def test_sampler(record: Record, request: pytest.FixtureRequest) -> None:
    native = record.name == "native_bf16_info"
    model = load(record.folder, "bfloat16") if native else record.model
    config = sampler_settings(record)
    prompt = record.tensor("prompt")
    real = record.tensor("attention_mask").bool() if record.has("attention_mask") else prompt >= 0
    prompts = [row[keep].tolist() for row, keep in zip(prompt, real, strict=True)]
    expected = record.tensor("sequences")[:, prompt.shape[1] :].tolist()
    eot_id = record.call.get("eot_id")
    model.eot_id = eot_id
    try:
        batched = {side: lrd.decode(model, prompts, config, padding_side=side) for side in SIDES}
        alone = [lrd.decode(model, [prompt], config)[0] for prompt in prompts]
    finally:
        model.eot_id = None
    for side in SIDES:
        assert [s.canvas for s in batched[side]] == [s.canvas for s in alone]
    assert all(model.mask_id not in sample.canvas for sample in alone)

    equal = sum(
        ours == theirs
        for sample, row in zip(alone, expected, strict=True)
        for ours, theirs in zip(sample.canvas, row, strict=True)
    )
    measured = f"{equal} of {len(prompts) * config.gen_length} tokens are equal"
    if any(model.mask_id in tokens for tokens in prompts):
        skip(request, record, f"{MASK_IN_PROMPT} ({record.name}: {measured})")
    if any(model.mask_id in row for row in expected):
        assert record.entry["edge"]
        skip(request, record, f"{MASK_WRITTEN} ({record.name}: {measured})")
    if native:
        skip(request, record, f"{NATIVE} ({measured})")
    if config.caches and record.model.transformer.config.logit_shift:
        skip(request, record, DREAMS_CACHE)
    note(request, record)
    assert [sample.canvas for sample in alone] == expected, measured
    if not config.caches:
        assert {sample.num_forwards for sample in alone} == {record.entry["nfe"]}
        return
    (sample,) = alone
    unneeded = blocks_of_one_pass(sample, config)
    assert sample.num_forwards + unneeded == record.entry["nfe"]
    assert sample.full_passes == config.num_blocks
    if unneeded == 0:
        assert sample.positions_computed == sum(record.entry["forward_lengths"])


SIDES = ("left", "right")


@pytest.mark.parametrize("record", [r for r in samplers() if "dual_cache" in r.call], ids=str)
def test_fast_dllms_cached_rule_on_dream(record: Record, request: pytest.FixtureRequest) -> None:
    """With the rule that the skip above states, the plain cached pass gives the records."""
    model, config, prompt = record.model, sampler_settings(record), record.tensor("prompt")[0]
    passes = Passes(model, config, len(prompt))
    K, T = config.block_tokens, len(prompt) + config.gen_length
    steps = record.call["steps"] // config.num_blocks
    time = torch.linspace(1, 1e-3, steps + 1)
    ids = torch.cat([prompt, torch.full((config.gen_length,), model.mask_id)])
    column, everything = torch.arange(T), torch.ones(T, dtype=torch.bool)

    def forward(fed: torch.Tensor) -> torch.Tensor:
        return passes.forward(model.embed(ids[None])[0], everything, fed)

    num_forwards = 0
    for start in range(len(prompt), T, K):
        block = (column >= start) & (column < start + K)
        ids[start] = forward(everything)[start].argmax()
        num_forwards += 1
        fed = block if config.kv_cache == "dual" else column >= start
        for step in range(1, T):
            if config.steps is not None and step == steps:
                break
            still_open = column[block & (ids == model.mask_id)]
            log_p = forward(fed)[still_open].log_softmax(-1)
            num_forwards += 1
            sure, token = log_p.max(-1)
            if config.steps is None:
                order = sure.argsort(descending=True)
                count = max(1, int((sure.exp() >= config.confidence_threshold).sum()))
            else:  # Its schedule begins with the block's second timestep.
                order = (log_p.exp() * log_p).sum(-1).argsort(descending=True)
                last = step == steps - 1
                share = 1.0 if last else float(1 - time[step + 1] / time[step])
                count = int(len(still_open) * share)
            ids[still_open[order[:count]]] = token[order[:count]]
            if not (ids[block] == model.mask_id).any():
                break
    note(request, record)
    assert ids.tolist() == record.tensor("sequences")[0].tolist()
    assert num_forwards == record.entry["nfe"]


@pytest.mark.parametrize("record", [r for r in records("generate") if r.name == "gumbel"], ids=str)
def test_gumbel_rule(record: Record, request: pytest.FixtureRequest) -> None:
    logits = record.tensor("logits")
    for temperature in record.call["temperatures"]:
        uniform = record.tensor(f"uniform_T{temperature}")
        warm = torch.full(logits.shape[:-1], temperature, dtype=torch.float64)
        tokens = gumbel_tokens(logits.double().log_softmax(-1), warm, uniform)
        assert torch.equal(tokens, record.tensor(f"argmax_T{temperature}"))
    note(request, record)


@pytest.mark.parametrize("record", [r for r in records("generate") if r.name == "loglik"], ids=str)
def test_log_likelihood(record: Record, request: pytest.FixtureRequest) -> None:
    """The original's Monte Carlo estimate from its own draws: logits at many noise levels."""
    model = record.model
    answer = torch.cat([record.tensor("prompt"), record.tensor("answer")])
    losses = []
    for noised, share in zip(record.tensor("noised"), record.tensor("p_mask"), strict=True):
        masked = noised == model.mask_id
        log_p = model.logits(model.embed(noised)).log_softmax(-1)
        target = answer.expand_as(noised)[..., None]
        loss = -log_p.gather(-1, target)[..., 0]
        losses.append(float((loss[masked] / share[masked]).sum()) / len(noised))
    value = -sum(losses) / len(losses)
    note(request, record)
    assert value == pytest.approx(record.entry["value"], abs=1e-3)


@pytest.mark.parametrize(
    ("folder", "schedule"),
    [(f, s) for f in cases() for s in meta(f).get("transfer_schedule", [])],
    ids=lambda value: (
        value.name if hasattr(value, "name") else f"{value['masks']}/{value['steps']}"
    ),
)
def test_transfer_schedule(folder, schedule, request: pytest.FixtureRequest) -> None:
    record = Record(folder, "schedule", {"name": "transfer_schedule"})
    masks, steps = schedule["masks"], schedule["steps"]
    if masks == 0:
        skip(request, record, "a canvas of no positions cannot be set")
    config = lrd.DecodingConfig(gen_length=masks, steps=steps)
    still_open, ours = masks, []
    for number in range(1, steps + 1):
        quota = scheduled_quota(
            config, torch.tensor([still_open]), torch.tensor([number]), torch.tensor([masks])
        )
        ours.append(min(int(quota), still_open))
        still_open -= ours[-1]
    note(request, record)
    assert ours == schedule["tokens_per_step"]


# Latent refinement


@pytest.mark.parametrize("record", spread(records("lrd")))
def test_latent_refinement(record: Record, request: pytest.FixtureRequest) -> None:
    config = lrd.DecodingConfig(**record.entry["settings"], stop_at_eos=False)
    prompt = record.tensor("prompt").flatten().tolist()
    watched = Watched(record.model)
    sample = lrd.decode(watched, [prompt], config)[0]

    assert sample.canvas == record.tensor("output").flatten().tolist()
    assert sample.commit_step == record.tensor("commit_step").flatten().tolist()
    for count in ("num_forwards", "refine_steps", "decode_steps"):
        assert getattr(sample, count) == record.entry[count]
    assert sample.stop_reason == record.entry["stops"][-1]
    if config.refinement == "initial":
        assert sample.refine_converged == all(record.entry["refine_converged"])

    # Traces agree in every pass, or until after one whose nuclei rounding decides.
    kl = torch.tensor(sample.kl_trace).nan_to_num(nan=-1)
    errors = torch.maximum(
        (kl - record.tensor("kl_mean_block").flatten()).abs(),
        (torch.tensor(sample.entropy_trace) - record.tensor("entropy_mean_open").flatten()).abs(),
    )
    apart = (errors >= TRACE_LIMIT).nonzero().flatten().tolist()
    held = apart[0] if apart else sample.num_forwards
    note(
        request,
        record,
        **{
            "trace error": float(errors[:held].max()),
            "trace passes": held,
            "all passes": sample.num_forwards,
        },
    )
    assert held >= sure_passes(watched.passes, sample, config, record.model.mask_id)


@pytest.mark.parametrize(("record", "side"), spread(records("lrd"), SIDES, every=4))
def test_latent_refinement_among_others(record: Record, side: Any) -> None:
    """The same sample between a shorter and a longer prompt, padded on either side."""
    config = lrd.DecodingConfig(**record.entry["settings"], stop_at_eos=False)
    prompt = record.tensor("prompt").flatten().tolist()
    others = [prompt[: max(1, len(prompt) // 2)], [*prompt[::-1], *prompt[:7]]]
    samples = lrd.decode(record.model, [others[1], prompt, others[0]], config, padding_side=side)
    assert samples[1].canvas == record.tensor("output").flatten().tolist()
    assert samples[1].commit_step == record.tensor("commit_step").flatten().tolist()
    assert samples[1].num_forwards == record.entry["num_forwards"]
