"""Templated word problems like those of GSM8K: the training and test data of the tiny model.

A problem is a question, the bare equations that solve it
and the answer. Train and test problems are kept apart by a hash of structure and numbers,
so a test problem never differs from a training one in names or phrasing alone.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

Split = Literal["train", "test"]

NAMES = [
    "Anna",
    "Ben",
    "Carla",
    "David",
    "Emma",
    "Felix",
    "Grace",
    "Henry",
    "Iris",
    "Jack",
    "Kate",
    "Liam",
    "Mia",
    "Noah",
    "Olga",
    "Paul",
    "Quinn",
    "Rosa",
    "Sam",
    "Tina",
    "Uma",
    "Victor",
    "Wendy",
    "Xavier",
    "Yara",
    "Zoe",
    "Adam",
    "Bella",
    "Chris",
    "Diana",
    "Eric",
    "Fiona",
]
ITEMS = [
    "apples",
    "books",
    "pens",
    "marbles",
    "stickers",
    "cookies",
    "shells",
    "coins",
    "stamps",
    "cards",
    "eggs",
    "flowers",
    "pencils",
    "balloons",
    "candies",
    "oranges",
    "beads",
    "buttons",
    "toys",
    "cups",
    "stones",
    "tickets",
    "plums",
    "ribbons",
]
BOXES = ("boxes", "bags", "baskets", "shelves", "jars", "crates")
MAKERS = ("makes", "packs", "paints", "sorts", "prints", "folds")


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with its reference: `answer` is the final number, `solution` what a
    model is to write (equations, a line each, then `#### answer`)."""

    question: str
    equations: tuple[str, ...]
    answer: int
    key: str
    """Structure and numbers, without names and phrasing: the split is a hash of it."""

    @property
    def solution(self) -> str:
        return "\n".join([*self.equations, f"#### {self.answer}"])

    @property
    def split(self) -> Split:
        return "test" if hashlib.blake2b(self.key.encode()).digest()[0] < 26 else "train"


class _Story:
    """Sentences and equations of a problem while it is generated."""

    def __init__(self, rng: random.Random, kind: str) -> None:
        self.rng = rng
        self.sentences: list[str] = []
        self.equations: list[str] = []
        self.structure = [kind]

    def say(self, *phrasings: str) -> None:
        self.sentences.append(self.rng.choice(phrasings))

    def note(self, *facts: object) -> None:
        self.structure.extend(map(str, facts))

    def compute(self, left: int, operator: str, right: int) -> int:
        value = {
            "+": left + right,
            "-": left - right,
            "*": left * right,
            "/": left // right if right else 0,
        }[operator]
        assert operator != "/" or value * right == left
        self.equations.append(f"{left}{operator}{right}={value}")
        self.note(operator, left, right)
        return value

    def finish(self, question: str, answer: int) -> Problem:
        if len(self.sentences) > 1 and self.rng.random() < 0.2:
            self.sentences.insert(self.rng.randrange(1, len(self.sentences)), self._distractor())
        return Problem(
            " ".join([*self.sentences, question]),
            tuple(self.equations),
            answer,
            " ".join(self.structure),
        )

    def _distractor(self) -> str:
        rng, number = self.rng, self.rng.randint(2, 60)
        return rng.choice(
            (
                f"{rng.choice(NAMES)} is {number} years old.",
                f"The shop is {number} minutes away.",
                f"It is {number} degrees outside.",
            )
        )


def _pile(rng: random.Random) -> Problem:
    """A pile that grows and shrinks, 1 to 3 changes."""
    name, other = rng.sample(NAMES, 2)
    item = rng.choice(ITEMS)
    story = _Story(rng, "pile")
    total = rng.randint(5, 40)
    story.say(
        f"{name} has {total} {item}.",
        f"{name} starts with {total} {item}.",
        f"There are {total} {item} on the table of {name}.",
    )
    for _ in range(rng.randint(1, 3)):
        change = rng.random()
        if change < 0.45:
            more = rng.randint(2, 20)
            story.say(
                f"Then {name} finds {more} more.",
                f"{other} gives {name} {more} {item}.",
                f"{name} buys {more} more {item}.",
            )
            total = story.compute(total, "+", more)
        elif (change < 0.85 or total > 50) and total > 4:
            less = rng.randint(2, min(total - 1, 20))
            story.say(
                f"{name} gives {less} of them to {other}.",
                f"Then {name} loses {less} {item}.",
                f"{name} sells {less} {item}.",
            )
            total = story.compute(total, "-", less)
        else:
            factor = rng.choice((2, 3))
            word = {2: "twice", 3: "three times"}[factor]
            story.say(
                f"After a week {name} has {word} as many.",
                f"Then the number of {item} becomes {word} as large.",
            )
            total = story.compute(total, "*", factor)
    return story.finish(
        rng.choice(
            (f"How many {item} does {name} have now?", f"How many {item} are there in the end?")
        ),
        total,
    )


def _groups(rng: random.Random) -> Problem:
    """Equal groups, some more or less, sometimes shared out."""
    name, item, box = rng.choice(NAMES), rng.choice(ITEMS), rng.choice(BOXES)
    story = _Story(rng, "groups")
    count, each = rng.randint(2, 9), rng.randint(2, 9)
    story.say(
        f"{name} has {count} {box} with {each} {item} each.",
        f"There are {count} {box} and each holds {each} {item}.",
        f"{name} fills {count} {box} with {each} {item} in each.",
    )
    total = story.compute(count, "*", each)
    extra = rng.random()
    if extra < 0.35:
        more = rng.randint(2, 20)
        story.say(f"{name} also has {more} loose {item}.", f"There are {more} more {item} outside.")
        total = story.compute(total, "+", more)
    elif extra < 0.6 and total > 4:
        less = rng.randint(2, total - 2)
        story.say(f"{less} of the {item} are broken.", f"{name} gives away {less} {item}.")
        total = story.compute(total, "-", less)
    divisors = [d for d in range(2, 11) if total % d == 0 and total > d]
    if divisors and rng.random() < 0.6:
        friends = rng.choice(divisors)
        story.say(
            f"The {item} are shared equally among {friends} friends.",
            f"{name} splits them evenly between {friends} children.",
        )
        total = story.compute(total, "/", friends)
        return story.finish(
            rng.choice((f"How many {item} does each get?", f"How many {item} are in each share?")),
            total,
        )
    return story.finish(
        rng.choice((f"How many {item} are left in total?", f"How many {item} is that in all?")),
        total,
    )


def _comparison(rng: random.Random) -> Problem:
    """A chain of people, each compared with the one before."""
    people = rng.sample(NAMES, 3)
    item = rng.choice(ITEMS)
    story = _Story(rng, "comparison")
    amounts = [rng.randint(4, 30)]
    story.say(f"{people[0]} has {amounts[0]} {item}.", f"{people[0]} owns {amounts[0]} {item}.")
    num_people = rng.randint(2, 3)
    for before, person in pairwise(people[:num_people]):
        last, kind = amounts[-1], rng.random()
        if kind < 0.4:
            step = rng.randint(2, 15)
            story.say(
                f"{person} has {step} more {item} than {before}.",
                f"{person} has {step} more than {before}.",
            )
            amounts.append(story.compute(last, "+", step))
        elif kind < 0.7 and last > 3:
            step = rng.randint(1, min(last - 1, 15))
            story.say(
                f"{person} has {step} fewer {item} than {before}.",
                f"{person} has {step} less than {before}.",
            )
            amounts.append(story.compute(last, "-", step))
        elif kind < 0.85 and last % 2 == 0:
            story.say(f"{person} has half as many {item} as {before}.")
            amounts.append(story.compute(last, "/", 2))
        else:
            factor = rng.choice((2, 3))
            word = {2: "twice", 3: "three times"}[factor]
            story.say(f"{person} has {word} as many {item} as {before}.")
            amounts.append(story.compute(last, "*", factor))
    if rng.random() < 0.5:
        story.note("last")
        return story.finish(f"How many {item} does {people[num_people - 1]} have?", amounts[-1])
    total = amounts[0]
    for amount in amounts[1:]:
        total = story.compute(total, "+", amount)
    return story.finish(
        rng.choice((f"How many {item} do they have together?", f"How many {item} is that in all?")),
        total,
    )


def _shopping(rng: random.Random) -> Problem:
    """One or two purchases, sometimes the change of a payment."""
    name = rng.choice(NAMES)
    first, second = rng.sample(ITEMS, 2)
    story = _Story(rng, "shopping")
    count, price = rng.randint(2, 9), rng.randint(2, 9)
    story.say(
        f"{name} buys {count} {first} for ${price} each.",
        f"{name} buys {count} {first} that cost ${price} each.",
    )
    total = story.compute(count, "*", price)
    if rng.random() < 0.55:
        count, price = rng.randint(2, 9), rng.randint(2, 9)
        story.say(
            f"{name} also buys {count} {second} for ${price} each.",
            f"Then {name} takes {count} {second} at ${price} each.",
        )
        total = story.compute(total, "+", story.compute(count, "*", price))
    if rng.random() < 0.45:
        paid = rng.randint(total + 1, total + 20)
        story.say(f"{name} pays with ${paid}.", f"{name} gives the clerk ${paid}.")
        change = story.compute(paid, "-", total)
        return story.finish(
            rng.choice(
                (f"How much change does {name} get?", f"How many dollars does {name} get back?")
            ),
            change,
        )
    return story.finish(
        rng.choice((f"How much does {name} pay in total?", f"How many dollars does {name} spend?")),
        total,
    )


def _rate(rng: random.Random) -> Problem:
    """So many an hour, for hours and sometimes days, then some used or sold."""
    name, item, make = rng.choice(NAMES), rng.choice(ITEMS), rng.choice(MAKERS)
    story = _Story(rng, "rate")
    rate, hours = rng.randint(2, 9), rng.randint(2, 8)
    story.say(f"{name} {make} {rate} {item} an hour.", f"Every hour {name} {make} {rate} {item}.")
    story.say(f"{name} works {hours} hours a day.", f"Each day has {hours} hours of work.")
    total = story.compute(rate, "*", hours)
    if rng.random() < 0.4 and total < 50:
        days = rng.randint(2, 3)
        story.say(f"This goes on for {days} days.", f"{name} works {days} days.")
        total = story.compute(total, "*", days)
    if rng.random() < 0.45 and total > 4:
        less = rng.randint(2, min(total - 2, 30))
        story.say(f"Then {less} {item} are sold.", f"{less} of the {item} get lost.")
        total = story.compute(total, "-", less)
    return story.finish(
        rng.choice((f"How many {item} are there at the end?", f"How many {item} remain in all?")),
        total,
    )


KINDS = (_pile, _groups, _comparison, _shopping, _rate)


def problems(split: Split, seed: int) -> Iterator[Problem]:
    """An endless stream of problems of one split; equal seeds give equal streams."""
    rng = random.Random(f"{split}/{seed}")
    while True:
        problem = rng.choice(KINDS)(rng)
        if problem.split == split:
            yield problem


def drills(seed: int, num_equations: int = 5) -> Iterator[Problem]:
    """An endless stream of bare sums, `21+19? 42/6?`, with the equations of training problems.

    For training alone: a problem asks for one or two sums, and sums are learnt last.
    """
    rng = random.Random(f"drills/{seed}")
    sums: list[str] = []
    for problem in problems("train", seed):
        sums += [equation for equation in problem.equations if "*" not in equation]
        if len(sums) >= 20 * num_equations:
            rng.shuffle(sums)
            while len(sums) >= num_equations:
                chosen, sums = tuple(sums[:num_equations]), sums[num_equations:]
                question = " ".join(equation.partition("=")[0] + "?" for equation in chosen)
                answer = int(chosen[-1].partition("=")[2])
                yield Problem(question, chosen, answer, f"drill {question}")
