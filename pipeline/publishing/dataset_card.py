"""Writes the dataset card: a published run's README.md, whose YAML header is read by `datasets`.

Column names, prompts, reasons and paths are other people's text, and escaped: none of it can become
Markdown, HTML or YAML.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import yaml

from pipeline.markdown import code, escaped, table
from pipeline.rows import MEANINGS, Layout
from pipeline.scoring.stored_scores import sample_rows
from pipeline.selecting.conversations import MEANINGS as CHAT_MEANINGS
from pipeline.selecting.rules import table as rule_table
from pipeline.selecting.selection import Selection

PAPER = "[Latent Refinement Decoding](https://arxiv.org/abs/2510.11052)"
TAGS = ("synthetic", "diffusion-language-model", "latent-refinement-decoding")
PROMPT_SETTINGS = ("revision", "prompt_column", "prompt_format", "system_prompt", "truncation")
"""Settings beside the decoding's on which results depend; paths and machines are left out."""
SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
    (1_000_000_000, "100M<n<1B"),
)
"""The hub's size classes: upper bound of rows, name."""
MOST_INPUTS = 20
"""Input files that are listed."""


@dataclass(frozen=True, slots=True)
class About:
    """What the publisher says about the dataset."""

    title: str
    license: str | None = None
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError for values that a card's header cannot hold."""
        if not self.title.strip() or not self.title.isprintable():
            raise ValueError(f"{self.title!r} is not a title; expected one printable line")
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", self.license):
            raise ValueError(
                f"{self.license!r} is not a licence id of the hub; expected mit, apache-2.0, "
                "cc-by-4.0 or the like"
            )
        for tag in self.tags:
            if not re.fullmatch(r"[\w.:+-]+", tag):
                raise ValueError(f"{tag!r} is not a tag; expected letters, digits, - and _")


@dataclass(frozen=True, slots=True)
class Facts:
    """The figures of a run that a card shows."""

    manifest: dict[str, Any]
    schema: pa.Schema
    num_shards: int
    num_shards_planned: int
    num_ok: int
    num_failed: int
    num_forwards: int
    """Of the rows that are ok, like the figures below it."""
    most_forwards: int
    num_positions: int | None
    """Positions that went through the model; None where the run does not keep them."""
    num_output_tokens: int
    stop_reasons: dict[str, int]
    errors: dict[str, int]
    """Reasons of failed rows, most frequent first."""
    evaluations: list[dict[str, Any]]
    """The summaries that `lrd evaluate` stored with the run."""
    selection: Selection | None = None
    """The record of `lrd select` where the dataset is one of its own; its rows are the ok ones."""


def card(facts: Facts, about: About) -> str:
    """The whole README.md."""
    return "\n".join([*_header(facts, about), *_body(facts, about)]) + "\n"


def _header(facts: Facts, about: About) -> Iterator[str]:
    configs = []
    if facts.num_ok:
        configs.append(_config("default", "train", "data"))
    if facts.num_failed:
        configs.append(_config("failed", "failed", "failed"))
    num_rows = facts.num_ok + facts.num_failed
    size = next((name for below, name in SIZES if num_rows < below), "n>1B")
    header: dict[str, Any] = {"pretty_name": about.title}
    if about.license is not None:
        header["license"] = about.license
    header |= {
        "tags": list(dict.fromkeys([*TAGS, *about.tags])),
        "size_categories": [size],
        "configs": configs,
    }
    yield "---"
    yield yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=10_000).rstrip()
    yield "---"


def _config(name: str, split: str, folder: str) -> dict[str, Any]:
    return {
        "config_name": name,
        "data_files": [{"split": split, "path": f"{folder}/*.parquet"}],
    }


def _body(facts: Facts, about: About) -> Iterator[str]:
    settings, fingerprint = facts.manifest["settings"], facts.manifest["fingerprint"]
    yield f"\n# {escaped(about.title)}\n"
    what = "pairs of answers" if _form(facts) == "preference" else "answers"
    yield (
        f"{facts.num_ok} {what} of the diffusion language model "
        f"{code(_last_part(settings.get('model', 'unknown')))}, decoded by {PAPER} "
        f"(lrd-pipeline {code(fingerprint.get('version', 'unknown'))}); begun "
        f"{code(facts.manifest.get('created', 'unknown'))}."
    )
    if facts.num_shards < facts.num_shards_planned:
        yield (
            f"\n**Not finished**: {facts.num_shards} of {facts.num_shards_planned} shards of "
            "the run are here."
        )
    if facts.num_failed:
        yield (
            f"\n{facts.num_failed} rows that failed are a configuration of their own, "
            '`load_dataset(…, "failed", split="failed")`, with the reasons in `error`.'
        )
    if facts.selection is not None:
        yield "\n## Selection\n"
        yield "The rules of `lrd select` in the order in which they applied:\n"
        header, *rules = rule_table(facts.selection.rules)
        yield table(header, [(escaped(rule), *counts) for rule, *counts in rules])
    yield "\n## Statistics\n"
    yield table(("", "value"), _statistics(facts))
    if facts.errors:
        yield "\n## Failed rows\n"
        yield table(("rows", "reason"), [(n, escaped(e)) for e, n in facts.errors.items()])
    yield "\n## Accuracy\n"
    if facts.selection is not None:
        yield "Of the run before the selection.\n"
    yield from _accuracy(facts.evaluations)
    yield "\n## Columns\n"
    yield table(("column", "type", "meaning"), _columns(facts, settings))
    yield "\n## Settings\n"
    yield table(("setting", "value"), _settings(settings, fingerprint))
    yield "\n## Fingerprint\n"
    yield "What the results depend on, by content (SHA-256):\n"
    yield table(("of", "digest"), _digests(fingerprint))


def _form(facts: Facts) -> str:
    return "rows" if facts.selection is None else facts.selection.form


def _statistics(facts: Facts) -> Iterator[tuple[object, ...]]:
    if _form(facts) == "preference":
        yield "pairs", facts.num_ok
        return
    yield "rows that are ok", facts.num_ok
    yield "rows that failed", facts.num_failed
    if facts.num_ok and facts.num_forwards:
        yield "forwards a row, mean", f"{facts.num_forwards / facts.num_ok:.1f}"
        yield "forwards a row, most", facts.most_forwards
        if facts.num_positions is not None:
            yield "positions computed a row, mean", f"{facts.num_positions / facts.num_ok:,.0f}"
        yield "tokens a row before EOS, mean", f"{facts.num_output_tokens / facts.num_ok:.1f}"
        yield "such tokens a forward", f"{facts.num_output_tokens / max(1, facts.num_forwards):.2f}"
        for reason, count in facts.stop_reasons.items():
            yield f"stopped by {escaped(reason)}", count


def _accuracy(evaluations: Sequence[dict[str, Any]]) -> Iterator[str]:
    if not evaluations:
        yield "Not scored."
        return
    rows = [
        (
            code(found["task"]),
            f"{found['num_correct']} of {found['num_rows']}",
            f"{found['accuracy']:.1%}",
            f"{found['accuracy_low']:.1%} to {found['accuracy_high']:.1%}",
        )
        for found in evaluations
    ]
    yield "Failed rows count as wrong.\n"
    yield table(("task", "right", "accuracy", "95 % interval"), rows)
    several = [
        (code(found["task"]), name, f"{of['share']:.1%}", f"{of['low']:.1%} to {of['high']:.1%}")
        for found in evaluations
        for name, of in sample_rows(found)
    ]
    if several:
        yield "\nSeveral samples a prompt, intervals over prompts:\n"
        yield table(("task", "of a prompt's samples", "share", "95 % interval"), several)


def _columns(facts: Facts, settings: dict[str, Any]) -> Iterator[tuple[object, ...]]:
    chats = {} if _form(facts) == "rows" else CHAT_MEANINGS
    for field in facts.schema:
        meaning = "the input's"
        if field.name in chats:
            meaning = chats[field.name]
        elif field.name in MEANINGS:
            meaning = MEANINGS[field.name]
        elif field.name == settings.get("prompt_column"):
            meaning = "the prompt"
        yield code(field.name), escaped(field.type), meaning


def _settings(
    settings: dict[str, Any], fingerprint: dict[str, Any]
) -> Iterator[tuple[object, ...]]:
    yield "model", code(_last_part(settings.get("model", "unknown")))
    yield "dtype", code(fingerprint.get("dtype", "unknown"))
    chosen = {name: settings.get(name) for name in PROMPT_SETTINGS}
    chosen |= Layout.of(fingerprint).facts
    chosen |= {name: settings[name] for name in ("stop", "row_settings") if settings.get(name)}
    for name, value in {**chosen, **fingerprint.get("decoding", {})}.items():
        yield code(name), code(value if isinstance(value, str) else json.dumps(value))


def _digests(fingerprint: dict[str, Any]) -> Iterator[tuple[object, ...]]:
    yield "model", code(fingerprint.get("model", "unknown"))
    inputs = fingerprint.get("input", {})
    for name, digest in list(inputs.items())[:MOST_INPUTS]:
        yield f"input {code(name)}", code(digest)
    if len(inputs) > MOST_INPUTS:
        yield f"{len(inputs) - MOST_INPUTS} more input files", "in the footers of the shards"


def _last_part(model: str) -> str:
    """A hub id unchanged; the last part of a path, whose other parts only mean something here."""
    is_path = model.startswith((".", "/", "~")) or "://" in model or model.count("/") > 1
    return model.rstrip("/").rpartition("/")[2] if is_path else model
