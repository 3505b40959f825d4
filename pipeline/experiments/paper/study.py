"""Models × tasks × lengths × decodings → runs, each with a folder that its settings name.

Two tables that need the same decoding share its run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import RunConfig
from pipeline.experiments.paper.decodings import METHOD, NEEDED, config_of, first_alike
from pipeline.storage.uris import child, parent

SETTINGS = (
    *("model", "revision", "dtype", "compile", "prompt_format", "system_prompt", "truncation"),
    "decoding",
)
"""What results depend on besides the prompts; the run's fingerprint has the same in more detail."""


@dataclass(frozen=True, slots=True)
class Group:
    """What is compared with each other: the decodings of one model, task and length."""

    model: str
    task: str
    gen_length: int

    @property
    def name(self) -> str:
        return f"{model_name(self.model)}, {self.task}, {self.gen_length}"


@dataclass(frozen=True, slots=True)
class Study:
    """Everything that the given tables and figures compare."""

    output: str
    models: Sequence[str]
    prompts: Mapping[str, str]
    """Task → the folder of its prompts."""
    gen_lengths: Sequence[int]
    run: Mapping[str, Any]
    """Settings of every run, as far as given."""
    decoding: Mapping[str, Any]
    """Decoding settings of every run, as far as given."""
    method: str = METHOD

    def groups(self) -> list[Group]:
        return [Group(m, t, g) for m in self.models for t in self.prompts for g in self.gen_lengths]

    def config(self, group: Group, name: str) -> RunConfig:
        """A decoding's run; raises pydantic's ValidationError for impossible settings."""
        name = first_alike(name, group.gen_length, self.decoding, self.method)
        prompts = self.prompts[group.task]
        config = RunConfig(
            **{
                **self.run,
                "model": group.model,
                "input": prompts,
                "output": "?",
                "decoding": config_of(name, group.gen_length, self.decoding, self.method),
            }
        )
        parts = (model_name(group.model), parent(prompts.rstrip("/"))[1])
        folder = "-".join([*parts, str(group.gen_length), name, _digest(config)])
        return config.model_copy(update={"output": child(self.output, f"runs/{folder}")})

    def runs(self, items: Iterable[str]) -> list[RunConfig]:
        """Every run that these tables and figures need, each once."""
        found = {
            config.output: config
            for group in self.groups()
            for item in items
            for name in NEEDED[item]
            for config in [self.config(group, name)]
        }
        return list(found.values())


def model_name(model: str) -> str:
    """A checkpoint's name without where it lies, fit for a file's."""
    return re.sub(r"[^\w.]+", "-", model.rstrip("/").rpartition("/")[2]).strip("-")


def _digest(config: RunConfig) -> str:
    settings = config.model_dump(
        mode="json", include=set(SETTINGS), exclude={"decoding": config.decoding.unrecorded}
    )
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=4).hexdigest()
