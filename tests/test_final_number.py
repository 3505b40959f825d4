"""GSM8K's final numbers: what answers look like, and what number each is."""

from __future__ import annotations

from fractions import Fraction

import pytest
from helpers import shared_data

from pipeline.scoring import gsm8k, word_problems
from pipeline.scoring.final_number import boxed, final_number, number_value
from pipeline.scoring.task import NO_ANSWER, WRONG

VARIANTS = [
    # Plain numbers: the last one counts.
    ("18", "18"),
    ("She makes 9 * 2 = 18", "18"),
    ("First 3, then 4, so 7 in all.", "7"),
    ("18.", "18"),
    ("18.0", "18"),
    ("It is 18.50.", "18.5"),
    (".5 of it", "1/2"),
    ("007", "7"),
    ("0", "0"),
    # Commas.
    ("1,234", "1234"),
    ("1,234,567.89", "1234567.89"),
    ("They are 1, 2, 3", "3"),
    ("12,000 people", "12000"),
    ("1,00,000 rupees", "100000"),
    ("Rs.1,50,000.50", "150000.5"),
    ("Answer...18", "18"),
    ("$1{,}234$", "1234"),
    ("1\\,234", "1234"),
    ("1\\,234\\,000", "1234000"),
    # Units.
    ("18 dollars", "18"),
    ("15 cm", "15"),
    ("The area is 15 cm^2", "15"),
    ("The volume is 27 m³", "27"),
    ("15 \\text{ cm}^{2}", "15"),
    ("5km", "5"),
    ("It takes 3.5 hours.", "3.5"),
    # Currencies.
    ("$18", "18"),
    ("\\$18", "18"),
    ("€ 20", "20"),
    ("£1,200.50", "1200.5"),
    ("It costs $5.00.", "5"),
    ("US$40", "40"),
    # Percent.
    ("50%", "50"),
    ("50\\%", "50"),
    ("$12.5\\%$", "12.5"),
    ("50 percent", "50"),
    # Negative.
    ("-5", "-5"),
    ("−5", "-5"),
    ("-$5", "-5"),
    ("$-5", "-5"),
    ("x = -3", "-3"),
    ("(-7)", "-7"),
    ("It fell to -1,000 metres", "-1000"),
    ("10-5", "5"),
    ("- 5 apples", "5"),
    # Fractions.
    ("3/4", "3/4"),
    ("3 / 4", "3/4"),
    ("-3/4", "-3/4"),
    ("1 1/2", "3/2"),
    ("\\frac{3}{4}", "3/4"),
    ("\\dfrac{3}{4}", "3/4"),
    ("-\\frac{3}{4}", "-3/4"),
    ("1\\frac{1}{2}", "3/2"),
    ("6/3", "2"),
    ("first 7, then 1/0", "7"),
    # LaTeX.
    ("$18$", "18"),
    ("\\(18\\)", "18"),
    ("\\[ x = 18 \\]", "18"),
    ("\\textbf{18}", "18"),
    ("$\\text{18 dollars}$", "18"),
    # Boxed: it counts more than what follows.
    ("\\boxed{18}", "18"),
    ("\\boxed{18} since 2 * 9 = 20 - 2", "18"),
    ("\\boxed{1,800}", "1800"),
    ("\\boxed{\\$18.00}", "18"),
    ("\\boxed{\\text{18 eggs}}", "18"),
    ("\\boxed{\\frac{1}{2}}", "1/2"),
    ("\\boxed{x = 5}", "5"),
    ("\\boxed{-4}", "-4"),
    ("\\boxed{50\\%}", "50"),
    ("first \\boxed{3}, no: \\boxed{4}", "4"),
    ("$\\fbox{12}$", "12"),
    # Hashes: they count more than all else.
    ("#### 18", "18"),
    ("####18", "18"),
    ("#### $1,800", "1800"),
    ("#### -3", "-3"),
    ("#### 18 eggs, not 20", "18"),
    ("\\boxed{20}\n#### 18", "18"),
    ("#### 3\n\n#### 4", "4"),
    ("#### 18\nThat was question 2.", "18"),
    ("#### \n7 it is", "7"),
    # The answer is: the last number counts, as official scorers have it.
    ("Answer: 16 eggs less 7 are 9. She makes 9 * 2 = $18", "18"),
    ("So the answer is 9 eggs at 2 dollars, $18", "18"),
    ("The answer is 18.", "18"),
    ("The answer is $18, which is 2 more than 16.", "16"),
    ("The answer is 5. Check: 5 + 2 = 7.", "7"),
    ("So the final answer is: **42**", "42"),
    ("Answer: 42 (from 6 * 7)", "7"),
    ("**Answer:** 1,000", "1000"),
    ("The answer to the question is 8 apples and not 9", "9"),
    ("The answer is 3 + 4 = 7", "7"),
    ("THE ANSWER IS 12 FOR 3 PEOPLE", "3"),
    ("The answer is the following.\n6", "6"),
    ("The final answer is $\\boxed{9}$ for 10 people", "9"),
]
NOTHING = ["", "9" * 5000, "I do not know.", "1/0", "v2x", "#### none", "\\boxed{}"]


def test_there_are_enough_variants() -> None:
    assert len(VARIANTS) >= 60
    assert len({text for text, _ in VARIANTS}) == len(VARIANTS)


@pytest.mark.parametrize(("text", "number"), VARIANTS)
def test_variants(text: str, number: str) -> None:
    score = gsm8k.score(text, number, {})
    assert score.correct, score
    assert number_value(score.extracted or "") == Fraction(number)
    off_by_one = str(Fraction(number) + 1)
    assert gsm8k.score(text, off_by_one, {}).reason == WRONG


@pytest.mark.parametrize("text", NOTHING)
def test_no_number(text: str) -> None:
    assert final_number(text) is None
    assert gsm8k.score(text, "18", {}).reason == NO_ANSWER


def test_a_reference_without_a_number_is_named() -> None:
    assert "the reference: none" in str(gsm8k.score("18", "none", {}).reason)


def test_a_base_model_that_goes_on_is_cut() -> None:
    assert gsm8k.score(" 9 * 2 = 18\n#### 18\n\nQuestion: How?\n#### 7", "18", {}).correct


def test_an_answer_may_begin_like_an_exemplar() -> None:
    assert gsm8k.score("\nQuestion: How many?\nAnswer: 18", "18", {}).correct


def test_boxes_are_balanced() -> None:
    text = "\\boxed{\\frac{1}{2}} and \\boxed {3} and \\boxed{4"
    assert boxed(text) == ["\\frac{1}{2}", "3"]


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("$\\boxed 5$", "5"),
        ("$\\boxed5$", "5"),
        ("$\\boxed \\frac{1}{2}$ of 3", "\\frac{1}{2}"),
        ("So \\boxed 5 is right.", "5"),
        ("So it is \\boxed 5.", "5"),
        ("\\(\\boxed x + 1\\)", "x + 1"),
        ("\\fbox{5}", "5"),
        ("\\fbox {\\sqrt{5}}", "\\sqrt{5}"),
        ("\\boxed{5} and \\boxed{}", "5"),
        ("\\boxed{5} and \\boxed{ }", "5"),
        ("\\boxed{5} and \\boxed{6", "5"),
        ("\\boxed{\\boxed{5}}", "5"),
    ],
)
def test_the_last_box_that_holds_something(text: str, content: str) -> None:
    assert boxed(text)[-1] == content


def test_gsm8k_references() -> None:
    """Every reference scores right: as solution, boxed, in a sentence; off by one wrong."""
    for row in shared_data.rows("gsm8k"):
        number = row["final_answer"]
        assert gsm8k.score(row["answer"], number, row).correct, row["id"]
        # The original dataset has the solutions alone.
        for text in (f"So \\boxed{{{number}}}.", f"The answer is ${number}."):
            assert gsm8k.score(text, row["answer"], row).correct, row["id"]
        other = f"#### {float(number.replace(',', '')) + 1}"
        assert gsm8k.score(other, number, row).reason == WRONG, row["id"]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("6*8=48\n#### 48", True),
        ("#### 48 flowers", True),
        ("#### 4\n#### 48", True),
        ("#### 4", False),
        ("48", False),
        ("####", False),
    ],
)
def test_word_problems_are_strict(text: str, right: bool) -> None:
    assert word_problems.score(text, "48", {}).correct is right
