"""Which part of an answer is code."""

from __future__ import annotations

import time

import pytest

from pipeline.scoring.extract_code import body, function, module

PROMPT = '''from typing import List


def helper(x):
    return x + 1


def add(xs: List[int]) -> int:
    """ Add them.
    >>> add([1, 2])
    3
    """
'''
WHOLE = "def add(xs):\n    return sum(xs)\n"
ANSWERS = {
    "a body": "    return sum(xs)\n",
    "a body, spaces eaten": "return sum(xs)\n",
    "a body, its first spaces eaten": "n = sum(xs)\n    if n:\n        n += 0\n    return n",
    "a block, its first spaces eaten": "for x in xs:\n        pass\n    return sum(xs)",
    "one space left": " n = sum(xs)\n    return n",
    "a body without any indent": "n = 0\nfor x in xs:\n    n += x\nreturn n",
    "a body of two spaces": "  n = 0\n  for x in xs:\n    n += x\n  return n",
    "a body of tabs": "\tn = 0\n\tfor x in xs:\n\t\tn += x\n\treturn n",
    "a body, then another function": "    return sum(xs)\n\n\ndef add2(xs):\n    return 0\n",
    "a body, then the same again": "    return sum(xs)\n\n\ndef add(xs):\n    return 0\n",
    "a body, then prose": "    return sum(xs)\n\nThis adds them.",
    "a body, then a fence's end": "    return sum(xs)\n```\nThis adds them.",
    "a body with blank lines": "\n    n = sum(xs)\n\n    return n\n",
    "a whole function": WHOLE,
    "a whole function with its prompt": PROMPT + "    return sum(xs)\n",
    "prose, then a function": "Here it is:\n\n" + WHOLE,
    "prose around a function": f"Sure!\n\n{WHOLE}\nThis adds them all.",
    "a fence": f"Here:\n```python\n{WHOLE}```\nDone.",
    "a fence without a language": f"```\n{WHOLE}```",
    "a fence that never closes": f"```python\n{WHOLE}",
    "a fence cut in a line": f"```python\n{WHOLE}\nprint(add([1, 2",
    "an indented fence": "1. This:\n   ```python\n   def add(xs):\n       return sum(xs)\n   ```",
    "a fenced body": "```python\n    return sum(xs)\n```",
    "a usage fence, then the function": f"```\nadd([1])\n```\nwith\n```python\n{WHOLE}```",
    "the function, then a usage fence": f"```python\n{WHOLE}```\n```\nassert add([1]) == 2\n```",
    "windows line ends": "def add(xs):\r\n    return sum(xs)\r\n",
    "the helper is used": "def add(xs):\n    return helper(sum(xs)) - 1\n",
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_humaneval_answers(answer: str) -> None:
    space: dict[str, object] = {}
    exec(function(PROMPT, answer, "add"), space)
    assert space["add"]([1, 2, 3]) == 6


@pytest.mark.parametrize(
    "answer",
    [
        WHOLE,
        f"Sure:\n{WHOLE}",
        f"```python\nimport math\n\n{WHOLE}```",
        f"Use\n```bash\npip install x\n```\nthen\n```python\n{WHOLE}```",
        f"LIMIT = 3\n{WHOLE}",
        f"{WHOLE}\nThis adds them.",
        "add = lambda xs: sum(xs)\n",
    ],
)
def test_mbpp_answers(answer: str) -> None:
    space: dict[str, object] = {}
    exec(module(answer), space)
    assert space["add"]([1, 2, 3]) == 6


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ("", ""),
        ("\n", "\n"),
        ("no code at all!", "no code at all!"),
        ("```python\n```", ""),
        ("Use a loop:\n```\n```\nas I said.", ""),
        ("\0", "\0"),
        ("(" * 500, "(" * 500),
    ],
)
def test_an_answer_without_code_is_kept_as_it_is(answer: str, kept: str) -> None:
    """An empty fence is empty; text that nothing can be made of fails where it is run."""
    assert module(answer) == kept
    written = [line.strip() for line in kept.splitlines() if line.strip()]
    program = function(PROMPT, answer, "add")
    assert program.startswith(PROMPT.rstrip() + "\n")
    added = program.removeprefix(PROMPT.rstrip())
    assert [line.strip() for line in added.splitlines() if line.strip()] == written


def test_an_empty_body() -> None:
    assert body("") == ""


@pytest.mark.parametrize(
    "answer",
    ["from the list we take\n", "x = 1\nand so on\n", "def f(x):\n    return (\n", "```\n", "'''"],
)
def test_an_answer_that_repeats_itself_costs_no_time(answer: str) -> None:
    """Cutting line by line at every start of code took 15 s, half of a row's time."""
    began = time.process_time()
    module(answer * 500)
    function(PROMPT, answer * 500, "add")
    assert time.process_time() - began < 5
