"""Checks everything a run needs except the cluster: settings, paths, input and checkpoint; and
collects the run's fingerprint, which is all that its results depend on. Writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lrd import load_model
from lrd.engine import refuse_without_cache
from lrd.models.checkpoint import fingerprint
from pipeline.config import RunConfig
from pipeline.input import input_files, prompt_shards, row_settings
from pipeline.input.prompt_shards import PromptShards
from pipeline.input.row_templates import FREE, AnswerForm, check_form, read_form
from pipeline.observe.stages import BYTES, stage
from pipeline.output.other_readers import cannot_open
from pipeline.rows import InputFile, Layout
from pipeline.storage.model_files import local_model
from pipeline.storage.storage import Storage, refused_as_settings
from pipeline.storage.uri_secrets import refuse_secret

MANY_ROWS = 500_000
"""A result shard of more rows, because of its samples, is worth a note: at 256 tokens it takes the
driver over a gigabyte."""


def package_version() -> str:
    """The project's version, part of every fingerprint."""
    try:
        return version("lrd-pipeline")
    except PackageNotFoundError:
        return "unknown"


@dataclass(frozen=True, slots=True)
class Checked:
    """A run whose settings, input and checkpoint were checked; nothing has been written."""

    inputs: PromptShards
    output: Storage
    face: Any
    """The model without weights: tokenizer, positions, special ids."""
    num_samples: int = 1
    """Result rows of each prompt."""
    form: AnswerForm = FREE
    """Of the answers, where it comes from files."""

    @property
    def files(self) -> list[InputFile]:
        """The prompt shards."""
        return self.inputs.files

    @property
    def notes(self) -> list[str]:
        """Warnings to show before anything is decoded, a line each."""
        notes = [*self.inputs.notes(), *cannot_open(self.inputs.schema)]
        largest = max(self.files, key=lambda file: file.num_rows, default=None)
        if self.num_samples > 1 and largest and largest.num_rows * self.num_samples > MANY_ROWS:
            notes.append(
                f"{largest.name}: {largest.num_rows} prompts × {self.num_samples} samples make a "
                f"shard of {largest.num_rows * self.num_samples} rows, which the driver has in "
                "memory until all are finished; `lrd prepare --rows-per-shard` makes smaller shards"
            )
        return notes


@refused_as_settings()
def check(config: RunConfig, inputs: PromptShards | None = None) -> Checked:
    """Check everything a run needs except the cluster.

    inputs: prompts that are decoded in place of the input, for a preview; neither input nor output
    is then looked at.
    Raises ValueError where settings, input or checkpoint are wrong.
    """
    refuse_secrets(config)
    form = read_form(config)
    output = Storage(config.output)
    if inputs is None:
        with stage("looking for input and output"):
            found = input_files.find(config.input)
            _check_places(found.storage, output)
            output.check_writable()
            output.kind()  # Raises where the store does not answer.
        inputs = prompt_shards.inspect(found, config.prompt_column)
    row_settings.check_columns(inputs, config.row_settings)
    dtype = "bfloat16" if config.dtype == "auto" else config.dtype
    with stage(f"reading settings and tokenizer of {config.model}"):
        face = load_model(local_model(config.model), "meta", dtype, config.revision)
    if face.tokenizer is None:
        raise ValueError(
            f"{config.model}: has no tokenizer.json; put its tokenizer files into the folder"
        )
    refuse_without_cache(face, config.decoding)
    if config.prompt_format == "chat" and not face.tokenizer.chat_template:
        raise ValueError(f"{config.model}: has no chat template; use --prompt-format raw")
    if inputs.holds_chats:
        _check_renders_chats(config, face.tokenizer)
    *_, longest = config.decoding.canvases
    if longest >= face.max_length:
        name = "max_gen_length" if config.decoding.grows else "gen_length"
        raise ValueError(
            f"{name} {longest} leaves no room for a prompt in the model's {face.max_length} "
            f"positions; set --{name.replace('_', '-')} below"
        )
    check_form(config, form, inputs, face)
    return Checked(inputs, output, face, config.num_samples, form)


def refuse_secrets(config: RunConfig) -> None:
    """ValueError, without the secret in it, where a setting's URI carries one."""
    for name, value in config.model_dump().items():
        refuse_secret(name, value)


def model_fingerprint(config: RunConfig) -> str:
    """The fingerprint of the run's model; reads large weights once on this machine."""
    with stage("hashing weights", unit=BYTES) as step:

        def count(new: int, total: int) -> None:
            step.total = total
            step.add(new)

        return fingerprint(local_model(config.model), config.revision, count)


def fingerprint_of(
    config: RunConfig,
    files: list[InputFile],
    dtype: str,
    model: str | None = None,
    form: AnswerForm = FREE,
) -> dict[str, Any]:
    """All that the results of a run depend on. model: `model_fingerprint`, where it is known."""
    prompts = {"prompt_column", "prompt_format", "system_prompt", "truncation"}
    if config.allow_special_tokens:  # Runs of versions that had no such setting go on.
        prompts.add("allow_special_tokens")
    found: dict[str, Any] = {
        "version": package_version(),
        "model": model or model_fingerprint(config),
        "dtype": dtype,
        "compile": config.compile,
        "decoding": config.decoding.model_dump(mode="json", exclude=config.decoding.unrecorded),
        "prompts": config.model_dump(include=prompts),
        "input": {file.name: file.sha256 for file in files},
        **Layout.planned(config).facts,
    }
    if config.stop:  # Likewise.
        found["stop"] = list(config.stop)
    if config.row_settings:  # Likewise.
        found["row_settings"] = list(config.row_settings)
    for name in ("template_column", "template_filler", "infill"):  # Likewise.
        if getattr(config, name):
            found[name] = getattr(config, name)
    return found | form.facts


def _check_renders_chats(config: RunConfig, tokenizer: Any) -> None:
    column = f"{config.input}: column {config.prompt_column!r} holds chats"
    if config.prompt_format == "raw":
        raise ValueError(
            f"{column}, which prompt format raw cannot render; use --prompt-format chat"
        )
    if not tokenizer.chat_template:
        raise ValueError(
            f"{column} and {config.model} has no chat template; put the release's "
            "chat_template.jinja beside its tokenizer files, or write the prompts as text"
        )


def _check_places(inputs: Storage, output: Storage) -> None:
    if inputs.is_local != output.is_local:
        return
    if inputs.root == output.root:
        raise ValueError(f"{output.uri}: is the input's folder; name another --output")
    if inputs.root == f"{output.root}/data":
        raise ValueError(f"{output.uri}: would write into the input; name another --output")
