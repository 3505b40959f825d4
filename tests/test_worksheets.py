"""Worksheets: what they ask, what training and measuring make of them, and how they are scored."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

import lrd
from jobs import evaluate
from jobs.tiny import accuracy, example_sheets, train
from jobs.tiny.problems import problems
from jobs.tiny.worksheets import LETTERS, MAX_PROBLEMS, Sheet, sheets
from lrd.models.registry import TINY
from lrd.prompts import encode_prompt
from pipeline.output import result_shards
from pipeline.rows import Layout, Result, results_batch, row_id
from pipeline.scoring.tasks import TASKS
from pipeline.scoring.word_sheets import final_answers
from pipeline.storage.storage import Storage

EXAMPLES = Path(example_sheets.__file__).parents[1] / "example_sheets"
TASK = TASKS["word-sheets"]


@pytest.mark.parametrize("size", range(1, MAX_PROBLEMS + 1))
def test_a_sheet_asks_its_problems_and_solves_them_in_order(size: int) -> None:
    for sheet in islice(sheets("train", 3, [size]), 50):
        assert len({problem.question for problem in sheet.problems}) == size
        asked = sheet.question.split("\n")
        assert asked == [
            (f"{letter}) " if size > 1 else "") + problem.question
            for letter, problem in zip(LETTERS, sheet.problems, strict=False)
        ]
        assert final_answers(sheet.solution, size) == [str(p.answer) for p in sheet.problems]
        assert sheet.solution.count("####") == size


def test_a_sheet_of_one_problem_is_the_problem() -> None:
    (problem,) = islice(problems("test", 1), 1)
    assert Sheet((problem,)).question == problem.question
    assert Sheet((problem,)).solution == problem.solution
    assert accuracy.distinct(40, 7) == [s.problems[0] for s in accuracy.distinct_sheets(40, 7, [1])]


def test_train_and_test_sheets_share_no_problem() -> None:
    keys = {
        split: {p.key for s in islice(sheets(split, 1, [2, 6]), 800) for p in s.problems}
        for split in ("train", "test")
    }
    assert len(keys["test"]) > 400
    assert not keys["train"] & keys["test"]


def test_a_stream_is_its_seed_and_sizes() -> None:
    first, again, other, sizes = (
        [sheet.question for sheet in islice(sheets("train", seed, size), 30)]
        for seed, size in ((1, [2, 3]), (1, [2, 3]), (2, [2, 3]), (1, [3, 4]))
    )
    assert first == again
    assert first != other
    assert first != sizes


@pytest.mark.parametrize("sizes", [[], [0], [2, MAX_PROBLEMS + 1]])
def test_sizes_without_letters_are_refused(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="each must be 1 to 6"):
        next(sheets("train", 1, sizes))


def test_the_longest_sheets_fit_prompts_of_256_and_canvases_of_256() -> None:
    model = lrd.load_model("tiny", "meta")
    for sheet in islice(sheets("train", 5, [MAX_PROBLEMS]), 1000):
        assert len(encode_prompt(model, sheet.question)) <= 256
        assert len(model.tokenizer.encode(sheet.solution)) < 256
    assert model.max_length >= 512


def test_batches_hold_whole_sheets_and_pad_little() -> None:
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    batches = train.SheetBatches(tokenizer, seed=1, tokens_per_batch=3000)
    solutions = {
        tuple(tokenizer.encode(sheet.solution).ids)
        for sheet in islice(sheets("train", 1, train.SHEET_SIZES), 4000)
    }
    lengths = set()
    num_padded = num_prompt = 0
    for _ in range(60):
        ids_BL, mask_BL, start = batches.next()
        canvas = ids_BL.shape[1] - start
        assert ids_BL.numel() <= 3000
        assert start <= 256
        assert canvas <= 256
        lengths.add(canvas)
        num_padded += int((mask_BL == 0).sum())
        num_prompt += mask_BL[:, :start].numel()
        assert (mask_BL[:, start:] == 1).all()
        for row in ids_BL[:, start:].tolist():
            written = row[: row.index(batches.eos)]
            assert tuple(written) in solutions
            assert set(row[len(written) :]) == {batches.eos}
    assert len(lengths) > 3
    assert num_padded / num_prompt < 0.1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("mark", "parts"),
    [
        ("#", ["A) 1+1=2\n# 2\n", "B) 2*3=6\n6-4=2\n# 2\n", "C) 4/2=2\n# 2"]),
        ("#", ["1+1=2\n2+7=9\n# 9"]),
        ("\n", ["31+12=43\n", "25-4=21\n", "40/4=10\n", "# 10"]),
    ],
)
def test_an_answer_is_masked_from_one_position_on_or_each_part_from_its_own(
    mark: str, parts: list[str], seed: int
) -> None:
    """Characters stand for tokens; 1 is EOS."""
    torch.manual_seed(seed)
    ids = [7] * 5 + [*map(ord, "".join(parts))] + [1] * 9
    marks = train.Marks(answer=ord(mark), newline=ord("\n"))
    masked_BL, weight_BL = train.masked_sheets(torch.tensor([ids] * 64), 5, marks)
    lengths = [*map(len, parts), 9]
    kinds = dict.fromkeys(("whole", "parts", "random"), 0)
    for masked, weight in zip(masked_BL, weight_BL, strict=True):
        assert not masked[:5].any()
        *found, eos = masked[5:].split(lengths)
        weights = weight[5:].split(lengths)
        least = train.LEAST_MASKED
        expected = [len(part) / max(int(part.sum()), least) for part in found] + [1.0]
        equal = [torch.full_like(w, e) for w, e in zip(weights, expected, strict=True)]
        if len(parts) > 1 and masked.tolist() == sorted(masked.tolist()):
            kinds["whole"] += 1
        elif all(map(torch.equal, weights, equal)):
            kinds["parts"] += 1
            assert eos.all(), "EOS behind the last part is decoded with it"
            for part in found:
                assert part[-1]
                assert part.tolist() == sorted(part.tolist())
        else:
            kinds["random"] += 1
    suffixes = kinds["whole"] + kinds["parts"]
    assert 42 <= suffixes <= 58
    assert len(parts) == 1 or 10 <= kinds["whole"] <= 22


def trained(output: Path, **changes: object) -> dict[str, torch.Tensor]:
    """The weights after the steps of one short training on from tiny's, in this process."""
    args = train.parser().parse_args(["--output", str(output), "--start", str(TINY)])
    settings = {"sheets": 0.5, "tokens": 600, "processes": 1, "no_compile": True, "save_every": 1}
    vars(args).update(settings | changes)
    train.prepare_tokenizer(args)
    num_threads = torch.get_num_threads()
    train.train(0, args)
    torch.set_num_threads(num_threads)
    return load_file(str(output / "final" / "model.safetensors"))


def test_training_goes_on_from_weights_and_from_its_checkpoint(tmp_path: Path) -> None:
    tiny = load_file(str(TINY / "model.safetensors"))
    still = trained(tmp_path / "still", steps=1, peak=0.0)
    assert all(torch.equal(still[name], tiny[name]) for name in tiny)
    first = trained(tmp_path / "moved", steps=1, peak=0.1)
    second = trained(tmp_path / "moved", steps=2, peak=0.1)
    head = "model.transformer.ff_out.weight"
    assert 0 < (first[head] - tiny[head]).abs().max() < 0.1
    assert not torch.equal(first[head], second[head])
    saved = torch.load(tmp_path / "moved" / "progress0.pt", weights_only=True)
    assert saved["step"] == 2
    assert trained(tmp_path / "moved", steps=2).keys() == second.keys()
    assert (tmp_path / "moved/final/tokenizer.json").read_bytes() == (
        TINY / "tokenizer.json"
    ).read_bytes()
    lrd.load_model(tmp_path / "moved" / "final", "meta")


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [
        ("1+1=2\n#### 2", 1, ["2"]),
        ("A) 1+1=2\n#### 2\nB) 2*3=6\n#### 6", 2, ["2", "6"]),
        ("A) 1+1=2\n#### 2\nC) 2*3=6\n#### 6", 3, ["2", None, "6"]),
        ("A) 1+1=2\n#### 2\nB) 2*3=6", 2, ["2", None]),
        ("B) #### 6\nA) #### 2", 2, ["2", "6"]),
        ("A) #### 1\nA) #### 2\nB) #### 3", 2, ["2", "3"]),
        ("A) #### 1 A) #### 2", 2, ["2", None]),
        ("#### 1\n#### 2", 2, [None, None]),
        ("", 2, [None, None]),
        ("", 1, [None]),
        ("A) #### 2\nB) #### 3\nC) #### 4", 2, ["2", "3"]),
    ],
)
def test_final_answers(text: str, count: int, expected: list[str | None]) -> None:
    assert final_answers(text, count) == expected


@pytest.mark.parametrize(
    ("text", "correct", "extracted", "reason"),
    [
        ("A) #### 2\nB) #### 6\nC) #### 7", True, "2 6 7", None),
        ("A) #### 2\nB) #### 5\nC) #### 7", False, "2 5 7", "1 of 3 problems wrong"),
        ("A) #### 2\nB) 1+1\nC) #### 8", False, "2 - 8", "2 of 3 problems wrong"),
        ("2 6 7", False, None, "no answer found"),
    ],
)
def test_a_sheet_is_right_where_all_its_problems_are(
    text: str, correct: bool, extracted: str | None, reason: str | None
) -> None:
    score = TASK.score(text, "2 6 7", {})
    assert (score.correct, score.extracted, score.reason) == (correct, extracted, reason)


def test_the_command_counts_problems_and_sheets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A right sheet, one with a wrong problem, one without an answer, one that was not decoded,
    and a right single problem."""
    answers = ["2 6", "2 6 7", "1 2", "3 4", "9"]
    texts = ["A) #### 2\nB) #### 6", "A) #### 2\nB) #### 5\nC) #### 7", "?", None, "#### 9"]
    rows = []
    for index, text in enumerate(texts):
        row = Result.failed(row_id(0, index), "too long")
        rows.append(row if text is None else _decoded(row, text))
    shard = pa.table({"prompt": ["?"] * 5, "answer": answers})
    content = result_shards.shard_bytes(
        shard, pa.Table.from_batches([results_batch(rows, Layout().schema)]), {}
    )
    Storage(str(tmp_path / "out")).write("data/train-00000-of-00001.parquet", content)
    for words in ([], ["--output", str(tmp_path / "elsewhere" / "s.parquet")]):
        parser = argparse.ArgumentParser()
        evaluate.add_arguments(parser)
        words = [str(tmp_path / "out"), "--task", "word-sheets", "--workers", "1", *words]
        assert evaluate.run(parser.parse_args(words)) == 0
        printed = capsys.readouterr().out.strip().splitlines()
        assert printed[0].startswith("word-sheets: 2 of 5 right, 40.0%")
        assert "problems: 5 of 10 right, 50.0%" in printed
        found = json.loads(printed[-1])
        assert (found["num_problems_right"], found["num_problems"]) == (5, 10)
        assert found["wrong"]["1 of 3 problems wrong"] == 1


def _decoded(row: Result, text: str) -> Result:
    return replace(row, status="ok", error=None, output_text=text)


def test_examples_are_test_sheets_with_their_references() -> None:
    shards = [pq.read_table(shard) for shard in sorted(EXAMPLES.glob("*.parquet"))]
    assert [shard.num_rows for shard in shards] == [64] * 4
    assert all(
        shard.equals(table)
        for shard, table in zip(shards, example_sheets.example_tables(), strict=True)
    )
    rows = pa.concat_tables(shards).to_pylist()
    assert len({row["prompt"] for row in rows}) == 256
    assert {row["num_problems"] for row in rows} == set(range(1, MAX_PROBLEMS + 1))
    for row in rows:
        score = TASK.score(row["reference"], row["answer"], row)
        assert (score.correct, score.extracted) == (True, row["answer"])
        assert len(row["answer"].split()) == row["num_problems"]


def test_the_table_counts_problems_and_sheets() -> None:
    words = "--problems 6 --sheets 1 --gen-length 64 --block-length 0 32 --only fast"
    args = accuracy.parser().parse_args(words.split())
    model = lrd.load_model("tiny")
    *_, whole, blocks = accuracy.table(model, args)
    tested = accuracy.distinct(6, args.seed)
    config = lrd.DecodingConfig.preset("fast", gen_length=64)
    right, forwards = accuracy.measure(model, tested, config)
    share = f"{right} of 6: {right / 6:.3f}"
    assert whole.startswith(f"| fast | 64 | 64 | {share}")
    assert whole.count(share) == 2, "a sheet of one problem is right where the problem is"
    assert f"| {forwards:.1f} |" in whole
    assert blocks.startswith("| fast | 64 | 32 |")
