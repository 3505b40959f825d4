"""A checkpoint folder, hub id or plug-in → a model.

Reads safetensors alone and runs no code from a checkpoint. `weights.py` accounts for every tensor,
`hub.py` downloads, `plugin.py` imports models of other packages.

Legend: B samples, L positions, C chosen columns, D width, V rows of the embedding table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrd.config import Compile
from lrd.models.compiled import check_compile, speed_up
from lrd.models.digests import OnBytes, sha256_of
from lrd.models.families import family_of
from lrd.models.files import read_object
from lrd.models.hub import (
    FILES,
    TOKENIZER_FILES,
    download,
    is_hub_id,
    weight_headers,
    weight_sha256,
)
from lrd.models.int8 import int8_packer
from lrd.models.kv_cache import KVCache, Window
from lrd.models.plugin import is_plug, load_plug, plug_fingerprint
from lrd.models.protocol import DiffusionModel
from lrd.models.registry import embedded_folder
from lrd.models.tokenizer import load_tokenizer, refuse_foreign, token_id
from lrd.models.transformer import Transformer
from lrd.models.w8a8 import FORMATS, W8A8Linear, check_device, use_w8a8
from lrd.models.weights import Headers, TensorNames, load_weights, weight_files, weight_names

DTYPES = {
    "float32": torch.float32,
    **dict.fromkeys(("bfloat16", "int8"), torch.bfloat16),
    **dict.fromkeys(FORMATS, torch.bfloat16),
}
"""Name → the dtype of computation. int8 keeps the blocks' weights in int8, those of `w8a8.FORMATS`
multiply in eight bits too; the rest is in bfloat16."""
SIDE_FILES = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    *("vocab.json", "merges.txt", "added_tokens.json"),
)
"""Files that a model's results depend on besides its weights."""
GENERATION = "generation_config.json"
"""May name further EOS ids; transformers and vLLM stop at these too."""


class LoadedModel:
    """A checkpoint on a device; satisfies `lrd.models.protocol.DiffusionModel`."""

    def __init__(
        self,
        transformer: Transformer,
        config: dict[str, Any],
        tokenizer: Any,
        eot_token: str | None = None,
        compile: Compile = "none",
    ) -> None:
        """eot_token: what ends a chat turn; its id is the tokenizer's."""
        self.transformer = transformer
        self.compiled = compile in ("compile", "graphs")
        speed_up(transformer, compile)
        self.tokenizer = tokenizer
        self.max_length = transformer.config.max_length
        table_rows = transformer.config.table_rows
        self.mask_id = _token_id(config, "mask_token_id", table_rows)
        self.eos_ids = _eos_ids(config, table_rows)
        """Ids that end an answer; the first one fills what is left open."""
        self.eos_id = self.eos_ids[0]
        if self.mask_id in self.eos_ids:
            raise ValueError(
                f"config.json: mask_token_id {self.mask_id} is an eos_token_id too; an open "
                "position would end the answer"
            )
        self.pad_id = self.eos_id
        if config.get("pad_token_id") is not None:
            self.pad_id = _token_id(config, "pad_token_id", table_rows)
        self.eot_id = token_id(tokenizer, eot_token) if eot_token is not None else None
        self.unused_tensors: list[str] = []
        """Tensors of the files that are not needed, since they repeat others."""

    @property
    def replays_graphs(self) -> bool:
        """Whether each shape of a pass is captured once and replayed."""
        return self.transformer.graphs is not None

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

        Padding may be on either side.
        """
        B, L, _ = embeds.shape
        if columns is None:
            columns = torch.arange(L, device=embeds.device).expand(B, L)
        at_BC = torch.arange(B, device=embeds.device)[:, None] * L + columns
        logits = self.head(self.hidden(embeds, attention_mask, at_BC.flatten()))
        return logits.view(*columns.shape, -1)

    @torch.no_grad()
    def hidden(self, embeds: Tensor, attention_mask: Tensor | None, at: Tensor) -> Tensor:
        """The states [N, D] that `head` makes the logits of positions b·L + l [N] of.

        Position i's state predicts position i: Dream's shift is undone here and nowhere else
        (a row's first position keeps its own, as the original does without padding).
        """
        if self.transformer.config.logit_shift:
            at = _before(at, embeds, attention_mask)
        return self.transformer.hidden(embeds, attention_mask, at)

    @property
    def feeds_before(self) -> int:
        """Columns before a block that a pass of the block must feed: Dream's 1, LLaDA's 0."""
        return int(self.transformer.config.logit_shift)

    def new_cache(self, num_rows: int, num_positions: int) -> KVCache:
        """Room for every layer's keys and values."""
        table = self.embedding_table
        shape = self.transformer.config.cache_shape(num_positions)
        return KVCache(num_rows, shape, table.dtype, table.device)

    @torch.no_grad()
    def hidden_kept(
        self,
        embeds: Tensor,
        positions: Tensor,
        num_positions: int,
        key_mask: Tensor | None,
        at: Tensor,
        window: Window | None,
        spans: Sequence[tuple[int, int]] | None = None,
    ) -> Tensor:
        """See `lrd.models.protocol.CachedModel`; the column before a fed block undoes the shift."""
        at = at - self.feeds_before
        return self.transformer.hidden_kept(
            embeds, positions, num_positions, key_mask, at, window, spans
        )

    @torch.no_grad()
    def head(self, hidden: Tensor) -> Tensor:
        """States [N, D] → logits [N, V]."""
        return self.transformer.project(hidden)


def _before(at_N: Tensor, embeds_BLD: Tensor, attention_mask_BL: Tensor | None) -> Tensor:
    """The positions that predict these: the ones before, but a row's first real one itself."""
    if attention_mask_BL is None:
        first_N = at_N % embeds_BLD.shape[1] == 0
    else:
        first_N = attention_mask_BL.cumsum(-1).flatten()[at_N] <= 1
    return torch.where(first_N, at_N, at_N - 1)


def load_model(
    path_or_id: str | Path,
    device: str = "cpu",
    dtype: str = "float32",
    revision: str | None = None,
    compile: Compile = "none",
) -> DiffusionModel:
    """The model of a checkpoint folder, a hub id, or an embedded one: `tiny`, `tiny_sheets`.

    `package.module:factory` names a model of another package (README.md beside this file).
    dtype: float32, bfloat16; fp8 or int8_w8a8 (the blocks' products in eight bits, `w8a8.py`);
    int8 (weight-only, by torchao: less memory, slower). revision: of a hub id. compile:
    `compiled.speed_up` says what each choice does; by default element-wise work is fused on CUDA.
    On the device `meta` everything is checked and no weight is read; those of a hub id are not
    downloaded.
    Raises ValueError for what is missing or does not fit, with every difference named at once.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not supported; choose from {', '.join(DTYPES)}")
    target = _device(device)
    check_compile(compile, target)
    if is_plug(str(path_or_id)):
        _refuse_revision(path_or_id, revision)
        if compile in ("compile", "graphs"):
            raise ValueError(f"{path_or_id} compiles itself or not at all; drop compile {compile}")
        return load_plug(str(path_or_id), device, dtype)
    if dtype in FORMATS:
        check_device(FORMATS[dtype], target)
    pack = int8_packer() if dtype == "int8" else W8A8Linear.pack if dtype in FORMATS else None
    if target.type == "meta":
        return _load(*_without_weights(path_or_id, revision), target, dtype, pack, compile)
    return _load(checkpoint_folder(path_or_id, revision), None, target, dtype, pack, compile)


def _load(
    folder: Path,
    headers: Headers | None,
    device: torch.device,
    dtype: str,
    pack: Callable[[Any], None] | None,
    compile: Compile,
) -> LoadedModel:
    config = read_config(folder)
    config["eos_token_id"] = _all_eos(folder, config)
    with _naming(folder):
        family = family_of(config)
        with torch.device("meta"):
            transformer = Transformer(family.transformer_config(config))
            if dtype in FORMATS:
                use_w8a8(transformer.blocks, FORMATS[dtype])
        tokenizer = load_tokenizer(folder)
        refuse_foreign(tokenizer, transformer.config.table_rows)
    tensors = TensorNames(family.name, family.tensor_names(transformer.config), family.twins)
    unused = load_weights(transformer, tensors, folder, device, DTYPES[dtype], pack, headers)
    transformer.requires_grad_(False).eval()
    if device.type == "cuda":
        # Else the parts of a long sum, such as that over the vocabulary, are added in bfloat16.
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        if dtype != "int8":
            transformer.fuse()
    with _naming(folder):
        model = LoadedModel(transformer, config, tokenizer, family.eot_token, compile)
    model.unused_tensors = unused
    return model


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """A ValueError that names a file alone gets the folder too."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        raise ValueError(text if str(folder) in text else f"{folder}: {text}") from error


def _without_weights(path_or_id: str | Path, revision: str | None) -> tuple[Path, Headers | None]:
    """The checkpoint's folder, and what its weights' files hold where the folder lacks them: a hub
    tells it without a download."""
    if not _is_on_hub(path_or_id):
        return checkpoint_folder(path_or_id, revision), None
    folder = checkpoint_folder(path_or_id, revision, TOKENIZER_FILES)
    names = weight_names(folder)
    if not all((folder / name).is_file() for name in names):
        headers = weight_headers(str(path_or_id), folder)
        if headers is not None and sorted(headers) == names:
            return folder, headers
    return checkpoint_folder(path_or_id, revision), None


def _is_on_hub(path_or_id: str | Path) -> bool:
    name = str(path_or_id)
    return embedded_folder(name) is None and not Path(name).is_dir() and is_hub_id(name)


def checkpoint_folder(
    path_or_id: str | Path, revision: str | None = None, files: Sequence[str] = FILES
) -> Path:
    """The folder that a path, a hub id or the name of an embedded model stands for.

    Such a name goes before a folder of the same spelling, and a folder before a hub id. files:
    patterns of the names to download from the hub. Raises ValueError where there is none.
    """
    folder = embedded_folder(str(path_or_id)) or Path(path_or_id)
    if folder.is_dir():
        _refuse_revision(path_or_id, revision)
    elif is_hub_id(str(path_or_id)):
        folder = download(str(path_or_id), revision, files)
    else:
        raise ValueError(
            f"{path_or_id}: no such checkpoint folder, and not a hub id (owner/name) either"
        )
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no config.json; name a folder that holds a checkpoint")
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json`, parsed; ValueError where it is not a JSON object."""
    return read_object(folder / "config.json")


def _all_eos(folder: Path, config: Mapping[str, Any]) -> Any:
    """`eos_token_id` of config.json, with those that generation_config.json adds."""
    stated = config.get("eos_token_id")
    more = _added_eos(folder, config)
    return [*(stated if isinstance(stated, list) else [stated]), *more] if more else stated


def _added_eos(folder: Path, config: Mapping[str, Any]) -> list[Any]:
    file = folder / GENERATION
    if not file.is_file() or config.get("eos_token_id") is None:
        return []
    added, stated = read_object(file).get("eos_token_id"), config["eos_token_id"]
    known = stated if isinstance(stated, list) else [stated]
    added = added if isinstance(added, list) else [added]
    return [index for index in added if index is not None and index not in known]


def fingerprint(
    path_or_id: str | Path,
    revision: str | None = None,
    on_bytes: OnBytes = lambda new, total: None,
) -> str:
    """SHA-256 over configuration, tokenizer and weights: equal exactly for equal models.

    Of contents alone, so where they lie and which revision they came from does not matter. A hub
    id's weights are not downloaded for it where the hub states their SHA-256. Of a plug: over its
    name and its module's source. on_bytes: called while weights are read.
    """
    if is_plug(str(path_or_id)):
        return plug_fingerprint(str(path_or_id))
    on_hub = _is_on_hub(path_or_id)
    folder = checkpoint_folder(path_or_id, revision, TOKENIZER_FILES if on_hub else FILES)
    sides = [folder / name for name in SIDE_FILES]
    if _added_eos(folder, read_config(folder)):
        sides.append(folder / GENERATION)
    sides = [file for file in sides if file.is_file()]
    weights = _stated_weights(str(path_or_id), revision, folder) if on_hub else []
    if not weights:
        files = weight_files(folder)
        weights = list(zip([file.name for file in files], sha256_of(files, on_bytes), strict=True))
    named = zip([file.name for file in sides], sha256_of(sides), strict=True)
    digest = hashlib.sha256()
    for name, found in [*named, *weights]:
        digest.update(name.encode() + bytes.fromhex(found))
    return digest.hexdigest()


def _stated_weights(hub_id: str, revision: str | None, folder: Path) -> list[tuple[str, str]]:
    """Names of a hub id's weight files and their SHA-256, as the hub states it; empty where all
    files are in the folder. Files whose digest the hub does not state are downloaded into it."""
    names = weight_names(folder)
    if all((folder / name).is_file() for name in names):
        return []
    stated = weight_sha256(hub_id, folder)
    if all(name in stated for name in names):
        return [(Path(name).name, stated[name]) for name in names]
    checkpoint_folder(hub_id, revision)
    return []


def _token_id(config: Mapping[str, Any], name: str, table_rows: int) -> int:
    value = config.get(name)
    if type(value) is not int or not 0 <= value < table_rows:
        raise ValueError(
            f"config.json: {name} is {value!r}; expected a token id below {table_rows}"
        )
    return value


def _eos_ids(config: Mapping[str, Any], table_rows: int) -> tuple[int, ...]:
    stated = config.get("eos_token_id")
    listed = stated if isinstance(stated, list) and stated else [stated]
    ids = [_token_id({"eos_token_id": index}, "eos_token_id", table_rows) for index in listed]
    return tuple(dict.fromkeys(ids))


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is unknown; choose cpu, cuda or cuda:0") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r}: torch finds no CUDA device here; choose cpu")
    return device


def _refuse_revision(path_or_id: str | Path, revision: str | None) -> None:
    if revision is not None:
        raise ValueError(f"{path_or_id} is not a hub id; drop the revision {revision!r}")
