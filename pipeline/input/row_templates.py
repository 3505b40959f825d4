"""Gives rows the form that their answers have: a template of the run or of a column, a JSON Schema,
or the holes of the prompt itself.

The files of `--template` and `--schema` are read once, on the machine of the driver.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import pyarrow as pa

from lrd.json_schema import json_form
from lrd.templates import HOLE, Scaffold, TemplateReader
from pipeline.config import RunConfig, shown
from pipeline.input.prompt_shards import PromptShards
from pipeline.input.prompt_text import PromptValue, is_text, texts
from pipeline.storage import uris
from pipeline.storage.storage import Storage

TEMPLATES_KEPT = 4096
"""Scaffolds that are kept, so that rows of one template share one."""


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """The contents of the files that give answers their form."""

    template: str | None = None
    schema: Any = None
    """JSON as Python has it."""

    @property
    def facts(self) -> dict[str, Any]:
        """Its entries in a fingerprint, in which the order of a schema's properties counts."""
        found: dict[str, Any] = {}
        if self.template is not None:
            found["template"] = self.template
        if self.schema is not None:
            found["json_schema"] = json.dumps(self.schema, separators=(",", ":"))
        return found


FREE = AnswerForm()
"""Of a run without such files."""


def read_form(config: RunConfig) -> AnswerForm:
    """Read the files of a run's template and schema.

    Raises ValueError that names the file where it cannot be read.
    """
    if config.template is not None:
        text = _read(config.template, "template")
        # Editors end a file's last line.
        return AnswerForm(template=text.removesuffix("\n").removesuffix("\r"))
    if config.json_schema is not None:
        try:
            return AnswerForm(schema=json.loads(_read(config.json_schema, "json_schema")))
        except (json.JSONDecodeError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{config.json_schema}: is not JSON ({reason}); write a JSON Schema into it"
            ) from error
    return FREE


def _read(place: str, name: str) -> str:
    setting = f"--{shown(name)}"
    storage = Storage(place)
    kind = storage.kind()
    if kind != "file":
        what = "is a folder" if kind == "folder" else "no such file"
        raise ValueError(f"{place}: {what}; name a file with {setting}")
    folder, file = uris.parent(storage.uri)
    try:
        return Storage(folder).read(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: is not UTF-8; save it as UTF-8") from error
    except OSError as error:
        raise ValueError(
            f"{place}: cannot be read ({error}); name another with {setting}"
        ) from error


def check_form(config: RunConfig, form: AnswerForm, inputs: PromptShards, model: Any) -> None:
    """Check that the run's template or schema makes a canvas, and that the column is there.

    Raises ValueError where not. model: without weights.
    """
    place = config.template or config.json_schema
    if config.template_column is not None:
        _check_column(inputs, config.template_column)
    if form.schema is not None:
        try:
            # Also where the tokenizer lacks tokens that the schema needs.
            json_form(form.schema, model, config.decoding.gen_length).allowed()
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
    elif form.template is not None and "gen_length" not in config.row_settings:
        try:
            RowTemplates(config, form, model).scaffold(None, config.decoding.gen_length)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error


def _check_column(inputs: PromptShards, name: str) -> None:
    if not inputs.files:
        return
    first = inputs.storage.path(inputs.files[0].name)
    if name not in inputs.schema.names:
        there = ", ".join(inputs.schema.names)
        raise ValueError(
            f"{first}: no column {name!r}; it has {there}. Name the templates' with "
            "--template-column"
        )
    kind = inputs.schema.field(name).type
    if not is_text(kind) and not pa.types.is_null(kind):
        raise ValueError(
            f"{inputs.storage.uri}: column {name!r} holds {kind}; a template column holds text"
        )


class RowTemplates:
    """Makes the canvases of rows."""

    def __init__(self, config: RunConfig, form: AnswerForm, model: Any) -> None:
        """model: without weights; not read where the run gives answers no form."""
        self._config, self._form, self._model = config, form, model
        self.is_on = config.form is not None
        self.columns = [config.template_column] if config.template_column else []
        """Input columns that are read."""
        self._scaffold_of = lru_cache(TEMPLATES_KEPT)(self._new_scaffold)
        self._scaffold_of_schema = cache(self._new_scaffold_of_schema)

    def read(self, rows: pa.Table) -> Sequence[str | ValueError | None]:
        """Each row's own template; None where the run has no column of them."""
        if not self._config.template_column:
            return [None] * rows.num_rows
        return [_own(text) for text in texts(rows[self._config.template_column])]

    def split(self, prompt: PromptValue) -> tuple[PromptValue, str | None]:
        """A prompt up to its first hole, and the template that begins there; the prompt and None
        where the run fills no holes of prompts.

        Raises ValueError where there is no hole to be filled.
        """
        if not self._config.infill:
            return prompt, None
        if isinstance(prompt, str):
            if self._renders_chats:
                raise ValueError(
                    "the prompt is a user's turn, whose holes cannot be filled; use prompt format "
                    "raw, or write a chat that ends with the assistant's turn"
                )
            before, template = _at_first_hole(prompt)
            if not before and not getattr(self._model.tokenizer, "add_bos_token", False):
                raise ValueError("the prompt begins with a hole; write a word before it")
            return before, template
        *turns, last = prompt
        content = last.get("content")
        if last.get("role") != "assistant" or not isinstance(content, str):
            raise ValueError(
                "the chat does not end with the assistant's turn, whose holes are filled; add it"
            )
        before, template = _at_first_hole(content)
        if not before.strip():
            # A blank last turn is not a turn (`lrd.chats`), so its space is the answer's.
            before, template = "", content
        return [*turns, {**last, "content": before}], template

    @property
    def _renders_chats(self) -> bool:
        has_template = bool(getattr(self._model.tokenizer, "chat_template", None))
        return has_template and self._config.prompt_format != "raw"

    def scaffold(self, template: str | None, gen_length: int) -> Scaffold | None:
        """The canvas of a row; None where the run gives answers no form.

        template: the row's own; None: the run's. gen_length: positions that it may take.
        Raises ValueError where it cannot be.
        """
        if self._form.schema is not None:
            return self._scaffold_of_schema(gen_length)
        template = self._form.template if template is None else template
        return None if template is None else self._scaffold_of(template, gen_length)

    def _new_scaffold(self, template: str, gen_length: int) -> Scaffold:
        config = self._config
        return TemplateReader(
            self._model, gen_length, config.allow_special_tokens, config.template_filler
        ).read(template)

    def _new_scaffold_of_schema(self, gen_length: int) -> Scaffold:
        filler = self._config.template_filler
        return json_form(self._form.schema, self._model, gen_length, filler).scaffold


def _own(text: str | ValueError | None) -> str | ValueError:
    if isinstance(text, ValueError):
        return ValueError(str(text).replace("the prompt ", "the template ", 1))
    return ValueError("the template is null") if text is None else text


def _at_first_hole(text: str) -> tuple[str, str]:
    """The text before its first hole, and the rest.

    Raises ValueError where it has none.
    """
    hole = HOLE.search(text)
    if hole is None:
        raise ValueError(
            "the prompt has no hole; write [[12]] for 12 positions, [[*]] for what is left"
        )
    return text[: hole.start()], text[hole.start() :]
