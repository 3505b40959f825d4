"""Injects faults for tests: kills, hangs, slow or failing calls. Does nothing unless LRD_FAULTS is
set.

The environment variable holds a JSON list of rules; the driver passes it to its replicas. A rule
says at which point, for which subject, and what happens:

    {"at": "replica.place", "match": "*Zoe*", "do": "kill"}
    {"at": "storage.write", "match": "data/*", "do": "raise", "chance": 0.05}

| at | subject that `match` (a shell pattern) is held against |
|---|---|
| `replica.start` | `NAME on NODE`: the replica's name, Ray's id of its node |
| `replica.place` | the text of a prompt that gets its slot |
| `replica.pass` | the replica's name, once a pass |
| `storage.read`, `storage.write` | the file's name, before it is read or written |
| `storage.partial` | a local file's name, when all is written and it has not got its name yet |
| `storage.written` | the file's name, once it is whole |

| do | what happens |
|---|---|
| `kill` | the process ends as by kill -9 |
| `hang` | the call never returns |
| `slow` | the call takes `seconds` longer |
| `raise` | OSError with `error` as its errno's name (default EIO) |
| `nan` | the prompt's embeddings become NaN (`replica.place` alone) |
| `log` | a line with the subject is appended to the file `path` |

`chance` (default 1) and `times` (default: no limit; counted in one process) bound how often.
`lrd` reads the variable before it runs a command, a replica when it loads its model; a malformed
one is a ValueError.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import time
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from torch import Tensor

VARIABLE = "LRD_FAULTS"


@dataclass(slots=True)
class _Rule:
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    at: Literal[
        "replica.start",
        "replica.place",
        "replica.pass",
        "storage.read",
        "storage.write",
        "storage.partial",
        "storage.written",
    ]
    do: Literal["kill", "hang", "slow", "raise", "nan", "log"]
    match: str = "*"
    chance: float = 1.0
    times: int | None = None
    seconds: float = 0.0
    error: str = "EIO"
    path: str = ""

    def applies(self, at: str, subject: str) -> bool:
        if self.at != at or self.times == 0 or not fnmatchcase(subject, self.match):
            return False
        if self.chance < 1 and random.random() >= self.chance:
            return False
        if self.times is not None:
            self.times -= 1
        return True


_rules: list[_Rule] | None = None
"""None: the environment has not been read yet."""


def load(text: str | None) -> None:
    """Set the rules from the text of `LRD_FAULTS`; None or empty: no faults.

    Raises ValueError in one line for text that is not a list of rules.
    """
    global _rules
    _rules = _parsed(text) if text else []


def _parsed(text: str) -> list[_Rule]:
    from pydantic import TypeAdapter, ValidationError

    try:
        rules = TypeAdapter(list[_Rule]).validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        reason = f"{where}: {first['msg']}" if where else first["msg"]
        raise ValueError(
            f"{VARIABLE}: not a list of rules ({reason}); pipeline/faults.py says how to write "
            "one, or unset it"
        ) from error
    for rule in rules:
        if not hasattr(errno, rule.error):
            raise ValueError(f"{VARIABLE}: {rule.error!r} is not the name of an errno, such as EIO")
    return rules


def _loaded() -> list[_Rule]:
    if _rules is None:
        load(os.environ.get(VARIABLE))
    assert _rules is not None
    return _rules


def wanted() -> bool:
    """Whether any fault may happen."""
    return bool(_loaded())


def at(point: str, subject: str) -> bool:
    """Do what the rules say for this point; True where the caller has to make its numbers NaN."""
    make_nan = False
    for rule in _loaded():
        if not rule.applies(point, subject):
            continue
        if rule.do == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif rule.do == "hang":
            while True:
                time.sleep(3600)
        elif rule.do == "slow":
            time.sleep(rule.seconds)
        elif rule.do == "raise":
            number = getattr(errno, rule.error)
            raise OSError(number, f"{os.strerror(number)} (a fault that was asked for)", subject)
        elif rule.do == "log":
            with open(rule.path, "a", encoding="utf-8") as log:
                log.write(subject.replace("\n", " ") + "\n")
        else:
            make_nan = True
    return make_nan


def watched(model: Any, gen_length: int) -> WatchedModel:
    """A model whose prompts pass the point `replica.place`; it can keep keys and values where the
    model can."""
    from lrd.models.protocol import is_cached

    return (WatchedCachedModel if is_cached(model) else WatchedModel)(model, gen_length)


class WatchedModel:
    """Wraps a model so that a prompt passes the point `replica.place` when it is embedded, which is
    when it gets its slot."""

    def __init__(self, model: Any, gen_length: int) -> None:
        self._model, self._gen_length = model, gen_length

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def embed(self, ids: Tensor) -> Tensor:
        embeds: Tensor = self._model.embed(ids)
        # A canvas alone is embedded too, in every pass.
        if self._model.tokenizer is None or ids.shape[-1] <= self._gen_length:
            return embeds
        empty = (self._model.pad_id, self._model.mask_id)
        prompt = [token for token in ids.flatten().tolist() if token not in empty]
        text = self._model.tokenizer.decode(prompt)
        import torch

        return torch.full_like(embeds, torch.nan) if at("replica.place", text) else embeds


class WatchedCachedModel(WatchedModel):
    """With the members of `lrd.models.protocol.CachedModel`, which are looked for in the class."""

    @property
    def feeds_before(self) -> int:
        return int(self._model.feeds_before)

    def hidden(self, *inputs: Any) -> Any:
        return self._model.hidden(*inputs)

    def head(self, *inputs: Any) -> Any:
        return self._model.head(*inputs)

    def new_cache(self, *inputs: Any) -> Any:
        return self._model.new_cache(*inputs)

    def hidden_kept(self, *inputs: Any) -> Any:
        return self._model.hidden_kept(*inputs)
