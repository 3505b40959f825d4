"""HumanEval and MBPP: canonical solutions pass, mutated ones fail."""

from __future__ import annotations

import ast
import sys
from typing import Any

import pytest
from helpers import shared_data

from pipeline.scoring import humaneval, mbpp
from pipeline.scoring.task import few_shot_prompt

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are confined by Linux")

EVERY = [pytest.param(23, id="sample"), pytest.param(1, marks=pytest.mark.slow, id="all")]
"""One row in so many: a program takes about 40 ms, longer on a busy machine."""


class OtherReturns(ast.NodeTransformer):
    """Every function returns something else than it did."""

    def visit_Return(self, node: ast.Return) -> ast.Return:
        return ast.Return(ast.Name("NotImplemented", ast.Load()))

    def visit_Lambda(self, node: ast.Lambda) -> ast.Lambda:
        return ast.Lambda(node.args, ast.Name("NotImplemented", ast.Load()))


class OtherOperators(ast.NodeTransformer):
    """The first operator is another; the program may still be right."""

    SWAPS: tuple[tuple[type[ast.AST], type[ast.AST]], ...] = (
        (ast.Add, ast.Sub),
        (ast.Mult, ast.Add),
        (ast.Lt, ast.Gt),
        (ast.Gt, ast.Lt),
        (ast.Eq, ast.NotEq),
        (ast.Mod, ast.Add),
    )
    swapped = False

    def generic_visit(self, node: ast.AST) -> ast.AST:
        for one, other in self.SWAPS:
            if isinstance(node, one) and not self.swapped:
                self.swapped = True
                return other()
        return super().generic_visit(node)


def mutated(code: str, mutation: ast.NodeTransformer) -> str:
    return ast.unparse(ast.fix_missing_locations(mutation.visit(ast.parse(code))))


def fenced(code: str) -> str:
    return f"Here is the code:\n\n```python\n{code}\n```\n\nIt passes the tests."


def whole(row: dict[str, Any]) -> str:
    return str(row["prompt"] + row["canonical_solution"])


@pytest.mark.parametrize("every", EVERY)
def test_humaneval(every: int) -> None:
    for row in shared_data.rows("humaneval")[::every]:
        # As `lrd prepare` leaves it: the model's prompt is another one.
        row |= {"source_prompt": row["prompt"], "prompt": "Complete this."}
        solution = row["source_prompt"] + row["canonical_solution"]
        for answer in (row["canonical_solution"], fenced(solution)):
            score = humaneval.score(answer, row["test"], row)
            assert score.correct, (row["id"], score.reason)
        wrong = mutated(solution, OtherReturns())
        assert not humaneval.score(fenced(wrong), row["test"], row).correct, row["id"]


@pytest.mark.parametrize("every", EVERY)
def test_mbpp(every: int) -> None:
    for row in shared_data.rows("mbpp")[:: every * 2 if every > 1 else 1]:
        for answer in (fenced(row["code"]), f"{row['code']}\n[DONE]\n\nYou are an expert"):
            score = mbpp.score(answer, row["test_list"], row)
            assert score.correct, (row["id"], score.reason)
        wrong = mutated(row["code"], OtherReturns())
        assert not mbpp.score(fenced(wrong), row["test_list"], row).correct, row["id"]


@pytest.mark.parametrize("every", EVERY)
def test_most_swapped_operators_are_found(every: int) -> None:
    rows = shared_data.rows("humaneval")[::every]
    answers = [(mutated(whole(row), OtherOperators()), row) for row in rows]
    changed = [(a, row) for a, row in answers if a != ast.unparse(ast.parse(whole(row)))]
    wrong = [not humaneval.score(fenced(a), row["test"], row).correct for a, row in changed]
    assert sum(wrong) >= 0.8 * len(changed)


def test_few_shot_prompts_of_mbpp() -> None:
    row = {"text": "Add.", "test_list": ["assert add(1, 2) == 3"], "code": "def add(a, b): ..."}
    prompt = few_shot_prompt(mbpp.TASK, [row], row)
    assert prompt.count("[BEGIN]") == 2
    assert prompt.count("[DONE]\n\nYou are an expert") == 1
    assert prompt.endswith("[BEGIN]\n")


def test_base_prompts_of_humaneval_are_the_signature() -> None:
    row = {"prompt": "def f():\n    '''F.'''\n", "canonical_solution": "    return 1\n"}
    assert few_shot_prompt(humaneval.TASK, [], row) == row["prompt"]
