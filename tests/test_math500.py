"""MATH500: which answers are mathematically equal."""

from __future__ import annotations

import threading

import pytest
from helpers import shared_data

from pipeline.scoring import math500
from pipeline.scoring.math500 import final_answer, same_mathematics
from pipeline.scoring.task import NO_ANSWER, WRONG

pytest.importorskip("math_verify", reason="math-verify is not installed (extra eval)")

SAME = [
    ("\\frac{1}{2}", "0.5"),
    ("\\frac{1}{2}", "1/2"),
    ("\\frac{1}{2}", "\\dfrac12"),
    ("-\\frac{1}{3}", "\\frac{-1}{3}"),
    ("10", "10\\text{ cm}"),
    ("(3,4)", "\\left( 3, 4 \\right)"),
    ("5", "x = 5"),
    ("x=5", "5"),
    ("3\\sqrt{2}", "\\sqrt{18}"),
    ("\\text{Evelyn}", "Evelyn"),
    ("\\text{(C)}", "C"),
    ("50", "50\\%"),
    ("90^\\circ", "90"),
    ("1,000", "1000"),
    ("10,\\!080", "10080"),
    ("\\{1,2\\}", "\\{2,1\\}"),
    ("x^2+2x+1", "(x+1)^2"),
    ("2k+2", "2(k+1)"),
    ("18.90", "\\$18.90"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{bmatrix}1\\\\2\\end{bmatrix}"),
]
DIFFERENT = [
    ("2", "3"),
    ("(1,2)", "(2,1)"),
    ("[0,1]", "[0,1)"),
    ("5", "-5"),
    ("x^2+1", "x^2-1"),
    ("\\text{Evelyn}", "Angela"),
    ("\\frac{1}{2}", "\\frac{2}{1}"),
]
FORMS = [
    ("So \\boxed{7} it is.", "7"),
    ("\\boxed{1}, no, \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
    ("Final Answer: The final answer is $x^2$. I hope it is correct.", "x^2"),
    ("The answer is \\(3\\).", "3"),
    ("Answer: 12", "12"),
    ("The answer is $\\$18.90$.", "\\$18.90"),
    ("I do not know", None),
    ("\\boxed{7", None),
]


@pytest.mark.parametrize(("reference", "answer"), SAME)
def test_same(reference: str, answer: str) -> None:
    assert math500.score(f"\\boxed{{{answer}}}", reference, {}).correct


@pytest.mark.parametrize(("reference", "answer"), DIFFERENT)
def test_different(reference: str, answer: str) -> None:
    assert math500.score(f"\\boxed{{{answer}}}", reference, {}).reason == WRONG


@pytest.mark.parametrize(("text", "answer"), FORMS)
def test_where_the_answer_is(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


def test_no_answer() -> None:
    assert math500.score("", "5", {}).reason == NO_ANSWER


def test_a_base_model_that_goes_on_is_cut() -> None:
    text = " The answer is $5$.\n\nProblem:\nWhat?\n\nSolution: The answer is $6$."
    assert math500.score(text, "5", {}).correct


def test_references_equal_themselves() -> None:
    """By the task's score; every fifth by math-verify without the shortcut for spelling."""
    for number, row in enumerate(shared_data.rows("math500")):
        answer = row["answer"]
        for text in (f"So $\\boxed{{{answer}}}$.", f"The answer is ${answer}$."):
            assert math500.score(text, answer, row).correct, row["id"]
        assert number % 5 or same_mathematics(answer, answer), row["id"]


def test_it_works_in_a_thread() -> None:
    """math-verify's own time limits are signals, which threads do not have."""
    found = []
    thread = threading.Thread(target=lambda: found.append(same_mathematics("1/2", "0.5")))
    thread.start()
    thread.join()
    assert found == [True]
