"""What a task is: example row → prompt, answer and reference → score.

Each task is a module beside this one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Example = Mapping[str, Any]
"""One row of a benchmark, by column."""

WRONG = "wrong answer"
NO_ANSWER = "no answer found"


@dataclass(frozen=True, slots=True)
class Score:
    """The score of one answer."""

    correct: bool
    extracted: str | None
    """The part of the answer that was compared or run."""
    reason: str | None
    """Why it is wrong: a few words, then details after a colon; None where it is right."""


@dataclass(frozen=True, slots=True)
class Task:
    """One benchmark. The functions take a row that has the columns named beside them."""

    name: str
    prompt_columns: tuple[str, ...]
    chat_prompt: Callable[[Example], str]
    """A user's turn that says which form the answer must have."""
    open_prompt: Callable[[Example], str]
    """Text that a base model continues with the answer."""
    exemplar_columns: tuple[str, ...]
    exemplar_answer: Callable[[Example], str]
    """The continuation of `open_prompt` that an exemplar shows."""
    paper_shots: int
    """Exemplars that the paper gave base models."""
    reference_columns: tuple[str, ...]
    """Where the reference is; the first that a dataset has."""
    score_columns: tuple[str, ...]
    """What `score` needs of the row beside the reference."""
    optional_columns: tuple[str, ...]
    """What `score` also reads where the dataset has it."""
    score: Callable[[str, Any, Example], Score]
    """Answer text, reference and row → score."""
    comparable: Callable[[str], object] | None = None
    """A part that `score` extracted → a value that is equal for equal answers, for majority votes;
    None where answers cannot be compared: two programs may differ and do the same."""
    check: Callable[[], object] = lambda: None
    """Raises where this machine cannot score the task: a package or a way to run programs."""


def few_shot_prompt(task: Task, exemplars: Sequence[Example], example: Example) -> str:
    """Solved exemplars, then the example's open prompt, a blank line between them."""
    solved = [task.open_prompt(shown) + task.exemplar_answer(shown) for shown in exemplars]
    return "\n\n".join([*(text.rstrip("\n") for text in solved), task.open_prompt(example)])


def compared(correct: bool, extracted: str | None) -> Score:
    """The score of an answer that was found, or not (None), and compared."""
    if extracted is None:
        return Score(False, None, NO_ANSWER)
    return Score(correct, extracted, None if correct else WRONG)


def before(text: str, *marks: str) -> str:
    """The text up to the first of `marks`: a base model goes on with another exemplar.

    Empty lines at the start go, so that an answer may begin with a mark.
    """
    text = text.lstrip("\r\n")
    ends = [found for mark in marks if (found := text.find(mark)) >= 0]
    return text[: min(ends, default=len(text))]
