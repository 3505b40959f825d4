"""Token ids → their texts, by the run's own tokenizer where it can be loaded.

Of a checkpoint only the tokenizer's files are read or downloaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrd.models.hub import TOKENIZER_FILES, download, is_hub_id
from lrd.models.plugin import is_plug
from lrd.models.registry import embedded_folder
from lrd.models.tokenizer import load_tokenizer
from pipeline.report.samples import Row
from pipeline.storage.model_files import fetch
from pipeline.storage.uris import canonical, is_uri


@dataclass(frozen=True, slots=True)
class Tokens:
    """Texts of token ids, or why there are none."""

    texts: dict[int, str]
    why_not: str | None = None


def token_texts(settings: dict[str, Any], rows: Sequence[Row]) -> Tokens:
    """The text of every id in the rows' canvases.

    Checked against the rows' own output_text: a tokenizer that has changed since the run is not
    used.
    """
    model, revision = str(settings.get("model", "")), settings.get("revision")
    try:
        tokenizer = load_tokenizer(tokenizer_folder(model, revision))
    # Tokenizer libraries may raise any exception for broken files; the report works without.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return Tokens({}, f"the run's tokenizer could not be loaded: {reason}")
    if tokenizer is None:
        return Tokens({}, f"{model} has no tokenizer files any more")
    num_other = sum(not _fits(tokenizer, row) for row in rows)
    if num_other:
        return Tokens(
            {},
            f"the tokenizer of {model} is not the run's: it reads {num_other} of {len(rows)} "
            "answers differently",
        )
    return Tokens({index: tokenizer.decode([index]) for index in _ids(rows)})


def tokenizer_folder(model: str, revision: str | None) -> Path:
    """The folder with a checkpoint's tokenizer files, which are downloaded where they have to be.

    Raises ValueError where there is none.
    """
    if is_plug(model):
        raise ValueError(f"{model} is another package's model, whose tokenizer only its code has")
    embedded = embedded_folder(model)
    if embedded is not None:
        return embedded
    model = canonical(model)
    if is_uri(model):
        return fetch(model, TOKENIZER_FILES)
    if Path(model).is_dir():
        return Path(model)
    if is_hub_id(model):
        return download(model, revision, TOKENIZER_FILES)
    raise ValueError(f"{model}: no such folder here")


def _fits(tokenizer: Any, row: Row) -> bool:
    """Whether the tokenizer reads a row's ids as the run did."""
    text, number = row.facts["output_text"], row.facts["num_output_tokens"]
    if text is None:
        return True
    ids = row.token_ids[:number].tolist()
    whole = str(tokenizer.decode(ids, skip_special_tokens=True))
    stop = row.facts["stop_text"]
    return whole == text if stop is None else whole.startswith(text + stop)


def _ids(rows: Iterable[Row]) -> list[int]:
    return sorted({int(index) for row in rows for index in row.token_ids})
