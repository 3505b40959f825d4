"""The dataset card: a published run's README.md, whose YAML header tells `datasets` what to load.

Knows nothing of files or of the hub. Column names, prompts, reasons and paths are other people's
text: none of it can become Markdown, HTML or YAML here.
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
from pipeline.rows import RESULT_SCHEMA

PAPER = "[Latent Refinement Decoding](https://arxiv.org/abs/2510.11052)"
TAGS = ("synthetic", "diffusion-language-model", "latent-refinement-decoding")
COLUMNS = {
    "row_id": "shard and row number in the input's order",
    "status": "ok, or failed",
    "error": "why a row failed",
    "output_text": "the answer, up to the first EOS",
    "output_token_ids": "the whole canvas",
    "num_output_tokens": "tokens before the first EOS",
    "num_prompt_tokens": "tokens of the prompt with its template",
    "num_forwards": "forward passes: refine_steps + decode_steps",
    "refine_steps": "passes that only refined beliefs",
    "decode_steps": "passes that committed tokens",
    "blocks": "blocks that were decoded",
    "stop_reason": "complete, converged (early stop), eos or failed",
    "open_at_stop": "positions that early stops committed unsettled",
    "max_entropy_at_stop": "largest entropy among those, nats",
    "refine_converged": "whether every refinement phase converged",
    "kl_trace": "change of the beliefs a forward (D_t, nats); null in a block's first",
    "entropy_trace": "mean entropy of the open positions a forward, nats",
    "commit_step": "the forward that committed each position; 0 where EOS filled the rest",
    "mean_mix_weight": "mean weight of the soft embeddings",
    "bucket": "prompt tokens that the row's slot held",
    "seconds": "wall time in its slot, shared with the slot's neighbours",
    "replica": "which replica decoded it",
    "attempts": "times it got a slot",
}
"""What the added columns mean."""
PROMPT_SETTINGS = ("revision", "prompt_column", "prompt_format", "system_prompt", "truncation")
"""Settings beside the decoding's that results depend on; places and machines are left out."""
SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
    (1_000_000_000, "100M<n<1B"),
)
"""The hub's classes: rows below, name."""
MOST_INPUTS = 20
"""Input files that are listed."""


@dataclass(frozen=True, slots=True)
class About:
    """What the publisher says of the dataset."""

    title: str
    license: str | None = None
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """ValueError for what cannot stand in a card's header."""
        if not self.title.strip() or not self.title.isprintable():
            raise ValueError(f"{self.title!r} is no title; one printable line is due")
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", self.license):
            raise ValueError(
                f"{self.license!r} is no licence id of the hub; such as mit, apache-2.0, cc-by-4.0"
            )
        for tag in self.tags:
            if not re.fullmatch(r"[\w.:+-]+", tag):
                raise ValueError(f"{tag!r} is no tag; letters, digits, - and _ are")


@dataclass(frozen=True, slots=True)
class Facts:
    """What a card tells of a run."""

    manifest: dict[str, Any]
    schema: pa.Schema
    num_shards: int
    num_shards_planned: int
    num_ok: int
    num_failed: int
    num_forwards: int
    """Of the rows that are ok, as all that follows."""
    most_forwards: int
    num_output_tokens: int
    stop_reasons: dict[str, int]
    errors: dict[str, int]
    """Reasons of failed rows, most frequent first."""
    evaluations: list[dict[str, Any]]
    """As `lrd evaluate` left them beside the run."""


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
    yield (
        f"{facts.num_ok} answers of the diffusion language model "
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
    yield "\n## Statistics\n"
    yield table(("", "value"), _statistics(facts))
    if facts.errors:
        yield "\n## Failed rows\n"
        yield table(("rows", "reason"), [(n, escaped(e)) for e, n in facts.errors.items()])
    yield "\n## Accuracy\n"
    yield from _accuracy(facts.evaluations)
    yield "\n## Columns\n"
    yield table(("column", "type", "meaning"), _columns(facts, settings))
    yield "\n## Settings\n"
    yield table(("setting", "value"), _settings(settings, fingerprint))
    yield "\n## Fingerprint\n"
    yield "What the results depend on, by content (SHA-256):\n"
    yield table(("of", "digest"), _digests(fingerprint))


def _statistics(facts: Facts) -> Iterator[tuple[object, ...]]:
    yield "rows that are ok", facts.num_ok
    yield "rows that failed", facts.num_failed
    if facts.num_ok:
        yield "forwards a row, mean", f"{facts.num_forwards / facts.num_ok:.1f}"
        yield "forwards a row, most", facts.most_forwards
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


def _columns(facts: Facts, settings: dict[str, Any]) -> Iterator[tuple[object, ...]]:
    for field in facts.schema:
        meaning = "the input's"
        if field.name in RESULT_SCHEMA.names:
            meaning = COLUMNS[field.name]
        elif field.name == settings.get("prompt_column"):
            meaning = "the prompt"
        yield code(field.name), escaped(field.type), meaning


def _settings(
    settings: dict[str, Any], fingerprint: dict[str, Any]
) -> Iterator[tuple[object, ...]]:
    yield "model", code(_last_part(settings.get("model", "unknown")))
    yield "dtype", code(fingerprint.get("dtype", "unknown"))
    chosen = {name: settings.get(name) for name in PROMPT_SETTINGS}
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
    """A hub id as it is; of a path, which is a machine's own, the last part."""
    is_path = model.startswith((".", "/", "~")) or "://" in model or model.count("/") > 1
    return model.rstrip("/").rpartition("/")[2] if is_path else model
