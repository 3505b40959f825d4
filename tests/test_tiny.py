"""The embedded model's task and recipe: problems, examples, training data, one step of training."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import lrd
from jobs.tiny import train
from jobs.tiny.accuracy import distinct, measure
from jobs.tiny.heldout_loss import heldout
from jobs.tiny.problems import KINDS, problems
from lrd.models.families import LLADA
from lrd.models.registry import TINY
from lrd.models.transformer import Transformer
from lrd.prompts import encode_prompt
from pipeline.scoring.word_problems import final_answer

EXAMPLES = Path(train.__file__).parents[1] / "examples"


def test_equations_hold_and_lead_to_the_answer() -> None:
    seen = set()
    for problem in islice(problems("train", seed=3), 2000):
        for equation in problem.equations:
            left, operator, right, value = re.fullmatch(
                r"(\d+)([-+*/])(\d+)=(\d+)", equation
            ).groups()
            a, b = int(left), int(right)
            assert int(value) == {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[operator]
        assert problem.equations[-1].endswith(f"={problem.answer}")
        assert final_answer(problem.solution) == str(problem.answer)
        seen.add(problem.key.split()[0])
    assert len(seen) == len(KINDS)


def test_train_and_test_share_no_structure_with_its_numbers() -> None:
    train = {problem.key for problem in islice(problems("train", seed=1), 5000)}
    test = {problem.key for problem in islice(problems("test", seed=1), 2000)}
    assert not train & test
    assert len(test) > 500


def test_a_stream_is_its_seeds() -> None:
    first, again, other = (
        [p.question for p in islice(problems("test", seed), 50)] for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1+1=2\n#### 2", "2"),
        ("#### 3\n#### 4 apples", "4"),
        ("no mark 5", None),
        ("####", None),
        ("", None),
    ],
)
def test_final_answer(text: str, expected: str | None) -> None:
    assert final_answer(text) == expected


def test_examples_are_test_problems_with_their_references() -> None:
    shards = sorted(EXAMPLES.glob("*.parquet"))
    assert len(shards) == 4
    rows = pa.concat_tables([pq.read_table(shard) for shard in shards]).to_pylist()
    assert len(rows) >= 500
    assert len({row["prompt"] for row in rows}) == len(rows)
    by_question = {p.question: p for p in distinct(len(rows), seed=2026)}
    for row in rows:
        problem = by_question[row["prompt"]]
        assert problem.split == "test"
        assert (row["reference"], row["answer"]) == (problem.solution, str(problem.answer))


def test_solutions_fit_the_shortest_canvas_and_prompts_their_slots() -> None:
    model = lrd.load_model("tiny", "meta")
    for problem in islice(problems("train", seed=4), 1000):
        assert len(model.tokenizer.encode(problem.solution)) < min(train.CANVAS_LENGTHS)
        assert len(encode_prompt(model, problem.question)) <= max(train.PROMPT_LENGTHS)


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    tokenizer = train.train_tokenizer(tmp_path, seed=1)
    torch.manual_seed(0)
    model = Transformer(LLADA.transformer_config(train.checkpoint_config()))
    batch = train.Batches(tokenizer, seed=1, tokens_per_batch=1500).next()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(12):
        torch.manual_seed(step % 2)
        loss, right = train.diffusion_loss(model, *batch, soft=step % 2 == 1, suffix=True)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        assert 0 <= right.item() <= 1
    assert losses[-1] < losses[1] < 20, "soft and hard batches alike"
    assert losses[-2] < losses[0]
    train.save_checkpoint(dict(model.named_parameters()), tmp_path)
    again = lrd.load_model(tmp_path)
    assert again.mask_id == train.SPECIAL.index("<|mask|>")
    ids = torch.tensor([[3, 40, 41, 4, 0, 0]])
    ours = model.to(torch.bfloat16).float()
    expected = ours.project(ours.hidden(ours.embedding(ids)))
    assert torch.allclose(again.logits(again.embed(ids)), expected, atol=1e-4)


def test_the_card_counts_right_answers() -> None:
    model = lrd.load_model("tiny")
    tested = distinct(12, seed=11)
    config = lrd.DecodingConfig.preset("fast", gen_length=64)
    right, forwards = measure(model, tested, config)
    samples = lrd.decode(model, [encode_prompt(model, p.question) for p in tested], config)
    expected = [
        str(s.text).split("####")[-1].strip() == str(p.answer)
        for s, p in zip(samples, tested, strict=True)
    ]
    assert right == sum(expected)
    assert forwards == sum(s.num_forwards for s in samples) / 12


@pytest.mark.slow
def test_heldout_loss_is_lower_with_soft_embeddings() -> None:
    """tiny was trained with them; the same problems and masks for both."""
    plain, _ = heldout(str(TINY), soft=False, num_batches=3, seed=1)
    soft, right = heldout(str(TINY), soft=True, num_batches=3, seed=1)
    assert 0 < soft < plain < 1
    assert (soft, right) == heldout(str(TINY), soft=True, num_batches=3, seed=1)
