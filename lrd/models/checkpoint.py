"""A checkpoint folder or hub id → a model, every tensor accounted for.

Knows nothing of decoding. Reads safetensors alone and runs no code from a checkpoint.

Legend: B samples, L positions, C chosen columns, D width, V rows of the embedding table.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lrd.models.families import Family, family_of
from lrd.models.transformer import Transformer

TINY = Path(__file__).parent / "tiny"
"""Folder of the embedded model, known as `tiny` everywhere."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class LoadedModel:
    """A checkpoint on a device; satisfies `lrd.models.protocol.DiffusionModel`."""

    def __init__(
        self,
        transformer: Transformer,
        config: dict[str, Any],
        tokenizer: Any,
    ) -> None:
        self.transformer = transformer
        self.tokenizer = tokenizer
        self.max_length = transformer.config.max_length
        self.mask_id = _token_id(config, "mask_token_id", transformer.config.table_rows)
        self.eos_id = _token_id(config, "eos_token_id", transformer.config.table_rows)
        pad = config.get("pad_token_id")
        self.pad_id = self.eos_id if pad is None else int(pad)
        self.eot_id: int | None = None

    @property
    def embedding_table(self) -> Tensor:
        return self.transformer.embedding.weight

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [B, L] → embeddings [B, L, D]."""
        embeds: Tensor = self.transformer.embedding(ids)
        return embeds

    @torch.no_grad()
    def logits(
        self,
        embeds: Tensor,
        attention_mask: Tensor | None = None,
        columns: Tensor | None = None,
    ) -> Tensor:
        """Embeddings [B, L, D] → logits [B, L, V], or [B, C, V] at `columns` [B, C].

        Position i's logits predict position i: Dream's shift is undone here and nowhere else
        (position 0 keeps its own, as the original does). Padding may be on either side.
        """
        hidden_BLD = self.transformer.hidden(embeds, attention_mask)
        if self.transformer.config.logit_shift:
            hidden_BLD = torch.cat([hidden_BLD[:, :1], hidden_BLD[:, :-1]], dim=1)
        if columns is not None:
            index_BCD = columns[..., None].expand(-1, -1, hidden_BLD.shape[-1])
            hidden_BLD = hidden_BLD.gather(1, index_BCD)
        return self.transformer.project(hidden_BLD)


def load_model(path_or_id: str | Path, device: str = "cpu", dtype: str = "float32") -> LoadedModel:
    """The model of a checkpoint folder, or `tiny` for the embedded one.

    dtype: float32 or bfloat16. Raises ValueError for what is missing or does not fit, with
    every difference named at once.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not supported; choose from {', '.join(DTYPES)}")
    folder = checkpoint_folder(path_or_id)
    config = read_config(folder)
    family = family_of(config)
    with torch.device("meta"):
        transformer = Transformer(family.transformer_config(config))
    _load_weights(transformer, family, folder, torch.device(device), DTYPES[dtype])
    transformer.requires_grad_(False).eval()
    return LoadedModel(transformer, config, load_tokenizer(folder))


def checkpoint_folder(path_or_id: str | Path) -> Path:
    """The folder that a path or the name `tiny` stands for; ValueError where there is none."""
    folder = TINY if str(path_or_id) == "tiny" else Path(path_or_id)
    if not folder.is_dir():
        raise ValueError(f"{path_or_id}: no such checkpoint folder")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no config.json; name a folder that holds a checkpoint")
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json`, parsed; ValueError where it is not a JSON object."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{folder / 'config.json'}: not a JSON object")
    return config


def load_tokenizer(folder: Path) -> Any:
    """The folder's transformers tokenizer, or None where it has none."""
    if not (folder / "tokenizer.json").is_file():
        return None
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, by its index or single."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        files = [folder / name for name in names]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ValueError(f"{index}: names files that are not there: {', '.join(missing)}")
        return files
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    if list(folder.glob("*.bin")) or list(folder.glob("*.pt")):
        raise ValueError(
            f"{folder}: only pickled weights; they can run code when read and are refused. "
            "Convert them to safetensors"
        )
    raise ValueError(f"{folder}: no model.safetensors and no index of shards")


def fingerprint(path_or_id: str | Path) -> str:
    """SHA-256 over `config.json`, tokenizer and weights: equal exactly for equal models."""
    folder = checkpoint_folder(path_or_id)
    digest = hashlib.sha256()
    side_files = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    for file in [folder / name for name in side_files] + weight_files(folder):
        if file.is_file():
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _token_id(config: dict[str, Any], name: str, table_rows: int) -> int:
    value = config.get(name)
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, int) or not 0 <= value < table_rows:
        raise ValueError(f"config.json: {name} is {value!r}; a token id below {table_rows} is due")
    return value


def _load_weights(
    transformer: Transformer,
    family: Family,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Fill the meta-device transformer tensor by tensor, each straight to its device and dtype."""
    files = weight_files(folder)
    wanted = family.tensor_names(transformer.config)
    ours = {theirs: name for name, theirs in wanted.items()}
    shapes = {name: list(p.shape) for name, p in transformer.named_parameters()}
    assert shapes.keys() == wanted.keys()
    extra: list[str] = []
    misshapen: list[str] = []
    places: dict[str, Path] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for theirs in tensors.keys():  # noqa: SIM118 (safe_open is no mapping)
                    if theirs not in ours:
                        extra.append(theirs)
                        continue
                    places[theirs] = file
                    shape = list(tensors.get_slice(theirs).get_shape())
                    if shape != shapes[ours[theirs]]:
                        misshapen.append(f"{theirs} is {shape}, not {shapes[ours[theirs]]}")
        except SafetensorError as error:
            raise ValueError(f"{file}: not a whole safetensors file ({error})") from error
    missing = sorted(ours.keys() - places.keys())
    if missing or extra or misshapen:
        parts = [
            f"{len(found)} {kind}: {'; '.join(sorted(found))}"
            for kind, found in (("missing", missing), ("extra", extra), ("misshapen", misshapen))
            if found
        ]
        raise ValueError(
            f"{folder}: the tensors are not those of config.json as {family.name}: "
            + ". ".join(parts)
            + ". Use the config.json that belongs to these weights, or download both again"
        )
    modules = dict(transformer.named_modules())
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for theirs, place in places.items():
                if place != file:
                    continue
                module, _, attribute = ours[theirs].rpartition(".")
                value = tensors.get_tensor(theirs).to(device=device, dtype=dtype)
                setattr(modules[module], attribute, torch.nn.Parameter(value, requires_grad=False))
