"""Safetensors files → a transformer's parameters; every tensor must be expected and found.

Reads safetensors alone, never a pickle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lrd.models.files import read_object, refuse_pointer, validated
from lrd.models.transformer import Transformer

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""Stored types that can be cast; packed integers cannot."""
ROWS_AT_A_TIME = 1024
"""Rows of two tables that are compared together."""
ATOL_FREQUENCY = 6e-8
"""The spacing of float16 near 0, where the lowest frequencies may be stored."""
FREQUENCIES = ("inv_freq", "original_inv_freq")
"""RoPE's, as some files store them."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class _Index(BaseModel):
    model_config = ConfigDict(strict=True)

    weight_map: dict[str, str] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class TensorNames:
    """What a family calls the tensors of one transformer."""

    family: str
    wanted: Mapping[str, str]
    """Our parameter → the file's tensor."""
    twins: Mapping[str, str]
    """Tensors that may be there as well, where they equal the wanted one named here."""


Headers = Mapping[str, Mapping[str, tuple[Sequence[int], str]]]
"""Names of weight files → names of their tensors → shape, and dtype as safetensors names it."""


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, by its index or single.

    Raises ValueError where one is missing, a pickle, a Git LFS pointer or outside the folder.
    """
    names = weight_names(folder)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing and (folder / INDEX).is_file():
        raise ValueError(
            f"{folder / INDEX}: names {len(missing)} files that are not there: "
            f"{', '.join(missing)}; download them again"
        )
    if missing:
        _refuse_pickles(folder, [file.name for end in PICKLES for file in folder.glob(end)])
        raise ValueError(f"{folder}: no model.safetensors and no {INDEX}; pickles are never read")
    files = [folder / name for name in names]
    for file in files:
        refuse_pointer(file)
    return files


def weight_names(folder: Path) -> list[str]:
    """What `weight_files` are called, whether they are there or not.

    Raises ValueError where the index cannot be read, or names a pickle or a file outside.
    """
    index = folder / INDEX
    if not index.is_file():
        return [SINGLE]
    try:
        named = validated(_Index, read_object(index), INDEX)
    except ValueError as error:
        reason = str(error).removeprefix(f"{index}: ").removeprefix(f"{INDEX}: ")
        raise ValueError(f"{index}: not an index of shards ({reason})") from error
    names = sorted(set(named.weight_map.values()))
    _refuse_outside(index, names)
    _refuse_pickles(folder, [name for name in names if not name.endswith(".safetensors")])
    return names


def _refuse_outside(index: Path, names: list[str]) -> None:
    """ValueError for shards that are not below the index's folder, links followed.

    Links of a hub cache are huggingface_hub's: a snapshot's files lie among its blobs.
    """
    folder = index.parent.resolve()
    is_snapshot = folder.parent.name == "snapshots" and (folder.parents[1] / "blobs").is_dir()
    for name in names:
        inside = not Path(name).is_absolute() and ".." not in Path(name).parts
        if inside and not is_snapshot:
            inside = (folder / name).resolve().is_relative_to(folder)
        if not inside:
            raise ValueError(
                f"{index}: names {name!r}, which leads out of the checkpoint's folder; put the "
                "file itself there, or download the checkpoint again"
            )


def _refuse_pickles(folder: Path, names: list[str]) -> None:
    if names:
        raise ValueError(
            f"{folder}: pickled weights ({', '.join(sorted(names))}); they can run code when read "
            "and are refused. Convert them to safetensors"
        )


def load_weights(
    transformer: Transformer,
    names: TensorNames,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    pack: Callable[[Any], None] | None = None,
    headers: Headers | None = None,
) -> list[str]:
    """Fill a transformer that is on the meta device, tensor by tensor.

    pack: called for every linear layer of a block as soon as its weight is loaded, so that full
    and packed weights of the whole model are never in memory together. On the device `meta` every
    tensor is checked and none is kept. headers: of files that are not in the folder, on the device
    meta alone; whether a tensor that may repeat another does so is seen where the files are.
    Returns tensors of the files that are not needed, since they repeat others (a tied head, RoPE's
    frequencies).
    Raises ValueError that names all tensors which are missing, extra, misshapen or not floats.
    """
    shapes = {name: list(p.shape) for name, p in transformer.named_parameters()}
    assert shapes.keys() == names.wanted.keys()
    ours = {theirs: name for name, theirs in names.wanted.items()}
    stored = _Stored({theirs: shapes[name] for theirs, name in ours.items()})
    if headers is not None:
        for file_name, tensors in headers.items():
            for name, (shape, kind) in tensors.items():
                stored.note(name, folder / file_name, list(shape), kind)
        unused = sorted(name for name in stored.beside if _may_repeat(name, names))
        stored.refuse(folder, names.family, unused)
        return unused
    for file in weight_files(folder):
        stored.read(file)
    unused = sorted(name for name in stored.beside if _is_unused(name, stored, names, transformer))
    stored.refuse(folder, names.family, unused)
    if device.type == "meta":
        return unused
    modules = dict(transformer.named_modules())
    for theirs, file in stored.files.items():
        owner, _, attribute = ours[theirs].rpartition(".")
        value = _read(file, theirs, device, dtype)
        setattr(modules[owner], attribute, nn.Parameter(value, requires_grad=False))
        module = modules[owner]
        in_block = attribute == "weight" and owner.startswith("blocks.")
        if pack is not None and in_block and isinstance(module, nn.Linear):
            pack(module)
    return unused


@dataclass(slots=True)
class _Stored:
    """The tensors of a checkpoint's files, compared with those that are wanted."""

    wanted: Mapping[str, list[int]]
    files: dict[str, Path] = field(default_factory=dict)
    """The file of every wanted tensor."""
    beside: dict[str, Path] = field(default_factory=dict)
    """The file of every other tensor."""
    twice: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    packed: list[str] = field(default_factory=list)

    def read(self, file: Path) -> None:
        """Note what a file holds; ValueError where it is not whole."""
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (safe_open is not a mapping)
                    stored = tensors.get_slice(name)
                    self.note(name, file, list(stored.get_shape()), stored.get_dtype())
        except SafetensorError as error:
            raise ValueError(
                f"{file}: not a whole safetensors file ({error}); download it again"
            ) from error

    def note(self, name: str, file: Path, shape: list[int], kind: str) -> None:
        """Note a tensor, with its shape and dtype as stored."""
        files = self.files if name in self.wanted else self.beside
        if name in files:
            self.twice.append(f"{name} (in {files[name].name} and again in {file.name})")
        files[name] = file
        if name not in self.wanted:
            return
        if shape != self.wanted[name]:
            self.misshapen.append(f"{name} is {shape}, not {self.wanted[name]}")
        if kind not in FLOATS:
            self.packed.append(f"{name} is {kind}")

    def refuse(self, folder: Path, family: str, unused: list[str]) -> None:
        """ValueError with all differences at once, if there are any."""
        kinds = {
            "missing": list(self.wanted.keys() - self.files.keys()),
            "extra": [*(self.beside.keys() - set(unused)), *self.twice],
            "misshapen": self.misshapen,
            "not floats": self.packed,
        }
        parts = [
            f"{len(found)} {kind}: {'; '.join(sorted(found))}"
            for kind, found in kinds.items()
            if found
        ]
        if parts:
            raise ValueError(
                f"{folder}: the tensors are not those of config.json as {family}: "
                + ". ".join(parts)
                + ". Use the config.json that belongs to these weights, or download both again; "
                "weights quantised by others are not supported"
            )


def _may_repeat(name: str, names: TensorNames) -> bool:
    """Whether a tensor's name is one of those that may repeat what the model has without it."""
    return name in names.twins or name.rpartition(".")[2] in FREQUENCIES


def _is_unused(name: str, stored: _Stored, names: TensorNames, transformer: Transformer) -> bool:
    """Whether a tensor repeats what the model has without it: a tied head that equals the
    embedding table, or RoPE's frequencies as config.json implies them."""
    if not _may_repeat(name, names):
        return False
    file, twin = stored.beside[name], names.twins.get(name)
    if twin in stored.files:
        return _are_equal((file, name), (stored.files[twin], twin))
    if name.rpartition(".")[2] not in FREQUENCIES:
        return False
    config = transformer.config
    width = config.width // config.num_heads
    expected_E = config.rope_theta ** -(torch.arange(0, width, 2, dtype=torch.float32) / width)
    with safe_open(file, framework="pt") as tensors:
        if tensors.get_slice(name).get_dtype() not in FLOATS:
            return False
        found_E: Tensor = tensors.get_tensor(name)
    tolerance = max(1e-5, torch.finfo(found_E.dtype).eps)
    return found_E.shape == expected_E.shape and torch.allclose(
        found_E.float(), expected_E, rtol=tolerance, atol=ATOL_FREQUENCY
    )


def _are_equal(one: tuple[Path, str], other: tuple[Path, str]) -> bool:
    """Whether two stored tensors hold the same numbers, a few rows at a time."""
    with safe_open(one[0], framework="pt") as left, safe_open(other[0], framework="pt") as right:
        a, b = left.get_slice(one[1]), right.get_slice(other[1])
        if a.get_shape() != b.get_shape() or not {a.get_dtype(), b.get_dtype()} <= FLOATS:
            return False
        starts = range(0, a.get_shape()[0], ROWS_AT_A_TIME)
        parts = (slice(first, first + ROWS_AT_A_TIME) for first in starts)
        return all(torch.equal(a[part].double(), b[part].double()) for part in parts)


def _read(file: Path, name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    """One tensor, copied. The file is mapped anew for each: a mapping's pages stay resident
    until it is closed, and would stand beside the copies made of them."""
    with safe_open(file, framework="pt") as tensors:
        value: Tensor = tensors.get_tensor(name).to(device=device, dtype=dtype, copy=True)
        return value
