"""Our scores beside the official ones, over hundreds of answers as models write them.

Every form of an answer is tried with several values. Where an official rule scores a form
otherwise than we do, the form is in that task's table of differences below, and its key is a row
of the table in pipeline/scoring/README.md with the reason; the tests hold the tables complete.
The official rules are written here from their definitions:

* lm-eval: gsm8k (`flexible-extract`), minerva_math, humaneval_instruct, mbpp
  (github.com/EleutherAI/lm-evaluation-harness; LLaDA evaluates its base model with it).
* OpenCompass: gsm8k, math_postprocess_v2, humaneval_postprocess_v2, MBPPEvaluator
  (github.com/open-compass/opencompass; LLaDA's repository has a copy).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

from pipeline.scoring import extract_code, gsm8k, math500, mbpp

README = (Path(gsm8k.__file__).parent / "README.md").read_text()


def cut(text: str, *marks: str) -> str:
    return min((text.split(mark)[0] for mark in marks), key=len)


def same_number(one: str | None, other: str) -> bool:
    try:
        return one is not None and Fraction(one) == Fraction(other)
    except (ValueError, ZeroDivisionError):
        return False


def gsm8k_lm_eval(text: str) -> str | None:
    """The last number before an empty line; commas, dollars and a last full stop go."""
    numbers = re.findall(r"-?[$\d.,]{2,}|-?\d+", cut(text, "\n\n", "Question:"))
    return numbers[-1].replace(",", "").replace("$", "").rstrip(".") if numbers else None


def gsm8k_opencompass(text: str) -> str | None:
    """The last number before another question; a comma ends a number."""
    numbers = re.findall(r"-?\d+\.\d+|-?\d+", cut(text, "Question:"))
    return numbers[-1] if numbers else None


NUMBERS = ["18", "7", "260", "-5", "1,234", "120,000"]
GSM8K_FORMS = {
    "bare": "{n}",
    "sentence": "She makes {n} in all.",
    "steps": "First 3 eggs, then 4.\nSo it is {n}.",
    "equation": "16 - 3 - 4 = 9\n9 * 2 = {n}",
    "hashes": "9 * 2 = <<9*2=18>>18\n#### {n}",
    "hashes, no space": "9 * 2 = 18\n####{n}",
    "hashes in bold": "So it is 3 * 6.\n**#### {n}**",
    "boxed": "So the answer is \\boxed{{{n}}}.",
    "boxed in a formula": "$$\\boxed{{{n}}}$$",
    "fbox": "$\\fbox{{{n}}}$",
    "the answer is": "9 * 2 is what she makes. The answer is {n}.",
    "the answer is, then steps": "The answer is 9 eggs at 2 dollars each, which is {n} dollars.",
    "Answer: first": "Answer: There are 16 eggs. She eats 3.\nSo she sells {n}",
    "Answer: in one line": "Answer: 16 eggs less 3 are {n}",
    "A: first": "A: 16 eggs less 3 are {n}.",
    "final answer in bold": "Step 1: 16 - 3.\n\n**Final Answer: {n}**",
    "in bold": "She makes **{n}** in all.",
    "in a list": "1. Eggs: 16\n2. Sold: {n}",
    "dollars": "She makes ${n} every day.",
    "the answer is, dollars": "The answer is ${n}.",
    "escaped dollars": "She makes \\${n}.",
    "rupees": "He pays Rs. {n}",
    "euros": "He pays €{n}",
    "percent": "It is {n}%.",
    "latex percent": "It is ${n}\\%$.",
    "dollar signs": "So $x = {n}$.",
    "round brackets": "So \\(x = {n}\\).",
    "a unit": "It takes {n} minutes.",
    "a unit at once": "It weighs {n}kg",
    "latex unit": "It takes ${n} \\text{{ minutes}}$",
    "in quotes": 'The answer is "{n}"',
    "new line": "The answer is:\n{n}\n",
    "spaces": "   {n}   ",
    "exclamation": "It is {n}!",
    "thousands in latex": "It is {latex}",
    "a box, then more": "So \\boxed{{{n}}} since 2 * 9 = 20 - 2",
    "hashes, then more": "#### {n} eggs, not 21",
    "another question": "#### {n}\n\nQuestion: How many?\nAnswer: #### 99",
    "a word after an empty line": "It is 3 * 6.\n\nSo it is {n}.",
    "an exponent": "The area is {n} cm^2",
    "a raised digit in latex": "The area is {n} \\text{{ cm}}^{{2}}",
    "decimals": "It is {n}.00",
    "lakhs": "It is {lakhs}",
    "a fraction": "It is {n}/1",
    "a range": "It is 3-{n}",
}  # fmt: skip
GSM8K_DIFFERENCES = {
    "boxed in a formula": {"lm-eval": "Signs of formulas"},
    "latex percent": {"lm-eval": "Signs of formulas"},
    "decimals": {"lm-eval": "Spelling of numbers"},
    "final answer in bold": {"lm-eval": "Empty lines"},
    "a word after an empty line": {"lm-eval": "Empty lines"},
    "thousands in latex": {"lm-eval": "Commas", "OpenCompass": "Commas"},
    "a box, then more": {"lm-eval": "Marks", "OpenCompass": "Marks"},
    "hashes, then more": {"lm-eval": "Marks", "OpenCompass": "Marks"},
    "an exponent": {"lm-eval": "Exponents", "OpenCompass": "Exponents"},
    "a raised digit in latex": {"lm-eval": "Exponents", "OpenCompass": "Exponents"},
    "a fraction": {"lm-eval": "Fractions", "OpenCompass": "Fractions"},
    "a range": {"lm-eval": "Hyphens", "OpenCompass": "Hyphens"},
}


def gsm8k_answers(form: str) -> list[tuple[str, str]]:
    """Answers in that form and their numbers."""
    lakhs = {"120,000": "1,20,000"}
    latex = {"1,234": "1{,}234", "120,000": "120\\,000"}
    numbers = {"lakhs": lakhs, "thousands in latex": latex}.get(form, NUMBERS)
    return [
        (GSM8K_FORMS[form].format(n=n, lakhs=lakhs.get(n), latex=latex.get(n)), n)
        for n in numbers
        # "3--5" is not a range.
        if (form, n) != ("a range", "-5")
    ]


@pytest.mark.parametrize("form", GSM8K_FORMS)
def test_gsm8k(form: str) -> None:
    for text, written in gsm8k_answers(form):
        number = written.replace(",", "")
        assert gsm8k.score(text, number, {}).correct, text
        assert not gsm8k.score(text, str(int(number) + 1), {}).correct, text
        others = {
            "lm-eval": gsm8k_lm_eval(text) == number,
            "OpenCompass": same_number(gsm8k_opencompass(text), number),
        }
        expected = dict(GSM8K_DIFFERENCES.get(form, {}))
        if "," in written:
            expected["OpenCompass"] = "Commas"
        assert {name for name, right in others.items() if not right} == set(expected), text


LATEX = [
    "5", "-3", "\\frac{1}{2}", "\\sqrt{3}", "(2,7)", "x^2+1", "\\frac{\\pi}{4}", "[0,1)",
    "2\\sqrt{5}",
]  # fmt: skip
MATH_FORMS = {
    "boxed": "So \\boxed{@}",
    "boxed in a sentence": "Therefore the value is $\\boxed{@}$.",
    "boxed in a display": "Thus\n\\[\n\\boxed{@}\n\\]",
    "boxed with spaces": "$\\boxed{ @ }$",
    "boxed twice": "First $\\boxed{99}$, then $\\boxed{@}$.",
    "boxed, then more": "So $\\boxed{@}$ is right, since $9 = 9$.",
    "boxed in two braces": "$\\boxed{{@}}$",
    "boxed with an equation": "$\\boxed{y = @}$",
    "minerva": "It follows.\nFinal Answer: The final answer is $@$. I hope it is correct.",
    "minerva with a box": "$\\boxed{@}$\nFinal Answer: The final answer is $@$. "
    "I hope it is correct.",
    "the answer is": "The answer is $@$.",
    "the final answer is": "The final answer is $@$.",
    "the answer is, round brackets": "The answer is \\(@\\).",
    "the answer is, bare": "The answer is @",
    "the answer is: ": "The answer is: $@$",
    "Answer:": "We add.\n\nAnswer: $@$",
    "Answer in bold": "We add.\n\n**Answer:** $@$",
    "final answer in bold": "**Final answer:** $@$",
    "then the next problem": "The answer is $@$.\n\nProblem:\nAdd.\n\nSolution: It is $99$.",
    "no braces": "So $\\boxed @$.",
    "no braces at the end": "So \\boxed @",
    "fbox": "So $\\fbox{@}$.",
    "fbox, then boxed": "$\\fbox{99}$, so $\\boxed{@}$",
    "boxed, then fbox": "$\\boxed{99}$, no: $\\fbox{@}$",
    "an empty box after": "So $\\boxed{@}$, that is $\\boxed{}$",
    "an open box after": "So $\\boxed{@}$, that is $\\boxed{@",
    "dfrac": "So $\\boxed{\\displaystyle @}$",
}
_MINERVA_ALONE = {"lm-eval": "Minerva's sentence"}
MATH_DIFFERENCES = {
    **{form: _MINERVA_ALONE for form in MATH_FORMS if "minerva" not in form},
    "boxed in two braces": {"lm-eval": "Minerva's sentence"},
    "boxed with an equation": {**_MINERVA_ALONE, "OpenCompass": "Equations"},
    "Answer:": {**_MINERVA_ALONE, "OpenCompass": "Answer:"},
    "Answer in bold": {**_MINERVA_ALONE, "OpenCompass": "Answer:"},
    "final answer in bold": _MINERVA_ALONE,
    "then the next problem": _MINERVA_ALONE,
    "the answer is, round brackets": {**_MINERVA_ALONE, "OpenCompass": "Delimiters"},
    "no braces": {**_MINERVA_ALONE, "OpenCompass": "Boxes without braces"},
    "no braces at the end": {**_MINERVA_ALONE, "OpenCompass": "Boxes without braces"},
    "fbox": {**_MINERVA_ALONE, "OpenCompass": "\\fbox"},
    "boxed, then fbox": {**_MINERVA_ALONE, "OpenCompass": "\\fbox"},
    "an empty box after": {**_MINERVA_ALONE, "OpenCompass": "Empty and open boxes"},
    "an open box after": {**_MINERVA_ALONE, "OpenCompass": "Empty and open boxes"},
}


def plain(latex: str) -> str:
    """Without what the official rules remove: spaces, dollars, the size of fractions."""
    return re.sub(r"[\s$]|\\displaystyle", "", latex).removesuffix(".")


def math_lm_eval(text: str) -> str:
    """Minerva's closing sentence alone."""
    text = cut(text, "Problem:") + "I hope it is correct."
    found = re.search(r"Final Answer: The final answer is(.*?). I hope it is correct.", text)
    return plain(found[1].rpartition("=")[2]) if found else ""


def last_box(text: str, name: str = "\\boxed") -> str | None:
    """From the last `name` to the brace that closes it, without both; None where it is open."""
    depth, start = 0, text.rfind(name)
    for place in range(max(start, 0), len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if text[place] == "}" and not depth:
            box = text[start : place + 1]
            return box[len(name) + 1 : -1] if box.startswith(name + "{") else None
    return None


def math_opencompass(text: str) -> str:
    """The last box; where it is empty, open or missing, the first sentence that says it answers."""
    if "\\boxed" in text and (box := last_box(text)):
        return plain(re.sub(r"^\{(.*)\}$", r"\1", box))
    sentences = text.split(".")
    answering = [part for part in sentences if re.search("final answer|answer is", part.lower())]
    found = plain((answering or sentences)[0].rpartition("swer is")[2].lstrip(": "))
    formulas = re.findall(r"\$(.*?)\$", (answering or sentences)[0])
    return plain(formulas[-1]) if formulas else found


@pytest.mark.parametrize("form", MATH_FORMS)
def test_math(form: str) -> None:
    pytest.importorskip("math_verify", reason="math-verify is not installed (extra eval)")
    for answer in LATEX:
        text = MATH_FORMS[form].replace("@", answer)
        assert math500.score(text, answer, {}).correct, text
        assert not math500.score(text, f"{answer}+8", {}).correct, text
        others = {"lm-eval": math_lm_eval(text), "OpenCompass": math_opencompass(text)}
        wrong = {name for name, found in others.items() if found != answer}
        assert wrong == set(MATH_DIFFERENCES.get(form, {})), (text, others)


# A docstring, a body, and a call that is true. No body has a blank line or a helper.
PROBLEMS = {
    "add_all": (
        "xs",
        ["total = 0", "for x in xs:", "    total += x", "return total"],
        "([1, 2, 3]) == 6",
    ),
    "longest": (
        "words",
        ["if not words:", "    return None", "return max(words, key=len)"],
        "(['a', 'bcd']) == 'bcd'",
    ),
    "is_even": ("n", ["return n % 2 == 0"], "(4)"),
    "factorial": (
        "n",
        ["result = 1", "for i in range(2, n + 1):", "    result *= i", "return result"],
        "(5) == 120",
    ),
    "flip_case": ("s", ["return s.swapcase()"], "('aB') == 'Ab'"),
    "common": (
        "pair",
        ["a, b = pair", "return sorted(set(a) & set(b))"],
        "(([1, 2], [2, 3])) == [2]",
    ),
    "fib": (
        "n",
        ["a, b = 0, 1", "for _ in range(n):", "    a, b = b, a + b", "return a"],
        "(10) == 55",
    ),
    "mode": (
        "xs",
        ["mode = max(xs, key=xs.count)", "if not mode:", "    mode = 0", "return mode"],
        "([1, 2, 2]) == 2",
    ),
    "median": (
        "xs",
        ["xs = sorted(xs)", "median = xs[len(xs) // 2]", "return median"],
        "([3, 1, 2]) == 2",
    ),
}
FENCE = "```"


def indented(lines: list[str], by: str = "    ") -> str:
    return "\n".join(by + line for line in lines)


def whole(name: str) -> str:
    argument, lines, _ = PROBLEMS[name]
    return f"def {name}({argument}):\n{indented(lines)}\n"


def signature(name: str) -> str:
    return (
        f'from typing import List\n\n\ndef {name}({PROBLEMS[name][0]}):\n    """ Do it.\n    """\n'
    )


def inner(name: str) -> str:
    return whole(name).replace(f"def {name}", "def _inner")


BODY: dict[str, Callable[[str], str]] = {
    "a body": lambda n: indented(PROBLEMS[n][1]) + "\n",
    "a body, first spaces eaten": lambda n: indented(PROBLEMS[n][1]).lstrip(),
    "a body without indent": lambda n: "\n".join(PROBLEMS[n][1]),
    "a body, then its fence's end": lambda n: f"{indented(PROBLEMS[n][1])}\n{FENCE}\nThis is it.",
    "a body, then a test": lambda n: f"{indented(PROBLEMS[n][1])}\n\n\nassert {n}(None) == 5\n",
    "a body, then half a function": lambda n: f"{indented(PROBLEMS[n][1])}\n\ndef other(x",
    "a fenced body": lambda n: f"{FENCE}python\n{indented(PROBLEMS[n][1])}\n{FENCE}",
    "its prompt again": lambda n: signature(n) + indented(PROBLEMS[n][1]) + "\n",
    "its prompt again, fenced": lambda n: (
        f"{FENCE}python\n{signature(n)}{indented(PROBLEMS[n][1])}\n{FENCE}\nDone."
    ),
}
"""Answers of base models to HumanEval's prompts."""
MODULE: dict[str, Callable[[str], str]] = {
    "a function": whole,
    "a function, then prose": lambda n: f"{whole(n)}\nThis function does it.",
    "prose, then a function": lambda n: f"Here is the function:\n\n{whole(n)}",
    "prose that begins like code": lambda n: f"from the text we see what to do:\n\n{whole(n)}",
    "a fence": lambda n: f"{FENCE}python\n{whole(n)}{FENCE}",
    "a fence in prose": lambda n: f"Sure!\n\n{FENCE}python\n{whole(n)}{FENCE}\n\nIt is fast.",
    "a fence without a language": lambda n: f"{FENCE}\n{whole(n)}{FENCE}",
    "a fence, Python": lambda n: f"{FENCE}Python\n{whole(n)}{FENCE}",
    "a fence on the line": lambda n: f"{FENCE}python {whole(n)}{FENCE}",
    "a fence that ends on the line": lambda n: f"{FENCE}python\n{whole(n).rstrip()}{FENCE}",
    "a fence that never ends": lambda n: f"{FENCE}python\n{whole(n)}",
    "only a fence's end": lambda n: f"{whole(n)}{FENCE}\n\nThis function does it.",
    "a usage fence after": lambda n: (
        f"{FENCE}python\n{whole(n)}{FENCE}\n{FENCE}\n>>> {n}()\n{FENCE}"
    ),
    "a usage fence before": lambda n: f"{FENCE}\n{n}(1)\n{FENCE}\n{FENCE}python\n{whole(n)}{FENCE}",
    "code inline before": lambda n: f"Use {FENCE}{n}(x){FENCE} as in:\n\n{whole(n)}",
    "windows lines": lambda n: whole(n).replace("\n", "\r\n"),
    "a lambda": lambda n: f"{inner(n)}\n{n} = lambda x: _inner(x)\n",
    "an annotated lambda": lambda n: f"{inner(n)}\n{n}: object = lambda x: _inner(x)\n",
    "a partial": lambda n: f"from functools import partial\n\n{inner(n)}\n{n} = partial(_inner)\n",
    "an alias": lambda n: f"{inner(n)}\n{n} = _inner\n",
    "a fenced alias": lambda n: f"{FENCE}python\n{inner(n)}\n{n} = _inner\n{FENCE}",
    "an alias first": lambda n: f"{n} = lambda x: _inner(x)\n\n{inner(n)}",
    "from __future__": lambda n: f"from __future__ import annotations\n\n{whole(n)}",
    "from __future__, fenced": lambda n: (
        f"{FENCE}python\nfrom __future__ import annotations\nimport math\n\n{whole(n)}{FENCE}"
    ),
}
"""Answers that are modules, for both benchmarks."""
MARKED: dict[str, Callable[[str], str]] = {
    "up to [DONE]": lambda n: f"{whole(n)}[DONE]",
    "up to [DONE], then more": lambda n: f"{whole(n)}[DONE]\n\nYour task:\n[BEGIN]\nx = 1\n[DONE]",
    "between marks": lambda n: f"[BEGIN]\n{whole(n)}[DONE]",
    "between marks in prose": lambda n: f"Here it is:\n[BEGIN]\n{whole(n)}[DONE]\nDone.",
    "between marks, fenced": lambda n: f"[BEGIN]\n{FENCE}python\n{whole(n)}{FENCE}\n[DONE]",
    "marks without brackets": lambda n: f"BEGIN\n{whole(n)}DONE",
    "the last without brackets": lambda n: f"[BEGIN]\n{whole(n)}DONE\n",
    "quotes between marks": lambda n: f"[BEGIN]\n'{whole(n).rstrip()}'\n[DONE]",
    "quotes on the marks' lines": lambda n: f"[BEGIN] '{whole(n).rstrip()}' [DONE]",
    "quotes without brackets": lambda n: f"BEGIN\n'{whole(n).rstrip()}'\nDONE",
    "quotes, the mark is cut": lambda n: f"[BEGIN]\n'{whole(n)}",
    "quotes up to [DONE]": lambda n: f"'{whole(n).rstrip()}' [DONE]",
    "double quotes": lambda n: f'[BEGIN]\n"{whole(n).rstrip()}"\n[DONE]',
    "triple quotes": lambda n: f'[BEGIN]\n"""\n{whole(n)}"""\n[DONE]',
    "escaped underscores": lambda n: whole(n).replace("_", "\\_"),
    "escaped underscores, fenced": lambda n: f"{FENCE}python\n{whole(n)}{FENCE}".replace(
        "_", "\\_"
    ),
    "a docstring first": lambda n: f'"""Does it."""\n\n{whole(n)}',
    "the word DONE": lambda n: f"{whole(n)}\nSTATE = 'DONE'\n",
}
"""Answers in the form that MBPP's few-shot prompt shows, and near it."""


def passes(code: str, name: str) -> bool:
    space: dict[str, object] = {}
    try:
        exec(compile(code, "answer", "exec", dont_inherit=True), space)
        exec(f"assert {name}{PROBLEMS[name][2]}", space)
    except BaseException:
        return False
    return True


def humaneval_lm_eval(prompt: str, text: str) -> str:
    """The prompt, then all up to a fence: the prompt of the answer has opened one."""
    return prompt + cut(text, FENCE, "\nclass", "\n#", "\nif", "\nprint")


def humaneval_opencompass(prompt: str, text: str) -> str:
    """The prompt, then the first fenced block or all, without spaces before it."""
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    return prompt + (blocks or [text])[0].lstrip()


def mbpp_lm_eval(text: str) -> str:
    """Behind `from __future__ import annotations`, the first block, or all up to [DONE]."""
    text = cut(text, "[DONE]")
    blocks = re.findall(r"```(?:\w+)?\n?(.*?)\n?```", FENCE + text, re.DOTALL)
    return "from __future__ import annotations\n" + (blocks or [text])[0]


def mbpp_opencompass(text: str) -> str:
    """Between the outermost marks, else fences; then up to a fence or mark, underscores plain."""
    begin, end = r"(?:\[BEGIN\]|BEGIN)\s*", r"\s*(?:\[DONE\]|(?<!\[)DONE)"
    patterns = [f"{begin}'(.*)'{end}", f"{begin}'(.*){end}", f"{begin}(.*){end}"]
    patterns += [r"```(?:python)?\s*(.*)\s*```", r"```(?:python)?\s*(.*)", r"(.*)\s*```.*"]
    patterns += [r"\[BEGIN\]\s*'(.*)", r"\[BEGIN\](.*)", r"'(.*)'\s*\[DONE\]"]
    found = next(filter(None, (re.search(p, text, re.DOTALL) for p in patterns)), None)
    text = (found[1] if found else text).split(FENCE)[0]
    return re.split(r"'?\s*\[?DONE\]?", text)[0].replace("\\_", "_").strip()


_PROSE = ["a function, then prose", "prose, then a function", "prose that begins like code"]
_OWN_FENCES = [form for form in MODULE if "fence" in form and form != "only a fence's end"]
HUMANEVAL_DIFFERENCES: list[tuple[str, str, list[str]]] = [
    ("Bodies", "OpenCompass", [form for form in BODY if form.startswith("a body")]),
    ("Bodies", "lm-eval", ["a body, first spaces eaten", "a body without indent"]),
    ("Bodies", "lm-eval", ["a body, then half a function", "a body, then a test"]),
    ("Fenced bodies", "lm-eval", ["a fenced body", "its prompt again, fenced"]),
    ("Fenced bodies", "OpenCompass", ["a fenced body"]),
    ("Opened fences", "lm-eval", [*_OWN_FENCES, "code inline before"]),
    ("Opened fences", "OpenCompass", ["only a fence's end", "a fence that never ends"]),
    ("Fences in a line", "OpenCompass", ["a fence on the line", "code inline before"]),
    ("Which block", "OpenCompass", ["a usage fence before"]),
    ("Prose", "lm-eval", _PROSE),
    ("Prose", "OpenCompass", _PROSE),
    ("Future imports", "lm-eval", ["from __future__"]),
    ("Future imports", "OpenCompass", ["from __future__", "from __future__, fenced"]),
]
"""The README's row, whose rule fails the answers, and in what forms; ours passes them all."""
_BRACKETS = ["between marks", "between marks in prose", "marks without brackets"]
_QUOTES = [form for form in MARKED if "quotes" in form]
MBPP_DIFFERENCES: list[tuple[str, str, list[str]]] = [
    ("Marks of MBPP", "lm-eval", [*_BRACKETS, "the last without brackets", *_QUOTES]),
    ("Marks of MBPP", "OpenCompass", ["double quotes", "triple quotes", "the word DONE"]),
    ("Marks of MBPP", "OpenCompass", ["up to [DONE], then more"]),
    ("Opened fences", "lm-eval", [*_OWN_FENCES, "only a fence's end", "code inline before"]),
    ("Opened fences", "lm-eval", ["between marks, fenced", "escaped underscores, fenced"]),
    ("Opened fences", "OpenCompass", ["only a fence's end", "between marks, fenced"]),
    ("Fences in a line", "OpenCompass", ["a fence, Python", "code inline before"]),
    ("Escaped underscores", "lm-eval", ["escaped underscores"]),
    ("Which block", "OpenCompass", ["a usage fence before"]),
    ("Prose", "lm-eval", _PROSE),
    ("Prose", "OpenCompass", _PROSE),
]


def failing(differences: list[tuple[str, str, list[str]]], form: str) -> set[str]:
    return {rule for _, rule, forms in differences if form in forms}


@pytest.mark.parametrize("form", {**BODY, **MODULE})
def test_humaneval(form: str) -> None:
    for name in PROBLEMS:
        prompt, text = signature(name), {**BODY, **MODULE}[form](name)
        code = extract_code.function(prompt, text, name)
        assert passes(code, name), code
        others = {
            "lm-eval": humaneval_lm_eval(prompt, text),
            "OpenCompass": humaneval_opencompass(prompt, text),
        }
        wrong = {rule for rule, code in others.items() if not passes(code, name)}
        assert wrong == failing(HUMANEVAL_DIFFERENCES, form), text


@pytest.mark.parametrize("form", {**MARKED, **MODULE})
def test_mbpp(form: str) -> None:
    for name in PROBLEMS:
        if form.startswith("escaped") and "_" not in name:
            continue
        text = {**MARKED, **MODULE}[form](name)
        code = mbpp.program(text)
        assert passes(code, name), code
        others = {"lm-eval": mbpp_lm_eval(text), "OpenCompass": mbpp_opencompass(text)}
        wrong = {rule for rule, code in others.items() if not passes(code, name)}
        assert wrong == failing(MBPP_DIFFERENCES, form), text


@pytest.mark.parametrize("make", [whole, inner])
def test_wrong_programs_fail(make: Callable[[str], str]) -> None:
    """What `passes` says of the forms above is not always yes."""
    for name in PROBLEMS:
        wrong = re.sub(r"return .*", "return None", make(name))
        assert not passes(extract_code.function(signature(name), wrong, name), name)
        assert not passes(mbpp.program(wrong), name)


def test_there_are_two_hundred_answers_a_task() -> None:
    assert sum(len(gsm8k_answers(form)) for form in GSM8K_FORMS) >= 200
    assert len(MATH_FORMS) * len(LATEX) >= 200
    assert len({**BODY, **MODULE}) * len(PROBLEMS) >= 200
    assert len({**MARKED, **MODULE}) * len(PROBLEMS) >= 200


def test_every_difference_has_its_reason() -> None:
    tables = [GSM8K_DIFFERENCES, MATH_DIFFERENCES]
    labels = {label for table in tables for rules in table.values() for label in rules.values()}
    labels |= {label for label, _, _ in HUMANEVAL_DIFFERENCES + MBPP_DIFFERENCES}
    table = README.partition("## Where official")[2].splitlines()
    rows = {row.split("|")[1].strip() for row in table if row.startswith("| ")}
    assert labels <= rows, labels - rows
    assert rows - labels == {"what", "Same mathematics"}
